"""From a picture's file to the crop of it that a network sees, decoding no more than it must."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop

ASPECT_RATIOS = (3 / 4, 4 / 3)
REDUCTIONS = (8, 4, 2)  # which libjpeg-turbo has fast code for


class Box(NamedTuple):
    """A region of a picture in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, area: Sequence[float]) -> Box:
    """A box that keeps from ``area[0]`` to ``area[1]`` of a picture, drawn from torch's generator:
    torchvision's, uniform in area and log-uniform in aspect ratio."""
    shape = torch.empty(3, height, width, device='meta')
    return Box(*RandomResizedCrop.get_params(shape, area, ASPECT_RATIOS))


def centre_box(height: int, width: int) -> Box:
    """The single centre crop: the square of 224 pixels of a picture whose shorter side is 256."""
    side = max(1, round(min(height, width) * 224 / 256))
    return Box((height - side) // 2, (width - side) // 2, side, side)


class Picture:
    """A picture file, of which only the header is read until a crop is asked for.

    JPEGs, which ImageNet consists of, go through libjpeg-turbo, all others and CMYK through PIL.
    Grey, CMYK and palette pictures become RGB. An orientation in the EXIF data is not applied, as
    in torchvision.

    Args:
        path: the file.

    Attributes:
        height, width: in pixels.
    """

    def __init__(self, path: str | Path) -> None:
        self._data = Path(path).read_bytes()
        self._image: Image.Image | None = None
        if self._data[:2] == b'\xff\xd8':
            # Not strict: some files of ImageNet have stray bytes that every decoder skips.
            header = simplejpeg.decode_jpeg_header(self._data, strict=False)
            self.height, self.width, colours, _ = header
            if colours not in ('CMYK', 'YCCK'):
                return
        self._image = Image.open(io.BytesIO(self._data))
        self.width, self.height = self._image.size

    def crop(self, box: Box, size: int) -> Tensor:
        """The box as uint8 (3, size, size) RGB, resized bilinearly with antialiasing."""
        if self._image is not None:
            pixels = np.array(self._image.convert('RGB'))
        else:
            # A half, a quarter or an eighth costs less to decode and averages the pixels; the
            # crop must not become smaller than its output.
            factor = next((f for f in REDUCTIONS if f * size <= min(box.height, box.width)), 1)
            pixels = simplejpeg.decode_jpeg(
                self._data,
                min_height=-(-self.height // factor),
                min_width=-(-self.width // factor),
                min_factor=factor,
                strict=False,
            )
            box = _reduce(box, factor)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        return resized_crop(image, *box, size=[size, size], antialias=True)


def _reduce(box: Box, factor: int) -> Box:
    """The box in a picture whose sides are ``factor`` times smaller, rounded up."""
    top, left = round(box.top / factor), round(box.left / factor)
    bottom = round((box.top + box.height) / factor)
    right = round((box.left + box.width) / factor)
    return Box(top, left, bottom - top, right - left)
