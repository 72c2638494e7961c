"""Find the image files that a run would fail on, before a run that takes days.

Only the header and the end of JPEG, PNG and WebP files are read. Files of other formats, rare kinds
of JPEG and files with a wrong end are decoded.
"""

import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from pretrain.runs.file_checks import cached, parallel_map, paths_within

# Found by whoever lists the files.
OTHER_FORMAT = 'without the suffix of a JPEG, PNG, WebP, TIFF, BMP or PPM'
HIDDEN = 'hidden'
# 'unreadable': a broken link or a file without read permission. 'too large': over 179 million
# pixels, PIL's limit.
UNUSABLE = ('unreadable', 'empty', 'not an image', 'truncated', 'too large', '16-bit', 'animated')
UNUSABLE += (OTHER_FORMAT, HIDDEN)
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # PIL's, if damaged
_TAIL = 4096  # bytes
_CHUNK = 512  # files per task of a process
# Nearly all JPEGs have chroma at full resolution, at half the width, or at half width and height.
_USUAL_SAMPLING = ((1, 1), (2, 1), (2, 2))


def check_images(
    root: Path, names: Sequence[bytes], state: str, processes: int | None = None
) -> dict[str, list[str]]:
    """Find the images that a run would fail on.

    Args:
        root: the folder that holds the images.
        names: their paths relative to ``root``.
        state: their :func:`pretrain.runs.file_checks.fingerprint`. The result is cached in the
            user's cache directory until it changes.
        processes: number of processes; None: one per core.

    Returns:
        For each kind of ``UNUSABLE`` that occurs, the sorted names. An image has at most one kind.
    """
    root = root.resolve()
    paths = paths_within(root, names)

    def check() -> tuple[dict[str, list[str]], bool]:
        found, files = {}, list(map(os.fsdecode, paths))
        kinds = parallel_map(check_image, files, _CHUNK, processes, f'checking {root}')
        for name, kind in zip(names, kinds, strict=True):
            if kind is not None:
                found.setdefault(kind, []).append(os.fsdecode(name))
        found = {kind: sorted(names) for kind, names in found.items()}
        return found, 'unreadable' not in found

    return cached('images', root, f'3 {state}', check)  # raise the 3 when the kinds change


def check_image(path: str | Path) -> str | None:
    """The kind of ``UNUSABLE`` that a file belongs to; None for an image that a run can use."""
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
    """Whether a file ends as its format demands; None if this cannot be told from head and tail.

    JPEG pixel data contain no marker, so an FFD9 in the tail ends them, whatever comes after. A
    thumbnail in the header has an FFD9 too, but the FFDA that begins the pixels comes after it. If
    the end is not in the tail, the decoder decides. Damage in the middle is not found.
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
        if not complete or (image.format in ('JPEG', 'MPO') and not _is_usual_jpeg(image)):
            image.load()
        # An MPO holds several views of a photo, or a preview; it is not animated.
        animated = image.format != 'MPO' and getattr(image, 'is_animated', False)
    except Image.DecompressionBombError:
        return 'too large'
    except UnidentifiedImageError:
        return 'truncated' if complete is False else 'not an image'
    except DECODE_ERRORS:
        return 'truncated'
    if animated:
        return 'animated'
    return '16-bit' if image.mode.startswith(('I', 'F')) else None


def _is_usual_jpeg(image: Image.Image) -> bool:
    """Whether the header alone shows that simplejpeg can decode the pixels."""
    if not image.tile:  # no pixels follow
        return False
    luma, *chroma = [(layer[1], layer[2]) for layer in image.layer]
    return luma in _USUAL_SAMPLING and len(chroma) < 3 and set(chroma) <= {(1, 1)}
