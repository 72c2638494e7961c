"""Check VOC splits before a run: lists, images, boxes and masks. Also VOC's classes.

One error counts and names everything that is wrong; no file is changed. The user's cache directory
keeps the results of a split until one of its files changes.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from glob import escape
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import mmcv
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS
from PIL import Image

from downstream.mmcv_ops import install
from pretrain.datasets.image_checks import DECODE_ERRORS, check_image
from pretrain.runs.errors import UserError, counted, number_of, warn_once
from pretrain.runs.file_checks import (
    cached,
    describe_findings,
    fingerprint,
    parallel_map,
)

INVALID_BOXES = 'inverted or empty boxes'
_OUTSIDE = 'boxes outside the image, whose first pixel is 1,1'
IGNORED_ID = 255  # VOC's object borders
_CHUNK = 32  # images that a process takes at a time
_LONGEST = 250  # bytes of a file or folder name without suffix; most file systems take 255


class Split(NamedTuple):
    """The paths of a split.

    Attributes:
        list_file: the text file that names its images, one per line, without suffix.
        images: the folder of the .jpg files.
        labels: the folder of the .xml files with boxes, or of the .png files with masks.
    """

    list_file: Path
    images: Path
    labels: Path


# For one image: its problems, as (kind, text); the labels that count in training and testing, which
# are the class of each object or the ids of a mask; and, for boxes, the class of every object
# including those that mmdet ignores, or, for a mask, the palette's colour of each id.
_Checked = tuple[list, list, list]


class _Findings(NamedTuple):
    """A split and the names in its list; problems as sentences (``wrong``) and by kind (``found``);
    and the last two lists of ``_Checked`` by label file."""

    split: Split
    names: list[str]
    wrong: list[str]
    found: dict[str, list[str]]
    labels: dict[str, list]
    further: dict[str, list]


def metainfo(library: str, dataset_type: str) -> dict[str, Any]:
    """The ``classes`` and ``palette`` of a data set type of mmdet or mmseg.

    Example:
        >>> metainfo('mmdet', 'VOCDataset')['classes'][:2]
        ('aeroplane', 'bicycle')
    """
    install()
    with DATASETS.switch_scope_and_registry(library) as datasets:
        found = datasets.get(str(dataset_type))
    if not hasattr(found, 'METAINFO'):
        raise UserError(f'{library} has no data set of type {dataset_type}: correct the type.')
    return found.METAINFO


def check_detection(
    train: Sequence[Split],
    test: Sequence[Split],
    classes: Sequence[str],
    drop_invalid_boxes: bool = False,
) -> list[int]:
    """Check the images and boxes of all training and test splits.

    Box corners are 1-based and inclusive, but mmdet treats a box of one pixel's width or height as
    empty. Every object must be of a class in ``classes``. With ``drop_invalid_boxes``, inverted
    and empty boxes are printed and not raised.

    Returns:
        The number of images in each split, the training splits first.

    Raises:
        UserError: if anything is wrong; it names all problems of all splits.
    """
    findings = [_check_split(split, '.xml', _check_boxes) for split in (*train, *test)]
    files = _files_by_label(part.further for part in findings)
    errors = []
    if unknown := {name: found for name, found in files.items() if name not in classes}:
        errors.append(
            f'The objects have {_counts(unknown, "classes")}. Correct these names or, if all '
            f'classes are your own, add the option "classes={list(files)}".'
        )
    tolerated = [INVALID_BOXES] if drop_invalid_boxes else []
    errors += [
        f'{part.split.list_file} names no image with an object that counts: difficult ones are '
        'neither learned nor tested. Add images with other objects, or correct <difficult>.'
        for part in findings
        if part.labels and not any(part.labels.values()) and not {*part.found}.difference(tolerated)
    ]
    absent = 'object of these classes (difficult ones do not count)', 'are left out of the mean'
    names = {name: name for name in classes}
    return _raise_or_count(findings, len(train), names, errors, absent, tolerated)


def check_segmentation(
    train: Sequence[Split],
    test: Sequence[Split],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]] = (),
) -> list[int]:
    """Check the images and masks of all training and test splits.

    Pixels are indices into ``classes``, or 255, which is ignored. If a mask has a palette, it must
    give each id its colour in ``palette`` (RGB, 0-255) or the grey of its id; without ``palette``,
    all masks must agree on the colours. The result and errors are as in :func:`check_detection`.
    """
    findings = [_check_split(split, '.png', _check_mask) for split in (*train, *test)]
    files = _files_by_label(part.labels for part in findings)
    colours = dict(enumerate(map(list, palette)))
    errors = []
    if unknown := {i: found for i, found in files.items() if i >= len(classes)}:
        errors.append(
            f'The masks have {_counts(unknown, "class ids")}. Correct these masks or, if all '
            'classes are your own, add the option "classes=[...]" with the names of the ids 0 '
            f'to {max(unknown)}, in this order.'
        )
    for part in findings:
        for file, of_file in part.further.items():
            for i, colour in zip(part.labels[file], of_file, strict=False):
                if colour not in ([], [i] * 3) and colour != colours.setdefault(i, colour):
                    what = f'{file}: {i} is {colour}, not {colours[i]}'
                    part.found['masks whose palette gives a class id a different colour'].append(
                        what
                    )
        used = {*chain.from_iterable(part.labels.values())}
        if part.labels and len(used) < 2 and not part.found:
            held = f'only the class id {used.pop()}' if used else 'no class id'
            errors.append(
                f'All masks of {part.split.list_file} hold {held}, apart from 255, which is '
                'ignored: write the id of its class into each pixel, which is 1, not 255, for a '
                'single class.'
            )
    absent = 'pixel of these classes', 'count as 0 in the mean where they are predicted'
    return _raise_or_count(findings, len(train), dict(enumerate(classes)), errors, absent)


def count_images(splits: Sequence[Split], classes: Sequence[str], task: str) -> list[int]:
    """The number of images that contain each class, over splits that passed their check. Difficult
    objects and invalid boxes do not count. ``task`` is 'detection' or 'segmentation'."""
    check = {'detection': ('.xml', _check_boxes), 'segmentation': ('.png', _check_mask)}[task]
    found = [held for split in splits for held in _check_split(split, *check).labels.values()]
    labels = classes if task == 'detection' else range(len(classes))
    return [sum(label in held for held in found) for label in labels]


def _counts(unknown: Mapping[Any, Sequence[str]], what: str) -> str:
    """Each unknown label with the number of its files and the first of them."""
    counts = [f'{name!r} ({len(files):,}, first in {files[0]})' for name, files in unknown.items()]
    return f'{number_of(len(unknown), f"unknown {what}")}: {", ".join(counts)}'


def _files_by_label(found: Iterable[Mapping[str, list]]) -> dict[Any, list[str]]:
    """The label files that hold each label; sorted by label."""
    files = defaultdict(list)
    for labels_of in found:
        for file, labels in labels_of.items():
            for label in labels:
                files[label].append(file)
    return dict(sorted(files.items()))


def _raise_or_count(
    findings: Sequence[_Findings],
    trained: int,
    classes: Mapping[Any, str],
    errors: list[str],
    absent: tuple[str, str],
    tolerated: Sequence[str] = (),
) -> list[int]:
    """Raise all problems in one error; else print those that are ``tolerated``, warn of classes
    without labels, and return the number of images in each split.

    The first ``trained`` splits are for training. ``classes`` maps labels to names. ``absent`` is
    the wording of the warning: what is missing, and what follows for a test.
    """
    train, test = findings[:trained], findings[trained:]
    wrong = chain.from_iterable(_wrong_files(part, tolerated) for part in findings)
    if errors := [*errors, *wrong, *_shared_images(train, test)]:
        raise UserError('\n'.join(errors))
    for part in findings:
        if ignored := describe_findings(part.found, tolerated):
            print(f'Ignored in {part.split.list_file}: {ignored}.')
    what, untested = absent
    for parts, effect in ((train, 'are not learned'), (test, untested)):
        if names := _absent_classes(parts, classes):
            files = ', '.join(str(part.split.list_file) for part in parts)
            warn_once(f'{files}: no {what}, so they {effect}: {", ".join(names)}.')
    return [len(part.names) for part in findings]


def _wrong_files(part: _Findings, tolerated: Sequence[str]) -> list[str]:
    """The problems of a split: one sentence, or ``wrong`` alone if its list cannot be read."""
    wrong, kinds = [*part.wrong], [kind for kind in part.found if kind not in tolerated]
    if kinds:
        verb = 'is' if len(part.found[kinds[0]]) == 1 else 'are'
        wrong.append(f'there {verb} {describe_findings(part.found, kinds)}')
    if not wrong or not part.names:  # the list is unreadable
        return wrong
    hint = ', or ignore such boxes with drop_invalid_boxes=True'
    return [
        f'{part.split.list_file} names {number_of(len(part.names), "images")}, but '
        f'{"; ".join(wrong)}: unpack the data again, correct these files or take them out '
        f'of the split{hint if INVALID_BOXES in kinds else ""}.'
    ]


def _shared_images(train: Sequence[_Findings], test: Sequence[_Findings]) -> list[str]:
    """A sentence for each pair of splits that share images."""
    sentences = []
    for one, other in combinations([*train, *test], 2):
        same_folder = one.split.images.resolve() == other.split.images.resolve()
        if shared := sorted({*one.names} & {*other.names}) if same_folder else []:
            both = one in train and other in test
            effect = 'be trained on and tested on' if both else 'count twice'
            sentences.append(
                f'{one.split.list_file} and {other.split.list_file} share '
                f'{counted(shared, "images")}, which would {effect}: keep each in only one list.'
            )
    return sentences


def _absent_classes(parts: Sequence[_Findings], classes: Mapping[Any, str]) -> list[str]:
    """The names of the classes without a label in any of the splits; empty without splits."""
    present = _files_by_label(part.labels for part in parts)
    return [name for label, name in classes.items() if parts and label not in present]


def read_list(path: Path) -> list[str]:
    """The image names in a list file, as mmdet and mmseg read it. UserError if it is missing, is
    empty, is not UTF-8, or has a line that is no name: blank, with spaces around it, too long, or
    a path that could be shorter, such as ``./a``, whose image another line may name too."""
    if not path.is_file():
        raise UserError(
            f'No split file {path}: set data_root to a VOCdevkit folder that has the ImageSets of '
            'its years, or train_list and val_list to your own lists.'
        )
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        text = '\ufeff'
    if text.startswith('\ufeff') or '\0' in text:
        raise UserError(
            f'{path} must be UTF-8 without a byte order mark: save it in that encoding.'
        )
    names = list_from_file(path)
    if not any(names):
        raise UserError(f'{path} is empty: it must name one image per line.')
    for number, name in enumerate(names, 1):
        if wrong := _what_is_wrong(name):
            raise UserError(
                f'Line {number} of {path} has {wrong}. Write one name per line, without suffix and '
                'relative to the folder of the images.'
            )
    return names


def _what_is_wrong(name: str) -> str:
    """What makes a line no name of an image; '' if nothing does."""
    if not name:
        return 'no name: it is blank'
    if name != name.strip():
        return 'spaces around its name'
    parts = name.split('/')
    if any(len(part.encode()) > _LONGEST for part in parts):
        return f'a name that is too long, which begins with {name[:40]!r}'
    # These name an image in a second way, so that it could be in both lists.
    if not {'', '.', '..'}.isdisjoint(parts):
        return f'{name!r}, which is not the shortest name of an image there'
    return ''


def _check_split(split: Split, suffix: str, check_label: Callable[..., _Checked]) -> _Findings:
    """Check each image of a split and its label file, which has the given suffix."""
    try:
        names = read_list(split.list_file)
    except UserError as error:
        return _Findings(split, [], [str(error)], {}, {}, {})
    counts = Counter(names)
    folders = (split.images, '.jpg'), (split.labels, suffix)
    wrong, complete = [], {*counts}
    for folder, ending in folders:
        if missing := [name for name in counts if not (folder / (name + ending)).is_file()]:
            complete -= {*missing}
            files = counted([name + ending for name in missing], 'files')
            suffixes = [its for place, its in folders if place == folder]
            instead = _other_suffix(folder / (missing[0] + ending), suffixes)
            wrong.append(f'{folder} lacks {files}{instead}')
    complete = sorted(complete)
    pairs = [tuple(folder / (name + ending) for folder, ending in folders) for name in complete]

    def check() -> tuple[list[_Checked], bool]:
        title = f'checking {split.list_file}'
        results = [*parallel_map(partial(_check_image, check_label), pairs, _CHUNK, None, title)]
        return results, _all_are_readable(results)

    state = fingerprint(chain.from_iterable(pairs), 8)  # 9 once kinds change
    place = split.list_file.resolve()
    results = cached(check_label.__name__.strip('_'), place, state, check)
    findings = _Findings(split, names, wrong, defaultdict(list), {}, {})
    for name, (problems, labels, further) in zip(complete, results, strict=True):
        findings.labels[name + suffix], findings.further[name + suffix] = labels, further
        for kind, what in problems:
            findings.found[kind].append(what)
    if repeated := [name for name, count in counts.items() if count > 1]:
        findings.found['names given twice'] = repeated
    return findings


def _other_suffix(missing: Path, suffixes: Sequence[str]) -> str:
    """A hint if a missing file exists with a suffix that is not in ``suffixes``, else ''."""
    there = missing.parent.glob(f'{escape(missing.stem)}.*')
    if (other := next((file for file in there if file.suffix not in suffixes), None)) is None:
        return ''
    rename = ' (rename it, whatever its format)' if missing.suffix == '.jpg' else ''
    return f' and has {other.name} instead{rename}'


def _all_are_readable(results: Sequence[_Checked]) -> bool:
    kinds = (kind for problems, *_ in results for kind, _ in problems)
    return not any(kind.startswith('unreadable') for kind in kinds)


def _check_image(check_label: Callable[..., _Checked], files: tuple[Path, Path]) -> _Checked:
    """Check an image and its label file."""
    image, label = files
    images = files if label.suffix == '.png' else (image,)
    kinds = ((check_image(path), path.name) for path in images)
    if unusable := [(kind, name) for kind, name in kinds if kind]:
        return unusable, [], []
    if (size := _size(image)) is None:
        return [('images that OpenCV cannot read', image.name)], [], []
    if is_too_thin(*size):
        return [('too thin', f'{image.name}: {size[0]}x{size[1]}')], [], []
    return check_label(label, image.name, *size)


def is_too_thin(width: int, height: int) -> bool:
    """Whether an image is so thin that mmdet or mmseg may fail: mmseg drops a dimension of one
    pixel, and resizing may round the shorter side to 0."""
    return min(width, height) < 2 or max(width, height) > 100 * min(width, height)


def _check_boxes(annotation: Path, name: str, width: int, height: int) -> _Checked:
    """Check the boxes of the image ``name``, whose width and height are in pixels."""
    try:
        stated, objects = _read_annotation(annotation)
    except (OSError, ElementTree.ParseError, LookupError, ValueError, OverflowError) as error:
        return [('unreadable annotations', f'{annotation.name}: {error}')], [], []
    problems, learned = [], []
    if stated not in ((width, height), None):
        what = f'{name}: {width}x{height}, not {stated[0]}x{stated[1]}'
        problems.append(('images whose size differs from the annotation', what))
    for kind, difficult, (x1, y1, x2, y2) in objects:
        box = f'{annotation.name}: {kind} {x1},{y1},{x2},{y2}'
        if x1 < 1 or y1 < 1 or x2 > width or y2 > height:
            problems.append((_OUTSIDE, f'{box} of {width}x{height}'))
        elif x1 >= x2 or y1 >= y2:
            problems.append((INVALID_BOXES, box))
            difficult = True  # mmdet ignores it like a difficult object
        if not difficult:
            learned.append(kind)
    return problems, learned, [kind for kind, *_ in objects]


def _read_annotation(path: Path) -> tuple[tuple[int, int] | None, list[tuple[str, int, list[int]]]]:
    """Read a VOC annotation: the stated (width, height) or None, and for each object its class,
    difficult flag and box, x1, y1, x2, y2. As in mmdet, fractions of coordinates are cut off.
    Raises an error that ``_check_boxes`` catches if mmdet cannot read all of the file."""
    root = ElementTree.parse(path).getroot()
    if root.tag != 'annotation':
        raise ValueError(f'its root is <{root.tag}>, not <annotation>')
    nodes = root.findall('object')
    if len(nodes) < sum(node.tag.rpartition('}')[2].lower() == 'object' for node in root.iter()):
        raise ValueError('an object is not an <object> directly within <annotation>')
    size = _single_child(root, 'size')
    if size is not None:
        size = int(_text(size, 'width')), int(_text(size, 'height'))
    objects = []
    for node in nodes:
        difficult = (
            int(node.findtext('difficult')) if _single_child(node, 'difficult') is not None else 0
        )
        if (box := _single_child(node, 'bndbox')) is None:
            raise ValueError('an object has no bndbox')
        numbers = [int(float(_text(box, key))) for key in ('xmin', 'ymin', 'xmax', 'ymax')]
        objects.append((_text(node, 'name'), difficult, numbers))
    return size, objects


def _single_child(node: ElementTree.Element, tag: str) -> ElementTree.Element | None:
    """The only child with a tag, or None. ValueError if there are several, of which mmdet would
    silently read the first."""
    children = node.findall(tag)
    if len(children) > 1:
        raise ValueError(f'<{node.tag}> holds {len(children)} <{tag}>')
    return children[0] if children else None


def _text(node: ElementTree.Element, tag: str) -> str:
    child = _single_child(node, tag)
    if child is None or not child.text:
        raise ValueError(f'{node.tag}/{tag} is missing')
    return child.text


def _check_mask(mask: Path, name: str, width: int, height: int) -> _Checked:
    """Check the mask of the image ``name``, whose width and height are in pixels."""
    with Image.open(mask) as image:
        # PIL scales the values of a grey PNG with fewer than 8 bits. Byte 24 is the bit depth.
        bits = 8 if image.mode == 'P' else mask.read_bytes()[24]
        if image.format != 'PNG' or image.mode not in ('L', 'P') or bits != 8:
            what = f'{mask.name}: {image.mode} {image.format}'
            return [('masks not in 8-bit grey or palette PNG format', what)], [], []
        try:
            counts = image.histogram()
        except DECODE_ERRORS:
            return [('truncated', mask.name)], [], []
        palette = image.getpalette() or []
    problems = []
    if image.size != (width, height):
        what = f'{mask.name}: {image.width}x{image.height}, not {width}x{height}'
        problems.append(('masks whose size differs from the image', what))
    ids = [i for i, count in enumerate(counts[:IGNORED_ID]) if count]
    return problems, ids, [palette[3 * i : 3 * i + 3] for i in ids]


def _size(path: Path) -> tuple[int, int] | None:
    """The width and height of an image as OpenCV reads it for mmdet and mmseg; None if it cannot.
    OpenCV decodes a JPEG with an APP1 segment, because it may apply an EXIF orientation."""
    with Image.open(path) as image:
        ordinary = image.format == 'JPEG' and image.mode in ('L', 'RGB')
        if ordinary and 'APP1' not in dict(image.applist):
            return image.size
    try:
        height, width, _ = mmcv.imfrombytes(path.read_bytes()).shape
    except (AttributeError, cv2.error):
        return None
    return width, height
