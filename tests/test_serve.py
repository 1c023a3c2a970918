"""The web service as a running program: many clients, bad ones, stops under load; and its page in a real browser with a camera.

Pictures of the page go to the folder in `WIDGET_SHOTS`, where it is set."""
import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import load
import pytest
from conftest import ROOT
from hosts import HOSTILE, jpeg

WAIT = int(os.environ.get('WIDGET_WAIT', 120)) * 1000 # ms


@pytest.fixture(scope='module')
def server():
    with load.serving() as server: yield server


def get(port, path): return load.run(load.ask(port, f'GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'.encode()))


def metric(server, name) -> float:
    return sum(float(line.split()[-1]) for line in get(server.port, '/metrics')[2].decode().splitlines() if line.startswith(name))


# -- many, slow and rude clients ---------------------------------------------------------------------------------------

def test_many_clients(server):
    "Every one of 64 clients is answered, or told when to come back; photos share passes through the network"
    batches, photos = metric(server, 'fruit_batch_photos_count'), metric(server, 'fruit_batch_photos_sum')
    report = load.run(load.hammer(server.port, load.drawn_photos(8), clients=64, seconds=4))
    assert set(report['statuses']) <= {200, 503} and report['statuses'][200] >= 64
    batches, photos = metric(server, 'fruit_batch_photos_count') - batches, metric(server, 'fruit_batch_photos_sum') - photos
    assert photos == report['statuses'][200] and batches < photos / 2


def test_full_queue(server):
    "More photos than may wait: some requests are answered, the others get 503 and when to come back; none waits for ever"
    request = load.form(*load.drawn_photos(8) * 4)
    async def crowd(): return await asyncio.gather(*(load.ask(server.port, request) for _ in range(24))) # 768 photos; 256 may wait
    answers = load.run(asyncio.wait_for(crowd(), 300))
    assert {status for status, *_ in answers} == {200, 503}
    for status, headers, body in answers:
        if status == 503: assert int(headers['retry-after']) >= 1 and 'try again' in json.loads(body)['detail']
        else: assert len(json.loads(body)) == 32
    assert get(server.port, '/health')[0] == 200


def test_slow_and_cut_connections(server):
    "Clients that stop half-way, or leave, disturb nobody"
    request, photo = load.form(load.drawn_photos(1)[0]), load.drawn_photos(1)[0]
    async def rude():
        open_ones = []
        for number in range(40):
            _, writer = await asyncio.open_connection('127.0.0.1', server.port)
            writer.write(request[:(20, 120, 200, len(request) - 10, len(request))[number % 5]]) # in the headers, in the body, just before the end, or gone before the answer
            await writer.drain()
            if number % 2: writer.transport.abort()
            else: open_ones.append(writer)
        polite = await asyncio.gather(*(load.ask(server.port, load.form(photo)) for _ in range(8)))
        for writer in open_ones: writer.transport.abort()
        return polite
    assert [status for status, *_ in load.run(asyncio.wait_for(rude(), 120))] == [200] * 8


def test_threads_and_device(monkeypatch):
    "Each lane computes with one thread; `--device` reaches the network, and one that is not there is named"
    from fruit_freshness.apps import serve
    from fruit_freshness.parts.core import FruitError
    seen = []
    monkeypatch.setattr(serve, 'web_server', seen.append)
    for device in (None, 'cpu'):
        with pytest.raises(AttributeError): serve.fruit_serve(port=0, device=device) # there is no server to run
    by_default, with_torch = (service.predictor for service in seen)
    assert by_default.graph.session.get_session_options().intra_op_num_threads == 1
    assert with_torch.graph is None and str(with_torch.device) == 'cpu'
    with pytest.raises(FruitError, match="device nowhere: can't be used here"): serve.fruit_serve(port=0, device='nowhere')
    for service in seen: service.close()


@contextmanager
def hurried(waiting):
    "A service in a thread of this process, with little time for anything; its connections, and where it answers"
    from fruit_freshness.apps.serve import Limits, Service, listen, web_server
    from fruit_freshness.infer import Predictor
    limits = Limits(header_seconds=.3, receive_seconds=.3, answer_seconds=1, grace_seconds=.3, camera_seconds=.5, max_queue=waiting)
    service = Service(Predictor(), limits)
    with listen('127.0.0.1', 0) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096) # what nobody reads shows soon
        server = web_server(service)
        thread = threading.Thread(target=server.run, args=([door],))
        thread.start()
        try: yield server.server_state.connections, door.getsockname()
        finally:
            server.should_exit = True
            thread.join(60)
            service.close()


POST = 'POST {} HTTP/1.1\r\nHost: fruit\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n'
SCRIPT = 'GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: fruit\r\n\r\n'
LIVE = 'GET /live HTTP/1.1\r\nHost: fruit\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ZnJ1aXRmcnVpdGZydWl0ZQ==\r\n\r\n'
PICTURE = b'\x82\x81' + bytes(4) + b'x'
SLOW = { # what a client sends first, what it then goes on sending, bytes that it reads meanwhile, photos that may wait
    'headers': ('GET /health HTTP/1.1\r\nX: ', b'x', 100, 256),
    'a body': (POST.format('/predict'), b' ', 100, 256),
    'a body that nobody wants': (POST.format('/nowhere'), b' ', 100, 256),
    'a body for a full queue': (POST.format('/predict'), b' ', 100, 0),
    'no reading': (SCRIPT, SCRIPT.encode(), 0, 256),
    'slow reading': (SCRIPT, b'', 1, 256),
    'a camera without pictures': (LIVE, b'', 100, 256),
    'a camera that reads nothing': (LIVE, PICTURE, 0, 256),
}


@pytest.mark.parametrize('kind', SLOW)
def test_every_phase_ends(kind):
    "Whoever is slow for ever loses the connection, in whichever phase it is"
    first, then, reads, waiting = SLOW[kind]
    with hurried(waiting) as (connections, address), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address)
        client.sendall(first.encode())
        client.setblocking(False)
        ends = time.monotonic() + 60
        while not connections and time.monotonic() < ends: time.sleep(.01)
        assert connections
        while connections and time.monotonic() < ends:
            time.sleep(.002)
            try:
                client.send(then)
                if reads: client.recv(reads)
            except (BlockingIOError, ConnectionError): pass
        assert not connections


def test_odd_requests(server):
    "What is no proper request is refused in words"
    photo = load.form(load.drawn_photos(1)[0])
    for request, status in ((photo.replace(b'boundary=fruit', b'boundary=' + b'x' * 300), 400), (photo.replace(b'multipart/form-data', b'multipart/mixed'), 415), (photo.replace(b'name="files"', b'name="other"'), 400),
                            (photo.replace(b'/predict', b'/../predict'), 404), (photo.replace(b'POST', b'PUT'), 405)):
        answer, _, body = load.run(asyncio.wait_for(load.ask(server.port, request), 60))
        assert answer == status and json.loads(body)['detail'], (answer, body)


@pytest.mark.parametrize('kind', [signal.SIGTERM, signal.SIGINT])
def test_stop_under_load(kind):
    "A stop answers what was accepted: no answer is cut, and the server counts as many answers as its clients"
    photo, outcomes, waiting = load.form(load.drawn_photos(1)[0], close=True), [], True
    async def client(port):
        while waiting:
            try: reader, writer = await asyncio.open_connection('127.0.0.1', port)
            except OSError: return # the door is shut
            try:
                writer.write(photo)
                first = await reader.read(1)
                if not first: outcomes.append('not accepted'); return
                reader._buffer[:0] = first # nothing was read yet
                outcomes.append((await load.read_answer(reader))[0])
            except ConnectionError: outcomes.append('not accepted')
            finally: writer.close()
    async def crowd(server):
        clients = [asyncio.create_task(client(server.port)) for _ in range(24)]
        while len(outcomes) < 48: await asyncio.sleep(.05)
        server.process.send_signal(kind)
        await asyncio.wait_for(asyncio.gather(*clients), 120)
    with load.serving() as server:
        load.run(crowd(server))
        status = server.process.wait(90)
        server.reader.join(10)
    answered = sum(outcome != 'not accepted' for outcome in outcomes)
    assert status == 0 and set(outcomes) <= {200, 503, 'not accepted'}
    assert server.log[-1].strip() == f'fruit_serve: stopped; {answered} requests accepted, {answered} answered'


# -- attacks -----------------------------------------------------------------------------------------------------------

def test_tampered_photos(server):
    "An answer if and only if there is an image; `python tests/load.py mutated` does the same with ten thousand"
    report = load.check_mutated(server.port, 640)
    assert report['image'] > 100 and report['refused'] > 100


def test_bombs(server):
    "What would be large is refused before it is"
    assert max(bomb['more_mb'] for bomb in load.check_bombs(server).values()) < 300


ATTACK = '''
import json, socket, sys
hostile, sent = json.load(sys.stdin), []
sys.path.insert(0, 'tests')
from hosts import lookup
socket.getaddrinfo = lookup
from fruit_freshness.apps.serve import Service, create_app
from fruit_freshness.infer import Predictor
from starlette.testclient import TestClient
client = TestClient(create_app(Service(Predictor())))
sys.addaudithook(lambda event, args: sent.append((event, str(args[1:]))) if event in ('socket.connect', 'socket.sendto', 'socket.gethostbyname', 'open') and (event != 'open' or 'passwd' in str(args[0])) else None)
answers = [client.post('/predict', json=dict(url=url)) for url in hostile]
print(json.dumps(dict(statuses=[answer.status_code for answer in answers], words=[answer.json()['detail'] for answer in answers], sent=sent)))
'''


def test_hostile_addresses():
    "No address that leads inside is fetched through the service, whatever it looks like: nothing is sent anywhere"
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', ATTACK], input=json.dumps(HOSTILE), text=True, capture_output=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(HOSTILE) >= 60 and set(report['statuses']) == {422} and report['sent'] == []
    assert not [words for words in report['words'] if 'Traceback' in words or 'root:' in words]


# -- the page ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def page(chromium, server):
    context = chromium.new_context(viewport=dict(width=1280, height=900), permissions=['camera', 'clipboard-read', 'clipboard-write'])
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.failures = []
    page.on('pageerror', lambda error: page.failures.append(str(error)))
    page.on('request', lambda request: page.failures.append(request.url) if not request.url.startswith((f'http://127.0.0.1:{server.port}/', 'data:', 'blob:')) else None)
    page.goto(f'http://127.0.0.1:{server.port}/')
    yield page
    assert page.failures == [] # nothing broke, and nothing was asked of anybody else
    context.close()


def shot(page, name):
    if folder := os.environ.get('WIDGET_SHOTS'): page.screenshot(path=str(Path(folder)/f'{name}.png'), full_page=True)


def check_card(card):
    card.locator('.fruit-headline').wait_for()
    for what in ('fruit', 'freshness'): assert 0 <= int(card.get_by_label(f'confidence in the {what}').get_attribute('aria-valuenow')) <= 100


def test_page_photos(page, turning_fruit, tmp_path):
    "Several photos, one of them broken, one with a name that is markup; then where it looked"
    fruit, fresh, rotten = turning_fruit
    files = {'rotten.jpg': jpeg(rotten), 'fresh <b>bold.jpg': jpeg(fresh), 'broken.jpg': jpeg(rotten)[:2000]}
    for name, content in files.items(): (tmp_path/name).write_bytes(content)
    page.locator('#files').set_input_files([str(tmp_path/name) for name in files])
    card = page.locator('.fruit-card', has_text='rotten.jpg')
    check_card(card)
    assert card.locator('.fruit-headline').inner_text() == f'{fruit}, rotten'
    bold = page.locator('.fruit-card', has_text='fresh <b>bold.jpg')
    check_card(bold)
    assert bold.locator('.fruit-headline').inner_text() == f'{fruit}, fresh' and bold.locator('.fruit-source b').count() == 0
    broken = page.locator('.fruit-card', has_text='broken.jpg')
    broken.get_by_text('copy or download it again').wait_for()
    assert broken.get_by_role('meter').count() == 0
    look = card.get_by_role('button', name='Where did it look?')
    look.click()
    heat = card.get_by_alt_text('glowing where "Rotten" was seen')
    heat.wait_for()
    assert heat.evaluate('image => image.decode().then(() => image.naturalWidth > 100)') and look.get_attribute('aria-expanded') == 'true'
    shot(page, 'page-photos')


def test_page_address_and_keyboard(page, server):
    "With the keyboard alone: an address that is refused, in words; every control can be reached and has a name"
    names = []
    page.locator('h1').click()
    for _ in range(5):
        page.keyboard.press('Tab')
        names.append(page.evaluate('() => { const e = document.activeElement; return e.labels && e.labels[0] ? e.labels[0].textContent : e.textContent }'))
    assert names == ['Choose photos', 'Take a photo', 'Live camera', 'Address of a photo', 'Look at it']
    page.get_by_label('Address of a photo').fill('http://127.0.0.1/private.jpg')
    page.keyboard.press('Enter')
    refusal = page.get_by_text('leads to a local or private address')
    refusal.wait_for()
    assert '`' not in refusal.inner_text() # what a person at a page can do, and no Python
    assert page.get_by_role('status').inner_text()
    page.get_by_label('Address of a photo').fill('https://me:secret@example.org/private.jpg')
    page.keyboard.press('Enter')
    page.get_by_text('carries a user name or password').wait_for()
    assert 'secret' not in page.content() and not any('secret' in line for line in server.log)


COUNTED = '''
window.made = window.held = 0
const {createObjectURL, revokeObjectURL} = URL
URL.createObjectURL = file => { made++; held++; return createObjectURL(file) }
URL.revokeObjectURL = url => { if (url.startsWith('blob:')) held--; revokeObjectURL(url) }
'''


def test_page_keeps_no_photo(page, turning_fruit):
    "A photo is shown, but its memory is not held for as long as the page is open; nor that of what is no photo"
    page.add_init_script(COUNTED)
    page.reload()
    page.locator('#files').set_input_files([dict(name=name, mimeType='image/jpeg', buffer=content) for name, content in (('good.jpg', jpeg(turning_fruit[1])), ('bad.jpg', b'no photo'))])
    check_card(page.locator('.fruit-card', has_text='good.jpg'))
    page.locator('.fruit-card', has_text='bad.jpg').get_by_text('convert it to JPEG').wait_for()
    page.wait_for_function('() => held === 0')
    assert page.evaluate('() => made') == 2
    assert page.locator('.fruit-card', has_text='good.jpg').locator('img').evaluate('image => image.complete && image.naturalWidth > 100')


def test_page_drop_and_paste(page, turning_fruit):
    "A photo that is dropped, and one that is pasted"
    photo = base64.b64encode(jpeg(turning_fruit[2])).decode()
    for kind, target, data in (('drop', 'document.body', 'dataTransfer'), ('paste', 'document', 'clipboardData')):
        page.evaluate(f'''photo => {{
            const transfer = new DataTransfer()
            transfer.items.add(new File([Uint8Array.from(atob(photo), letter => letter.charCodeAt(0))], 'by {kind}.jpg', {{type: 'image/jpeg'}}))
            {target}.dispatchEvent(new {dict(drop='DragEvent', paste='ClipboardEvent')[kind]}('{kind}', {{bubbles: true, cancelable: true, {data}: transfer}}))
        }}''', photo)
        check_card(page.locator('.fruit-card', has_text=f'by {kind}.jpg'))


def test_page_camera(page, turning_fruit):
    "The live camera sees the fruit turn, and says so to screen readers; then it is given back"
    fruit = turning_fruit[0]
    page.get_by_role('button', name='Live camera').click()
    for freshness in ('fresh', 'rotten', 'fresh'):
        page.locator('#answer').get_by_text(f'{fruit}, {freshness}').wait_for()
        page.get_by_role('status').get_by_text(f'{fruit}, {freshness}').wait_for()
    page.locator('#rate').get_by_text('fps').wait_for()
    shot(page, 'page-camera')
    page.get_by_role('button', name='Stop the camera').click()
    page.locator('#stage').wait_for(state='hidden')
    assert page.evaluate('() => document.getElementById("video").srcObject === null')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_page_narrow(chromium, server, scheme, turning_fruit):
    "On a phone everything is on the page, in the light as in the dark"
    context = chromium.new_context(viewport=dict(width=360, height=740), color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(f'http://127.0.0.1:{server.port}/')
    page.locator('#files').set_input_files(dict(name='a photo with a long name that does not fit on a phone.jpg', mimeType='image/jpeg', buffer=jpeg(turning_fruit[2])))
    check_card(page.locator('.fruit-card'))
    page.get_by_role('button', name='Where did it look?').click()
    page.locator('.fruit-heat img').nth(1).wait_for()
    shot(page, f'page-narrow-{scheme}')
    assert page.evaluate('() => document.documentElement.scrollWidth <= innerWidth')
    context.close()


def test_page_token(chromium):
    "A service that wants a token asks for it, and takes it"
    with load.serving(FRUIT_SERVE_TOKEN='pear') as locked:
        context = chromium.new_context(permissions=['camera'])
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f'http://127.0.0.1:{locked.port}/')
        photo = dict(name='apple.jpg', mimeType='image/jpeg', buffer=load.drawn_photos(1)[0])
        page.locator('#files').set_input_files(photo)
        page.get_by_text('a token is needed').wait_for()
        page.get_by_label('Token').fill('pear')
        page.keyboard.press('Enter')
        page.locator('#files').set_input_files(photo)
        check_card(page.locator('.fruit-card').first)
        page.get_by_role('button', name='Live camera').click()
        page.locator('#answer .fruit-headline').wait_for()
        context.close()


def test_description_logs_in(chromium):
    "The description asks for the token, and its requests carry it"
    with load.serving(FRUIT_SERVE_TOKEN='pear') as locked:
        page = chromium.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f'http://127.0.0.1:{locked.port}/docs')
        def model(): # asks for the facts of the network
            page.get_by_role('button', name='Execute').click()
            return page.locator('.live-responses-table tbody .response-col_status').first
        page.locator('.opblock-summary-path', has_text='/model').click()
        page.get_by_role('button', name='Try it out').click()
        model().get_by_text('401').wait_for()
        page.get_by_role('button', name='Authorize').first.click()
        page.locator('.auth-container input').fill('pear')
        page.locator('.auth-btn-wrapper').get_by_role('button', name='Apply credentials').click()
        page.locator('.btn-done').click()
        model().get_by_text('200').wait_for()
        page.close()
