"""Pretrain, export, fine-tune and tabulate: every run there is to do, each done once."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from downstream.backbone import check_handoff, fitting_options
from downstream.build import check_data
from downstream.import_backbone import import_backbone
from downstream.results import transfer_table
from pretrain.build import prepare as prepare_pretraining
from pretrain.export import export_backbone
from pretrain.runs.backbone_file import is_backbone_file, load_backbone_file
from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.launch import Launcher, Run


@dataclass(frozen=True)
class Transfer:
    """What is compared with what.

    Args:
        backbones: label to a backbone file (.pth), a ResNet of another library that says how it
            was trained, or the config (.py) that pretrains it.
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
        depths, known = {}, {}
        for label, source in self.backbones.items():
            if _is_config(source):
                config = load_config(source, self.pretrain_options)
                prepare_pretraining(config, self.launcher.gpus or 1)
                if (network := config.model.network.type) != 'ResNet':
                    raise UserError(
                        f'{label} is a {network}, which no detector or segmenter here is built on: '
                        'give the config of a ResNet.'
                    )
                depths[label] = config.model.network.depth
            else:
                known[label] = load_backbone_file(self._files[label]).provenance
                depths[label] = known[label]['depth']
        for path in self.configs:
            config = load_config(path, self.downstream_options)
            check_data(config, self.launcher.gpus or 1)
            for label, depth in depths.items():
                if depth != config.model.backbone.depth:
                    raise UserError(
                        f'{label} is a ResNet-{depth}, {path} builds a '
                        f'ResNet-{config.model.backbone.depth}: give --configs of the same depth.'
                    )
            for provenance in known.values():
                check_handoff(load_config(path, self._options(path, provenance)).model, provenance)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The backbone file of each label. Those of other libraries are imported here."""
        files = {}
        for label, source in self.backbones.items():
            files[label] = self.work_dir / label / 'backbone.pth'
            if _is_config(source):
                continue  # to be written when it is pretrained
            if source.suffix != '.safetensors' and is_backbone_file(source):
                files[label] = source
            else:
                import_backbone(source, files[label])
        return files

    def _options(self, config: Path, provenance: Mapping[str, Any]) -> list[str]:
        """The given options of a downstream config, and those that fit it to a backbone."""
        given = self.downstream_options
        return [*given, *fitting_options(load_config(config, given), provenance)]

    def _pretrain(self, label: str, config: Path, number: str) -> None:
        work_dir = self.work_dir / label / 'pretrain'
        record = self.launcher.run(
            Run(f'{number} pretrain {label}', config, work_dir, self.pretrain_options)
        )
        last = record['generations'][-1]['generation']
        export_backbone(work_dir / f'snapshot_{last}.pth', self._files[label])

    def _fine_tune(self, label: str, config: Path, seed: int, number: str) -> dict:
        file = self._files[label]
        given = load_backbone_file(file).provenance
        title = f'{number} {config.stem}, {label}, seed {seed}'
        options = self._options(config, given)
        if fitted := options[len(self.downstream_options) :]:
            print(f'{title}: fitted to the backbone with {", ".join(fitted)}', flush=True)
        options += [f'backbone_file={file}', f'label={label!r}', f'randomness.seed={seed}']
        work_dir = self.work_dir / label / config.stem / f'seed{seed}'
        record = self.launcher.run(Run(title, config, work_dir, options))
        if record['identity']['backbone']['weights_sha256'] != given['weights_sha256']:
            raise UserError(
                f'{work_dir} was fine-tuned from another backbone than {file}: '
                'choose another --work-dir, or delete that run.'
            )
        return record


def _is_config(source: Path) -> bool:
    return source.suffix == '.py'
