"""The site: its configuration holds, and what it links to is there."""
import json
import re
import shutil
import sys

import pytest
import yaml
from conftest import ROOT, SETTINGS, run

PAGES = sorted((ROOT/'nbs').rglob('*.ipynb'))


def test_configuration():
    "One hand-written configuration, seen by nbdev through a link, and facts that agree"
    assert (ROOT/'nbs'/'_quarto.yml').is_symlink() and (ROOT/'nbs'/'_quarto.yml').resolve() == ROOT/'_quarto.yml'
    quarto = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    assert quarto['project']['type'] == 'website' and quarto['metadata-files'] == ['nbdev.yml', 'sidebar.yml']
    assert SETTINGS['git_url'] == 'https://github.com/fruit-freshness/fruit_freshness'


def test_pages_are_processed(tmp_path):
    "What nbdev does to a page before Quarto renders it works for every page"
    copy = tmp_path/'fruit_freshness'
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns('.git', '.venv', 'runs', 'build', 'dist', '*.egg-info', '_proc', '_docs'))
    done = run(sys.executable, '-c', 'from nbdev.serve import proc_nbs; proc_nbs(force=True)', cwd=copy)
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(copy/'_proc').as_posix() for path in (copy/'_proc').rglob('*.ipynb')}
    assert {page.relative_to(ROOT/'nbs').as_posix() for page in PAGES} <= made


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links(page):
    "Every relative link leads to a file of the project"
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    for cell in cells:
        if cell['cell_type'] != 'markdown': continue
        for link in re.findall(r'\]\(([^)\s]+)\)', ''.join(cell['source'])):
            if re.match(r'https?:|mailto:|#', link): continue
            assert (page.parent/link.split('#')[0]).exists(), link


def test_workflows_and_readme_links():
    for workflow in (ROOT/'.github'/'workflows').glob('*.yaml'): assert yaml.safe_load(workflow.read_text())['jobs'], workflow
    for link in re.findall(r'\]\((?!https?:|#)([^)\s]+)\)', (ROOT/'README.md').read_text(encoding='utf-8')): assert (ROOT/link.split('#')[0]).exists(), link
