"""The folder of `fruit_export --format web` in a real browser: from a static server under a strict policy, and without one.

Pictures of the page go to the folder in `WIDGET_SHOTS`, where it is set. The export fetches ONNX Runtime for browsers by npm."""
import csv
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hosts import jpeg
from PIL import Image

from fruit_freshness.infer import Predictor
from fruit_freshness.parts.core import FRESHNESS
from fruit_freshness.parts.sample import DRAWN_FRUITS, draw_photo

WAIT = int(os.environ.get('WIDGET_WAIT', 60)) * 1000 # ms
POLICY = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; media-src blob:; object-src 'none'"


@pytest.fixture(scope='session')
def web(tmp_path_factory):
    "The folder of the shipped network"
    if not shutil.which('npm'):
        words = "no npm, which fetches ONNX Runtime for browsers: install it with `apt-get install npm`"
        if os.environ.get('CI', '').lower() in ('1', 'true', 'yes'): pytest.fail(words)
        pytest.skip(words)
    out = tmp_path_factory.mktemp('web')/'fruit_web'
    code = 'from fruit_freshness.apps.export import fruit_export; raise SystemExit(fruit_export.main())'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, '--format', 'web', '--out', out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report['largest_difference'] < 1e-4 and report['bytes'] == sum(path.stat().st_size for path in out.iterdir())
    return out


def test_any_network():
    "torchvision's backbone, another size and normalisation; what is in full precision stays so"
    import torch

    from fruit_freshness.apps.export import export_web, run_web
    from fruit_freshness.model import create_model
    torch.manual_seed(0)
    net = create_model(['Apple', 'Pear', 'Plum'], 'squeezenet1_1', pretrained=False).eval()
    shipped, net.config.normalisation = Predictor().config.normalisation, replace(net.config.normalisation, size=160)
    assert net.config.normalisation.size != shipped.size and net.config.normalisation.mean != shipped.mean
    predictor, photos = Predictor(net), [draw_photo('Apple', 'Fresh', seed, 200 + 50 * seed).image for seed in range(3)]
    fruit, freshness, _ = run_web(export_web(net), photos)
    for prediction, f, s in zip(predictor.predict(photos), fruit, freshness):
        assert abs(prediction.fruit_confidence - f.max()) < 1e-3 and abs(prediction.freshness_confidence - s.max()) < 1e-3


class Host(SimpleHTTPRequestHandler):
    "Gives files out, with a policy, and counts what it sends"
    def end_headers(self):
        self.send_header('Content-Security-Policy', POLICY)
        super().end_headers()

    def copyfile(self, source, target):
        content = source.read()
        self.server.sent.append((self.path, len(content)))
        target.write(content)

    def log_message(self, *args): pass


@pytest.fixture
def host(web):
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Host, directory=web))
    server.sent = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def visit(chromium, host, **options):
    "A page in a profile of its own; what fails in it, and what it asks of others, ends the test"
    context = chromium.new_context(permissions=['camera'], **options)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.failures, page.address = [], f'http://127.0.0.1:{host.server_port}/'
    page.on('pageerror', lambda error: page.failures.append(str(error)))
    page.on('console', lambda message: page.failures.append(message.text) if message.type == 'error' else None)
    page.on('request', lambda request: None if request.url.startswith((page.address, 'data:', 'blob:')) else page.failures.append(request.url))
    page.goto(page.address)
    return page


def png(image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, 'PNG')
    return stream.getvalue()


def give(page, **files):
    "Choose files by name and content; wait until all are answered"
    before = page.locator('.fruit-card').count()
    page.locator('#files').set_input_files([dict(name=name.replace('_', '.'), mimeType='image/png', buffer=content) for name, content in files.items()])
    page.wait_for_function('count => document.querySelectorAll(".fruit-headline").length === count', arg=before + len(files))


def table(page) -> dict[str, dict]: # by name
    "The answers that the page saves"
    with page.expect_download() as download: page.get_by_role('button', name='Save answers.csv').click()
    lines = csv.DictReader(Path(download.value.path()).read_text(encoding='utf-8').splitlines())
    return {line['source']: line for line in lines}


def check(said: dict, wanted, tolerance: float):
    "An answer of the page is that of `Predictor`"
    text = {name: '' if value is None else str(value) for name, value in vars(wanted).items()}
    for name in ('fruit_confidence', 'freshness_confidence', 'novelty'):
        assert abs(float(said[name]) - getattr(wanted, name)) <= tolerance, (said, wanted)
    for name in ('fruit', 'freshness', 'accepted', 'reason', 'error'): assert said[name] == text[name], (said, wanted)


def test_same_answers(chromium, host):
    "Fifty drawings are answered as `Predictor` answers them: labels, probabilities, novelty, and why it abstains"
    photos = {f'{number}.png': draw_photo(DRAWN_FRUITS[number % 4], FRESHNESS[number // 4 % 2], number).image for number in range(50)}
    wanted, page = Predictor(), visit(chromium, host)
    give(page, **{name.replace('.', '_'): png(photo) for name, photo in photos.items()})
    said = table(page)
    assert list(said) == list(photos)
    for name, photo in photos.items(): check(said[name], wanted.predict(photo)[0], 1e-3)
    assert len({line['reason'] for line in said.values()}) > 2 and page.failures == []
    page.context.close()


def test_odd_photos(chromium, host):
    "Broken, turned by its EXIF, transparent, and large: in words, upright, on white, and not far from `Predictor`"
    photo, wanted, page = draw_photo('Banana', 'Fresh', 4, 320).image, Predictor(), visit(chromium, host)
    turned, clear = Image.Exif(), photo.convert('RGBA')
    turned[0x0112] = 6 # a quarter turn
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 320), (320, 1)).astype(np.uint8)))
    large = photo.resize((2600, 1733), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    photo.rotate(90).save(stream, 'PNG', exif=turned)
    give(page, turned_png=stream.getvalue(), large_png=png(large), clear_png=png(clear), broken_jpg=jpeg(photo)[:2000], note_txt=b'no photo')
    said = table(page)
    check(said['turned.png'], wanted.predict(photo)[0], 1e-3)
    check(said['clear.png'], wanted.predict(clear)[0], .02)
    check(said['large.png'], wanted.predict(large)[0], .02)
    for name in ('broken.jpg', 'note.txt'): assert 'convert it to JPEG' in said[name]['error'] and not said[name]['fruit']
    page.locator('.fruit-card', has_text='note.txt').get_by_text('convert it to JPEG').wait_for()
    assert page.failures == []
    page.context.close()


def test_second_visit_without_a_server(chromium, host):
    "The first visit keeps all that the next one needs, and fetches nothing large twice; then the server is gone"
    page, photo = visit(chromium, host), draw_photo('Orange', 'Fresh', 2).image
    give(page, first_png=png(photo))
    page.evaluate('() => navigator.serviceWorker.ready.then(() => null)')
    large = [path for path, size in host.sent if size > 1e6]
    assert sorted(large) == ['/fruit.onnx', '/ort.wasm']
    print('bytes on the first visit:', sum(size for _, size in host.sent))
    host.shutdown()
    host.server_close()
    page.reload()
    give(page, again_png=png(photo))
    check(table(page)['again.png'], Predictor().predict(photo)[0], 1e-3)
    assert page.failures == []
    page.context.close()


def test_live_camera(chromium, host, turning_fruit):
    "The live camera sees the fruit turn, then gives the camera back"
    page = visit(chromium, host)
    page.get_by_role('button', name='Live camera').click()
    for freshness in ('fresh', 'rotten'): page.locator('#answer').get_by_text(f'{turning_fruit[0]}, {freshness}').wait_for()
    page.locator('#rate').get_by_text('fps').wait_for()
    page.get_by_role('button', name='Stop the camera').click()
    page.locator('#stage').wait_for(state='hidden')
    assert page.evaluate('() => document.getElementById("video").srcObject === null') and page.failures == []
    page.context.close()


def test_looks(chromium, host, turning_fruit):
    "Everything is on the page, on a phone as on a screen; what only the service can do is not offered"
    page = visit(chromium, host)
    unsure = draw_photo('Orange', 'Fresh', 3).image
    give(page, **{'a photo with a long name that does not fit on a phone_jpg': jpeg(turning_fruit[2]), 'fresh_jpg': jpeg(turning_fruit[1]), 'unsure_png': png(unsure), 'note_txt': b'no photo'})
    page.get_by_text('nothing is uploaded').wait_for()
    for name in ('Address of a photo', 'Where did it look?'): assert page.get_by_text(name).locator('visible=true').count() == 0
    for width, scheme in itertools.product((360, 1280), ('light', 'dark')):
        page.set_viewport_size(dict(width=width, height=800))
        page.emulate_media(color_scheme=scheme)
        if folder := os.environ.get('WIDGET_SHOTS'): page.screenshot(path=str(Path(folder)/f'web-{width}-{scheme}.png'), full_page=True)
        assert page.evaluate('() => [innerWidth, document.documentElement.scrollWidth <= innerWidth]') == [width, True]
    assert page.failures == []
    page.context.close()


def test_installable(chromium, host, web):
    "A browser finds a manifest without errors, whose icons are there"
    page = visit(chromium, host)
    page.wait_for_function('() => document.querySelector("link[rel=manifest]")')
    found = page.context.new_cdp_session(page).send('Page.getAppManifest')
    assert found['errors'] == [] and json.loads(found['data'])['start_url'] == './'
    for icon in json.loads(found['data'])['icons']:
        with Image.open(web/icon['src']) as image: assert 'x'.join(map(str, image.size)) == icon['sizes']
    page.context.close()
