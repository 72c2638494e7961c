"""Train every config with every seed; a mini-generation that configs share is trained once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from pretrain.build import may_differ
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.identity import differences
from pretrain.runs.launch import Launcher, Run


def check_unique(configs: Sequence[Path], seeds: Sequence[int]) -> None:
    """Raise a UserError if a config's name or a seed is repeated: two runs would share a folder."""
    names = [config.stem for config in configs]
    if len({*names}) < len(names) or len({*seeds}) < len(seeds):
        raise UserError('A config or a seed is given twice: name each once.')


@dataclass(frozen=True)
class Sweep:
    """Trains all pretraining ``configs`` with all ``seeds`` (of weights, order and augmentation).
    With one seed, all configs of a network start from the same weights.

    Each run has the folder ``<work_dir>/<config>/seed<seed>``. ``options`` are ``key=value``
    overrides of all configs.
    """

    configs: Sequence[Path]
    seeds: Sequence[int]
    work_dir: Path
    options: Sequence[str] = ()
    launcher: Launcher = field(default_factory=Launcher)

    def run(self) -> list[dict]:
        """Train the runs that are not finished; return all records.

        SE and SD share their first mini-generation (Section 4.1): the first config that has it
        trains it, and the others start from that run's snapshot.

        Raises:
            UserError: if a config or the data is invalid (before any training), or a run fails.
        """
        check_unique(self.configs, self.seeds)
        identities, sources = {}, {}
        for path in self.configs:
            config = self.launcher.prepare(load_config(path, self.options))
            identities[path] = config.identity.to_dict()
            sources[path] = next(p for p in identities if _share(identities[p], identities[path]))
        first = [path for path in self.configs if sources[path] == path]
        second = [path for path in self.configs if sources[path] != path]
        # Seed by seed, so that a sweep that is stopped early has complete seeds.
        stages = [
            [self._run(path, sources[path], seed) for seed in self.seeds for path in paths]
            for paths in (first, second)
        ]
        return [*chain.from_iterable(self.launcher.finish(*stages))]

    def _run(self, config: Path, source: Path, seed: int) -> Run:
        return Run(
            title=f'{config.stem}, seed {seed}',
            config=config,
            work_dir=self.folder(config, seed),
            options=[*self.options, f'randomness.seed={seed}'],
            start_from=None if source == config else self.folder(source, seed) / 'snapshot_1.pth',
        )

    def folder(self, config: Path, seed: int) -> Path:
        """The folder of the run of a config and a seed."""
        return self.work_dir / config.stem / f'seed{seed}'


def _share(theirs: dict, ours: dict) -> bool:
    """Whether two runs are the same until the end of their first mini-generation."""
    first = ours['algorithm']['generations'][0]
    return not differences(theirs, ours, may_differ(first, theirs, ours, another_run=False))
