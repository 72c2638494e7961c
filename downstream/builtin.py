"""Built-in images: pictograms of the 20 PASCAL VOC classes, drawn instead of downloaded.

``python -m downstream.builtin DEST`` writes ``DEST/imagenet`` for pretraining, and
``DEST/VOCdevkit``, scenes with six of these classes for detection and segmentation. Classes of a
group have similar shapes; colour, size, pose and background say nothing about the class. Each
image depends only on the seed and its own name, so the same parameters give the same bytes.
"""

import argparse
import colorsys
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from configparser import ConfigParser
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.random import Generator
from PIL import Image

from pretrain.runs.cli import run
from pretrain.runs.errors import UserError

# The classes in scenes: a few hundred scenes hold too few examples of all twenty classes.
SCENE_CLASSES = ('aeroplane', 'boat', 'bus', 'chair', 'person', 'pottedplant')


def _polygon(form: str, numbers: np.ndarray) -> np.ndarray:
    """The (N, 2) corners, x and y, of a shape in ``pictograms.txt``."""
    if form == 'poly':
        return numbers.reshape(-1, 2)
    if form == 'bar':
        start, end, width = numbers[:2], numbers[2:4], numbers[4]
        side = (end - start)[::-1] * (-0.5, 0.5) * width / np.linalg.norm(end - start)
        return np.stack([start + side, end + side, end - side, start - side])
    angles = np.linspace(0, 2 * np.pi, 25)  # of an oval
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.concatenate([numbers[:2] + circle * radii for radii in numbers[2:].reshape(-1, 2)])


_TABLE = ConfigParser()
_TABLE.read_string(files('downstream').joinpath('pictograms.txt').read_text())
# Class name: the tone and polygon of each shape, in [-1, 1].
_PICTOGRAMS = {
    kind: [
        (tone, _polygon(form, np.array(numbers, float) / 100))
        for tone, form, *numbers in map(str.split, shapes.split(','))
    ]
    for group in _TABLE.sections()
    for kind, shapes in _TABLE[group].items()
}
CLASSES = tuple(sorted(_PICTOGRAMS))  # VOC's own order


def _colour(rng: Generator, pale: float, vivid: float, dark: float, bright: float) -> np.ndarray:
    """A random RGB colour, 0-255: any hue, saturation between ``pale`` and ``vivid``, brightness
    between ``dark`` and ``bright`` (all four in 0-1)."""
    hsv = rng.uniform(), rng.uniform(pale, vivid), rng.uniform(dark, bright)
    return 255 * np.array(colorsys.hsv_to_rgb(*hsv))


def draw_object(
    image: np.ndarray, kind: str, centre: Sequence[float], size: float, rng: Generator
) -> tuple[np.ndarray, bool]:
    """Paint an object of class ``kind``, in a random pose and colours, onto ``image`` in place.

    ``image`` is (H, W, 3) uint8 RGB. The object roughly fills a square with a side of ``size``
    pixels around ``centre``, x and y in pixels.

    Returns:
        The object's (H, W) bool mask, and whether the image border truncates it.
    """
    tones = {
        'main': _colour(rng, 0.4, 1, 0.5, 1),
        'trim': _colour(rng, 0.4, 1, 0.5, 1),
        'dark': _colour(rng, 0, 0.4, 0.05, 0.25),
        'glass': _colour(rng, 0, 0.3, 0.75, 1),
    }
    tones['shade'] = 0.65 * tones['main']
    angle = rng.normal(0, 0.12)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    stretch = rng.uniform(0.75, 1, 2) * (rng.choice((-1, 1)), 1)
    # One sum of four waves bends all shapes of the object, so they still fit together.
    waves, phases = rng.normal(0, 2, (2, 4)), rng.uniform(0, 2 * np.pi, 4)
    bends = rng.normal(0, 0.03, (4, 2))
    thickness = max(1, round(size / 64))
    limit = np.array(image.shape[1::-1]) - 1
    mask, cut = np.zeros(image.shape[:2], np.uint8), False
    for tone, polygon in _PICTOGRAMS[kind]:
        bent = polygon + np.sin(polygon @ waves + phases) @ bends
        corners = (bent * stretch) @ turn * (size / 2) + centre
        cut |= bool((corners < 0).any() or (corners > limit).any())
        fixed = [np.round(corners * 16).astype(np.int32)]  # fixed point, 4 fractional bits
        for canvas, fill, outline in (image, tones[tone], 0.45 * tones[tone]), (mask, 255, 255):
            cv2.fillPoly(canvas, fixed, fill, cv2.LINE_AA, shift=4)
            cv2.polylines(canvas, fixed, True, outline, thickness, cv2.LINE_AA, shift=4)
    return mask > 127, cut


def _strokes(image: np.ndarray, count: int, rng: Generator) -> None:
    """Paint ``count`` random straight strokes over an image."""
    for _ in range(count):
        start = rng.uniform(0, 1, 2) * image.shape[1::-1]
        end = start + rng.normal(0, 0.3, 2) * image.shape[1::-1]
        thickness = max(1, round(min(image.shape[:2]) * rng.uniform(0.01, 0.09)))
        colour = _colour(rng, 0, 0.4, 0.3, 1)
        cv2.line(image, start.astype(int), end.astype(int), colour, thickness, cv2.LINE_AA)


def _background(width: int, height: int, rng: Generator) -> np.ndarray:
    """An (H, W, 3) uint8 image of smooth colours, texture and clutter."""
    colours = np.array([[_colour(rng, 0, 0.3, 0.5, 1) for _ in range(3)] for _ in range(3)])
    texture = rng.normal(0, 6, (*rng.integers(6, 24, 2), 3))
    image = cv2.resize(colours, (width, height)) + cv2.resize(texture, (width, height))
    image = np.clip(image, 0, 255).astype(np.uint8)
    _strokes(image, rng.integers(0, 3), rng)
    return image


def _expose(image: np.ndarray, rng: Generator) -> Image.Image:
    """The image with a random brightness and Gaussian noise."""
    noise = rng.normal(0, rng.uniform(2, 8), image.shape)
    image = np.clip(image * rng.uniform(0.7, 1.1) + noise, 0, 255)
    return Image.fromarray(image.astype(np.uint8))


def draw_image(kind: str, size: int, rng: Generator) -> Image.Image:
    """An RGB image, ``size`` pixels square, of one object of ``kind``; a stroke may cover it."""
    image = _background(size, size, rng)
    extent = size * rng.uniform(0.5, 1)
    draw_object(image, kind, size / 2 + rng.uniform(-0.15, 0.15, 2) * size, extent, rng)
    _strokes(image, rng.integers(0, 2), rng)
    return _expose(image, rng)


class SceneObject(NamedTuple):
    """An object of a scene, with its (H, W) bool masks inside the image."""

    kind: str
    whole: np.ndarray
    visible: np.ndarray  # ``whole`` without what later objects cover
    truncated: bool  # by the image border

    @property
    def visibility(self) -> float:
        """The fraction of its pixels that is visible."""
        return float(self.visible.sum() / self.whole.sum())


def draw_scene(size: int, rng: Generator) -> tuple[Image.Image, list[SceneObject]]:
    """An RGB image, landscape or portrait, with sides of ``size`` and 3/4 ``size`` pixels, and its
    one or two objects of ``SCENE_CLASSES``, from back to front."""
    short = size * 3 // 4
    width, height = (size, short) if rng.random() < 0.7 else (short, size)
    image = _background(width, height, rng)
    objects: list[SceneObject] = []
    for _ in range(rng.integers(1, 3)):
        kind = SCENE_CLASSES[rng.integers(len(SCENE_CLASSES))]
        extent = short * rng.uniform(0.7, 1)
        centre = rng.uniform(0.4 * extent, np.array([width, height]) - 0.4 * extent)
        trial = image.copy()
        mask, cut = draw_object(trial, kind, centre, extent, rng)
        behind = [item._replace(visible=item.visible & ~mask) for item in objects]
        if all(item.visibility > 0.35 for item in behind):  # else it hides most of another
            image, objects = trial, [*behind, SceneObject(kind, mask, mask, cut)]
    return _expose(image, rng), objects


def voc_xml(stem: str, objects: Sequence[SceneObject]) -> str:
    """The VOC2007 annotation of ``stem``.jpg: a 1-based box around the visible part of each object,
    which is marked difficult if less than half of it is visible."""
    height, width = objects[0].visible.shape
    xml = (
        f'<folder>VOC2007</folder><filename>{stem}.jpg</filename><size><width>{width}</width>'
        f'<height>{height}</height><depth>3</depth></size><segmented>0</segmented>'
    )
    for item in objects:
        x, y, width, height = cv2.boundingRect(item.visible.astype(np.uint8))
        xml += (
            f'<object><name>{item.kind}</name><pose>Unspecified</pose>'
            f'<truncated>{item.truncated:d}</truncated>'
            f'<difficult>{item.visibility < 0.5:d}</difficult>'
            f'<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>'
            f'<xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>'
        )
    root = ElementTree.XML(f'<annotation>{xml}</annotation>')
    ElementTree.indent(root, '\t')
    return ElementTree.tostring(root, encoding='unicode') + '\n'


def voc_mask(objects: Sequence[SceneObject], border: bool) -> Image.Image:
    """A segmentation mask: 0 is background, 1-20 are ``CLASSES``. With ``border``, outlines are 255
    and the PNG has VOC's palette; else it is greyscale without 255, like SBD's converted masks."""
    ids, outlines = np.zeros((2, *objects[0].visible.shape), np.uint8)
    for item in objects:
        ids[item.visible] = 1 + CLASSES.index(item.kind)
        visible = item.visible.astype(np.uint8)
        outlines |= cv2.morphologyEx(visible, cv2.MORPH_GRADIENT, np.ones((3, 3)))
    if not border:
        return Image.fromarray(ids)
    mask = Image.fromarray(np.where(outlines, np.uint8(255), ids))
    mask.putpalette(voc_palette())
    return mask


def voc_palette() -> bytes:
    """VOC's palette: 256 RGB colours in 768 bytes."""
    # An id's bits, lowest first, go in turn to red, green and blue, from their highest bit down.
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder='little')
    palette = [np.packbits(bits[:, channel::3], axis=1) for channel in range(3)]
    return np.concatenate(palette, axis=1).tobytes()


def random_numbers(seed: int, name: str) -> Generator:
    """The random generator of one image, such as 'imagenet/train/cat/7' or 'VOC2012/val/7'."""
    return np.random.default_rng([seed, *name.encode()])


def _write_once(root: Path, parameters: dict, contents: Iterable[tuple]) -> None:
    """Write ``contents``, pairs of a file name and an image or text, into ``root``, all or nothing.
    If ``root/builtin.json`` holds the same parameters, they are there already. UserError if
    ``root`` holds anything else."""
    record = json.dumps({'version': 2, **parameters}, indent=2) + '\n'  # 3 once images change
    if root.exists():
        path = root / 'builtin.json'
        if path.is_file() and path.read_text() == record:
            return
        raise UserError(f'{root} exists with other contents: delete it or choose another folder.')
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}-', dir=root.parent) as scratch:
        folder = Path(scratch, root.name)
        for name, content in contents:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content)
            else:
                content.save(path, quality=92)  # PNG ignores the quality
        (folder / 'builtin.json').write_text(record)
        folder.rename(root)


def write_imagenet_folder(
    root: Path, *, train_per_class: int, val_per_class: int, size: int, seed: int = 0
) -> None:
    """Write square images of ``size`` pixels (at least 32), ``train/<class>/<class>_0000.jpg`` ...
    and ``val/...``, unless they exist. UserError if ``root`` holds anything else."""
    counts = {'train': train_per_class, 'val': val_per_class}

    def contents() -> Iterator[tuple]:
        for split, kind in product(counts, CLASSES):
            for i in range(counts[split]):
                rng = random_numbers(seed, f'imagenet/{split}/{kind}/{i}')
                yield f'{split}/{kind}/{kind}_{i:04}.jpg', draw_image(kind, size, rng)

    _write_once(root, {'imagenet': counts, 'size': size, 'seed': seed}, contents())


def write_vocdevkit(root: Path, *, trainval: int, test: int, size: int, seed: int = 0) -> None:
    """Write VOC2007 (scenes with boxes) and VOC2012 (other scenes with masks) into ``root``, unless
    they exist. UserError if ``root`` holds anything else.

    Each year has ``trainval`` training images and ``test`` test images with sides of ``size`` (at
    least 64) and 3/4 ``size`` pixels. In VOC2012 a quarter of the training images is train and the
    rest is aug, with masks like SBD's.
    """
    train, total = -(-trainval // 4), trainval + test
    lists = {
        'VOC2007/ImageSets/Main/trainval.txt': range(trainval),
        'VOC2007/ImageSets/Main/test.txt': range(trainval, total),
        'VOC2012/ImageSets/Segmentation/train.txt': range(train),
        'VOC2012/ImageSets/Segmentation/aug.txt': range(train, trainval),
        'VOC2012/ImageSets/Segmentation/val.txt': range(trainval, total),
    }

    def contents() -> Iterator[tuple]:
        for path, numbers in lists.items():
            year, split = path.split('/')[0], Path(path).stem
            prefix = '' if year == 'VOC2007' else '2007_'
            stems = [f'{prefix}{number + 1:06}' for number in numbers]
            yield path, ''.join(f'{stem}\n' for stem in stems)
            for i, stem in enumerate(stems):
                image, objects = draw_scene(size, random_numbers(seed, f'{year}/{split}/{i}'))
                yield f'{year}/JPEGImages/{stem}.jpg', image
                if year == 'VOC2007':
                    yield f'{year}/Annotations/{stem}.xml', voc_xml(stem, objects)
                else:
                    folder = f'SegmentationClass{"Aug" * (split == "aug")}'
                    yield f'{year}/{folder}/{stem}.png', voc_mask(objects, split != 'aug')

    parameters = {'trainval': trainval, 'test': test, 'size': size, 'seed': seed}
    _write_once(root, {'vocdevkit': parameters}, contents())


def main() -> None:
    """Write both data sets into the folder that the command names."""
    parser = argparse.ArgumentParser(description='Write the built-in images.')
    parser.add_argument(
        'dest', metavar='DEST', type=Path, help='folder for imagenet/ and VOCdevkit/'
    )
    dest = parser.parse_args().dest
    print(
        f'Built-in images: {dest / "imagenet"} with {len(CLASSES)} classes, and '
        f'{dest / "VOCdevkit"} with {len(SCENE_CLASSES)} of them',
        flush=True,
    )
    write_imagenet_folder(dest / 'imagenet', train_per_class=100, val_per_class=20, size=64)
    write_vocdevkit(dest / 'VOCdevkit', trainval=400, test=100, size=256)


if __name__ == '__main__':
    run(main)
