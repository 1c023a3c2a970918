"""Modules import along the arrows below, private names stay in their file, ruff and mypy find nothing."""
import ast
import json
import re
import sys
from functools import cache
from importlib import import_module
from importlib.util import resolve_name
from pathlib import Path

import pytest
from conftest import ROOT, SETTINGS, run

PACKAGE = ROOT/'fruit_freshness'
MODULES = {path.stem: path for path in PACKAGE.rglob('*.py') if not path.stem.startswith('_')}
ARROWS = { # a module, and what it may import: a new one is a line more
    'core': '',
    'labels': 'core', 'sample': 'core',
    'data': 'core labels sample',
    'copies': 'core data',
    'split': 'core data copies',
    'backbones': 'core data', # for `Normalisation`, the input that a network was pretrained with
    'model': 'core data backbones',
    'evaluate': 'core labels data split model',
    'views': 'core data sample',
    'robust': 'core labels data split views backbones model evaluate',
    'train': 'core sample data split backbones model evaluate robust',
    'explain': 'core backbones model',
    'fetch': 'core data', 'cards': 'core data',
    'infer': 'core sample data model fetch explain cards', # never `train` or `split`
    'audit': 'core data copies split'}
ARROWS |= {app: f"infer {ARROWS['infer']}" for app in ('webcam', 'export')}
ARROWS |= {'serve': f"webcam {ARROWS['webcam']}"}


def imports(source: str, package: str) -> set[tuple[str, str]]:
    "The module and the name of every import of this project, wherever in the file it stands"
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): found |= {(alias.name, '') for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            module = resolve_name('.' * node.level + (node.module or ''), package)
            found |= {(module, alias.name) for alias in node.names}
    return {(module, name) for module, name in found if module.startswith('fruit_freshness')}


def of_module(name: str) -> set[tuple[str, str]]:
    path = MODULES[name]
    return imports(path.read_text(encoding='utf-8'), '.'.join(path.relative_to(ROOT).parent.parts))


@pytest.mark.parametrize('name', MODULES)
def test_arrows(name):
    "A module imports only what stands below it: `infer` never waits for `train`, and nothing imports `train`"
    used = {part for module, imported in of_module(name) for part in (module.split('.')[-1], imported)}
    assert used & set(MODULES) <= set(ARROWS[name].split()), f'{name} may import {ARROWS[name]!r}'


def test_private_names_stay_at_home():
    "No name with a leading underscore crosses a file: not into a module, a test or another notebook"
    private = re.compile('_(?!_)')
    crossing = {(name, used) for name in MODULES for _, used in of_module(name) if private.match(used)}
    pages = [*ROOT.glob('nbs/**/*.ipynb'), *ROOT.glob('nbs/**/*.py'), *ROOT.glob('tests/*.py')]
    line = re.compile(r'from (fruit_freshness[.\w]*) import [^#\n]*?\b(_[a-z]\w*)')
    crossing |= {(page.name, *names) for page in pages for names in line.findall(page.read_text(encoding='utf-8'))}
    assert not crossing


def dotted(path: Path) -> str: return '.'.join(path.relative_to(ROOT).with_suffix('').parts)


COMMANDS = {name: next(dotted(path) for path in MODULES.values() if f'\ndef {name}(' in path.read_text(encoding='utf-8'))
            for name in re.findall(r'(\w+)=', SETTINGS['console_scripts'])} # their modules


@cache
def help_of(command: str) -> str:
    "What `--help` prints"
    printed = []
    with pytest.MonkeyPatch.context() as changed, pytest.raises(SystemExit):
        changed.setattr(sys, 'argv', [command, '--help'])
        changed.setattr(sys.stdout, 'write', printed.append)
        getattr(import_module(COMMANDS[command]), command).main()
    return ''.join(printed)


def literals(tree: ast.AST) -> list[str]:
    "Every string of a module; of an f-string what is written, with a gap for what is computed"
    joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    inner = {part for node in joined for part in ast.walk(node)} - set(joined)
    plain = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner]
    return plain + [' '.join(part.value for part in node.values if isinstance(part, ast.Constant)) for node in joined]


@pytest.mark.parametrize('name', MODULES)
def test_advice_names_options_that_exist(name):
    "An option in a message is one of the command that the message names, else of the module's own command, else of any"
    own = [command for command, place in COMMANDS.items() if place == dotted(MODULES[name])]
    unknown = set()
    for text in literals(ast.parse(MODULES[name].read_text(encoding='utf-8'))):
        if re.search(r'--[\w-]+: *#|var\(--', text): continue # a style sheet
        asked = set(re.findall(r'(?<![\w-])--[a-z]+(?:-[a-z0-9]+)*(?![\w-])', text))
        named = [command for command in COMMANDS if command in text]
        known = {option for command in named or own or COMMANDS for option in re.findall(r'--[\w-]+', help_of(command))} if asked else set()
        unknown |= asked - known
    assert not unknown


def test_ruff():
    "No unused import, no undefined name, no line of the package that needs scrolling"
    findings = json.loads(run('ruff', 'check', '--output-format', 'json').stdout)
    lines = {path: Path(path).read_text(encoding='utf-8').splitlines() for path in {finding['filename'] for finding in findings}}
    listed = re.compile(r"__all__ = |           '") # the list of public names, which nbdev wraps by itself
    findings = [finding for finding in findings if not (finding['code'] == 'E501' and listed.match(
        lines[finding['filename']][finding['location']['row'] - 1]))]
    assert not findings, [(finding['filename'], finding['location']['row'], finding['message']) for finding in findings]


def patched() -> set[tuple[str, str]]:
    "Class and name of what fastcore's @patch adds, unseen by a type checker: methods, and what they set"
    found = set()
    for path in MODULES.values():
        for function in ast.parse(path.read_text(encoding='utf-8')).body:
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef): continue
            if not any(re.match(r'patch\b', ast.unparse(by)) for by in function.decorator_list): continue
            first = function.args.args[0]
            stored = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)
                      and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == first.arg}
            found |= {(ast.unparse(first.annotation), name) for name in {function.name, *stored}}
    return found


def test_types():
    "mypy agrees with the types that the package states"
    done = run('mypy')
    unknown = re.compile(r'"(\w+)" has no attribute "(\w+)"')
    known = patched()
    errors = [line for line in done.stdout.splitlines() if ': error: ' in line]
    findings = [line for line in errors if not ((names := unknown.search(line)) and names.groups() in known)]
    assert done.returncode in (0, 1) and not findings, '\n'.join(findings) + done.stderr
