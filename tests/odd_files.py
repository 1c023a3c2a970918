"""Files that real photo folders also hold: half a download, a web page saved as .jpg, a scan with 16 bits, a decompression bomb."""
import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from fruit_freshness.parts.core import FRESHNESS
from fruit_freshness.parts.sample import DRAWN_FRUITS, draw_photo


def packed(photo, kind, **options) -> bytes:
    "A photo as the bytes of a file"
    box = io.BytesIO()
    photo.save(box, kind, **options)
    return box.getvalue()


def half(photo):
    "A download that was cut"
    data = packed(photo, 'JPEG')
    return data[:len(data)//2]


def zeroed(photo):
    "A download that reserved its space and was then cut: zeros to the end"
    return half(photo).ljust(len(packed(photo, 'JPEG')), b'\0')


def bomb(photo):
    "A hundred bytes that claim to be 60,000 x 60,000 pixels"
    def chunk(name, body): return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
    head = struct.pack('>IIBBBBB', 60_000, 60_000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')


def animated(photo):
    "Three frames; the first is the photo"
    return packed(photo, 'GIF', save_all=True, append_images=[ImageOps.mirror(photo), ImageOps.flip(photo)], duration=200)


def lying(photo):
    "Stored sideways, with an EXIF flag that says how to rotate it"
    exif = Image.Exif()
    exif[0x0112] = 6
    return packed(photo.transpose(Image.Transpose.ROTATE_90), 'JPEG', quality=90, exif=exif)


def deep(photo):
    "A grey scan of 16 bits a pixel"
    return packed(Image.fromarray(np.array(photo.convert('L')).astype(np.uint16) * 257), 'PNG')


def deep_colour(photo):
    "A colour scan of 16 bits a channel"
    return cv2.imencode('.png', np.array(photo)[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def see_through(photo):
    "The topmost eighth is transparent"
    hole = Image.new('L', photo.size, 0)
    hole.paste(255, (0, photo.height//8, photo.width, photo.height))
    return packed(Image.merge('RGBA', (*photo.split(), hole)), 'PNG')


ODD = {  # ending, whether it can be used as a photo, how its bytes are made
    'empty': ('.jpg', False, lambda photo: b''),
    'half': ('.jpg', False, half),
    'zeroed': ('.jpg', False, zeroed),
    'text': ('.jpg', False, lambda photo: b'This is not a photo.\n'),
    'web page': ('.png', False, lambda photo: b'<!DOCTYPE html><html><body>404 Not Found</body></html>'),
    'bomb': ('.png', False, bomb),
    'tiny': ('.jpg', False, lambda photo: packed(photo.resize((1, 1)), 'JPEG')),
    'wrong ending': ('.jpg', True, lambda photo: packed(photo, 'PNG')),
    'animated': ('.gif', True, animated),
    'cmyk': ('.jpg', True, lambda photo: packed(photo.convert('CMYK'), 'JPEG', quality=90)),
    '16 bit grey': ('.png', True, deep),
    '16 bit': ('.png', True, deep_colour),
    'palette': ('.png', True, lambda photo: packed(photo.quantize(64), 'PNG', transparency=0)),
    'alpha': ('.png', True, see_through),
    'exif rotated': ('.jpg', True, lying),
    'webp': ('.WEBP', True, lambda photo: packed(photo, 'WEBP', quality=80))}
ODD_KINDS = tuple(ODD)


@dataclass
class OddFile:
    "A file that is no ordinary photo"
    path: Path  # where it lies
    kind: str   # one of `ODD_KINDS`
    loads: bool # whether it can be used as a photo; the others are to be rejected


def draw_broken(folder, count=len(ODD_KINDS), seed=42, size=256) -> list[OddFile]:
    "Write broken and odd files below `<Fruit>/<Fresh|Rotten>/`, next to good photos if there are any; the kinds alternate"
    files = []
    for index in range(count):
        kind, label = ODD_KINDS[index % len(ODD_KINDS)], (index + index // len(ODD_KINDS)) % 8
        ending, loads, make = ODD[kind]
        fruit, freshness = DRAWN_FRUITS[label // 2], FRESHNESS[label % 2]
        name = hashlib.sha256(repr(('odd', seed, index)).encode()).hexdigest()[:8]
        path = Path(folder)/fruit/freshness/f'{name}{ending}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make(draw_photo(fruit, freshness, int(name, 16), size).image))
        files.append(OddFile(path, kind, loads))
    return files
