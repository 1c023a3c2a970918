"""Notebooks, package and README are in step, and every notebook runs."""
import ast
import json
import re

import pytest
from conftest import ROOT, SETTINGS, changes, copy_project, run
from readme import readme

EXPORTING = ('[0-9]*.ipynb', 'parts/*.ipynb', 'apps/*.ipynb')
PAGES = sorted(path.relative_to(ROOT/'nbs').as_posix() for pattern in EXPORTING for path in (ROOT/'nbs').glob(pattern))


@pytest.fixture(scope='module')
def copy(tmp_path_factory): return copy_project(tmp_path_factory.mktemp('copy'))


def test_export_changes_nothing(copy):
    done = run('nbdev_export', cwd=copy)
    assert done.returncode == 0, done.stderr
    assert changes(copy) == '', 'run `make export` and commit'


def test_notebooks_are_clean(copy):
    done = run('nbdev_clean', cwd=copy)
    assert done.returncode == 0, done.stderr
    assert changes(copy) == '', 'run `make export` and commit'


def test_notebooks_run():
    # two notebooks at a time, a core each
    done = run('nbdev_test', '--n_workers', '2', '--timing', timeout=1500, env=dict(OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


def test_readme_is_in_step():
    assert (ROOT/'README.md').read_text(encoding='utf-8') == readme(), 'run `make readme` and commit'


@pytest.mark.parametrize('name', ['index.ipynb', *PAGES])
def test_opens_in_colab(name):
    "A badge that leads to this very notebook, and a hidden cell that installs on Colab alone"
    cells = json.loads((ROOT/'nbs'/name).read_text(encoding='utf-8'))['cells']
    text = [''.join(cell['source']) for cell in cells]
    badge = f"colab.research.google.com/github/{SETTINGS['user']}/{SETTINGS['repo']}/blob/{SETTINGS['branch']}/nbs/{name}"
    assert any(badge in source for source in text[:5])
    assert any(source.startswith('#| hide') and "if 'google.colab' in sys.modules:" in source for source in text[:5])


@pytest.mark.parametrize('name', ['index.ipynb', *PAGES])
def test_stored_outputs(name):
    "A notebook was run from top to bottom, without an error, stays small, and names no path of the computer it ran on"
    path = ROOT/'nbs'/name
    cells = [cell for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code']
    outputs = [output for cell in cells for output in cell['outputs']]
    assert outputs and not [output for output in outputs if output['output_type'] == 'error']
    assert path.stat().st_size < 1_000_000
    printed = [line for output in outputs for line in (*output.get('text', ()), *output.get('data', {}).get('text/plain', ()))]
    text = ''.join(printed)
    assert not [place for place in ('/home/', '/root/', '/tmp/', '/site-packages/') if place in text]


@pytest.mark.parametrize('name', ['index.ipynb', *PAGES])
def test_imports_stand_alone(name):
    "A cell imports or does something: nbdev_docs runs what imports, and stops where such a cell needs those before it"
    mixed = []
    for cell in json.loads((ROOT/'nbs'/name).read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or source.startswith('#| export') or re.search('^ *[%!]|nbdev_export', source, re.M): continue
        nodes = list(ast.walk(ast.parse(source)))
        imports = any(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes)
        if imports and any(isinstance(node, ast.Expr | ast.Assign) for node in nodes): mixed.append(source)
    assert not mixed


@pytest.mark.parametrize('name', PAGES)
def test_exported_cells_are_short(name):
    "No exported cell is longer than thirty lines, for what scrolls is not read; and the pipeline's pages stay under 90 cells"
    cells = json.loads((ROOT/'nbs'/name).read_text(encoding='utf-8'))['cells']
    exported = [source for cell in cells if (source := ''.join(cell['source'])).startswith(('#| export', '#| exporti'))]
    assert not [source.splitlines()[1] for source in exported if len(source.splitlines()) > 31]
    if '/' not in name: assert len(cells) < 90
