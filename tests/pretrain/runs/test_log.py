"""The log shows what a user needs, costs the device nothing between its lines and does not grow."""

import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook, LoggerHook
from mmengine.logging import MessageHub
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.datasets import augmentation
from pretrain.runs import log, saving
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.cli import LOG_BACKENDS
from pretrain.runs.errors import UserError
from pretrain.runs.log import DeferredLogHook, QuietRunner, add_log_backends
from pretrain.runs.record import read_record

ONE = ('epochs=1', 'algorithm.generations=1')


class Operations(TorchDispatchMode):
    """The operations of a part of a run, by name, and the methods that read a tensor: of a tensor
    on the CPU, these are no operations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names = []
        self.active = False
        for name in ('cpu', 'numpy', 'tolist'):
            monkeypatch.setattr(torch.Tensor, name, self.noted(name))

    def noted(self, name: str) -> Callable:
        method = getattr(torch.Tensor, name)

        def call(*args: object, **kwargs: object) -> object:
            if self.active:
                self.names.append(name)
            return method(*args, **kwargs)

        return call

    def __enter__(self) -> 'Operations':
        self.active = True
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self.active = False
        super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.__name__.split('.')[0])
        return function(*args, **kwargs or {})


class Begin(Hook):
    """Counts the operations of iterations 2 to 11 of the second epoch, whose loss has a teacher;
    those of the loader, which has no worker here, are the host's own."""

    priority = 'HIGHEST'

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        if runner.epoch == 1 and 1 <= batch_idx < 11:
            self.operations.__enter__()


class End(Begin):
    priority = 'LOWEST'
    before_train_iter = Hook.before_train_iter

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: object) -> None:
        if runner.epoch == 1 and 1 <= batch_idx < 11:
            self.operations.__exit__(None, None, None)


def test_ten_iterations_read_nothing_from_the_device(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ('batch_size=2', 'epochs=2', 'algorithm.generations=2')
    runner = Runner.from_cfg(
        tiny_config('sd', tmp_path, *options, 'default_hooks.logger.interval=50')
    )
    operations = Operations(monkeypatch)
    runner.register_hook(Begin(operations))
    runner.register_hook(End(operations))
    runner.train()
    names = operations.names
    assert names.count('convolution_backward') == 10 * 2
    # A copy from the host's memory waits too, unless it is pinned as the batches are.
    waits = {'_local_scalar_dense', 'cpu', 'numpy', 'tolist', 'lift_fresh'}
    assert not waits.intersection(names)
    # But the log has its values.
    assert len(MessageHub.get_current_instance().get_scalar('train/kl').data[0]) == 16


def test_a_line_shows_the_means_of_its_epoch_alone(tiny_config: Callable, tmp_path: Path) -> None:
    """Else the loss of the first lines with a teacher would not be the sum of its parts."""
    options = ('default_hooks.logger.interval=3', 'log_processor.window_size=50')
    Runner.from_cfg(tiny_config('sd', tmp_path, *options)).train()
    (file,) = tmp_path.rglob('scalars.json')
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    taught = [line for line in lines if 'kl' in line]
    assert [line['step'] for line in taught] == [7, 11]
    for line in taught:
        parts = 1.5 * line['cross_entropy'] + line['kl']
        assert line['loss'] == pytest.approx(parts, rel=1e-6)  # sums of a few float32


def test_a_line_shows_the_images_of_all_processes(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config('bl', tmp_path, *ONE, 'default_hooks.logger.interval=4')
    config.train_dataloader.batch_size = 4  # the share of one of two
    Runner.from_cfg(config).train()
    (file,) = tmp_path.rglob('scalars.json')
    line = json.loads(file.read_text().splitlines()[0])
    assert line['images_per_second'] * line['time'] == pytest.approx(8)


def test_jitter_copies_its_weights_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images, factors = torch.rand(2, 3, 4, 4), torch.ones(2, 3)
    augmentation.jitter(images, factors)
    with Operations(monkeypatch) as operations:
        augmentation.jitter(images, factors)
    assert 'lift_fresh' not in operations.names
    assert '_to_copy' not in operations.names


def test_the_log_is_mmengines(tiny_config: Callable, tmp_path: Path) -> None:
    """The same values as with mmengine's own hook, which reads each at once."""
    lines = {}
    for name, hook in (('ours', 'DeferredLogHook'), ('theirs', 'RuntimeInfoHook')):
        config = tiny_config('sd', tmp_path / name, 'default_hooks.logger.interval=3')
        config.default_hooks.runtime_info.type = hook
        del config.default_hooks.ensemble
        Runner.from_cfg(config).train()
        (path,) = (tmp_path / name).glob('*/vis_data/scalars.json')
        dropped = ('time', 'data_time', 'images_per_second')
        text = path.read_text().replace('null', 'None')
        lines[name] = [
            {key: value for key, value in eval(line).items() if key not in dropped}
            for line in text.splitlines()
        ]
    assert any('kl' in line for line in lines['ours'])
    assert lines['ours'] == lines['theirs']


def test_buffers_and_checkpoints_do_not_grow(tiny_config: Callable, tmp_path: Path) -> None:
    options = ('batch_size=2', 'epochs=6', 'algorithm.generations=1')
    config = tiny_config(
        'bl', tmp_path, *options, 'log_processor.window_size=20', 'keep_epochs=[3, 6]'
    )
    runner = Runner.from_cfg(config)
    runner.train()
    buffers = runner.message_hub.log_scalars
    assert {'train/loss', 'train/lr', 'train/time', 'train/data_time'} <= buffers.keys()
    assert {name: n for name, b in buffers.items() if (n := len(b.data[0])) > 20} == {}
    sizes = [(tmp_path / f'kept_{epoch}.pth').stat().st_size for epoch in (3, 6)]
    # Three validations more. Unbounded, each of five buffers would have grown by 48 values and 48
    # counts of 8 bytes.
    assert abs(sizes[1] - sizes[0]) < 2 * 48 * 8


class Poison(Hook):
    """Makes the loss of one iteration NaN, and asks for a checkpoint right after it."""

    def __init__(self, batch_idx: int, save: bool, received: list[int]) -> None:
        self.batch_idx = batch_idx
        self.save = save
        self.received = received

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        if batch_idx == self.batch_idx:
            with torch.no_grad():
                runner.model.student[0].weight.fill_(float('nan'))

    def after_train_iter(self, runner: Runner, batch_idx: int, **_: object) -> None:
        if self.save and batch_idx == self.batch_idx:
            self.received.append(signal.SIGTERM)


@pytest.mark.parametrize('save', [False, True])
def test_loss_is_checked_before_a_checkpoint_and_its_iteration_named(
    save: bool, tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = []
    monkeypatch.setattr(saving, '_received', received)
    runner = Runner.from_cfg(tiny_config('bl', tmp_path, *ONE))
    runner.register_hook(Poison(2, save, received))
    shown = r'The loss is nan at epoch 1, iteration 3 \(lr 0\.01.*class\d/\d\.png, class'
    with pytest.raises(UserError, match=shown) as error:
        runner.train()
    # The third batch of eight, in the order of the epoch.
    loader = runner.train_dataloader
    files, order = loader.dataset.file_list(), [index for _, index in loader.sampler]
    assert ', '.join(files[index] for index in order[16:24]) in str(error.value)
    assert not list(tmp_path.glob('*.pth'))


def test_peak_memory_is_trainings_though_the_log_resets_it(monkeypatch) -> None:
    """CUDA's counter, which LogProcessor resets at each line and validation raises."""
    memory = {'peak': 0}

    def reset() -> None:
        memory['peak'] = 0

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: memory['peak'] * 2**20)
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', reset)
    monkeypatch.setattr(log, 'flush_is_due', lambda *_: True)
    runner = SimpleNamespace(
        epoch=0,
        message_hub=MessageHub('peak'),
        log_processor=SimpleNamespace(window_size=50),
        val_dataloader=[None],
        hooks=[LoggerHook(interval=50)],
    )
    hook = DeferredLogHook()
    hook.waiting = []
    for needed in (300, 500, 400):
        memory['peak'] = max(memory['peak'], needed)
        hook.after_train_iter(runner, 0, outputs={'loss': torch.ones(())})
        reset()  # as LoggerHook does after it
    memory['peak'] = 9000  # validation
    hook.before_train_epoch(runner)
    memory['peak'] = max(memory['peak'], 450)
    hook.after_train_iter(runner, 0, outputs={'loss': torch.ones(())})
    assert runner.message_hub.get_info('peak_memory_mb') == 500


class Breaks(Hook):
    """Makes the loss of iteration ``at`` infinite."""

    priority = 'HIGHEST'

    def __init__(self, at: int) -> None:
        self.at = at

    def before_train_iter(self, runner: Runner, **_: object) -> None:
        if runner.iter + 1 == self.at:
            next(runner.model.student.parameters()).data.fill_(math.inf)


def test_a_loss_is_named_wherever_it_was_in_a_line(tiny_config: Callable, tmp_path: Path) -> None:
    """Lines further apart than the window of the log; epoch 1 ends with a short one."""
    settings = 'epochs=2', 'algorithm.generations=1', 'batch_size=2'
    settings += 'log_processor.window_size=2', 'default_hooks.logger.interval=12'
    runner = Runner.from_cfg(tiny_config('bl', tmp_path, *settings))
    runner.register_hook(Breaks(17))  # of 2 times 16
    with pytest.raises(UserError, match=r'epoch 2, iteration 1 \(lr 0\.'):
        runner.train()


def test_record_counts_every_iteration_between_the_lines(
    tiny_config: Callable, tmp_path: Path
) -> None:
    config = tiny_config('bl', tmp_path, *ONE, 'batch_size=2', 'default_hooks.logger.interval=5')
    Runner.from_cfg(config).train()
    (entry,) = read_record(tmp_path / 'run.json')['history']
    assert entry['iterations'] == 16
    assert 0 < entry['seconds_per_iter'] < entry['seconds']
    assert read_record(tmp_path / 'run.json')['peak_memory_mb'] > 10
    assert load_from_disk(tmp_path / 'epoch_1.pth')['message_hub']['runtime_info']['peak_memory_mb']


def test_the_screen_shows_lines_and_the_file_everything(
    tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny_config('sd', tmp_path, 'epochs=2', 'algorithm.generations=2')
    config.default_hooks.logger.interval = 2
    QuietRunner.from_cfg(config).train()
    screen = re.sub(r'\x1b\[\d*m', '', capsys.readouterr().out).splitlines()
    first = next(n for n, line in enumerate(screen) if 'Epoch(train)' in line)
    assert first < 6
    number = r'[\d.:e+-]+'
    parts = ('lr', 'eta', 'images/s', 'time', 'data_time', 'loss')
    line = '  '.join(f'{part}: {number}' for part in parts)
    assert re.search(rf'\[1\]\[2/4\]  {line}  error: {number}$', screen[first])
    (log,) = tmp_path.glob('*/*.log')
    written = log.read_text()
    for dump in ('System environment:', 'Config:', 'Hooks will be executed'):
        assert dump in written
        assert not any(dump in line for line in screen)
    assert all('mmengine - ' in line for line in screen)


def test_the_copy_of_the_config_is_whole_or_as_before(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = QuietRunner.from_cfg(tiny_config('bl', tmp_path))
    (copy,) = tmp_path.glob('*.py')
    before = copy.read_text()
    assert Config.fromfile(copy).identity == runner.cfg.identity

    def fail(*_: object) -> None:
        raise OSError(28, 'no space')

    monkeypatch.setattr('os.replace', fail)
    monkeypatch.setattr('pathlib.Path.replace', fail)
    with pytest.raises(OSError, match='no space'):
        runner.dump_config()
    assert copy.read_text() == before


def test_a_run_whose_screen_is_gone_goes_on_with_its_log_file(
    tiny_config: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """As before ``| head -1``."""
    reader, writer = os.pipe()
    with os.fdopen(writer, 'w') as stdout:
        monkeypatch.setattr('sys.stdout', stdout)
        runner = QuietRunner.from_cfg(tiny_config('bl', tmp_path))
        os.close(reader)
        runner.train()
    assert capsys.readouterr().err == ''
    (log,) = tmp_path.glob('*/*.log')
    assert 'Epoch(val) [1]' in log.read_text()


def test_the_line_shows_means_of_training_and_the_last_of_validation(tiny_config: Callable) -> None:
    pattern = re.compile(tiny_config('bl', Path('x')).log_processor.mean_pattern)
    for name in ('loss', 'cross_entropy', 'kl', 'error', 'decode.acc_seg', 'acc', 'time'):
        assert pattern.search(name), name
    for name in ('lr', 'top1_error', 'pascal_voc/mAP', 'mIoU', 'aAcc'):
        assert not pattern.search(name), name


@pytest.mark.parametrize('program', LOG_BACKENDS)
def test_other_programs_show_the_curves(
    program: str, tiny_config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config('bl', Path('x'))
    monkeypatch.setattr(log, 'find_spec', lambda _: None)
    with pytest.raises(UserError, match=f'--log {program} needs a package: pip install {program}'):
        add_log_backends(config, [program])
    monkeypatch.setattr(log, 'find_spec', lambda _: 'found')
    add_log_backends(config, [program])
    local, more = config.visualizer.vis_backends
    assert local['type'] == 'LocalVisBackend'
    assert VISBACKENDS.get(more['type'])
    assert 'visualizer' not in config.identity
