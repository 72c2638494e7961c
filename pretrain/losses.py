"""The loss of Snapshot Distillation (Eqn 3)."""

from typing import NamedTuple

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from pretrain.errors import UserError
from pretrain.schedule import label_weight


class LossParts(NamedTuple):
    """Eqn 3 and its two terms before weighting: scalar tensors in nats, batch means."""

    loss: Tensor
    cross_entropy: Tensor
    kl: Tensor


def snapshot_distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor,
    *,
    label_weight: float,
    teacher_weight: float,
    temperature: float,
) -> LossParts:
    """λS · CE(y, f(x; θ)) + λT · KL[softmax(teacher / T) ‖ f(x; θ)], averaged over the batch.

    Distillation is asymmetric (Section 3.3.3): the temperature softens the teacher and leaves the
    student alone, so there is no factor T² to undo. The gradient on the student's logits z is
    ((λS + λT) · softmax(z) − λS · y − λT · softmax(z_T / T)) / N.

    Args:
        logits: the student's, shape (N, C).
        labels: class indices from 0 to C - 1, shape (N,).
        teacher_logits: shape (N, C); no gradient flows into them.
        label_weight: λS.
        teacher_weight: λT.
        temperature: T > 0.
    """
    cross_entropy = F.cross_entropy(logits, labels)
    kl = F.kl_div(
        F.log_softmax(logits, dim=1),
        F.log_softmax(teacher_logits.detach() / temperature, dim=1),
        reduction='batchmean',
        log_target=True,
    )
    return LossParts(label_weight * cross_entropy + teacher_weight * kl, cross_entropy, kl)


@MODELS.register_module()
class SnapshotDistillationLoss(nn.Module):
    """Eqn 3 with the weights of Section 4.1: λS = 1 without a teacher, 1 + λT/T beside one.

    Args:
        teacher_weight: λT, at least 0; 0 switches the teacher off (snapshot ensemble, baseline).
        temperature: T > 0.

    Raises:
        UserError: if an argument is out of range.
    """

    def __init__(self, teacher_weight: float, temperature: float) -> None:
        super().__init__()
        if not teacher_weight >= 0:
            raise UserError(f'algorithm.teacher_weight is {teacher_weight}: it must be 0 or more.')
        if not temperature > 0:
            raise UserError(f'algorithm.temperature is {temperature}: it must be above 0.')
        self.teacher_weight = teacher_weight
        self.temperature = temperature

    def forward(
        self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss and, beside a teacher, its two terms for the log.

        Args and shapes are those of :func:`snapshot_distillation_loss`; without
        ``teacher_logits`` Eqn 3 is the plain cross-entropy of Eqn 1.

        Returns:
            ``loss``, the only key that mmengine adds to what is minimised, and with a teacher
            ``cross_entropy`` and ``kl``, detached.
        """
        if teacher_logits is None:
            return {'loss': F.cross_entropy(logits, labels)}
        parts = snapshot_distillation_loss(
            logits,
            labels,
            teacher_logits,
            label_weight=label_weight(self.teacher_weight, self.temperature),
            teacher_weight=self.teacher_weight,
            temperature=self.temperature,
        )
        return {
            'loss': parts.loss,
            'cross_entropy': parts.cross_entropy.detach(),
            'kl': parts.kl.detach(),
        }
