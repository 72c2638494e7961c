"""CUDA graphs of a training batch's losses and gradients: two launches in place of hundreds."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor, nn

Compute = Callable[[Tensor, Tensor], dict[str, Tensor]]


def capture(compute: Compute, network: nn.Module, inputs: Tensor, labels: Tensor) -> Compute:
    """Capture the kernels of a function in a CUDA graph, and those of its gradient in another.

    A small network launches its kernels more slowly than a GPU computes them. A graph launches all
    of them at once. It always computes on the same memory: batches must have one shape, and the
    network's tensors must stay in place.

    Args:
        compute: computes a dict of tensors from images (N, 3, H, W) and class indices (N,). It must
            not wait for the GPU. Only the entry ``loss`` has a gradient.
        network: the network whose parameters get gradients, in training mode. Capturing changes
            neither its weights nor its running statistics, and draws no random numbers.
        inputs: images on the GPU, of the shape and memory format of all later ones.
        labels: their classes.

    Returns:
        A function like ``compute``.
    """
    gc.collect()  # an earlier graph is in reference cycles, which keep its memory
    before = [buffer.clone() for buffer in network.buffers()]
    samples = inputs.clone(), labels.clone()  # the memory from which the graph reads its batches
    module = nn.Module()
    module.network, module.forward = network, compute
    # The gradients are captured on a different stream from the one that replays them.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    with torch.random.fork_rng([inputs.device] if inputs.is_cuda else []):
        graphed = torch.cuda.make_graphed_callables(module, samples, allow_unused_input=True)
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)

    def replay(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        # The next batch overwrites the graph's own results.
        return {
            name: (value if name == 'loss' else value.detach()).clone()
            for name, value in graphed(inputs, labels).items()
        }

    return replay
