"""Draw the pictures of the home page and the site, with the network in the package: `python tests/pictures.py`."""
import tempfile
from pathlib import Path

import load
import matplotlib.pyplot as plt
from check_site import browser
from PIL import Image

from fruit_freshness.infer import Predictor, show_heat
from fruit_freshness.parts.sample import DRAWN_FRUITS, draw_photo

IMAGES = Path(__file__).parent.parent/'nbs'/'images'
PALE = (250, 248, 243)


def draw_until_right(predictor: Predictor, fruit: str, freshness: str, side: int = 320) -> Image.Image:
    "The first drawing of this fruit for which the network gives the right answer"
    for seed in range(1, 200):
        image = draw_photo(fruit, freshness, seed, side).image
        answer, = predictor.predict([image])
        if answer.accepted and (answer.fruit, answer.freshness) == (fruit, freshness): return image
    raise SystemExit(f'{fruit}, {freshness}: none of 199 drawings is answered rightly; choose another fruit')


def answer_picture(predictor: Predictor, path: Path):
    "One photo, both answers, and where they come from"
    figure = show_heat(list(predictor.explain([path])))
    figure.set_size_inches(7.2, 2.9)
    for axis in figure.axes: axis.title.set_fontsize(17) # read on a phone, too
    figure.savefig(IMAGES/'answer.png', dpi=100, bbox_inches='tight')


def page_picture(photos: list[Path]):
    "The page of `fruit_serve` with its answers, as people see it"
    with load.serving() as server, browser() as started:
        page = started.new_page(viewport=dict(width=860, height=640))
        page.goto(f'http://127.0.0.1:{server.port}/')
        page.locator('input[type=file]').first.set_input_files([str(path) for path in photos])
        for path in photos:
            page.locator('.fruit-card', has_text=path.name).locator('.fruit-headline').wait_for()
        page.wait_for_timeout(500) # pictures on the cards are painted
        page.screenshot(path=IMAGES/'page.png', full_page=True)
    Image.open(IMAGES/'page.png').convert('RGB').quantize(200).save(IMAGES/'page.png', optimize=True) # a third of the bytes


def card_picture(description: str):
    "What a link to the site shows elsewhere, 1200 x 630 pixels"
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=[value / 255 for value in PALE])
    for column, (fruit, freshness) in enumerate(zip(DRAWN_FRUITS, ('Fresh', 'Rotten', 'Fresh', 'Rotten'))):
        axis = figure.add_axes((.05 + .23 * column, .12, .21, .4))
        axis.imshow(draw_photo(fruit, freshness, 4, 320).image)
        axis.axis('off')
    figure.text(.05, .78, 'fruit_freshness', fontsize=54, weight='bold', color='#2f2f2f')
    figure.text(.05, .64, description, fontsize=19, color='#4a4a4a')
    figure.savefig(IMAGES/'card.png')


def favicon():
    "A drawn apple, 64 pixels wide"
    draw_photo('Apple', 'Fresh', 10, 256).image.resize((64, 64), Image.Resampling.LANCZOS).save(IMAGES/'favicon.png')


if __name__ == '__main__':
    predictor = Predictor()
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for fruit, freshness in (('Orange', 'Rotten'), ('Banana', 'Fresh'), ('Strawberry', 'Fresh')):
            paths.append(Path(folder)/f'{fruit.lower()}.jpg')
            draw_until_right(predictor, fruit, freshness).save(paths[-1], quality=92)
        answer_picture(predictor, paths[0])
        page_picture(paths)
    card_picture('Is it fresh or rotten? An answer from a photo, or an honest "I don\'t know".')
    favicon()
