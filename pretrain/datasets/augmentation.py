"""Augmentation of ImageNet-style folders on the device, a whole batch at a time: jitter, flip and
rotation. The crop is in :mod:`pretrain.datasets.decode`, CIFAR's augmentation in its module."""

import functools
import math

import torch
import torch.nn.functional as F
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor

MAX_ANGLE = math.radians(10)
JITTER = 0.4  # brightness, contrast and saturation are multiplied by 1 - 0.4 to 1 + 0.4
# ITU-R BT.601 weights from RGB to luma, as in torchvision.
LUMA = (0.2989, 0.587, 0.114)


def draw_augmentation() -> Tensor:
    """Draw the augmentation of one image from torch's generator.

    Returns:
        float32 (5,): 1 for a flip or 0, the angle in radians, and the factors of brightness,
        contrast and saturation.
    """
    flipped, angle, *factors = torch.rand(5).tolist()
    factors = [1 + JITTER * (2 * factor - 1) for factor in factors]
    return torch.tensor([flipped < 0.5, MAX_ANGLE * (2 * angle - 1), *factors])


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation, as torchvision's ``adjust_*`` do.

    Args:
        images: float32 (N, 3, H, W) RGB, from 0 to 255, like the result.
        factors: (N, 3), of brightness, contrast and saturation; 1 changes nothing.
    """
    brightness, contrast, saturation = factors.view(-1, 3, 1, 1, 1).unbind(1)
    weights = _luma_weights(images.device)
    images = (images * brightness).clamp_(0, 255)
    mean = (images * weights).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    images = images.lerp_(mean, 1 - contrast).clamp_(0, 255)
    luma = (images * weights).sum(dim=1, keepdim=True)
    return images.lerp_(luma.expand_as(images), 1 - saturation).clamp_(0, 255)


@functools.cache
def _luma_weights(device: torch.device) -> Tensor:
    """LUMA on the device, copied once: a copy per batch would wait for the previous iteration."""
    return torch.tensor(LUMA, device=device).view(1, 3, 1, 1)


def flip_and_rotate(images: Tensor, flipped: Tensor, angles: Tensor) -> Tensor:
    """Flip images horizontally and rotate them about their centres, with bilinear interpolation.

    The corners that a rotation leaves empty are filled with 0.

    Args:
        images: float32 (N, C, S, S); they must be square.
        flipped: float32 (N,), 1 for a flip or 0.
        angles: float32 (N,), in radians, counter-clockwise.
    """
    cos, sin = angles.cos(), angles.sin()
    sign = 1 - 2 * flipped
    rows = torch.stack([sign * cos, -sign * sin, sin, cos], dim=1).view(-1, 2, 2)
    theta = F.pad(rows, (0, 1))
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


@MODELS.register_module()
class AugmentingPreprocessor(ImgDataPreprocessor):
    """Normalises a batch as mmengine does and applies the augmentation of Section 4.2.

    A batch with the key ``augmentation``, float32 (N, 5) from :func:`draw_augmentation`, is
    augmented; a batch without it is only normalised. Empty corners get the mean colour, which
    normalisation maps to 0.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        data = self.cast_data(data)
        augmentation = data.pop('augmentation', None)
        if augmentation is None:
            return super().forward(data, training)
        data['inputs'] = jitter(data['inputs'].float(), augmentation[:, 2:])
        data = super().forward(data, training)
        data['inputs'] = flip_and_rotate(data['inputs'], augmentation[:, 0], augmentation[:, 1])
        return data
