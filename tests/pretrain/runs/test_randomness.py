"""What is drawn follows from the seed and the place in the run alone."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch.utils.data import Dataset

from pretrain.runs import train_loop
from pretrain.runs.randomness import SeededDataset


def draws() -> list[float]:
    """A number of each generator that networks and augmentation draw from."""
    return [torch.rand(()).item(), np.random.rand(), random.random()]


@DATASETS.register_module()
class Noise(Dataset):
    """Samples that are drawn anew each time, as those of mmdet and mmseg."""

    metainfo = None

    def __getitem__(self, index: int) -> list[float]:
        return [*draws(), index]


def test_a_sample_follows_from_seed_epoch_and_index_alone() -> None:
    first, other = (SeededDataset(dict(type='Noise'), seed) for seed in (3, 4))
    sample = first[5, 7]
    draws()
    assert first[5, 7] == sample
    assert sample[-1] == 7
    different = [sample, first[6, 7], first[5, 8], other[5, 7]]
    for generator in range(3):
        assert len({drawn[generator] for drawn in different}) == 4


class Draw(Hook):
    """Draws at each iteration what the student would draw, such as a dropout's mask."""

    def __init__(self) -> None:
        self.drawn = []

    def before_train_iter(self, runner: Runner, **_: object) -> None:
        self.drawn.append(draws())


def test_an_iteration_draws_by_seed_iteration_and_rank_alone(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(name: str, seed: int = 0, rank: int = 0) -> list[list[float]]:
        settings = 'epochs=2', 'algorithm.generations=1', f'randomness.seed={seed}'
        monkeypatch.setattr(train_loop, 'get_rank', lambda: rank)
        runner = Runner.from_cfg(tiny_config('bl', tmp_path / name, *settings))
        runner.register_hook(look := Draw())
        draws()
        runner.train()
        return look.drawn

    first = drawn('first')
    assert drawn('again') == first
    different = [*first, *drawn('seed', seed=1), *drawn('rank', rank=1)]
    for numbers in zip(*different, strict=True):
        assert len({*numbers}) == 3 * 2 * 4
