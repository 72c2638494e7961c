"""Pretrain, export, fine-tune and tabulate: every run there is to do, each done once."""

import ctypes
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from downstream.build import check_data
from downstream.results import transfer_table
from pretrain.build import prepare as prepare_pretraining
from pretrain.checkpoint import write_atomically
from pretrain.config import load_config
from pretrain.errors import UserError
from pretrain.export import export_backbone, load_backbone_file
from pretrain.record import read_record

TOOLS = Path(__file__).resolve().parent.parent / 'tools'
PROGRESS = re.compile(r'(Epoch\(\w+\) +\[\d+\]\[ *\d+/\d+\])(?:.*(eta: (?:\d+ days?, )?[\d:]+))?')


@dataclass(frozen=True)
class Transfer:
    """What is compared with what.

    Args:
        backbones: label to a backbone file (.pth) or to the config (.py) that pretrains it.
        configs: the downstream configs.
        seeds: of fine-tuning; a backbone is pretrained once, with its config's seed.
        work_dir: everything is written below it: ``<label>/pretrain``, ``<label>/backbone.pth``,
            ``<label>/<config>/seed<seed>`` and ``transfer.md``.
        gpus: processes a run, 0 for a single one without a launcher.
        jobs: runs at a time; they share the machine's GPUs, or its cores evenly.
        pretrain_options: ``key=value`` overrides of the pretraining configs.
        downstream_options: the same for the downstream configs.
    """

    backbones: dict[str, Path]
    configs: Sequence[Path]
    seeds: Sequence[int]
    work_dir: Path
    gpus: int = 0
    jobs: int = 1
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
            with ThreadPoolExecutor(self.jobs) as pool:
                numbered = enumerate(tasks, first)
                futures = [pool.submit(task, f'[{number}/{total}]') for number, task in numbered]
                try:
                    records = [future.result() for future in futures]
                finally:
                    pool.shutdown(cancel_futures=True)
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
                prepare_pretraining(config, self.gpus or 1)
                depths[label] = config.model.network.depth
            else:
                depths[label] = load_backbone_file(source).provenance['depth']
        for path in self.configs:
            config = load_config(path, self.downstream_options)
            check_data(config, self.gpus or 1)
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
        record = self._train(f'{number} pretrain {label}', config, work_dir, self.pretrain_options)
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
        record = self._train(
            f'{number} {config.stem}, {label}, seed {seed}', config, work_dir, options
        )
        given = load_backbone_file(self._backbone(label)).provenance
        if record['identity']['backbone']['weights_sha256'] != given['weights_sha256']:
            raise UserError(
                f'{work_dir} was fine-tuned from another backbone than {self._backbone(label)}: '
                'choose another --work-dir, or delete that run.'
            )
        return record

    def _train(self, title: str, config: Path, work_dir: Path, options: Sequence[str]) -> dict:
        record = read_record(work_dir / 'run.json')
        if record is None or record['status'] != 'finished':
            self._launch(title, config, work_dir, options)
            record = read_record(work_dir / 'run.json')
        elif record['config_sha256'] != load_config(config, options).config_sha256:
            raise UserError(
                f'{work_dir} holds a finished run with other settings: choose another --work-dir, '
                'or delete that run.'
            )
        metrics = record['generations'][-1]['last']
        values = ', '.join(f'{name} {value:.4g}' for name, value in metrics.items())
        print(f'{title}: done in {record["wall_seconds"]:.0f} s, {values}', flush=True)
        return record

    def _launch(self, title: str, config: Path, work_dir: Path, options: Sequence[str]) -> None:
        log = work_dir / 'train.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(TOOLS / 'train.py'), str(config)]
        if self.gpus:
            command = ['bash', str(TOOLS / 'dist_train.sh'), str(config), str(self.gpus)]
        command += ['--work-dir', str(work_dir), '--resume', '--cfg-options', *options]
        environment = dict(os.environ)
        if not self.gpus:  # else dist_train.sh shares the cores out
            environment.setdefault('OMP_NUM_THREADS', str(max(1, os.cpu_count() // self.jobs)))
        print(f'{title}: log in {log}', flush=True)
        with log.open('a') as file:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                preexec_fn=_die_with_parent,
            )
            lines = _follow(process, file, title)
        if process.returncode:
            reason = next((line for line in reversed(lines) if line.startswith('error: ')), None)
            raise UserError(
                f'{title} failed: {reason.removeprefix("error: ")}'
                if reason
                else f'{title} failed with exit code {process.returncode}: see the end of {log}.'
            )


def _is_config(source: Path) -> bool:
    return source.suffix == '.py'


def _follow(process: subprocess.Popen, log: TextIO, title: str) -> list[str]:
    """Copy a run's output to its log, show where it is, and return its last lines."""
    tail = deque(maxlen=50)
    shown = time.monotonic()
    try:
        for line in process.stdout:
            log.write(line)
            log.flush()
            tail.append(line.rstrip())
            if (progress := PROGRESS.search(line)) and time.monotonic() - shown > 15:
                print(f'{title}: {" ".join(filter(None, progress.groups()))}', flush=True)
                shown = time.monotonic()
        process.wait()
    finally:
        process.terminate()
    return list(tail)


def _die_with_parent() -> None:
    """Stop the run with the command that started it, however that ends (Linux only)."""
    if sys.platform == 'linux':
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
