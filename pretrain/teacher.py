"""The teacher: an earlier student, frozen, in evaluation mode (Section 3.3.4). Needs only torch."""

import copy
import gc
import warnings
from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.optimization import fuse
from torch.nn.modules.conv import _ConvNd


def freeze(network: nn.Module) -> nn.Module:
    """Turn every parameter of ``network`` into a buffer, in place, and return the network.

    Buffers are invisible to the optimizer, weight decay, DDP and gradient clipping, so that the
    optimizer's state is the same in runs with and without a teacher.
    """
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return network


class Pointwise(nn.Linear):
    """A 1x1 convolution as a matrix product, which adds the bias in the same kernel.

    Maps (N, C, H, W) to (N, D, H, W), without a copy of either in channels_last. In float32 on a
    GPU, torch's TF32 setting for matrix products applies, not that for convolutions.
    """

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> 'Pointwise':
        """Convert a 1x1 convolution with stride 1, no padding and one group; weights are shared."""
        weight, bias = convolution.weight.detach().flatten(1), convolution.bias
        layer = cls(weight.shape[1], weight.shape[0], bias is not None, device='meta')
        layer.load_state_dict(
            {'weight': weight} if bias is None else {'weight': weight, 'bias': bias.detach()},
            assign=True,
        )
        return layer.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.permute(0, 2, 3, 1)  # (N, H, W, C)
        outputs = super().forward(rows.reshape(-1, self.in_features))
        return outputs.view(*rows.shape[:3], -1).permute(0, 3, 1, 2)


def fold(teacher: nn.Module, precision: str) -> nn.Module:
    """A copy of a network in evaluation mode that computes the same logits with fewer kernels.

    Batch normalisation after a convolution is folded into it, and 1x1 convolutions become matrix
    products. With 'bf16' the weights are cast here, once; autocast would cast weights without
    gradient in each forward pass. A network that torch.fx cannot trace, or that uses a convolution
    more than once, is copied without folding, with a warning.

    Args:
        teacher: from :func:`freeze`; it is not changed.
        precision: 'bf16' or 'float32'.
    """
    try:
        folded = fuse(teacher)
        read = {n.target.rpartition('.')[0] for n in folded.graph.nodes if n.op == 'get_attr'}
        _check_used_once(teacher, folded, read)
        for name, module in [*folded.named_modules()]:
            if type(module) is nn.Conv2d and _is_pointwise(module) and name not in read:
                folded.set_submodule(name, Pointwise.of(module))
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        warnings.warn(
            f'torch.fx cannot fold the teacher ({error}): its batch normalisation is not folded '
            'into the convolutions. The results are the same, but the teacher is slower.',
            stacklevel=2,
        )
        folded = copy.deepcopy(teacher)
    if precision == 'bf16':
        for module in folded.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(torch.bfloat16)
    gc.collect()  # torch.fx leaves a copy in float32, and the former teacher, in reference cycles
    return folded.to(memory_format=torch.channels_last)


def _check_used_once(teacher: nn.Module, folded: GraphModule, read: Collection[str]) -> None:
    """Raise a ValueError if a convolution into which batch normalisation was folded is called more
    than once, or its weights are in ``read``, the modules whose tensors the network reads."""
    uses = Counter(node.target for node in folded.graph.nodes if node.op == 'call_module')
    uses.update(read)
    for name, count in uses.items():
        part, before = folded.get_submodule(name), teacher.get_submodule(name)
        if not isinstance(part, _ConvNd) or torch.equal(part.weight, before.weight):
            continue
        if count > 1:
            raise ValueError(f'it uses {name} more than once')


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    ones = {*convolution.kernel_size, *convolution.stride, convolution.groups}
    return ones == {1} and convolution.padding in ((0, 0), 'valid', 'same')


class SnapshotTeacher(nn.Module):
    """The teacher for a training loop of your own: the student as it was at the end of the previous
    mini-generation (Eqn 4). Its state dict holds all that a resumed run needs.

    Args:
        student: any network that maps images to logits (N, C); it is copied.

    Example:
        >>> student = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
        >>> teacher, images = SnapshotTeacher(student), torch.rand(2, 3, 2, 2)
        >>> teacher(images)  # None in the first mini-generation
        >>> teacher.take(student)
        >>> teacher(images).shape
        torch.Size([2, 5])
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = freeze(copy.deepcopy(student)).eval()
        self.teaching = False
        self._folded: list[nn.Module] = []  # in a list: state dicts leave it out

    def take(self, student: nn.Module) -> None:
        """Copy the student's weights, running statistics included, to the teacher. Call this at the
        end of each mini-generation."""
        self.load_state_dict({**student.state_dict(prefix='network.'), '_extra_state': True})

    def forward(self, inputs: Tensor) -> Tensor | None:
        """The teacher's logits (N, C), without gradient; None before the first :meth:`take`."""
        if not self.teaching:
            return None
        if not self._folded:
            self._folded.append(fold(self.network, 'float32'))
        with torch.no_grad():
            return self._folded[0](inputs)

    def train(self, mode: bool = True) -> 'SnapshotTeacher':
        super().train(mode)
        self.network.eval()
        return self

    def get_extra_state(self) -> bool:
        return self.teaching

    def set_extra_state(self, state: bool) -> None:
        self.teaching = state
        self._folded.clear()
