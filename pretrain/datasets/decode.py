"""From an image file to the crop that a network sees, decoding no more than is needed."""

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
CENTRE = 224 / 256  # of the shorter side: what a test crop shows
REDUCTIONS = (8, 4, 2)  # the ones that libjpeg-turbo has fast code for


class Box(NamedTuple):
    """A region of an image in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, area: Sequence[float]) -> Box:
    """Draw a box that keeps a share from ``area[0]`` to ``area[1]`` of an image, as torchvision
    does: uniform in area and log-uniform in aspect ratio, from torch's generator."""
    shape = torch.empty(3, height, width, device='meta')
    return Box(*RandomResizedCrop.get_params(shape, area, ASPECT_RATIOS))


def centre_box(height: int, width: int) -> Box:
    """The single centre crop, a square."""
    side = max(1, round(min(height, width) * CENTRE))
    return Box((height - side) // 2, (width - side) // 2, side, side)


class EncodedImage:
    """An image file. Only its header is read until a crop is requested.

    libjpeg-turbo decodes JPEGs, which nearly all of ImageNet's files are. PIL decodes other formats
    and the JPEGs that libjpeg-turbo's interface does not cover: CMYK and rare chroma samplings.
    Grey, CMYK and palette images become RGB. As in torchvision, an orientation in the EXIF data
    is not applied.

    Args:
        path: the file.

    Attributes:
        height, width: in pixels.

    Raises:
        UserError: naming the file, if neither can decode it.
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
        """The box as uint8 (3, size, size) RGB, resized bilinearly with antialiasing."""
        if self._image is None:
            # A half, a quarter or an eighth costs less to decode and averages the pixels; the
            # crop must not become smaller than its output.
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
            except ValueError:  # it reads the header of this kind of JPEG, but not its pixels
                self._open()
        if self._image is not None:
            pixels = np.array(self._image)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        return resized_crop(image, *box, size=[size, size], antialias=True)


def _reduce(box: Box, factor: int) -> Box:
    """The box in the image that is ``factor`` times smaller, with sides rounded up."""
    top, left = round(box.top / factor), round(box.left / factor)
    bottom = round((box.top + box.height) / factor)
    right = round((box.left + box.width) / factor)
    return Box(top, left, bottom - top, right - left)
