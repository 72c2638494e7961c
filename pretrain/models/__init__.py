"""Networks to pretrain. To add one, import its module here: that registers it for configs."""

import pretrain.models.cifar
import pretrain.models.resnet
import pretrain.models.timm_network  # noqa: F401
