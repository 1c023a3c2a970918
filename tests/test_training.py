"""Training as a person does it in a terminal: odd files, power cuts, Ctrl-C, several processes."""
import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import BIN, ROOT, SMALL, run
from odd_files import draw_broken

from fruit_freshness.data import check_photos, find_photos
from fruit_freshness.model import FruitNet, ModelConfig, autocast, create_model, load_model, multitask_loss
from fruit_freshness.parts.backbones import (
    ModelError,
    backbone_stages,
    create_backbone,
    freeze_backbone,
    speed_up,
)
from fruit_freshness.parts.core import DataError
from fruit_freshness.parts.evaluate import calibrate, score_photos
from fruit_freshness.parts.sample import draw_sample
from fruit_freshness.split import group_photos, load_split, split_photos
from fruit_freshness.train import Progress, TrainConfig, Trainer, train_photos

KILLS = 20
OPTIONS = ['--backbone', SMALL, '--no-copies']
PATHS = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])) # for scripts that lie elsewhere


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
    torch.set_num_threads(1)
    cut = PowerCut(out, left)
    train_photos(TrainConfig(SMALL, str(weights), epochs=4, batch_size=8, copies=False), str(sample), out, resume=True)
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


TWO = """import os, sys, time
from datetime import timedelta
from dataclasses import replace
import torch.distributed.distributed_c10d as group
group.default_pg_timeout = timedelta(seconds=2) # unless a process asks for another
from fruit_freshness import train
main, runs = os.environ['RANK'] == '0', os.path.join(os.getcwd(), 'runs') + os.sep

def hear(event, arguments):
    if event == 'open' and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR) and os.path.abspath(str(arguments[0])).startswith(runs):
        with open('writes' + os.environ['RANK'], 'a') as log: print(arguments[0], file=log)
sys.addaudithook(hear)

name_of_now, search, split_photos = time.strftime, train.group_photos, train.split_photos
def late_name(form, *when): return name_of_now(form, *when) if main else name_of_now(form, time.localtime(time.time() + 3)) # a clock that is ahead
def long_search(*photos, **options): time.sleep(main * 6); return search(*photos, **options)
def odd_split(*photos, **options):
    split = split_photos(*photos, **options)
    return split if len(split.valid) % 2 else replace(split, rows=[row for row in split.rows if row.photo != split.valid[0]])
train.time.strftime, train.group_photos, train.split_photos = late_name, long_search, odd_split
sys.exit(train.fruit_train.main())
"""


def test_two_processes(tmp_path, small_weights, monkeypatch):
    """Two processes under `accelerate launch` validate as one does, each photo once, in float32; one of them writes the files, into one folder, though their clocks differ;
    the other waits for its search for copies for longer than torch would by itself"""
    monkeypatch.setenv('FRUIT_DTYPE', 'float32')
    sample = draw_sample(tmp_path/'sample', count=81, size=96)
    (tmp_path/'two.py').write_text(TWO)
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no',
              '--main_process_port', '0', tmp_path/'two.py']
    done = run(*launch, '--data', sample, *OPTIONS, '--weights', small_weights, '--epochs', '1', cwd=tmp_path, env=dict(ACCELERATE_USE_CPU='1', PYTHONPATH=PATHS))
    assert done.returncode == 0, done.stderr[-3000:]
    [out] = (tmp_path/'runs').iterdir()
    assert (out/'checkpoint'/'random_states_1.pkl').exists() # there were two; accelerate keeps the random numbers of each
    assert [path.name for path in tmp_path.glob('writes*')] == ['writes0']
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
    torch.save(create_backbone('resnet50')[0].state_dict(), tmp_path/'random.pth')
    folder = draw_sample(tmp_path/'photos', count=48, size=96)
    done = run('fruit_train', '--data', folder, '--out', tmp_path/'run', '--weights', tmp_path/'random.pth', '--epochs', '1', '--no-copies')
    assert done.returncode == 0, done.stderr
    offline = run('fruit_train', '--data', folder, '--out', tmp_path/'none', env=dict(TORCH_HOME=str(tmp_path/'hub'), http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9'))
    assert offline.returncode == 1 and '--weights FILE' in offline.stderr and 'Traceback' not in offline.stderr


FAMILIES = dict(alexnet=64, convnext_tiny=64, densenet121=64, efficientnet_b0=64, googlenet=64, inception_v3=96, maxvit_t=224, mnasnet0_5=64, mobilenet_v2=64,
                mobilenet_v3_small=64, regnet_x_400mf=64, resnet18=64, shufflenet_v2_x0_5=64, squeezenet1_1=64, swin_t=64, swin_v2_t=64, vgg11_bn=64,
                vit_b_32=224) # torchvision's, with pixels a side; below a small one of each kind of timm's
FAMILIES |= {f'timm/{name}': 160 for name in ('test_byobnet', 'test_convnext', 'test_efficientnet', 'test_efficientnet_gn', 'test_mambaout', 'test_maxvit', 'test_nfnet', 'test_resnet',
                                              'test_vit')} | {'timm/levit_128s': 224}


def one_step(net: FruitNet, images, rate: float=.01) -> float:
    "A step of plain gradient descent on made-up labels; the loss before it"
    labels = torch.arange(len(images))
    with autocast('cpu'): logits = net(images)
    loss = sum(multitask_loss(logits, labels % len(net.config.fruits), labels % 2))
    loss.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None: parameter -= rate * parameter.grad
    return loss.item()


def small_net(backbone: str, size: int) -> FruitNet:
    "A network for three fruits with random weights, ready to learn as `Trainer` makes it ready"
    torch.manual_seed(0)
    body, normalisation = create_backbone(backbone)
    net = FruitNet(ModelConfig(['Apple', 'Kiwi', 'Pear'], backbone, replace(normalisation, size=size)), body)
    freeze_backbone(net); speed_up(net)
    return net


@pytest.mark.parametrize('backbone', FAMILIES)
def test_families(backbone, monkeypatch):
    "One step in float32 changes the last stage of each family of backbones, and nothing before it"
    monkeypatch.setenv('FRUIT_DTYPE', 'float32')
    size = FAMILIES[backbone]
    net = small_net(backbone, size)
    last, *others = backbone_stages(net.backbone, size)
    frozen = [value for stage in others for _, block in stage for value in block.state_dict().values()]
    sums = [value.double().sum() for value in frozen]
    before = [parameter.detach().clone() for _, block in last for parameter in block.parameters()]
    assert frozen and np.isfinite(one_step(net.train(), torch.randn(3, 3, size, size)))
    assert all(value.double().sum() == then for value, then in zip(frozen, sums))
    after = [parameter for _, block in last for parameter in block.parameters()]
    assert any(not torch.equal(*pair) for pair in zip(before, after)) and all(parameter.isfinite().all() for parameter in after)
    if backbone == 'vit_b_32': assert sum(value.numel() for value in before) < .3 * sum(value.numel() for value in frozen) # not its whole encoder


@pytest.mark.parametrize('backbone', ['timm/tf_efficientnet_lite0.in1k', 'resnet18'])
def test_gradients_in_bfloat16(backbone, monkeypatch):
    "bfloat16 gives the loss of float32 to a hundredth and much the same gradient (other images: cosine 0 to 0.03), which stays float32 as the weights do"
    found = {}
    for dtype in ('float32', 'bfloat16'):
        monkeypatch.setenv('FRUIT_DTYPE', dtype)
        net, seen = small_net(backbone, 96).train(), []
        for part in net.modules(): # two precisions draw different numbers for dropout
            if isinstance(part, torch.nn.Dropout): part.p = 0.
        net.fruit_head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        loss = one_step(net, torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(1)), rate=0)
        gradients = torch.cat([parameter.grad.flatten() for parameter in net.parameters() if parameter.grad is not None])
        assert seen == [getattr(torch, dtype)] and gradients.dtype == torch.float32
        found[dtype] = loss, gradients
    (loss, gradients), (half_loss, half_gradients) = found.values()
    assert half_loss == pytest.approx(loss, rel=.01)
    assert torch.nn.functional.cosine_similarity(gradients, half_gradients, dim=0) > .8 # 0.86 and 0.97


def test_whole_runs_in_both_precisions(tmp_path, small_weights):
    "A whole run learns the same in float32 and in bfloat16, to a tenth of the loss"
    sample, losses = draw_sample(tmp_path/'sample', count=80, size=96), {}
    for dtype in ('float32', 'bfloat16'):
        done = run('fruit_train', '--data', sample, '--out', tmp_path/dtype, *OPTIONS, '--weights', small_weights, '--epochs', '2', env=dict(FRUIT_DTYPE=dtype))
        assert done.returncode == 0, done.stderr[-3000:]
        losses[dtype] = [float(row[f'{side}_{task}_loss']) for row in history(tmp_path/dtype) for side in ('train', 'valid') for task in ('fruit', 'freshness')]
    assert losses['bfloat16'] == pytest.approx(losses['float32'], rel=.1) and losses['bfloat16'] != losses['float32']


def test_lost_loss(tmp_path, small_weights):
    "Weights so large that all overflows end a run with one sentence that names the step and the ways on"
    large = {name: value * 1e30 if value.is_floating_point() else value for name, value in torch.load(small_weights).items()}
    torch.save(large, tmp_path/'large.pth')
    sample = draw_sample(tmp_path/'sample', count=48, size=96)
    done = run('fruit_train', '--data', sample, '--out', tmp_path/'run', *OPTIONS, '--weights', tmp_path/'large.pth', '--epochs', '1')
    assert done.returncode == 1 and 'epoch 1, step 1: the loss is not a number' in done.stderr and '--weights FILE' in done.stderr, done.stderr[-3000:]
    assert 'Traceback' not in done.stderr and 'not a model folder' not in done.stderr


def small_trainer(sample, out) -> Trainer:
    "A trainer of a very small network with random weights, in float32 pixels of 96 a side"
    torch.manual_seed(1)
    net = create_model(['Apple', 'Banana', 'Orange', 'Strawberry'], SMALL, pretrained=False)
    net.config.normalisation = replace(net.config.normalisation, size=96)
    checked = check_photos(find_photos(sample).photos, 96, progress=False)
    net = FruitNet(replace(net.config, fruits=sorted({photo.fruit for photo in checked.photos})), net.backbone)
    split = split_photos(group_photos(checked.photos, copies=False))
    return Trainer(net, split, TrainConfig(SMALL, epochs=3, lr=3e-4), out, checked.store, progress=False)


READS = 'item', 'tolist', 'cpu', 'numpy', '__float__', '__int__', '__bool__'


def waits(work) -> list[str]:
    "What in `work` would wait for a graphics card: numbers read from tensors, and tensors made on a device from Python's numbers"
    seen = []
    def noted(name, usual):
        def call(*values, **options):
            if name in READS or 'device' in options: seen.append(name)
            return usual(*values, **options)
        return call
    with ExitStack() as patches:
        for place, name in [*((torch.Tensor, name) for name in READS), (torch, 'tensor')]:
            patches.enter_context(mock.patch.object(place, name, noted(name, getattr(place, name))))
        work()
    return seen


def test_waits_for_the_device(sample, tmp_path):
    "However many steps an epoch has, it waits for a graphics card equally often"
    trainer = small_trainer(sample, tmp_path)
    batch = next(iter(trainer.train_loader))
    trainer.unfreeze()
    def epoch_of(steps):
        trainer.train_loader, trainer.state = [batch] * steps, Progress()
        return waits(lambda: trainer.train_epoch(threading.Event()))
    assert epoch_of(steps=20) == epoch_of(steps=1)


def test_processes_agree_rarely():
    "Several processes agree on a stop every ten steps, because agreeing means waiting for each other"
    agreed = []
    two = SimpleNamespace(num_processes=2, set_trigger=lambda: None, check_trigger=lambda: agreed.append(1))
    for step in range(100): Trainer.asked_to_stop(SimpleNamespace(accelerator=two, state=Progress(step=step)), threading.Event())
    assert len(agreed) == 10


def test_wild_learning_rate(sample, tmp_path):
    "A learning rate that is far too high is reported with its step and an option that exists, and the last checkpoint stays"
    wild = small_trainer(sample, tmp_path)
    wild.train_epoch(threading.Event()); wild.finish_epoch(); wild.save_checkpoint()
    for group in wild.optimiser.param_groups: group['lr'] = 1e30
    with pytest.raises(ModelError, match='epoch 2, step 2: the loss is not a number.*--lr 3e-05'): wild.fit()
    assert json.loads((tmp_path/'checkpoint'/'progress.json').read_text())['epoch'] == 1


def test_every_field_has_its_option():
    "The command takes each field of the recipe by its own name, and help says what it does"
    shown = run('fruit_train', '--help').stdout
    for field in fields(TrainConfig): assert f"--{'no-' * (field.default is True)}{field.name.replace('_', '-')}" in shown
    assert 'photos a step, over all processes' in shown and 'do not look in the pixels' in shown


def test_another_recipe_is_named_by_its_options(tmp_path, small_weights, sample):
    "A run folder that was begun otherwise says with which options; the fields' earlier names are understood"
    begun = dict(data=str(sample), backbone=SMALL, weights=str(small_weights), batch=8, copies=False, weigh_classes=True, valid=.25)
    (tmp_path/'run.json').write_text(json.dumps(begun))
    def resume(**recipe): train_photos(TrainConfig(SMALL, str(small_weights), **recipe), str(sample), tmp_path, resume=True)
    words = 'was begun --batch-size 8, --valid-share 0.25, --no-copies, --class-weights; resume it so'
    with pytest.raises(DataError, match=words): resume()
    with pytest.raises(DataError, match='was begun --class-weights;'): resume(batch_size=8, valid_share=.25, copies=False)


def test_find_lr(tmp_path, small_weights, sample):
    "`--find-lr` saves its plot, names a rate, and leaves the folder free for a run"
    line = ['fruit_train', '--data', sample, '--out', tmp_path/'run', *OPTIONS, '--weights', small_weights, '--batch-size', '16']
    found = run(*line, '--find-lr')
    assert found.returncode == 0, found.stderr[-3000:]
    result = json.loads(found.stdout.splitlines()[-1])
    assert Path(result['plot']).exists() and 0 < result['lr'] < 1 and f"--lr {result['lr']:g}" in found.stderr
    done = run(*line, '--lr', str(result['lr']), '--epochs', '1')
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path/'run'/'run.json').read_text())['lr'] == result['lr']


def test_test_share(tmp_path, small_weights, sample):
    "A test part is reported on and chooses nothing: without it the same network has the same temperatures and thresholds"
    line = ['fruit_train', '--data', sample, '--out', tmp_path/'run', *OPTIONS, '--weights', small_weights, '--epochs', '1']
    done = run(*line, '--test-share', '.2')
    assert done.returncode == 0, done.stderr[-3000:]
    result, checked = json.loads(done.stdout.splitlines()[-1]), check_photos(find_photos(sample).photos, 96, progress=False)
    split = load_split(tmp_path/'run'/'split.csv', checked.photos)
    assert result['side'] == 'test' and result['n'] == len(split.side('test')) > 0
    card = (tmp_path/'run'/'README.md').read_text()
    assert f'{len(split.valid)} validation photos chose the epoch' in card and f"the {result['n']} test photos, which chose nothing" in card
    net = load_model(tmp_path/'run')
    before = net.config.fruit_temperature, net.config.freshness_temperature, net.config.novelty_threshold, net.config.confidence_threshold
    without = replace(split, rows=[row for row in split.rows if row.side != 'test'])
    calibrate(net, without, checked_at(sample, net), progress=False)
    after = net.config.fruit_temperature, net.config.freshness_temperature, net.config.novelty_threshold, net.config.confidence_threshold
    assert after == pytest.approx(before, rel=1e-3)


def checked_at(sample, net):
    "The sample's pixels as the network wants them"
    return check_photos(find_photos(sample).photos, net.config.normalisation.size, progress=False).store
