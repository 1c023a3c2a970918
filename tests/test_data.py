"""The store of decoded photos where a notebook can't go: in worker processes, and on a disk that is full."""
import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from fruit_freshness.data import PhotoStore

APPLE = Path('apple.jpg')


def answer_pixel(store, inbox, outbox):
    "A worker: it has the store, says so, and reads it when it is told that something new is there"
    outbox.put('here')
    inbox.get(timeout=60)
    outbox.put(tuple(map(int, store[APPLE][0, 0])))


@pytest.mark.parametrize('method', ['forkserver', 'spawn'])
def test_workers_share_pixels(method):
    "A worker that is not forked maps the file of its parent: it sees what the parent writes later"
    store = PhotoStore([APPLE], size=16)
    store.add(APPLE, Image.new('RGB', (16, 16), 'red'))
    context = multiprocessing.get_context(method)
    inbox, outbox = context.Queue(), context.Queue()
    worker = context.Process(target=answer_pixel, args=(store, inbox, outbox))
    worker.start()
    assert outbox.get(timeout=120) == 'here'
    store.add(APPLE, Image.new('RGB', (16, 16), 'blue'))
    inbox.put('new')
    assert outbox.get(timeout=60) == (0, 0, 255)
    worker.join(60)
    assert worker.exitcode == 0


def test_full_disk_is_an_error(tmp_path):
    "A store that does not fit on its disk is refused in words, and no signal ends the process"
    code = ("import sys; from fruit_freshness.data import DataError, PhotoStore\n"
            "from pathlib import Path; from PIL import Image\npaths = [Path(str(n)) for n in range(100)]\n"
            "try: store = PhotoStore(paths, 224, sys.argv[1])\n"
            "except DataError as error: sys.exit(str(error))\n"
            "for path in paths: store.add(path, Image.new('RGB', (224, 224)))\n")
    mount = f'mount -t tmpfs -o size=1m none "{tmp_path}"'
    own_mounts = ['unshare', '-rm', 'sh', '-c']
    if not shutil.which('unshare') or subprocess.run([*own_mounts, mount], capture_output=True).returncode:
        pytest.skip("no small disk can be made here")
    command = f'{mount} && exec "{sys.executable}" -c "$0" "{tmp_path}"'
    done = subprocess.run([*own_mounts, command, code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and 'no room for 15 MB' in done.stderr, (done.returncode, done.stderr)
