"""Net2Net (reference [5]): a deeper or wider ResNet that at first computes what a smaller one does.

A wider layer repeats channels of the smaller one (Net2WiderNet): new channel j is a copy of channel
g(j), and the next layer's weights for it are divided by the number of copies,
|{x: g(x) = g(j)}|. A deeper stage gets residual blocks that add nothing yet (Net2DeeperNet): the
last batch normalisation of each scales by 0. Both preserve the function in training and in
evaluation mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from pretrain.other_runs import network_weights
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError
from pretrain.runs.randomness import stable_seed, torch_seed
from pretrain.runs.saving import unwrap

NOISE = 0.01  # on repeated channels, relative to the standard deviation of the layer's weights


def check_net2net(small: nn.Module, large: nn.Module) -> None:
    """Make sure that :func:`net2net` can fill ``large``.

    Raises:
        UserError: unless both are ResNets with as many stages of the same torchvision block, and
            ``large`` is nowhere narrower or shallower.
    """
    for network in (small, large):
        blocks = [block for stage in _stages(network) for block in stage]
        if not blocks or not {type(block) for block in blocks} <= {BasicBlock, Bottleneck}:
            raise UserError(
                'initial.network: Net2Net needs ResNets of basic or bottleneck blocks, both as '
                f'source and as student; {type(network).__name__} is not one.'
            )
    ours, theirs = _stages(large), _stages(small)
    if len(ours) != len(theirs) or type(ours[0][0]) is not type(theirs[0][0]):
        raise UserError(
            'initial.network: the two ResNets of Net2Net must have the same kind of blocks and the '
            'same number of stages.'
        )
    for k, (stage, old) in enumerate(zip(ours, theirs, strict=True), start=1):
        pairs = zip(_convolutions(stage[0]), _convolutions(old[0]), strict=True)
        channels = [('channels', conv.out_channels, its.out_channels) for conv, its in pairs]
        for what, mine, its in [('blocks', len(stage), len(old)), *channels]:
            if mine < its:
                raise UserError(
                    f'initial.network: layer{k} of the student has {mine} {what}, but that of the '
                    f'source has {its}: Net2Net makes networks deeper and wider, never shallower '
                    'or narrower.'
                )


def net2net(small: nn.Module, large: nn.Module, noise: float = NOISE) -> None:
    """Fill ``large`` with weights that compute what ``small`` does. Random numbers come from
    torch's generator.

    Args:
        small: a ResNet of :mod:`pretrain.models`.
        large: one that :func:`check_net2net` accepts; it is changed in place.
        noise: standard deviation of the noise on the weights of repeated channels, relative to that
            of the layer's weights. It lets the copies learn different things; with 0 the two
            networks compute the same.

    Example:
        >>> net2net(build_cifar_resnet(14, 100), large := build_cifar_resnet(20, 100))
    """
    with torch.no_grad():
        stream = _repeat(torch.arange(small.conv1.out_channels), large.conv1.out_channels)
        rgb = torch.arange(3)
        _fill(small.conv1, large.conv1, small.bn1, large.bn1, rgb, stream, noise)
        for old, new in zip(_stages(small), _stages(large), strict=True):
            for block, wider in zip(old, new, strict=False):
                stream = _fill_block(block, wider, stream, noise)
            for block in list(new)[len(old) :]:
                last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        large.fc.weight.copy_(small.fc.weight[:, stream] / _copies(stream))
        large.fc.bias.copy_(small.fc.bias)


def _fill_block(small: nn.Module, large: nn.Module, inputs: Tensor, noise: float) -> Tensor:
    """Fill a residual block, whose input channels have the mapping g = ``inputs``; return that of
    its output channels."""
    old, new = _convolutions(small), _convolutions(large)
    before, after = old[-1].out_channels, new[-1].out_channels
    shortcut = small.downsample
    if isinstance(shortcut, nn.Sequential):  # a convolution, which can repeat any channels
        outputs = _repeat(torch.arange(before), after)
        bn, wider = shortcut[1], large.downsample[1]
        _fill(shortcut[0], large.downsample[0], bn, wider, inputs, outputs, noise)
    else:  # the identity, or zeros appended: the input channels keep their mapping
        first = old[0].in_channels
        outputs = torch.cat([inputs, _repeat(torch.arange(first, before), after - len(inputs))])
    channels = inputs
    for number, (conv, wider) in enumerate(zip(old, new, strict=True), start=1):
        given = _repeat(torch.arange(conv.out_channels), wider.out_channels)
        if number == len(old):
            given = outputs
        norms = (getattr(block, f'bn{number}') for block in (small, large))
        _fill(conv, wider, *norms, channels, given, noise)
        channels = given
    return outputs


def _fill(
    conv: nn.Conv2d,
    wider: nn.Conv2d,
    bn: nn.BatchNorm2d,
    wider_bn: nn.BatchNorm2d,
    inputs: Tensor,
    outputs: Tensor,
    noise: float,
) -> None:
    """Fill a convolution and its batch normalisation; ``inputs`` and ``outputs`` are the mapping g
    of its input and its output channels."""
    weight = conv.weight[outputs][:, inputs] / _copies(inputs)[None, :, None, None]
    # Whether a channel repeats an earlier one.
    again = (outputs[:, None] == outputs).tril(-1).any(dim=1)
    weight[again] += noise * weight.std() * torch.randn_like(weight[again])
    wider.weight.copy_(weight)
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
        getattr(wider_bn, name).copy_(getattr(bn, name)[outputs])


def _repeat(channels: Tensor, count: int) -> Tensor:
    """The mapping g: ``channels``, followed by random ones of them up to ``count``."""
    more = torch.randint(max(1, len(channels)), (count - len(channels),))
    return torch.cat([channels, channels[more]])


def _copies(channels: Tensor) -> Tensor:
    """For each entry of ``channels``, how often its channel occurs there."""
    return (channels[:, None] == channels).sum(dim=1)


def _stages(network: nn.Module) -> list[Sequence[nn.Module]]:
    names = (f'layer{k}' for k in (1, 2, 3, 4))
    return [getattr(network, name) for name in names if hasattr(network, name)]


def _convolutions(block: nn.Module) -> list[nn.Conv2d]:
    names = (f'conv{number}' for number in (1, 2, 3))
    return [getattr(block, name) for name in names if hasattr(block, name)]


@HOOKS.register_module()
@dataclass(eq=False)
class Net2NetHook(Hook):
    """Fills the student of a new run from a smaller network that another run has trained.

    Args:
        network: config of the smaller network.
        checkpoint: path of a checkpoint or a file with its weights.
        seed: of the choice of repeated channels, their noise and the new blocks.
    """

    network: dict
    checkpoint: str
    seed: int

    def before_train(self, runner: Runner) -> None:
        if runner.iter:
            return
        small = MODELS.build(self.network)
        small.load_state_dict(network_weights(load_from_disk(self.checkpoint)))
        with torch_seed(stable_seed(self.seed, 0)):
            large = MODELS.build(runner.cfg.model.network)
            net2net(small, large)
        unwrap(runner).student.load_state_dict(large.state_dict())
        runner.logger.info(f'The student begins as the network of {self.checkpoint}.')
