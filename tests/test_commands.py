"""The commands as a shell sees them: help, exit statuses, one line of JSON an answer."""
import json
import shutil

import pytest
from conftest import SETTINGS, run

from fruit_freshness.data import load_photo
from fruit_freshness.parts.sample import copy_photo, draw_photo


@pytest.mark.parametrize('name', sorted(line.split('=')[0] for line in SETTINGS['console_scripts'].split()))
def test_commands(name):
    "Every command explains itself, and exits with 2 when it is used wrongly"
    helped = run(name, '--help')
    assert helped.returncode == 0 and 'usage' in helped.stdout, helped.stderr
    assert run(name, '--no-such-option').returncode == 2


def test_audit(tmp_path):
    "0: clean, 1: a test photo is a copy of a training photo, 2: wrong use; the TSV has a line a readable photo, whatever its name"
    for part, fruit, seed in (('train', 'Apple', 1), ('train', 'Banana', 2), ('test', 'Orange', 3)):
        folder = tmp_path/'data'/part/fruit/'Fresh'
        folder.mkdir(parents=True)
        draw_photo(fruit, 'Fresh', seed).image.save(folder/'with space, ünï and\nnewline.jpg')
    (tmp_path/'data'/'test'/'Orange'/'Fresh'/'broken.jpg').write_bytes(b'')
    clean = run('fruit_audit', tmp_path/'data', '--out', tmp_path/'groups.tsv')
    assert clean.returncode == 0, clean.stderr
    assert len((tmp_path/'groups.tsv').read_text().splitlines()) == 3 and len(json.loads(clean.stdout)['unreadable']) == 1
    source = next((tmp_path/'data'/'train'/'Apple'/'Fresh').iterdir())
    copy_photo(load_photo(source), 'rotated', 4).save(tmp_path/'data'/'test'/'Orange'/'Fresh'/'copy.jpg')
    leaking = run('fruit_audit', tmp_path/'data')
    report = json.loads(leaking.stdout)
    assert leaking.returncode == 1 and report['leakage']['test in train']['copies'] == 1 and len(report['label_conflicts']) == 1
    shutil.rmtree(tmp_path/'data')
    assert run('fruit_audit', tmp_path/'data').returncode == 2


def test_predict(tmp_path):
    "One line a photo, in order; a picture of the answers; 1 when a source could not be read"
    draw_photo('Strawberry', 'Fresh', 5).image.save(tmp_path/'strawberry.png')
    done = run('fruit_predict', tmp_path/'strawberry.png', 'http://127.0.0.1/private.jpg', '--picture', tmp_path/'answers.png')
    first, second = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert list(first) == 'source fruit freshness fruit_confidence freshness_confidence novelty accepted reason error'.split()
    assert first['error'] is None and 0 <= first['fruit_confidence'] <= 1 and 'private' in second['error']
    assert load_photo(tmp_path/'answers.png').width > 100
    assert run('fruit_predict', tmp_path/'strawberry.png').returncode == 0
