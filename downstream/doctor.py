"""Report the packages, hardware and data of this machine, and its disk and decoding speed."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pretrain.runs.errors import number_of
from pretrain.runs.packages import missing_packages, needed_packages, version_of

# The paths that configs expect in the data folder, by the names that prepare_data.py uses.
DATA = {
    'imagenet': ('imagenet/train', 'imagenet/val'),
    'cifar100': ('cifar-100-python/train', 'cifar-100-python/test'),
    'voc07': ('VOCdevkit/VOC2007/Annotations', 'VOCdevkit/VOC2007/JPEGImages'),
    'voc12aug': ('VOCdevkit/VOC2012/JPEGImages', 'VOCdevkit/VOC2012/SegmentationClassAug'),
}
_GB = 1e9


def examine(data: Path, work_dir: Path) -> Iterator[str]:
    """Yield the lines of the report as they are measured. Missing packages end it early.

    Args:
        data: the folder that holds the data sets.
        work_dir: the folder for runs, which need not exist; a temporary file of 256 MB is written
            there, or in its nearest parent that exists.
    """
    yield f'Python {platform.python_version()} on {platform.platform()}'
    versions = ((name, version_of(name)) for name in needed_packages())
    yield 'packages: ' + ', '.join(f'{name} {version}' for name, version in versions if version)
    if missing := missing_packages():
        yield f'MISSING: pip install {" ".join(missing)}'
        return
    yield from _devices()
    from downstream.mmcv_ops import install

    kind = "torchvision's, in place of compiled mmcv" if install() else "compiled mmcv's"
    yield f'operators of detectors: {kind}'
    for name, path in (('work directory', work_dir), ('shared memory', Path('/dev/shm'))):
        place = _existing(path)
        yield f'{name}: {shutil.disk_usage(place).free / _GB:,.1f} GB free in {place}'
    for name, paths in DATA.items():
        absent = [str(data / path) for path in paths if not (data / path).exists()]
        yield f'{name}: {"found" if not absent else f"no {absent[0]}"}'
    yield _disk_speed(work_dir)
    yield _decoder_speed()


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _devices() -> Iterator[str]:
    import torch

    from pretrain.runs.precision import device_without_bf16, resolve_precision
    from pretrain.runs.processes import usable_cores, usable_gpus

    for index in range(usable_gpus()):
        properties = torch.cuda.get_device_properties(index)
        yield f'GPU {index}: {properties.name}, {properties.total_memory / _GB:.0f} GB'
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / _GB
    yield f'processor: {number_of(usable_cores(), "cores")}, {memory:.0f} GB'
    why = f', because {without} has no bfloat16' if (without := device_without_bf16()) else ''
    yield f"precision='auto' means {resolve_precision('auto')}{why}"


def _disk_speed(folder: Path, megabytes: int = 256) -> str:
    """Measure the read speed of a temporary file after dropping it from the page cache."""
    with tempfile.TemporaryFile(dir=_existing(folder), buffering=0) as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
        os.fsync(file.fileno())
        if hasattr(os, 'posix_fadvise'):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(1_000_000):
            pass
        seconds = time.perf_counter() - start
    return f'disk: reads {megabytes / seconds:,.0f} MB per second'


def _decoder_speed(images: int = 50) -> str:
    """Measure the decoding and centre crop of a JPEG of ImageNet's usual size, as in a test."""
    from PIL import Image

    from pretrain.datasets.decode import EncodedImage, centre_box

    with tempfile.NamedTemporaryFile(suffix='.jpg') as file:
        noise = Image.effect_noise((63, 47), 80).resize((500, 375)).convert('RGB')
        noise.save(file.name, quality=92)
        start = time.perf_counter()
        for _ in range(images):
            image = EncodedImage(file.name)
            image.crop(centre_box(image.height, image.width), 224)
        seconds = time.perf_counter() - start
    return f'decoder: {images / seconds:,.0f} images of 500 x 375 pixels per second on one core'
