"""Make a copy of an ImageNet-style root with smaller images, which are faster to read."""

import io
import json
import os
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path

from PIL import Image

from pretrain.datasets.completeness import require_imagenet
from pretrain.datasets.image_checks import DECODE_ERRORS
from pretrain.datasets.image_folder import ClassFolder, list_images
from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.errors import UserError
from pretrain.runs.file_checks import parallel_map


def shrink_folder(root: Path, out: Path, shorter_side: int, processes: int | None = None) -> None:
    """Copy an ImageNet-style root to ``out`` and shrink the images whose shorter side exceeds
    ``shorter_side`` pixels. A repeated call continues a stopped one. ``processes`` is by default
    the number of cores; both numbers are at least 1.

    Raises:
        UserError: if ``root`` is not such a folder or has unusable images, ``out`` holds anything
            else, or one folder lies inside the other.
    """
    root, out = root.resolve(), out.resolve()
    if root.is_relative_to(out) or out.is_relative_to(root):
        raise UserError(f'{out} and {root} overlap: choose another --out.')
    require_imagenet(root)
    ClassFolder.check(root, batch_size=1, workers=processes)
    _begin(out, json.dumps({'root': str(root), 'shorter_side': shorter_side}, indent=2) + '\n')

    lists = [list_images(root, split).paths.tolist() for split in ('train', 'val')]
    names = list(map(os.fsdecode, chain(*lists)))
    done, before, after = Counter(), 0, 0
    shrink = partial(_shrink_file, root, out, shorter_side)
    for what, old, new in parallel_map(shrink, names, 8, processes, 'shrinking'):
        done[what] += 1
        before, after = before + old, after + new
    counts = ', '.join(f'{count:,} {what}' for what, count in sorted(done.items()))
    print(f'{out}: {counts}; {before / 1e6:,.1f} MB before, {after / 1e6:,.1f} MB after')


def _begin(out: Path, record: str) -> None:
    path = out / 'shrunk.json'
    begun = path.is_file() and path.read_text() == record
    if out.exists() and not begun and (out.is_file() or any(out.iterdir())):
        raise UserError(f'{out} exists with other contents: delete it or choose another folder.')
    write_atomically(path, record.encode())


def _shrink_file(root: Path, out: Path, shorter_side: int, name: str) -> tuple[str, int, int]:
    """Shrink or copy one image; return what was done and its size in bytes before and after."""
    source, target = root / name, out / name
    old = source.stat().st_size
    if target.exists():
        return 'already there', old, target.stat().st_size
    data = source.read_bytes()
    try:
        shrunk = shrink_image(data, shorter_side)
    except DECODE_ERRORS as error:
        raise UserError(f'{source} is damaged ({error}): replace or delete it.') from error
    write_atomically(target, shrunk)
    return 'copied' if shrunk == data else 're-encoded', old, len(shrunk)


def shrink_image(data: bytes, shorter_side: int) -> bytes:
    """Convert the bytes of an image file to those of an RGB JPEG whose shorter side has at most
    ``shorter_side`` pixels. A JPEG that is small enough is returned unchanged, in any colour space.

    Quality 90 with 4:2:0 is about that of ImageNet's own files. The JPEG is baseline, since a
    progressive one takes longer to decode. EXIF data are dropped: training ignores the orientation.
    """
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    scale = shorter_side / min(width, height)
    if scale >= 1 and image.format in ('JPEG', 'MPO'):
        return data
    if scale < 1:
        size = round(width * scale), round(height * scale)
        # A huge JPEG is decoded at a fraction of its size, but at least at twice the new size, so
        # that the resampling filter determines the quality.
        image.draft(None, (2 * size[0], 2 * size[1]))
        image = image.convert('RGB').resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.convert('RGB').save(buffer, 'JPEG', quality=90, subsampling='4:2:0', optimize=True)
    return buffer.getvalue()
