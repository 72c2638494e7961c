"""The training loop: it resumes at any iteration and splits a large batch into micro-batches."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import islice

import torch
from mmengine.dist import get_rank
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor
from torch.utils.data import DataLoader

from pretrain.runs.randomness import seed_all
from pretrain.runs.saving import iterations_done


def train_in_micro_batches(
    model: BaseModel | torch.nn.parallel.DistributedDataParallel,
    data: dict,
    optim_wrapper: OptimWrapper,
    micro_batches: int,
) -> dict[str, Tensor]:
    """Update the weights once for a whole batch, with the memory use of a micro-batch.

    The gradient is the mean over the micro-batches, weighted by their sizes. An iteration remains
    one update, unlike with mmengine's ``accumulative_counts``. Batch normalisation uses the
    statistics of each micro-batch.

    Args:
        model: a classifier, detector or segmenter, or its distributed wrapper.
        data: a batch of ``inputs`` and ``data_samples``, as the loader returns it.
        optim_wrapper: the optimizer.
        micro_batches: their number, or less if the batch is too small; the last may be smaller.

    Returns:
        The values to log, as scalar tensors: means over the batch.
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
        # The processes exchange their gradients in the backward pass of the last micro-batch.
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
class MicroBatchTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, with :func:`train_in_micro_batches` as its iteration and able
    to resume within an epoch.

    Random numbers depend only on (seed, iteration, rank), so that resuming changes none.
    """

    def __init__(self, *args: object, micro_batches: int = 1, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.micro_batches = micro_batches

    def run_epoch(self) -> None:
        done = iterations_done(self.runner)
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for index, batch in enumerate(self._batches(done), start=done):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _batches(self, done: int) -> Iterable:
        """The batches of the epoch after the first ``done``, which are not loaded."""
        loader = self.dataloader
        if not done:
            return loader
        return DataLoader(
            loader.dataset,
            batch_sampler=islice(loader.batch_sampler, done, None),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            prefetch_factor=loader.prefetch_factor,
        )

    def run_iter(self, idx: int, data_batch: Sequence | dict) -> None:
        runner = self.runner
        # The last number distinguishes this key from that of a sample: (seed, epoch, index).
        seed_all(runner.seed, self._iter, get_rank(), 1)
        runner.call_hook('before_train_iter', batch_idx=idx, data_batch=data_batch)
        outputs = train_in_micro_batches(
            runner.model, data_batch, runner.optim_wrapper, self.micro_batches
        )
        runner.call_hook('after_train_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs)
        self._iter += 1
