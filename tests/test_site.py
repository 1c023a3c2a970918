"""The site: its configuration holds, and what it links to is there."""
import json
import os
import re

import pytest
import yaml
from conftest import BIN, ROOT, SETTINGS, changes, copy_project, run

PAGES = sorted((ROOT/'nbs').rglob('*.ipynb'))


def test_configuration():
    "One hand-written configuration, seen by nbdev through a link, and facts that agree"
    assert (ROOT/'nbs'/'_quarto.yml').is_symlink() and (ROOT/'nbs'/'_quarto.yml').resolve() == ROOT/'_quarto.yml'
    quarto = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    assert quarto['project']['type'] == 'website' and quarto['metadata-files'] == ['nbdev.yml', 'sidebar.yml']
    assert SETTINGS['git_url'] == f"https://github.com/{SETTINGS['user']}/{SETTINGS['repo']}"


QUARTO = '''#!/bin/sh
mkdir -p _docs
case "$*" in *README.md*) echo "rendered anew" > _docs/README.md;; esac
'''


def test_site_changes_no_file(tmp_path):
    "`nbdev_docs` processes every page for Quarto, and changes no tracked file, whichever of them git wrote first"
    copy, tools = copy_project(tmp_path), tmp_path/'tools'
    tools.mkdir()
    (tools/'quarto').write_text(QUARTO) # stands in for the real one: writes what it is asked for, where nbdev looks for it
    (tools/'quarto').chmod(0o755)
    os.utime(copy/'README.md', (1e9, 1e9)) # older than nbs/index.ipynb
    done = run('nbdev_docs', cwd=copy, env=dict(PATH=os.pathsep.join([str(tools), str(BIN), os.environ['PATH']])))
    assert done.returncode == 0 and (copy/'_docs').is_dir(), done.stderr
    made = {path.relative_to(copy/'_proc').as_posix() for path in (copy/'_proc').rglob('*.ipynb')}
    assert {page.relative_to(ROOT/'nbs').as_posix() for page in PAGES} <= made
    assert changes(copy) == ''


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links(page):
    "Every relative link leads to a file of the project"
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    for cell in cells:
        if cell['cell_type'] != 'markdown': continue
        for link in re.findall(r'\]\(([^)\s]+)\)', ''.join(cell['source'])):
            if re.match(r'https?:|mailto:|#', link): continue
            assert (page.parent/link.split('#')[0]).exists(), link


def test_home_page_names_every_page():
    home = (ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8')
    pages = {page.relative_to(ROOT/'nbs').as_posix() for page in PAGES} - {'index.ipynb'}
    assert not {page for page in pages if f']({page})' not in home}


@pytest.mark.parametrize('name', ['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md'])
def test_links_of_pages_at_the_root(name):
    for link in re.findall(r'\]\((?!https?:|#)([^)\s]+)\)', (ROOT/name).read_text(encoding='utf-8')):
        assert (ROOT/link.split('#')[0]).exists(), link


@pytest.mark.parametrize('path', sorted((ROOT/'.github').rglob('*.yaml')), ids=lambda path: path.name)
def test_workflows(path):
    "Workflows may read the repository and no more, and run once for a change: for a branch its pull request, then main"
    workflow = yaml.safe_load(path.read_text())
    assert workflow['permissions'] == {'contents': 'read'} and workflow['concurrency'] and workflow['jobs']
    assert workflow[True]['push'] == {'branches': ['main']} # YAML reads `on` as true


def test_version():
    "The version of the package is the latest in the changelog and the one that is cited"
    changelog = (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    assert re.search(r'^## (\S+)', changelog, re.MULTILINE)[1] == SETTINGS['version']
    assert str(yaml.safe_load((ROOT/'CITATION.cff').read_text(encoding='utf-8'))['version']) == SETTINGS['version']
