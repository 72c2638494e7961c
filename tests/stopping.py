"""Runs that are stopped, and whether two runs are the same."""

import json
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.record import read_record


class Signal(Hook):
    """As if a signal came at iteration ``at`` of the run, or after ``at`` batches of the
    validation of epoch ``epoch``."""

    priority = 'HIGHEST'

    def __init__(self, received: list[int], number: int, at: int, epoch: int = 0) -> None:
        self.received, self.number, self.at, self.epoch = received, number, at, epoch

    def before_train_iter(self, runner: Runner, **_: Any) -> None:
        if not self.epoch and runner.iter + 1 == self.at:
            self.received.append(self.number)

    def before_val_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        if runner.epoch == self.epoch and batch_idx + 1 == self.at:
            self.received.append(self.number)


def assert_same_run(one: Path, other: Path, name: str) -> None:
    """Weights, buffers, teacher, momentum, schedule, log, history and scalars are equal."""
    ours, theirs = (load_from_disk(folder / name) for folder in (one, other))
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_equal(ours[part], theirs[part], part)
    # A validation that the record holds is not repeated, so the log's buffers, which nothing reads
    # again, may lack its values. History and scalars have them.
    mine, yours = (
        {key: value for key, value in c['message_hub']['log_scalars'].items() if key[:4] != 'val/'}
        for c in (ours, theirs)
    )
    assert mine.keys() == yours.keys()
    for key in mine.keys() - {'train/time', 'train/data_time'}:
        assert mine[key].data[0].tolist() == yours[key].data[0].tolist(), key
    assert history(one) == history(other)
    assert scalars(one) == scalars(other)
    assert read_record(one / 'run.json')['status'] == read_record(other / 'run.json')['status']


def assert_equal(ours: object, theirs: object, name: str) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), name
        for key, value in ours.items():
            assert_equal(value, theirs[key], f'{name}.{key}')
    elif isinstance(ours, list):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f'{name}.{index}')
    elif torch.is_tensor(ours):
        assert torch.equal(ours, theirs), name
    else:
        assert ours == theirs, name


def history(folder: Path) -> list[dict]:
    """What the record says of the epochs, without the times."""
    entries = read_record(folder / 'run.json')['history']
    return [{k: v for k, v in e.items() if not k.startswith('seconds')} for e in entries]


def scalars(folder: Path) -> dict[int, dict]:
    """What was logged at each step, without the times; a resumed run's log comes in pieces."""
    lines = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in map(json.loads, path.read_text().splitlines()):
            measured = ('memory', 'eta', 'images_per_second')
            values = {k: v for k, v in line.items() if 'time' not in k and k not in measured}
            lines.setdefault(('train' if 'lr' in line else 'val', line['step']), values)
    return lines
