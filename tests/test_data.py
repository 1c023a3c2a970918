"""What the data page leaves to tests: odd files, Kaggle, worker processes, a disk that is full."""
import errno
import io
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from conftest import ROOT
from kaggle_stand_in import NAMES, kaggle_stand_in
from odd_files import draw_broken, packed
from PIL import Image, ImageCms, features

from fruit_freshness.data import (
    DataError,
    Photo,
    PhotoStore,
    check_photos,
    download_photos,
    find_photos,
    load_photo,
)
from fruit_freshness.parts.core import PhotoError, walk_files
from fruit_freshness.parts.labels import FolderReader
from fruit_freshness.parts.sample import draw_sample

APPLE = Path('apple.jpg')


# -- names of folders --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, fruit', [('PassionFruit', 'Passion Fruit'), ('freshpassionfruits', 'Passion Fruit'), ('Dragon Fruit', 'Dragon Fruit'),
                                         ('Water_Melon', 'Watermelon'), ('Brown-Cap-Mushroom', 'Brown Cap Mushroom')])
def test_fruit_of_a_name(name, fruit): assert FolderReader().read_name(name)[0] == fruit


@pytest.mark.parametrize('name', ['Downloads', 'dataset_v2', 'small', 'classes', 'unripe photos', # tell nothing
                                  'notfresh', 'Non-Rotten', 'almost rotten banana', 'rotten (not sure)']) # deny or doubt
def test_name_without_label(name): assert FolderReader().read_name(name) == (None, None)


@pytest.mark.parametrize('path, label', [('Apple/Apple/Rotten', ('Apple', 'Rotten')), ('Guava/Healthy/batch1', ('Guava', 'Fresh')),
                                         ('Apple/fresh_kitchen', ('Apple', 'Fresh')), ('Baked Goods/Apple', (None, None))])
def test_label_of_a_path(path, label): assert FolderReader().read_path(path.split('/')) == label


def test_unlisted_folder_is_reported(tmp_path):
    "A folder that can't be listed is among the files without a label"
    for name in ('Apple/Fresh', 'Apple/Rotten'):
        (tmp_path/name).mkdir(parents=True)
        Image.new('RGB', (32, 32)).save(tmp_path/name/'1.jpg')
    def scan(folder, listing=os.scandir):
        if Path(folder) == tmp_path/'Apple'/'Rotten': raise PermissionError(errno.EACCES, 'Permission denied', str(folder))
        return listing(folder)
    with patch('os.scandir', scan):
        assert find_photos(tmp_path).unplaced == [(tmp_path/'Apple'/'Rotten', "a folder that can't be listed (Permission denied)")]
        with pytest.warns(UserWarning, match='left out'): walk_files(tmp_path)


# -- odd files ---------------------------------------------------------------------------------------------------------

def test_odd_files_among_good_ones(tmp_path):
    "Each broken file is named with its reason; the odd ones that load are kept"
    sample = draw_sample(tmp_path/'sample', count=16, seed=1, size=96)
    odd = draw_broken(sample, seed=1, size=96)
    checked = check_photos(find_photos(sample).photos, size=64, progress=False)
    assert {path for path, _ in checked.rejected} == {file.path for file in odd if not file.loads}
    assert {file.path for file in odd if file.loads} <= {photo.path for photo in checked.photos}
    for file in odd:
        if file.loads: assert load_photo(file.path).size == (96, 96)


def test_palette_and_frames():
    "A palette with one transparent colour, grey with alpha, and an animation's first frame"
    palette = Image.new('P', (32, 32), 0)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.info['transparency'] = 0
    assert load_photo(palette).getpixel((0, 0)) == (255, 255, 255)
    assert load_photo(Image.new('LA', (32, 32), (0, 128))).getpixel((0, 0)) == (127, 127, 127)
    frames = [Image.new('RGB', (32, 32), colour) for colour in ('red', 'blue')]
    assert load_photo(packed(frames[0], 'GIF', save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (255, 0, 0)
    assert load_photo(np.full((20, 40, 3), 7, np.uint8)).size == (40, 20)


def sideways() -> dict:
    "A white image with a black left half that its EXIF flag puts on top"
    image, exif = Image.new('RGB', (64, 32), 'white'), Image.Exif()
    image.paste('black', (0, 0, 32, 32))
    exif[0x0112] = 6
    return dict(image=image, exif=exif)


def test_exif_orientation():
    photo = sideways()
    upright = load_photo(packed(photo['image'], 'JPEG', exif=photo['exif']))
    assert upright.size == (32, 64) and upright.getpixel((16, 5))[0] < 20 and upright.getpixel((16, 60))[0] > 235


def test_profiles():
    "A profile that swaps red and blue is applied, also under transparency; one that is broken or sRGB changes nothing"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
    swapped = srgb.replace(b'rXYZ', b'----').replace(b'bXYZ', b'rXYZ').replace(b'----', b'bXYZ')
    blue = Image.new('RGB', (32, 32), (0, 0, 255))
    assert load_photo(packed(blue.convert('RGBA'), 'PNG', icc_profile=swapped)).getpixel((5, 5)) == (255, 0, 0)
    for profile in (srgb, swapped[:200], b'no profile'):
        assert load_photo(packed(blue, 'PNG', icc_profile=profile)).getpixel((5, 5)) == (0, 0, 255)


@pytest.mark.skipif(not features.check('avif'), reason='pillow without AVIF')
def test_avif(): assert load_photo(packed(sideways()['image'], 'AVIF', exif=sideways()['exif'])).size == (32, 64)


def test_heic():
    pillow_heif = pytest.importorskip('pillow_heif')
    phone = io.BytesIO()
    pillow_heif.from_pillow(sideways()['image']).save(phone)
    seen = load_photo(phone)
    assert seen.size == (64, 32) and seen.getpixel((5, 5))[0] < 20 and seen.getpixel((60, 5))[0] > 235


def test_heic_without_its_package():
    head = b'\0\0\0\x18ftypmif1\0\0\0\0mif1heic'
    with patch.dict(sys.modules, pillow_heif=None), pytest.raises(PhotoError, match=r"pip install 'fruit_freshness\[heif\]'"): load_photo(head)


@pytest.mark.parametrize('make', [lambda path: path.symlink_to('/dev/null'), os.mkfifo])
def test_pipes_and_devices_are_refused(tmp_path, make):
    make(tmp_path/'photo.jpg')
    with pytest.raises(PhotoError, match='a pipe or a device'): load_photo(tmp_path/'photo.jpg')


class SlowPath(type(Path())):
    "A path that is looked up slowly"
    def __hash__(self):
        time.sleep(.002)
        return super().__hash__()


def test_no_photo_gets_the_pixels_of_another(tmp_path):
    "Not even where threads wait for each other at the worst of all moments, here while a path is looked up"
    grey = {SlowPath(tmp_path, f'grey {value}.png'): value for value in range(0, 256, 16)}
    for path, value in grey.items(): Image.new('RGB', (32, 32), (value,) * 3).save(path)
    store = check_photos([Photo(path, 'Apple', 'Fresh') for path in grey], size=32, progress=False).store
    for path, value in grey.items(): assert set(store[path].flat) == {value}


# -- Kaggle ------------------------------------------------------------------------------------------------------------

def names_in(folder): return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.bmp'))


def test_downloaded_once(tmp_path, capsys):
    "With a bar on stderr and nothing on stdout; then it is there without a network"
    fetched = tmp_path/'datasets'/'ann'/'fruit'/'versions'/'3'
    with kaggle_stand_in(tmp_path) as kaggle: assert names_in(download_photos('ann/fruit')) == NAMES
    assert names_in(fetched) == NAMES and '100%' in kaggle.stderr.getvalue() and capsys.readouterr().out == ''
    with kaggle_stand_in(tmp_path, online=False):
        assert [download_photos('ann/fruit'), download_photos('ann/fruit/versions/3')] == [fetched] * 2


def test_three_ways_on_without_a_network(tmp_path):
    with kaggle_stand_in(tmp_path, online=False), pytest.raises(DataError) as error: download_photos()
    for way in ('no connection', '--data DIR', str(tmp_path/'datasets'/'abdulrafeyyashir'), '--data sample'): assert way in str(error.value)


def test_cut_connection_is_continued(tmp_path):
    "kagglehub keeps whole mebibytes; the second run looks at the size and asks for the rest"
    with kaggle_stand_in(tmp_path) as kaggle:
        kaggle.cut_after = 1_500_000
        with pytest.raises(DataError, match='1.0 MB are kept, run it again'): download_photos('bob/fruit')
        kaggle.cut_after = None
        assert names_in(download_photos('bob/fruit')) == NAMES
        assert kaggle.seen == [0, 0, 2**20]


def test_missing_and_private_data_sets(tmp_path):
    with kaggle_stand_in(tmp_path):
        with pytest.raises(DataError, match='no such data set'): download_photos('nobody/fruit')
        with pytest.raises(DataError, match='KAGGLE_API_TOKEN'): download_photos('private/fruit')
    with kaggle_stand_in(tmp_path, KAGGLE_API_TOKEN='open sesame'): assert names_in(download_photos('private/fruit')) == NAMES


def test_broken_downloads_leave_no_data_set(tmp_path):
    "A full disk, Ctrl-C, a login page instead of an archive: the next run downloads it again"
    with kaggle_stand_in(tmp_path) as kaggle:
        full = OSError(errno.ENOSPC, 'No space left on device')
        with patch('zipfile.ZipFile.extractall', side_effect=full), pytest.raises(DataError, match='make room'): download_photos('eve/fruit')
        with patch('zipfile.ZipFile.extractall', side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt): download_photos('eve/fruit')
        with patch.object(kaggle, 'archive', b'<html>'), pytest.raises(DataError, match='run it again'): download_photos('joe/fruit')
    with kaggle_stand_in(tmp_path, online=False):
        for handle in ('eve/fruit', 'joe/fruit'):
            with pytest.raises(DataError, match='no connection|the connection was cut'): download_photos(handle)
    with kaggle_stand_in(tmp_path): assert names_in(download_photos('eve/fruit')) == names_in(download_photos('joe/fruit')) == NAMES


# -- the store of decoded photos ---------------------------------------------------------------------------------------

def test_pickled_store_maps_the_same_file():
    store = PhotoStore([APPLE], size=32)
    twin = pickle.loads(pickle.dumps(store))
    store.add(APPLE, Image.new('RGB', (32, 32), 'blue'))
    assert APPLE not in twin and tuple(twin.pixels[0, 0, 0]) == (0, 0, 255)


def test_no_room_for_the_store():
    "The message comes before any photo is decoded"
    full = OSError(errno.ENOSPC, 'No space left on device')
    with patch('os.posix_fallocate', side_effect=full, create=True), pytest.raises(DataError, match='set TMPDIR'): PhotoStore([], size=32)


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
