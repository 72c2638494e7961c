"""ImageNet ResNets with torchvision's modules, names and initialisation."""

import torchvision
from mmengine.registry import MODELS

from pretrain.errors import UserError

DEPTHS = (18, 34, 50, 101, 152)


@MODELS.register_module('ResNet')
def build_resnet(depth: int, num_classes: int) -> torchvision.models.ResNet:
    """A torchvision ResNet: (N, 3, H, W) normalised images to (N, num_classes) logits.

    The 7x7 stem ('v1') and the stride on the 3x3 convolution ('pytorch' style) make its layers
    before the final pooling the very backbone that Faster R-CNN and DeepLabv3 build (Section 4.3).

    Args:
        depth: 18, 34, 50, 101 or 152 (Section 4.2 uses the last two).
        num_classes: number of logits.

    Raises:
        UserError: for another depth.
    """
    if depth not in DEPTHS:
        known = ', '.join(map(str, DEPTHS))
        raise UserError(f'model.network.depth is {depth}: choose one of {known}.')
    return torchvision.models.get_model(f'resnet{depth}', weights=None, num_classes=num_classes)
