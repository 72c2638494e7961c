"""Export a pretraining checkpoint, with its provenance, to files that other libraries load."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.classifier import student_weights
from pretrain.datasets.cifar import SIZE as CIFAR_SIZE
from pretrain.datasets.decode import CENTRE_SHARE
from pretrain.export_formats import WRITERS, Snapshot
from pretrain.runs.backbone_file import (
    check_finite,
    provenance_of,
    source_facts,
    write_backbone_file,
)
from pretrain.runs.checkpoint import load_from_disk, progress
from pretrain.runs.errors import UserError
from pretrain.runs.identity import identity_in
from pretrain.runs.record import read_record


def export(
    checkpoint_path: str | Path,
    out: str | Path,
    library: str = 'torchvision',
    classifier: bool = False,
) -> Mapping[str, Any]:
    """Write the student of a pretraining checkpoint in the format that ``library`` loads.

    Args:
        checkpoint_path: an ``epoch_*.pth``, ``snapshot_*.pth`` or ``kept_*.pth``. ONNX with
            ``classifier`` takes any network, all other exports a ResNet of the usual width.
        out: a new file for 'torchvision' and 'onnx', a new folder for the others.
        library: a key of :data:`pretrain.export_formats.WRITERS`. 'torchvision' without a
            classifier is the backbone file that fine-tuning takes; it may replace another one.
        classifier: whether to export the last layer, which gives the logits, too.

    Returns:
        The provenance, as :func:`export_backbone` describes it.

    Raises:
        UserError: if the checkpoint cannot be exported in this format, or ``out`` exists.

    Example:
        >>> snapshot = 'work_dirs/r152_sd/snapshot_2.pth'
        >>> export(snapshot, 'r152_sd', 'timm', classifier=True)['epoch']  # doctest: +SKIP
        90
    """
    if library == 'torchvision' and not classifier:
        return export_backbone(checkpoint_path, out)
    if Path(out).exists():
        raise UserError(f'{out} exists: delete it, or choose another name.')
    snapshot = read_snapshot(Path(checkpoint_path))
    if not is_usual_resnet(snapshot.network) and not (library == 'onnx' and classifier):
        raise UserError(
            f'{checkpoint_path} is a {snapshot.network["type"]}, not a ResNet of the usual width: '
            'only --format onnx --classifier can export it.'
        )
    if not classifier:
        _drop_classifier(snapshot.weights)
    check_finite(snapshot.weights, snapshot.path)
    for name, tensor in snapshot.weights.items():
        snapshot.weights[name] = tensor.contiguous()  # students are trained in channels_last
    snapshot.provenance.update(source_facts(snapshot.weights, snapshot.path))
    WRITERS[library](snapshot, Path(out))
    return snapshot.provenance


def export_backbone(checkpoint_path: str | Path, out: str | Path) -> dict:
    """Write the student's layers before the final pooling (Section 4.3) to ``out``, with
    :func:`pretrain.runs.backbone_file.write_backbone_file`.

    The file holds a dict of tensors under torchvision's names, without ``fc``, which the ResNets of
    torchvision, timm, mmdet and mmseg load. Its attribute ``provenance`` is pickled with it;
    fine-tuning compares the network and the preprocessing with it.

    Returns:
        The provenance. Of the network: ``arch``, ``depth``, ``stem``, ``style``, ``mean`` and
        ``std`` (for pixels from 0 to 255), ``channel_order``, ``weights_sha256``, ``source`` and
        ``source_sha256``. Of its training: ``epoch``, ``algorithm``, ``seed`` and ``recipe_sha256``
        (of the run's identity without its seeds). If the run's ``run.json`` lies beside the
        checkpoint: ``data`` (count and hash of each split's file list) and ``top1_error`` of the
        epoch in percent.

    Raises:
        UserError: if the checkpoint is missing, damaged or not of a ResNet pretrained here, a
            weight is not finite, or ``out`` exists and is not a backbone file.
    """
    snapshot = read_snapshot(Path(checkpoint_path))
    if snapshot.network['type'] != 'ResNet':
        raise UserError(f'{checkpoint_path} is not a checkpoint of a ResNet pretrained here.')
    if not is_usual_resnet(snapshot.network):
        raise UserError(
            f'{checkpoint_path} is of a ResNet of width {snapshot.network["width"]}, but detectors '
            'and segmenters need the usual width, 64: choose a checkpoint of such a ResNet.'
        )
    _drop_classifier(snapshot.weights)
    return write_backbone_file(out, snapshot.weights, snapshot.path, snapshot.provenance)


def is_usual_resnet(network: Mapping[str, Any]) -> bool:
    """Whether a network's config is that of a ResNet of the usual width, as in other libraries."""
    return network['type'] == 'ResNet' and network.get('width', 64) == 64


def _drop_classifier(weights: OrderedDict[str, Tensor]) -> None:
    for name in [name for name in weights if name.startswith('fc.')]:
        del weights[name]


def read_snapshot(path: Path) -> Snapshot:
    """Read a pretraining checkpoint; UserError if it is missing, damaged or not of this suite."""
    checkpoint = load_from_disk(str(path))
    try:
        identity, meta = identity_in(checkpoint, path), checkpoint['meta']
    except UserError as error:
        if hasattr(checkpoint, 'provenance'):  # of a backbone file, which needs no import
            raise
        raise UserError(
            f'{error} If another program trained this ResNet, tools/import_backbone.py {path} OUT '
            'makes a backbone file from it.'
        ) from error
    if identity['task'] != 'classification':
        raise UserError(f'{path} is not a checkpoint of a ResNet pretrained here.')
    network, preprocessor = (identity['model'][key] for key in ('network', 'data_preprocessor'))
    provenance = {
        'arch': network['type'],
        'depth': network.get('depth'),
        'stem': 'v1',
        'style': 'pytorch',
        'mean': list(preprocessor['mean']),
        'std': list(preprocessor['std']),
        'channel_order': 'RGB',  # as ClassFolder decodes
        'epoch': meta['epoch'],
        'algorithm': dict(identity['algorithm']),
        'seed': identity['randomness']['seed'],
        'recipe_sha256': _recipe_sha256(identity),
        **_recorded(path, identity, meta['epoch']),
    }
    return Snapshot(
        path,
        student_weights(checkpoint),
        network,
        tuple(meta['dataset_meta']['classes']),
        identity.get('image_size', CIFAR_SIZE),
        CENTRE_SHARE if 'image_size' in identity else 1.0,  # CIFAR-100's images are not cropped
        provenance,
    )


def _recipe_sha256(identity: Mapping[str, Any]) -> str:
    """A hash of a run's identity without its seeds."""
    recipe = {k: v for k, v in identity.items() if k not in ('randomness', 'data_seed')}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def is_export_of(backbone: Path, record: Mapping[str, Any]) -> bool:
    """Whether a backbone file holds the weights after the last epoch of a run with this record."""
    facts = provenance_of(backbone) if backbone.exists() else None
    identity = record['identity']
    if not facts or 'feature_scale' in facts:  # scaled after its export
        return False
    return (facts.get('recipe_sha256'), facts.get('seed'), facts.get('epoch')) == (
        _recipe_sha256(identity),
        identity['randomness']['seed'],
        record['history'][-1]['epoch'],
    )


def _recorded(checkpoint_path: Path, identity: dict, epoch: int) -> dict[str, Any]:
    """The data and the top-1 error after the epoch, from the ``run.json`` beside a checkpoint if it
    is of the same run. A checkpoint within an epoch has no error."""
    record = read_record(checkpoint_path.parent / 'run.json')
    if record is None or record['identity'] != identity:
        return {}
    facts = {'data': record['data']}
    if (progress(checkpoint_path) or (epoch, 0))[1]:
        return facts
    for entry in record['history']:
        if entry['epoch'] == epoch and 'metrics' in entry:
            facts['top1_error'] = entry['metrics']['top1_error']
    return facts
