"""ImageNet-style folders, augmented as in Section 4.2 as a function of (seed, epoch, index)."""

import os
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import torchvision
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from pretrain.datasets.augmentation import draw_augmentation
from pretrain.datasets.decode import Picture, centre_box, random_box
from pretrain.datasets.picture_checks import UNUSABLE, scan
from pretrain.runs.config import check_counts
from pretrain.runs.errors import UserError
from pretrain.runs.file_checks import report
from pretrain.runs.randomness import stable_seed, torch_seed


@DATASETS.register_module()
class ClassFolder(torchvision.datasets.ImageFolder):
    """``root/<split>/<class>/<picture>``; a sample is ``inputs``, uint8 (3, size, size) RGB, and
    ``data_samples``, mmengine's name for the target: here the class index. A sample to train on has
    ``augmentation`` as well, for :class:`pretrain.datasets.augmentation.AugmentingPreprocessor`.

    Samples are asked for by (epoch, index), as :class:`EpochSampler` gives them, and drawn from
    (seed, epoch, index) alone: the number of workers, a resume or a second process change none.

    Args:
        root: the folder that holds the splits.
        split: 'train' or 'val'.
        seed: of the augmentation.
        size: side of the output in pixels.
        crop_area: the least and the greatest share of a picture that a random crop keeps; without
            it the sample is the centre crop.
        skip: pictures to leave out, by their paths relative to ``root``.
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
        super().__init__(str(Path(root) / split))
        left_out = {str(Path(root) / name) for name in skip}
        self.samples = [sample for sample in self.samples if sample[0] not in left_out]
        self.seed = seed
        self.size = size
        self.crop_area = crop_area
        self.metainfo = {'classes': tuple(self.classes)}

    def __getitem__(self, position: tuple[int, int]) -> dict[str, Tensor | int]:
        epoch, index = position
        path, label = self.samples[index]
        picture = Picture(path)
        shape = picture.height, picture.width
        if self.crop_area is None:
            image = picture.crop(centre_box(*shape), self.size)
            return {'inputs': image, 'data_samples': label}
        with torch_seed(stable_seed(self.seed, epoch, index)):
            box = random_box(*shape, self.crop_area)
            augmentation = draw_augmentation()
        image = picture.crop(box, self.size)
        return {'inputs': image, 'data_samples': label, 'augmentation': augmentation}

    @classmethod
    def check(cls, root: Path, batch_size: int, processes: int = 1) -> int:
        """Look at an ImageNet-style root (``train/<class>/``, ``val/<class>/``) before a run.

        Args:
            root: the folder that holds both splits.
            batch_size: at least so many training pictures must be there.
            processes: at least so many test pictures must be there.

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
        counts = {}
        for split, least in (('train', batch_size), ('val', processes)):
            # Class by class, since a class may be a link and rglob follows none.
            pictures = chain.from_iterable(_pictures(root / split / c) for c in classes[split])
            counts[split] = len(list(islice(pictures, least)))
        check_counts(root, **counts, batch_size=batch_size, processes=processes)
        return len(classes['train'])

    @staticmethod
    def unusable(root: Path, skip: bool) -> list[str]:
        """The pictures of an ImageNet-style root that cannot be trained with.

        Args:
            root: as for :meth:`check`.
            skip: whether there may be any.

        Returns:
            Their paths relative to ``root``, sorted.

        Raises:
            UserError: naming them, unless ``skip``.
        """
        found = scan(root)
        bad = report(found, UNUSABLE)
        if bad and not skip:
            raise UserError(
                f'{root} holds pictures that cannot be trained with: {bad}. Replace or delete '
                'them, or add --cfg-options skip_unusable=True.'
            )
        if bad:
            print(f'Left out of {root}: {bad}.')
        return sorted(name for kind in UNUSABLE for name in found.get(kind, ()))

    def file_list(self) -> list[str]:
        """The pictures' paths relative to the root, in the order of the labels."""
        return [path.removeprefix(f'{self.root}{os.sep}') for path, _ in self.samples]


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
