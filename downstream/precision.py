"""Precision, memory format and cuDNN settings of detectors and segmenters."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pretrain.runs.log import QuietRunner
from pretrain.runs.precision import autocast

# The modules of convolutions and linear layers. Heads return float32, for losses and boxes.
FEATURES = ('backbone', 'neck', 'roi_head.shared_head')
HEADS = ('rpn_head', 'roi_head.bbox_head', 'decode_head', 'auxiliary_head')
POOLING = 'roi_head.bbox_roi_extractor'


@RUNNERS.register_module()
class DownstreamRunner(QuietRunner):
    """Runs the model in ``precision`` and channels_last, the fastest format for convolutions."""

    def build_model(self, model: nn.Module | ConfigDict) -> nn.Module:
        model = super().build_model(model).to(memory_format=torch.channels_last)
        return set_precision(model, self.cfg.precision)


@HOOKS.register_module()
class CropsOfOneSizeHook(Hook):
    """Lets cuDNN search for the fastest algorithms in training, where all crops have one size, but
    not in validation, where every new image size would start another search."""

    def before_train_epoch(self, runner: Runner) -> None:
        torch.backends.cudnn.benchmark = True

    def before_val_epoch(self, runner: Runner) -> None:
        torch.backends.cudnn.benchmark = False


def set_precision(model: nn.Module, precision: str) -> nn.Module:
    """Have the layers of a detector or segmenter compute in ``precision``, in place.

    Boxes, RoI pooling, non-maximum suppression and losses stay float32.

    Args:
        model: a built model of mmdet or mmseg.
        precision: 'bf16' or 'float32'.
    """
    for part in _parts(model, *FEATURES, *HEADS):
        part.forward = autocast(precision, get_device())(part.forward)
    for head in _parts(model, *HEADS):
        head.forward = _float32(head.forward)
    for pooling in _parts(model, POOLING):
        pooling.register_forward_pre_hook(_float32_contiguous)
    return model


def _parts(model: nn.Module, *names: str) -> Iterator[nn.Module]:
    """The modules of these names that the model has, and those in lists of these names."""
    modules = dict(model.named_modules())
    for module in (modules[name] for name in names if name in modules):
        yield from module if isinstance(module, nn.ModuleList) else [module]


def _float32(forward: Any) -> Any:
    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        return tree_map(lambda x: x.float() if isinstance(x, Tensor) else x, outputs)

    return wrapped


def _float32_contiguous(_: nn.Module, args: tuple) -> tuple:
    """Feature maps for RoIAlign: float32, because mmdet casts RoIs to their dtype, and contiguous,
    because mmcv's compiled RoIAlign assumes it."""
    maps, *rest = args
    return tuple(x.float().contiguous() for x in maps), *rest
