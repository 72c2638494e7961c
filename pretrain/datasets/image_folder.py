"""ImageNet-style folders, augmented as in Section 4.2, reproducibly from (seed, epoch, index)."""

import filecmp
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from mmengine.registry import DATASETS
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from pretrain.datasets.augmentation import draw_augmentation
from pretrain.datasets.decode import EncodedImage, centre_box, random_box
from pretrain.datasets.image_checks import HIDDEN, OTHER_FORMAT, UNUSABLE, check_image, check_images
from pretrain.runs.config import check_counts
from pretrain.runs.errors import UserError, counted, warn_once
from pretrain.runs.file_checks import (
    cached,
    content_sha256,
    describe_findings,
    fingerprint,
    paths_within,
)
from pretrain.runs.randomness import stable_seed, torch_seed

# File extensions that torchvision's ImageFolder reads, and of images that it silently skips.
_EXTENSIONS = tuple(map(str.encode, IMG_EXTENSIONS))
_NOT_READ = b'.avif', b'.gif', b'.heic', b'.heif', b'.jfif', b'.jp2', b'.jpe', b'.jxl', b'.tga'
# Folders in which storage devices and archives keep copies, such as thumbnails.
_OF_COPIES = '@eaDir', '@Recycle', '#recycle', '__MACOSX'
# A name that torchvision skips though it may be an image's: a, a.jpg.1, a.jpg~ or 'a.jpg '.
_UNCLEAR = re.compile(rb'[^.]*|.*(%s)(\.\d+|~| +)' % b'|'.join(map(re.escape, _EXTENSIONS)))


class ImageList(NamedTuple):
    """The images of a split, in arrays, because each loader worker would copy Python objects.

    Attributes:
        classes: the sorted names of the class folders.
        paths: (N,) of bytes, the paths relative to the root, such as b'train/n01/a.JPEG'.
        labels: (N,) int32, the class index of each image.
        others: paths relative to the root of images in formats that are not read.
    """

    classes: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray
    others: list[str]


class Checked(NamedTuple):
    """What the check of a data set returns.

    Attributes:
        classes: number of classes.
        skip: the images to leave out, sorted paths relative to the root.
        hash_content: reads all images and returns a hash of each split's names and bytes.
    """

    classes: int
    skip: list[str]
    hash_content: Callable[[], dict[str, str]]


def list_images(root: Path, split: str, skip: Sequence[str] = ()) -> ImageList:
    """List the images in ``root/<split>/<class>/`` at any depth, in the order of torchvision's
    ImageFolder, except those whose paths relative to ``root`` are in ``skip``.

    Raises:
        UserError: if there is no class, a class has no image, an image lies outside the class
            folders, a folder is unreadable, hidden or a link to one of its parents, or a name is
            not UTF-8.
    """
    folder, left_out = root / split, set(map(os.fsencode, skip))
    if not folder.is_dir():
        raise UserError(
            f'No folder {folder}: set data_root to a folder that holds train/<class>/ and '
            'val/<class>/ images (option data_root=DIR).'
        )
    entries = sorted(os.scandir(folder), key=attrgetter('name'))
    classes = [entry.name for entry in entries if entry.is_dir()]
    if not classes:
        raise UserError(f'{folder} has no class folder: it must hold one for each class.')
    files = [entry.name for entry in entries if not entry.is_dir() and entry.name[0] != '.']
    if loose := [name for name in files if name.lower().endswith(IMG_EXTENSIONS)]:
        raise UserError(
            f'{folder} has {counted(loose, "images")} outside the class folders: move each to '
            'the folder of its class, or delete it.'
        )
    # Bytes take half the time of strings and sort in the same order.
    top = os.fsencode(root) + b'/'
    paths, counts, others = [], [], []
    for name in classes:
        before = len(paths)
        for parent, files in sorted(_walk(os.fsencode(folder / name))):
            prefix = parent.removeprefix(top) + b'/'
            found = [prefix + file for file in sorted(files) if file.lower().endswith(_EXTENSIONS)]
            if len(found) < len(files):
                rest = ((prefix + file, file.lower()) for file in files)
                others += [path for path, file in rest if _is_misnamed(top + path, file)]
            paths += [path for path in found if path not in left_out] if skip else found
        counts.append(len(paths) - before)
        if not counts[-1]:
            what = 'usable image' if skip else 'image'
            raise UserError(f'{folder / name} has no {what}: add some or remove the folder.')
    try:
        b'\n'.join(paths + others).decode()
    except UnicodeDecodeError as error:
        raise UserError(f'{folder} has a name that is not UTF-8 ({error}): rename it.') from error
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    return ImageList(tuple(classes), np.array(paths), labels, [*map(os.fsdecode, others)])


def _walk(folder: bytes) -> Iterator[tuple[bytes, list[bytes]]]:
    """``folder`` and each folder below it, links included, with the names of its files."""
    for parent, subfolders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        path = Path(os.fsdecode(parent))
        if path.name.startswith('.') or path.name in _OF_COPIES:
            raise UserError(
                f'{path} is hidden, or a folder in which devices and archives keep copies, and its '
                'images would be trained on: move it elsewhere or delete it.'
            )
        for name in map(os.fsdecode, subfolders):
            if (path / name).is_symlink() and path.resolve().is_relative_to(
                (path / name).resolve()
            ):
                raise UserError(f'{path / name} is a link to a folder above it: delete it.')
        yield parent, files


def _is_misnamed(path: bytes, file: bytes) -> bool:
    """Whether an image has a file name, here in lower case, that torchvision's ImageFolder silently
    skips: that of another format, or one like ``a``, ``a.jpg.1`` or ``a.jpg~``."""
    if file.endswith(_EXTENSIONS):
        return False
    if file.endswith(_NOT_READ):
        return True
    # Others, such as a caption beside each image, are not opened, because they may be many.
    no_image = 'unreadable', 'empty', 'not an image'
    return bool(_UNCLEAR.fullmatch(file)) and check_image(os.fsdecode(path)) not in no_image


def _refuse(error: OSError) -> NoReturn:
    """Raise a UserError for a folder that ``os.walk`` would silently leave out."""
    raise UserError(
        f'{os.fsdecode(error.filename)} cannot be read ({error.strerror}): make it readable, or '
        'remove it.'
    ) from error


def _check_classes(root: Path, train: Sequence[str], val: Sequence[str]) -> None:
    """Raise a UserError unless both splits have the same classes, in different folders."""
    only = {'train': {*train}.difference(val), 'val': {*val}.difference(train)}
    if any(only.values()):
        # macOS and other systems may write the same letters with different characters.
        alike = {unicodedata.normalize('NFC', name) for names in only.values() for name in names}
        show = ascii if len(alike) < sum(map(len, only.values())) else repr
        found = (
            f'only {split} has {counted([*map(show, sorted(names))], "classes")}'
            for split, names in only.items()
            if names
        )
        raise UserError(
            f'train and val of {root} hold different classes: {", ".join(found)}. Give both the '
            'same.'
        )
    for name in train:
        if (root / 'train' / name).samefile(root / 'val' / name):
            raise UserError(
                f'train/{name} and val/{name} of {root} are the same folder, so a run would be '
                'tested on its training images: give each split its own images.'
            )


def _warn_of_copies(root: Path, train: Sequence[bytes], val: Sequence[bytes], state: str) -> None:
    """Print a warning if training and test images of one name are equal, as after a split that
    copied images and did not move them. ``state`` is the fingerprint of both lists."""
    tested = {path.removeprefix(b'val/') for path in val}
    trained = (path.removeprefix(b'train/') for path in train)
    common = [os.fsdecode(name) for name in trained if name in tested]

    def compare() -> tuple[list[str], bool]:
        equal = partial(filecmp.cmp, shallow=False)
        return [n for n in common if equal(root / 'train' / n, root / 'val' / n)], True

    if common and (shared := cached('copies', root.resolve(), state, compare)):
        warn_once(
            f'train and val of {root} share {counted(shared, "images")}: a run is tested on images '
            'that it was trained on.'
        )


@DATASETS.register_module()
class ClassFolder(Dataset):
    """The images ``root/<split>/<class>/<image>``. A sample has ``inputs``, uint8 (3, size, size)
    RGB, and ``data_samples``, the class index; with a random crop also ``augmentation``, for
    :class:`pretrain.datasets.augmentation.AugmentingPreprocessor`.

    Args:
        root: the folder that holds the splits.
        split: 'train' or 'val'.
        seed: of the augmentation.
        size: height and width of a sample in pixels.
        crop_area: the smallest and the largest share of the image's area that a random crop keeps;
            None for the centre crop without augmentation.
        skip: images to leave out, as paths relative to ``root``.

    Raises:
        UserError: as :func:`list_images`.
    """

    def __init__(
        self,
        root: str,
        split: str,
        seed: int,
        size: int,
        crop_area: Sequence[float] | None = None,
        skip: Sequence[str] = (),
    ) -> None:
        self.root = Path(root)
        self.split = split
        classes, self.paths, self.labels, _ = list_images(Path(root), split, skip)
        self.seed = seed
        self.size = size
        self.crop_area = crop_area
        self.metainfo = {'classes': classes}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: tuple[int, int]) -> dict[str, Tensor | int]:
        epoch, index = position
        label = int(self.labels[index])
        encoded = EncodedImage(self.root / os.fsdecode(self.paths[index]))
        shape = encoded.height, encoded.width
        if self.crop_area is None:
            image = encoded.crop(centre_box(*shape), self.size)
            return {'inputs': image, 'data_samples': label}
        with torch_seed(stable_seed(self.seed, epoch, index)):
            box = random_box(*shape, self.crop_area)
            augmentation = draw_augmentation()
        image = encoded.crop(box, self.size)
        return {'inputs': image, 'data_samples': label, 'augmentation': augmentation}

    @staticmethod
    def check(
        root: Path,
        batch_size: int,
        processes: int = 1,
        skip_unusable: bool = False,
        workers: int | None = None,
    ) -> Checked:
        """Check an ImageNet-style root (``train/<class>/``, ``val/<class>/``) before a run.

        Args:
            root: the folder that holds both splits.
            batch_size: over all processes; the least number of training images.
            processes: the least number of test images.
            skip_unusable: skip and print the unusable images instead of raising an error.
            workers: number of processes that check the images; None: one per core.

        Raises:
            UserError: naming what is missing, differs between the splits or is unusable.
        """
        train, val = (list_images(root, split) for split in ('train', 'val'))
        _check_classes(root, train.classes, val.classes)
        lists = {'train': train.paths.tolist(), 'val': val.paths.tolist()}
        place = root.resolve()
        states = {split: fingerprint(paths_within(place, names)) for split, names in lists.items()}
        names = [*lists['train'], *lists['val']]
        found = check_images(root, names, ' '.join(states.values()), workers)
        if others := sorted(train.others + val.others):
            found[OTHER_FORMAT] = others
        if hidden := {os.fsdecode(name) for name in names if b'/.' in name}:
            found = {kind: [n for n in its if n not in hidden] for kind, its in found.items()}
            found[HIDDEN] = sorted(hidden)
        if bad := describe_findings(found, UNUSABLE):
            if not skip_unusable:
                raise UserError(
                    f'{root} holds images that a run cannot use: {bad}. Rename, replace or '
                    'delete them, or start runs with the option skip_unusable=True.'
                )
            print(f'Left out of {root}: {bad}.')
        skip = sorted(name for kind in UNUSABLE for name in found.get(kind, ()))
        if skip:
            train, val = (list_images(root, split, skip) for split in ('train', 'val'))
        _warn_of_copies(root, train.paths.tolist(), val.paths.tolist(), ' '.join(states.values()))
        counts = {'train': len(train.paths), 'val': len(val.paths)}
        check_counts(root, **counts, batch_size=batch_size, processes=processes)

        def hash_content() -> dict[str, str]:
            return {s: content_sha256(place / s, place, lists[s], states[s]) for s in lists}

        return Checked(len(train.classes), skip, hash_content)

    def file_list(self) -> list[str]:
        """The path of each image relative to the split's folder, in the order of the samples."""
        return [path.decode().removeprefix(f'{self.split}/') for path in self.paths.tolist()]
