"""A look at every picture of an ImageNet-style root, before a run over them that takes days.

Of JPEG, PNG and WebP files the header and the end are read alone. Files of other formats, and
those whose end is not where it belongs, are decoded.
"""

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from pretrain.runs.file_checks import fingerprint, parallel_map, remembered

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

    def look() -> dict[str, list[str]]:
        if len(paths) > 10_000:
            print(f'Looking at {len(paths):,} pictures of {root} ...', flush=True)
        found = {kind: [] for kind in UNUSABLE + CONVERTED}
        kinds = parallel_map(kind_of_picture, paths, _CHUNK, processes)
        for path, kind in zip(paths, kinds, strict=True):
            if kind is not None:
                found[kind].append(path.removeprefix(f'{root}/'))
        return {kind: sorted(names) for kind, names in found.items() if names}

    return remembered('scan', root, fingerprint(paths, 1), look)  # 2 when the kinds change


def kind_of_picture(path: str | Path) -> str | None:
    """Of ``UNUSABLE`` and ``CONVERTED`` the kind of a file; None of an ordinary picture."""
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
