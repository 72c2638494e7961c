"""Rebuild a trained classifier, detector or segmenter from its checkpoint alone."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.registry import MODELS
from torch import nn

import pretrain.build  # noqa: F401, registers what a classifier's config names
from downstream.mmcv_ops import install
from downstream.precision import set_precision
from pretrain.classifier import student_weights
from pretrain.runs.checkpoint import load_from_disk, tensor_mismatch
from pretrain.runs.errors import UserError
from pretrain.runs.identity import identity_in
from pretrain.runs.precision import forbid_tf32

KINDS = {'classification': 'classifier', 'detection': 'detector', 'segmentation': 'segmenter'}


class Trained(NamedTuple):
    """A trained network.

    Attributes:
        model: in eval mode, on the GPU if there is one.
        settings: the identity of its run, see :mod:`pretrain.runs.identity`.
        metainfo: ``classes``, and for a detector or segmenter also ``palette``.
    """

    model: nn.Module
    settings: ConfigDict
    metainfo: dict[str, Any]

    @property
    def kind(self) -> str:
        return KINDS[self.settings.task]


def load_trained(path: str | Path, precision: str = 'float32') -> Trained:
    """Rebuild the model of a checkpoint and load all its weights.

    Args:
        path: a checkpoint that this suite wrote.
        precision: what the model computes in, 'bf16' or 'float32'.

    Raises:
        UserError: if the checkpoint is missing, is damaged or was not written by this suite.
    """
    forbid_tf32()  # as in a run
    checkpoint = load_from_disk(str(path))
    identity, meta = identity_in(checkpoint, path), checkpoint['meta']
    settings = ConfigDict(json.loads(json.dumps(identity)))
    if settings.task == 'classification':
        student = {key: settings.model[key] for key in ('type', 'network', 'data_preprocessor')}
        loss = dict(type='SnapshotDistillationLoss', teacher_weight=0.0, temperature=1.0)
        with MODELS.switch_scope_and_registry('mmengine') as models:
            model = models.build(student | dict(loss=loss, precision=precision))
        part, weights = model.student, student_weights(checkpoint)
    else:
        install()
        with MODELS.switch_scope_and_registry(settings.default_scope) as models:
            model = set_precision(models.build(settings.model), precision)
        part, weights = model, checkpoint['state_dict']
    if mismatch := tensor_mismatch(weights, part.state_dict(), 'its model'):
        raise UserError(
            f'{path} does not hold the weights of its model ({mismatch}): use an intact checkpoint.'
        )
    part.load_state_dict(weights)
    model = model.to(get_device(), memory_format=torch.channels_last).eval()
    return Trained(model, settings, dict(meta['dataset_meta']))
