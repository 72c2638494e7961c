"""Losses on the outputs of inner layers: FitNets (reference [35]) and A Gift from KD ([50]).

A loss names layers of the student and of the teacher, and compares their outputs for the same
images. In the first mini-generation it is the student's only loss (``algorithm.features``).
To add such a loss to that of the labels, also change ``SnapshotClassifier.forward``,
``SnapshotHook`` and ``pretrain.build``, which turns the ensemble off.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from pretrain.runs.errors import UserError


def forward_to_layers(
    network: nn.Module, inputs: Tensor, layers: Sequence[str]
) -> tuple[Tensor, list[Tensor]]:
    """A network's logits (N, C), and the outputs of some of its layers in float32.

    Args:
        network: maps images to logits.
        inputs: images, shape (N, 3, H, W).
        layers: dotted names of modules, such as 'layer2.0'.

    Raises:
        UserError: if the network has no such layer; lists the top-level ones.

    Example:
        >>> logits, (stage,) = forward_to_layers(build_resnet(18, 10), images, ['layer3'])
    """
    modules = dict(network.named_modules())
    seen: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen[name] = output.float().clone()  # the next layer may be a ReLU that works in place

    with ExitStack() as stack:
        for name in layers:
            if name not in modules:
                known = ', '.join(child for child, _ in network.named_children())
                raise UserError(
                    f'algorithm.features names a layer {name}, which the network does not have: '
                    f'choose from {known} and the layers in them.'
                )
            handle = modules[name].register_forward_hook(partial(keep, name))
            stack.callback(handle.remove)
        logits = network(inputs)
    return logits, [seen[name] for name in layers]


@MODELS.register_module()
class HintLoss(nn.Module):
    """FitNets: a layer of the student, behind a regressor, imitates a layer of the teacher.

    The regressor is a 1x1 convolution, trained with the student. Eqn 3 of FitNets is half the
    squared distance; this is the mean squared error over all elements, without the half, as in the
    implementations that the tests compare with.

    Args:
        student: name of the student's guided layer.
        teacher: name of the teacher's hint layer.
        channels: (C_s, C_t), the channels of the guided and of the hint layer.
    """

    def __init__(self, student: str, teacher: str, channels: tuple[int, int]) -> None:
        super().__init__()
        self.student_layers, self.teacher_layers = [student], [teacher]
        self.regressor = nn.Conv2d(*channels, 1)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The mean squared error, a scalar, between the regressed output of the guided layer,
        (N, C_s, H, W), and that of the hint layer, (N, C_t, H, W), each alone in a list; UserError
        if the sizes do not fit."""
        (guided,), (hint,) = student, teacher
        expected = self.regressor.in_channels, self.regressor.out_channels
        if (guided.shape[1], hint.shape[1]) != expected or guided.shape[2:] != hint.shape[2:]:
            raise UserError(
                f'The guided layer {self.student_layers[0]} gives {_size(guided)}, the hint layer '
                f'{self.teacher_layers[0]} {_size(hint)}: choose layers of equal height and width, '
                f'and set algorithm.features.channels, now {list(expected)}, to their channels.'
            )
        return F.mse_loss(self.regressor(guided), hint)


@MODELS.register_module()
class FSPLoss(nn.Module):
    """A Gift from KD: the student's flow between two layers imitates the teacher's.

    The flow from features F1, (N, I, H, W), to features F2, (N, J, H, W), is the Gram matrix
    G_ij = sum over s, t of F1_ist F2_jst / (H W) (Eqn 1 of that paper). The loss is the squared
    distance between the two networks' matrices (Eqn 2, with λ = 1 / (I J)), averaged over the
    images and summed over the pairs.

    Args:
        pairs: names of the two layers of each pair, the same in both networks.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.student_layers = [name for pair in pairs for name in pair]
        self.teacher_layers = self.student_layers

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss, a scalar. Both lists hold the features of the first pair, then of the second,
        and so on; UserError if the two of a pair differ in height or width, or the two networks in
        channels."""
        total = student[0].new_zeros(())
        for first in range(0, len(student), 2):
            names = self.student_layers[first : first + 2]
            ours, theirs = (features[first : first + 2] for features in (student, teacher))
            alike = all(a.shape[2:] == b.shape[2:] for a, b in (ours, theirs))
            if not alike or [f.shape[1] for f in ours] != [f.shape[1] for f in theirs]:
                raise UserError(
                    f'The layers {" and ".join(names)} of algorithm.features give '
                    f'{" and ".join(map(_size, ours))} in the student, '
                    f'{" and ".join(map(_size, theirs))} in the teacher: choose two layers of '
                    'equal height and width, with the same numbers of channels in both networks.'
                )
            total = total + (flow(*ours) - flow(*theirs)).square().mean()
        return total


def flow(first: Tensor, second: Tensor) -> Tensor:
    """The FSP matrices (N, I, J) of features (N, I, H, W) and (N, J, H, W)."""
    height, width = first.shape[2:]
    return torch.einsum('nihw,njhw->nij', first, second) / (height * width)


def _size(features: Tensor) -> str:
    return 'x'.join(map(str, features.shape[1:]))
