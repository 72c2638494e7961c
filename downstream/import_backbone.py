"""Convert ResNets of torchvision, timm and OpenMMLab to backbone files.

The names and shapes of the tensors determine depth and stem; every tensor must match that ResNet.
They do not show which convolution has the stride ('style') or how images are normalised: the
checkpoint's config or the user must say so. Layers without weights stay hidden as well: without
its ``config.json``, timm's ``resnetblur50`` looks like a ``resnet50``.
"""

import ast
import json
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from downstream.backbone import STEMS, values_agree
from downstream.mmcv_ops import install
from downstream.preprocessings import PREPROCESSINGS, STYLES
from pretrain.runs.backbone_file import write_backbone_file
from pretrain.runs.checkpoint import load_from_disk, tensor_mismatch
from pretrain.runs.errors import UserError

_CLASSIFIER = ('fc.', 'head.')
_NO_BACKBONE = (*_CLASSIFIER, 'teacher.')
_EVERY_RESNET_HAS = 'layer1.0.conv1.weight'
_COUNTER = '.num_batches_tracked'


def import_backbone(
    source: str | Path, out: str | Path, style: str | None = None, preprocessing: str | None = None
) -> dict:
    """Write the layers before the final pooling of another library's ResNet to ``out``.

    Args:
        source: a ``.safetensors`` file, or a ``.pth`` file with a state dict or a checkpoint. It
            comes from torchvision, timm or OpenMMLab, or from a run of our classifier outside
            this suite.
        out: the file to write; a backbone file there is replaced.
        style: where a bottleneck has its stride: 'pytorch', in the 3x3 convolution, or 'caffe', in
            the first 1x1. Needed if the file does not say it and the depth is 50 or more.
        preprocessing: a key of ``PREPROCESSINGS``. Needed if the file does not say it.

    Returns:
        The provenance, as :func:`pretrain.runs.backbone_file.write_backbone_file` returns it.

    Raises:
        UserError: if ``source`` cannot be read, is a backbone file already or is not a plain
            ResNet, if its weights are not finite, if ``style`` or ``preprocessing`` is missing,
            impossible or contradicts the file, or if ``out`` exists and is not a backbone file.
    """
    source = Path(source)
    content = _read(source)
    if hasattr(content, 'provenance'):
        raise UserError(f'{source} is a backbone file already: use it as it is.')
    if 'identity' in _meta(content):
        raise UserError(
            f'{source} was written by this suite: if it is a pretraining checkpoint, use '
            f'tools/export.py {source} OUT.'
        )
    try:
        weights = _state_dict(content)
        depth, stem = _recognise(weights)
        weights = _complete(weights, depth, stem)
        found = _read_mmengine_config(content) | _read_timm_config(source, depth, stem)
    except UserError as error:
        raise UserError(f'{source}: {error}') from error
    if depth < 50:
        found['style'] = 'pytorch'  # basic blocks have the stride in one place only
    given = PREPROCESSINGS[preprocessing] if preprocessing else {}
    facts = _merge_facts(source, found, given | ({'style': style} if style else {}))
    provenance = {'arch': 'ResNet', 'depth': depth, 'stem': stem, **facts}
    return write_backbone_file(out, weights, source, provenance)


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix != '.safetensors' or not path.is_file():
        return load_from_disk(str(path))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f'{path} is damaged: use an intact file.') from error


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors of the backbone, without classifier and prefixes, under OpenMMLab's names."""
    # A run of our classifier outside this suite also holds the teacher.
    networks = [found for found in _networks(content) if 'teacher.' not in found[2]]
    if len(networks) > 1:
        raise UserError(
            f'holds several ResNets ({", ".join(place for place, _, _ in networks)}): save the '
            'state dict of the one that you want.'
        )
    _, weights, prefix = networks[0] if networks else ('', content, '')
    config = 'cfg' in _meta(content)  # of mmengine: has other modules too
    if not isinstance(weights, Mapping) or not weights:
        raise UserError('holds no state dict: save one with torch.save(model.state_dict(), FILE).')
    backbone = {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f'{name} is not a tensor: save only the state dict.')
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise UserError(f'{name} is not a dense tensor: save the weights as float32.')
        if name.startswith(prefix):
            backbone[name.removeprefix(prefix)] = tensor
        elif not (config or name.removeprefix('module.').startswith(_NO_BACKBONE)):
            raise UserError(f'{name} is not part of the {prefix[:-1]}: save only the backbone.')
    backbone = {name: t for name, t in backbone.items() if not name.startswith(_CLASSIFIER)}
    if 'conv1.0.weight' not in backbone:
        return backbone
    # timm calls the layers of a deep stem conv1.0 to conv1.6 and bn1, OpenMMLab stem.0 to stem.7.
    return {
        re.sub(r'^bn1\.', 'stem.7.', re.sub(r'^conv1\.([01346])\.', r'stem.\1.', name)): tensor
        for name, tensor in backbone.items()
    }


def _networks(content: Any, place: str = '') -> Iterator[tuple[str, Mapping[str, Tensor], str]]:
    """Each ResNet in a checkpoint: its dotted path, the dict that holds it, and its name prefix."""
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _networks(value, f'{place}{name}.')
        elif str(name).endswith(_EVERY_RESNET_HAS):
            prefix = name.removesuffix(_EVERY_RESNET_HAS)
            yield f'{place}{prefix}'.rstrip('.') or 'the file itself', content, prefix


def _recognise(weights: Mapping[str, Tensor]) -> tuple[int, str]:
    """Depth and stem from some tensor names; :func:`_complete` then checks every tensor."""
    blocks = {m.groups() for name in weights if (m := re.match(r'layer([1-4])\.(\d+)\.', name))}
    stages = Counter(stage for stage, _ in blocks)
    counts = tuple(stages[stage] for stage in '1234')
    kind = counts, 'layer1.0.conv3.weight' in weights
    depths = {(n, block.expansion > 1): d for d, (block, n) in _resnet().arch_settings.items()}
    if (depth := depths.get(kind)) is None:
        raise UserError(
            f'is not a ResNet-18, 34, 50, 101 or 152, and no other network can be imported: its '
            f'stages have {counts} blocks and its first tensor is {next(iter(weights), None)}.'
        )
    if 'stem.0.weight' not in weights:
        return depth, 'v1'
    # In a v1d shortcut a pooling layer comes first, so the convolution is downsample.1.
    return depth, 'v1c' if 'layer2.0.downsample.0.weight' in weights else 'v1d'


def _complete(weights: Mapping[str, Tensor], depth: int, stem: str) -> OrderedDict[str, Tensor]:
    """The tensors in the order and dtypes of mmdet's ResNet. UserError unless all match it."""
    deep_stem, avg_down = STEMS[stem]
    with torch.device('meta'):
        layout = _resnet()(depth, deep_stem=deep_stem, avg_down=avg_down).state_dict()
    if not any(name.endswith(_COUNTER) for name in weights):  # saved before torch 0.4.1
        counters = {name: torch.tensor(0) for name in layout if name.endswith(_COUNTER)}
        weights = {**weights, **counters}
    if mismatch := tensor_mismatch(weights, layout, f'a ResNet-{depth} {stem}'):
        raise UserError(f'{mismatch}: only plain ResNets can be transferred.')
    for name, tensor in weights.items():
        counter = name.endswith(_COUNTER)  # which some libraries save as float32 too
        if not (counter or tensor.is_floating_point()):
            raise UserError(f'{name} has the type {tensor.dtype}: save the weights as float32.')
    ours = {name: weights[name].to(layout[name].dtype) for name in layout}
    # torch.save would write all of a tensor of which one is only a part.
    parts = [name for name, t in ours.items() if t.untyped_storage().nbytes() > t.nbytes]
    return OrderedDict(ours | {name: ours[name].clone() for name in parts})


def _resnet() -> type:
    """mmdet's ResNet, imported only when needed because the import takes seconds."""
    install()
    from mmdet.models import ResNet

    return ResNet


def _merge_facts(source: Path, found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Join the facts from the file and the user. UserError if they disagree or one is missing."""
    for fact in sorted(found.keys() & given):
        if not values_agree(found[fact], given[fact]):
            raise UserError(
                f'{source} was trained with {fact} {found[fact]}, but the option says '
                f'{given[fact]}: leave the option out, or give the right file.'
            )
    facts = given | found
    missing = [] if 'style' in facts else [f'--style {"|".join(STYLES)}']
    if not {'mean', 'std', 'channel_order'} <= facts.keys():
        missing += [f'--preprocessing {"|".join(PREPROCESSINGS)}']
    if missing:
        raise UserError(
            f'{source} does not say how it was trained (--help explains the choices): run python '
            f'tools/import_backbone.py {source} OUT {" ".join(missing)}'
        )
    facts = {fact: facts[fact] for fact in ('style', 'mean', 'std', 'channel_order')}
    colours = _are_colours(facts['mean']) and _are_colours(facts['std'])
    if not (facts['style'] in STYLES and colours and min(facts['std']) > 0):
        said = ', '.join(f'{fact} {value}' for fact, value in facts.items())
        raise UserError(
            f'{source} says that it was trained with {said}, which is impossible: save only its '
            'state dict, and give --style and --preprocessing.'
        )
    return facts


def _are_colours(values: Any) -> bool:
    """Whether these are three finite numbers, one for each colour."""
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def _read_timm_config(source: Path, depth: int, stem: str) -> dict[str, Any]:
    """Style and preprocessing from timm's ``config.json`` beside the weights; empty without it."""
    path = source.with_name('config.json')
    found = {'style': 'pytorch', 'channel_order': 'RGB'}  # true of all timm models
    try:
        config = json.loads(path.read_bytes()) if path.is_file() else {}
        if not {'architecture', 'pretrained_cfg'} <= config.keys():
            return {}
        for fact in ('mean', 'std'):
            found[fact] = [255 * float(value) for value in config['pretrained_cfg'][fact]]
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError('config.json beside it is damaged: use an intact one.') from error
    expected = f'resnet{depth}{stem.removeprefix("v1")}'
    if config['architecture'] != expected:
        raise UserError(
            f'its tensors are those of {expected}, but config.json beside it is of '
            f'{config["architecture"]}: only plain ResNets can be transferred.'
        )
    return found


def _read_mmengine_config(content: Any) -> dict[str, Any]:
    """Style and preprocessing from mmengine's config in a checkpoint; empty without one. The config
    is Python source: only its literals are read, and no code is run."""
    text = _meta(content).get('cfg')
    if not isinstance(text, str):
        return {}
    try:
        settings = {
            node.targets[0].id: ast.literal_eval(_LiteralDicts().visit(node.value))
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id in ('model', 'data_preprocessor')
        }
        model = settings.get('model', {})
        preprocessor = model.get('data_preprocessor') or settings.get('data_preprocessor') or {}
        # The first name is mmpretrain's, the second mmdet's and mmseg's.
        to_rgb = preprocessor.get('to_rgb', preprocessor.get('bgr_to_rgb'))
        found = {
            'style': model.get('backbone', {}).get('style'),
            'mean': preprocessor.get('mean'),
            'std': preprocessor.get('std'),
        }
        if 'network' not in model:  # OpenMMLab's models load BGR with OpenCV
            found['channel_order'] = {True: 'RGB', False: 'BGR'}.get(to_rgb)
    except (SyntaxError, ValueError, AttributeError) as error:
        raise UserError("its config cannot be read: save only its ['state_dict'].") from error
    return {fact: value for fact, value in found.items() if value is not None}


def _meta(content: Any) -> Mapping[str, Any]:
    """The ``meta`` dict that mmengine writes into a checkpoint; empty without one."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


class _LiteralDicts(ast.NodeTransformer):
    """Turns ``dict(a=1)``, as mmengine prints configs, into ``{'a': 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == 'dict':
            pairs = node.args[0] if node.args else ast.Dict(keys=[], values=[])
            keys = [ast.Constant(keyword.arg) for keyword in node.keywords]
            values = [keyword.value for keyword in node.keywords]
            return ast.Dict(keys=[*pairs.keys, *keys], values=[*pairs.values, *values])
        return node
