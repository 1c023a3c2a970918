"""Make the network that the package carries: teach a trained one to expect other cameras, lights and backgrounds

`fruit_train` has made a run folder; this goes on from it. Every picture counts once however many copies of it there are, and is seen in views that a person
would still call the same: turned with any colour in the corners, cut out and put on paper, wood, cloth or stone, alone or in a heap, in another light, in another
hue, out of focus, compressed, partly hidden. Now and then decay is painted on a fresh fruit, which is rotten then. The weights are averaged
over the steps, and the network ends half-way between what it was and that average: as good as before on photos like those of its training, better on others."""
from __future__ import annotations
import os, re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import cv2, numpy as np, torch
import torch.nn.functional as F
from fastcore.script import call_parse
from torch import Tensor, nn

from fruit_freshness import model
from fruit_freshness.apps.export import write_graph
from fruit_freshness.parts.core import FRESHNESS, progress_bar
from fruit_freshness.data import Photo, PhotoStore, check_photos, find_photos
from fruit_freshness.parts.sample import draw_background, cloud_noise
from fruit_freshness.model import FruitNet, fit_novelty, load_model, save_model
from fruit_freshness.split import load_split
from fruit_freshness.parts.evaluate import (Scored, backbone_features, crossfit, fit_calibration,
                                            metrics_table, report, score_photos)

FAMILIES = dict(light=.36, ground=.36, mild=.1, hue=.1, decay=.08) # kinds of views and how often each is drawn
SIDE = 224 # pixels of a view

def named_freshness(
    photo: Photo, # labelled by its folder
) -> Photo: # labelled by its own name where that speaks: `RottenStrawberry (24).jpg` in a folder of fresh ones is rotten, and looks it
    "Trust a photo's own name more than its folder's"
    said = re.match(r'(Fresh|Rotten)(?=[A-Z])', photo.path.name)
    return replace(photo, freshness=said[1]) if said else photo

def fruit_mask(
    pixels: np.ndarray, # `(height, width, 3) uint8`
) -> np.ndarray | None: # `(height, width) float32` in 0..1; None if fruit and background can't be told apart
    "Where the fruit is, in a photo with a plain background: what does not hang together with the border"
    small = cv2.resize(pixels, (144, 144), interpolation=cv2.INTER_AREA)
    hsv, lab = cv2.cvtColor(small, cv2.COLOR_RGB2HSV), cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    border = np.concatenate([part.reshape(-1, 3) for part in (lab[:3], lab[-3:], lab[:, :3], lab[:, -3:])])
    near = (np.abs(lab - np.median(border, 0)) * [.5, 1, 1]).sum(2) < 22
    plain = ((hsv[..., 2] > 190) & (hsv[..., 1] < 45)) | (small.max(2) < 14) | near
    _, parts = cv2.connectedComponents(cv2.morphologyEx(plain.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), connectivity=4)
    outside = np.setdiff1d(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]), 0)
    fruit = cv2.morphologyEx((~np.isin(parts, outside)).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    if not .05 < fruit.mean() < .85 or np.concatenate([fruit[0], fruit[-1], fruit[:, 0], fruit[:, -1]]).mean() > .3: return None
    return cv2.GaussianBlur(cv2.resize(cv2.erode(fruit, np.ones((3, 3), np.uint8)).astype(np.float32), pixels.shape[1::-1]), (0, 0), 1.5)

def fit_view(pixels: np.ndarray) -> np.ndarray: return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA) # to `(SIDE, SIDE, 3)`

def ground(
    rng: np.random.Generator, # source of chance
) -> np.ndarray: # `(SIDE, SIDE, 3) float32` in 0..255
    "Paper, a drawn table, or colours that mean nothing"
    kind, tone = rng.random(), rng.uniform(0, 255, (2, 3))
    if kind < .4: return ((1 + .1 * cloud_noise(rng, SIDE, 2, octaves=2))[..., None] * rng.uniform(175, 252) * np.array([1, rng.uniform(.95, 1), rng.uniform(.88, 1.02)])).clip(0, 255)
    if kind < .7: return (draw_background(rng, SIDE).transpose(1, 2, 0).clip(0, 1) * 255).astype(np.float32)
    place = np.linspace(0, 1, SIDE)[:, None, None] * (kind < .85)
    return ((tone[0] * (1 - place) + tone[1] * place) * np.ones((1, SIDE, 1)) + rng.uniform(0, 40) * cloud_noise(rng, SIDE, 6)[..., None]).clip(0, 255)

def turn(
    rng: np.random.Generator, # source of chance
    pixels: np.ndarray, # `(SIDE, SIDE, 3) uint8`
) -> np.ndarray: # the same, turned, stretched and shifted
    "Corners come out black, white, coloured or mirrored, whatever the fruit: they must mean nothing"
    matrix, stretch = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), rng.uniform(-180, 180), rng.uniform(.85, 1.2)), np.exp(rng.uniform(-.2, .2))
    matrix[0] *= stretch
    matrix[:, 2] += rng.uniform(-.08, .08, 2) * SIDE + (SIDE / 2 * (1 - stretch), 0)
    corner = [(0, 0, 0), (0, 0, 0), (255, 255, 255), tuple(int(value) for value in rng.integers(0, 256, 3))][rng.integers(4)]
    mode = dict(borderMode=cv2.BORDER_CONSTANT, borderValue=corner) if rng.random() < .6 else dict(borderMode=cv2.BORDER_REFLECT_101)
    return cv2.warpAffine(pixels, matrix, (SIDE, SIDE), **mode)

def relight(
    rng: np.random.Generator, # source of chance
    pixels: np.ndarray, # `(SIDE, SIDE, 3) uint8`
    strength: float, # 0: as it was
    hue: float, # largest turn of the colour circle, 0.5: any hue
) -> np.ndarray: # the same in another light
    "Exposure, contrast, colour of the light, saturation and hue"
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + int(rng.uniform(-hue, hue) * 180)) % 180
    tone = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.normal(0, .25 * strength)) * np.exp(rng.normal(0, .15 * strength) + rng.normal(0, .08 * strength, 3))
    middle, saturation = pixels.mean() / 255, np.exp(rng.normal(0, .3 * strength))
    tone = (tone - middle) * np.exp(rng.normal(0, .2 * strength)) + middle
    pixels = cv2.LUT(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), (tone * 255).clip(0, 255).astype(np.uint8)[None])
    return cv2.transform(pixels, np.eye(3) * saturation + (1 - saturation) / 3)

def roughen(
    rng: np.random.Generator, # source of chance
    pixels: np.ndarray, # `(SIDE, SIDE, 3) uint8`
) -> np.ndarray: # the same from a worse camera
    "Out of focus or too sharp, grainy, speckled, compressed, partly hidden"
    if rng.random() < .3: pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(.4, 1.8))
    elif rng.random() < .2: pixels = cv2.addWeighted(pixels, 2, cv2.GaussianBlur(pixels, (0, 0), 2), -1, 0)
    if rng.random() < .3: pixels = (pixels + rng.standard_normal(pixels.shape) * rng.uniform(2, 12)).clip(0, 255).astype(np.uint8)
    if rng.random() < .08:
        speck, share = rng.random(pixels.shape[:2]), rng.uniform(.005, .03)
        pixels = pixels * (speck > share)[..., None].astype(np.uint8); pixels[speck > 1 - share] = 255
    if rng.random() < .2:
        (top, left), (height, width) = rng.integers(0, 2 * SIDE // 3, 2), rng.integers(SIDE // 10, SIDE // 3, 2)
        pixels = pixels.copy(); pixels[top:top + height, left:left + width] = rng.integers(0, 256, 3)
    if rng.random() < .3: pixels = cv2.imdecode(cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 85))])[1], 1)
    return pixels

def paste(
    rng: np.random.Generator, # source of chance
    base: np.ndarray, # `(SIDE, SIDE, 3) float`
    pixels: np.ndarray, # `(SIDE, SIDE, 3) uint8`
    mask: np.ndarray, # `(SIDE, SIDE)` in 0..1
    scale: float, # size of the fruit, 1: as it was
    centre: np.ndarray, # `(2,)` across and down, pixels
) -> np.ndarray: # like `base`
    "Put a fruit and its shadow on a background"
    down, across = np.argwhere(mask > .5).mean(0) if (mask > .5).any() else (SIDE / 2, SIDE / 2)
    matrix = cv2.getRotationMatrix2D((float(across), float(down)), rng.uniform(-180, 180), scale)
    matrix[:, 2] += centre - [across, down]
    alpha, fruit = cv2.warpAffine(mask, matrix, (SIDE, SIDE))[..., None], cv2.warpAffine(pixels, matrix, (SIDE, SIDE)).astype(np.float32)
    shadow = cv2.warpAffine(cv2.GaussianBlur(alpha, (0, 0), rng.uniform(4, 14)), np.array([[1, 0, rng.uniform(-12, 12)], [0, 1, rng.uniform(-12, 12)]]), (SIDE, SIDE))
    return base * (1 - rng.uniform(0, .5) * shadow[..., None]) * (1 - alpha) + fruit * alpha

def scene(
    rng: np.random.Generator, # source of chance
    pixels: np.ndarray, # `(SIDE, SIDE, 3) uint8`
    mask: np.ndarray, # `(SIDE, SIDE)` in 0..1
) -> np.ndarray: # `(SIDE, SIDE, 3) uint8`
    "The fruit on another background, alone or in a heap of its like"
    base, count = ground(rng), 1 if rng.random() < .6 else int(rng.integers(2, 8))
    for _ in range(count):
        scale, spread = (rng.uniform(.45, 1.15), .12) if count == 1 else (rng.uniform(.75, 1.4) / np.sqrt(count), .35)
        base = paste(rng, base, pixels, mask, scale, SIDE * (.5 + rng.uniform(-spread, spread, 2)))
    return base.clip(0, 255).astype(np.uint8)

DECAY = dict(brown=((110, 70, 40), (.18, .5), (1, 4)), spots=((60, 35, 20), (.02, .09), (6, 40)), # colour, size as a share of the fruit's, how many
             white=((225, 225, 215), (.2, .5), (1, 3)), green=((120, 140, 120), (.2, .5), (1, 3)), grey=((75, 80, 70), (.2, .5), (1, 3)))

def spoil(
    rng: np.random.Generator, # source of chance
    pixels: np.ndarray, # `(SIDE, SIDE, 3) uint8`
    mask: np.ndarray, # `(SIDE, SIDE)` in 0..1
) -> np.ndarray: # `(SIDE, SIDE, 3) uint8`
    "Paint brown areas, spots or mould on a fresh fruit"
    colour, sizes, counts = DECAY[rng.choice(list(DECAY))]
    (down, across), inside, picture, edge = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32), np.argwhere(mask > .6), pixels.astype(np.float32), .35 * cloud_noise(rng, SIDE, 4)
    for _ in range(rng.integers(*counts)):
        place, radius = inside[rng.integers(len(inside))], np.sqrt(mask.mean()) * SIDE * rng.uniform(*sizes)
        away = np.hypot(down - place[0], across - place[1]) / radius - 1 + edge
        patch = (mask * rng.uniform(.6, 1) / (1 + np.exp((away * rng.uniform(5, 18)).clip(-30, 30))))[..., None]
        picture += (np.array(colour) * rng.uniform(.6, 1.2) * (1 + .15 * cloud_noise(rng, SIDE, 12))[..., None] - picture) * patch
    return picture.clip(0, 255).astype(np.uint8)

def make_view(
    rng: np.random.Generator, # source of chance
    pixels: np.ndarray, # `(height, width, 3) uint8`
    family: str, # one of `FAMILIES`
) -> np.ndarray | None: # `(SIDE, SIDE, 3) uint8`; None if the fruit has to be cut out for it and can't be
    "One photo as another camera might have taken it"
    if rng.random() < .6 and family in ('light', 'hue'):
        height, width = (np.array(pixels.shape[:2]) * rng.uniform(.55, 1, 2)).astype(int)
        top, left = rng.integers(0, pixels.shape[0] - height + 1), rng.integers(0, pixels.shape[1] - width + 1)
        pixels = pixels[top:top + height, left:left + width]
    pixels = np.ascontiguousarray(fit_view(pixels)[:, ::rng.choice([-1, 1])])
    if family in ('ground', 'decay'):
        if (mask := fruit_mask(pixels)) is None or not (mask > .6).any(): return None
        if family == 'decay': pixels = spoil(rng, pixels, mask)
        if family == 'ground' or rng.random() < .5: pixels = scene(rng, pixels, mask)
    if rng.random() < .7: pixels = turn(rng, pixels)
    if family == 'hue' and rng.random() < .5: pixels = np.ascontiguousarray(pixels[..., rng.permutation(3)])
    return roughen(rng, relight(rng, pixels, .3 if family == 'mild' else .8, .5 if family == 'hue' else .03))

def draw_batch(
    rng: np.random.Generator, # source of chance
    pictures: Sequence[Sequence[Photo]], # the photos of each picture
    chances: np.ndarray, # `(pictures,)`, how often each is drawn
    store: PhotoStore, # decoded photos
    net: FruitNet, # whose input they become
    size: int, # views
) -> tuple[Tensor, Tensor, Tensor, Tensor]: # images `(size, 3, SIDE, SIDE) float32`, fruits and freshness `(size,) int64`, and how much each fruit counts `(size,) float32`
    "Views of pictures drawn at random"
    views, fruits, freshness, counts = [], [], [], []
    while len(views) < size:
        photos, family = pictures[rng.choice(len(pictures), p=chances)], rng.choice(list(FAMILIES), p=list(FAMILIES.values()))
        original = np.array([3. if photo.path.name == min((photo.path.name for photo in photos), key=len) else 1. for photo in photos])
        photo = photos[rng.choice(len(photos), p=original / original.sum())]
        if family == 'decay' and photo.freshness == 'Rotten' or (view := make_view(rng, store[photo.path], family)) is None: continue
        views.append(view); fruits.append(net.config.fruits.index(photo.fruit)); counts.append(.2 if family == 'hue' else 1.)
        freshness.append(FRESHNESS.index('Rotten' if family == 'decay' else photo.freshness))
    images = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (net.config.normalisation.mean, net.config.normalisation.std))
    return (images - mean) / std, torch.tensor(fruits), torch.tensor(freshness), torch.tensor(counts)

def draw_ahead(
    steps: int, # batches
    seed: int, # of all views
    *what, # as `draw_batch` takes it
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]: # as `draw_batch` returns them
    "Draw batches while the network learns from earlier ones; each has its own source of chance, so that their order changes nothing"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = deque()
        for step in range(steps + 4):
            if step < steps: waiting.append(pool.submit(draw_batch, np.random.default_rng([seed, step]), *what))
            if step >= 4: yield waiting.popleft().result()

def harden(
    net: FruitNet, # trained; its last stage and its heads go on learning
    pictures: Sequence[Sequence[Photo]], # training photos by picture
    store: PhotoStore, # decoded photos
    steps: int=200, # batches
    batch: int=64, # views a batch
    lr: float=2e-4, # highest learning rate of the backbone's last stage; the heads' is four times as high
    seed: int=0, # of the views
) -> FruitNet: # half-way between what it was and the average of its weights over the steps
    "Train on views, average the weights over the steps (Polyak and Juditsky 1992), and go half of the way there (Wortsman et al. 2022, arXiv 2109.01903)"
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fruit_of = [photos[0].fruit for photos in pictures]
    torch.manual_seed(seed)
    chances = np.array([3. if fruit_of.count(fruit) < 100 else 1. for fruit in fruit_of]); chances /= chances.sum()
    body, heads = [p for p in net.backbone.parameters() if p.requires_grad], [p for part in (net.shared, net.fruit_head, net.freshness_head) for p in part.parameters()]
    optimiser = torch.optim.AdamW([dict(params=body, lr=lr), dict(params=heads, lr=4 * lr)], weight_decay=.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [lr, 4 * lr], total_steps=steps, pct_start=.15)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(.96), use_buffers=True)
    net.train()
    for module in net.backbone.modules():
        if isinstance(module, nn.BatchNorm2d): module.eval() # its statistics stay those of ImageNet and of the first training
    for images, fruit, freshness, counts in progress_bar(draw_ahead(steps, seed, pictures, chances, store, net, batch), total=steps, note='hardening', unit='step'):
        logits = net(images.contiguous(memory_format=torch.channels_last))
        loss = (F.cross_entropy(logits.fruit, fruit, reduction='none', label_smoothing=.03) * counts).mean() + F.cross_entropy(logits.freshness, freshness, label_smoothing=.05)
        optimiser.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(body + heads, 2.); optimiser.step(); schedule.step(); average.update_parameters(net)
    after = average.module.state_dict()
    net.load_state_dict({name: value.lerp(after[name], .5) if value.is_floating_point() else value for name, value in before.items()})
    return net.eval()

def finish(
    net: FruitNet, # hardened, or shipped before
    raw: Scored, # its answers to the validation photos at temperature 1
    out: Path | str, # model folder
) -> dict: # the metrics
    "Fit what depends on the validation photos, evaluate and save; the weights stay as they are"
    vars(net.config).update(asdict(fit_calibration(raw)))
    scored, given = crossfit(raw)
    net.config.metrics = report(raw, scored, given, net.config.stated_risk)
    save_model(net, out, half=True)
    return net.config.metrics

@call_parse
def main(
    run: str, # run folder of `fruit_train`, or another folder with the split.csv of the run
    data: str, # the photos that it was trained with
    sources: str='', # where they are from, for the model card
    out: str='fruit_freshness/shipped', # model folder
    keep: bool=False, # keep the network in --out, and only calibrate and evaluate it anew
):
    "Harden, calibrate, evaluate and save"
    net, photos = load_model(out if keep else run), find_photos(data).photos
    split, store = load_split(Path(run)/'split.csv', photos), check_photos(photos, 288).store
    split = replace(split, rows=[replace(row, photo=named_freshness(row.photo)) for row in split.rows])
    if not keep:
        members = {}
        for row in split.rows:
            if row.side == 'train': members.setdefault(row.group, []).append(row.photo)
        net = harden(net, list(members.values()), store)
        net.config.training.update(data=sources, hardened='on views in other light, with other backgrounds and with painted decay; weights averaged over the steps and with those before',
                                   labels='photos named RottenStrawberry count as rotten in whatever folder they lie')
    with patch.object(model, 'fast_dtype', lambda device: torch.float32): # in which the graph answers
        if not keep: fit_novelty(net, backbone_features(net, split.train[::max(1, len(split.train) // 1500)], store))
        raw = score_photos(net, split.valid, split.groups('valid'), store)
    print(metrics_table(finish(net, raw, out)))
    if not keep: write_graph(out)
