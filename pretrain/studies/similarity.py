"""Table 2: how similar may a teacher and its student be? The protocol of Section 3.3.2."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.launch import Launcher, Run
from pretrain.runs.record import read_record
from pretrain.studies.sweep import check_unique

# Added to the data seed of a teacher, which sees the images in another order than its source.
DATA_SEED = 1000


@dataclass(frozen=True)
class Similarity:
    """Trains the sources M, the teachers M^T_#E and the students of Table 2.

    - The source M is a whole run without a teacher.
    - The teacher M^T_#E continues M after epoch E with the same config and another data seed.
    - The student M_#E2 continues M after epoch E2 with M's data seed. The teacher M^T_#E1 teaches
      it from there on (Eqn 2). The two share the first min(E1, E2) epochs.

    The pairs (E1, E2) and (E2, E1) have the same distribution, so only E1 <= E2 is trained.

    The paper says that Eqn 1 is used in the first min(E1, E2) epochs. With E1 < E2 we use it until
    E2: otherwise the student would leave the source at E1, and E2 would have no effect, but the
    paper reports different numbers.

    Args:
        config: the source's pretraining config, a baseline.
        shared_epochs: the values of E in ascending order; 0 stands for the initial weights.
        seeds: the seeds; the table shows means over them.
        work_dir: the folder of all runs.
        options: ``key=value`` overrides of the config.
        launcher: starts the runs.
    """

    config: Path
    shared_epochs: Sequence[int]
    seeds: Sequence[int]
    work_dir: Path
    options: Sequence[str] = ()
    launcher: Launcher = field(default_factory=Launcher)

    def run(self) -> list[dict]:
        """Train the runs that are not finished; return the records of teachers and students.

        Raises:
            UserError: if a setting or the data is invalid (before any training), or a run fails.
        """
        check_unique([self.config], self.seeds)
        config = self.launcher.prepare(load_config(self.config, self.options))
        shared = list(self.shared_epochs)
        if config.algorithm.generations != [config.epochs] or config.algorithm.teacher_weight:
            raise UserError(
                f'{self.config} is not the config of a baseline: give one with '
                'algorithm.generations=1 and algorithm.teacher_weight=0.'
            )
        if not shared or shared != sorted({*shared} & {*range(config.epochs)}):
            raise UserError(
                f'The shared epochs are {shared}: give different ones in ascending order, at least '
                f'0 and less than epochs={config.epochs}.'
            )
        pairs = [(student, teacher) for student in shared for teacher in shared]
        kept = [f'keep_epochs={[epochs for epochs in shared if epochs]}']
        sources, teachers, students = [], [], []
        for seed in self.seeds:
            sources.append(self._run(seed, 'M', 0, kept))
            order = [f'data_seed={DATA_SEED + seed}']
            teachers += [self._run(seed, f'T#{epochs}', epochs, order) for epochs in shared]
            students += [self._student(seed, *pair) for pair in pairs if pair[1] <= pair[0]]
        for run in (*teachers, *students):
            self._check_start(run)
        records = self.launcher.finish(sources, teachers, students)
        return records[1] + records[2]

    def _check_start(self, run: Run) -> None:
        """Raise a UserError if a run cannot begin because its source did not keep the epoch."""
        kept = run.start_from
        if kept is None or kept.exists() or (run.work_dir / 'run.json').exists():
            return
        source, epoch = read_record(kept.parent / 'run.json'), int(kept.stem.rpartition('_')[2])
        if source and source['history'] and source['history'][-1]['epoch'] >= epoch:
            raise UserError(
                f'{kept.parent} was trained without keeping epoch {epoch}, from which {run.title} '
                'starts: choose another --work-dir, or leave this epoch out.'
            )

    def _student(self, seed: int, shared: int, teacher: int) -> Run:
        options = [
            f'teacher.checkpoint={self._folder(seed, f"T#{teacher}") / "snapshot_1.pth"}',
            'algorithm.teacher_weight=1.0',
            f'algorithm.taught_after={shared}',
        ]
        return self._run(seed, f'M#{shared}<T#{teacher}', shared, options)

    def _run(self, seed: int, label: str, start: int, options: list[str]) -> Run:
        source = self._folder(seed, 'M') / f'kept_{start}.pth'
        return Run(
            title=f'{label}, seed {seed}',
            config=self.config,
            work_dir=self._folder(seed, label),
            options=[*self.options, f'randomness.seed={seed}', f'label={label}', *options],
            start_from=source if start else None,
        )

    def _folder(self, seed: int, label: str) -> Path:
        # '<' and '#' are special to a shell, so the folder of M#75<T#0 is M_75_T_0.
        return self.work_dir / f'seed{seed}' / label.replace('<', '_').replace('#', '_')
