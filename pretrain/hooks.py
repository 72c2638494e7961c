"""When snapshots are taken, and their ensemble; what a snapshot is stands in
:mod:`pretrain.classifier`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from pretrain.classifier import SnapshotClassifier, student_weights
from pretrain.metrics import TopKError
from pretrain.runs.checkpoint import is_whole, load_from_disk, tensor_mismatch
from pretrain.runs.config import stage_of
from pretrain.runs.errors import UserError
from pretrain.runs.randomness import stable_seed
from pretrain.runs.resume import check_resume
from pretrain.runs.saving import iterations_done, save, unwrap
from pretrain.schedule import boundaries, generation, teacher_step


@HOOKS.register_module()
class SnapshotHook(Hook):
    """Hands the teacher over and writes the snapshots M_#L'k (Section 3.3.4).

    At the end of mini-generation k it writes the whole training state to ``snapshot_k.pth``; at
    the start of the next epoch the student becomes the teacher. Everything follows from the
    number of finished epochs, so a resumed run, or one that starts from another run's
    ``snapshot_1.pth``, needs no state of this hook's.

    Args:
        generations: L_1, ..., L_K in epochs.
        taught_after: number of epochs after which the teacher takes part; L_1 unless the teacher
            is another run's.
        teacher_file: checkpoint of the one teacher of all epochs (Section 3.3.2); without it the
            teachers are the run's own snapshots (Eqn 4).
        fresh_student: whether each generation begins with new weights and a new optimizer, as in
            the methods that train whole generations.
        keep_epochs: epochs after which the training state is kept as ``kept_<epoch>.pth``.
        seed: of the new weights of ``fresh_student``.
    """

    # Before SaveHook (LOWEST), whose file shall hold the averaged statistics.
    priority = 'NORMAL'

    def __init__(
        self,
        generations: Sequence[int],
        taught_after: int,
        teacher_file: str = '',
        fresh_student: bool = False,
        keep_epochs: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.generations = tuple(generations)
        self.taught_after = taught_after
        self.teacher_file = teacher_file
        self.fresh_student = fresh_student
        self.keep_epochs = tuple(keep_epochs)
        self.seed = seed

    def before_train(self, runner: Runner) -> None:
        if self.teacher_file:
            weights = student_weights(load_from_disk(self.teacher_file))
            unwrap(runner).set_teacher(weights)
            runner.logger.info(f'The teacher is {self.teacher_file}.')
        for k, end in enumerate(boundaries(self.generations), start=1):
            path = Path(runner.work_dir) / f'snapshot_{k}.pth'
            if end > runner.epoch or (path.exists() and is_whole(path)):
                continue
            if end < runner.epoch or iterations_done(runner):
                raise UserError(
                    f'{path} is {"damaged" if path.exists() else "missing"}, and the ensemble at '
                    'the end needs it: put an intact copy there.'
                )
            # A run that starts from another run's snapshot keeps a copy for its ensemble.
            save(runner, path.name, dict(epoch=runner.epoch, iter=runner.iter))

    def before_train_epoch(self, runner: Runner) -> None:
        model = unwrap(runner)
        model.statistics.clear()  # SaveHook gives them back within an epoch
        if model.teacher is None:
            return
        model.teaching = runner.epoch >= self.taught_after
        own = not self.teacher_file and not iterations_done(runner)
        if own and 0 < teacher_step(runner.epoch + 1, self.generations) == runner.epoch:
            self._hand_over(runner, model)

    def _hand_over(self, runner: Runner, model: SnapshotClassifier) -> None:
        model.take_snapshot()
        runner.logger.info(f'The snapshot of epoch {runner.epoch} is the teacher now.')
        if self.fresh_student:
            begun = generation(runner.epoch + 1, self.generations)
            model.renew_student(stable_seed(self.seed, begun))
            runner.optim_wrapper.optimizer.state.clear()

    def after_train_epoch(self, runner: Runner) -> None:
        model = unwrap(runner)
        runner.message_hub.update_info('train_statistics', model.statistics.mean())
        # Each rank has seen other images. Without this each would have a teacher of its own, and a
        # checkpoint would hold the statistics of rank 0.
        statistics = [b for b in model.student.buffers() if b.is_floating_point()]
        all_reduce_params(statistics, op='mean')
        epoch = runner.epoch + 1
        done = dict(epoch=epoch, iter=runner.iter)
        if epoch in boundaries(self.generations):
            save(runner, f'snapshot_{generation(epoch, self.generations)}.pth', done)
        if epoch in self.keep_epochs:
            save(runner, f'kept_{epoch}.pth', done)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Make mmengine's lenient loading strict.

        SE and SD share generation 1, so the model or the checkpoint may be without a teacher. No
        teacher is in use then (``pretrain.build.may_differ`` refuses the other cases): the student
        is loaded in its place, or it is left out.
        """
        weights = checkpoint['state_dict']
        wanted = unwrap(runner).state_dict().keys()
        for key in wanted - weights.keys():
            if key.startswith('teacher.'):
                weights[key] = weights[key.replace('teacher.', 'student.', 1)]
        for key in weights.keys() - wanted:
            if key.startswith('teacher.'):
                del weights[key]
        if mismatch := tensor_mismatch(weights, unwrap(runner).state_dict(), 'the model'):
            raise RuntimeError(f'The checkpoint is of another network: {mismatch}.')


def ensemble_probabilities(logits: Iterable[Tensor], temperature: float) -> Tensor:
    """The mean over k of softmax(T^(k-1) z_k), the scores of M_#L_1 to M_#L_K together.

    A student of a teacher softened by T gives softer scores than its teacher; the factor T^(k-1)
    makes the snapshots of SD comparable (Table 3). With T = 1 it is the ensemble of SE.

    Args:
        logits: of the snapshots in the order of training, each of shape (N, C).
        temperature: T > 0.

    Returns:
        Probabilities, shape (N, C).
    """
    return torch.stack(
        [(z.float() * temperature**k).softmax(dim=1) for k, z in enumerate(logits)]
    ).mean(dim=0)


@HOOKS.register_module()
class EnsembleHook(Hook):
    """Evaluates the snapshots of a run together when it has ended, for its record.

    Args:
        generations: K; a single snapshot is no ensemble.
        temperature: T.
    """

    def __init__(self, generations: int, temperature: float) -> None:
        self.generations = generations
        self.temperature = temperature

    @torch.no_grad()
    def after_train(self, runner: Runner) -> None:
        if self.generations == 1:
            return
        identity, rule = runner.cfg.identity.to_dict(), stage_of(runner.cfg).may_differ
        accepted = [change['key'] for change in runner.cfg.get('accepted_changes', [])]
        model = unwrap(runner).eval()
        loader = runner.val_dataloader
        logits = []
        # The last snapshot leaves the model as it was.
        for k in range(1, self.generations + 1):
            path = str(Path(runner.work_dir) / f'snapshot_{k}.pth')
            check_resume(path, identity, rule, another_run=True, accepted=accepted)
            model.student.load_state_dict(student_weights(load_from_disk(path)))
            predictions = [model.val_step(batch)[0] for batch in loader]
            logits.append(torch.cat([p['logits'] for p in predictions]))
            labels = torch.cat([p['labels'] for p in predictions])
        metric = TopKError()
        scores = ensemble_probabilities(logits, self.temperature)
        metric.process({}, [{'logits': scores, 'labels': labels}])
        metrics = metric.evaluate(len(loader.dataset))
        runner.message_hub.update_info('ensemble', metrics)
        runner.logger.info(f'The {self.generations} snapshots together: {metrics}')
