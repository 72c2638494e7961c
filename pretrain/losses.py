"""The loss of Snapshot Distillation (Eqn 3). Needs torch alone."""

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.runs.errors import UserError


class LossParts(NamedTuple):
    """Eqn 3 and its two unweighted terms, batch means in nats as scalar tensors; and the
    log-probabilities (N, C) of the student and the softened teacher. Without a teacher, ``kl`` and
    ``log_teacher`` are None.
    """

    loss: Tensor
    cross_entropy: Tensor
    kl: Tensor | None
    log_student: Tensor
    log_teacher: Tensor | None

    def logged(self) -> dict[str, Tensor]:
        """The values to log: ``loss``, which is minimised, and with a teacher ``cross_entropy`` and
        ``kl``, detached."""
        if self.kl is None:
            return {'loss': self.loss}
        terms = {'cross_entropy': self.cross_entropy.detach(), 'kl': self.kl.detach()}
        return {'loss': self.loss, **terms}


def balanced_label_weight(teacher_weight: float, temperature: float) -> float:
    """λS beside a teacher: 1 + λT/T.

    For Snapshot Distillation (λT = 1) this is the 1 + 1/T of Section 4.1, which balances the two
    gradients; for Snapshot Ensemble (λT = 0) it is the 1 of Eqn 1.
    """
    return 1.0 + teacher_weight / temperature


def snapshot_distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    label_weight: float,
    teacher_weight: float,
    temperature: float,
    student_temperature: float = 1.0,
) -> LossParts:
    """λS · CE(y, f(x; θ)) + λT · KL[softmax(teacher / T) ‖ f(x; θ)], averaged over the batch.

    Distillation is asymmetric (Section 3.3.3): the temperature softens the teacher and leaves the
    student alone, so there is no factor T² to undo. The gradient on the student's logits z is
    ((λS + λT) · softmax(z) − λS · y − λT · softmax(z_T / T)) / N. For methods that soften the
    student as well, ``student_temperature`` divides its logits in the second term alone.

    Args:
        logits: the student's, shape (N, C).
        labels: class indices from 0 to C - 1, shape (N,).
        teacher_logits: shape (N, C); no gradient flows into them.
        label_weight: λS.
        teacher_weight: λT.
        temperature: T > 0.
        student_temperature: 1, or T for symmetric distillation.
    """
    log_student = F.log_softmax(logits, dim=1)
    log_teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    softened = log_student
    if student_temperature != 1:
        softened = F.log_softmax(logits / student_temperature, dim=1)
    cross_entropy = F.nll_loss(log_student, labels)
    kl = F.kl_div(softened, log_teacher, reduction='batchmean', log_target=True)
    loss = label_weight * cross_entropy + teacher_weight * kl
    return LossParts(loss, cross_entropy, kl, log_student, log_teacher)


def top_score_difference(logits: Tensor) -> Tensor:
    """How far the top class stands out: its probability minus the mean of the next four.

    Adding it to a patriarch's loss preserves secondary information (Section 3.3.3, reference [49]).

    Args:
        logits: shape (N, C), C at least 2; below five classes, the mean is over all others.

    Returns:
        The mean over the batch, a scalar from 0 to 1.
    """
    scores = logits.softmax(dim=1).topk(min(5, logits.shape[1]), dim=1).values
    return (scores[:, 0] - scores[:, 1:].mean(dim=1)).mean()


class SnapshotDistillationLoss(nn.Module):
    """Eqn 3 with a teacher, Eqn 1 without, for SD and the methods that it is compared with.

    Args:
        teacher_weight: λT, at least 0; 0 for no teacher (snapshot ensemble, baseline).
        temperature: T > 0.
        label_weight: λS with a teacher, at least 0; None for the 1 + λT/T of Section 4.1. Without a
            teacher it is 1.
        symmetric: whether T softens the student's scores too.
        confidence_penalty: weight of :func:`top_score_difference` without a teacher, at least 0.

    Raises:
        UserError: if an argument is out of range.
    """

    def __init__(
        self,
        teacher_weight: float,
        temperature: float,
        label_weight: float | None = None,
        symmetric: bool = False,
        confidence_penalty: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise UserError(
                f'algorithm.temperature is {temperature}: it must be finite and above 0.'
            )
        if label_weight is None:
            label_weight = balanced_label_weight(teacher_weight, temperature)
        weights = {
            'teacher_weight': teacher_weight,
            'label_weight': label_weight,
            'confidence_penalty': confidence_penalty,
        }
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise UserError(f'algorithm.{name} is {value}: it must be finite and 0 or more.')
        self.teacher_weight = teacher_weight
        self.temperature = temperature
        self.label_weight = label_weight
        self.student_temperature = temperature if symmetric else 1.0
        self.confidence_penalty = confidence_penalty

    def forward(
        self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss and, with a teacher, its two terms, as :meth:`LossParts.logged` returns them.

        Args and shapes are those of :func:`snapshot_distillation_loss`. Without ``teacher_logits``
        the loss is the cross-entropy of Eqn 1, plus the confidence penalty.
        """
        return self.parts(logits, labels, teacher_logits).logged()

    def parts(
        self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> LossParts:
        """As :meth:`forward`, with the log-probabilities, which the training statistics reuse."""
        if teacher_logits is None:
            log_student = F.log_softmax(logits, dim=1)
            loss = cross_entropy = F.nll_loss(log_student, labels)
            if self.confidence_penalty:
                loss = loss + self.confidence_penalty * top_score_difference(logits)
            return LossParts(loss, cross_entropy, None, log_student, None)
        return snapshot_distillation_loss(
            logits,
            labels,
            teacher_logits,
            label_weight=self.label_weight,
            teacher_weight=self.teacher_weight,
            temperature=self.temperature,
            student_temperature=self.student_temperature,
        )
