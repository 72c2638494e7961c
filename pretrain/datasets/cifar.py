"""CIFAR-100 on the device, augmented a whole batch at a time, as in Section 4.1."""

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.registry import DATASETS, FUNCTIONS
from torch import Tensor
from torch.utils.data import Dataset

from pretrain.datasets.image_folder import Checked
from pretrain.runs.config import check_counts
from pretrain.runs.errors import UserError
from pretrain.runs.randomness import stable_seed

# Checksums of the official Python version's files.
MD5 = {
    'train': '16019d7e3df5f24257cddd939b257f8d',
    'test': 'f0ef6b0ae62326f3e7ffdfab6717acfc',
    'meta': '7973b15100ade9c7d40fb424638fde48',
}
# The colour of the margin: the rounded mean of the training images, near 0 once normalised.
FILL = (129, 124, 112)
SIZE = 32
MARGIN = 4


@DATASETS.register_module()
class Cifar100(Dataset):
    """CIFAR-100 as uint8 on the training device, where one gather makes a batch.

    A training image gets a grey margin of 4 pixels; a random 32x32 crop is taken from the 40x40
    pixels and flipped with probability 1/2. Test images are not changed.

    Args:
        root: the folder ``cifar-100-python`` with the official files.
        split: 'train' or 'val', which is the official test set.
        seed: of the augmentation.
        images: number of training images to keep, the first ones of each class; None keeps all.

    Raises:
        UserError: if a file is missing or not the official one, or ``images`` is too large or not a
            multiple of 100.
    """

    def __init__(self, root: str, split: str, seed: int, images: int | None = None) -> None:
        training = split == 'train'
        name = 'train' if training else 'test'
        names = _load(Path(root), 'meta')['fine_label_names']
        content = _load(Path(root), name)
        labels = np.array(content['fine_labels'])
        kept = np.arange(len(labels))
        if training and images is not None:
            kept = _first_of_each_class(labels, images, len(names))
        margin = MARGIN if training else 0
        side, inner = SIZE + 2 * margin, slice(margin, margin + SIZE)
        device = get_device()
        pixels = torch.from_numpy(content['data'][kept]).to(device)
        fill = torch.tensor(FILL, dtype=torch.uint8, device=device)
        padded = fill.repeat(len(kept), side, side, 1)
        padded[:, inner, inner] = pixels.view(-1, 3, SIZE, SIZE).permute(0, 2, 3, 1)
        self.pixels = padded.view(-1, 3)
        self.labels = torch.from_numpy(labels[kept]).to(device)
        # Offsets of a crop's pixels from its first pixel: unflipped and flipped.
        crop = torch.arange(side * side, device=device).view(side, side)[:SIZE, :SIZE]
        self.crops = torch.stack([crop, crop.flip(1)]).flatten(1)
        self.side = side
        self.choices = (2 * margin + 1, 2 * margin + 1, 2 if training else 1)
        self.seed = seed
        self.drawn: tuple[int, Tensor] | None = None
        self.files = [f'{name}-{MD5[name]}/{index}' for index in kept.tolist()]
        self.metainfo = {'classes': tuple(names)}

    @staticmethod
    def check(
        root: Path, batch_size: int, processes: int = 1, skip_unusable: bool = False
    ) -> Checked:
        """As :meth:`pretrain.datasets.image_folder.ClassFolder.check`; no image is skipped."""
        contents = {name: _load(root, name) for name in MD5}
        train, val = (len(contents[name]['fine_labels']) for name in ('train', 'test'))
        check_counts(root, train, val, batch_size, processes)
        md5 = {'train': MD5['train'], 'val': MD5['test']}
        return Checked(len(contents['meta']['fine_label_names']), [], lambda: md5)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """A batch of the samples at B pairs (epoch, index), all of one epoch. The loader's collate
        function must be :func:`whole_batch`.

        Returns:
            ``inputs``, uint8 (B, 3, 32, 32) RGB in the memory format channels_last, and
            ``data_samples``, the class indices, int64 (B,), both on the device.
        """
        epochs, indices = zip(*positions, strict=True)
        (epoch,) = set(epochs)
        # A blocking copy would wait for the previous iteration.
        index = torch.tensor(indices).to(self.labels.device, non_blocking=True)
        first, flipped = self._draws(epoch)[:, index]
        pixels = (first[:, None] + self.crops[flipped]).flatten()
        batch = self.pixels.index_select(0, pixels).view(-1, SIZE, SIZE, 3)
        return {'inputs': batch.permute(0, 3, 1, 2), 'data_samples': self.labels[index]}

    def file_list(self) -> list[str]:
        """For each sample, '<file>-<md5>/<index>' of its image in the official file."""
        return self.files

    def _draws(self, epoch: int) -> Tensor:
        """int64 (2, N): for each image, the position in ``pixels`` where its crop starts, and
        whether it is flipped (0 or 1)."""
        if self.drawn is None or self.drawn[0] != epoch:
            # The length keeps this key unlike the sampler's: stable_seed(s) == stable_seed(s, 0).
            seed = stable_seed(self.seed, epoch, len(self))
            generator = torch.Generator().manual_seed(seed)
            y, x, flipped = (
                torch.randint(choices, (len(self),), generator=generator)
                for choices in self.choices
            )
            first = (torch.arange(len(self)) * self.side + y) * self.side + x
            self.drawn = epoch, torch.stack([first, flipped]).to(self.labels.device)
        return self.drawn[1]


@FUNCTIONS.register_module()
def whole_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The collate function for data sets that return whole batches: it changes nothing."""
    return batch


def _load(root: Path, name: str) -> dict[str, Any]:
    """The content of an official file; UserError if it is missing or changed."""
    path = root / name
    if not path.is_file():
        raise UserError(
            f'No file {path}: unpack the official cifar-100-python.tar.gz and set data_root to its '
            'folder cifar-100-python (option data_root=DIR).'
        )
    data = path.read_bytes()
    # A pickle can run code, so only the published bytes are unpickled.
    if hashlib.md5(data).hexdigest() != MD5[name]:
        raise UserError(
            f'{path} is damaged or not the official file (its md5 is not {MD5[name]}): unpack '
            'the official cifar-100-python.tar.gz again.'
        )
    return pickle.loads(data, encoding='latin1')


def _first_of_each_class(labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """The ascending indices of ``count`` images. All classes must be equally frequent."""
    if not isinstance(count, int) or not 0 < count <= len(labels) or count % classes:
        raise UserError(
            f'train_dataloader.dataset.images is {count}: it must be a multiple of {classes}, the '
            f'number of classes, up to {len(labels)}.'
        )
    by_class = np.argsort(labels, kind='stable').reshape(classes, -1)
    return np.sort(by_class[:, : count // classes], axis=None)
