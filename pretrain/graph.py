"""A CUDA graph of a training batch's losses and gradients: two launches in place of hundreds."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

Losses = Callable[[Tensor, Tensor], dict[str, Tensor]]


class _Module(nn.Module):
    """A function of a batch as a module with the parameters whose gradients are captured."""

    def __init__(self, losses: Losses, network: nn.Module) -> None:
        super().__init__()
        self.losses = losses
        self.network = network

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return self.losses(inputs, labels)


def capture(losses: Losses, network: nn.Module, inputs: Tensor, labels: Tensor) -> Losses:
    """Capture the kernels of ``losses`` and of its gradient in a CUDA graph.

    A small network launches its kernels more slowly than a GPU computes them. A graph launches all
    of them at once; it always computes on the same memory, so that batches must have one shape and
    the network's tensors must stay in place.

    Args:
        losses: computes a dict of tensors from images (N, 3, H, W) and class indices (N,). It must
            not wait for the GPU. Only the entry ``loss`` has a gradient.
        network: the network whose parameters get gradients, in training mode. Capturing changes
            neither its weights nor its running statistics.
        inputs: images on the GPU, of the shape and memory format of all later ones.
        labels: their classes.

    Returns:
        A function like ``losses``.
    """
    gc.collect()  # an earlier graph is in reference cycles, which keep its memory
    before = [buffer.clone() for buffer in network.buffers()]
    samples = inputs.clone(), labels.clone()  # the memory from which the graph reads its batches
    graphed = torch.cuda.make_graphed_callables(_Module(losses, network), samples)
    # The gradients were captured on another stream than the one on which they are replayed.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)

    def replay(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        # The next batch overwrites the graph's own results.
        return {
            name: (value if name == 'loss' else value.detach()).clone()
            for name, value in graphed(inputs, labels).items()
        }

    return replay
