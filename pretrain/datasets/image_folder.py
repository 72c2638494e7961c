"""ImageNet-style folders, augmented as in Section 4.2 as a function of (seed, epoch, index)."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import torchvision
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from pretrain.errors import UserError
from pretrain.randomness import stable_seed, torch_seed

# The grey that the normalisation maps to 0, for the corners that a rotation uncovers.
FILL = (124, 116, 104)


def train_transform(size: int, crop_area: Sequence[float]) -> v2.Transform:
    """PIL image to uint8 (3, size, size): scale and aspect ratio, mirror, rotation, jitter.

    ``crop_area`` is the least and the greatest share of the picture that a crop keeps.
    """
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=crop_area, ratio=(3 / 4, 4 / 3), antialias=True),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR, fill=FILL),
            v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
            v2.PILToTensor(),
        ]
    )


def val_transform(size: int) -> v2.Transform:
    """PIL image to uint8 (3, size, size): the single centre crop of 224 in 256, at any size."""
    return v2.Compose(
        [v2.Resize(size * 256 // 224, antialias=True), v2.CenterCrop(size), v2.PILToTensor()]
    )


@DATASETS.register_module()
class ClassFolder(torchvision.datasets.ImageFolder):
    """``root/<split>/<class>/<picture>``; a sample is ``inputs``, uint8 (3, H, W) RGB, and
    ``data_samples``, mmengine's name for the target: here the class index.

    Samples are asked for by (epoch, index), as :class:`EpochSampler` gives them, and drawn from
    (seed, epoch, index) alone: the number of workers, a resume or a second process change none.

    Args:
        root: the folder that holds the splits.
        split: 'train' or 'val'.
        seed: of the augmentation.
        size: side of the output in pixels.
        crop_area: for :func:`train_transform`; without it, :func:`val_transform`.
    """

    def __init__(
        self,
        root: str,
        split: str,
        seed: int,
        size: int,
        crop_area: Sequence[float] | None = None,
    ) -> None:
        transform = train_transform(size, crop_area) if crop_area else val_transform(size)
        super().__init__(str(Path(root) / split), transform=transform)
        self.seed = seed
        self.metainfo = {'classes': tuple(self.classes)}

    def __getitem__(self, position: tuple[int, int]) -> dict[str, Tensor | int]:
        epoch, index = position
        with torch_seed(stable_seed(self.seed, epoch, index)):
            image, label = super().__getitem__(index)
        return {'inputs': image, 'data_samples': label}

    @classmethod
    def check(cls, root: Path, batch_size: int) -> int:
        """Look at an ImageNet-style root (``train/<class>/``, ``val/<class>/``) before a run.

        Args:
            root: the folder that holds both splits.
            batch_size: at least so many training pictures must be there.

        Returns:
            The number of classes.

        Raises:
            UserError: if a split is missing, the splits' classes differ, a class has no picture or
                there are too few.
        """
        classes = {}
        for split in ('train', 'val'):
            folder = root / split
            if not folder.is_dir():
                raise UserError(
                    f'No folder {folder}: set data_root to a folder that holds train/<class>/ and '
                    'val/<class>/ pictures (--cfg-options data_root=DIR).'
                )
            classes[split] = sorted(p.name for p in folder.iterdir() if p.is_dir())
            if not classes[split]:
                raise UserError(f'{folder} has no class folder: it must hold one for each class.')
            for name in classes[split]:
                if next(_pictures(folder / name), None) is None:
                    raise UserError(f'{folder / name} has no picture: fill the class or remove it.')
        if differing := sorted(set(classes['train']) ^ set(classes['val'])):
            raise UserError(
                f'train and val of {root} do not hold the same classes: {", ".join(differing[:4])} '
                'is in one of them only.'
            )
        # Class by class, since a class may be a link and rglob follows none.
        pictures = chain.from_iterable(
            _pictures(root / 'train' / name) for name in classes['train']
        )
        count = len(list(islice(pictures, batch_size)))
        if count < batch_size:
            raise UserError(
                f'{root} has {count} training pictures, less than batch_size={batch_size}: '
                'lower batch_size.'
            )
        return len(classes['train'])

    def file_list(self) -> list[str]:
        """The pictures' paths relative to the root, in the order of the labels."""
        return [str(Path(path).relative_to(self.root)) for path, _ in self.samples]


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """mmengine's sampler, yielding (epoch, index).

    The epoch reaches persistent workers this way, and no two seeds share a permutation
    (``DefaultSampler`` shuffles with seed + epoch).
    """

    def __init__(self, dataset: ClassFolder, shuffle: bool, seed: int) -> None:
        super().__init__(dataset, shuffle=shuffle, seed=stable_seed(seed))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob('*') if path.suffix.lower() in IMG_EXTENSIONS)
