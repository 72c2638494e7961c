"""A large batch on few GPUs: computed in micro-batches, with one update."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from mmengine.dist import get_rank
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import LOOPS
from torch import Tensor

from pretrain.runs.randomness import seed_all
from pretrain.runs.saving import ResumableLoop


def train_in_micro_batches(
    model: BaseModel | torch.nn.parallel.DistributedDataParallel,
    data: dict,
    optim_wrapper: OptimWrapper,
    micro_batches: int,
) -> dict[str, Tensor]:
    """One iteration whose gradient is that of the whole batch, with the memory of a micro-batch.

    An iteration stays an update, unlike with mmengine's ``accumulative_counts``: schedule, log and
    epoch know nothing of the micro-batches. Batch normalisation takes its statistics from each
    micro-batch, as it does from each GPU's share of a batch.

    Args:
        model: a classifier, detector or segmenter, or what distributes it.
        data: a batch of ``inputs`` and ``data_samples``, as the loader gives it.
        optim_wrapper: the optimizer.
        micro_batches: how many; the last is smaller if they do not divide the batch.

    Returns:
        The values to log, means over the batch.
    """
    distributed = is_model_wrapper(model)
    inner = model.module if distributed else model
    data = inner.data_preprocessor(data, True)
    total = len(data['inputs'])
    size = -(-total // micro_batches)
    split = [
        {key: value[i : i + size] for key, value in data.items()} for i in range(0, total, size)
    ]
    logs: dict[str, Tensor] = {}
    for micro_batch in split:
        share = len(micro_batch['inputs']) / total
        # The processes exchange their gradients in the last micro-batch's backward pass.
        wait = distributed and micro_batch is not split[-1]
        with model.no_sync() if wait else nullcontext():
            loss, values = inner.parse_losses(model(**micro_batch, mode='loss'))
            optim_wrapper.backward(loss if share == 1 else share * loss)
        for name, value in values.items():
            mean = value.detach() if share == 1 else share * value.detach()
            logs[name] = logs[name] + mean if name in logs else mean
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    return logs


@LOOPS.register_module()
class MicroBatchTrainLoop(ResumableLoop):
    """A loop over epochs whose iteration is :func:`train_in_micro_batches`.

    Its random numbers follow from (seed, iteration, rank), so that a stop changes none.
    """

    def __init__(self, *args: object, micro_batches: int = 1, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.micro_batches = micro_batches

    def run_iter(self, idx: int, data_batch: Sequence | dict) -> None:
        runner = self.runner
        # The last number tells this key from that of a sample: (seed, epoch, index).
        seed_all(runner.seed, self._iter, get_rank(), 1)
        runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        outputs = train_in_micro_batches(
            runner.model, data_batch, runner.optim_wrapper, self.micro_batches
        )
        runner.call_hook('after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1
