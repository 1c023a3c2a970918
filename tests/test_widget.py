"""The widget in a real JupyterLab page: headless Chromium uploads photos, types an address and reads the answers.

Needs Chromium (`apt-get install chromium`) or one that playwright has installed (`playwright install chromium`).
Pictures of the page go to the folder in `WIDGET_SHOTS`, where it is set."""
import base64
import json
import os
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import free_port, running
from hosts import jpeg, photo_host
from PIL import Image

from fruit_freshness.parts.sample import draw_photo

WAIT = int(os.environ.get('WIDGET_WAIT', 120)) * 1000 # ms; longest wait for anything on the page: a loaded machine takes its time

NOTEBOOK_CELLS = ["from fruit_freshness.infer import Predictor, FruitWidget\n"
                  "widget = FruitWidget(Predictor(), allow_private=True)\n"
                  "widget"]


# -- what the page needs ---------------------------------------------------------------------------------------------

def grainy(fruit, freshness, seed):
    "A drawn photo with the grain of a real one, so that no two files have a stretch of bytes in common."
    photo = draw_photo(fruit, freshness, seed).image
    return Image.blend(photo, Image.effect_noise(photo.size, 60).convert('RGB'), .1)

def write_notebook(path, cells):
    sources = [dict(cell_type='code', id=f'cell{i}', execution_count=None, metadata={}, outputs=[], source=cell) for i, cell in enumerate(cells)]
    kernel = dict(kernelspec=dict(name='this_python', display_name='This Python', language='python'))
    path.write_text(json.dumps(dict(cells=sources, metadata=kernel, nbformat=4, nbformat_minor=5)))

def jupyter_folders(root):
    "The environment of a Jupyter that knows nothing of this machine's settings, and keeps what widgets hold when it saves."
    settings = root/'lab'/'@jupyter-widgets'/'jupyterlab-manager'
    settings.mkdir(parents=True)
    (settings/'plugin.jupyterlab-settings').write_text('{"saveState": true}')
    for plugin, content in {'@jupyterlab/apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False),
                            '@jupyterlab/docmanager-extension/plugin': dict(autosave=False)}.items():
        (file := root/'lab'/f'{plugin}.jupyterlab-settings').parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    kernel = root/'data'/'kernels'/'this_python' # the very Python of this test, whatever other kernels are installed
    kernel.mkdir(parents=True)
    (kernel/'kernel.json').write_text(json.dumps(dict(argv=[sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}'],
                                                      display_name='This Python', language='python')))
    folders = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime', JUPYTERLAB_SETTINGS_DIR='lab',
                   JUPYTERLAB_WORKSPACES_DIR='workspaces', IPYTHONDIR='ipython')
    for folder in folders.values(): (root/folder).mkdir(exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name not in ('JUPYTER_PATH', 'JUPYTER_CONFIG_PATH', 'JUPYTERLAB_DIR')}
    return {**inherited, **{name: str(root/folder) for name, folder in folders.items()}}

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab of our own: its address, its folder and its token."
    pytest.importorskip('jupyterlab')
    root, port, token = tmp_path_factory.mktemp('jupyter'), free_port(), os.urandom(16).hex()
    (root/'notebooks').mkdir()
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}', '--ServerApp.port_retries=0',
               f'--IdentityProvider.token={token}', f'--ServerApp.root_dir={root/"notebooks"}', '--LabApp.extension_manager=readonly',
               '--LabApp.news_url=', '--ServerApp.terminals_enabled=False', *(['--allow-root'] if hasattr(os, 'geteuid') and os.geteuid() == 0 else [])]
    address, log = f'http://127.0.0.1:{port}', root/'jupyter.log'
    with running(command, log, env=jupyter_folders(root), cwd=root) as process:
        ends = time.monotonic() + WAIT / 1000
        while True:
            try: urllib.request.urlopen(f'{address}/api/status?token={token}', timeout=5).close(); break
            except OSError:
                assert process.poll() is None and time.monotonic() < ends, f"JupyterLab did not start:\n{log.read_text()[-3000:]}"
                time.sleep(.2) # between two tries to reach the server
        yield address, root/'notebooks', token

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Photos to upload, one of them broken and one with a name that is markup, and their contents."
    folder = tmp_path_factory.mktemp('photos')
    contents = {'apple.jpg': jpeg(grainy('Apple', 'Rotten', 1), quality=95, comment=b'taken at home'),
                'banana <b>bold.jpg': jpeg(grainy('Banana', 'Fresh', 2), quality=95),
                'broken.jpg': jpeg(grainy('Orange', 'Fresh', 3), quality=95)[:3000]}
    for name, content in contents.items(): (folder/name).write_bytes(content)
    return folder, contents

@pytest.fixture(scope='module')
def host():
    "A small web server on 127.0.0.1 with a photo"
    with photo_host() as host: yield host.address


# -- the page --------------------------------------------------------------------------------------------------------

class LabPage:
    "A notebook open in JupyterLab, and the widget in it."
    def __init__(self, browser, lab, name, cells, front_end='lab/tree'):
        self.address, folder, self.token = lab
        self.file = folder/name
        write_notebook(self.file, cells)
        self.context = browser.new_context(viewport=dict(width=1280, height=1000))
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.page.goto(f'{self.address}/{front_end}/{name}?token={self.token}&reset')

    def run(self):
        "Run all cells, wait for the widget."
        self.page.locator('.jp-Notebook .jp-CodeCell').first.wait_for()
        self.page.get_by_text('This Python | Idle').first.wait_for()
        self.menu('Run', 'Run All Cells')
        self.page.get_by_role('button', name='Choose photos').wait_for()

    def menu(self, *names):
        self.page.locator('.lm-MenuBar-item', has_text=names[0]).first.click()
        self.page.locator('.lm-Menu-item', has_text=names[1]).first.click()

    @property
    def cards(self): return self.page.locator('.fruit-card')

    def card(self, name):
        "The newest card of a photo, and only when the widget is at rest."
        card = self.cards.filter(has=self.page.locator('.fruit-source', has_text=name)).first
        card.wait_for()
        self.rest()
        return card

    def rest(self):
        "Wait until the controls can be used again."
        self.page.wait_for_function("() => [...document.querySelectorAll('.jp-OutputArea-output button')]"
                                    ".some(b => b.textContent.includes('Look at it') && !b.disabled)")

    def upload(self, *files):
        with self.page.expect_file_chooser() as chooser: self.page.get_by_role('button', name='Choose photos').click()
        chooser.value.set_files([str(file) for file in files])

    def add(self, *files):
        "Upload photos, and wait until each has a card."
        cards = self.cards.count() + len(files)
        self.upload(*files)
        self.page.wait_for_function("n => document.querySelectorAll('.fruit-card').length === n", arg=cards)
        self.rest()

    def save(self):
        "Save the notebook as it is now; its content."
        before = self.file.stat().st_mtime_ns
        with self.page.expect_response(lambda r: r.request.method == 'PUT' and '/api/contents/' in r.url): self.menu('File', 'Save Notebook')
        assert self.file.stat().st_mtime_ns != before
        return self.file.read_text()

    def shot(self, name):
        if folder := os.environ.get('WIDGET_SHOTS'): self.page.screenshot(path=str(Path(folder)/f'{name}.png'))

@pytest.fixture(scope='module')
def page(chromium, lab):
    "The widget, made by `NOTEBOOK_CELLS`."
    page = LabPage(chromium, lab, 'widget.ipynb', NOTEBOOK_CELLS)
    try: page.run()
    except Exception: page.shot('failed'); raise
    yield page
    page.context.close()

@pytest.fixture
def camera(page):
    "The page's camera, to be changed for a test: afterwards it is the browser's own again"
    yield page
    page.page.evaluate("() => { delete navigator.mediaDevices.getUserMedia }")

def check_answer(card):
    "A card has a headline and two bars with a number between 0 and 100."
    assert card.locator('.fruit-headline').inner_text().strip()
    for what in ('fruit', 'freshness'):
        assert 0 <= int(card.get_by_label(f'confidence in the {what}').get_attribute('aria-valuenow')) <= 100
    assert card.locator('img').evaluate('image => image.complete && image.naturalWidth > 50')

def traces(content, text):
    "How many pieces of a file stand in a text as base64, at whatever offset they were encoded. Tables that every JPEG has don't count."
    content = content[max(content.find(b'\xff\xda'), 0):]
    pieces = [content[start + shift:start + shift + 48] for start in range(0, len(content) - 64, len(content) // 20) for shift in range(3)]
    return sum(base64.b64encode(piece).decode() in text for piece in pieces)


# -- tests -----------------------------------------------------------------------------------------------------------

def test_traces_are_found():
    content = os.urandom(3000)
    assert traces(content, 'x' + base64.b64encode(b'12' + content).decode()) > 0
    assert traces(content, base64.b64encode(os.urandom(3000)).decode()) == 0

def test_upload(page, photos):
    folder, _ = photos
    page.shot('0-empty')
    page.upload(folder/'apple.jpg')
    card = page.card('apple.jpg')
    check_answer(card)
    page.shot('1-upload')

def test_same_photo_again(page, photos):
    "Uploads are cleared, so choosing the same file again is an upload again."
    folder, _ = photos
    for _ in range(2): page.add(folder/'apple.jpg')

def test_broken_photo_beside_good_one(page, photos):
    folder, _ = photos
    page.upload(folder/'broken.jpg', folder/'banana <b>bold.jpg')
    good = page.card('banana <b>bold.jpg')
    check_answer(good)
    assert good.locator('b').count() == 0 # the name is text, not markup
    broken = page.card('broken.jpg')
    assert 'fruit-error' in broken.get_attribute('class')
    assert broken.locator('p').inner_text().strip()
    assert broken.get_by_role('meter').count() == 0
    page.shot('2-broken')

def test_address(page, host):
    "Typed letter by letter, sent with Enter; a second one that does not exist, sent with the button."
    box = page.page.get_by_placeholder('address of a photo')
    box.click()
    box.press_sequentially(f'{host}/strawberry.jpg', delay=5) # faster than the kernel takes them
    box.press('Enter')
    check_answer(page.card('/strawberry.jpg'))
    page.page.wait_for_function("() => document.querySelector('input[placeholder*=\"address of a photo\"]').value === ''")
    box.fill(f'{host}/nothing.jpg')
    page.page.get_by_role('button', name='Look at it').click()
    card = page.card('/nothing.jpg')
    assert 'does not exist (HTTP 404)' in card.inner_text()
    assert box.input_value() == f'{host}/nothing.jpg' # to be corrected
    page.shot('3-address')

def test_example(page):
    page.page.get_by_role('button', name='Show an example').click()
    check_answer(page.card('a drawn rotten apple'))

def test_camera(page, camera):
    "A photo of the browser's camera: seen while aiming, given back afterwards"
    page.page.evaluate("""() => {
        window.lend = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices)
        navigator.mediaDevices.getUserMedia = async wishes => window.lent = await window.lend(wishes)}""")
    page.page.get_by_role('button', name='Take a photo').click()
    page.page.get_by_role('button', name='Take it now').wait_for()
    assert page.page.locator('.fruit-camera video').evaluate('video => video.videoWidth > 100 && !video.paused')
    page.shot('8-camera')
    page.page.get_by_role('button', name='Take it now').click()
    check_answer(page.card('camera photo 1'))
    page.page.get_by_role('button', name='Take a photo').click()
    page.page.get_by_role('button', name='Cancel').click()
    page.page.locator('.fruit-camera').wait_for(state='hidden')
    assert page.page.evaluate("() => window.lent.getTracks().every(track => track.readyState === 'ended')")
    assert page.cards.filter(has_text='camera photo').count() == 1

@pytest.mark.parametrize('name, words', [('NotAllowedError', 'Allow it beside'), ('NotFoundError', 'There is no camera')])
def test_no_camera(page, camera, name, words):
    "A camera that is refused or missing: what to do, and the button is there to try again"
    page.page.evaluate(f"() => navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{name}') }}")
    page.page.get_by_role('button', name='Take a photo').click()
    page.page.get_by_role('status').get_by_text(words).wait_for()
    assert page.page.get_by_role('button', name='Take a photo').is_enabled()
    assert page.page.locator('.fruit-camera').is_hidden()

def heats_shown(page, cards):
    "Wait until that many cards show where their answers come from."
    page.page.wait_for_function("""cards => [...document.querySelectorAll('.fruit-heat img')].filter(i => i.offsetWidth > 50 && i.complete && i.naturalWidth > 50).length === 2 * cards""", arg=cards)
    page.rest()

def test_heat(page, photos):
    "The toggle shows on every card where its answers come from, on those before as on those after; and hides it"
    folder, _ = photos
    page.add(folder/'apple.jpg')
    toggle, answered = page.page.get_by_role('button', name='Show where it looks'), page.cards.filter(has=page.page.get_by_role('meter')).count()
    heats_shown(page, 0)
    toggle.click()
    heats_shown(page, answered)
    page.upload(folder/'apple.jpg')
    heats_shown(page, answered + 1)
    page.shot('6-heat')
    toggle.click()
    heats_shown(page, 0)

def test_table(page, photos):
    "All answers so far can be copied or saved"
    page.add(photos[0]/'apple.jpg')
    page.page.get_by_role('button', name='Table').click()
    page.page.get_by_role('link', name='save answers.csv').wait_for()
    lines = page.page.get_by_label('Answers').input_value().splitlines()
    assert lines[0].startswith('source,fruit,freshness') and len(lines) == 1 + page.cards.count() and 'apple.jpg' in lines[-1]
    page.shot('7-table')

def test_uploads_are_not_saved(page, photos):
    "The saved notebook holds the widgets, but of the uploads only small copies."
    folder, contents = photos
    page.add(*(folder/name for name in contents))
    text = page.save()
    notebook = json.loads(text)
    state = notebook['metadata']['widgets']['application/vnd.jupyter.widget-state+json']['state']
    models = [model['model_name'] for model in state.values()]
    assert 'FileUploadModel' in models and 'apple.jpg' in text # the state is really there
    for name, content in contents.items(): assert traces(content, text) == 0, f'{name} was saved into the notebook'
    assert 'taken at home' not in text and base64.b64encode(b'taken at home').decode()[:-4] not in text

def test_dark_and_narrow(page, photos):
    "In a dark theme and a narrow window everything is still on the page."
    page.add(photos[0]/'apple.jpg')
    page.menu('Settings', 'Theme')
    page.page.locator('.lm-Menu-item', has_text='JupyterLab Dark').first.click()
    page.page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
    page.page.keyboard.press('Escape')
    page.page.locator('.jp-Splash, #jupyterlab-splash').first.wait_for(state='detached')
    page.shot('4-dark')
    page.page.set_viewport_size(dict(width=620, height=1000))
    try:
        page.page.wait_for_function('''() => {
            const area = document.querySelector('.jp-OutputArea-output').getBoundingClientRect()
            const inside = [...document.querySelectorAll('.fruit-card, .jp-OutputArea-output button')].filter(e => e.offsetWidth).map(e => e.getBoundingClientRect())
            return innerWidth === 620 && inside.every(r => r.left >= area.left - 1 && r.right <= area.right + 1)}''')
    finally:
        page.shot('5-narrow')
        page.page.set_viewport_size(dict(width=1280, height=1000))

def test_clear(page, photos):
    page.add(photos[0]/'apple.jpg')
    page.page.get_by_role('button', name='Clear').click()
    page.page.wait_for_function("() => document.querySelectorAll('.fruit-card').length === 0")

def test_too_much_for_the_server(page, photos, tmp_path):
    "Jupyter drops messages of more than 10 MB. `Clear` brings back an upload button that works."
    folder, _ = photos
    Image.new('RGB', (2200, 2000)).save(tmp_path/'large.bmp')
    with page.page.expect_event('websocket'): page.upload(tmp_path/'large.bmp') # the connection is cut, and made anew
    page.page.get_by_text('This Python | Idle').first.wait_for()
    old = page.page.get_by_role('button', name='Choose photos').element_handle()
    page.page.get_by_role('button', name='Clear').click()
    old.wait_for_element_state('hidden')
    page.upload(folder/'apple.jpg')
    check_answer(page.card('apple.jpg'))

@pytest.mark.parametrize('package, path', [('notebook', 'notebooks'), ('voila', 'voila/render')])
def test_other_front_ends(chromium, lab, photos, package, path):
    "The same in Jupyter Notebook 7, and as a page of its own with Voila: upload, example, camera, where it looks"
    pytest.importorskip(package)
    page = LabPage(chromium, lab, f'{package}.ipynb', NOTEBOOK_CELLS, path)
    try:
        if package == 'notebook':
            page.page.locator('.jp-Notebook-ExecutionIndicator[data-status=idle]').wait_for()
            page.menu('Run', 'Run All Cells')
        page.upload(photos[0]/'apple.jpg')
        check_answer(page.card('apple.jpg'))
        page.page.get_by_role('button', name='Show an example').click()
        check_answer(page.card('a drawn rotten apple'))
        page.page.get_by_role('button', name='Take a photo').click()
        page.page.get_by_role('button', name='Take it now').click()
        check_answer(page.card('camera photo 1'))
        page.page.get_by_role('button', name='Show where it looks').click()
        heats_shown(page, 3)
    finally:
        page.shot(f'9-{package}')
        page.context.close()
