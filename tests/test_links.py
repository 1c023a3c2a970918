"""A fork changes `user` and `repo` in settings.ini, and everything that it publishes leads to the fork."""
import re

from conftest import ROOT, SETTINGS, copy_project, run
from links import write


def test_links_are_in_step():
    "Badges, links and Colab cells of this checkout lead where settings.ini says"
    texts = {path: path.read_text(encoding='utf-8') for path in ROOT.glob('nbs/**/*.ipynb')}
    here = f"colab.research.google.com/github/{SETTINGS['user']}/{SETTINGS['repo']}/blob/{SETTINGS['branch']}/nbs/"
    for path, text in texts.items():
        badges = re.findall(r'colab\.research\.google\.com/github/[^\s)"\\]+', text)
        assert set(badges) <= {here + path.relative_to(ROOT/'nbs').as_posix()}, path
        assert set(re.findall(r'git\+(https://[^\s"\\]+)', text)) <= {SETTINGS['git_url']}, path


def test_a_fork(tmp_path):
    "After one change in settings.ini `make export` leaves no link to where the fork is from, and all others as they were"
    copy = copy_project(tmp_path)
    text = (copy/'settings.ini').read_text()
    for name, value in (('user', 'jane-doe'), ('repo', 'fruit'), ('branch', 'trunk')):
        text = re.sub(rf'^{name} = .*$', f'{name} = {value}', text, flags=re.MULTILINE)
    (copy/'settings.ini').write_text(text)
    pages = [*copy.glob('nbs/**/*.ipynb'), copy/'CITATION.cff']
    def links(): return [link for page in sorted(pages) for link in re.findall(r'https://[^\s)"\\]+', page.read_text())]
    before = links()
    for script in ('links.py', 'readme.py'): assert run('python', copy/'tests'/script, cwd=copy).returncode == 0
    after, old = links(), f"{SETTINGS['user']}/{SETTINGS['repo']}"
    site = f"{SETTINGS['user']}.github.io/{SETTINGS['repo']}"
    def ours(link): return old in link or site in link
    assert len(before) == len(after) and not [link for link in after if ours(link)]
    assert [link for link in before if not ours(link)] == [b for a, b in zip(before, after) if not ours(a)]
    assert 'github/jane-doe/fruit/blob/trunk/nbs/00_data.ipynb' in (copy/'nbs'/'00_data.ipynb').read_text()
    assert not ours((copy/'README.md').read_text())
    assert write(copy) == [] # the second time there is nothing to do
