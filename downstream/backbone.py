"""The strict hand-off of a pretrained backbone: every tensor arrives, or the run stops.

"All layers before the final pooling layer" are transferred (Section 4.3). A C4 Faster R-CNN holds
them in two modules, ``backbone`` and ``roi_head.shared_head``; a segmenter holds them in one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.checkpoint import tensor_mismatch
from pretrain.runs.config import walk
from pretrain.runs.errors import UserError

# ``deep_stem`` and ``avg_down`` of mmdet's and mmseg's ResNet. Configs use these and not the types
# ResNetV1c and ResNetV1d, because mmdet has no ResNetV1c.
STEMS = {'v1': (False, False), 'v1c': (True, False), 'v1d': (True, True)}


def backbone_parts(model: ConfigDict) -> dict[str, ConfigDict]:
    """The configs of the modules that the backbone file fills, by their config keys."""
    parts = {'model.backbone': model.backbone}
    if model.get('roi_head', {}).get('shared_head'):
        parts['model.roi_head.shared_head'] = model.roi_head.shared_head
    return parts


def top_level(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct top-level layers of tensor names: ``layer1`` for ``layer1.0.conv1.weight``."""
    return tuple(dict.fromkeys(name.split('.')[0] for name in names))


def check_handoff(model: ConfigDict, provenance: Mapping[str, Any]) -> None:
    """Check that the config builds the network, and the preprocessing, of the pretraining.

    The names and shapes of the tensors do not show the stride style, channel order, mean or std:
    with a wrong one the weights would still load, and accuracy would drop.

    Args:
        model: the ``model`` of an mmdet or mmseg config.
        provenance: ``arch``, ``depth``, ``stem``, ``style``, ``channel_order``, ``mean`` and
            ``std`` of :func:`pretrain.runs.backbone_file.load_backbone_file`.

    Raises:
        UserError: if a fact differs; it names the first one, both values and the config key.
    """
    backbone, preprocessor = model.backbone, model.data_preprocessor
    flags = (backbone.get('deep_stem', False), backbone.get('avg_down', False))
    stem = next((stem for stem, its in STEMS.items() if its == flags), f'none of {[*STEMS]}')
    # OpenCV loads BGR, so swapping the channels gives RGB.
    order = 'RGB' if preprocessor.get('bgr_to_rgb') else 'BGR'
    facts = [
        ('arch', backbone.type, 'model.backbone.type'),
        ('stem', stem, 'model.backbone.deep_stem and avg_down'),
        ('channel_order', order, 'model.data_preprocessor.bgr_to_rgb'),
    ]
    parts = backbone_parts(model)
    if provenance['stem'] == 'v1d' and len(parts) > 1:
        raise UserError(
            'The backbone file is a ResNet v1d, which has pooling in the shortcut of layer4, but '
            "mmdet's shared head has none: use a config without model.roi_head.shared_head, such "
            'as one with FPN.'
        )
    for key, part in parts.items():
        facts += [('depth', part.depth, f'{key}.depth')]
        facts += [('style', part.get('style', 'pytorch'), f'{key}.style')]
    for fact in ('mean', 'std'):
        facts += [(fact, list(preprocessor.get(fact) or ()), f'model.data_preprocessor.{fact}')]
    for fact, ours, key in facts:
        theirs = provenance[fact]
        if not values_agree(ours, theirs):
            raise UserError(
                f'The backbone file was trained with {fact} {theirs}, the config has {ours}: '
                f'change {key}, or give another backbone_file.'
            )


def fitting_options(config: Config, provenance: Mapping[str, Any]) -> list[str]:
    """The ``key=value`` overrides that give a downstream config the stem, stride style and
    preprocessing of a backbone; settings that already agree are left out. Depth and architecture
    stay as in the config. ``provenance`` is as in :func:`check_handoff`."""
    deep_stem, avg_down = STEMS[provenance['stem']]
    wanted = {'model.backbone.deep_stem': deep_stem, 'model.backbone.avg_down': avg_down}
    for key in backbone_parts(config.model):
        wanted[f'{key}.style'] = provenance['style']
    for fact in ('mean', 'std'):
        wanted[f'model.data_preprocessor.{fact}'] = provenance[fact]
    wanted['model.data_preprocessor.bgr_to_rgb'] = provenance['channel_order'] == 'RGB'
    present = dict(walk(config.to_dict()))
    return [
        f'{key}={value}'
        for key, value in wanted.items()
        # A flag that the config does not set is False in mmdet and mmseg.
        if not values_agree(present.get(key, False), value)
    ]


def values_agree(ours: Any, theirs: Any) -> bool:
    """Whether two values agree; the numbers of lists may differ by a factor of 1 + 1e-5."""
    if isinstance(ours, list | tuple):
        pairs = zip(ours, theirs, strict=False)
        return len(ours) == len(theirs) and all(math.isclose(a, b, rel_tol=1e-5) for a, b in pairs)
    return ours == theirs


def take_layers(
    weights: Mapping[str, Tensor], module: nn.Module, layers: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of ``layers``, given by top-level names such as ``conv1`` or ``layer4``. They
    must match the state dict of ``module``, which may be on the meta device.

    Raises:
        UserError: if a tensor is missing, is left over or has another shape; it names them.
    """
    chosen = {name: tensor for name, tensor in weights.items() if name.split('.')[0] in layers}
    if mismatch := tensor_mismatch(chosen, module.state_dict(), 'the model'):
        raise UserError(
            f'The backbone file does not fit: {mismatch}. Give the file of the ResNet that the '
            'config builds.'
        )
    return chosen


@WEIGHT_INITIALIZERS.register_module()
class ExportedBackbone:
    """An ``init_cfg`` type: load ``layers`` of the backbone file ``checkpoint`` into a module.

    Unlike mmengine's ``Pretrained``, it skips no tensor that does not match. The Runner calls it
    when training starts, before it loads a checkpoint to resume from. It raises the errors of
    :func:`take_layers` and :func:`pretrain.runs.backbone_file.load_backbone_file`.
    """

    def __init__(self, checkpoint: str, layers: Sequence[str]) -> None:
        self.checkpoint = checkpoint
        self.layers = layers

    def __call__(self, module: nn.Module) -> None:
        weights = load_backbone_file(self.checkpoint)
        module.load_state_dict(take_layers(weights, module, self.layers))
        if hasattr(module, '_params_init_info'):  # the Runner logs it
            update_init_info(module, f'ExportedBackbone: {self.checkpoint}')
