"""A look at every picture of an ImageNet-style root, before a run over them that takes days.

Of JPEG, PNG and WebP files the header and the end are read alone. Files of other formats, and
those whose end is not where it belongs, are decoded.
"""

import hashlib
import io
import json
import multiprocessing
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from pretrain.checkpoint import write_atomically

# Unreadable is a link to nowhere or a file without permission, too large more than PIL's 179
# million pixels.
UNUSABLE = ('unreadable', 'empty', 'not an image', 'truncated', 'too large', '16-bit', 'animated')
CONVERTED = ('CMYK', 'grey')  # usable, and read as RGB
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # PIL's, of damage
_TAIL = 4096  # bytes
_CHUNK = 512  # files at a time for a process


def pictures(root: Path) -> list[str]:
    """The paths of what torchvision's ImageFolder takes for pictures in ``train/<class>/`` and
    ``val/<class>/`` of ``root``. Raises FileNotFoundError if a split or its classes lack."""
    splits = [
        make_dataset(root / split, extensions=IMG_EXTENSIONS, allow_empty=True)
        for split in ('train', 'val')
    ]
    return [path for samples in splits for path, _ in samples]


def scan(root: Path, processes: int | None = None) -> dict[str, list[str]]:
    """Find the pictures that a run would stumble over and those that it converts. The result is
    kept in the user's cache directory, until a picture is added, removed or changed.

    Args:
        root: as for :func:`pictures`.
        processes: for many pictures; without it as many as the machine has cores.

    Returns:
        The sorted paths relative to ``root`` of each kind of ``UNUSABLE`` and ``CONVERTED`` that
        occurs; a picture is of one kind at most.
    """
    root = root.resolve()
    paths = pictures(root)
    fingerprint = _fingerprint(paths)
    base = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    cache = base / 'snapshot-distillation' / f'scan-{key}.json'
    # A missing, a damaged and an outdated result are the same: a new one takes their place.
    try:
        cached = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        cached = None
    if isinstance(cached, dict) and fingerprint in cached:
        return cached[fingerprint]
    if len(paths) > 10_000:
        print(f'Looking at {len(paths):,} pictures of {root} ...', flush=True)
    found = {kind: [] for kind in UNUSABLE + CONVERTED}
    for path, kind in zip(paths, parallel_map(_kind, paths, _CHUNK, processes), strict=True):
        if kind is not None:
            found[kind].append(path.removeprefix(f'{root}/'))
    found = {kind: sorted(names) for kind, names in found.items() if names}
    try:
        write_atomically(cache, json.dumps({fingerprint: found}).encode())
    except OSError as error:
        print(f'warning: the next run looks at {root} again: {error}', file=sys.stderr)
    return found


def report(found: dict[str, list[str]], kinds: Iterable[str]) -> str:
    """Some kinds of what :func:`scan` has found, with up to three names each, such as
    '2 truncated (train/n01/a.JPEG, train/n02/b.JPEG), 1 empty (val/n01/c.JPEG)'."""
    return ', '.join(
        f'{len(names):,} {kind} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
        for kind in kinds
        if (names := found.get(kind))
    )


def parallel_map(
    function: Callable[[Any], Any], items: Sequence, chunk: int, processes: int | None
) -> Iterator:
    """``map`` in several processes, if there are the 32 chunks that make up for starting them."""
    if processes == 1 or len(items) < 32 * chunk:
        yield from map(function, items)
        return
    # Not forked from this process, whose threads may hold locks, but from one without threads that
    # has imported this module, and torch with it, once for all.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(processes, context) as pool:
        yield from pool.map(function, items, chunksize=chunk)


def _fingerprint(paths: Sequence[str]) -> str:
    digest = hashlib.sha256(b'1\n')  # 2 when the kinds change
    for path in paths:
        try:
            info = Path(path).stat()
        except OSError:  # a link to nowhere, which the scan reports
            info = Path(path).lstat()
        digest.update(os.fsencode(f'{path}\0{info.st_size} {info.st_mtime_ns}\n'))
    return digest.hexdigest()


def _kind(path: str) -> str | None:
    """The kind of a file; None of an ordinary picture."""
    try:
        with Path(path).open('rb') as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
            file.seek(0)
            return _kind_of(file, _is_complete(file.peek(12), tail, size)) if size else 'empty'
    except OSError:
        return 'unreadable'


def _is_complete(head: bytes, tail: bytes, size: int) -> bool | None:
    """Whether a file ends as its format does; None if its head and tail cannot tell.

    The pixels of a JPEG contain no marker, so an FFD9 in its tail ends them, whatever follows,
    unless it is that of a thumbnail in the header: then the FFDA that begins the pixels follows, or
    the file has none. An end further in front is left to the decoder; damage in the middle passes.
    """
    if head.startswith(b'\xff\xd8\xff'):
        return tail.rfind(b'\xff\xd9') > tail.rfind(b'\xff\xda')
    if head.startswith(b'\x89PNG\r\n\x1a\n'):
        return b'IEND\xaeB`\x82' in tail
    if head.startswith(b'RIFF') and head[8:12] == b'WEBP':
        return int.from_bytes(head[4:8], 'little') + 8 <= size
    return None


def _kind_of(file: BinaryIO, complete: bool | None) -> str | None:
    if complete is False:  # a power cut may leave zeros at the end, which decoders take for pixels
        file = io.BytesIO(file.read().rstrip(b'\0'))
    try:
        image = Image.open(file)
        if not complete or (image.format == 'JPEG' and not image.tile):  # no pixels: load() fails
            image.load()
        # A photo of several views, or with a preview, is not animated.
        animated = image.format != 'MPO' and getattr(image, 'is_animated', False)
    except Image.DecompressionBombError:
        return 'too large'
    except UnidentifiedImageError:
        return 'truncated' if complete is False else 'not an image'
    except DECODE_ERRORS:
        return 'truncated'
    if animated:
        return 'animated'
    if image.mode.startswith(('I', 'F')):
        return '16-bit'
    return {'CMYK': 'CMYK', '1': 'grey', 'L': 'grey', 'LA': 'grey'}.get(image.mode)
