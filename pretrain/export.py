"""From a pretraining checkpoint to a backbone file: weights and where they come from."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pretrain.classifier import student_weights
from pretrain.runs.backbone_file import write_backbone_file
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError
from pretrain.runs.identity import identity_in
from pretrain.runs.record import read_record


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
        units), ``channel_order``, ``weights_sha256`` and the source; what it was trained with:
        ``algorithm``, ``seed`` and ``recipe_sha256`` (of all settings but the seeds); and from the
        run's ``run.json``, where it lies beside the checkpoint, ``data`` (count and hash of each
        split's files) and ``top1_error`` of the epoch in percent.

    Raises:
        UserError: if the checkpoint is missing, damaged or not of a ResNet pretrained here.
    """
    checkpoint_path = Path(checkpoint_path)
    checkpoint = load_from_disk(str(checkpoint_path))
    identity, meta = identity_in(checkpoint, checkpoint_path), checkpoint['meta']
    if identity['task'] != 'classification' or identity['model']['network']['type'] != 'ResNet':
        raise UserError(f'{checkpoint_path} is not a checkpoint of a ResNet pretrained here.')
    network, preprocessor = (identity['model'][key] for key in ('network', 'data_preprocessor'))
    if 'width' in network:
        raise UserError(
            f'{checkpoint_path} is of a ResNet of width {network["width"]}: detectors and '
            'segmenters build the usual one, so its backbone fits none.'
        )
    weights = student_weights(checkpoint)
    for name in [name for name in weights if name.startswith('fc.')]:
        del weights[name]
    recipe = {k: v for k, v in identity.items() if k not in ('randomness', 'data_seed')}
    provenance = {
        'arch': 'ResNet',
        'depth': network['depth'],
        'stem': 'v1',
        'style': 'pytorch',
        'mean': list(preprocessor['mean']),
        'std': list(preprocessor['std']),
        'channel_order': 'RGB',  # as ClassFolder decodes
        'epoch': meta['epoch'],
        'algorithm': dict(identity['algorithm']),
        'seed': identity['randomness']['seed'],
        'recipe_sha256': hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
        **_recorded(checkpoint_path, identity, meta['epoch']),
    }
    return write_backbone_file(out, weights, checkpoint_path, provenance)


def _recorded(checkpoint_path: Path, identity: dict, epoch: int) -> dict[str, Any]:
    """What the record says of the data and the epoch, if it is of the same run. A
    checkpoint cannot tell: it is written before its epoch is validated."""
    record = read_record(checkpoint_path.parent / 'run.json')
    if record is None or record['identity'] != identity:
        return {}
    metrics = {entry['epoch']: entry.get('metrics', {}) for entry in record['history']}
    errors = metrics.get(epoch, {})
    return {'data': record['data']} | {k: v for k, v in errors.items() if k == 'top1_error'}
