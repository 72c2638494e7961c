"""Classification errors, and what a teacher does to its student."""

from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor, nn


@METRICS.register_module()
class TopKError(BaseMetric):
    """Top-1 and top-5 error in percent, over the whole validation set and all ranks.

    Of five classes or fewer there is no top-5 error, which would always be 0. One entry a picture,
    so that mmengine can drop the pictures that pad the last rank's share.
    """

    topk = (1, 5)

    def process(self, data_batch: dict, data_samples: Sequence[dict[str, Tensor]]) -> None:
        """Count one batch.

        Args:
            data_batch: not used.
            data_samples: dicts of ``logits`` (N, C) and ``labels`` (N,).
        """
        for sample in data_samples:
            labels = sample['labels'][:, None]
            classes = sample['logits'].shape[1]
            ranking = sample['logits'].topk(min(max(self.topk), classes)).indices
            counted = [k for k in self.topk if k == 1 or k < classes]
            wrong = [(ranking[:, :k] != labels).all(dim=1).tolist() for k in counted]
            self.results.extend(zip(*wrong, strict=True))

    def compute_metrics(self, results: list[tuple[bool, ...]]) -> dict[str, float]:
        """``top1_error`` and, of more than five classes, ``top5_error`` in percent."""
        columns = zip(*results, strict=True)
        return {
            f'top{k}_error': 100.0 * sum(column) / len(column)
            for k, column in zip(self.topk, columns, strict=False)
        }


class TrainingStatistics(nn.Module):
    """Means over many training batches, kept on the device: read once an epoch, they cost no
    synchronisation at an iteration.

    ``error`` is the top-1 error in percent, ``entropy`` the student's in nats. Beside a teacher
    come ``teacher_error``, ``teacher_entropy`` of softmax(z_T / T), which is what the student is
    shown, ``kl`` = KL[softmax(z_T / T) ‖ softmax(z)] in nats, ``agreement``, how often in percent
    both put the same class first, and ``difference`` = KL[softmax(z_T) ‖ softmax(z)] in nats.

    Agreement and difference measure how similar teacher and student are (Section 3.3.2): no
    temperature has a part in them. They are not 100 and 0 for the same weights, since the teacher
    normalises with running statistics and the student with those of the batch.
    """

    names = ('error', 'entropy', 'teacher_error', 'teacher_entropy', 'kl', 'agreement')
    names += ('difference',)

    def __init__(self) -> None:
        super().__init__()
        # A buffer, so that a run that is stopped within an epoch keeps it. It is no weight.
        self.register_buffer('sums', None, persistent=False)

    def clear(self) -> None:
        """Forget all batches."""
        self.sums = None

    @torch.no_grad()
    def add(
        self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None, temperature: float
    ) -> Tensor:
        """Count a batch of logits (N, C) and labels (N,), and return its top-1 error in percent."""
        log_p = logits.detach().float().log_softmax(dim=1)
        first = log_p.argmax(dim=1)
        batch = [100.0 * (first != labels).sum(), -(log_p.exp() * log_p).sum()]
        if teacher_logits is not None:
            log_r = teacher_logits.float().log_softmax(dim=1)
            log_q = (log_r / temperature).log_softmax(dim=1)
            teacher_first = log_q.argmax(dim=1)
            q = log_q.exp()
            batch += [
                100.0 * (teacher_first != labels).sum(),
                -(q * log_q).sum(),
                (q * (log_q - log_p)).sum(),
                100.0 * (first == teacher_first).sum(),
                (log_r.exp() * (log_r - log_p)).sum(),
            ]
        count = torch.full_like(batch[0], len(labels))
        sums = torch.stack([count, *batch]).double()
        self.sums = sums if self.sums is None else self.sums + sums
        return batch[0] / len(labels)

    def mean(self) -> dict[str, float]:
        """The means over the batches of all processes; every process must call it."""
        all_reduce(self.sums)
        count, *sums = self.sums.tolist()
        return {name: total / count for name, total in zip(self.names, sums, strict=False)}
