"""The commands as a shell sees them: help, exit statuses, one line of JSON an answer."""
import csv
import json
import os
import shutil
import subprocess

import pytest
from conftest import BIN, ROOT, SETTINGS, run
from hosts import model_hub, photo_host

from fruit_freshness.data import load_photo
from fruit_freshness.parts.sample import copy_photo, draw_photo


@pytest.mark.parametrize('name', sorted(line.split('=')[0] for line in SETTINGS['console_scripts'].split()))
def test_commands(name):
    "Every command explains itself, says its version, and exits with 2 when it is used wrongly"
    helped = run(name, '--help')
    assert run(name, '--version').stdout == f"{name} {SETTINGS['version']}\n"
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


@pytest.fixture
def strawberry(tmp_path):
    draw_photo('Strawberry', 'Fresh', 5).image.save(tmp_path/'strawberry.png')
    return tmp_path/'strawberry.png'


def at_a_terminal(*command, **options) -> str:
    "What a command shows to a person"
    ours, its = os.openpty()
    with subprocess.Popen([str(part) for part in command], stdout=its, stderr=subprocess.DEVNULL, **options):
        os.close(its)
        shown = b''
        while True:
            try: shown += (more := os.read(ours, 4096))
            except OSError: more = b'' # Linux says so when the other side is closed
            if not more: break
    os.close(ours)
    return shown.decode().replace('\r\n', '\n')


def test_formats(strawberry):
    "A table for people, lines for programs, and what was asked for wherever it goes"
    head, row = at_a_terminal(BIN/'fruit_predict', strawberry).splitlines()
    assert head.split()[:3] == ['photo', 'fruit', 'freshness'] and 'strawberry.png' in row and '%' in row
    assert json.loads(at_a_terminal(BIN/'fruit_predict', strawberry, '--format', 'json'))['source'] == str(strawberry)
    answer, = csv.DictReader(run('fruit_predict', strawberry, '--format', 'csv').stdout.splitlines())
    assert answer['source'] == str(strawberry) and answer['accepted'] in ('True', 'False') and answer['error'] == ''
    assert run('fruit_predict', strawberry, '--format', 'xml').returncode == 2


def test_list_on_stdin(strawberry):
    "Names of photos from another program, between others"
    done = run('fruit_predict', 'first.jpg', '-', 'last.jpg', input=f'{strawberry}\n\ngone.jpg\n', cwd=strawberry.parent)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer['source'] for answer in answers] == ['first.jpg', str(strawberry), 'gone.jpg', 'last.jpg']
    assert [bool(answer['error']) for answer in answers] == [True, False, True, True] and done.returncode == 1


def test_threshold(strawberry):
    "Whoever wants only the surest answers raises the threshold; at 0 confidence is no reason to abstain"
    reasons = [json.loads(run('fruit_predict', strawberry, '--threshold', threshold).stdout)['reason'] for threshold in (1.01, 0)]
    assert "can't tell" in reasons[0] and "can't tell" not in (reasons[1] or '')


def test_private_addresses():
    "The refusal names the option that allows it"
    with photo_host() as host:
        refused = run('fruit_predict', f'{host.address}/apple.jpg')
        assert refused.returncode == 1 and '--allow-private' in json.loads(refused.stdout)['error'] and host.seen == []
        assert run('fruit_predict', f'{host.address}/apple.jpg', '--allow-private').returncode == 0
        assert len(host.seen) == 1


def test_model_from_the_hub(tmp_path, strawberry):
    "A model is downloaded once; the second time it is asked whether that is the newest, and without a connection it answers, too"
    with model_hub(ROOT/'fruit_freshness'/'shipped') as (address, asked):
        environment = dict(HF_ENDPOINT=address, HF_HOME=str(tmp_path/'hub'))
        def predict(model='hf:owner/name'): return run('fruit_predict', strawberry, '--model', model, env=environment)
        first = predict()
        assert first.returncode == 0 and '/owner/name/resolve/' + '0' * 40 + '/model.safetensors' in asked, first.stderr
        del asked[:]
        assert predict().stdout == first.stdout and not [path for path in asked if '/resolve/' in path]
        missing = predict('hf:owner/other')
        assert missing.returncode == 1 and missing.stderr.startswith('fruit_predict: hf:owner/other: not loaded')
        assert len(missing.stderr.splitlines()) == 1
    assert predict().stdout == first.stdout == run('fruit_predict', strawberry).stdout
