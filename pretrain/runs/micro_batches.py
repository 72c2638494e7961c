"""A large batch on few GPUs: computed in pieces, with one update."""

from contextlib import nullcontext

import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor


def train_in_pieces(
    model: BaseModel | MMDistributedDataParallel,
    data: dict,
    optim_wrapper: OptimWrapper,
    pieces: int,
) -> dict[str, Tensor]:
    """One iteration whose gradient is that of the whole batch, with the memory of a piece.

    An iteration stays an update, unlike with mmengine's ``accumulative_counts``: schedule, log and
    epoch know nothing of the pieces. Batch normalisation takes its statistics from each piece, as
    it does from each GPU's share of a batch.

    Args:
        model: the classifier, or what distributes it.
        data: a batch of ``inputs`` and ``data_samples``, as the loader gives it.
        optim_wrapper: the optimizer.
        pieces: how many; the last is smaller if they do not divide the batch.

    Returns:
        The values to log, means over the batch.
    """
    distributed = isinstance(model, MMDistributedDataParallel)
    classifier = model.module if distributed else model
    data = classifier.data_preprocessor(data, True)
    total = len(data['inputs'])
    size = -(-total // pieces)
    split = [
        {key: value[i : i + size] for key, value in data.items()} for i in range(0, total, size)
    ]
    logs: dict[str, Tensor] = {}
    for piece in split:
        share = len(piece['inputs']) / total
        # The processes exchange their gradients in the last piece's backward pass.
        wait = distributed and piece is not split[-1]
        with model.no_sync() if wait else nullcontext():
            loss, values = classifier.parse_losses(model(**piece, mode='loss'))
            optim_wrapper.backward(share * loss)
        for name, value in values.items():
            logs[name] = logs.get(name, torch.zeros_like(value)) + share * value.detach()
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    return logs


@MODEL_WRAPPERS.register_module()
class DistributedClassifier(MMDistributedDataParallel):
    """mmengine's wrapper for DDP, with the classifier's own iteration."""

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        return train_in_pieces(self, data, optim_wrapper, self.module.micro_batches)
