"""Training as a person does it in a terminal: odd files, kills, Ctrl-C, several processes."""
import csv
import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import BIN, SMALL, run

from fruit_freshness.data import draw_broken, draw_sample

OPTIONS = ['--backbone', SMALL, '--no-copies']


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    return draw_sample(tmp_path_factory.mktemp('data')/'sample', count=200, size=96)


def history(folder) -> list[dict]:
    "What was learnt, without what depends on the clock"
    with open(folder/'history.csv') as file: return [{name: value for name, value in row.items() if name not in ('seconds', 'photos_per_second')} for row in csv.DictReader(file)]


def test_odd_files(tmp_path, small_weights):
    "200 good and 40 broken or odd files: trains, predicts, and every broken one is named with its reason"
    folder = draw_sample(tmp_path/'photos', count=200, size=96)
    odd = draw_broken(folder, count=40, size=96)
    done = run('fruit_train', '--data', folder, '--out', tmp_path/'run', *OPTIONS, '--weights', small_weights, '--epochs', '1')
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0 <= result['fruit']['accuracy'] <= 1 and 0 <= result['freshness']['accuracy'] <= 1
    broken = {str(file.path) for file in odd if not file.loads}
    with open(tmp_path/'run'/'set_aside.csv') as file: reasons = {row['path']: row['reason'] for row in csv.DictReader(file) if row['path'] in broken}
    assert set(reasons) == broken and all(reasons.values())
    assert all(path in done.stderr for path in broken)
    answers = run('fruit_predict', folder, '--model', tmp_path/'run')
    lines = [json.loads(line) for line in answers.stdout.splitlines()]
    assert answers.returncode == 1 and len(lines) == 240
    assert {line['source'] for line in lines if line['error']} == broken


def test_killed_and_resumed(tmp_path, sample, small_weights):
    "A run that is killed without warning goes on where it was and ends as one that was left alone"
    line = ['fruit_train', '--data', sample, *OPTIONS, '--weights', small_weights, '--epochs', '4']
    whole = run(*line, '--out', tmp_path/'whole')
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen([BIN/'fruit_train', *map(str, line[1:]), '--out', tmp_path/'killed'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (tmp_path/'killed'/'checkpoint').exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(.01)
    process.kill(); process.wait()
    resumed = run(*line, '--out', tmp_path/'killed', '--resume')
    assert resumed.returncode == 0, resumed.stderr
    assert history(tmp_path/'killed') == history(tmp_path/'whole')
    assert (tmp_path/'killed'/'model.safetensors').read_bytes() == (tmp_path/'whole'/'model.safetensors').read_bytes()


def test_ctrl_c(tmp_path, sample, small_weights):
    "Ctrl-C ends a run within a step, says how to go on, and keeps what was reached"
    line = [BIN/'fruit_train', '--data', sample, '--out', tmp_path/'run', *OPTIONS, '--weights', small_weights, '--epochs', '500']
    process = subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path/'run'/'checkpoint').exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and '--resume' in errors and 'Traceback' not in errors and output == ''
    epochs = len(history(tmp_path/'run'))
    resumed = run('fruit_train', *map(str, line[1:-1]), str(epochs + 1), '--resume')
    assert resumed.returncode == 0 and len(history(tmp_path/'run')) == epochs + 1, resumed.stderr


def test_two_processes(tmp_path, sample, small_weights):
    "Two processes under `accelerate launch` validate as one does: each photo once"
    line = ['--data', sample, *OPTIONS, '--weights', small_weights, '--epochs', '1']
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no',
              '--main_process_port', '0', BIN/'fruit_train']
    done = run(*launch, *line, '--out', tmp_path/'two')
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(done.stdout.strip().splitlines()[-1])
    with open(tmp_path/'two'/'split.csv') as file: validated = sum(row['side'] == 'valid' for row in csv.DictReader(file))
    assert sum(map(sum, two['fruit']['confusion'])) == validated
    row = history(tmp_path/'two')[0]
    assert float(row['valid_fruit_accuracy']) == pytest.approx(two['fruit']['accuracy'], abs=1e-3)


def test_reference_recipe(tmp_path):
    "The ResNet50 recipe runs with random weights given as a file, and says what to do where it can't download any"
    import torch
    from fruit_freshness.model import create_backbone
    torch.save(create_backbone('resnet50')[0].state_dict(), tmp_path/'random.pth')
    folder = draw_sample(tmp_path/'photos', count=48, size=96)
    done = run('fruit_train', '--data', folder, '--out', tmp_path/'run', '--weights', tmp_path/'random.pth', '--epochs', '1', '--no-copies')
    assert done.returncode == 0, done.stderr
    offline = run('fruit_train', '--data', folder, '--out', tmp_path/'none', env=dict(TORCH_HOME=str(tmp_path/'hub'), http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9'))
    assert offline.returncode == 1 and '--weights FILE' in offline.stderr and 'Traceback' not in offline.stderr
