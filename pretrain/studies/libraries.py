"""Speed compared with other libraries: of a training step, and of loading photos."""

import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from pretrain.datasets.augmentation import draw_augmentation
from pretrain.datasets.decode import EncodedImage, random_box
from pretrain.datasets.shrink import shrink_image
from pretrain.runs.errors import UserError
from pretrain.studies.benchmark import bare_step, our_step, row, seconds, without_data

SIZE, AREA = 224, (0.08, 1.0)  # of Section 4.2
PHOTOS = 128  # which are loaded, or fewer
TIMM = find_spec('timm') is not None


def step_rows(path: str | Path, options: Sequence[str], rounds: int) -> list[dict]:
    """Compare a BL step with bare loops on the networks of torchvision and, if installed, timm."""
    config = without_data(path, options)
    depth, classes = config.model.network.depth, config.model.network.num_classes
    network = torchvision.models.get_model(f'resnet{depth}', num_classes=classes)
    steps = {'torchvision': bare_step(network, config, torch.contiguous_format, torch.float16)}
    if TIMM:
        import timm

        network = timm.create_model(f'resnet{depth}', num_classes=classes)
        steps['timm'] = bare_step(network, config, amp=torch.float16)
    median = seconds({'BL': our_step(config, teaching=False), **steps}, rounds)
    best = min(median[name] for name in steps)
    rows = [row(f'{name}: step', 1000 * value, 'ms') for name, value in median.items()]
    return [*rows, row('BL step / best other loop', median['BL'] / best, at_most=1.0)]


def ours(path: Path) -> tuple[Tensor, Tensor]:
    """Our loading: a crop, and the random augmentation that the device will apply to it."""
    image = EncodedImage(path)
    return image.crop(random_box(image.height, image.width, AREA), SIZE), draw_augmentation()


def opened(transform: Callable[[Image.Image], object]) -> Callable[[Path], object]:
    """Decode with PIL; a library's ``transform`` does the rest."""
    return lambda path: transform(Image.open(path).convert('RGB'))


def torchvision_pipeline(*more: v2.Transform) -> Callable[[Path], object]:
    """The transforms of torchvision's reference scripts, and ``more`` after the flip."""
    crop = v2.RandomResizedCrop(SIZE, scale=AREA, antialias=True)
    return opened(v2.Compose([crop, v2.RandomHorizontalFlip(), *more, v2.PILToTensor()]))


def opencv_pipeline(rotation: bool) -> Callable[[Path], np.ndarray]:
    """OpenCV through mmcv, with the same calls as mmpretrain's transforms."""
    rng = np.random.default_rng(0)

    def load(path: Path) -> np.ndarray:
        image = mmcv.imfrombytes(path.read_bytes(), backend='cv2')
        top, left, height, width = random_box(*image.shape[:2], AREA)
        box = np.array([left, top, left + width - 1, top + height - 1])
        image = mmcv.imresize(mmcv.imcrop(image, box), (SIZE, SIZE), interpolation='area')
        if rng.random() < 0.5:
            image = mmcv.imflip(image)
        if rotation:
            image = mmcv.imrotate(image, rng.uniform(-10, 10), border_value=(104, 116, 124))
            for adjust in (mmcv.adjust_brightness, mmcv.adjust_contrast, mmcv.adjust_color):
                image = adjust(image, rng.uniform(0.6, 1.4))
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    return load


def loader_rows(folder: Path, rounds: int) -> list[dict]:
    """Images per second on one core: decode, crop, resize with antialiasing, flip.

    The whole augmentation of Section 4.2 adds rotation and jitter. The suite flips, rotates and
    jitters on the device, so its core does the same work in both comparisons.

    :data:`PHOTOS` of the photos below ``folder`` are loaded.

    Raises:
        UserError: if ``folder`` holds no photo.
    """
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in IMG_EXTENSIONS)
    if not found:
        raise UserError(f'{folder} holds no photo: name a folder of full-size photos.')
    files = found[:: max(1, len(found) // PHOTOS)][:PHOTOS]
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    bilinear = v2.InterpolationMode.BILINEAR
    rotate = v2.RandomRotation(10, interpolation=bilinear, fill=(124, 116, 104))
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
    pipelines = {
        'ours': ours,
        'torchvision, crop and mirror': torchvision_pipeline(),
        'OpenCV, crop and mirror': opencv_pipeline(False),
        'torchvision, whole augmentation': torchvision_pipeline(rotate, jitter),
        'OpenCV, whole augmentation': opencv_pipeline(True),
        'decoding only': opened(lambda image: image),
    }
    if TIMM:
        from timm.data import create_transform

        settings = dict(is_training=True, use_prefetcher=True, color_jitter=None)
        transform = create_transform(SIZE, interpolation='bilinear', **settings)
        pipelines['timm, crop and mirror'] = opened(transform)
    with tempfile.TemporaryDirectory() as scratch:
        small = [Path(scratch) / f'{number}.jpg' for number in range(len(files))]
        for source, target in zip(files, small, strict=True):
            target.write_bytes(shrink_image(source.read_bytes(), 256))
        steps = {name: lambda load=load: list(map(load, files)) for name, load in pipelines.items()}
        steps['ours, on images shrunk to 256'] = lambda: list(map(ours, small))
        median = seconds(steps, rounds)
    rate = {name: len(files) / value for name, value in median.items()}
    rows = [row(name, value, 'images/s') for name, value in rate.items()]
    for name in pipelines:
        goal = {'torchvision': 2.3, 'OpenCV': 1.2}.get(name.split(',')[0])
        if goal or 'timm' in name:
            rows.append(row(f'ours / {name}', rate['ours'] / rate[name], at_least=goal))
    return rows
