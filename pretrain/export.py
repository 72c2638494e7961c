"""From a pretraining checkpoint to a backbone file: weights and where they come from."""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoint import (
    load_from_disk,
    student_weights,
    weights_sha256,
    write_atomically,
)
from pretrain.errors import UserError


def export_backbone(checkpoint_path: str | Path, out: str | Path) -> dict:
    """Write the student's layers before the final pooling (Section 4.3) to ``out``.

    The file is a plain dict of tensors under torchvision's names, without ``fc``; it loads
    unchanged in the ResNets of torchvision, timm, mmdet and mmseg. What downstream must agree on
    travels as the dict's attribute ``provenance``, which pickles with it.

    Args:
        checkpoint_path: an ``epoch_*.pth`` or ``snapshot_*.pth`` of a ResNet run.
        out: the file to write; it is replaced in one step.

    Returns:
        The provenance: ``arch``, ``depth``, ``stem``, ``style``, ``mean`` and ``std`` (in 0-255
        units), ``channel_order``, ``weights_sha256`` and the source.

    Raises:
        UserError: if the checkpoint is missing, damaged or not of a ResNet pretrained here.
    """
    checkpoint_path = Path(checkpoint_path)
    checkpoint = load_from_disk(str(checkpoint_path))
    identity = checkpoint.get('meta', {}).get('identity', {})
    if identity.get('task') != 'classification' or identity['network']['type'] != 'ResNet':
        raise UserError(f'{checkpoint_path} is not a checkpoint of a ResNet pretrained here.')
    preprocessor = identity['data_preprocessor']
    weights = student_weights(checkpoint)
    for name in [name for name in weights if name.startswith('fc.')]:
        del weights[name]
    provenance = {
        'arch': 'ResNet',
        'depth': identity['network']['depth'],
        'stem': 'v1',
        'style': 'pytorch',
        'mean': list(preprocessor['mean']),
        'std': list(preprocessor['std']),
        'channel_order': 'RGB',  # as ClassFolder decodes
        'epoch': checkpoint['meta']['epoch'],
        'algorithm': dict(identity['algorithm']),
        'seed': identity['seed'],
    }
    return write_backbone_file(out, weights, checkpoint_path, provenance)


def write_backbone_file(
    out: str | Path, weights: OrderedDict[str, Tensor], source: Path, facts: Mapping[str, Any]
) -> dict:
    """Write weights and what is known of them, as :func:`load_backbone_file` reads them.

    Args:
        out: the file to write; it is replaced in one step.
        weights: under OpenMMLab's names, which are torchvision's but for a deep stem.
        source: the file that they come from.
        facts: what :func:`downstream.backbone.check_handoff` compares, and whatever else is known.

    Returns:
        The provenance: ``facts``, the hash of the weights and the source.

    Raises:
        UserError: if a weight is not finite.
    """
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f'{source}: {name} is not finite: take another checkpoint.')
    weights.provenance = {
        'format': 1,
        **facts,
        'weights_sha256': weights_sha256(weights),
        'source': f'{source.parent.name}/{source.name}',
        'source_sha256': hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    write_atomically(out, buffer.getvalue())
    return weights.provenance


def is_backbone_file(path: str | Path) -> bool:
    """Whether this suite wrote the ``.pth`` file as a backbone, with its provenance.

    Raises:
        UserError: if the file is missing or damaged.
    """
    return hasattr(load_from_disk(str(path)), 'provenance')


def load_backbone_file(path: str | Path) -> OrderedDict[str, Tensor]:
    """Read a backbone file; its attribute ``provenance`` says what it is.

    Raises:
        UserError: if the file is missing, damaged, changed or not written by
            :func:`write_backbone_file`.
    """
    weights = load_from_disk(str(path))
    provenance = getattr(weights, 'provenance', None)
    if provenance is None:
        raise UserError(
            f'{path} is not a backbone file: make one with tools/export_backbone.py CHECKPOINT '
            "OUT, or of another library's ResNet with tools/import_backbone.py SOURCE OUT."
        )
    if weights_sha256(weights) != provenance['weights_sha256']:
        raise UserError(f'{path} was changed after its export: export the checkpoint again.')
    return weights
