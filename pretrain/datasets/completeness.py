"""Check whether a folder holds the data set that the paper used, for tools/prepare_data.py."""

from collections.abc import Mapping
from pathlib import Path

from pretrain.datasets.cifar import MD5, Cifar100
from pretrain.datasets.image_folder import ClassFolder, list_images
from pretrain.runs.errors import UserError, number_of


def require_paths(sources: Mapping[Path, str]) -> None:
    """Check that files and folders exist. ``sources`` maps each path to what must be unpacked for
    it.

    Raises:
        UserError: with one line per missing path.
    """
    missing = [f'No {path}: unpack {what}.' for path, what in sources.items() if not path.exists()]
    if missing:
        raise UserError('\n'.join(missing))


def print_counts(counts: Mapping[str, int], official: Mapping[str, int]) -> None:
    """Print the number of images of each split and whether the paper has as many. A difference is
    no error."""
    for split, count in counts.items():
        other = f"not the paper's data, which has {official[split]:,}"
        verdict = 'as in the paper' if count == official[split] else other
        print(f'{split}: {number_of(count, "images")}, {verdict}')


def require_imagenet(root: Path) -> None:
    """Raise a UserError if ``root`` lacks ``train`` or ``val`` of ImageNet."""
    source = 'ILSVRC2012_img_{}.tar of image-net.org, and move the images to one folder per class'
    require_paths({root / split: source.format(split) for split in ('train', 'val')})


def check_imagenet(root: Path, processes: int | None = None) -> None:
    """Check all images of ILSVRC2012 in ``train/<class>/`` and ``val/<class>/`` and print how many
    there are, in ``processes`` processes (None: one per core).

    Raises:
        UserError: naming the missing folders or the unusable images.
    """
    require_imagenet(root)
    classes = ClassFolder.check(root, batch_size=1, workers=processes).classes
    counts = {split: len(list_images(root, split).paths) for split in ('train', 'val')}
    print_counts(counts, {'train': 1_281_167, 'val': 50_000})
    print(number_of(classes, 'classes'))


def check_cifar100(root: Path) -> None:
    """Compare the files of the folder ``cifar-100-python`` with their published checksums and print
    how many images they hold.

    Raises:
        UserError: naming each missing file, or the first one that is not the official one.
    """
    source = 'cifar-100-python.tar.gz of the CIFAR page of the University of Toronto'
    require_paths({root / name: source for name in MD5})
    counts = {split: len(Cifar100(str(root), split, seed=0)) for split in ('train', 'val')}
    print_counts(counts, {'train': 50_000, 'val': 10_000})
