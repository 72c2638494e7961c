"""Classification errors, and statistics of training that compare student and teacher."""

from collections.abc import Sequence

import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor, nn

# Rows and columns of TrainingStatistics.equal: the label and the two networks' top-1 classes.
LABEL, STUDENT, TEACHER = range(3)


@METRICS.register_module()
class TopKError(BaseMetric):
    """Top-1 and top-5 error in percent, over the whole validation set and all ranks.

    With five classes or fewer there is no top-5 error, which would always be 0. ``results`` has one
    entry per image, so that mmengine can drop the images that pad the last rank's share.
    """

    default_prefix = ''  # mmengine warns of a metric without one

    def process(self, data_batch: dict, data_samples: Sequence[dict[str, Tensor]]) -> None:
        """Count one batch.

        Args:
            data_batch: not used.
            data_samples: dicts of ``logits`` (N, C) and ``labels``, class indices (N,).
        """
        for sample in data_samples:
            classes = sample['logits'].shape[1]
            wrong = sample['logits'].topk(min(5, classes)).indices != sample['labels'][:, None]
            columns = [wrong[:, 0], wrong.all(dim=1)] if classes > 5 else [wrong[:, 0]]
            self.results.extend(zip(*map(Tensor.tolist, columns), strict=True))

    def compute_metrics(self, results: list[tuple[bool, ...]]) -> dict[str, float]:
        """``top1_error`` and, with more than five classes, ``top5_error`` in percent."""
        columns = zip(('top1_error', 'top5_error'), zip(*results, strict=True), strict=False)
        return {name: 100.0 * sum(column) / len(column) for name, column in columns}


@torch.no_grad()
def compare(
    log_student: Tensor,
    labels: Tensor,
    log_teacher: Tensor | None = None,
    teacher_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compare the labels, the student and its teacher on a batch, without waiting for the device.

    Args:
        log_student: the student's log-probabilities, shape (N, C).
        labels: class indices, shape (N,).
        log_teacher: log softmax(z_T / T), shape (N, C); None without a teacher.
        teacher_logits: z_T, shape (N, C).

    Returns:
        ``equal``, int64 (2, 2) or with a teacher (3, 3): the number of images to which two of
        ``LABEL``, ``STUDENT`` and ``TEACHER`` give the same class. ``nats``, float32 (1,) or (3,):
        the sums over the images of the student's negative entropy, and of the teacher's and
        KL[softmax(z_T) ‖ softmax(z)].
    """
    classes = [labels, log_student.argmax(dim=1)]
    logs = [log_student.detach()]
    if log_teacher is not None:
        classes.append(teacher_logits.argmax(dim=1))
        logs += [log_teacher, teacher_logits.log_softmax(dim=1)]
    classes = torch.stack(classes)
    equal = (classes[:, None] == classes).sum(dim=2)
    scores = torch._foreach_exp(logs)  # in one kernel
    if log_teacher is not None:
        logs[2] = logs[2] - logs[0]
    sums = [p.flatten().dot(log.flatten()) for p, log in zip(scores, logs, strict=True)]
    return equal, torch.stack(sums)


class TrainingStatistics(nn.Module):
    """Means over the training images, kept on the device and read once an epoch, so that no
    iteration waits for the device.

    ``error`` is the student's top-1 error in percent, ``entropy`` that of its softmax in nats. With
    a teacher there are also ``teacher_error``; ``teacher_entropy``, that of softmax(z_T / T), which
    the student learns from; ``agreement``, the percentage of images to which both give the same
    top-1 class; and ``difference`` = KL[softmax(z_T) ‖ softmax(z)] in nats.

    Agreement and difference measure how similar teacher and student are (Section 3.3.2), without a
    temperature. They are not 100 and 0 for equal weights, because the teacher normalises with
    running statistics and the student with those of the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        # As buffers, they are saved if the run stops within an epoch; state dicts leave them out.
        self.register_buffer('equal', None, persistent=False)
        self.register_buffer('nats', None, persistent=False)

    def clear(self) -> None:
        """Forget all batches."""
        self.equal = self.nats = None

    def add(self, equal: Tensor, nats: Tensor) -> None:
        """Count a batch, given what :func:`compare` returns for it."""
        self.equal = equal if self.equal is None else self.equal + equal
        self.nats = nats.double() if self.nats is None else self.nats + nats

    def mean(self) -> dict[str, float]:
        """The means over the images of all processes; every process must call it, once an epoch."""
        all_reduce(self.equal)
        all_reduce(self.nats)
        equal, nats = self.equal.tolist(), self.nats.tolist()
        count = equal[LABEL][LABEL]
        means = {'error': 100.0 - 100.0 * equal[LABEL][STUDENT] / count}
        means['entropy'] = -nats[0] / count
        if len(nats) > 1:
            means['teacher_error'] = 100.0 - 100.0 * equal[LABEL][TEACHER] / count
            means['teacher_entropy'] = -nats[1] / count
            means['agreement'] = 100.0 * equal[STUDENT][TEACHER] / count
            means['difference'] = nats[2] / count
        return means
