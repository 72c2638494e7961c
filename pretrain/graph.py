"""CUDA graphs of a training batch's losses and gradients: two launches in place of hundreds."""

import gc
from collections.abc import Callable
from inspect import signature

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pretrain.runs.errors import UserError, lines_of

Compute = Callable[[Tensor, Tensor], dict[str, Tensor]]
# Whether other threads of the process may use the GPU during a capture, as those of NCCL and of
# pinned memory do. It depends on torch's version.
THREADS_MAY_RUN = 'capture_error_mode' in signature(torch.cuda.make_graphed_callables).parameters


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
        A function like ``compute``. It may run within DDP, which sums the gradients afterwards.

    Raises:
        UserError: if torch cannot capture the function.
    """
    gc.collect()  # an earlier graph is in reference cycles, which keep its memory
    before = [buffer.clone() for buffer in network.buffers()]
    module = nn.Module()
    module.network, module.forward = network, compute
    names, weights = zip(*module.named_parameters(), strict=True)
    # The graph's gradients are those of aliases, since DDP and the optimizer use the nodes of the
    # weights themselves on another stream.
    aliases = [weight.detach().requires_grad_(weight.requires_grad) for weight in weights]

    def pure(inputs: Tensor, labels: Tensor, *weights: Tensor) -> dict[str, Tensor]:
        return functional_call(module, dict(zip(names, weights, strict=True)), (inputs, labels))

    # The memory from which the graph reads its batches and weights.
    memory = inputs.clone(), labels.clone(), *aliases
    settings = {'capture_error_mode': 'thread_local'} if THREADS_MAY_RUN else {}
    try:
        with torch.random.fork_rng([inputs.device] if inputs.is_cuda else []):
            graphed = torch.cuda.make_graphed_callables(
                pure, memory, allow_unused_input=True, **settings
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UserError(
            f'A training step cannot be captured in a CUDA graph ({lines_of(error)[0]}): set '
            'cuda_graph=False, which is slower for small batches.'
        ) from error
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)

    def replay(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        # The next batch overwrites the graph's own results.
        return {
            name: (value if name == 'loss' else value.detach()).clone()
            for name, value in graphed(inputs, labels, *weights).items()
        }

    return replay
