"""Backbone files: weights with their provenance (the source file and how they were trained)."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.runs.checkpoint import load_from_disk, save_sealed, weights_sha256
from pretrain.runs.errors import Contents, UserError


def write_backbone_file(
    out: str | Path, weights: OrderedDict[str, Tensor], source: Path, facts: Mapping[str, Any]
) -> dict:
    """Write weights and their provenance to a file that :func:`load_backbone_file` reads.

    Args:
        out: the file to write. An existing backbone file is replaced atomically; if its provenance
            differs, a printed line says so.
        weights: under OpenMMLab's names, which are torchvision's except for a deep stem.
        source: the checkpoint that the weights come from.
        facts: JSON values, with all that :func:`downstream.backbone.check_handoff` compares.

    Returns:
        The provenance: ``facts`` and :func:`source_facts`.

    Raises:
        UserError: if a weight is not finite, or ``out`` exists and is not a backbone file.
    """
    check_finite(weights, source)
    # As plain dicts and lists: weights_only=True refuses to load the Contents of a record.
    provenance = json.loads(json.dumps({'format': 1, **facts, **source_facts(weights, source)}))
    _tell_replaced(Path(out), provenance)
    weights.provenance = provenance
    save_sealed(weights, out)
    return provenance


def _tell_replaced(out: Path, provenance: dict) -> None:
    if not out.exists():
        return
    try:
        before = load_backbone_file(out).provenance
    except UserError as error:
        raise UserError(
            f'{out} exists and is not a backbone file: delete it, or choose another name.'
        ) from error
    if before != provenance:
        print(f'Replacing {out}, which held the backbone of {before["source"]}.')


def check_finite(weights: Mapping[str, Tensor], source: Path) -> None:
    """Raise a UserError that names the first non-finite tensor of the file ``source``."""
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f'{source}: {name} is not finite: use another checkpoint.')


def source_facts(weights: Mapping[str, Tensor], source: Path) -> dict[str, str]:
    """The hash of the weights, and the name (``folder/file``) and hash of their source file."""
    return {
        'weights_sha256': weights_sha256(weights),
        'source': f'{source.absolute().parent.name}/{source.name}',
        'source_sha256': hashlib.sha256(source.read_bytes()).hexdigest(),
    }


def provenance_of(path: str | Path) -> dict | None:
    """The provenance in a ``.pth`` file, without checking its hash of the weights; None if the file
    is not a backbone file.

    Raises:
        UserError: if the file is missing or damaged.
    """
    return getattr(load_from_disk(str(path)), 'provenance', None)


def load_backbone_file(path: str | Path) -> OrderedDict[str, Tensor]:
    """Read the weights of a backbone file. Their attribute ``provenance`` holds its provenance.

    Raises:
        UserError: if the file is missing, damaged, changed or not written by
            :func:`write_backbone_file`.
    """
    weights = load_from_disk(str(path))
    provenance = getattr(weights, 'provenance', None)
    if not isinstance(provenance, dict):
        raise UserError(
            f'{path} is not a backbone file: make one with tools/export.py CHECKPOINT OUT, '
            "or from another library's ResNet with tools/import_backbone.py SOURCE OUT."
        )
    weights.provenance = provenance = Contents(provenance, path)
    if weights_sha256(weights) != provenance['weights_sha256']:
        raise UserError(
            f'{path} was changed after its export: export or import the checkpoint again.'
        )
    return weights
