"""Pretrain, export, fine-tune and make the transfer table; finished runs are not repeated."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from downstream.backbone import check_handoff, fitting_options
from downstream.build import prepare_without_backbone
from downstream.import_backbone import import_backbone
from downstream.studies.replicates import check_replicates
from downstream.studies.tables import transfer_table
from pretrain.export import export_backbone, is_export_of, is_usual_resnet
from pretrain.runs.backbone_file import load_backbone_file, provenance_of
from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.launch import Launcher, Run
from pretrain.runs.record import read_record
from pretrain.runs.tables import Table
from pretrain.studies.sweep import Sweep, check_unique


@dataclass(frozen=True)
class Transfer:
    """A comparison of backbones on downstream tasks.

    Args:
        backbones: for each label, either one config (.py) that pretrains it, or its replicates:
            backbone files (.pth), or ResNets of another library that say how they were trained.
        configs: the downstream configs.
        seeds: the fine-tuning seeds.
        work_dir: gets ``transfer.md``, ``pretrain/`` with the runs of a
            :class:`pretrain.studies.sweep.Sweep`, and ``<label>/pretraining<seed>/`` with
            ``backbone.pth`` and the runs ``<config>/seed<seed>``. Replicates whose files do not
            say the pretraining seed are numbered from 0.
        pretrain_seeds: the seeds of every pretraining config.
        launcher: starts the runs.
        pretrain_options: ``key=value`` overrides of the pretraining configs.
        downstream_options: ``key=value`` overrides of the downstream configs.
    """

    backbones: Mapping[str, Sequence[Path]]
    configs: Sequence[Path]
    seeds: Sequence[int]
    work_dir: Path
    pretrain_seeds: Sequence[int] = (0,)
    launcher: Launcher = field(default_factory=Launcher)
    pretrain_options: Sequence[str] = ()
    downstream_options: Sequence[str] = ()

    def run(self) -> Table:
        """Start or resume all unfinished runs, write the table to ``transfer.md`` and return it.

        Raises:
            UserError: before any training, if a config, the data or a backbone cannot be used.
        """
        self._check()
        if self._pretrained:
            self._pretrain()
        seeds = {
            config: self.seeds[:1] if load_config(config).task == 'probe' else self.seeds
            for config in self.configs  # a probe is deterministic
        }
        runs = [
            self._fine_tuning(*replicate, config, seed)
            for replicate in self._replicates
            for config in self.configs
            for seed in seeds[config]
        ]
        (records,) = self.launcher.finish(runs)
        table = transfer_table(records, list(self.backbones))
        write_atomically(self.work_dir / 'transfer.md', str(table).encode())
        return table

    def _check(self) -> None:
        check_unique(self.configs, self.seeds)
        if len(self.pretrain_seeds) > 1 and not self._pretrained:
            raise UserError(
                '--pretrain-seeds needs a config to pretrain: give --backbone NAME=CONFIG.py, or '
                'leave it out and give the files of several pretrainings under one name.'
            )
        depths = {}
        for label, path in self._pretrained.items():
            network = load_config(path, self.pretrain_options).model.network
            if not is_usual_resnet(network):
                width = f' of width {network.width}' if 'width' in network else ''
                raise UserError(
                    f'{label} is a {network.type}{width}, but the detectors and segmenters here '
                    'need a ResNet of the usual width: give the config of one.'
                )
            depths[label] = network.depth
        known = {}
        for label, _, file in self._replicates:
            if label not in self._pretrained:
                known.setdefault(label, []).append(load_backbone_file(file).provenance)
        for label, provenances in known.items():
            if len({p['weights_sha256'] for p in provenances}) < len(provenances):
                raise UserError(f'Two files of {label} hold the same weights: name each once.')
            check_replicates(label, provenances)
            depths[label] = provenances[0]['depth']
        for path in self.configs:
            config = load_config(path, self.downstream_options)
            prepare_without_backbone(config, self.launcher.gpus or 1, self.launcher.elsewhere)
            for label, depth in depths.items():
                if depth != config.model.backbone.depth:
                    raise UserError(
                        f'{label} is a ResNet-{depth}, but {path} builds a '
                        f'ResNet-{config.model.backbone.depth}: give --configs of the same depth.'
                    )
            for provenance, *_ in known.values():
                check_handoff(load_config(path, self._options(path, provenance)).model, provenance)

    @cached_property
    def _pretrained(self) -> dict[str, Path]:
        """The config of each label that this study pretrains."""
        configs = {
            label: sources[0]
            for label, sources in self.backbones.items()
            if any(source.suffix == '.py' for source in sources)
        }
        for label in configs:
            if len(self.backbones[label]) > 1:
                raise UserError(
                    f'{label} has a config and other files: give a single config, which '
                    '--pretrain-seeds repeats, or only backbone files.'
                )
        return configs

    @cached_property
    def _replicates(self) -> list[tuple[str, Path, Path]]:
        """Label, folder and backbone file of each replicate; the first replicates of all labels
        come first, so an interrupted study can compare labels. Imports other libraries' files."""
        found = []
        for label, sources in self.backbones.items():
            if label in self._pretrained:
                folders = [self._folder(label, seed) for seed in self.pretrain_seeds]
                found.append([(label, folder, folder / 'backbone.pth') for folder in folders])
            else:
                found.append([self._given(label, *pair) for pair in enumerate(sources)])
        return [replicate for some in zip_longest(*found) for replicate in some if replicate]

    def _given(self, label: str, number: int, file: Path) -> tuple[str, Path, Path]:
        """Label, folder and backbone file of a file that the user gave."""
        ours = None if file.suffix == '.safetensors' else provenance_of(file)
        folder = self._folder(label, (ours or {}).get('seed', number))
        if ours is not None:
            return label, folder, file
        target = folder / 'backbone.pth'
        held = provenance_of(target) if target.exists() else None
        if held and held.get('source_sha256') != hashlib.sha256(file.read_bytes()).hexdigest():
            raise UserError(
                f'{target} holds the backbone of {held.get("source")}, not of {file}: give {label} '
                'another name, or choose another --work-dir.'
            )
        import_backbone(file, target)
        return label, folder, target

    def _folder(self, label: str, pretraining: int) -> Path:
        return self.work_dir / label / f'pretraining{pretraining}'

    def _options(self, config: Path, provenance: Mapping[str, Any]) -> list[str]:
        """The user's options for a downstream config, then those that fit it to a backbone."""
        given = self.downstream_options
        return [*given, *fitting_options(load_config(config, given), provenance)]

    def _pretrain(self) -> None:
        configs, place = list(self._pretrained.values()), self.work_dir / 'pretrain'
        sweep = Sweep(configs, self.pretrain_seeds, place, self.pretrain_options, self.launcher)
        sweep.run()
        for label, config in self._pretrained.items():
            for seed in self.pretrain_seeds:
                run = sweep.folder(config, seed)
                record = read_record(run / 'run.json')
                snapshot = run / f'snapshot_{record["generations"][-1]["generation"]}.pth'
                backbone = self._folder(label, seed) / 'backbone.pth'
                # The snapshots are large: the user may have deleted them after the export.
                if snapshot.exists() or not is_export_of(backbone, record):
                    export_backbone(snapshot, backbone)

    def _fine_tuning(self, label: str, folder: Path, file: Path, config: Path, seed: int) -> Run:
        title = f'{config.stem}, {label}, {folder.name}, seed {seed}'
        options = self._options(config, load_backbone_file(file).provenance)
        if fitted := options[len(self.downstream_options) :]:
            print(f'{title}: adapted to the backbone with {", ".join(fitted)}', flush=True)
        options += [f'backbone_file={file}', f'label={label!r}', f'randomness.seed={seed}']
        return Run(title, config, folder / config.stem / f'seed{seed}', options)
