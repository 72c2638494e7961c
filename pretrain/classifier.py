"""The model that mmengine trains: a student and, for Snapshot Distillation, its frozen teacher."""

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import deepcopy

import torch
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from pretrain.feature_losses import forward_to_layers
from pretrain.losses import SnapshotDistillationLoss
from pretrain.metrics import TrainingStatistics
from pretrain.runs.precision import autocast
from pretrain.runs.randomness import torch_seed
from pretrain.teacher import fold, freeze

MODELS.register_module(module=SnapshotDistillationLoss)  # whose module needs no mmengine


@MODELS.register_module()
class SnapshotClassifier(BaseModel):
    """Algorithm 1's f(x; θ_l) and f(x; θ_{c_l}). Its loop is mmengine's, where
    :class:`pretrain.hooks.SnapshotHook` hands the teachers over; see :mod:`pretrain`.

    Baseline and snapshot ensemble are the same model with ``teacher_weight`` 0, which then holds
    no teacher at all.

    Args:
        network: config of a network from images (N, 3, H, W) to logits (N, C).
        loss: config of :class:`pretrain.losses.SnapshotDistillationLoss`.
        data_preprocessor: config of mmengine's ``ImgDataPreprocessor``.
        precision: 'bf16' or 'float32', in which both networks compute. Weights, statistics and the
            loss are float32 anyway.
        compiled: whether both networks go through ``torch.compile``.
        teacher_network: config of the teacher's network; empty if it is the student's.
        features: config of a loss of :mod:`pretrain.feature_losses`; empty without one.
        fold_teacher: whether the teacher stays for long, so that folding it pays.

    Attributes:
        student: the network being trained.
        teacher: a frozen network in evaluation mode, as a rule an earlier student, or None.
            Checkpoints hold it; a folded copy (:func:`pretrain.teacher.fold`) computes.
        teaching: whether the teacher takes part in the loss; the hook sets it.
        imitating: whether the student learns the teacher's features alone; the hook sets it.
        statistics: of the training batches since the hook last cleared it.
    """

    def __init__(
        self,
        network: dict,
        loss: dict,
        data_preprocessor: dict,
        precision: str = 'float32',
        compiled: bool = False,
        teacher_network: dict | None = None,
        features: dict | None = None,
        fold_teacher: bool = True,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        # The memory format that convolutions are fastest in, on GPUs with bfloat16 above all.
        self.student = MODELS.build(network).to(memory_format=torch.channels_last)
        self.loss = MODELS.build(loss)
        self.teacher = None
        if self.loss.teacher_weight > 0 or features:
            # A copy draws no random numbers: BL, SE and SD start from the same weights.
            teacher = MODELS.build(teacher_network) if teacher_network else deepcopy(self.student)
            self.teacher = freeze(teacher).eval()
        self.features = MODELS.build(features) if features else None
        self._folded: list[nn.Module] = []  # in a list: state dicts leave it out
        self.fold_teacher = fold_teacher
        self.teaching = self.imitating = False
        self.statistics = TrainingStatistics()
        self.precision = precision
        self.compiled = compiled
        self._network = network
        if compiled:
            self.student.compile()  # in place, so that names stay; the teacher is copied by now

    def init_weights(self) -> None:
        """Have networks of mmengine's kind draw or load their weights. Others have drawn them when
        they were built; timm's would do so again, by other rules than their settings."""
        if isinstance(self.student, BaseModule):
            self.student.init_weights()

    def set_teacher(self, weights: Mapping[str, Tensor], decay: float = 0.0) -> None:
        """Give the teacher other weights, running statistics included.

        Args:
            weights: of a network of the teacher's kind.
            decay: d from 0 to 1: the teacher becomes d times itself plus 1 - d times ``weights``.
        """
        if decay:
            weights = {
                name: old.lerp(weights[name].to(old), 1 - decay)
                if old.is_floating_point()
                else weights[name]
                for name, old in self.teacher.state_dict().items()
            }
        self.teacher.load_state_dict(weights)
        self._folded.clear()

    def teach(self, inputs: Tensor) -> Tensor:
        """The teacher's logits (N, C), without gradient."""
        if self.fold_teacher and not self._folded:  # a new teacher, or a resumed run
            self._folded.append(fold(self.teacher, self.precision))
            if self.compiled:
                self._folded[0].compile()
        with torch.no_grad():
            return self._compute(self._folded[0] if self.fold_teacher else self.teacher, inputs)

    def imitate(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss on features, images (N, 3, H, W) and class indices (N,) given."""
        with torch.no_grad(), self._autocast(inputs):
            _, theirs = forward_to_layers(self.teacher, inputs, self.features.teacher_layers)
        with self._autocast(inputs):
            logits, ours = forward_to_layers(self.student, inputs, self.features.student_layers)
        self.statistics.add(logits.float().log_softmax(dim=1), labels)
        return {'loss': self.features(ours, theirs)}

    def renew_student(self, seed: int) -> None:
        """Begin a generation with new weights, drawn from ``seed``, as whole generations do."""
        with torch_seed(seed):
            network = MODELS.build(self._network)
            if isinstance(network, BaseModule):
                network.init_weights()
        self.student.load_state_dict(network.state_dict())

    def train(self, mode: bool = True) -> 'SnapshotClassifier':
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(
        self, inputs: Tensor, data_samples: Tensor | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[dict[str, Tensor]]:
        """Logits, losses or predictions of one batch.

        Args:
            inputs: normalised images, shape (N, 3, H, W).
            data_samples: class indices, shape (N,); not needed in mode 'tensor'.
            mode: 'tensor' gives logits (N, C); 'loss' the dict of the loss module and the batch's
                ``error``, top-1 in percent; 'predict' a list with one dict of ``logits`` and
                ``labels`` for the whole batch.
        """
        # Cast once, for both networks: autocast would cast for each.
        dtype = torch.bfloat16 if self.precision == 'bf16' else inputs.dtype
        inputs = inputs.to(dtype, memory_format=torch.channels_last)
        if mode == 'loss' and self.imitating:
            return self.imitate(inputs, data_samples)
        # Before the student's activations take their memory.
        teacher_logits = self.teach(inputs) if mode == 'loss' and self.teaching else None
        logits = self._compute(self.student, inputs)
        if mode == 'tensor':
            return logits
        if mode == 'predict':
            return [{'logits': logits, 'labels': data_samples}]
        parts = self.loss.parts(logits, data_samples, teacher_logits)
        error = self.statistics.add(
            parts.log_student, data_samples, parts.log_teacher, teacher_logits
        )
        return parts.logged() | {'error': error}

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised and what is logged. The values are scalars: mmengine's method would
        take the mean of each, and add up, with a kernel each."""
        return losses['loss'], losses

    def _compute(self, network: nn.Module, inputs: Tensor) -> Tensor:
        with self._autocast(inputs):
            return network(inputs).float()

    def _autocast(self, inputs: Tensor) -> AbstractContextManager:
        return autocast(self.precision, inputs.device.type)


def student_weights(checkpoint: dict) -> OrderedDict[str, Tensor]:
    """The student's weights of a pretraining checkpoint, under the network's own names."""
    prefix = 'student.'
    return OrderedDict(
        (name.removeprefix(prefix), tensor)
        for name, tensor in checkpoint['state_dict'].items()
        if name.startswith(prefix)
    )
