"""Any classifier of timm, by name."""

from typing import Any

from mmengine.registry import MODELS
from torch import nn

from pretrain.runs.errors import UserError


@MODELS.register_module('Timm')
def build_timm(name: str, num_classes: int, **arguments: Any) -> nn.Module:
    """A network of timm, with randomly initialised weights.

    Args:
        name: one of ``timm.list_models()``, such as ``'vit_small_patch16_224'``.
        num_classes: number of logits.
        arguments: passed to ``timm.create_model``, such as ``img_size=64``.

    Raises:
        UserError: if timm is not installed or has no such network.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError('A network from timm needs timm: pip install timm.') from error
    if not timm.is_model(name):
        raise UserError(f'timm {timm.__version__} has no network {name}: see timm.list_models().')
    return timm.create_model(name, num_classes=num_classes, **arguments)
