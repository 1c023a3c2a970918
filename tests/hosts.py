"""A web server on 127.0.0.1 that serves a photo and misbehaves in every way that is tested, and addresses that must never be fetched."""
import contextlib
import gzip
import hashlib
import io
import json
import shutil
import socket
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from fruit_freshness.parts.sample import draw_photo

BOMB = gzip.compress(bytes(50_000_000)) # 49 kB


def jpeg(photo=None, **options) -> bytes:
    "A photo as the content of a JPEG file; a plain red one by default"
    stream = io.BytesIO()
    (photo or Image.new('RGB', (96, 96), (200, 40, 40))).save(stream, 'JPEG', **options)
    return stream.getvalue()


class Host(BaseHTTPRequestHandler):
    "Well-behaved at /apple.jpg; every other path is one kind of bad host"
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def reply(self, body=b'', status=200, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name.replace('_', '-'), value)
        if length != 'none': self.send_header('Content-Length', str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def dribble(self, piece, wait, times):
        for _ in range(times):
            self.wfile.write(piece)
            self.wfile.flush()
            if self.server.leaving.wait(wait): return

    def do_GET(self):
        self.server.seen.append(dict(self.headers, path=self.path))
        self.close_connection = True
        path, _, query = self.path.partition('?')
        with contextlib.suppress(OSError): # the client may hang up
            if path in self.server.photos: self.reply(self.server.photos[path], Content_Type='image/jpeg')
            elif path.startswith('/status/'): self.reply(b'no', status=int(path[8:]))
            elif path.startswith('/redirects/'):
                left = int(path[11:])
                self.reply(status=302, Location=f'/redirects/{left - 1}' if left > 1 else '/apple.jpg')
            elif path == '/to': self.reply(status=301, Location=query)
            elif answer := getattr(self, 'do_' + path[1:].replace('-', '_').replace('.', '_'), None): answer()
            else: self.reply(status=404)

    # what is no photo
    def do_page(self): self.reply(b'\n<!doctype html><title>An apple</title>', Content_Type='image/jpeg')
    def do_text(self): self.reply(b'apple', Content_Type='image/jpeg')
    def do_empty(self): self.reply()
    def do_garbage(self): self.wfile.write(b'220 smtp ready\r\n')
    def do_headers(self): self.wfile.write(b'HTTP/1.1 200 OK\r\n' + b'A: b\r\n' * 500 + b'\r\n')

    # bodies and their lengths
    def do_big(self): self.reply(b'x', length=10**12)
    def do_digits(self): self.reply(b'x', length='9' * 5000)
    def do_bomb(self): self.reply(b'x', Content_Encoding='gzip')
    def do_short(self): self.reply(jpeg()[:200], length=len(jpeg()))

    def do_chunks_jpg(self):
        photo = jpeg()
        self.reply(length='none', Transfer_Encoding='chunked')
        for start in range(0, len(photo), 100):
            piece = photo[start:start + 100]
            self.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece))
        self.wfile.write(b'0\r\n\r\n')

    def do_endless(self):
        self.reply(length='none')
        self.dribble(bytes(65536), 0, 10**6)

    # redirects
    def do_to_bomb(self): self.reply(BOMB, status=302, Location='/apple.jpg', Content_Encoding='gzip')
    def do_to_bytes(self): self.reply(status=302, Location='/apple.jpg?\xff')
    def do_to_bracket(self): self.reply(status=302, Location='http://[::1')

    def do_to_endless(self):
        self.reply(status=302, length='none', Location='/apple.jpg')
        self.dribble(bytes(65536), 0, 10**6)

    # slowness
    def do_silent(self): self.server.leaving.wait(10)

    def do_dribble_headers(self):
        self.wfile.write(b'HTTP/1.1 200 OK\r\nA: ')
        self.dribble(b'a', .1, 300)

    def do_dribble_body(self):
        self.reply(length=10**6)
        self.dribble(b'a', .1, 300)

    def do_dribble_open(self):
        self.reply(length='none')
        self.dribble(b'a', .1, 300)

    # Wikimedia Commons
    def do_list_json(self): self.reply(b'{"query": {"pages": {"1": "apple"}}}')

    def do_api_php(self):
        facts = dict(Artist=dict(value='<a href="//x">Jane Doe</a>'), LicenseShortName=dict(value='CC BY-SA 4.0'))
        info = dict(thumburl=f'http://127.0.0.1:{self.server.server_port}/apple.jpg', extmetadata=facts)
        pages = {'1': dict(title='File:An apple.jpg', imageinfo=[info])}
        self.reply(json.dumps(dict(query=dict(pages=pages))).encode())


@contextlib.contextmanager
def photo_host(certificate=None):
    "The server, running; `address` is where it answers, `seen` the headers of all requests, `photos` content by path"
    host = ThreadingHTTPServer(('127.0.0.1', 0), Host)
    host.daemon_threads, host.seen, host.leaving, host.names = True, [], threading.Event(), []
    host.address = f'http://127.0.0.1:{host.server_port}'
    host.photos = {'/apple.jpg': jpeg(), '/strawberry.jpg': jpeg(draw_photo('Strawberry', 'Fresh', 4).image)}
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda tls, name, context: host.names.append(name)
        host.socket = context.wrap_socket(host.socket, server_side=True)
    threading.Thread(target=host.serve_forever, args=(.05,), daemon=True).start()
    try: yield host
    finally:
        host.leaving.set()
        host.shutdown()
        host.server_close()


class Hub(BaseHTTPRequestHandler):
    "What the Hugging Face Hub says of the one model that it has here, owner/name: the files of `folder`"
    folder, asked = None, None

    def log_message(self, *args): pass

    def do_GET(self, body=True):
        path, commit, headers = self.path.partition('?')[0], '0' * 40, {}
        self.asked.append(path)
        content, files = None, {file.name: file for file in self.folder.iterdir()}
        if path == '/api/models/owner/name/revision/main':
            content = json.dumps(dict(id='owner/name', sha=commit, siblings=[dict(rfilename=name) for name in files])).encode()
        elif path.startswith('/api/models/owner/name/tree/'):
            content = json.dumps([dict(type='file', path=name, size=file.stat().st_size, oid=commit) for name, file in files.items()]).encode()
        elif path.startswith('/owner/name/resolve/') and (file := files.get(path.rpartition('/')[2])):
            content = file.read_bytes()
            headers = {'ETag': f'"{hashlib.sha256(content).hexdigest()}"', 'X-Repo-Commit': commit}
        self.send_response(404 if content is None else 200)
        for name, value in {**headers, 'Content-Length': len(content or b'')}.items(): self.send_header(name, str(value))
        self.end_headers()
        if body: self.wfile.write(content or b'')

    def do_HEAD(self): self.do_GET(body=False)


@contextlib.contextmanager
def model_hub(folder):
    "The Hub, running; its address, and the paths that were asked for"
    asked = []
    hub = ThreadingHTTPServer(('127.0.0.1', 0), type('OneModel', (Hub,), dict(folder=folder, asked=asked)))
    threading.Thread(target=hub.serve_forever, args=(.05,), daemon=True).start()
    try: yield f'http://127.0.0.1:{hub.server_port}', asked
    finally:
        hub.shutdown()
        hub.server_close()


def certificate_for(name, folder) -> Path | None: # key and certificate in one file; None where openssl is missing
    "A self-signed certificate"
    if not shutil.which('openssl'): return None
    key, certificate, both = [Path(folder)/f'{name}{end}' for end in ('.key', '.crt', '.pem')]
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
                    '-days', '2', '-subj', f'/CN={name}', '-addext', f'subjectAltName=DNS:{name}',
                    '-keyout', str(key), '-out', str(certificate)], check=True, capture_output=True)
    both.write_text(key.read_text() + certificate.read_text())
    return both


# -- a name service of our own, and addresses that lead inside ---------------------------------------------------------

NAMES = {'photos.example': ['127.0.0.1'], 'other.example': ['127.0.0.1'], 'inside.example': ['10.0.0.7'],
         'mixed.example': ['8.8.8.8', '127.0.0.1'], 'six.example': ['2606:4700::1111', 'fe80::1'],
         'metadata.google.internal': ['169.254.169.254'], 'localhost': ['127.0.0.1', '::1'],
         'mapped.example': ['::ffff:10.0.0.1']}
_real_lookup = socket.getaddrinfo


def lookup(host, port, *args, **kwargs):
    "`socket.getaddrinfo` for our names, and for addresses as they are; nothing else is known"
    if host not in NAMES: return _real_lookup(host, port, flags=socket.AI_NUMERICHOST, type=socket.SOCK_STREAM)
    return [(socket.AF_INET6 if ':' in ip else socket.AF_INET, socket.SOCK_STREAM, 6, '', (ip, port)) for ip in NAMES[host]]


HOSTILE = r'''http://127.0.0.1/ http://127.0.0.1:8000/ https://127.0.0.1/ http://127.0.0.1./ http://127.1/ http://127.0.1/
    http://2130706433/ http://0x7f000001/ http://0x7f.0.0.1/ http://0177.0.0.1/ http://017700000001/ http://127.0.0.1.:80/
    http://0/ http://0.0.0.0/ http://①②⑦.⓪.⓪.①/ http://127。0。0。1/ http://１２７.0.0.1/ http://localhost/ http://LOCALHOST./
    http://[::1]/ http://[::]/ http://[0:0:0:0:0:0:0:1]/ http://[::ffff:127.0.0.1]/ http://[::ffff:7f00:1]/
    http://[::127.0.0.1]/ http://[64:ff9b::7f00:1]/ http://[64:ff9b:1::7f00:1]/ http://[2002:7f00:1::]/ http://[fe80::1]/
    http://[fe80::1%25lo]/ http://[fd00:ec2::254]/ http://[ff02::1]/ http://[v1.a]/ http://10.0.0.1/ http://172.31.255.255/
    http://192.168.0.1/ http://100.64.0.1/ http://100.100.100.200/ http://169.254.169.254/latest/meta-data/
    http://2852039166/ http://0xa9fea9fe/ http://168.63.129.16/ http://192.0.0.192/ http://metadata.google.internal/
    http://inside.example/ https://mixed.example/ http://six.example/ http://mapped.example/ http://8.8.8.8@127.0.0.1/
    http://127.0.0.1:80@8.8.8.8/ http://8.8.8.8\@127.0.0.1/ http://8.8.8.8\\@127.0.0.1/ http://127.0.0.1?@8.8.8.8/
    http://8.8.8.8%2f@127.0.0.1/ http://127.0.0.1%00.8.8.8.8/ http://224.0.0.1/ http://255.255.255.255/ http://8.8.8.8:0/
    http://8.8.8.8:99999/ http://:80/ http:/// //127.0.0.1/ file:///etc/passwd ftp://8.8.8.8/ gopher://127.0.0.1:70/
    data:image/png;base64,AAAA javascript:alert(1) dict://127.0.0.1:2628/ jar:http://127.0.0.1!/ http:127.0.0.1
    http:/127.0.0.1/ unix:///run/docker.sock ../../etc/passwd /etc/passwd'''.split()
