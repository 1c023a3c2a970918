"""Many clients at a time, and photos that were tampered with: what `test_serve.py` uses in small, and as a script in full.

    python tests/load.py hammer [seconds] [clients]    one client, then many: throughput, waiting times, memory
    python tests/load.py mutated [count]               tampered photos through load_photo and the service
    python tests/load.py bombs                         files that are small and claim to be large"""
import asyncio
import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from PIL import Image

from fruit_freshness.data import load_photo
from fruit_freshness.parts.core import PhotoError
from fruit_freshness.parts.sample import DRAWN_FRUITS, draw_photo

SERVE = [sys.executable, '-c', 'from fruit_freshness.apps.serve import fruit_serve; raise SystemExit(fruit_serve.main())']


class Server:
    "A running `fruit_serve`: its process, its port, and what it wrote"
    def __init__(self, process):
        self.process, self.log = process, []
        while 'answering at' not in (line := process.stderr.readline()):
            self.log.append(line)
            if not line: raise RuntimeError(''.join(self.log))
        self.port = int(re.search(r':(\d+);', line)[1])
        self.reader = threading.Thread(target=lambda: self.log.extend(process.stderr), daemon=True)
        self.reader.start()

    def memory(self, what='VmRSS') -> float: # MB; VmHWM is the most there ever was
        with open(f'/proc/{self.process.pid}/status') as file: return int(re.search(rf'{what}:\s+(\d+)', file.read())[1]) / 1024

    def stop(self, kind=15) -> int: # exit status
        self.process.send_signal(kind)
        status = self.process.wait(90)
        self.reader.join(10)
        return status


@contextmanager
def serving(**environment):
    "A `fruit_serve` of our own on a free port of 127.0.0.1"
    process = subprocess.Popen([*SERVE, '--port', '0'], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True, env={**os.environ, **environment})
    try: yield Server(process)
    finally:
        if process.poll() is None:
            process.terminate()
            try: process.wait(60)
            except subprocess.TimeoutExpired: process.kill(); process.wait()


# -- asking ------------------------------------------------------------------------------------------------------------

def run(coroutine): # what it returns
    "Run a coroutine in a thread of its own: playwright keeps an event loop in the thread that asked for a browser"
    with ThreadPoolExecutor(1) as thread: return thread.submit(asyncio.run, coroutine).result()


def form(*files, route='/predict', close=False) -> bytes: # a whole HTTP request
    "A request with photos"
    parts = b''.join(b'--fruit\r\nContent-Disposition: form-data; name="files"; filename="%d.jpg"\r\n\r\n%s\r\n' % (number, content) for number, content in enumerate(files)) + b'--fruit--\r\n'
    head = f'POST {route} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=fruit\r\nContent-Length: {len(parts)}\r\n{"Connection: close" if close else ""}'
    return head.rstrip().encode() + b'\r\n\r\n' + parts


async def read_answer(reader) -> tuple[int, dict, bytes]: # status, headers, body
    "One HTTP answer; `EOFError` when the connection ends before it does"
    head = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1')
    headers = {name.lower(): value for name, _, value in (line.partition(': ') for line in head.split('\r\n')[1:])}
    return int(head.split()[1]), headers, await reader.readexactly(int(headers['content-length']))


async def ask(port, request) -> tuple[int, dict, bytes]: # status, headers, body
    "One request over a connection of its own"
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    try:
        writer.write(request)
        return await read_answer(reader)
    finally: writer.close()


async def hammer(port, photos, clients, seconds) -> dict: # what came back
    "Clients that ask one after the other, each over one connection, for a while"
    statuses, times, ends, begin = Counter(), [], time.monotonic() + seconds, time.monotonic()
    async def client(number):
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        while time.monotonic() < ends:
            start = time.monotonic()
            writer.write(form(photos[(number + len(times)) % len(photos)]))
            status, headers, _ = await read_answer(reader)
            statuses[status] += 1
            times.append(time.monotonic() - start)
            if status == 503: assert headers['retry-after']; await asyncio.sleep(float(headers['retry-after']))
        writer.close()
    await asyncio.gather(*map(client, range(clients)))
    p50, p99 = np.quantile(times, (.5, .99))
    return dict(clients=clients, statuses=dict(statuses), photos_per_second=round(statuses[200] / (time.monotonic() - begin), 1), p50=round(p50, 3), p99=round(p99, 3))


async def watch_memory(server, every=5): # prints, until it is cancelled
    "How much memory the service holds, every few seconds"
    start = time.monotonic()
    while True:
        print(f'{time.monotonic() - start:4.0f} s {server.memory():6.0f} MB', flush=True)
        await asyncio.sleep(every)


def check_memory(server, seconds, clients) -> dict: # what came back
    "One client, then many, while memory is watched"
    photos = drawn_photos()
    async def watched():
        watcher = asyncio.create_task(watch_memory(server))
        try: return await hammer(server.port, photos, clients, seconds)
        finally: watcher.cancel()
    run(hammer(server.port, photos, clients, 10)) # warm
    one, many = run(hammer(server.port, photos, 1, min(seconds, 20))), run(watched())
    return dict(one=one, many=many, ratio=round(many['photos_per_second'] / one['photos_per_second'], 2), memory_mb=dict(end=round(server.memory()), most=round(server.memory('VmHWM'))))


def drawn_photos(count=16) -> list[bytes]:
    "Photos as files"
    contents = []
    for seed in range(count):
        stream = io.BytesIO()
        draw_photo(DRAWN_FRUITS[seed % 4], ('Fresh', 'Rotten')[seed // 4 % 2], seed).image.save(stream, 'JPEG', quality=90)
        contents.append(stream.getvalue())
    return contents


# -- tampering ---------------------------------------------------------------------------------------------------------

def formats() -> list[bytes]:
    "Small photos in every format that is read, and in odd modes"
    photo, contents = draw_photo('Apple', 'Rotten', 3, 96).image, []
    for kind, changed, options in (('JPEG', photo, {}), ('JPEG', photo, dict(progressive=True)), ('JPEG', photo.convert('CMYK'), {}), ('PNG', photo, {}), ('PNG', photo.quantize(16), {}),
                                   ('PNG', photo.convert('LA'), {}), ('WEBP', photo, {}), ('WEBP', photo, dict(lossless=True)), ('GIF', photo, dict(save_all=True, append_images=[photo.rotate(90)])),
                                   ('BMP', photo, {}), ('TIFF', photo, {}), ('TIFF', photo, dict(compression='tiff_lzw')), ('TIFF', photo, dict(compression='jpeg'))):
        stream = io.BytesIO()
        changed.save(stream, kind, **options)
        contents.append(stream.getvalue())
    return contents


def tampered(content: bytes, rng: np.random.Generator) -> bytes:
    "One way of breaking a file, or several"
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        kind, place = rng.integers(8), int(rng.integers(len(data) or 1))
        length = int(rng.integers(1, 1 + max(1, len(data) // 8)))
        if kind == 0: # bits flipped
            for spot in rng.integers(len(data), size=rng.integers(1, 30)) if data else []: data[spot] ^= 1 << rng.integers(8)
        elif kind == 1: data = data[:place] # cut
        elif kind == 2: data[place:place + length], data[:length] = data[:length], data[place:place + length] # chunks swapped
        elif kind == 3: data[:min(64, len(data))] = bytes(byte if rng.random() < .9 else int(rng.integers(256)) for byte in data[:64]) # a lying header
        elif kind == 4: data[place:place + 4] = struct.pack('>I', int(rng.choice((0, 1, 65535, 2**31 - 1, 2**32 - 1)))) # a lying number
        elif kind == 5: data[place:place + length] = bytes(length) # zeros
        elif kind == 6: data[place:place] = rng.bytes(length) # noise put in
        else: data += data[place:] # a part twice
    return bytes(data)


def check_mutated(port, count, seed=0, together=32) -> dict: # what came of them
    "Tampered photos through `load_photo` and `/predict`: an answer if and only if there is an image"
    warnings.filterwarnings('ignore', module='PIL') # of damaged notes in a file
    originals, rng, outcome, slowest = formats(), np.random.default_rng(seed), Counter(), 0.
    for start in range(0, count, together):
        files = [tampered(originals[(start + number) % len(originals)], rng) for number in range(min(together, count - start))]
        loads = []
        for content in files:
            begin = time.perf_counter()
            try: loads.append(load_photo(content) is not None)
            except PhotoError: loads.append(False)
            slowest = max(slowest, time.perf_counter() - begin)
        status, _, body = run(asyncio.wait_for(ask(port, form(*files)), 60))
        answers = json.loads(body)
        if not any(loads): assert status == 422 and 'Traceback' not in answers['detail'], body
        else:
            assert status == 200, (status, body)
            assert [answer['error'] is None for answer in answers] == loads == [answer['fruit'] is not None for answer in answers]
        outcome.update('image' if load else 'refused' for load in loads)
    return dict(files=count, **outcome, slowest_load_seconds=round(slowest, 3))


def bombs() -> dict[str, bytes]:
    "Files that are small and would be large"
    def png(width, height, depth=8, colour=2, rows=b''):
        def chunk(name, body): return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
        return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    squeezed, archive, wide = zlib.compressobj(9), io.BytesIO(), io.BytesIO()
    rows = b''.join(squeezed.compress(bytes(30_001)) for _ in range(10_000)) + squeezed.flush()
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as packed: packed.writestr('photo.jpg', bytes(100_000_000))
    Image.new('L', (10_000, 10_000)).save(wide, 'JPEG', quality=10)
    lying_gif, lying_jpeg = bytearray(formats()[8]), bytearray(formats()[0])
    lying_gif[6:10] = b'\xff\xff\xff\xff'
    start = lying_jpeg.find(b'\xff\xc0')
    lying_jpeg[start + 5:start + 9] = b'\xff\xff\xff\xff'
    return {'a hundred bytes for 60,000 x 60,000': png(60_000, 60_000, rows=zlib.compress(bytes(100))), '100 megapixels of black, PNG': png(10_000, 10_000, rows=rows),
            '100 megapixels, JPEG': wide.getvalue(), 'a zip': archive.getvalue(), 'a GIF of 65,535 x 65,535': bytes(lying_gif), 'a JPEG of 65,535 x 65,535': bytes(lying_jpeg),
            'text chunk bomb': png(16, 16)[:33] + struct.pack('>I', 10_000) + b'zTXt' + zlib.compress(bytes(10_000_000))[:10_000].ljust(10_000) + bytes(4)}


def check_bombs(server) -> dict: # for each: status, seconds, MB more than before
    "Each bomb is refused"
    report = {}
    for name, content in bombs().items():
        before, start = server.memory(), time.perf_counter()
        status, _, body = run(asyncio.wait_for(ask(server.port, form(content)), 60))
        assert status == 422, (name, status, body)
        report[name] = dict(bytes=len(content), seconds=round(time.perf_counter() - start, 3), more_mb=round(server.memory('VmHWM') - before, 1))
    return report


def main(what, *numbers):
    with serving() as server:
        if what == 'hammer': report = check_memory(server, float(numbers[0]) if numbers else 60, int(numbers[1]) if len(numbers) > 1 else 64)
        elif what == 'mutated': report = check_mutated(server.port, int(numbers[0]) if numbers else 10_000)
        elif what == 'bombs': report = check_bombs(server)
        else: sys.exit(__doc__)
        report['stopped'] = server.stop(), server.log[-1].strip()
    print(json.dumps(report, indent=1))


if __name__ == '__main__': main(*sys.argv[1:] or [''])
