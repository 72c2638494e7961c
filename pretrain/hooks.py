"""When snapshots are taken; what a snapshot is stands in :mod:`pretrain.classifier`."""

from collections.abc import Sequence

from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from pretrain.classifier import SnapshotClassifier
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
    """

    # Before CheckpointHook (VERY_LOW), whose file shall hold the averaged statistics.
    priority = 'NORMAL'

    def __init__(self, generations: Sequence[int]) -> None:
        self.generations = tuple(generations)

    def before_train_epoch(self, runner: Runner) -> None:
        model = _unwrap(runner)
        if model.teacher is None:
            return
        teacher_epoch = teacher_step(runner.epoch + 1, self.generations)
        model.teaching = teacher_epoch > 0
        if model.teaching and teacher_epoch == runner.epoch:
            model.take_snapshot()
            runner.logger.info(f'The snapshot of epoch {teacher_epoch} is the teacher now.')

    def after_train_epoch(self, runner: Runner) -> None:
        # Each rank has seen other images: without this the ranks' teachers would differ, and a
        # checkpoint would hold rank 0's view alone.
        statistics = [b for b in _unwrap(runner).student.buffers() if b.is_floating_point()]
        all_reduce_params(statistics, op='mean')
        epoch = runner.epoch + 1
        if epoch in boundaries(self.generations):
            name = f'snapshot_{generation(epoch, self.generations)}.pth'
            runner.save_checkpoint(runner.work_dir, name)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Make mmengine's lenient loading strict.

        SE and SD share generation 1, so the teacher may be on one side only; it is not in use
        then (``pretrain.checkpoint`` refuses the other cases) and stands for the student.
        """
        weights = checkpoint['state_dict']
        wanted = _unwrap(runner).state_dict().keys()
        for key in wanted - weights.keys():
            if key.startswith('teacher.'):
                weights[key] = weights[key.replace('teacher.', 'student.', 1)]
        for key in weights.keys() - wanted:
            if key.startswith('teacher.'):
                del weights[key]
        if differing := sorted(wanted ^ weights.keys()):
            raise RuntimeError(f'the checkpoint is of another network: {differing[:4]} differ')


def _unwrap(runner: Runner) -> SnapshotClassifier:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
