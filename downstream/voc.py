"""A look at the files of a split of a VOCdevkit before a run on them: pictures, boxes and masks.

Everything that is wrong is found, counted and named; nothing is changed. What has been found is
kept in the user's cache directory until a file changes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree

from PIL import ExifTags, Image

from pretrain.datasets.picture_checks import DECODE_ERRORS, UNUSABLE, check_picture
from pretrain.runs.errors import UserError
from pretrain.runs.file_checks import cached, describe_findings, fingerprint, parallel_map

INVALID_BOXES = 'inverted or empty boxes'
IGNORED_ID = 255  # the border of VOC's objects
_CHUNK = 32  # images at a time for a process

Problems = list[tuple[str, str]]  # the kind, and what is of that kind


def check_detection(
    split: Path,
    year: Path,
    classes: Sequence[str],
    drop_invalid_boxes: bool = False,
) -> int:
    """Look at a split with boxes, which are 1-based and include their last pixels.

    A box of one pixel's width or height is empty: so mmdet takes it, and VOC has none.

    Args:
        split: the file that names its images, one a line.
        year: the folder that holds ``JPEGImages`` and ``Annotations``.
        classes: the names that objects may have.
        drop_invalid_boxes: print which boxes are inverted or empty instead of raising an error.

    Returns:
        The number of images.

    Raises:
        UserError: saying all that is wrong with the split and its files.
    """
    folders = {year / 'JPEGImages': '.jpg', year / 'Annotations': '.xml'}
    look = partial(_look_at_boxes, year, tuple(classes))
    tolerated = [INVALID_BOXES] if drop_invalid_boxes else []
    return _check(split, folders, look, tolerated)


def check_segmentation(split: Path, pictures: Path, masks: Path, num_classes: int) -> int:
    """Look at a split with masks.

    Args:
        split: the file that names its images, one a line.
        pictures: the folder of the .jpg files.
        masks: the folder of the .png files, whose pixels are class ids or 255, which is ignored.
        num_classes: all ids are below it.

    Returns:
        The number of images.

    Raises:
        UserError: saying all that is wrong with the split and its files.
    """
    folders = {pictures: '.jpg', masks: '.png'}
    look = partial(_look_at_mask, pictures, masks, num_classes)
    return _check(split, folders, look, tolerated=[])


def _check(
    split: Path,
    folders: dict[Path, str],
    look: partial[Problems],
    tolerated: Sequence[str],
) -> int:
    """Count the images of a split, each of which must have a sound file in each folder."""
    if not split.is_file():
        raise UserError(
            f'No split file {split}: data_root must name a VOCdevkit folder with the '
            'ImageSets of its years unpacked.'
        )
    names = split.read_text().splitlines()
    if not names:
        raise UserError(f'{split} is empty: it must name one image a line.')
    counts = Counter(names)
    missing = {folder: _missing(folder, suffix, counts) for folder, suffix in folders.items()}
    complete = sorted(counts.keys() - set(chain.from_iterable(missing.values())))

    def find() -> dict[str, list[str]]:
        if len(complete) > 1_000:
            print(f'Looking at {len(complete):,} images of {split} ...', flush=True)
        found = {}
        for problems in parallel_map(look, complete, _CHUNK, None):
            for kind, what in problems:
                found.setdefault(kind, []).append(what)
        return found

    files = (folder / (name + suffix) for folder, suffix in folders.items() for name in complete)
    state = fingerprint(files, 1, look.args)  # 2 when the kinds change
    found = cached(look.func.__name__.strip('_'), split.resolve(), state, find)
    if repeated := [name for name, count in counts.items() if count > 1]:
        found['names given twice'] = repeated
    if ignored := describe_findings(found, tolerated):
        print(f'Ignored in {split}: {ignored}.')
    wrong = []
    for folder, suffix in folders.items():
        if files := [name + suffix for name in missing[folder]]:
            wrong.append(f'{folder} lacks {describe_findings({"files": files}, ["files"])}')
    kinds = [kind for kind in found if kind not in tolerated]
    if kinds:
        wrong.append(f'there are {describe_findings(found, kinds)}')
    if wrong:
        hint = ', or have such boxes ignored by drop_invalid_boxes=True'
        raise UserError(
            f'{split} names {len(names):,} images, but {"; ".join(wrong)}: unpack the data again, '
            'correct these files or take them out of the split'
            f'{hint if INVALID_BOXES in kinds else ""}.'
        )
    return len(names)


def _missing(folder: Path, suffix: str, names: Iterable[str]) -> list[str]:
    """The names without a file in a folder."""
    present = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    return [name for name in names if name + suffix not in present]


def _look_at_boxes(year: Path, classes: Sequence[str], name: str) -> Problems:
    picture = year / 'JPEGImages' / f'{name}.jpg'
    annotation = year / 'Annotations' / f'{name}.xml'
    if (kind := check_picture(picture)) in UNUSABLE:
        return [(kind, picture.name)]
    width, height = _size(picture)
    try:
        stated, objects = _read_annotation(annotation)
    except (OSError, ElementTree.ParseError, ValueError, OverflowError) as error:
        return [('unreadable annotations', f'{annotation.name}: {error}')]
    problems = []
    if stated not in ((width, height), None):
        what = f'{picture.name}: {width}x{height}, not {stated[0]}x{stated[1]}'
        problems.append(('pictures of another size than their annotations say', what))
    for kind, (x1, y1, x2, y2) in objects:
        what = f'{annotation.name}: {kind} {x1},{y1},{x2},{y2}'
        if kind not in classes:
            problems.append(('objects of an unknown class', f'{annotation.name}: {kind}'))
        if x1 < 1 or y1 < 1 or x2 > width or y2 > height:
            problems.append(('boxes outside the picture', f'{what} of {width}x{height}'))
        elif x1 >= x2 or y1 >= y2:
            problems.append((INVALID_BOXES, what))
    return problems


def _read_annotation(path: Path) -> tuple[tuple[int, int] | None, list[tuple[str, list[int]]]]:
    """The width and height that VOC's XML states, if it does, and the class and box of each object,
    with numbers as mmdet reads them: a box's fractions are cut off.

    Raises:
        OSError, ElementTree.ParseError, ValueError, OverflowError: mmdet cannot read it either.
    """
    root = ElementTree.parse(path).getroot()
    size = root.find('size')
    if size is not None:
        size = int(_text(size, 'width')), int(_text(size, 'height'))
    objects = []
    for node in root.findall('object'):
        int(node.findtext('difficult', '0'))
        box = [_text(node, f'bndbox/{key}') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
        objects.append((_text(node, 'name'), [int(float(number)) for number in box]))
    return size, objects


def _text(node: ElementTree.Element, path: str) -> str:
    if not (text := node.findtext(path)):
        raise ValueError(f'{path} is missing')
    return text


def _look_at_mask(pictures: Path, masks: Path, num_classes: int, name: str) -> Problems:
    picture, mask = pictures / f'{name}.jpg', masks / f'{name}.png'
    kinds = ((check_picture(path), path.name) for path in (picture, mask))
    if unusable := [(kind, name) for kind, name in kinds if kind in UNUSABLE]:
        return unusable
    with Image.open(mask) as image:
        if image.format != 'PNG' or image.mode not in ('L', 'P'):
            what = f'{mask.name}: {image.mode} {image.format}'
            return [('masks that are no grey or palette PNG', what)]
        try:
            counts = image.histogram()
        except DECODE_ERRORS:
            return [('truncated', mask.name)]
    problems = []
    if image.size != (size := _size(picture)):
        what = f'{mask.name}: {"{}x{}".format(*image.size)}, not {"{}x{}".format(*size)}'
        problems.append(('masks of another size than their pictures', what))
    unknown = [i for i in range(num_classes, IGNORED_ID) if counts[i]]
    if unknown:
        what = f'{mask.name}: {", ".join(map(str, unknown))}'
        problems.append(('masks with an unknown class id', what))
    return problems


def _size(picture: Path) -> tuple[int, int]:
    """Width and height as OpenCV, and with it mmdet and mmseg, reads a picture: turned upright."""
    with Image.open(picture) as image:
        width, height = image.size
        lies = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (height, width) if lies else (width, height)
