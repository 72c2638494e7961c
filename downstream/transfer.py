"""Pretrain, export, fine-tune and tabulate: every run there is to do, each done once."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from downstream.build import check_data
from downstream.results import transfer_table
from pretrain.build import prepare as prepare_pretraining
from pretrain.checkpoint import write_atomically
from pretrain.config import load_config
from pretrain.errors import UserError
from pretrain.export import export_backbone, load_backbone_file
from pretrain.launch import Launcher, Run


@dataclass(frozen=True)
class Transfer:
    """What is compared with what.

    Args:
        backbones: label to a backbone file (.pth) or to the config (.py) that pretrains it.
        configs: the downstream configs.
        seeds: of fine-tuning; a backbone is pretrained once, with its config's seed.
        work_dir: everything is written below it: ``<label>/pretrain``, ``<label>/backbone.pth``,
            ``<label>/<config>/seed<seed>`` and ``transfer.md``.
        launcher: how the runs are started.
        pretrain_options: ``key=value`` overrides of the pretraining configs.
        downstream_options: the same for the downstream configs.
    """

    backbones: dict[str, Path]
    configs: Sequence[Path]
    seeds: Sequence[int]
    work_dir: Path
    launcher: Launcher = field(default_factory=Launcher)
    pretrain_options: Sequence[str] = ()
    downstream_options: Sequence[str] = ()

    def run(self) -> str:
        """Do what is not done yet and return the table, which ``transfer.md`` holds as well.

        Stopped and started again it goes on: a finished run is skipped, an unfinished one resumed
        from its last epoch.

        Raises:
            UserError: before anything is trained, if a config, the data or a file cannot work.
        """
        self._check()
        pretrain = [partial(self._pretrain, *b) for b in self.backbones.items() if _is_config(b[1])]
        runs = itertools.product(self.backbones, self.configs, self.seeds)
        fine_tune = [partial(self._fine_tune, *run) for run in runs]
        total = len(pretrain) + len(fine_tune)
        for tasks, first in ((pretrain, 1), (fine_tune, len(pretrain) + 1)):
            numbered = enumerate(tasks, first)
            records = self.launcher.each(
                [partial(task, f'[{number}/{total}]') for number, task in numbered]
            )
        table = transfer_table(records, list(self.backbones))
        write_atomically(self.work_dir / 'transfer.md', table.encode())
        return table

    def _check(self) -> None:
        names = [config.stem for config in self.configs]
        if len({*names}) < len(names) or len({*self.seeds}) < len(self.seeds):
            raise UserError('A config or a seed is given twice: name each once.')
        depths = {}
        for label, source in self.backbones.items():
            if _is_config(source):
                config = load_config(source, self.pretrain_options)
                prepare_pretraining(config, self.launcher.gpus or 1)
                depths[label] = config.model.network.depth
            else:
                depths[label] = load_backbone_file(source).provenance['depth']
        for path in self.configs:
            config = load_config(path, self.downstream_options)
            check_data(config, self.launcher.gpus or 1)
            for label, depth in depths.items():
                if depth != config.model.backbone.depth:
                    raise UserError(
                        f'{label} is a ResNet-{depth}, {path} builds a '
                        f'ResNet-{config.model.backbone.depth}: give --configs of the same depth.'
                    )

    def _backbone(self, label: str) -> Path:
        source = self.backbones[label]
        return self.work_dir / label / 'backbone.pth' if _is_config(source) else source

    def _pretrain(self, label: str, config: Path, number: str) -> None:
        work_dir = self.work_dir / label / 'pretrain'
        record = self.launcher.run(
            Run(f'{number} pretrain {label}', config, work_dir, self.pretrain_options)
        )
        last = record['generations'][-1]['generation']
        export_backbone(work_dir / f'snapshot_{last}.pth', self._backbone(label))

    def _fine_tune(self, label: str, config: Path, seed: int, number: str) -> dict:
        options = [
            *self.downstream_options,
            f'backbone_file={self._backbone(label)}',
            f'label={label}',
            f'randomness.seed={seed}',
        ]
        work_dir = self.work_dir / label / config.stem / f'seed{seed}'
        title = f'{number} {config.stem}, {label}, seed {seed}'
        record = self.launcher.run(Run(title, config, work_dir, options))
        given = load_backbone_file(self._backbone(label)).provenance
        if record['identity']['backbone']['weights_sha256'] != given['weights_sha256']:
            raise UserError(
                f'{work_dir} was fine-tuned from another backbone than {self._backbone(label)}: '
                'choose another --work-dir, or delete that run.'
            )
        return record


def _is_config(source: Path) -> bool:
    return source.suffix == '.py'
