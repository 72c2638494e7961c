"""Networks to pretrain."""

from pretrain.models.resnet import build_resnet

__all__ = ['build_resnet']
