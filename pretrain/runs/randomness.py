"""Random numbers as functions of (seed, epoch, index) alone, so that a stop changes none."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stable_seed(*key: int) -> int:
    """A 63-bit seed; nearby keys give unrelated seeds, unlike their sum."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and restore it after."""
    state = torch.get_rng_state()
    # Not torch.manual_seed, which also queues a CUDA call in every worker for every picture.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
