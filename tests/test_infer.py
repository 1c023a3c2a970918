"""What the pages about answers leave out: a graph that can't be used, engines that differ, memory, and the widget without a browser."""
import contextlib
import io
import json
import os
import shutil
import weakref
from datetime import datetime, timezone
from unittest.mock import patch

import pytest
import torch
from hosts import jpeg, photo_host

from fruit_freshness.infer import FruitWidget, Prediction, Predictor, fruit_predict
from fruit_freshness.model import ModelError, load_model, save_model, shipped_model
from fruit_freshness.parts.sample import DRAWN_FRUITS, draw_photo


@pytest.fixture(scope='module')
def predictor(): return Predictor()


@pytest.fixture(scope='module')
def host():
    with photo_host() as host: yield host


@pytest.fixture
def large(tmp_path):
    "A JPEG that is decoded no finer than is needed"
    draw_photo('Apple', 'Rotten', 3, size=1600).image.save(tmp_path/'large.jpg')
    return tmp_path/'large.jpg'


def numbers(p): return [p.fruit_confidence, p.freshness_confidence, p.novelty]


# -- engines -----------------------------------------------------------------------------------------------------------

def test_other_weights(tmp_path, caplog):
    "A graph that was made for other weights is not used; torch answers, and a line says what to do"
    save_model(load_model(shipped_model()), tmp_path/'other')
    shutil.copy(shipped_model()/'graph.onnx', tmp_path/'other')
    assert Predictor(tmp_path/'other').graph is None
    assert 'made for other weights' in caplog.text and 'fruit_export --graph' in caplog.text


def test_gpu_that_fails():
    "ONNX Runtime says that there is a GPU and can't use it: the processor answers, with as many threads as were allowed"
    import onnxruntime
    asked, real = [], onnxruntime.InferenceSession
    def session(path, options, providers, **others):
        asked.append((providers[0], options.intra_op_num_threads))
        if len(providers) > 1: raise RuntimeError('no CUDA-capable device is detected')
        return real(path, options, providers=providers, **others)
    def with_gpu(): return ['CUDAExecutionProvider', 'CPUExecutionProvider']
    with patch.multiple('onnxruntime', InferenceSession=session, get_available_providers=with_gpu):
        assert Predictor(threads=1).device == 'cpu'
    assert asked == [(('CUDAExecutionProvider', dict(use_tf32='0')), 1), ('CPUExecutionProvider', 1)]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_one_answer(predictor, large, dtype):
    "A photo has one answer, from the graph or from torch, explained or not, whatever torch prefers for training"
    plain, photos = Predictor(device='cpu'), [draw_photo(fruit, 'Rotten', 3).image for fruit in DRAWN_FRUITS] + [large]
    fast = predictor.predict(photos)
    with patch('fruit_freshness.model.fast_dtype', lambda device: dtype):
        slow = plain.predict(photos)
        explained = [[e.prediction for e in engine.explain(photos)] for engine in (predictor, plain)]
    for answers, eps in ((slow, 1e-3), (explained[0], 2e-4)):
        for a, b in zip(fast, answers, strict=True):
            assert (a.source, a.fruit, a.freshness) == (b.source, b.fruit, b.freshness)
            assert numbers(a) == pytest.approx(numbers(b), abs=eps)
    for a, b in zip(slow, explained[1], strict=True): assert numbers(a) == pytest.approx(numbers(b), abs=2e-4)


def test_fetched_or_not(predictor, large, host):
    "A large photo has the answer of its file when it is fetched, and when it is uploaded to the widget"
    host.photos['/large.jpg'] = large.read_bytes()
    fetched, = Predictor(allow_private=True).predict(f'{host.address}/large.jpg')
    widget = FruitWidget(predictor)
    widget.uploader.value = (uploaded('large.jpg', large.read_bytes()),)
    assert numbers(fetched) == numbers(widget.answers[0]) == numbers(predictor.predict(large)[0])


# -- the command -------------------------------------------------------------------------------------------------------

def test_nothing_is_kept():
    "What was printed is forgotten, however many photos there are"
    printed, most = [], 0
    def many(self, sources, batch_size, progress):
        nonlocal most
        for _ in range(200):
            prediction = Prediction('apple.jpg', 'Apple', 'Fresh', .99, .93, .4, True)
            printed.append(weakref.ref(prediction))
            most = max(most, sum(ref() is not None for ref in printed))
            yield prediction
    with patch.object(Predictor, 'stream', many), contextlib.redirect_stdout(io.StringIO()): assert fruit_predict(['many']) == 0
    assert most <= 2


@pytest.mark.parametrize('name', [os.fsdecode(b'\xff.jpg'), 'Äpfel.jpg'])
def test_odd_names(name):
    "A file name that is no text is printed, too"
    out = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
    with patch('sys.stdout', out): assert fruit_predict([name]) == 1
    assert json.loads(out.buffer.getvalue())['source'] == name


def test_heat_without_torch(large, tmp_path):
    "Heat maps are torch's work: where it is missing the service answers 501, the command one line, and both say what to install"
    from fastapi.testclient import TestClient

    from fruit_freshness.apps.serve import Service, create_app
    missing = 'heat maps need torch: not installed; run: pip install "fruit_freshness[train]"'
    with patch.dict('sys.modules', torch=None), TestClient(create_app(Service(Predictor()))) as client:
        assert client.post('/predict', files=dict(files=large.read_bytes())).status_code == 200
        refused = client.post('/explain', files=dict(files=large.read_bytes()))
        with patch('sys.argv', ['fruit_predict', str(large), '--explain', str(tmp_path/'heat')]), contextlib.redirect_stderr(io.StringIO()) as said:
            assert fruit_predict.main() == 1
    assert (refused.status_code, refused.json()) == (501, dict(detail=missing))
    assert said.getvalue() == f'fruit_predict: {missing}\n'


# -- the widget, without a browser -------------------------------------------------------------------------------------

def uploaded(name, content): # an entry of `FileUpload.value` in ipywidgets 8
    return dict(name=name, type='image/jpeg', size=len(content), content=memoryview(content), last_modified=datetime.now(timezone.utc))


class SaysApple:
    "A predictor for whom everything is a rotten apple"
    fruits = ['Apple']

    def __init__(self, config): self.config = config

    def predict(self, sources, progress=False): return [Prediction('', 'Apple', 'Rotten', .98, .91, .1, True) for _ in sources]

    def heat(self, photos, predictions): raise ModelError("vit: makes no maps of a photo")


@pytest.fixture
def widget(predictor, host):
    widget = FruitWidget(SaysApple(predictor.config), allow_private=True)
    widget.commons = f'{host.address}/api.php'
    return widget


def newest(widget): return widget.cards.children[0]


def test_uploads(widget):
    "Two uploads, one of them broken"
    widget.uploader.value = (uploaded('mine.jpg', jpeg()), uploaded('broken.jpg', b'\xff\xd8 that was it'))
    assert widget.uploader.value == ()
    broken, mine = widget.cards.children
    assert mine.name == 'mine.jpg' and mine.answer['fruit'] == 'Apple' and mine.photo
    assert broken.name == 'broken.jpg' and broken.answer['error'] and not broken.photo
    assert '1 of 2 photos answered' in widget.status.value


def test_urls(widget, host):
    "A URL that fails stays in its field"
    widget.url.value = f'{host.address}/status/404'
    widget.go.click()
    assert 'does not exist (HTTP 404)' in newest(widget).answer['error'] and widget.url.value == f'{host.address}/status/404'
    widget.url.value = f'{host.address}/apple.jpg'
    widget.go.click()
    assert newest(widget).answer['fruit'] == 'Apple' and widget.url.value == ''


def test_example_and_camera(widget):
    widget.example.click()
    assert newest(widget).name == 'a drawn rotten apple'
    widget.camera._handle_custom_msg({}, [jpeg()])
    assert newest(widget).name == 'camera photo 1'
    widget.camera._handle_custom_msg({'trouble': 'The camera is in use.'}, [])
    assert 'The camera is in use.' in widget.status.value and not widget.camera.disabled


def test_found_table_clear(widget, host):
    widget.found.click()
    assert newest(widget).name == 'An apple.jpg (Jane Doe, CC BY-SA 4.0, Wikimedia Commons)'
    widget.answers.append(Prediction('=1+1.jpg', error='gone'))
    widget.save.click()
    lines = widget.table.value.splitlines()
    assert len(lines) == 3 and lines[2].startswith("'=1+1.jpg") # never a formula
    assert 'save answers.csv' in widget.status.value
    widget.commons = f'{host.address}/status/503'
    widget.found.click()
    assert 'No photo from the internet' in widget.status.value and not widget.found.disabled
    widget.clear.click()
    assert widget.cards.children == () and widget.answers == []


def test_local_addresses_and_passwords(predictor, host):
    "Local addresses are refused in words that hold for whoever pasted them; a password is shown nowhere"
    widget = FruitWidget(SaysApple(predictor.config))
    widget.url.value = f'{host.address}/apple.jpg'
    widget.go.click()
    assert 'leads to a local or private address' in newest(widget).answer['error'] and 'allow_private' not in newest(widget).answer['error']
    widget.url.value = 'https://me:secret@example.org/a.jpg'
    widget.go.click()
    widget.save.click()
    assert 'secret' not in str(newest(widget).get_state()) + widget.table.value


def test_no_heat(widget):
    "A network without maps: the status line says so, and the card keeps its answer"
    widget.heat.value = True
    widget.example.click()
    assert 'makes no maps' in widget.status.value and not widget.example.disabled
    assert newest(widget).answer['fruit'] == 'Apple' and newest(widget).heats == {}


def test_heat(predictor):
    "The toggle gives every card its maps, those before as those after"
    widget = FruitWidget(predictor)
    widget.example.click()
    assert newest(widget).heats == {}
    widget.heat.value = True
    widget.example.click()
    assert [len(card.heats) for card in widget.cards.children] == [2, 2]
    widget.heat.value = False
    assert 'fruit-cool' in widget.cards._dom_classes
