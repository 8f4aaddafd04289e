"""Crops of bare circuit boards: real defects (DeepPCB), flawless spots, and defects drawn on flawless templates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from adapters import split
from adapters.datasets import BOARD_DEFECTS, Board, png_bytes, read_boards
from adapters.recipes.shelf.family import SEED, Parts, Row
from adapters.samples import Samples
from model_store.manifest import Feature
from model_store.step_specs import DecodeImage, PreStep

SIDE = 64
JITTER = 8
REAL_COPIES = 4  # crops of each real training defect, shifted
DRAWN_EACH = 350  # drawn defects of each kind, to learn from
OK_EACH = 40  # flawless crops of each training board
OK_EACH_TEST = 8
COPPER_BELOW = 128  # dark is copper
FEATURES = [
    Feature(
        name="image", kind="image", title_zh="电路板局部图像", title_en="Crop of a circuit board",
        aliases=["图片", "图像", "照片", "picture", "crop"],
    )
]  # fmt: skip
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.bool_)  # pixels that share a side are connected
DARK_KINDS = ("short", "copper", "spur")  # what a stroke that adds copper can be; one that takes some is any other
Pixels = npt.NDArray[np.uint8]


def family_of(board: Board) -> str:
    """Boards whose numbers begin alike are of one design and are never split."""
    return board.name[:5]


def load(data: Path) -> Parts:
    """Real and drawn defects and flawless crops of some designs; real defects and flawless crops of the others."""
    train, test = _crops(data)
    return Parts(_samples(train), _samples(test))


@cache  # three families are made of them, and drawing them takes seconds
def _crops(data: Path) -> tuple[list[tuple[bytes, str]], list[tuple[bytes, str]]]:
    """PNG and label of what to learn from, and of what to measure on."""
    boards = read_boards(data)
    train, test = split.split_by_groups([family_of(board) for board in boards], SEED, 0.3)
    random = np.random.default_rng(SEED)
    learnt = [boards[int(at)] for at in train]
    rows = [*_real(learnt, random, REAL_COPIES), *_flawless(learnt, random, OK_EACH), *_drawn(learnt, random)]
    others = [boards[int(at)] for at in test]
    unseen = [*_real(others, random, 1), *_flawless(others, random, OK_EACH_TEST)]
    return _as_png(rows), _as_png(unseen)


def _as_png(found: list[tuple[Pixels, str]]) -> list[tuple[bytes, str]]:
    return [(png_bytes(pixels), label) for pixels, label in found]


def _samples(found: list[tuple[bytes, str]]) -> Samples:
    return Samples(rows=[{"image": png} for png, _ in found], labels=[label for _, label in found])


def pre(_: Samples) -> list[PreStep]:
    return [DecodeImage(feature="image", tensor="image", mode="L", width=SIDE, height=SIDE)]


def _crop(picture: Pixels, x: int, y: int) -> Pixels:
    """SIDE × SIDE pixels around (x, y), moved inside the picture where they would stick out."""
    left = min(max(x - SIDE // 2, 0), picture.shape[1] - SIDE)
    top = min(max(y - SIDE // 2, 0), picture.shape[0] - SIDE)
    return picture[top : top + SIDE, left : left + SIDE]


def _real(boards: list[Board], random: np.random.Generator, copies: int) -> Iterator[tuple[Pixels, str]]:
    for board in boards:
        for x1, y1, x2, y2, kind in board.boxes:
            for _ in range(copies):
                dx, dy = random.integers(-JITTER, JITTER + 1, 2)
                yield _crop(board.tested, (x1 + x2) // 2 + int(dx), (y1 + y2) // 2 + int(dy)), kind


def _flawless(boards: list[Board], random: np.random.Generator, count: int) -> Iterator[tuple[Pixels, str]]:
    """Crops of the tested board that touch no box and hold an edge: a blank crop teaches nothing."""
    for board in boards:
        made = 0
        while made < count:
            x, y = (int(at) for at in random.integers(SIDE // 2, board.tested.shape[0] - SIDE // 2, 2))
            clear = all(
                x + SIDE // 2 < x1 or x - SIDE // 2 > x2 or y + SIDE // 2 < y1 or y - SIDE // 2 > y2
                for x1, y1, x2, y2, _ in board.boxes
            )
            crop = _crop(board.tested, x, y)
            if clear and 0.05 < float((crop < COPPER_BELOW).mean()) < 0.95:
                made += 1
                yield crop, "ok"


def _drawn(boards: list[Board], random: np.random.Generator) -> Iterator[tuple[Pixels, str]]:
    """Strokes drawn on flawless templates, named by what they do to the copper: its parts are counted."""
    wanted = dict.fromkeys(BOARD_DEFECTS.values(), DRAWN_EACH)
    while any(wanted.values()):
        board = boards[int(random.integers(len(boards)))]
        x, y = (int(at) for at in random.integers(SIDE // 2, board.template.shape[0] - SIDE // 2, 2))
        crop = _crop(board.template, x, y)
        dark = bool(random.integers(2))
        marked = draw_stroke(crop, random, dark=dark)
        if not any(left for kind, left in wanted.items() if (kind in DARK_KINDS) == dark):
            continue  # whatever it is, there are enough of it
        kind = kind_of(crop, marked)
        if kind is not None and wanted[kind]:
            wanted[kind] -= 1
            yield marked, kind


def draw_stroke(crop: Pixels, random: np.random.Generator, dark: bool) -> Pixels:
    """A short bent stroke near the middle of a crop, light ones sometimes grainy as etched copper is."""
    middle = random.uniform(SIDE / 2 - JITTER, SIDE / 2 + JITTER, 2)
    angle, bend = random.uniform(0, 2 * np.pi), random.uniform(-0.9, 0.9)
    length, width = random.uniform(4, 15), int(random.integers(3, 8))
    start = middle - length * np.array([np.cos(angle), np.sin(angle)])
    end = middle + length * np.array([np.cos(angle + bend), np.sin(angle + bend)])
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).line([tuple(start), tuple(middle), tuple(end)], fill=255, width=width, joint="curve")
    touched = np.asarray(mask) > 0
    if not dark and random.random() < 0.4:
        touched &= random.random(touched.shape) < 0.85
    marked = crop.copy()
    marked[touched] = 0 if dark else 255
    return marked


def kind_of(before: Pixels, after: Pixels) -> str | None:
    """The defect that turns `before` into `after`, by how many pieces of copper and of bare board there are.

    A piece of copper more: open (light) or spurious copper (dark); one less: short; a hole more: pinhole; neither, but
    some copper less: mousebite, some more: spur. None where it is none of these or too small to see.
    """
    copper = [picture < COPPER_BELOW for picture in (before, after)]
    change = int(copper[1].sum()) - int(copper[0].sum())
    if abs(change) < 25:
        return None
    parts = _pieces(copper[1]) - _pieces(copper[0])
    holes = _pieces(~copper[1]) - _pieces(~copper[0])
    named = {
        (True, -1, 0): "short", (True, -1, 1): "short", (True, 1, 0): "copper", (True, 0, 0): "spur",
        (False, 1, 0): "open", (False, 1, -1): "open", (False, 0, 1): "pinhole", (False, 0, 0): "mousebite",
    }  # fmt: skip
    return named.get((change > 0, parts, holes))


def _pieces(mask: npt.NDArray[np.bool_], least: int = 6) -> int:
    """Connected pieces of at least `least` pixels: smaller ones are grain."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, CROSS)
    return int((np.bincount(labels.ravel(), minlength=count + 1)[1:] >= least).sum())


def made_up_board(random: np.random.Generator) -> Pixels:
    """A crop of no real board: parallel traces at a random angle, a pad, perhaps a stroke."""
    picture = Image.new("L", (SIDE, SIDE), 255)
    pen = ImageDraw.Draw(picture)
    pitch, width = int(random.integers(14, 24)), int(random.integers(5, 10))
    slope = float(random.uniform(-0.5, 0.5))
    for at in range(-SIDE, 2 * SIDE, pitch):
        pen.line([(0, at), (SIDE, at + slope * SIDE)], fill=0, width=width)
    x, y, radius = (float(value) for value in random.uniform((10, 10, 6), (54, 54, 12)))
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=0)
    return draw_stroke(np.asarray(picture), random, dark=bool(random.integers(2)))


def generate(random: np.random.Generator, count: int, _: Any) -> list[Row]:
    """Made-up crops."""
    return [{"image": png_bytes(made_up_board(random))} for _number in range(count)]
