"""What nbdev does for the site beyond its own: settings.ini names `Signature` as renderer, `tidy` as processor."""
import ast
import inspect
import io
import re
from base64 import b64decode
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import numpy as np
from fastcore.docments import docments
from fastcore.script import Param
from nbdev.doclinks import NbdevLookup
from nbdev.showdoc import BasicMarkdownRenderer
from PIL import Image

PRIVATE = re.compile(r'\[(`(?:\w+\.)?_\w+(?:\(\))?`)\]\(https?:[^)]+\)') # a link to what no page shows
NOT_FOR_READERS = re.compile(r'^show_doc\((_|\w+\.__(copy|reduce)__)', re.MULTILINE)
NESTED = re.compile(r'\[\[(`[^`]+`)\]\(https?:[^)]+\)\]\(')
TEST = re.compile(r'test_|assert |with expect_fail|for .*\n? *test_')
FFMPEG = re.compile(r'\[[\w,]+ @ 0x[0-9a-f]+\] ') # what it writes to stderr by itself
LONG = 88 # characters; a longer signature has a line for each parameter


def exported(name: str):
    "What a notebook exports under this name, and its module: a class that a cell just made has no source to read"
    found = NbdevLookup()[name]
    if not isinstance(found, tuple): return None, None
    module = import_module('.'.join(Path(found[1]).with_suffix('').parts))
    return attrgetter(name)(module), module


def default_text(value) -> str:
    "A default value as a reader of the signature writes it"
    if inspect.isfunction(value): return '...' if value.__name__ == '<lambda>' else value.__name__
    if type(value) is int and abs(value) >= 10_000: return f'{value:_}'
    text = repr(value)
    if text.startswith('<'): return '...' # a factory of fields, an object without a spelling
    return text if len(text) <= 60 else f'{type(value).__name__}(...)'


def options(symbol) -> dict[str, Param]:
    "The parameters of a command that fastcore's `Param` describes"
    written = getattr(symbol, '__annotations__', {}).values()
    if not any(isinstance(text, Param) or 'Param(' in str(text) for text in written): return {}
    hints = inspect.get_annotations(symbol, eval_str=True)
    return {name: hint for name, hint in hints.items() if isinstance(hint, Param)}


def parameter_text(parameter: inspect.Parameter, option: Param | None) -> str:
    "One parameter with its type and default"
    annotation = option.type if option else parameter.annotation
    annotation = getattr(annotation, '__forward_arg__', annotation) # as a named tuple keeps it
    if not isinstance(annotation, str): annotation = inspect.formatannotation(annotation)
    stars = {parameter.VAR_POSITIONAL: '*', parameter.VAR_KEYWORD: '**'}.get(parameter.kind, '')
    text = stars + parameter.name + (f': {annotation}' if parameter.annotation is not parameter.empty else '')
    if parameter.default is parameter.empty: return text
    return f'{text} = {default_text(parameter.default)}'


def is_error(symbol) -> bool: return inspect.isclass(symbol) and issubclass(symbol, Exception)


def signature_text(symbol, name: str) -> str:
    "How `symbol` is called, without `self`; of an error its family"
    if is_error(symbol): return f'class {name}({symbol.__base__.__name__})'
    signature, described = inspect.signature(symbol), options(symbol)
    kind = 'async def' if inspect.iscoroutinefunction(symbol) else 'class' if inspect.isclass(symbol) else 'def'
    shown = {key: parameter for key, parameter in signature.parameters.items() if key != 'self'}
    parts = [parameter_text(parameter, described.get(key)) for key, parameter in shown.items()]
    returns = signature.return_annotation
    if not isinstance(returns, str): returns = inspect.formatannotation(returns)
    end = f') -> {returns}' if kind != 'class' and signature.return_annotation is not signature.empty else ')'
    line = f"{kind} {name}({', '.join(parts)}{end}"
    if len(line) <= LONG: return line
    return f'{kind} {name}(\n' + ''.join(f'    {part},\n' for part in parts) + end


def table(symbol) -> str:
    "What each parameter means, and what comes back; empty where nothing is said"
    said = {} if is_error(symbol) else docments(symbol, returns=not inspect.isclass(symbol))
    if inspect.isclass(symbol) and issubclass(symbol, tuple): # a named tuple: its fields' comments stand in its source
        said = dict(re.findall(r'^ +(\w+): [^#\n]*# (.+)$', inspect.getsource(symbol), re.MULTILINE))
    said |= {name: option.help for name, option in options(symbol).items()}
    named = {'*returns*' if name == 'return' else f'<code>{name}</code>': text for name, text in said.items() if text}
    lines = [f"| {name} | {' '.join(text.split()).replace('|', chr(92) + '|')} |" for name, text in named.items()]
    if not lines: return ''
    return '\n'.join(['| parameter | meaning |', '|:--|:--|', *lines])


def constants(text: str, module) -> str:
    "The values of the constants that a text names"
    names = dict.fromkeys(re.findall(r'`(_?[A-Z][A-Z_]{3,})`', text))
    known = [(name, repr(getattr(module, name))) for name in names if hasattr(module, name)]
    return '\n\n'.join(f'`{name}` = `{value}`' for name, value in known if len(value) < 300)


class Signature(BasicMarkdownRenderer):
    "A signature, and below it what its parameters mean: nbdev has that as comments, where links stay raw"
    def _repr_markdown_(self):
        symbol, module = exported(self.fn.removeprefix('__main__.'))
        if symbol is None: return super()._repr_markdown_()
        symbol = getattr(symbol, 'fget', None) or symbol # of a property
        said, doc = table(symbol), inspect.getdoc(symbol) if symbol.__doc__ else ''
        link = f'[source]({NbdevLookup().code(self.fn)}){{target="_blank" style="float:right; font-size:smaller"}}'
        code = f"```python\n{signature_text(symbol, self.nm.rsplit('.')[-1])}\n```"
        parts = ['---', link, f'### {self.nm}', code, doc, said, constants(f'{doc} {said}', module)]
        return '\n\n'.join(part for part in parts if part)


def mended(text: str) -> str:
    "Text without nbdev's links to what no page shows, and without links inside links"
    return NESTED.sub(r'[\1](', PRIVATE.sub(r'\1', text))


def folded(source: str) -> str:
    "What a cell is folded under, if it is not worth scrolling: long imports, a dozen lines that mostly test"
    try: statements = ast.parse(source).body
    except SyntaxError: return '' # a command of the shell
    long = len(source.splitlines())
    if long > 3 and all(isinstance(node, ast.Import | ast.ImportFrom) for node in statements): return 'Imports'
    tests = [node for node in statements if TEST.match(ast.unparse(node))]
    return 'Tests' if long >= 12 and len(tests) > len(statements) / 2 else ''


def is_chart(png: str) -> bool:
    "Whether a figure is lines on white rather than photos: those can be shown inverted on a dark page"
    pixels = np.asarray(Image.open(io.BytesIO(b64decode(png))).convert('RGB'))
    return (pixels > 250).all(2).mean() > .6


def for_site(output: dict) -> bool:
    "Whether an output belongs on a page: no progress bars, no widgets without their program"
    return 'application/vnd.jupyter.widget-view+json' not in output.get('data', {})


def tidy(cell):
    "Fold what nobody reads, mark charts, and drop outputs for which Quarto would load scripts from elsewhere"
    if cell.cell_type == 'markdown': cell.source = mended(cell.source)
    if cell.cell_type != 'code': return
    if NOT_FOR_READERS.search(cell.source): return cell.pop('source') # nbdev leaves out cells without a source
    cell.outputs = [output for output in cell.get('outputs', []) if for_site(output)]
    for output in cell.outputs:
        if 'text' in output: output['text'] = [line for line in output['text'] if not FFMPEG.match(line)]
    options = []
    if summary := folded(cell.source): options += ['#| code-fold: true', f'#| code-summary: "{summary}"']
    datas = [output['data'] for output in cell.outputs if 'data' in output]
    for data in datas:
        if 'text/markdown' in data: data['text/markdown'] = mended(''.join(data['text/markdown']))
        html = ''.join(data.pop('text/html', ''))
        if html: data['text/markdown'] = f'```{{=html}}\n{html}\n```'
    figures = [''.join(data['image/png']) for data in datas if 'image/png' in data]
    if any(map(is_chart, figures)): options.append('#| classes: chart')
    cell.source = '\n'.join([*options, cell.source])
