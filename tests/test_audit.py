"""`fruit_audit` on folders that are odd: names, sizes, rights, and thousands of copies of one photo."""
import json
import os
import shutil
import stat

import numpy as np
import pytest
from conftest import run
from PIL import Image

from fruit_freshness.data import draw_photo
from fruit_freshness.split import find_copies


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
    "Three hundred noised copies of one photo are one picture, found with few comparisons"
    from fruit_freshness import split
    pixels, rng, calls = np.asarray(draw_photo('Banana', 'Rotten', 2).image).astype(int), np.random.default_rng(0), []
    files = [tmp_path/f'{number}.png' for number in range(300)]
    for file in files: Image.fromarray((pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8)).save(file)
    compare = split.compare_photos
    monkeypatch.setattr(split, 'compare_photos', lambda *pair: calls.append(pair) or compare(*pair))
    found = find_copies(files, cache=tmp_path/'copies.sqlite', progress=False)
    assert set(found.groups) == {0} and len(found.links) == 299
    assert len(calls) < 20*300 # not every one of the 44,850 pairs
