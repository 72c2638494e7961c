"""ImageNet ResNets with torchvision's modules, names and initialisation."""

from collections.abc import Collection
from typing import Any

import torchvision
from mmengine.registry import MODELS
from torch import Tensor
from torchvision.models.resnet import Bottleneck
from torchvision.ops import SqueezeExcitation

from pretrain.runs.errors import UserError

DEPTHS = (18, 34, 50, 101, 152)
SE_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
SE_REDUCTION = 16  # of reference [20]


@MODELS.register_module('ResNet')
def build_resnet(depth: int, num_classes: int, width: int = 64) -> torchvision.models.ResNet:
    """A torchvision ResNet, from normalised images (N, 3, H, W) to logits (N, num_classes).

    It has the 7x7 stem ('v1') and the stride on the 3x3 convolution ('pytorch' style), so that its
    layers before the final pooling are the backbone of Faster R-CNN and DeepLabv3 (Section 4.3).

    Args:
        depth: 18, 34, 50, 101 or 152 (Section 4.2 uses the last two).
        num_classes: number of logits.
        width: channels of the 3x3 convolution of the first bottleneck; 128 gives torchvision's
            Wide ResNet. It must be 64 for depths 18 and 34, which have no bottlenecks.

    Raises:
        UserError: for another depth, or another width of depth 18 or 34.
    """
    check_depth(depth, DEPTHS)
    if width != 64 and depth < 50:
        raise UserError(
            f'model.network.width is {width}, but ResNet-{depth} has no bottlenecks to widen: '
            'choose a depth of 50 or more.'
        )
    return torchvision.models.get_model(
        f'resnet{depth}', num_classes=num_classes, width_per_group=width
    )


class SEBottleneck(Bottleneck):
    """torchvision's bottleneck with a squeeze-and-excitation module that scales the residual."""

    def __init__(self, inplanes: int, planes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, planes, *args, **kwargs)
        channels = planes * self.expansion
        self.se = SqueezeExcitation(channels, channels // SE_REDUCTION)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.se(self.bn3(self.conv3(out)))
        identity = x if self.downsample is None else self.downsample(x)
        return self.relu(out + identity)


@MODELS.register_module('SEResNet')
def build_se_resnet(depth: int, num_classes: int) -> torchvision.models.ResNet:
    """A ResNet with squeeze-and-excitation, '+S' in Table 4; shapes as in :func:`build_resnet`.

    With 1,000 classes, depths 50, 101 and 152 have 28,088,024, 49,326,872 and 66,821,848
    parameters.

    Args:
        depth: 50, 101 or 152.
        num_classes: number of logits.

    Raises:
        UserError: for another depth.
    """
    check_depth(depth, SE_BLOCKS)
    return torchvision.models.ResNet(SEBottleneck, list(SE_BLOCKS[depth]), num_classes=num_classes)


def check_depth(depth: int, known: Collection[int]) -> None:
    """Raise a UserError if ``depth`` is not in ``known``."""
    if depth not in known:
        choice = ', '.join(map(str, known))
        raise UserError(f'model.network.depth is {depth}: choose one of {choice}.')
