"""Checkpoints that are safe to load, whole or absent, and resumed only by the run they fit."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import register_backend
from mmengine.fileio.backends import LocalBackend
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from pretrain.errors import UserError


def _history_buffer_method(owner: type, name: str) -> Any:
    """Stands for ``getattr``, by which a HistoryBuffer pickles the methods it is read with."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise RuntimeError(f'refused to read {name} of {owner}')
    return getattr(owner, name)


# What mmengine's own state is pickled with: the log buffers of its message hub.
_MMENGINE_GLOBALS = [
    HistoryBuffer,
    (_history_buffer_method, 'builtins.getattr'),
    np.ndarray,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    np._core.multiarray._reconstruct,
    np._core.multiarray.scalar,
]


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_disk(path: str, map_location: Any = 'cpu') -> dict:
    """Load a local checkpoint without running code that it carries.

    It takes the place of mmengine's loader, which unpickles whatever it finds.

    Raises:
        UserError: if the file is missing, damaged or holds more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise UserError(f'No checkpoint {path}: give the path of an existing .pth file.')
    try:
        with torch.serialization.safe_globals(_MMENGINE_GLOBALS):
            return torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f'{path} is damaged, or holds more than tensors and plain values and could run code: '
            'take an intact file that this suite wrote.'
        ) from error


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a run after a power cut, sees the old file
    or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.part')
    with part.open('wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@register_backend('local', prefixes='', force=True)
class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, whole or absent: a run killed while saving loses nothing."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, obj)


def check_resume(path: str, identity: dict) -> None:
    """Refuse to continue a checkpoint that another run, or another setting, has made.

    Two classification runs that differ in the teacher alone share the first mini-generation, which
    has none (the protocol of Section 4.1). The lengths must agree to the end: a checkpoint holds
    the schedule, and mmengine goes on with that.

    Args:
        path: the checkpoint.
        identity: what must not change while a run lasts, as ``prepare`` of either stage puts it
            in the config and :class:`pretrain.record.RunRecordHook` in the checkpoint.

    Raises:
        UserError: naming the setting that differs.
    """
    meta = load_from_disk(path)['meta']
    if 'identity' not in meta:
        raise UserError(f'{path} was not written by this suite: start a new run instead.')
    theirs, ours = dict(meta['identity']), dict(identity)
    if 'algorithm' in theirs and 'algorithm' in ours:
        before, now = theirs.pop('algorithm'), ours.pop('algorithm')
        if not _same_so_far(before, now, meta['epoch']):
            raise UserError(
                f'{path} (epoch {meta["epoch"]}) was trained with algorithm={before}, this run '
                f'asks for {now}: keep the algorithm, or start from a snapshot_1.pth of the same '
                'generations.'
            )
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            raise UserError(
                f'{path} was trained with {key}={theirs.get(key)}, this run asks for '
                f'{ours.get(key)}: keep the setting, or start a new run in another --work-dir.'
            )


def _same_so_far(theirs: dict, ours: dict, epoch: int) -> bool:
    taught = epoch > theirs['generations'][0]
    settings = ('generations', 'teacher_weight', 'temperature') if taught else ('generations',)
    return all(theirs[key] == ours[key] for key in settings)
