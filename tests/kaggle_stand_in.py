"""A small server on this computer that speaks the part of Kaggle's interface that kagglehub uses."""
import io
import json
import os
import threading
import zipfile
from base64 import b64encode
from contextlib import contextmanager, redirect_stderr
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

from kagglesdk import kaggle_env
from PIL import Image

COLOURS = {'Apple/Fresh': 'red', 'Apple/Rotten': 'brown', 'Banana/Fresh': 'gold', 'Banana/Rotten': 'sienna'}
NAMES = [f'Fruits/Fruits/{label}/1.bmp' for label in COLOURS]


def photo_archive() -> bytes:
    "A data set of four plain squares in nested folders, 2.1 MB"
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, colour in zip(NAMES, COLOURS.values()):
            with archive.open(name, 'w') as photo: Image.new('RGB', (420, 420), colour).save(photo, 'bmp')
    return file.getvalue()


class KaggleStandIn(BaseHTTPRequestHandler):
    """Names the current version, redirects to an archive, and sends the rest of one that was cut.

    `private` data sets want a token, and there is nothing by `nobody`."""
    archive, cut_after, seen = photo_archive(), None, []

    def answer(self, status, body=b'', **headers):
        self.send_response(status)
        for name, text in {'Content-Length': len(body), **headers}.items(): self.send_header(name.replace('_', '-'), str(text))
        self.end_headers()
        self.wfile.write(body[:self.cut_after])

    def do_POST(self):
        owner = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['ownerSlug']
        if owner == 'nobody': self.answer(404)
        elif owner == 'private' and self.headers['Authorization'] != 'Bearer open sesame': self.answer(403)
        elif self.path.endswith('/GetDataset'): self.answer(200, b'{"currentVersionNumber": 3}', Content_Type='application/json')
        else: self.answer(302, Location='/archive.zip')

    def do_GET(self):
        start = int((self.headers['Range'] or 'bytes=0-')[6:-1])
        self.seen.append(start)
        checksum = b64encode(md5(self.archive).digest()).decode()
        self.answer(206 if start else 200, self.archive[start:], Accept_Ranges='bytes', x_goog_hash=f'md5={checksum}')

    def log_message(self, *_): pass


@contextmanager
def kaggle_stand_in(cache, online=True, **settings):
    "kagglehub keeps its files in `cache` and talks to a free local port, which refuses connections unless `online`; stderr is kept"
    server = ThreadingHTTPServer(('127.0.0.1', 0), KaggleStandIn, bind_and_activate=False)
    server.server_bind()
    if online:
        server.server_activate()
        threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    settings |= dict(KAGGLE_API_ENVIRONMENT='LOCALHOST', KAGGLEHUB_CACHE=str(cache), DISABLE_KAGGLE_CACHE='1', DISABLE_COLAB_CACHE='1',
                     NO_PROXY='127.0.0.1', no_proxy='127.0.0.1')
    address = {kaggle_env.KaggleEnv.LOCAL: f'http://127.0.0.1:{server.server_port}'}
    try:
        with patch.dict(os.environ, settings), patch.dict(kaggle_env._env_to_endpoint, address):
            with redirect_stderr(io.StringIO()) as KaggleStandIn.stderr: yield KaggleStandIn
    finally:
        if online: server.shutdown()
        server.server_close()
        KaggleStandIn.cut_after, KaggleStandIn.seen = None, []
