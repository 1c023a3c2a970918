"""The site: its configuration holds, and what it links to is there."""
import json
import os
import re

import check_site
import pytest
import yaml
from conftest import BIN, ROOT, SETTINGS, changes, copy_project, find_chromium, run
from readme import llms, sections, title

PAGES = sorted((ROOT/'nbs').rglob('*.ipynb'))


def test_configuration():
    "One hand-written configuration, seen by nbdev through a link, and facts that agree"
    assert (ROOT/'nbs'/'_quarto.yml').is_symlink() and (ROOT/'nbs'/'_quarto.yml').resolve() == ROOT/'_quarto.yml'
    quarto = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    assert quarto['project']['type'] == 'website' and quarto['metadata-files'] == ['nbdev.yml']
    assert SETTINGS['git_url'] == f"https://github.com/{SETTINGS['user']}/{SETTINGS['repo']}"
    assert SETTINGS['git_url'] == quarto['website']['navbar']['right'][0]['href']
    for picture in (quarto['website']['favicon'], quarto['website']['open-graph']['image'], quarto['format']['html']['css']):
        assert (ROOT/'nbs'/picture.lstrip('/')).is_file()


def test_sidebar():
    "The sidebar names every page once, in the order and by the titles of the home page, and no two pages share a title"
    pages = [page for section in sections().values() for page in section]
    assert sorted(pages) == sorted(page.relative_to(ROOT/'nbs').as_posix() for page in PAGES)
    titles = {page: title(ROOT/'nbs'/page)[0] for page in pages}
    assert len(set(titles.values())) == len(titles)
    home = ''.join(''.join(cell['source']) for cell in json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))['cells'])
    listed = re.findall(r'\[([^]]+)\]\(([\w/]+\.ipynb)\)', home.partition('## All pages')[2].partition('## Licence')[0])
    assert listed == [(titles[page], page) for page in pages if page != 'index.ipynb']


def test_llms_txt(): assert (ROOT/'nbs'/'llms.txt').read_text(encoding='utf-8') == llms(), 'run `make export` and commit'


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
    paths = dict(PATH=os.pathsep.join([str(tools), str(BIN), os.environ['PATH']]), PYTHONPATH=os.pathsep.join(['tests', str(ROOT)]))
    done = run('nbdev_docs', cwd=copy, env=paths)
    assert done.returncode == 0 and (copy/'_docs').is_dir(), done.stderr
    made = {path.relative_to(copy/'_proc').as_posix(): path for path in (copy/'_proc').rglob('*.ipynb')}
    assert {page.relative_to(ROOT/'nbs').as_posix() for page in PAGES} <= made.keys()
    assert changes(copy) == ''
    check_processed({name: json.loads(path.read_text(encoding='utf-8'))['cells'] for name, path in made.items()})


def check_processed(pages: dict):
    "What Quarto gets: introductions, signatures without links inside, tables of parameters, and nothing that loads scripts from elsewhere"
    for name, cells in pages.items():
        first = [re.sub('<[^>]+>', '', ''.join(cell['source'])) for cell in cells[1:5] if cell['cell_type'] == 'markdown']
        assert max(map(len, first)) > 100, f'{name}: no introduction'
        for output in (output for cell in cells for output in cell.get('outputs', [])):
            data = output.get('data', {})
            assert not {'application/vnd.jupyter.widget-view+json', 'application/javascript', 'text/html'} & data.keys(), name
            for code in re.findall(r'```python\n(.*?)```', ''.join(data.get('text/markdown', '')), re.DOTALL):
                assert '](http' not in code and '*args, **kwargs' not in code, code
                assert max(map(len, code.splitlines())) <= 110, code
    shown = {name: '\n'.join(''.join(output['data'].get('text/markdown', '')) for cell in cells for output in cell.get('outputs', []) if 'data' in output)
             for name, cells in pages.items()}
    assert any(''.join(cell['source']).startswith('#| code-fold: true\n#| code-summary: "Tests"') for cells in pages.values() for cell in cells)
    assert '| <code>lr</code> | ' in shown['03_train.ipynb'] # a field of a dataclass
    assert 'class DataError(FruitError)' in shown['parts/core.ipynb']
    assert re.search(r'`FRESHNESS` = `\(.Fresh., .Rotten.\)`', shown['00_data.ipynb']) # a constant that a field's comment names


FAULTS = {
    'index.html': '<h1 id="top">Home</h1><a href="{site}second.html#here">there</a><a href="gone.html">gone</a><a href="second.html#nowhere">lost</a>'
                  '<img src="dot.png"><img src="dot.png" alt="a dot"><script src="https://example.invalid/jquery.js"></script>',
    'second.html': '<h1 id="here">Second</h1><pre style="overflow:auto"><code>' + 'x' * 400 + '</code></pre>'
                   '<div class="cell-output"><pre style="white-space:pre-wrap"><code style="white-space:pre-wrap">' + ('word  ' * 40 + '\n') * 2 + '</code></pre></div>'
                   '<table><tr>' + '<td>cell&nbsp;cell&nbsp;cell&nbsp;cell</td>' * 20 + '</tr></table>'
                   '<table style="width:60px"><tr><td style="word-break:break-all">indivisible</td></tr></table>'}
FOUND = ['link to nowhere: gone.html', 'no such place: second.html#nowhere', 'image without alt text: ', 'script from elsewhere: https://example.invalid/jquery.js',
         'signature scrolls by ', 'at 1280 px: table of text wraps, ', 'table is ', 'a word breaks in a table: indivisible', 'the page is ']


def test_checker_finds_faults(tmp_path):
    "`make docs-check` names every fault of a site that has one of each, and passes one that has none"
    find_chromium() # or skip
    (tmp_path/'bad').mkdir()
    frame = '<!doctype html><html><head><meta name="viewport" content="width=device-width"></head><body><main>{}</main></body></html>'
    for name, body in FAULTS.items(): (tmp_path/'bad'/name).write_text(frame.format(body.replace('{site}', check_site.published())))
    done = run(BIN/'python', 'tests/check_site.py', tmp_path/'bad')
    assert done.returncode == 1 and not [text for text in FOUND if text not in done.stdout], done.stdout + done.stderr
    assert done.stdout.count('image without alt text') == 2 and done.stdout.count('link to nowhere') == 1 and 'at 390 px: table of text' not in done.stdout
    (tmp_path/'good').mkdir()
    (tmp_path/'good'/'index.html').write_text(frame.format('<pre>short</pre><a href="#top">up</a><img src="dot.png" alt="a dot">'))
    done = run(BIN/'python', 'tests/check_site.py', tmp_path/'good')
    assert (done.returncode, done.stdout.strip()) == (0, 'nothing to mend'), done.stdout + done.stderr
    assert run(BIN/'python', 'tests/check_site.py', tmp_path).returncode == 2 # no site there


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
