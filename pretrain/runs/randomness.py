"""Random numbers that depend only on (seed, epoch, index), so that resuming changes none."""

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset


def stable_seed(*key: int) -> int:
    """A 63-bit seed from non-negative integers. Unlike sums, nearby keys give unrelated seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also queue a CUDA call in every worker for every image.
        torch.default_generator.manual_seed(seed)
        yield


def seed_all(*key: int) -> None:
    """Seed every generator of this process: Python's, NumPy's and torch's on all devices."""
    seed = stable_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """mmengine's sampler, but it yields (epoch, index), so that the epoch reaches persistent
    workers. Nearby seeds share no permutation, unlike with ``DefaultSampler``, which shuffles with
    seed + epoch."""

    def __init__(self, dataset: Sized, shuffle: bool, seed: int) -> None:
        super().__init__(dataset, shuffle=shuffle, seed=stable_seed(seed))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in super().__iter__())


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Wraps a data set of mmdet or mmseg, built from the config ``dataset``, so that augmentation
    depends only on (seed, epoch, index). Its keys are the (epoch, index) of :class:`EpochSampler`.
    """

    def __init__(self, dataset: dict, seed: int) -> None:
        self.dataset = DATASETS.build(dataset)
        self.seed = seed
        self.metainfo = self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: tuple[int, int]) -> Any:
        epoch, index = position
        seed_all(self.seed, epoch, index)
        return self.dataset[index]

    def get_data_info(self, position: tuple[int, int] | int) -> dict:
        """The annotations of a sample, by (epoch, index) or index, without loading the image."""
        return self.dataset.get_data_info(position if isinstance(position, int) else position[1])
