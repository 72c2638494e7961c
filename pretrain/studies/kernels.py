"""Count the kernels that an iteration launches and how often it waits for the device.

Both can be counted without a GPU, in a run with the Runner and all its hooks. On a CPU the images
are tiny, which changes no count, and the run computes in bf16 as on a GPU. An operator that
launches several kernels, such as the fused SGD for many weights, counts once.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.runs.config import load_config
from pretrain.studies.benchmark import GPU, bl_and_sd, row, run_until, without_graph

WARM_UP, PROFILED = 2, 20  # iterations
ALLOWED = 520  # extra kernels of SD: a forward pass of the folded ResNet-152, and the loss
aten = torch.ops.aten
ALLOCATIONS = (aten.empty, aten.empty_like, aten.empty_strided)
ALLOCATIONS += (aten.new_empty, aten.new_empty_strided)


class Counter(TorchDispatchMode):
    """Counts operators while it is active.

    Attributes:
        kernels: one per operator that computes or copies; one more for the bias of a convolution;
            one per gradient in its backward pass; none for a view.
        waits: reads of values by the host (``item``, ``tolist``, ``cpu``, ``if``), and tensors made
            of Python numbers, which are copied to a GPU while the host waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # In inference mode, composite operators arrive undecomposed.
            if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                return result
        operator = func.overloadpacket
        if operator in (aten._local_scalar_dense, aten.lift_fresh):
            self.waits += 1
        elif operator is aten.convolution:
            self.kernels += 1 + (args[2] is not None)
        elif operator is aten.convolution_backward:
            self.kernels += sum(args[-1])
        elif func.namespace == 'aten' and operator not in ALLOCATIONS:
            self.kernels += not (func.is_view or torch.Tag.inplace_view in func.tags)
        return func(*args, **kwargs)

    def waiting(self, name: str) -> Callable[..., Any]:
        """Wrap a method of tensors that waits, so that each call is counted."""
        method = getattr(torch.Tensor, name)

        def call(*args: object, **kwargs: object) -> Any:
            self.waits += 1
            return method(*args, **kwargs)

        return call


def count(config: Config, iterations: int) -> tuple[float, float]:
    """Run a prepared config; return the kernels and waits per iteration between two log lines."""
    counter, totals = Counter(), []

    def enough(runner: Runner) -> bool:
        totals.append((counter.kernels, counter.waits))
        return len(totals) == WARM_UP + iterations

    config = without_graph(config)
    with ExitStack() as stack:
        for name in ('cpu', 'numpy', 'tolist'):  # dispatch no operator if the tensor is on the CPU
            stack.enter_context(mock.patch.object(torch.Tensor, name, counter.waiting(name)))
        if not GPU:
            config.model.precision = 'bf16'  # as ``prepare`` sets it on a GPU
            config.optim_wrapper.optimizer.fused = True
        stack.enter_context(counter)
        run_until(config, enough)
    (kernels, waits), last = totals[WARM_UP - 1], totals[-1]
    return (last[0] - kernels) / iterations, (last[1] - waits) / iterations


class Profile:
    """An ``enough`` for :func:`run_until` that profiles ``PROFILED`` iterations on a GPU after as
    many to warm up: ``kernels`` per iteration, and ``utilisation``, the share of the time in which
    the GPU computes."""

    def __call__(self, runner: Runner) -> bool:
        if runner.iter + 1 == PROFILED:  # the warm-up is over
            torch.cuda.synchronize()
            self.profiler = profile(activities=[ProfilerActivity.CUDA])
            self.profiler.start()
            self.start = time.perf_counter()
        elif runner.iter + 1 == 2 * PROFILED:
            torch.cuda.synchronize()
            spent = time.perf_counter() - self.start
            self.profiler.stop()
            kernels = [e for e in self.profiler.key_averages() if e.device_type == DeviceType.CUDA]
            self.kernels = sum(e.count for e in kernels) / PROFILED
            self.utilisation = sum(e.self_device_time_total for e in kernels) / 1e6 / spent
        return runner.iter + 1 == 2 * PROFILED


def kernel_rows(path: str | Path, options: Sequence[str], rounds: int) -> list[dict]:
    """Kernels and waits per iteration of BL and of SD; on a GPU also its utilisation."""
    if not GPU:
        tiny = ['image_size=32'] if 'image_size' in load_config(path) else []
        options = [*options, 'batch_size=2', *tiny]
    rows, kernels = [], []
    for name, config in zip(('BL', 'SD'), bl_and_sd(path, options), strict=True):
        config.default_hooks.snapshot.taught_after = 0  # the teacher teaches from the start
        title = f'{Path(path).stem}: {name}'
        launched, waits = count(config, rounds)
        kernels.append(launched)
        rows.append(row(f'{title}, kernels per iteration', launched))
        rows.append(row(f'{title}, waits per iteration between log lines', waits, at_most=0))
        if GPU:
            profiled = Profile()
            run_until(config, profiled)
            rows.append(row(f'{title}, kernels per iteration, profiled', profiled.kernels))
            rows.append(row(f'{title}, GPU utilisation', profiled.utilisation))
    goal = ALLOWED if config.model.network.get('depth') == 152 else None
    more = kernels[1] - kernels[0]
    return [*rows, row(f'{Path(path).stem}: extra kernels of SD over BL', more, at_most=goal)]
