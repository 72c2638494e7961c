"""The protocol of Section 3.3.2: how much may teacher and student have in common? (Table 2)"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pretrain.build import prepare
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.launch import Launcher, Run

# A teacher goes on from its snapshot with other random numbers than its source.
DATA_SEED = 1000


@dataclass(frozen=True)
class Similarity:
    """Sources M, teachers M^T_#E and the students that they teach.

    The source M is a whole run without a teacher. M^T_#E goes on from M's first E epochs with the
    same configuration and another randomness. The student M_#E2 goes on from M's first E2 epochs,
    with M's randomness, and is taught from there on by M^T_#E1 (Eqn 2), with which it shares the
    first min(E1, E2) epochs. Of pairs that are equal in probability, only E1 <= E2 is run.

    The paper also says that the first min(E1, E2) epochs, rather than E2, use Eqn 1; then the
    entries of a row would be equal in probability to the first row's, which it reports apart.

    Args:
        config: the source's pretraining config, a baseline.
        shared_epochs: E, in ascending order; 0 is the initial weights.
        seeds: of the individual runs that the table averages.
        work_dir: everything is written below it.
        options: ``key=value`` overrides of the config.
        launcher: how the runs are started.
    """

    config: Path
    shared_epochs: Sequence[int]
    seeds: Sequence[int]
    work_dir: Path
    options: Sequence[str] = ()
    launcher: Launcher = field(default_factory=Launcher)

    def run(self) -> list[dict]:
        """Train what is not trained yet; return the records of the teachers and the students.

        Raises:
            UserError: before anything is trained, if a setting or the data cannot work.
        """
        config = prepare(load_config(self.config, self.options), self.launcher.gpus or 1)
        shared = list(self.shared_epochs)
        if config.algorithm.generations != [config.epochs] or config.algorithm.teacher_weight:
            raise UserError(f'{self.config} is not of a baseline: choose one with generations=1.')
        if (
            not shared
            or shared != sorted({*shared})
            or not 0 <= shared[0] <= shared[-1] < config.epochs
        ):
            raise UserError(
                f'The shared epochs are {shared}: give different ones in ascending order, from 0 '
                f'to less than epochs={config.epochs}.'
            )
        pairs = [
            (student, teacher) for student in shared for teacher in shared if teacher <= student
        ]
        stages = [
            [partial(self._source, seed) for seed in self.seeds],
            [partial(self._teacher, seed, e) for seed in self.seeds for e in shared],
            [partial(self._student, seed, *pair) for seed in self.seeds for pair in pairs],
        ]
        total, number, records = sum(map(len, stages)), 0, []
        for stage in stages:
            tasks = []
            for make in stage:
                number += 1
                tasks.append(partial(self.launcher.run, make(f'[{number}/{total}]')))
            records.append(self.launcher.each(tasks))
        return records[1] + records[2]

    def _source(self, seed: int, number: str) -> Run:
        kept = [epochs for epochs in self.shared_epochs if epochs]
        return self._run(number, seed, 'M', [f'keep_epochs={kept}'], start=0)

    def _teacher(self, seed: int, shared: int, number: str) -> Run:
        options = [f'data_seed={DATA_SEED + seed}']
        return self._run(number, seed, f'T#{shared}', options, start=shared)

    def _student(self, seed: int, shared: int, teacher: int, number: str) -> Run:
        options = [
            f'teacher_file={self._folder(seed, f"T#{teacher}") / "snapshot_1.pth"}',
            'algorithm.teacher_weight=1.0',
            f'algorithm.taught_after={shared}',
        ]
        return self._run(number, seed, f'M#{shared}<T#{teacher}', options, start=shared)

    def _run(self, number: str, seed: int, label: str, options: list[str], start: int) -> Run:
        source = self._folder(seed, 'M') / f'kept_{start}.pth'
        return Run(
            title=f'{number} {label}, seed {seed}',
            config=self.config,
            work_dir=self._folder(seed, label),
            options=[*self.options, f'randomness.seed={seed}', f'label={label}', *options],
            start_from=source if start else None,
        )

    def _folder(self, seed: int, label: str) -> Path:
        # '<' and '#' are a shell's: M_75_T_0 is what M#75<T#0 left.
        return self.work_dir / f'seed{seed}' / label.replace('<', '_').replace('#', '_')
