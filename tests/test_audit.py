"""`fruit_audit` on folders that are odd: names, sizes, rights, and thousands of copies of one photo; and with a cache that fails."""
import json
import os
import shutil
import sqlite3
import stat
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
    found, walks, sizes = audit_page.audit_folder(tmp_path, progress=False), [], []
    parts, load = audit_page.Audit.parts, audit_page.load_photo
    def count(self): walks.append(1); return parts(self)
    def measure(*source): photo = load(*source); sizes.append(max(photo.size)); return photo
    monkeypatch.setattr(audit_page.Audit, 'parts', count)
    monkeypatch.setattr(audit_page, 'load_photo', measure)
    assert found.page(progress=False).count('<img') == 5
    assert len(walks) <= 6 and len(sizes) == 6 and max(sizes) <= 600
