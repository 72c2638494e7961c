"""Decode the crop of an image file that a network sees, at the lowest resolution that suffices."""

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

from pretrain.datasets.image_checks import DECODE_ERRORS
from pretrain.runs.errors import UserError

ASPECT_RATIOS = (3 / 4, 4 / 3)
CENTRE_SHARE = 224 / 256  # side of the test crop as a share of the shorter side
REDUCTIONS = (8, 4, 2)  # the factors for which libjpeg-turbo has fast code


class Box(NamedTuple):
    """A region of an image in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, area: Sequence[float]) -> Box:
    """Draw a box that covers a share of the image from ``area[0]`` to ``area[1]``, as torchvision's
    RandomResizedCrop: uniform in area and log-uniform in aspect ratio, from torch's generator."""
    shape = torch.empty(3, height, width, device='meta')
    return Box(*RandomResizedCrop.get_params(shape, area, ASPECT_RATIOS))


def centre_box(height: int, width: int, share: float = CENTRE_SHARE) -> Box:
    """The square centre crop of a test image, with ``share`` of the shorter side."""
    side = max(1, round(min(height, width) * share))
    return Box((height - side) // 2, (width - side) // 2, side, side)


class EncodedImage:
    """An image file. Only its header is read until a crop is requested.

    libjpeg-turbo decodes JPEGs, the format of nearly all ImageNet files. PIL decodes other formats
    and the JPEGs that libjpeg-turbo's Python interface cannot: CMYK and rare chroma samplings.
    Grey, CMYK and palette images become RGB. As in torchvision, an orientation in the EXIF data
    is not applied.

    Args:
        path: the file.

    Attributes:
        height, width: in pixels.

    Raises:
        UserError: naming the file, if neither can decode it.
        OSError: if the file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._data = Path(path).read_bytes()
        self._image: Image.Image | None = None
        if self._data[:2] == b'\xff\xd8':
            try:
                # Not strict: some files of ImageNet have stray bytes that every decoder skips.
                header = simplejpeg.decode_jpeg_header(self._data, strict=False)
            except (ValueError, KeyError):  # a chroma sampling without a name
                header = 0, 0, None, None
            self.height, self.width, colours, _ = header
            if colours not in ('CMYK', 'YCCK', None):
                return
        self._open()

    def _open(self) -> None:
        try:
            self._image = Image.open(io.BytesIO(self._data)).convert('RGB')
        except DECODE_ERRORS as error:
            raise UserError(f'{self._path} cannot be decoded ({error}): replace it.') from error
        self.width, self.height = self._image.size

    def crop(self, box: Box, size: int) -> Tensor:
        """The box as uint8 (3, size, size) RGB, resized bilinearly with antialiasing. Raises a
        UserError if the file cannot be decoded."""
        if self._image is None:
            # Decoding at a half, a quarter or an eighth is faster and averages the pixels; the crop
            # must not become smaller than the output.
            factor = next((f for f in REDUCTIONS if f * size <= min(box.height, box.width)), 1)
            try:
                pixels = simplejpeg.decode_jpeg(
                    self._data,
                    min_height=-(-self.height // factor),
                    min_width=-(-self.width // factor),
                    min_factor=factor,
                    strict=False,
                )
                box = _reduce(box, factor)
            except ValueError:  # simplejpeg reads this file's header, but not its pixels
                self._open()
        if self._image is not None:
            pixels = np.array(self._image)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        return resized_crop(image, *box, size=[size, size], antialias=True)


def _reduce(box: Box, factor: int) -> Box:
    """The box in an image decoded at 1 / ``factor`` of its size, which libjpeg rounds up."""
    top, left = round(box.top / factor), round(box.left / factor)
    bottom = round((box.top + box.height) / factor)
    right = round((box.left + box.width) / factor)
    return Box(top, left, bottom - top, right - left)
