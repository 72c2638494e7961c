"""Load checkpoints safely, write them atomically and detect damage by checksums."""

import hashlib
import io
import os
import re
import struct
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.fileio import register_backend
from mmengine.fileio.backends import LocalBackend
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from pretrain.runs.errors import UserError, counted


def _history_buffer_method(owner: type, name: str) -> Any:
    """Replaces ``getattr``, by which a pickled HistoryBuffer refers to its own methods."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise RuntimeError(f'refused to read {name} of {owner}')
    return getattr(owner, name)


# The classes and functions that the log buffers of mmengine's message hub need for unpickling.
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


def install() -> None:
    """From now on, mmengine loads checkpoints with :func:`load_from_disk` in this process and
    writes local files with :class:`AtomicLocalBackend`."""
    CheckpointLoader.register_scheme(prefixes='', loader=load_from_disk, force=True)
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')


def load_from_disk(path: str, map_location: Any = 'cpu') -> dict:
    """Load a local checkpoint without running code that it contains, unlike mmengine's loader.

    Raises:
        UserError: if the file is missing or damaged, contains anything but tensors and plain
            values, or is not a dict.
    """
    if not Path(path).is_file():
        raise UserError(f'No checkpoint {path}: give the path of an existing .pth file.')
    if _is_zip(path) and not is_whole(path):
        raise UserError(f'{path} is damaged: use an intact copy.')
    try:
        with torch.serialization.safe_globals(_MMENGINE_GLOBALS):
            content = torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, MemoryError):  # not the file's fault
        raise
    except Exception as error:  # torch raises many types for a damaged file, even struct.error
        raise UserError(
            f'{path} is damaged, or holds objects that could run code: use an intact .pth file '
            'of tensors and plain values, or ask its owner to save only model.state_dict().'
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f'{path} holds a {type(content).__name__}, not a dict of tensors: choose a checkpoint.'
        )
    return content


def _is_zip(path: str | Path) -> bool:
    """Whether torch will read a file as a zip archive; before version 1.6 it wrote pickles."""
    with Path(path).open('rb') as file:
        return file.read(4) == b'PK\3\4'


def seal(data: bytes) -> bytes:
    """Append a checksum to the bytes that ``torch.save`` wrote: the SHA-256 of all bytes before it,
    as the comment of the zip archive, so that other programs can still read the file."""
    sealed = bytearray(data)
    sealed[-2:] = struct.pack('<H', _SEAL_LENGTH)  # the length of the comment that follows
    sealed += _SEAL + hashlib.sha256(sealed).hexdigest().encode()
    return bytes(sealed)


def save_sealed(content: Any, path: str | Path) -> None:
    """Like ``torch.save``, but atomic and with a checksum (:func:`seal`)."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, seal(buffer.getvalue()))


_SEAL = b'sha256:'
_SEAL_LENGTH = len(_SEAL) + 64


def is_whole(path: str | Path) -> bool:
    """Whether a zip file that ``torch.save`` wrote is undamaged.

    In a sealed file (see :func:`seal`), a change of any bit is detected. In other files, only the
    CRC-32 of each zip record is checked, which ``torch.load`` ignores.

    Raises:
        OSError: if the file cannot be read.
    """
    with Path(path).open('rb') as file:
        left = max(0, file.seek(0, os.SEEK_END) - _SEAL_LENGTH)
        file.seek(left)
        end = file.read()
        if not end.startswith(_SEAL):
            return end.endswith(b'\0\0') and _records_are_whole(path)
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(min(left, 2**20)):
            digest.update(chunk)
            left -= len(chunk)
    return end == _SEAL + digest.hexdigest().encode()


def _records_are_whole(path: str | Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, ValueError, EOFError):
        return False


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and create its folder. Even after a power cut, or if several
    processes write at once, a reader sees the whole old file or a whole new one.

    Raises:
        OSError: naming ``path``, if the disk is full or writing is not permitted; the old file
            stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}.part')
    try:
        with part.open('xb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)  # free the space again on a full disk
        error.filename = str(path)
        raise


class AtomicLocalBackend(LocalBackend):
    """mmengine's backend for local files, but ``put`` is atomic and seals ``.pth`` files."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        write_atomically(filepath, seal(obj) if str(filepath).endswith('.pth') else obj)


_CHECKPOINT_NAME = re.compile(r'epoch_(\d+)(?:_iter_(\d+))?\.pth')


def progress(path: Path) -> tuple[int, int] | None:
    """The finished epochs and the iterations of the next epoch, from a checkpoint's name; None if
    the file is not named like a checkpoint.

    Example:
        >>> progress(Path('epoch_3_iter_57.pth'))
        (3, 57)
    """
    match = _CHECKPOINT_NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def checkpoints(work_dir: Path) -> list[Path]:
    """The checkpoints that a run in ``work_dir`` can resume from, oldest first."""
    return sorted(filter(progress, work_dir.glob('epoch_*.pth')), key=progress)


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensor_mismatch(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], owner: str
) -> str | None:
    """Describe how the tensors ``given`` by a file differ in name or shape from those ``wanted`` by
    a network, which may be on the meta device; None if they match. ``owner`` names the network."""
    shapes = {
        name: f'{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}'
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    }
    problems = {
        f'tensors that {owner} has are missing': [name for name in wanted if name not in given],
        f'tensors are not in {owner}': [name for name in given if name not in wanted],
        f'tensors have a different shape than in {owner}': list(shapes.values()),
    }
    for problem, names in problems.items():
        if names:
            return counted(names, problem, most=3)
    return None
