"""From a pretraining checkpoint to a backbone file: weights and where they come from."""

from pathlib import Path

from pretrain.classifier import student_weights
from pretrain.runs.backbone_file import write_backbone_file
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError


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
