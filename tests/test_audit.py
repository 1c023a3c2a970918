"""`fruit_audit` on folders that are odd: names, sizes, rights, and thousands of copies of one photo; and with a cache that fails."""
import json
import os
import shutil
import sqlite3
import stat
import sys
import warnings

import numpy as np
import pytest
from conftest import run
from PIL import Image

from fruit_freshness.apps import audit as audit_page
from fruit_freshness.data import Photo
from fruit_freshness.parts import copies
from fruit_freshness.parts.copies import SearchCache, find_copies
from fruit_freshness.parts.core import DataError, content_hash
from fruit_freshness.parts.sample import draw_photo
from fruit_freshness.split import Split, SplitRow, load_split, save_split


def audit(folder, tmp_path, *more):
    done = run('fruit_audit', folder, *more, env=dict(XDG_CACHE_HOME=str(tmp_path/'cache')))
    assert 'Traceback' not in done.stderr, done.stderr
    return done


def test_odd_folders(tmp_path):
    "Spaces, tabs, newlines and other alphabets in names; twins; a broken file; a folder that can't be written"
    folder = tmp_path/'photos of fruit'
    for place in ('train', 'test'): (folder/place/'freshapples').mkdir(parents=True)
    photo = draw_photo('Apple', 'Fresh', 1).image
    names = ['a b.jpg', 'tab\tand\nnewline.jpg', 'ябло́ко 🍎.jpg']
    for turn, name in enumerate(names): photo.rotate(90*turn).save(folder/'train'/'freshapples'/name)
    shutil.copy(folder/'train'/'freshapples'/names[0], folder/'test'/'freshapples'/'twin.jpg')
    draw_photo('Orange', 'Rotten', 3).image.save(folder/'test'/'freshapples'/'other.jpg')
    (folder/'test'/'freshapples'/'broken.jpg').write_bytes(b'no photo')
    os.chmod(folder/'test'/'freshapples', stat.S_IREAD | stat.S_IEXEC)
    try: done = audit(folder, tmp_path, '--out', tmp_path/'groups.tsv')
    finally: os.chmod(folder/'test'/'freshapples', stat.S_IRWXU)
    report = json.loads(done.stdout)
    assert done.returncode == 1 and (report['photos'], report['pictures'], report['exact_copies']) == (5, 2, 1)
    assert report['leakage']['test in train'] == dict(copies=1, of=2, share=.5) and '50.0% of test photos' in done.stderr
    assert [file['path'] for file in report['unreadable']] == [str(folder/'test'/'freshapples'/'broken.jpg')]
    rows = [line.split('\t') for line in (tmp_path/'groups.tsv').read_text().splitlines()]
    assert len(rows) == 5 and all(len(row) == 2 for row in rows) and len({group for _, group in rows}) == 2
    page = (tmp_path/'groups.html').read_text()
    assert page.count('<img') == 5 and 'http' not in page.replace(str(tmp_path), '')


@pytest.mark.parametrize('count, status', [(0, 2), (1, 0)])
def test_few_photos(tmp_path, count, status):
    "No photo is a mistake of whoever asked, one photo is a clean folder"
    (tmp_path/'photos').mkdir()
    for number in range(count): draw_photo('Apple', 'Fresh', number).image.save(tmp_path/'photos'/f'{number}.jpg')
    done = audit(tmp_path/'photos', tmp_path)
    assert done.returncode == status
    assert ('no photo in it' in done.stderr) if not count else json.loads(done.stdout)['pictures'] == 1


def test_many_copies_of_one(tmp_path, monkeypatch):
    "Three hundred noisy copies of one photo are one picture, found with few comparisons"
    pixels, rng, calls = np.asarray(draw_photo('Banana', 'Rotten', 2).image).astype(int), np.random.default_rng(0), []
    files = [tmp_path/f'{number}.png' for number in range(300)]
    for file in files: Image.fromarray((pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8)).save(file)
    compare = copies.compare_photos
    monkeypatch.setattr(copies, 'compare_photos', lambda *pair: calls.append(pair) or compare(*pair))
    found = find_copies(files, cache=tmp_path/'copies.sqlite', progress=False)
    assert set(found.groups) == {0} and len(found.links) == 299
    assert len(calls) < 20*300 # not every one of the 44,850 pairs


def test_names_that_are_not_utf8(tmp_path):
    "Names as old archives hold them keep their bytes in the table; a broken file among them is reported"
    folder = tmp_path/'photos'
    folder.mkdir()
    try: (folder/os.fsdecode(b'broken \xff.jpg')).write_bytes(b'no photo')
    except OSError: pytest.skip('this file system wants names in UTF-8')
    draw_photo('Apple', 'Fresh', 1).image.save(folder/os.fsdecode('Äpfel.jpg'.encode('latin-1')))
    done = audit(folder, tmp_path, '--out', tmp_path/'groups.tsv')
    report = json.loads(done.stdout)
    assert done.returncode == 0 and (report['photos'], len(report['unreadable'])) == (1, 1)
    [path, group] = (tmp_path/'groups.tsv').read_bytes().rstrip(b'\n').split(b'\t')
    assert path == os.fsencode(folder) + b'/\xc4pfel.jpg' and (tmp_path/'groups.html').exists()
    photos = [Photo(path, 'Apple', 'Fresh') for path in sorted(folder.iterdir())]
    split = Split([SplitRow(photo, content_hash(photo.path), 0, 'train') for photo in photos])
    save_split(split, tmp_path/'split.csv')
    assert load_split(tmp_path/'split.csv', photos) == split


def test_no_place_for_the_table(tmp_path, monkeypatch):
    "A table that can't be written is reported before the search, and no folder is made for it"
    (tmp_path/'photos').mkdir()
    draw_photo('Apple', 'Fresh', 1).image.save(tmp_path/'photos'/'a.jpg')
    (tmp_path/'file').touch()
    monkeypatch.setattr(audit_page, 'find_copies', lambda *photos, **options: pytest.fail('searched first'))
    for out in (tmp_path/'file'/'groups.tsv', tmp_path/'photos'):
        with pytest.raises(DataError, match="can't be written"): audit_page.fruit_audit(str(tmp_path/'photos'), out=str(out))
    with pytest.raises(DataError, match='no such folder'):
        audit_page.fruit_audit(str(tmp_path/'nowhere'), out=str(tmp_path/'new'/'groups.tsv'))
    assert not (tmp_path/'new').exists()


@pytest.mark.parametrize('harm', ['locked', 'lost pages', 'no database', 'wrong bytes'])
def test_cache_that_fails(tmp_path, monkeypatch, harm):
    "A cache that is locked or damaged costs a warning and time, never the search"
    monkeypatch.setattr(SearchCache, 'wait', .1, raising=False)
    photo, file = draw_photo('Banana', 'Rotten', 2).image, tmp_path/'copies.sqlite'
    files = [tmp_path/f'{turn}.png' for turn in (0, 90, 180)]
    for turn, path in zip((0, 90, 180), files): photo.rotate(turn).save(path)
    expected, other = find_copies(files, cache=file, progress=False).groups, sqlite3.connect(file, isolation_level=None)
    whole = file.read_bytes()
    if harm == 'locked': other.execute('pragma locking_mode = exclusive'); other.execute('begin exclusive')
    if harm == 'lost pages': file.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    if harm == 'no database': file.write_bytes(b'a few words that somebody wrote down' * 200)
    if harm == 'wrong bytes': other.execute("update results set data = cast(replace(hex(data), '7', '8') as blob)")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        assert find_copies(files, cache=file, progress=False).groups == expected
    other.close()
    assert [warning for warning in told if 'goes on without' in str(warning.message)] or harm == 'wrong bytes'


def test_cache_locked_during_the_search(tmp_path):
    "What was open before another program took the file is no reason to stop, either"
    cache, other = SearchCache(tmp_path/'copies.sqlite'), sqlite3.connect(tmp_path/'copies.sqlite', isolation_level=None)
    cache.put('features', {'a': b'1'})
    cache.database.execute('pragma busy_timeout = 100')
    other.execute('begin exclusive')
    with pytest.warns(UserWarning, match='goes on without'): cache.trim(most=0)
    cache.put('features', {'b': b'1'})
    assert cache.get('features', ['b']) == {}
    other.close()


def test_page_of_many_photos(tmp_path, monkeypatch):
    "The page walks through the whole list of photos a few times, not once a figure, and decodes large photos small"
    large = draw_photo('Banana', 'Rotten', 2).image.resize((2400, 1800))
    (tmp_path/'train').mkdir()
    for turn in range(4): large.rotate(5*turn).save(tmp_path/'train'/f'{turn}.jpg')
    class Walked(list):
        def __iter__(self): walks.append(1); return super().__iter__()
    found, walks, sizes, load = audit_page.audit_folder(tmp_path, progress=False), [], [], audit_page.load_photo
    found.photos, found.parts, found.names = Walked(found.photos), Walked(found.parts), Walked(found.names)
    def measure(*source): photo = load(*source); sizes.append(max(photo.size)); return photo
    monkeypatch.setattr(audit_page, 'load_photo', measure)
    assert found.page(progress=False).count('<img') == 5
    assert len(walks) <= 6 and len(sizes) == 6 and max(sizes) <= 600


# -- several folders, splits and certificates --------------------------------------------------------------------------

@pytest.fixture
def published(tmp_path):
    "Two parts in folders of their own; the rotten apple of the second is a rotated one of the first"
    photos = {f'train/Apple/Fresh/{seed}': draw_photo('Apple', 'Fresh', seed).image for seed in range(3)}
    photos['train/Apple/Rotten/3'] = draw_photo('Apple', 'Rotten', 3).image
    photos['test/Apple/Rotten/4'] = photos['train/Apple/Rotten/3'].rotate(90)
    photos['test/Apple/Fresh/5'] = draw_photo('Apple', 'Fresh', 5).image
    for name, photo in photos.items():
        (tmp_path/'data'/name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(tmp_path/'data'/f'{name}.png')
    return tmp_path/'data'


def test_several_folders(published, tmp_path):
    "Folders that are searched together are parts by their own names"
    done = audit(published/'train', tmp_path, published/'test', '--out', tmp_path/'groups.tsv')
    report = json.loads(done.stdout)
    assert done.returncode == 1 and (report['photos'], report['pictures']) == (6, 5)
    assert report['leakage']['test in train'] == dict(copies=1, of=2, share=.5)
    assert len((tmp_path/'groups.tsv').read_text().splitlines()) == 6


def test_certificate(published, tmp_path):
    "It is refused to a split that leaks, holds wherever the photos lie, and no longer when one is changed"
    proof = tmp_path/'proof.json'
    done = audit(published, tmp_path, '--certificate', proof)
    assert done.returncode == 1 and 'not written' in done.stderr and not proof.exists()
    (published/'train'/'Apple'/'Rotten'/'3.png').unlink()
    done = audit(published, tmp_path, '--certificate', proof)
    assert done.returncode == 0 and json.loads(done.stdout)['certificate'] == str(proof)
    rows = json.loads(proof.read_text())['photos']
    assert sorted(row['side'] for row in rows) == ['test', 'test', 'train', 'train', 'train'] and len({row['group'] for row in rows}) == 5
    published.rename(tmp_path/'elsewhere')
    for number, path in enumerate(sorted((tmp_path/'elsewhere').rglob('*.png'))): path.rename(tmp_path/'elsewhere'/f'renamed {number}.png')
    draw_photo('Apple', 'Fresh', 9).image.save(tmp_path/'elsewhere'/'another.png')
    done = audit(tmp_path/'elsewhere', tmp_path, '--verify', proof)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report['verified'] and (report['photos'], report['missing'], report['others']) == (5, 0, 1)
    with open(tmp_path/'elsewhere'/'renamed 0.png', 'ab') as file: file.write(b' ')
    done = audit(tmp_path/'elsewhere', tmp_path, '--verify', proof)
    assert done.returncode == 1 and json.loads(done.stdout)['missing'] == 1


@pytest.mark.parametrize('forgery', ['a group torn apart', 'a group on two sides', 'one photo on two sides'])
def test_forged_certificate(published, tmp_path, forgery):
    "Groups that the certificate denies are found again in the pixels; what it says itself counts as well"
    paths = sorted(published.rglob('*.png'))
    if forgery != 'a group torn apart': paths.remove(published/'test'/'Apple'/'Rotten'/'4.png')
    rows = [dict(sha256=content_hash(path), group=number, side=path.relative_to(published).parts[0]) for number, path in enumerate(paths)]
    if forgery == 'a group on two sides': rows[-1]['group'] = rows[0]['group']
    if forgery == 'one photo on two sides': rows.append(rows[-1] | dict(side='test', group=99))
    (tmp_path/'proof.json').write_text(json.dumps(dict(certificate=1, search={}, photos=rows)))
    report = audit_page.verify_certificate(tmp_path/'proof.json', published, progress=False)
    assert report['leaks'] and not report['verified'] and report['missing'] == 0


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"photos": []}', '{"photos": [{"sha256": "a", "group": 0, "side": "exam"}]}', '{"photos": [7]}'])
def test_no_certificate(published, tmp_path, text):
    (tmp_path/'proof.json').write_text(text)
    done = audit(published, tmp_path, '--verify', tmp_path/'proof.json')
    assert done.returncode == 2 and 'no certificate' in done.stderr


def test_split_file(published, tmp_path):
    "The sides of a split.csv count in place of the folders' names"
    photos = [Photo(path, 'Apple', path.parent.name) for path in sorted(published.rglob('*.png'))]
    def split(side): return Split([SplitRow(photo, content_hash(photo.path), 0, side(photo)) for photo in photos])
    save_split(split(lambda photo: 'valid' if photo.freshness == 'Rotten' else 'train'), tmp_path/'split.csv')
    done = audit(published, tmp_path, '--split', tmp_path/'split.csv', '--certificate', tmp_path/'proof.json')
    assert done.returncode == 0 and list(json.loads(done.stdout)['leakage']) == ['train in valid', 'valid in train']
    assert audit(published, tmp_path, '--verify', tmp_path/'proof.json').returncode == 0
    save_split(split(lambda photo: 'valid' if photo.path.stem == '4' else 'train'), tmp_path/'split.csv')
    assert audit(published, tmp_path, '--split', tmp_path/'split.csv').returncode == 1


def test_many_broken_files(tmp_path):
    "The terminal shows the first of a long list, and says how many there are; the report has them all"
    (tmp_path/'photos').mkdir()
    for number in range(30): (tmp_path/'photos'/f'{number}.jpg').write_bytes(b'%d' % number)
    done = audit(tmp_path/'photos', tmp_path)
    assert done.stderr.count('not an image') == 20 and 'and 10 more' in done.stderr
    assert len(json.loads(done.stdout)['unreadable']) == 30


# -- the light installation --------------------------------------------------------------------------------------------

WITHOUT_TRAINING = """
import sys
missing = 'torch torchvision timm sklearn scipy accelerate safetensors kagglehub'.split()
class Installed:
    "What a finder finds, but for these packages"
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition('.')[0] in missing else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Installed, sys.meta_path)
"""


def without_training(code, *arguments, **environment):
    done = run(sys.executable, '-c', WITHOUT_TRAINING + code, *arguments, env=environment)
    assert 'Traceback' not in done.stderr, done.stderr
    return done


def test_audit_without_torch(published, tmp_path):
    "The command needs nothing of what training needs"
    command = 'from fruit_freshness.apps.audit import fruit_audit; sys.exit(fruit_audit.main())'
    done = without_training(command, published, '--out', tmp_path/'groups.tsv', XDG_CACHE_HOME=str(tmp_path/'cache'))
    assert done.returncode == 1 and json.loads(done.stdout)['leakage']['test in train']['copies'] == 1
    assert (tmp_path/'groups.html').exists()


def test_data_without_torch(tmp_path):
    "Photos are drawn, found, checked, stored, grouped, split and shown; what needs more names the extra"
    done = without_training("""
import fruit_freshness.parts.labels
from fruit_freshness.data import *
from fruit_freshness.parts.core import FruitError
from fruit_freshness.parts.sample import copy_photo, draw_sample
from fruit_freshness.split import *
photos = find_photos(draw_sample(sys.argv[1], count=48, size=64)).photos
assert check_photos(photos, 32, progress=False).store[photos[0].path].shape == (32, 32, 3)
split = split_photos(group_photos(photos, cache=':memory:', progress=False))
audit_split(split), show_split(split), show_photos(photos[:2]), kfold_photos(photos, 2, copies=False)
for needy in (valid_transforms, train_transforms, lambda: PhotoDataset(photos, ['Apple'], None), download_photos):
    try: needy()
    except FruitError as error: print(error)
print('torch' in sys.modules)
""", tmp_path/'sample', KAGGLEHUB_CACHE=str(tmp_path))
    *lines, loaded = done.stdout.splitlines()
    assert loaded == 'False' and len(lines) == 4, done.stdout + done.stderr
    assert all('pip install "fruit_freshness[train]"' in line for line in lines)
