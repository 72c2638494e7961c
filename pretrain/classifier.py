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
from pretrain.graph import Compute, capture
from pretrain.losses import SnapshotDistillationLoss
from pretrain.metrics import LABEL, STUDENT, TrainingStatistics, compare
from pretrain.runs.precision import autocast
from pretrain.runs.randomness import torch_seed
from pretrain.teacher import fold, freeze

MODELS.register_module(module=SnapshotDistillationLoss)  # losses.py imports no mmengine


@MODELS.register_module()
class SnapshotClassifier(BaseModel):
    """The student f(x; θ_l) and the teacher f(x; θ_{c_l}) of Algorithm 1. mmengine runs the loop,
    in which :class:`pretrain.hooks.SnapshotHook` replaces the teacher; see :mod:`pretrain`.

    Baseline and snapshot ensemble are the same model with ``teacher_weight`` 0 and no teacher.

    Args:
        network: config of a network from images (N, 3, H, W) to logits (N, C).
        loss: config of :class:`pretrain.losses.SnapshotDistillationLoss`.
        data_preprocessor: config of mmengine's ``ImgDataPreprocessor``.
        precision: 'bf16' or 'float32': the format in which both networks compute. The student's
            weights, the statistics and the loss are always float32.
        compiled: whether to compile both networks with ``torch.compile``.
        teacher_network: config of the teacher's network; None if it is the student's.
        features: config of a loss of :mod:`pretrain.feature_losses`; None for no such loss.
        fold_teacher: whether to compute the teacher's logits with a folded copy
            (:func:`pretrain.teacher.fold`), which pays if the teacher seldom changes.
        graph_batch: training batches of this many images run as a CUDA graph
            (:func:`pretrain.graph.capture`); 0: none do.

    Attributes:
        student: the network being trained.
        teacher: a frozen network in evaluation mode, usually an earlier student, or None.
            Checkpoints hold its weights, not those of the folded copy.
        teaching: whether the teacher takes part in the loss; the hook sets it.
        imitating: whether the student learns the teacher's features alone; the hook sets it.
        statistics: means over the training batches since the hook last cleared them.
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
        graph_batch: int = 0,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        # Convolutions are fastest in channels_last, above all on GPUs in bfloat16.
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
        self.graph_batch = graph_batch
        self._graph: Compute | None = None
        self._graph_of: list[object] = []  # what the captured kernels depend on
        self.teaching = self.imitating = False
        self.statistics = TrainingStatistics()
        self.precision = precision
        self.compiled = compiled
        self._network = network
        if compiled:
            self.student.compile()  # in place, which keeps the names; after the teacher's copy

    def init_weights(self) -> None:
        """Initialise a student that is an mmengine ``BaseModule``. Other networks drew their
        weights when they were built; timm's would draw them again here, ignoring its settings."""
        if isinstance(self.student, BaseModule):
            self.student.init_weights()

    def set_teacher(self, weights: Mapping[str, Tensor], decay: float = 0.0) -> None:
        """Replace the teacher's weights, running statistics included.

        Args:
            weights: the state dict of a network like the teacher's.
            decay: d in [0, 1): the teacher becomes d times itself plus 1 - d times ``weights``.
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
        """The teacher's logits, float32 (N, C) without gradient, for images (N, 3, H, W)."""
        self._fold()
        with torch.no_grad():
            return self._compute(self._folded[0] if self.fold_teacher else self.teacher, inputs)

    def imitate(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """A dict of ``loss``, the scalar feature loss of images (N, 3, H, W) with classes (N,)."""
        with torch.no_grad(), self._autocast(inputs):
            _, theirs = forward_to_layers(self.teacher, inputs, self.features.teacher_layers)
        with self._autocast(inputs):
            logits, ours = forward_to_layers(self.student, inputs, self.features.student_layers)
        self.statistics.add(*compare(logits.float().log_softmax(dim=1), labels))
        return {'loss': self.features(ours, theirs)}

    def renew_student(self, seed: int) -> None:
        """Draw new weights for the student from ``seed``, to begin a generation from scratch."""
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
                top-1 ``error`` in percent, or while ``imitating`` that of :meth:`imitate`;
                'predict' a list of one dict with ``logits`` and ``labels`` of the whole batch.
        """
        # Cast once, for both networks: autocast would cast for each.
        dtype = torch.bfloat16 if self.precision == 'bf16' else inputs.dtype
        inputs = inputs.to(dtype, memory_format=torch.channels_last)
        if mode == 'loss' and self.imitating:
            return self.imitate(inputs, data_samples)
        if mode == 'loss':
            losses = self._through_graph(inputs, data_samples)
            self.statistics.add(losses.pop('equal'), losses.pop('nats'))
            return losses
        logits = self._compute(self.student, inputs)
        return logits if mode == 'tensor' else [{'logits': logits, 'labels': data_samples}]

    def compute_losses(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The values to log, and those that :func:`pretrain.metrics.compare` returns as ``equal``
        and ``nats``, for images (N, 3, H, W) with classes (N,). Only ``loss`` has a gradient."""
        # The teacher goes first, before the student's activations take memory.
        teacher_logits = self.teach(inputs) if self.teaching else None
        logits = self._compute(self.student, inputs)
        parts = self.loss.parts(logits, labels, teacher_logits)
        equal, nats = compare(parts.log_student, labels, parts.log_teacher, teacher_logits)
        error = (equal[LABEL, LABEL] - equal[LABEL, STUDENT]) * (100.0 / len(labels))
        return {**parts.logged(), 'error': error, 'equal': equal, 'nats': nats}

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise and the values to log. All are scalars; mmengine's own method would
        launch kernels to average and sum them."""
        return losses['loss'], losses

    def _through_graph(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """:meth:`compute_losses`, as a CUDA graph if the batch has ``graph_batch`` images."""
        if len(inputs) != self.graph_batch or not self.training:
            return self.compute_losses(inputs, labels)
        if self.teaching:
            self._fold()
        parts = [self.teaching, *self._folded]
        if parts != self._graph_of:  # the first batch, or a new teacher
            self._graph = None  # its memory can be used again
            self._graph = capture(self.compute_losses, self.student, inputs, labels)
            self._graph_of = parts
        return self._graph(inputs, labels)

    def _fold(self) -> None:
        if self.fold_teacher and not self._folded:  # a new teacher, or a resumed run
            self._folded.append(fold(self.teacher, self.precision))
            if self.compiled:
                self._folded[0].compile()

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
