"""Is a folder the data set that the paper used?

Everything that is missing is named, with what to unpack for it; nothing is downloaded or changed.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pretrain.datasets.cifar import MD5, Cifar100
from pretrain.datasets.image_folder import ClassFolder
from pretrain.datasets.picture_checks import UNUSABLE, pictures, scan
from pretrain.runs.errors import UserError, make_all
from pretrain.runs.file_checks import report


def pieces(root: Path, sources: Mapping[str, str]) -> list[Callable[[], None]]:
    """A check of each piece of a data set, for :func:`pretrain.runs.errors.make_all`.

    Args:
        root: the folder of the data set.
        sources: what is to be unpacked for each file or folder below ``root``.
    """

    def check(path: Path, source: str) -> None:
        if not path.exists():
            raise UserError(f'No {path}: unpack {source}.')

    return [partial(check, root / name, source) for name, source in sources.items()]


def print_counts(counts: Mapping[str, int], official: Mapping[str, int]) -> None:
    """Print the number of pictures of each split, and whether it is that of the paper's data.
    Another one is no error: a part of the data is good for trying things out."""
    for split, count in counts.items():
        paper = official[split]
        verdict = (
            'as in the paper' if count == paper else f"not the paper's data, which has {paper:,}"
        )
        print(f'{split}: {count:,} pictures, {verdict}')


def check_imagenet(root: Path, processes: int | None = None) -> None:
    """Look at all pictures of ImageNet's classification challenge of 2012 and print their numbers.

    Args:
        root: holds ``train/<class>/`` and ``val/<class>/``.
        processes: without it as many as the machine has cores.

    Raises:
        UserError: naming each folder that is missing and each picture that is damaged.
    """
    sources = {
        split: f'ILSVRC2012_img_{split}.tar of image-net.org, with the pictures in a folder a class'
        for split in ('train', 'val')
    }
    make_all(pieces(root, sources))
    classes = ClassFolder.check(root, batch_size=1)
    if bad := report(scan(root, processes), UNUSABLE):
        raise UserError(f'{root} has unusable pictures: {bad}. Replace or delete them.')
    splits = Counter(Path(path).relative_to(root).parts[0] for path in pictures(root))
    print_counts(splits, {'train': 1_281_167, 'val': 50_000})
    print(f'{classes:,} classes')


def check_cifar100(root: Path) -> None:
    """Compare the files of CIFAR-100 with their published checksums and print their numbers of
    pictures.

    Args:
        root: the folder ``cifar-100-python``.

    Raises:
        UserError: naming each file that is missing, or one that is not the official one.
    """
    source = 'cifar-100-python.tar.gz of the CIFAR page of the University of Toronto'
    make_all(pieces(root, dict.fromkeys(MD5, source)))
    counts = {split: len(Cifar100(str(root), split, seed=0)) for split in ('train', 'val')}
    print_counts(counts, {'train': 50_000, 'val': 10_000})
