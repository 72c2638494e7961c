"""The hooks that take the snapshots, replace the teacher and evaluate the ensemble. The model is in
:mod:`pretrain.classifier`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.dist import all_reduce_params, broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from pretrain.classifier import SnapshotClassifier, student_weights
from pretrain.metrics import TopKError
from pretrain.other_runs import network_weights
from pretrain.runs.checkpoint import is_whole, load_from_disk
from pretrain.runs.config import stage_of
from pretrain.runs.errors import UserError, number_of
from pretrain.runs.randomness import stable_seed
from pretrain.runs.resume import check_resume
from pretrain.runs.saving import iterations_done, save, unwrap
from pretrain.schedule import boundaries, generation, teacher_step


@HOOKS.register_module()  # at priority NORMAL, so that SaveHook (LOWEST) saves averaged statistics
@dataclass(eq=False)
class SnapshotHook(Hook):
    """Replaces the teacher and writes the snapshots M_#L'_k (Section 3.3.4).

    At the end of mini-generation k it writes the whole training state to ``snapshot_k.pth``. Before
    each iteration l it gives the teacher the weights of step c_l (Eqn 4;
    :func:`pretrain.schedule.teacher_step`). Its only state is the copies that are too young to
    teach; they wait in host memory and are saved in checkpoints.

    Args:
        generations: L_1, ..., L_K in epochs.
        taught_after: number of epochs before the teacher takes part; L_1 for Eqn 4. With
            ``copy_every``, the teacher also waits for an epoch that starts with an old enough copy.
        teacher_file: checkpoint of a fixed teacher (Section 3.3.2); None: the teachers are earlier
            students of this run.
        copy_every: iterations between two copies of the student; None: it is copied at the ends of
            the mini-generations.
        lag: the least age in iterations at which a copy teaches; None for 1.
        decay: d, if the teacher is a moving average of the copies, θ_T <- d θ_T + (1 - d) θ;
            None: it is the latest copy.
        fresh_student: whether each generation begins with new weights and an empty optimizer state,
            as in the methods that train whole generations.
        features: whether the student imitates the teacher's features in the first mini-generation.
        keep_epochs: epochs after which the training state is kept as ``kept_<epoch>.pth``.
        seed: of the new weights of ``fresh_student``.
    """

    generations: Sequence[int]
    taught_after: int
    teacher_file: str | None = None
    copy_every: int | None = None
    lag: int | None = None
    decay: float | None = None
    fresh_student: bool = False
    features: bool = False
    keep_epochs: Sequence[int] = ()
    seed: int = 0
    waiting: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list, init=False)
    untaught: bool = field(default=False, init=False)  # the loaded checkpoint has no teacher

    def __post_init__(self) -> None:
        self.lag = self.lag or 1
        self.decay = self.decay or 0.0

    def before_train(self, runner: Runner) -> None:
        self._plan(runner)
        if self.untaught and not self.teacher_file and runner.iter > self.copied[0]:
            raise UserError(
                f'{runner.cfg.get("load_from")} has no teacher, and the student that would teach '
                'from its iteration on is not in it: begin a new run in another --work-dir'
                f'{"" if self.copy_every else ", perhaps with --start-from .../snapshot_1.pth"}.'
            )
        if self.teacher_file:
            unwrap(runner).set_teacher(network_weights(load_from_disk(self.teacher_file)))
            runner.logger.info(f'The teacher is {self.teacher_file}.')
        if not self.features:  # else there is no ensemble
            self._complete_snapshots(runner)

    def _complete_snapshots(self, runner: Runner) -> None:
        """Make sure that each finished mini-generation has an undamaged snapshot. A run that starts
        from another run's snapshot writes its own copy, even over one of an earlier start that
        saved nothing else; any other gap raises a UserError."""
        paths = {
            end: Path(runner.work_dir) / f'snapshot_{k}.pth'
            for k, end in enumerate(boundaries(self.generations), start=1)
            if end <= runner.epoch
        }
        source = runner.cfg.get('load_from')
        begins = source and Path(source).resolve().parent != Path(runner.work_dir).resolve()
        copied = runner.epoch if begins and not iterations_done(runner) else None
        # Rank 0 checks for all: the others could already find a file that rank 0 saves below.
        lacking = [
            [
                end
                for end, path in paths.items()
                if end == copied or not (path.exists() and is_whole(path))
            ]
            if is_main_process()
            else None
        ]
        broadcast_object_list(lacking)
        for end in lacking[0]:
            path = paths[end]
            if end < runner.epoch or iterations_done(runner):
                raise UserError(
                    f'{path} is {"damaged" if path.exists() else "missing"}, and the ensemble at '
                    'the end needs it: put an intact copy there.'
                )
            save(runner, path.name, dict(epoch=runner.epoch, iter=runner.iter))

    def _plan(self, runner: Runner) -> None:
        """Convert the settings to iterations: after which ones the student is copied, and which
        epoch is the first that has a teacher."""
        length = len(runner.train_dataloader)
        self.ends = [end * length for end in boundaries(self.generations)]
        self.copied = self.ends
        self.first_taught = self.taught_after  # the first epoch with a teacher, counted from 0
        if self.copy_every:
            self.copied = range(self.copy_every, self.ends[-1], self.copy_every)
            epochs = range(self.taught_after, runner.max_epochs)
            taught = (e for e in epochs if teacher_step(e * length + 1, self.copied, self.lag))
            self.first_taught = next(taught, None)
            if self.first_taught is None:
                raise UserError(
                    f'With algorithm.lag={self.lag} and copy_every={self.copy_every}, no epoch of '
                    f'the {number_of(self.ends[-1], "iterations")} has a teacher: lower them, or '
                    'train longer.'
                )

    def before_train_epoch(self, runner: Runner) -> None:
        model = unwrap(runner)
        model.statistics.clear()  # SaveHook restores them if the run resumes within an epoch
        model.imitating = self.features and runner.epoch < self.generations[0]
        model.teaching = model.loss.teacher_weight > 0 and runner.epoch >= self.first_taught

    def before_train_iter(self, runner: Runner, **_: object) -> None:
        model, done = unwrap(runner), runner.iter  # l - 1
        if model.teacher is not None and not self.teacher_file:
            if done in self.copied:
                self.waiting.append((done, self._copy(runner, model)))
            c_l = teacher_step(done + 1, self.copied, self.lag)
            while self.waiting and self.waiting[0][0] <= c_l:
                step, weights = self.waiting.pop(0)
                model.set_teacher(weights, self.decay if step > self.copied[0] else 0.0)
        if done in self.ends:
            runner.logger.info(f'A mini-generation begins with epoch {runner.epoch + 1}.')
            if self.fresh_student:
                begun = generation(runner.epoch + 1, self.generations)
                model.renew_student(stable_seed(self.seed, begun))
                runner.optim_wrapper.optimizer.state.clear()

    def _copy(self, runner: Runner, model: SnapshotClassifier) -> dict[str, Tensor]:
        if iterations_done(runner):  # after_train_epoch does it at an epoch's end
            _average_statistics(model)
        weights = model.student.state_dict()
        if self.lag > 1:
            weights = {name: tensor.to('cpu', copy=True) for name, tensor in weights.items()}
        return weights

    def after_train_epoch(self, runner: Runner) -> None:
        model = unwrap(runner)
        runner.message_hub.update_info('train_statistics', model.statistics.mean())
        _average_statistics(model)
        epoch = runner.epoch + 1
        done = dict(epoch=epoch, iter=runner.iter)
        if epoch in boundaries(self.generations):
            save(runner, f'snapshot_{generation(epoch, self.generations)}.pth', done)
        if epoch in self.keep_epochs:
            save(runner, f'kept_{epoch}.pth', done)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if self.waiting:
            checkpoint['waiting_copies'] = self.waiting

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Give the checkpoint as many teachers as the model has.

        SE and SD share mini-generation 1, so either the model or the checkpoint may lack a teacher.
        No teacher has been used up to there: :meth:`before_train` refuses other cases.
        """
        # mmengine has loaded them to the run's device.
        self.waiting = [
            (step, {name: tensor.cpu() for name, tensor in weights.items()})
            for step, weights in checkpoint.get('waiting_copies', [])
        ]
        weights, own = checkpoint['state_dict'], unwrap(runner).state_dict()
        lacking = [key for key in own.keys() - weights.keys() if key.startswith('teacher.')]
        self.untaught = bool(lacking)
        weights |= {key: own[key] for key in lacking}
        for key in weights.keys() - own.keys():
            if key.startswith('teacher.'):
                del weights[key]


def _average_statistics(model: SnapshotClassifier) -> None:
    """Average the running statistics over the ranks, each of which has seen other images."""
    statistics = [b for b in model.student.buffers() if b.is_floating_point()]
    all_reduce_params(statistics, op='mean')


def ensemble_probabilities(logits: Iterable[Tensor], temperature: float) -> Tensor:
    """The scores of the ensemble of all snapshots: the mean over k of softmax(T^(k-1) z_k).

    A student gives softer scores than its teacher, since T softens its targets. The factor T^(k-1)
    makes the snapshots of SD comparable (Table 3). T = 1 gives the ensemble of SE.

    Args:
        logits: z_1, ..., z_K of the snapshots in the order of training, each of shape (N, C).
        temperature: T > 0.

    Returns:
        Probabilities, shape (N, C).
    """
    return torch.stack(
        [(z.float() * temperature**k).softmax(dim=1) for k, z in enumerate(logits)]
    ).mean(dim=0)


@HOOKS.register_module()
@dataclass(eq=False)
class EnsembleHook(Hook):
    """Evaluates the ensemble of a run's snapshots after training, for the run's record.

    Args:
        generations: K; with 1 there is no ensemble to evaluate.
        temperature: T of :func:`ensemble_probabilities`.
    """

    generations: int
    temperature: float

    @torch.no_grad()
    def after_train(self, runner: Runner) -> None:
        if self.generations == 1:
            return
        model = unwrap(runner).eval()
        loader = runner.val_dataloader
        logits = []
        # The last snapshot restores the model's own weights.
        for k in range(1, self.generations + 1):
            model.student.load_state_dict(self._weights(runner, k))
            predictions = [model.val_step(batch)[0] for batch in loader]
            logits.append(torch.cat([p['logits'] for p in predictions]))
            labels = torch.cat([p['labels'] for p in predictions])
        metric = TopKError(collect_device='gpu')  # by communication, not through files
        scores = ensemble_probabilities(logits, self.temperature)
        metric.process({}, [{'logits': scores, 'labels': labels}])
        metrics = metric.evaluate(len(loader.dataset))
        runner.message_hub.update_info('ensemble', metrics)
        words = ', '.join(f'{name} {value:.2f} %' for name, value in metrics.items())
        runner.logger.info(f'Ensemble of the {self.generations} snapshots: {words}')

    def _weights(self, runner: Runner, k: int) -> Mapping[str, Tensor]:
        """The student's weights in snapshot k. Raises a UserError unless this run, or one that it
        shares epochs with, wrote it."""
        path = str(Path(runner.work_dir) / f'snapshot_{k}.pth')
        identity, rule = runner.cfg.identity.to_dict(), stage_of(runner.cfg).may_differ
        accepted = [change['key'] for change in runner.cfg.get('accepted_changes', [])]
        checkpoint = load_from_disk(path)
        check_resume(checkpoint, path, identity, lambda *of: [*rule(*of), *accepted], True)
        return student_weights(checkpoint)
