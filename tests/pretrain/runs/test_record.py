import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pretrain.runs import record as module
from pretrain.runs.errors import UserError
from pretrain.runs.record import (
    FORMAT,
    devices_of,
    factor_to_percent,
    read_record,
    read_records,
    summarise,
)
from tests.conftest import ROOT


def test_record_of_a_whole_run(train: Callable, tmp_path: Path) -> None:
    train('sd', tmp_path)
    record = read_record(tmp_path / 'run.json')
    assert record['status'] == 'finished'
    assert record['label'] == record['identity']['algorithm']['name'] == 'SD'
    assert record['config'] == 'r18_sd'
    assert [(e['epoch'], e['generation']) for e in record['history']] == [(1, 1), (2, 2), (3, 2)]
    assert all(e['seconds_per_iter'] > 0 for e in record['history'])
    assert [e['iterations'] for e in record['history']] == [4, 4, 4]
    assert {(e['device'], e['world_size']) for e in record['history']} == {(record['device'], 1)}
    assert all(e['seconds'] >= e['seconds_per_iter'] for e in record['history'])
    taught = ('teacher_error', 'teacher_entropy', 'agreement', 'difference')
    assert list(record['history'][0]['train']) == ['error', 'entropy']
    assert list(record['history'][1]['train']) == ['error', 'entropy', *taught]
    first, second = record['generations']
    assert first['last'] == first['best'] == record['history'][0]['metrics']
    assert second['last'] == record['history'][2]['metrics']
    assert second['last'].keys() == {'top1_error'}
    assert record['data']['train']['count'] == 32
    assert record['data']['val']['count'] == 12
    assert record['versions']['torch'] == torch.__version__.split('+')[0]
    assert record['wall_seconds'] > 0
    assert record['sessions'] == 1
    assert record['started_from'] is None


def test_a_record_has_the_devices_of_all_sessions() -> None:
    """A record itself has those of the last session, and old epochs have none of their own."""
    record = {'device': 'NVIDIA H200', 'world_size': 8, 'history': []}
    assert devices_of(record) == ['8 × NVIDIA H200']
    record['history'] = [
        {'epoch': 1, 'device': 'CPU, 2 cores', 'world_size': 2},
        {'epoch': 2, 'device': 'NVIDIA H200', 'world_size': 1},
        {'epoch': 3},
    ]
    assert devices_of(record) == ['8 × NVIDIA H200', 'CPU, 2 cores, 2 processes', 'NVIDIA H200']


def test_data_fingerprint_names_the_files_not_the_place(
    train: Callable, image_folder: Path, tmp_path: Path
) -> None:
    once = ('epochs=1', 'algorithm.generations=1')
    train('bl', tmp_path / 'a', *once)
    shutil.copytree(image_folder, tmp_path / 'moved')
    train('bl', tmp_path / 'b', *once, f'data_root={tmp_path / "moved"}')
    (tmp_path / 'moved/train/class0/0.png').rename(tmp_path / 'moved/train/class0/new.png')
    train('bl', tmp_path / 'c', *once, f'data_root={tmp_path / "moved"}')
    a, b, c = (read_record(tmp_path / name / 'run.json') for name in 'abc')
    assert a['data'] == b['data']
    assert a['data']['train'] != c['data']['train']
    assert a['data']['val'] == c['data']['val']


def test_the_commit_tells_whether_the_code_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        own = ['-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(tmp_path)]
        return subprocess.run(
            ['git', *own, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    monkeypatch.setattr(module, '__file__', str(tmp_path / 'code.py'))
    assert module._git_commit() is None
    (tmp_path / 'code.py').write_text('a = 1')
    for arguments in (['init'], ['add', '.'], ['commit', '-m', 'first']):
        git(*arguments)
    commit = git('rev-parse', 'HEAD')
    (tmp_path / 'notes.txt').write_text('no code')
    assert module._git_commit() == commit
    (tmp_path / 'installed.py').write_text('a = 1')
    monkeypatch.setattr(module, '__file__', str(tmp_path / 'installed.py'))
    assert module._git_commit() is None  # another repository holds the environment
    monkeypatch.setattr(module, '__file__', str(tmp_path / 'code.py'))
    (tmp_path / 'code.py').write_text('a = 2')
    assert module._git_commit() == f'{commit}-modified'


class StopAtOnce(Hook):
    def before_train_iter(self, runner: Runner, **_: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize('branch', [False, True])
def test_a_session_that_saved_nothing_counts(
    branch: bool, tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    config = tiny_config('sd', tmp_path)
    if branch:
        train('se', tmp_path / 'se')
        config.load_from, config.resume = str(tmp_path / 'se/snapshot_1.pth'), True
    runner = Runner.from_cfg(config)
    runner.register_hook(StopAtOnce())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    first = read_record(tmp_path / 'run.json')
    config.experiment_name += '-again'
    Runner.from_cfg(config).train()
    again = read_record(tmp_path / 'run.json')
    assert (first['sessions'], again['sessions']) == (1, 2)
    assert again['wall_seconds'] > first['wall_seconds']
    assert [entry['epoch'] for entry in again['history']] == [1, 2, 3]


class StopBeforeValidation(Hook):
    def before_val(self, runner: Runner) -> None:
        if runner.epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize('interval', [1, 3])
def test_resume_makes_up_for_a_missed_validation(
    interval: int, tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """Stopped after the checkpoint of the last epoch, which is always validated, and before its
    validation."""
    two = ('epochs=2', 'algorithm.generations=2', f'train_cfg.val_interval={interval}')
    train('sd', tmp_path / 'whole', *two)
    runner = Runner.from_cfg(tiny_config('sd', tmp_path / 'cut', *two))
    runner.register_hook(StopBeforeValidation())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    before = read_record(tmp_path / 'cut/run.json')
    assert 'metrics' not in before['history'][1]
    # As an older version wrote it, on another device.
    older = before | {'device': 'NVIDIA H200', 'world_size': 8}
    for entry in older['history']:
        del entry['device'], entry['world_size']
    (tmp_path / 'cut/run.json').write_text(json.dumps(older))
    config = tiny_config('sd', tmp_path / 'cut', *two)
    config.load_from, config.resume = str(tmp_path / 'cut/epoch_2.pth'), True
    config.experiment_name += '-resumed'
    Runner.from_cfg(config).train()
    whole, cut = (read_record(tmp_path / name / 'run.json') for name in ('whole', 'cut'))
    ours, theirs = ([e.get('metrics') for e in r['history']] for r in (cut, whole))
    assert ours == theirs
    assert theirs[1] is not None
    assert cut['status'] == 'finished'
    assert cut['sessions'] == 2
    assert devices_of(cut) == ['8 × NVIDIA H200']  # which trained all of its epochs
    assert cut['wall_seconds'] > before['wall_seconds'] > 0


def test_shared_generation_1_is_validated_where_it_is_used(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """Also if the run has begun with another snapshot before, and was stopped before it saved."""
    train('se', tmp_path / 'se')
    config = tiny_config('sd', tmp_path / 'sd')
    config.load_from, config.resume = str(tmp_path / 'se/snapshot_1.pth'), True
    stopped = read_record(tmp_path / 'se/run.json') | {'started_from': 'other/snapshot_1.pth'}
    stopped['history'] = [{'epoch': 1, 'generation': 1, 'metrics': {'top1_error': 0.0}}]
    (tmp_path / 'sd').mkdir()
    (tmp_path / 'sd/run.json').write_text(json.dumps(stopped))
    Runner.from_cfg(config).train()
    ensemble, distilled = (read_record(tmp_path / name / 'run.json') for name in ('se', 'sd'))
    assert distilled['generations'][0] == ensemble['generations'][0]
    assert distilled['history'][0] == ensemble['history'][0]
    assert [entry['epoch'] for entry in distilled['history']] == [1, 2, 3]  # not SE's others
    assert distilled['started_from'].endswith('se/snapshot_1.pth')


@pytest.mark.parametrize('validated', [False, True])
def test_all_processes_validate_or_none_does(
    validated: bool, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 alone reads the record: on a disk of the network, another process may see an older one
    or none."""
    runner = train('bl', tmp_path, 'algorithm.generations=1')
    first = read_record(tmp_path / 'run.json')
    if not validated:
        del first['history'][-1]['metrics']
    runs = []
    monkeypatch.setattr(module, 'is_main_process', lambda: False)
    monkeypatch.setattr(module, 'read_record', None)
    monkeypatch.setattr(
        module, 'broadcast_object_list', lambda objects: objects.__setitem__(0, first)
    )
    monkeypatch.setattr(runner.val_loop, 'run', lambda: runs.append(True))
    next(hook for hook in runner.hooks if isinstance(hook, module.RunRecordHook)).before_train(
        runner
    )
    assert runs == ([] if validated else [True])


def test_the_first_process_alone_writes_the_record(
    train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    (tmp_path / 'run.json').unlink()
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda _=None: 1)
    runner.call_hook('after_train')
    assert not (tmp_path / 'run.json').exists()


def test_loss_that_is_not_finite_stops_the_run(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config('sd', tmp_path)
    runner = Runner.from_cfg(config)
    with torch.no_grad():
        runner.model.student[0].weight.fill_(float('nan'))
    with pytest.raises(UserError, match='The loss is nan at epoch 1, iteration 1'):
        runner.train()
    assert not list(tmp_path.glob('*.pth'))
    assert json.loads((tmp_path / 'run.json').read_text())['status'] == 'running'


def test_last_and_best_are_kept_apart() -> None:
    history = [
        {'epoch': e, 'generation': g, 'seconds_per_iter': s, 'metrics': {'top1_error': x}}
        for e, g, s, x in [
            (1, 1, 1.0, 50.0),
            (2, 1, 2.0, 40.0),
            (3, 2, 5.0, 30.0),
            (4, 2, 4.0, 35.0),
        ]
    ]
    history[0].pop('metrics')
    first, second = summarise(history, 'top1_error')
    assert (first['last_epoch'], first['best_epoch'], first['seconds_per_iter']) == (2, 2, 1.5)
    assert (second['last_epoch'], second['best_epoch']) == (4, 3)
    assert second['best'] == {'top1_error': 30.0}


FOREIGN = ['', '{"status": "fin', '[]', '{"id": 1}', '{"status": 1, "task": ""}', '[' * 100_000]
FOREIGN += ['{"status": "finished", "task": "", "history": []}']
_running = '{{"status": "running", "task": "", "history": [{}]}}'
ENTRIES = (
    '1',
    '{"epoch": "1"}',
    '{"metrics": 1}',
    '{"metrics": {"mAP": "0.2"}}',
    '{"seconds": null}',
)
FOREIGN += map(_running.format, ENTRIES)
FOREIGN += ['{"status": "running", "task": "", "features": {"rms": "0.4"}}']


@pytest.mark.parametrize('text', FOREIGN)
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / 'run.json').write_text(text)
    with pytest.raises(UserError, match=r'run\.json is not the record of a run'):
        read_record(tmp_path / 'run.json')


def test_a_record_that_lacks_a_part_is_named_where_that_is_read(tmp_path: Path) -> None:
    (tmp_path / 'run.json').write_text('{"status": "", "task": "", "data": {"train": {}}}')
    record = read_record(tmp_path / 'run.json')
    with pytest.raises(UserError, match=r"run\.json has no 'count'"):
        record['data']['train']['count']


def test_a_record_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / 'run.json').write_text('{"status": "running", "task": ""}', encoding='utf-8-sig')
    assert read_record(tmp_path / 'run.json')['status'] == 'running'


@pytest.mark.parametrize(
    ('metric', 'epoch'), [('top1_error', 2), ('mAP', 1), ('mIoU', 1), ('top1_accuracy', 1)]
)
def test_which_way_is_better(metric: str, epoch: int) -> None:
    """Lower is better for errors alone; of equal epochs the first is the best."""
    values = enumerate((2.0, 1.0, 2.0, 1.0), start=1)
    history = [{'epoch': e, 'generation': 1, 'metrics': {metric: value}} for e, value in values]
    (row,) = summarise(history, metric)
    assert row['best_epoch'] == epoch


def test_a_record_of_a_later_version_is_refused_by_its_line(tmp_path: Path) -> None:
    lines = [
        json.dumps({'format': version, 'status': 'finished', 'task': 'detection'})
        for version in (FORMAT, FORMAT + 1)
    ]
    (tmp_path / 'set.jsonl').write_text('\n'.join(lines))
    with pytest.raises(UserError, match=rf'^line 2 of .*set\.jsonl has format {FORMAT + 1}'):
        read_records(tmp_path / 'set.jsonl')
    with pytest.raises(UserError, match=r'No folder or file .*nowhere'):
        read_records(tmp_path / 'nowhere')


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    """As editors leave them, and `cat` of several files."""
    line = json.dumps({'format': FORMAT, 'status': 'running', 'task': 'detection'})
    (tmp_path / 'set.jsonl').write_text(f'{line}\n\n{line}\n \n')
    assert len(read_records(tmp_path / 'set.jsonl')) == 2
    (tmp_path / 'set.jsonl').write_text(f'{line}\n\n{{}}\n')
    with pytest.raises(UserError, match=r'^line 3 of .*set\.jsonl is not the record'):
        read_records(tmp_path / 'set.jsonl')


def test_committed_records_stay_readable() -> None:
    files = sorted(ROOT.glob('configs/**/results/*.jsonl'))
    assert files
    for path in files:
        for record in read_records(path):
            assert record['status'] in ('finished', 'running')  # Table 3 shows both
            assert record['history'][-1]['epoch'] == record['generations'][-1]['last_epoch']
            assert isinstance(record['identity']['randomness']['seed'], int)


def test_a_record_is_replaced_and_not_written_over(train: Callable, tmp_path: Path) -> None:
    """A kill while it is written leaves the record of before."""
    runner = train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    os.link(tmp_path / 'run.json', tmp_path / 'before')
    before = (tmp_path / 'before').read_bytes()
    runner.call_hook('after_train')
    assert (tmp_path / 'before').read_bytes() == before != (tmp_path / 'run.json').read_bytes()


def test_seconds_are_those_of_one_iteration(train: Callable, tmp_path: Path) -> None:
    train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    (entry,) = read_record(tmp_path / 'run.json')['history']
    # All iterations of so short an epoch are timed together.
    assert entry['iterations'] * entry['seconds_per_iter'] == pytest.approx(entry['seconds'])


def test_linked_runs_are_read_once_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    """As of runs on a scratch disk; ``Path.rglob`` leaves out linked folders in silence."""
    for name in 'ab':
        (tmp_path / 'scratch' / name).mkdir(parents=True)
        text = json.dumps({'status': 'running', 'task': 'x', 'config': name})
        (tmp_path / 'scratch' / name / 'run.json').write_text(text)
    runs = tmp_path / 'runs'
    runs.mkdir()
    (runs / 'first').symlink_to(tmp_path / 'scratch/b')
    (runs / 'all').symlink_to(tmp_path / 'scratch')
    (tmp_path / 'scratch/loop').symlink_to(tmp_path / 'scratch')
    assert [record['config'] for record in read_records(runs)] == ['a', 'b']
    (tmp_path / 'scratch/b/run.json').rename(tmp_path / 'moved')
    (tmp_path / 'scratch/b/run.json').symlink_to('gone.json')
    with pytest.raises(UserError, match=r'b/run\.json is a link to gone\.json, which does not exi'):
        read_records(runs)


def test_a_folder_of_runs_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = PermissionError(errno.EACCES, 'Permission denied', 'runs/closed')
    monkeypatch.setattr(os, 'scandir', Mock(side_effect=closed))
    with pytest.raises(UserError, match=r'runs/closed cannot be read \(Permission denied\): give'):
        read_records(tmp_path)


def test_a_metric_of_an_unknown_unit_is_refused(tiny_config: Callable, tmp_path: Path) -> None:
    """A fraction, such as mmdet's bbox_mAP, would be shown as if it were in percent."""
    assert factor_to_percent('mAP') == 100
    assert factor_to_percent('mIoU') == 1
    message = r'paper\.metric is bbox_mAP: set it to one of mAP, mIoU'
    with pytest.raises(UserError, match=message):
        factor_to_percent('bbox_mAP')
    config = tiny_config('bl', tmp_path, 'paper.metric=bbox_mAP')
    with pytest.raises(UserError, match=message):  # before it trains
        Runner.from_cfg(config).train()
    assert not (tmp_path / 'run.json').exists()
