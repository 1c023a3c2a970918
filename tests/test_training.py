"""Training as a person does it in a terminal: odd files, power cuts, Ctrl-C, several processes."""
import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import BIN, SMALL, run

from fruit_freshness.data import check_photos, draw_broken, draw_sample, find_photos
from fruit_freshness.model import load_model
from fruit_freshness.split import load_split
from fruit_freshness.train import TrainConfig, Trainer, score_photos, train_photos

KILLS = 20
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


class PowerCut:
    "Ends this process at some file operation or training step, and halves the files that the disk was never asked to keep"
    def __init__(self, out: Path, left: int): # operations and steps until it comes; never if negative
        self.out, self.left, self.kept = out, left, {facts.st_ino: facts.st_mtime_ns for facts in map(Path.stat, out.rglob('*'))}
        sync, step = os.fsync, Trainer.train_step
        def kept_sync(handle): sync(handle); self.kept[os.fstat(handle).st_ino] = os.fstat(handle).st_mtime_ns
        def ticking_step(*batch): self.tick(); return step(*batch)
        os.fsync, Trainer.train_step = kept_sync, ticking_step
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        if event in ('open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.link', 'shutil.rmtree') and str(arguments[0]).startswith(str(self.out)): self.tick()

    def tick(self):
        self.left -= 1
        if self.left: return
        for path in self.out.rglob('*'):
            if path.is_file() and self.kept.get(path.stat().st_ino) != path.stat().st_mtime_ns: os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def train_until(out: Path, sample: Path, weights: Path, left: int) -> None:
    "Begin a run or go on with it until the power fails"
    import torch
    torch.set_num_threads(1)
    cut = PowerCut(out, left)
    train_photos(TrainConfig(SMALL, str(weights), epochs=4, batch=8, copies=False), str(sample), out, resume=True)
    out.with_suffix('.operations').write_text(str(left - cut.left))


def test_twenty_power_cuts(tmp_path, small_weights):
    "A run that loses power at random moments, unwritten files included, ends each time as one that was left alone"
    context = multiprocessing.get_context('forkserver') # children of a process that has done its imports start at once
    context.set_forkserver_preload(['fruit_freshness.train', 'timm', 'torchvision', 'matplotlib.pyplot', 'sklearn.metrics', 'sklearn.model_selection', 'scipy.optimize'])
    sample, draw = draw_sample(tmp_path/'sample', count=36, size=64), random.Random(0)
    def start(out, left):
        process = context.Process(target=train_until, args=(out, sample, small_weights, left))
        process.start(); process.join(300)
        return process.exitcode
    assert start(tmp_path/'whole', -1) == 0
    operations, cuts, runs = int((tmp_path/'whole.operations').read_text()), 0, 0
    while cuts < KILLS:
        out, runs = tmp_path/f'run{runs}', runs + 1
        while ended := start(out, draw.randrange(1, operations // 2) if cuts < KILLS else -1):
            assert ended == -signal.SIGKILL, f'cut {cuts} of {out}'
            cuts += 1
        assert history(out) == history(tmp_path/'whole')
        for name in ('model.safetensors', 'config.json'): assert (out/name).read_bytes() == (tmp_path/'whole'/name).read_bytes()
    assert runs > 1


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


WRITES = """import os, sys
def hear(event, arguments):
    if event == 'open' and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR) and str(arguments[0]).startswith(os.environ['RUN'] + os.sep):
        with os.fdopen(os.open(os.environ['RUN'] + '.writes' + os.environ.get('RANK', ''), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 'a') as log: print(arguments[0], file=log)
sys.addaudithook(hear)
"""


def test_two_processes(tmp_path, small_weights):
    "Two processes under `accelerate launch` validate as one does, each photo once, and one of them writes the files"
    sample, out = draw_sample(tmp_path/'sample', count=81, size=96), tmp_path/'two'
    (tmp_path/'site').mkdir(); (tmp_path/'site'/'sitecustomize.py').write_text(WRITES)
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no',
              '--main_process_port', '0', BIN/'fruit_train']
    done = run(*launch, '--data', sample, *OPTIONS, '--weights', small_weights, '--epochs', '1', '--out', out,
               env=dict(ACCELERATE_USE_CPU='1', RUN=str(out), PYTHONPATH=os.pathsep.join([str(tmp_path/'site'), *filter(None, [os.environ.get('PYTHONPATH')])])))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out/'checkpoint'/'random_states_1.pkl').exists() # there were two; accelerate keeps the random numbers of each
    assert [path.name for path in tmp_path.glob('two.writes*')] == ['two.writes0']
    net, [row] = load_model(out), history(out)
    checked = check_photos(find_photos(sample).photos, net.config.normalisation.size, progress=False)
    split = load_split(out/'split.csv', checked.photos)
    assert len(split.valid) % 2 # with a photo less for one of the two
    one = score_photos(net, split.valid, store=checked.store, progress=False)
    for task, probs, truth in (('fruit', one.fruit_probs, one.fruit_truth), ('freshness', one.freshness_probs, one.freshness_truth)):
        assert float(row[f'valid_{task}_accuracy']) == pytest.approx((probs.argmax(1) == truth).mean(), abs=1e-6)
        assert float(row[f'valid_{task}_loss']) == pytest.approx(-np.log(probs[range(len(truth)), truth]).mean(), abs=1e-4)


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
