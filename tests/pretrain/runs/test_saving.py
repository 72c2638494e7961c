"""Stopped at any iteration and resumed, a run is bit for bit the run that was never stopped."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pretrain.runs import saving
from pretrain.runs.checkpoint import checkpoints
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_record
from pretrain.runs.saving import SHARE  # before conftest.py replaces it
from tests.stopping import Signal, assert_same_run

pytestmark = pytest.mark.faults


@pytest.fixture
def stopped(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """``stopped(work_dir, where, 'key=value', ...)``: an SD run that is stopped and resumed."""

    def run(name: str, stops: list[dict], *options: str) -> Path:
        work_dir = tmp_path / name
        for session, stop in enumerate([*stops, None]):
            received = []
            monkeypatch.setattr(saving, '_received', received)
            config = tiny_config('sd', work_dir, *options)
            config.default_hooks.logger.interval = 3  # which puts off what it shows
            config.experiment_name += f'-{session}'
            if found := checkpoints(work_dir):
                config.load_from, config.resume = str(found[-1]), True
            runner = Runner.from_cfg(config)
            if stop is None:
                runner.train()
            else:
                runner.register_hook(Signal(received, **stop))
                with pytest.raises(SystemExit) as ended:
                    runner.train()
                assert ended.value.code == saving.EXIT_CODES[stop['number']]
            end_workers(runner)
        return work_dir

    return run


def end_workers(runner: Runner) -> None:
    """Each would hold up a later test by 5 s: torch cannot end the workers of a loader that the
    garbage collector finds in a reference cycle, and waits for them in vain."""
    for loader in (runner.train_dataloader, runner.val_dataloader):
        if loader.num_workers and (batches := loader._iterator):
            batches._shutdown_workers()


def test_a_stop_changes_nothing(stopped: Callable[..., Path]) -> None:
    """Three epochs of four iterations; the teacher is handed over after the first."""
    stops = [
        dict(at=1, number=signal.SIGTERM),
        dict(at=4, number=signal.SIGUSR1),  # the end of a mini-generation
        dict(at=5, number=signal.SIGHUP),  # the first iteration with a teacher
        dict(at=7, number=signal.SIGTERM),
        dict(at=8, number=signal.SIGINT),  # the end of an epoch
        dict(at=1, epoch=2, number=signal.SIGUSR1),  # within its validation
    ]
    whole, cut = stopped('whole', []), stopped('cut', stops)
    assert_same_run(whole, cut, 'epoch_3.pth')
    assert_same_run(whole, cut, 'snapshot_1.pth')
    assert read_record(cut / 'run.json')['sessions'] == len(stops) + 1
    workers = ('train_dataloader.num_workers=2', 'val_dataloader.num_workers=1')
    with_workers = stopped('workers', [dict(at=6, number=signal.SIGTERM)], *workers)
    assert_same_run(whole, with_workers, 'epoch_3.pth')


class TellsAll(Hook):
    """Sends SIGTERM to the loaders' workers from another process, as a scheduler does, and then to
    the run."""

    def __init__(self) -> None:
        self.others = multiprocessing.active_children()  # of tests before this one

    def before_train_iter(self, runner: Runner, **_: Any) -> None:
        self.workers = [w for w in multiprocessing.active_children() if w not in self.others]
        subprocess.run(['kill', '-TERM', *(str(worker.pid) for worker in self.workers)], check=True)
        time.sleep(0.2)  # for torch to miss a worker
        saving._received.append(signal.SIGTERM)


def test_a_run_outlives_a_signal_to_all_its_processes(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, '_received', [])
    config = tiny_config(
        'bl', tmp_path, 'algorithm.generations=1', 'train_dataloader.num_workers=1'
    )
    runner = Runner.from_cfg(config)
    runner.register_hook(told := TellsAll())
    with pytest.raises(SystemExit) as ended:
        runner.train()
    assert ended.value.code == 143
    assert [path.name for path in checkpoints(tmp_path)] == ['epoch_0_iter_1.pth']
    (worker,) = told.workers
    worker.terminate()  # from its parent
    worker.join(20)
    assert worker.exitcode == 0
    for loader in (runner.train_dataloader, runner.val_dataloader):
        assert loader.worker_init_fn.func is saving._start_worker


def test_a_run_saves_by_the_clock_and_keeps_two(tiny_config: Callable, tmp_path: Path) -> None:
    """Every iteration is late here. Another run's file and a lost part are not checkpoints."""
    for name in ('.epoch_9.pth.part', 'epoch_best.pth'):
        (tmp_path / name).write_text('')
    runner = Runner.from_cfg(
        tiny_config('bl', tmp_path, 'default_hooks.checkpoint.minutes=0', 'algorithm.generations=1')
    )
    seen = []

    class Look(Hook):
        priority = 'HIGHEST'

        def before_train_iter(self, runner: Runner, **_: Any) -> None:
            seen.append([path.stem for path in checkpoints(tmp_path)])

    runner.register_hook(Look())
    runner.train()
    assert seen[:4] == [
        [],
        ['epoch_0_iter_1'],
        ['epoch_0_iter_1', 'epoch_0_iter_2'],
        ['epoch_0_iter_2', 'epoch_0_iter_3'],
    ]
    assert seen[4] == ['epoch_0_iter_4', 'epoch_1']
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} >= {'epoch_best.pth'}
    assert not list(tmp_path.glob('.*.part'))


def test_a_run_keeps_the_checkpoint_that_it_resumed_from_beside_its_next(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder that is named from the working directory, as work_dirs/ is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saving, '_received', [signal.SIGTERM])
    for iteration in (1, 2):
        config = tiny_config('bl', Path('run'), 'algorithm.generations=1')
        config.experiment_name += f'-{iteration}'
        if found := checkpoints(Path('run')):
            config.load_from, config.resume = str(found[-1]), True
        with pytest.raises(SystemExit):
            Runner.from_cfg(config).train()
    kept = [path.name for path in checkpoints(Path('run'))]
    assert kept == ['epoch_0_iter_1.pth', 'epoch_0_iter_2.pth']


def test_ends_of_epochs_are_left_out_where_saving_takes_long(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch of four iterations takes 40 seconds and a checkpoint 1, which may be 1 %."""
    now, saved, save = [0.0], [], saving.save

    def slow_save(runner: Runner, name: str, done: dict[str, int]) -> Path:
        now[0] += 1
        saved.append(name)
        return save(runner, name, done)

    class Pass(Hook):
        def before_train_iter(self, runner: Runner, **_: Any) -> None:
            now[0] += 10

    monkeypatch.setattr(saving, 'time', SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(saving, 'save', slow_save)
    monkeypatch.setattr(saving, 'SHARE', SHARE)
    runner = Runner.from_cfg(tiny_config('bl', tmp_path, 'epochs=8', 'algorithm.generations=1'))
    runner.register_hook(Pass())
    runner.train()
    assert saved == [f'epoch_{epoch}.pth' for epoch in (1, 4, 7, 8)]


def test_an_epoch_that_is_not_saved_is_not_lost_by_a_stop_in_its_validation(
    stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next iteration saves it."""
    monkeypatch.setattr(saving, 'SHARE', 0.0)
    whole = stopped('whole', [])
    cut = stopped('cut', [dict(at=1, epoch=2, number=signal.SIGTERM)])
    assert [path.name for path in checkpoints(cut)] == ['epoch_2_iter_1.pth', 'epoch_3.pth']
    assert_same_run(whole, cut, 'epoch_3.pth')


def test_the_old_checkpoint_stays_until_the_new_one_is_read_back(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / 'epoch_3.pth'
    monkeypatch.setattr(saving, 'is_whole', lambda path: path != damaged)
    runner = Runner.from_cfg(tiny_config('bl', tmp_path, 'algorithm.generations=1'))
    with pytest.raises(UserError, match=r'epoch_3\.pth cannot be read back'):
        runner.train()
    assert {'epoch_1.pth', 'epoch_2.pth'} <= {path.name for path in checkpoints(tmp_path)}


def test_all_processes_end_when_the_main_one_cannot_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one would go on without a checkpoint, and wait for the main one in vain."""
    monkeypatch.setattr(saving, 'is_main_process', lambda: False)
    monkeypatch.setattr(saving, 'broadcast_object_list', lambda told: told.__setitem__(0, True))
    runner = SimpleNamespace(work_dir=str(tmp_path), save_checkpoint=lambda *_, **__: None)
    with pytest.raises(SystemExit) as ended:
        saving.save(runner, 'epoch_1.pth', {'epoch': 1, 'iter': 4})
    assert ended.value.code == 1


def test_processes_stop_by_one_signal_at_one_iteration() -> None:
    """Each learns of all requests at the next iteration, or at once where all wait."""
    store = torch.distributed.HashStore()
    requests = [[[0, 1], [15, 0], [0, 0], [10, 0]], [[0, 0], [15, 0], [0, 0], [15, 1]]]

    def process(rank: int) -> list[list[int]]:
        group = saving._Requests(torch.distributed.ProcessGroupGloo(store, rank, 2))
        answers = [group.exchange(request) for request in requests[rank][:3]]
        return [*answers, group.settle(), group.exchange(requests[rank][3], wait=True)]

    with ThreadPoolExecutor(2) as pool:
        for answers in pool.map(process, range(2)):
            assert answers == [[0, 0], [0, 1], [15, 0], [0, 0], [15, 1]]


def test_processes_stop_after_one_batch_of_a_validation() -> None:
    """Even if one has a batch more. A process that stopped alone would let the others wait where
    all collect the results."""
    store = torch.distributed.HashStore()
    signals = [[0, 15, 15, 15], [0, 0, 0]]  # that each has received by its batches

    def process(rank: int) -> int:
        hook = saving.SaveHook()
        group = torch.distributed.ProcessGroupGloo(store, rank, 2)
        hook.requests = saving._Requests(group)
        hook.val_batches = saving._least(len(signals[rank]), group)
        for batch, number in enumerate(signals[rank]):
            hook._request = lambda number=number: [number, 1]
            with contextlib.suppress(SystemExit):
                hook.after_val_iter(Mock(), batch)
                continue
            return batch
        return -1

    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(process, range(2))] == [2, 2]
    signals[0] = [0, 0, 0, 15]  # in the batch that only one has
    store = torch.distributed.HashStore()
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(process, range(2))] == [-1, -1]


def test_each_process_gets_its_own_statistics_back(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two averages they are of other images on each."""
    runner = Runner.from_cfg(tiny_config('bl', tmp_path, 'algorithm.generations=1'))
    hook = next(hook for hook in runner.hooks if isinstance(hook, saving.SaveHook))
    hook.buffers = [{'student.1.running_mean': torch.full((8,), float(rank))} for rank in (5, 6)]
    runner.train_loop._iter = 2
    monkeypatch.setattr(saving, 'get_rank', lambda: 1)
    hook.before_train_epoch(runner)
    assert runner.model.student[1].running_mean.eq(6).all()


class Diverge(Hook):
    """The last update of epoch 2 gives a weight that is not finite, after a finite loss."""

    priority = 'NORMAL'

    def after_train_iter(self, runner: Runner, **_: Any) -> None:
        if runner.iter == 7:
            with torch.no_grad():
                next(runner.model.student.parameters())[0, 0, 0, 0] = float('inf')


def test_a_checkpoint_that_is_not_finite_is_not_written(
    tiny_config: Callable, tmp_path: Path
) -> None:
    runner = Runner.from_cfg(tiny_config('bl', tmp_path, 'algorithm.generations=1'))
    runner.register_hook(Diverge())
    with pytest.raises(UserError, match=r'student\.0\.weight is not finite after iteration 8'):
        runner.train()
    assert [path.name for path in checkpoints(tmp_path)] == ['epoch_1.pth']


@pytest.mark.parametrize('part', ['state_dict', 'optimizer', 'process_buffers', 'waiting_copies'])
def test_every_tensor_of_a_checkpoint_is_looked_at(part: str) -> None:
    held = {'a': torch.ones(2), 'b': [(1, {'c': torch.tensor([0.0, torch.nan])})]}
    checkpoint = {'meta': {'iter': 3}, 'state_dict': {}, part: held}
    with pytest.raises(UserError, match=rf'^{part}\.b\.0\.1\.c is not finite after iteration 3'):
        runner = SimpleNamespace(train_dataloader=[])
        saving.SaveHook().before_save_checkpoint(runner, checkpoint)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(disk)]
    if shutil.which('mount') is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('this user may not mount a disk')
    yield disk
    subprocess.run(['umount', '--lazy', disk], check=True)


def test_a_full_disk_loses_no_checkpoint(
    tiny_config: Callable, train: Callable, small_disk: Path, tmp_path: Path
) -> None:
    class Fill(Hook):
        def before_train_epoch(self, runner: Runner) -> None:
            if runner.epoch == 1:  # the log and the record have room left, a checkpoint has not
                room = shutil.disk_usage(small_disk).free - 2**14
                (small_disk / 'filler').write_bytes(bytes(room))

    config = tiny_config('bl', small_disk, 'algorithm.generations=1')
    runner = Runner.from_cfg(config)
    runner.register_hook(Fill())
    with pytest.raises(OSError, match='No space left on device') as error:
        runner.train()
    assert error.value.filename == str(small_disk / 'epoch_2.pth')
    assert [path.name for path in checkpoints(small_disk)] == ['epoch_1.pth']
    assert not list(small_disk.glob('.*.part'))

    (small_disk / 'filler').unlink()
    config.load_from, config.resume = str(small_disk / 'epoch_1.pth'), True
    config.experiment_name += '-resumed'
    Runner.from_cfg(config).train()
    train('bl', tmp_path / 'whole', 'algorithm.generations=1')
    assert_same_run(tmp_path / 'whole', small_disk, 'epoch_3.pth')


@pytest.mark.parametrize('harm', ['damaged', 'missing'])
def test_a_snapshot_that_is_needed_later_is_looked_at_before_training(
    harm: str, tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    train('sd', tmp_path)
    path = tmp_path / 'snapshot_1.pth'
    if harm == 'missing':
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    config = tiny_config('sd', tmp_path)
    config.load_from, config.resume = str(tmp_path / 'epoch_2.pth'), True
    config.experiment_name += '-resumed'
    with pytest.raises(UserError, match=rf'snapshot_1\.pth is {harm}, and the ensemble at the end'):
        Runner.from_cfg(config).train()


@pytest.fixture
def told() -> Iterator[None]:
    """This process takes signals as a run does."""
    before = {number: signal.getsignal(number) for number in saving.EXIT_CODES}
    saving.stop_on_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_noted(
    usual_signals: None, told: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = []
    monkeypatch.setattr(saving, '_received', received)
    for number in saving.EXIT_CODES:
        os.kill(os.getpid(), number)
    assert received == [*saving.EXIT_CODES]


def test_a_signal_that_nohup_ignores_stays_ignored(usual_signals: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    saving.stop_on_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is saving._receive


def test_workers_end_by_sigterm_and_leave_the_other_signals_to_the_run(told: None) -> None:
    """A pool that is thrown away waits for its workers: mmdet's evaluation would hang."""
    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
    worker.start()
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        os.kill(worker.pid, number)
    worker.join(0.5)
    assert worker.exitcode is None
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == -signal.SIGTERM


@pytest.mark.parametrize(('passed', 'due'), [(15 * 60 - 1, 0), (15 * 60 + 1, 1)])
def test_a_run_saves_every_fifteen_minutes(
    passed: int, due: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, '_received', [])
    monkeypatch.setattr(saving, 'time', SimpleNamespace(monotonic=lambda: passed))
    hook = saving.SaveHook()
    hook.saved_at = 0.0
    assert hook._request() == [0, due]
