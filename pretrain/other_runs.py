"""Networks that other runs trained: a fixed teacher, or the network that Net2Net starts from."""

from collections.abc import Mapping

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor

from pretrain.classifier import student_weights
from pretrain.runs.checkpoint import load_from_disk, tensor_mismatch, weights_sha256
from pretrain.runs.errors import UserError, number_of
from pretrain.runs.identity import differences, identity_in, in_words


def network_weights(checkpoint: dict) -> Mapping[str, Tensor]:
    """The student's weights of a pretraining checkpoint, or the weights of a file that holds
    nothing else, with or without the key ``state_dict``."""
    if 'meta' in checkpoint:
        return student_weights(checkpoint)
    return checkpoint.get('state_dict', checkpoint)


def check_other_run(path: str, network: dict, config: Config, key: str) -> str:
    """Make sure that a checkpoint holds a network that can teach or initialise this run's student.

    Args:
        path: a checkpoint of this suite, or a file with weights alone, whose preprocessing cannot
            be checked.
        network: the config that the network must have.
        config: the run's config.
        key: that of ``network`` in the config, for the message.

    Returns:
        The SHA-256 of the weights.

    Raises:
        UserError: naming what differs: the network, its number of classes, the preprocessing, the
            image size or the tensors.
    """
    checkpoint = load_from_disk(path)
    if 'meta' in checkpoint:
        theirs, ours = (
            _described(identity['model']['network'], identity)
            for identity in (identity_in(checkpoint, path), config.to_dict())
        )
        ours['network'] = dict(network)
        if found := differences(theirs, ours):
            raise UserError(
                f'{path} {in_words(found, "was trained with", "but this run asks for")}: choose a '
                f'checkpoint of the same network and preprocessing, or give its network as {key}.'
            )
    theirs, ours = network['num_classes'], config.model.network.num_classes
    if theirs != ours:
        raise UserError(
            f'{path} is of a network with {number_of(theirs, "classes")}, but the student has '
            f'{ours}: choose a checkpoint of a run with the same data.'
        )
    weights = network_weights(checkpoint)
    with torch.device('meta'):
        wanted = MODELS.build(dict(network)).state_dict()
    if mismatch := tensor_mismatch(weights, wanted, 'the network'):
        raise UserError(
            f'{path} does not hold the weights of {dict(network)}: {mismatch}. Choose a checkpoint '
            'of this network.'
        )
    return weights_sha256(weights)


def _described(network: dict, settings: dict) -> dict:
    preprocessor = settings['model']['data_preprocessor']
    described = {'network': network, 'image_size': settings.get('image_size')}
    return described | {name: list(preprocessor[name]) for name in ('mean', 'std')}
