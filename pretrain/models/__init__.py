"""Networks to pretrain."""

from pretrain.models.cifar import build_cifar_densenet, build_cifar_resnet
from pretrain.models.resnet import build_resnet, build_se_resnet
from pretrain.models.timm_network import build_timm

__all__ = [
    'build_cifar_densenet',
    'build_cifar_resnet',
    'build_resnet',
    'build_se_resnet',
    'build_timm',
]
