"""The CIFAR networks of Section 4.1: ResNets and DenseNets for 32x32 images."""

import torchvision
from mmengine.registry import MODELS
from torch import nn
from torchvision.models.resnet import BasicBlock

from pretrain.models.resnet import check_depth

RESNET_DEPTHS = (8, 14, 20, 32, 56, 110)
DENSENET_WIDTHS = {100: (24, 12), 190: (80, 40)}  # depth: base feature length, growth rate


@MODELS.register_module('CifarResNet')
def build_cifar_resnet(depth: int, num_classes: int, width: int = 16) -> nn.Sequential:
    """A CIFAR ResNet, from normalised images (N, 3, 32, 32) to logits (N, num_classes).

    By default, stages of 16, 32 and 64 channels see 32x32, 16x16 and 8x8 pixels; average pooling
    instead of strides halves the resolution. Names, blocks and initialisation are torchvision's.
    With 100 classes, depths 20 and 110 have 275,572 and 1,733,812 parameters.

    Args:
        depth: 8, 14, 20, 32, 56 or 110; each stage has (depth - 2) / 6 blocks of two convolutions.
        num_classes: number of logits.
        width: channels of the first stage; they double with each later stage.

    Raises:
        UserError: for another depth.
    """
    check_depth(depth, RESNET_DEPTHS)
    blocks = (depth - 2) // 6
    network = nn.Sequential()
    network.add_module('conv1', nn.Conv2d(3, width, 3, padding=1, bias=False))
    network.add_module('bn1', nn.BatchNorm2d(width))
    network.add_module('relu', nn.ReLU(inplace=True))
    network.add_module('layer1', _stage(width, width, blocks))
    network.add_module('pool1', nn.AvgPool2d(2))
    network.add_module('layer2', _stage(width, 2 * width, blocks))
    network.add_module('pool2', nn.AvgPool2d(2))
    network.add_module('layer3', _stage(2 * width, 4 * width, blocks))
    network.add_module('avgpool', nn.AdaptiveAvgPool2d(1))
    network.add_module('flatten', nn.Flatten())
    network.add_module('fc', nn.Linear(4 * width, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    return network


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    # On a 4-D batch ZeroPad3d appends channels of zeros, a shortcut without parameters.
    widen = nn.ZeroPad3d((0, 0, 0, 0, 0, outputs - inputs)) if outputs > inputs else None
    rest = (BasicBlock(outputs, outputs) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, downsample=widen), *rest)


@MODELS.register_module('CifarDenseNet')
def build_cifar_densenet(depth: int, num_classes: int) -> torchvision.models.DenseNet:
    """A CIFAR DenseNet-BC, from normalised images (N, 3, 32, 32) to logits (N, num_classes).

    It is torchvision's DenseNet with three blocks, at 32x32, 16x16 and 8x8 pixels; its stem is a
    single 3x3 convolution. With 100 classes, depths 100 and 190 have 800,032 and 25,821,620
    parameters.

    Args:
        depth: 100 or 190; each block has (depth - 4) / 6 layers of two convolutions.
        num_classes: number of logits.

    Raises:
        UserError: for another depth.
    """
    check_depth(depth, DENSENET_WIDTHS)
    base_width, growth_rate = DENSENET_WIDTHS[depth]
    network = torchvision.models.DenseNet(
        growth_rate=growth_rate,
        block_config=((depth - 4) // 6,) * 3,
        num_init_features=base_width,
        num_classes=num_classes,
    )
    network.features.conv0 = nn.Conv2d(3, base_width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.features.conv0.weight)  # as torchvision does
    del network.features.norm0, network.features.relu0, network.features.pool0
    return network
