"""What the tests share: the root of the repository and a way to run its commands."""
import asyncio
import configparser
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
from hosts import jpeg

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

_parser = configparser.ConfigParser(delimiters=['='])
_parser.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = _parser['DEFAULT']


def run(*command, cwd=ROOT, timeout=900, **options) -> subprocess.CompletedProcess:
    "Run a command of this environment and return what it printed"
    environment = {**os.environ, 'PATH': f"{BIN}{os.pathsep}{os.environ['PATH']}", **options.pop('env', {})}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, text=True, capture_output=True, timeout=timeout, **options)


def copy_project(folder: Path) -> Path:
    "A copy of the project to export, clean and build in, committed so that git can tell what changed"
    copy = folder/'fruit_freshness'
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(
        '.git', '.venv', 'runs', 'build', 'dist', '*.egg-info', '_proc', '_docs', '__pycache__', '.ipynb_checkpoints',
        '.mypy_cache', '.ruff_cache', '.pytest_cache'))
    for command in (['init', '-q'], ['add', '-A'], ['-c', 'user.name=test', '-c', 'user.email=test@localhost', 'commit', '-qm', 'as it is']):
        subprocess.run(['git', *command], cwd=copy, check=True)
    return copy


def changes(copy) -> str:
    "What git sees changed in a copy: nothing if all is in step"
    return subprocess.run(['git', 'status', '--porcelain'], cwd=copy, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope='session')
def small_weights(tmp_path_factory) -> Path:
    "Random weights of a very small backbone, as a file"
    import torch

    from fruit_freshness.model import create_backbone
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights')/'small.pth'
    torch.save(create_backbone(SMALL)[0].state_dict(), path)
    return path


SMALL = 'timm/test_efficientnet.r160_in1k'


# -- servers and browsers ----------------------------------------------------------------------------------------------

def find_chromium():
    "A Chromium on the path, else playwright's own; without either a failure in CI and a skip elsewhere."
    for name in ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'):
        if found := shutil.which(name): return found
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        if Path(own := playwright.chromium.executable_path).exists(): return own
    words = "no Chromium found: install one with `apt-get install chromium` or `playwright install chromium`"
    if os.environ.get('CI', '').lower() in ('1', 'true', 'yes'): pytest.fail(words)
    pytest.skip(words)


@contextmanager
def running(command, log, **kwargs):
    "A process of ours that ends with the test."
    with open(log, 'wb') as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, **kwargs)
        try: yield process
        finally:
            process.terminate()
            try: process.wait(30)
            except subprocess.TimeoutExpired: process.kill(); process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture(scope='session')
def turning_fruit():
    "Two photos of a drawn fruit, before and after, which the shipped network tells apart surely, and the fruit's name"
    from fruit_freshness.infer import Predictor
    from fruit_freshness.parts.sample import DRAWN_FRUITS, draw_photo
    predictor, best = Predictor(), (0, 'none')
    limits = predictor.config
    def margin(said): # to where it would abstain: what a camera sees of a drawing is not quite the drawing
        return min(said.fruit_confidence * said.freshness_confidence - limits.confidence_threshold, limits.novelty_threshold - said.novelty)
    for seed, fruit in product(range(100), DRAWN_FRUITS):
        photos = [draw_photo(fruit, freshness, seed, 320).image for freshness in ('Fresh', 'Rotten')]
        said = predictor.predict(photos)
        if [(each.fruit, each.freshness, each.accepted) for each in said] != [(fruit, 'Fresh', True), (fruit, 'Rotten', True)]: continue
        best = max(best, (min(map(margin, said)), fruit, *photos), key=lambda pair: pair[0])
        if best[0] > .03: break
    assert best[0] > 0, 'the shipped network tells no drawn fruit from itself when rotten'
    return best[1:]


@pytest.fixture(scope='session')
def chromium(tmp_path_factory, turning_fruit):
    "A browser whose camera sees a fruit that is fresh for three seconds, then rotten for three, and so on"
    from playwright.sync_api import sync_playwright
    executable, film = find_chromium(), tmp_path_factory.mktemp('camera')/'camera.mjpeg'
    _, fresh, rotten = turning_fruit
    film.write_bytes(90 * jpeg(fresh, quality=90) + 90 * jpeg(rotten, quality=90)) # 30 pictures a second
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[
            '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run',
            '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream', f'--use-file-for-fake-video-capture={film}'])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def no_running_loop(request):
    """A test without the browser sees no event loop, whichever test came before.

    The loop of playwright's synchronous interface rests between its calls, but stays marked as running in this thread,
    and `asyncio.run` refuses to start beside it. The mark is put back before playwright is called again."""
    if 'chromium' in request.fixturenames:
        yield
        return
    resting = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(resting)
