"""The record of a run, ``run.json``: its settings and results. All tables are made from records.

The records of a table are committed as one ``results/<set>.jsonl``, one record per line.
"""

import hashlib
import json
import os
import statistics
import subprocess
import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from pretrain.runs.checkpoint import write_atomically
from pretrain.runs.errors import Contents, UserError, number_of
from pretrain.runs.identity import FORMAT, upgrade
from pretrain.runs.log import flush_is_due
from pretrain.runs.packages import version_of
from pretrain.runs.saving import iterations_done

# Factors to percent, by metric. mmdet gives fractions.
PERCENT = {'mAP': 100.0, 'mIoU': 1.0, 'top1_accuracy': 1.0, 'top1_error': 1.0, 'top5_error': 1.0}
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv-lite', 'mmdet', 'mmsegmentation')


def read_record(path: Path) -> dict | None:
    """The record in a ``run.json`` file, upgraded to the present format; None if there is no file.

    Raises:
        UserError: if the file holds no record, or one of a later version of the suite.
    """
    return _parse(path.read_bytes(), path) if path.exists() else None


def read_records(source: Path) -> list[dict]:
    """The records of runs, finished or not, in ``source``: a folder with ``run.json`` files at any
    depth (as :func:`record_files` lists them), a single ``run.json``, or a ``.jsonl`` file of
    :func:`pretrain.runs.tables.collect_records`.

    Raises:
        UserError: as :func:`read_record`, or if ``source`` does not exist.

    Example:
        >>> read_records(Path('configs/small/results/bccd.jsonl'))[0]['config']
        'faster_rcnn_r18_bccd'
    """
    source = Path(source)
    if source.is_dir():
        return [read_record(path) for path in record_files(source)]
    if not source.is_file():
        raise UserError(
            f'No folder or file {source}: give a folder of runs, a run.json or a .jsonl file.'
        )
    if source.suffix != '.jsonl':
        return [read_record(source)]
    lines = source.read_bytes().splitlines()
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    return [_parse(line, f'line {n} of {source}') for n, line in numbered]


def record_files(folder: Path) -> list[Path]:
    """The ``run.json`` files at any depth below ``folder``, in the order of their paths. Links to
    folders are followed; a file that is reached in several ways is listed once.

    Raises:
        UserError: if a ``run.json`` is a link to nothing, or a folder cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(
            f'{error.filename} cannot be read ({error.strerror}): give yourself access, or name '
            'the folders of the runs.'
        ) from error

    found, visited = {}, set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        if (target := os.path.realpath(place)) in visited:  # also a link to a folder above
            folders.clear()
            continue
        visited.add(target)
        folders.sort()
        if 'run.json' in files:
            path = Path(place, 'run.json')
            if not path.exists():
                raise UserError(
                    f'{path} is a link to {path.readlink()}, which does not exist: correct it '
                    'or delete it.'
                )
            found.setdefault(path.resolve(), path)
    return sorted(found.values())


def one_record(run: Path) -> dict:
    """The record that ``FILE``, ``FILE:CONFIG`` or ``FILE:CONFIG:SEED`` names, where FILE is a
    source of :func:`read_records`.

    Raises:
        UserError: as :func:`read_records`, or unless exactly one record has this name.
    """
    source, *chosen = [run] if run.exists() else str(run).split(':', 2)
    records = read_records(Path(source))
    for config in chosen[:1]:
        records = [r for r in records if r['config'] == config]
    for seed in chosen[1:]:
        records = [r for r in records if str(r['identity']['randomness']['seed']) == seed]
    if len(records) != 1:
        raise UserError(f'{run} names {len(records)} records: name one as FILE:CONFIG:SEED.')
    return records[0]


def last_in_percent(record: dict) -> float:
    """The metric of a finished run after its last epoch, in percent."""
    metric = record['paper']['metric']
    return record['generations'][-1]['last'][metric] * factor_to_percent(metric)


def factor_to_percent(metric: str) -> float:
    """100 for a metric that is a fraction, 1 for one in percent. UserError for others."""
    if metric not in PERCENT:
        raise UserError(f'paper.metric is {metric}: set it to one of {", ".join(PERCENT)}.')
    return PERCENT[metric]


def _parse(text: str | bytes, place: Path | str) -> dict:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    written_as = record.get('format', 1) if isinstance(record, dict) else None
    if isinstance(written_as, int) and written_as > FORMAT:
        raise UserError(
            f'{place} has format {written_as}, but this version of the suite reads only formats '
            f'up to {FORMAT}: update the suite.'
        )
    if not _is_record(record):
        raise UserError(
            f'{place} is not the record of a run: restore it from a copy, or leave the run out.'
        )
    if written_as < FORMAT:
        identity = upgrade(record.get('identity', {}), written_as)
        record |= {'format': FORMAT, 'identity': identity, 'accepted_changes': []}
    return Contents(record, place)


# The types of those values of a record that the tools read.
_TYPES = {'status': str, 'task': str, 'config': str, 'label': str, 'format': int, 'identity': dict}
_TYPES |= {'data': dict, 'paper': dict, 'history': list, 'generations': list, 'versions': dict}
_TYPES |= {'features': dict, 'device': str, 'world_size': int}


def _is_record(content: Any) -> bool:
    if not isinstance(content, dict) or not {'status', 'task'} <= content.keys():
        return False
    if any(not isinstance(value, _TYPES.get(key, object)) for key, value in content.items()):
        return False
    if not all(map(_is_number, content.get('features', {}).values())):
        return False
    lists = [content[key] for key in ('history', 'generations') if key in content]
    if content['status'] == 'finished' and not all(lists):
        return False
    entries = [entry for entries in lists for entry in entries]
    return all(
        isinstance(entry, dict) and all(_fits(*item) for item in entry.items()) for entry in entries
    )


def _fits(key: str, value: Any) -> bool:
    """Whether a value of an entry of ``history`` or ``generations`` has the type of its key."""
    if key in ('metrics', 'last', 'best', 'train'):
        return isinstance(value, dict) and all(map(_is_number, value.values()))
    if key == 'device':
        return isinstance(value, str)
    return _is_number(value) or (key == 'seconds_per_iter' and value is None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Keeps ``run.json`` up to date, and validates an epoch if a stop prevented its validation.

    The keys of the record:

    - ``format``, ``status`` ('running' or 'finished'), ``config``, ``label``, ``task``, ``paper``;
    - ``identity`` (see :mod:`pretrain.runs.identity`) and ``accepted_changes`` of it;
    - ``git_commit``, ``versions``, ``device``, ``world_size``;
    - ``started_from``, another run's checkpoint or None;
    - ``data``: for each split, the count and hash of its list of files;
    - ``history``, an entry per epoch: ``epoch``, ``generation``, ``iterations``; ``seconds`` and
      ``seconds_per_iter`` of training, on ``device`` with ``world_size`` processes; ``train``, the
      means of :class:`pretrain.metrics.TrainingStatistics`; ``metrics``, if the epoch was
      validated. It begins with the entries of the run of ``started_from``;
    - ``generations``: the :func:`summarise` of ``history``;
    - ``ensemble``: the metrics of the ensemble of the snapshots;
    - ``features``, of a probe: the scale of the test images' features;
    - ``peak_memory_mb``, in MiB: of rank 0 on its GPU in training, or of its process on the CPU;
    - ``sessions``, how often the run was started or resumed, and ``wall_seconds`` of them all.

    Args:
        generations: the lengths of the run's mini-generations in epochs; fine-tuning has one.
    """

    # Before SaveHook (LOWEST), so that its checkpoints hold the epoch's times so far.
    priority = 'VERY_LOW'

    def __init__(self, generations: Sequence[int]) -> None:
        self.ends = list(accumulate(generations))

    def before_train(self, runner: Runner) -> None:
        self.path = Path(runner.work_dir) / 'run.json'
        self.started = time.monotonic()
        # All processes use what rank 0 sees, since they must validate together or not at all.
        source = runner.cfg.load_from
        # The record of the run that this one starts from, if it lies beside the checkpoint.
        beside = Path(source).parent / 'run.json' if source else self.path
        begins = beside.resolve() != self.path.resolve()
        paths = self.path, beside
        seen = [read_record(path) if is_main_process() else None for path in paths]
        broadcast_object_list(seen)
        own, of_source = seen
        if begins and own and own['started_from'] != source:
            own = None  # of an earlier start from another checkpoint, which saved nothing
        if begins:  # else the checkpoint's peak is this run's own
            runner.message_hub.runtime_info.pop('peak_memory_mb', None)
        earlier = own or {
            'started_from': source,
            'history': of_source['history'] if of_source else [],
            'sessions': 0,
            'wall_seconds': 0.0,
        }
        self.earlier_seconds = earlier['wall_seconds']
        self.record = describe(runner.cfg) | {
            'status': 'running',
            'started_from': earlier['started_from'],
            'data': {
                'train': describe_data(runner.train_dataloader.dataset, runner.cfg.data_root),
                'val': describe_data(runner.val_dataloader.dataset, runner.cfg.data_root),
            },
            # The epochs of older records have no device of their own.
            'history': [
                {key: (own or of_source)[key] for key in ('device', 'world_size')} | entry
                for entry in earlier['history']
                if entry['epoch'] <= runner.epoch
            ],
            'sessions': earlier['sessions'] + 1,
        }
        # A checkpoint is written before its epoch is validated. A run that was stopped in between,
        # or starts from the snapshot of another run, validates the epoch now.
        last = runner.epoch == runner.max_epochs
        due = last or runner.epoch % runner.train_loop.val_interval == 0
        due = due and runner.epoch > 0 and not iterations_done(runner)
        if due and 'metrics' not in self._entry(runner.epoch):
            runner.val_loop.run()
        self._write(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        hub = runner.message_hub  # restored when a run resumes within an epoch
        # Pairs of a number of iterations and the seconds that they took.
        self.seconds = hub.get_info('seconds', []) if iterations_done(runner) else []
        hub.update_info('seconds', self.seconds)
        self.begun, self.tick = 0, time.perf_counter()

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        self.begun += 1
        if flush_is_due(runner, batch_idx):  # in between, the host runs ahead of the device
            self.flush(runner, batch_idx)

    def flush(self, runner: Runner, batch_idx: int) -> None:
        if self.begun:
            now = time.perf_counter()
            self.seconds.append((self.begun, now - self.tick))
            self.begun, self.tick = 0, now

    def after_train_epoch(self, runner: Runner) -> None:
        entry = self._entry(runner.epoch + 1)
        entry['iterations'] = sum(count for count, _ in self.seconds)
        entry['seconds'] = sum(seconds for _, seconds in self.seconds)
        entry['seconds_per_iter'] = statistics.median(s / count for count, s in self.seconds)
        entry |= {key: self.record[key] for key in ('device', 'world_size')}
        if train := runner.message_hub.get_info('train_statistics', None):
            entry['train'] = train
        self._write(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        values = {name.split('/')[-1]: float(value) for name, value in metrics.items()}
        self._entry(runner.epoch)['metrics'] = values
        self._write(runner)

    def after_train(self, runner: Runner) -> None:
        self.record['status'] = 'finished'
        if ensemble := runner.message_hub.get_info('ensemble', None):
            self.record['ensemble'] = ensemble
        self._write(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        settings = runner.cfg.to_dict()
        checkpoint['meta'] |= {
            'format': FORMAT,
            'identity': settings['identity'],
            'accepted_changes': settings.get('accepted_changes', []),
        }
        if iterations_done(runner):
            self._write(runner)  # updates wall_seconds

    def _entry(self, epoch: int) -> dict:
        history = self.record['history']
        if not history or history[-1]['epoch'] != epoch:
            history.append({'epoch': epoch, 'generation': bisect_left(self.ends, epoch) + 1})
        return history[-1]

    @master_only
    def _write(self, runner: Runner) -> None:
        self.record['generations'] = summarise(self.record['history'], runner.cfg.paper.metric)
        self.record['peak_memory_mb'] = runner.message_hub.get_info('peak_memory_mb')
        self.record['wall_seconds'] = self.earlier_seconds + time.monotonic() - self.started
        write_atomically(self.path, (json.dumps(self.record, indent=1) + '\n').encode())


def describe(config: Config) -> dict:
    """The keys of a record that are known before the run begins."""
    factor_to_percent(config.paper.metric)  # tables could not show a metric of unknown unit
    cores = number_of(os.cpu_count(), 'cores')
    return {
        'format': FORMAT,
        'config': Path(config.filename).stem,
        'label': config.label,
        'task': config.task,
        'paper': config.paper.to_dict(),
        'identity': config.identity.to_dict(),
        'accepted_changes': config.get('accepted_changes', []),
        'git_commit': _git_commit(),
        'versions': {p: v for p in PACKAGES if (v := version_of(p)) is not None},
        'device': torch.cuda.get_device_name() if torch.cuda.is_available() else f'CPU, {cores}',
        'world_size': get_world_size(),
    }


def devices_of(*records: dict) -> list[str]:
    """What trained the epochs of runs, such as ``8 × NVIDIA H200``, sorted. A resumed run may have
    used several devices, and one that started from a snapshot includes those of that run."""
    found = set()
    for record in records:
        own = {key: record[key] for key in ('device', 'world_size')}
        for entry in record['history'] or [{}]:
            device, count = (own | entry)['device'], (own | entry)['world_size']
            if count > 1:
                cpu = device.startswith('CPU')
                device = f'{device}, {count} processes' if cpu else f'{count} × {device}'
            found.add(device)
    return sorted(found)


def summarise(history: list[dict], metric: str) -> list[dict]:
    """The ``last`` and ``best`` metrics of each mini-generation, their epochs, and the median
    seconds per iteration. The best epoch has the lowest ``metric`` if its name ends in 'error',
    else the highest."""
    rows = []
    for k in sorted({entry['generation'] for entry in history}):
        entries = [entry for entry in history if entry['generation'] == k]
        validated = [entry for entry in entries if metric in entry.get('metrics', {})]
        seconds = [e['seconds_per_iter'] for e in entries if 'seconds_per_iter' in e]
        row = {'generation': k, 'seconds_per_iter': statistics.median(seconds) if seconds else None}
        if validated:
            better = min if metric.endswith('error') else max
            best = better(validated, key=lambda entry: entry['metrics'][metric])
            row |= {'last': validated[-1]['metrics'], 'last_epoch': validated[-1]['epoch']}
            row |= {'best': best['metrics'], 'best_epoch': best['epoch']}
        rows.append(row)
    return rows


def describe_data(dataset: Any, root: str) -> dict[str, int | str]:
    """The number of files of a split, and the SHA-256 of their list."""
    if hasattr(dataset, 'file_list'):
        files = dataset.file_list()
    else:
        paths = (dataset.get_data_info(i)['img_path'] for i in range(len(dataset)))
        files = [os.path.relpath(path, root) for path in paths]
    return {'count': len(files), 'sha256': hashlib.sha256('\n'.join(files).encode()).hexdigest()}


def _git_commit() -> str | None:
    code = Path(__file__)
    git = ['git', '-C', str(code.parent)]
    try:
        commit = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return None
    # The suite may be installed in an environment within somebody else's repository.
    tracked = subprocess.run([*git, 'ls-files', '--error-unmatch', code.name], capture_output=True)
    if commit.returncode or tracked.returncode:
        return None
    changed = subprocess.run([*git, 'status', '--porcelain', '-uno'], capture_output=True)
    return commit.stdout.strip() + ('-modified' if changed.stdout else '')
