"""Where a run may begin, where it goes on, and how its processes start."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.registry import HOOKS, LOOPS, MODELS, RUNNERS
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

import pretrain
from pretrain.runs import saving, start
from pretrain.runs.checkpoint import AtomicLocalBackend, install, load_from_disk
from pretrain.runs.errors import UserError
from pretrain.runs.start import check_alone, check_writable, claim, is_launched


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[int]:
    """The id of a process that holds ``tmp_path`` and has a child, as a loader's worker is one.
    The child outlives it until the test ends."""
    ready, tell = os.pipe()
    end, test_runs = os.pipe()
    if not (pid := os.fork()):
        try:
            os.close(test_runs)
            lock = claim(tmp_path)
            if os.fork():
                os.write(tell, b'.')
            os.read(end, 1)
            lock.close()
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(ready, 1), 'the holder failed'
    yield pid
    os.close(test_runs)


@pytest.mark.faults
def test_a_folder_has_one_run(holder: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f'in use by process {holder} on '):
        claim(tmp_path)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with claim(tmp_path) as lock:
        assert Path(lock.name).read_text().startswith(f'process {os.getpid()} on ')


LAUNCHED = dict(
    RANK='3', LOCAL_RANK='1', WORLD_SIZE='4', MASTER_ADDR='127.0.0.1', MASTER_PORT='29500'
)


@pytest.mark.parametrize(
    ('environment', 'expected'),
    [
        (LAUNCHED, True),
        ({}, False),
        ({'WORLD_SIZE': ''}, False),
        ({'WORLD_SIZE': '1', 'RANK': '0'}, False),
        ({'LOCAL_RANK': '0'}, False),
        ({'SLURM_JOB_ID': '1', 'SLURM_PROCID': '0', 'SLURM_NTASKS': '8'}, False),  # a batch script
        ({'OMPI_COMM_WORLD_SIZE': '1', 'OMPI_COMM_WORLD_RANK': '0'}, False),
        ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '0'}, 'OMPI_COMM_WORLD_SIZE=2'),
        (LAUNCHED | {'LOCAL_RANK': ''}, 'has WORLD_SIZE=4 but lacks LOCAL_RANK: '),
    ],
)
def test_what_launchers_tell(
    environment: dict[str, str], expected: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*LAUNCHED, 'OMPI_COMM_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_launched() is (expected is True)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            check_alone()
    elif not expected:
        check_alone()


@pytest.mark.parametrize('leftover', LAUNCHED)
def test_a_leftover_of_a_launcher_does_not_make_one_process_of_two(
    leftover: str, tiny_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(leftover, LAUNCHED[leftover])
    started = []
    monkeypatch.setattr(start, 'start_processes', lambda _, count, nodes: started.append(count))
    monkeypatch.setattr(start, 'check_processes', lambda _: None)
    command = ['start.py', str(tiny_file('bl', generations=1)), '--gpus', '2']
    monkeypatch.setattr(sys, 'argv', [*command, '--work-dir', str(tmp_path / 'run')])
    start.main()
    assert started == [2]


@pytest.mark.faults
def test_where_a_run_can_be_written(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    check_writable(tmp_path / 'new/folder')
    assert [path.name for path in tmp_path.iterdir()] == ['file']
    link = tmp_path / 'link'
    link.symlink_to('gone')  # as to a scratch disk that was emptied
    for place in (
        tmp_path / 'file',
        tmp_path / 'file/below',
        Path('/proc/nowhere'),
        link,
        link / 'x',
    ):
        with pytest.raises(UserError, match=f'No run can be written to {place}'):
            check_writable(place)


@pytest.mark.parametrize(
    ('arguments', 'environment'),
    [([], {}), (['--gpus', '1'], {}), (['--check'], {}), ([], LAUNCHED)],
)
def test_gpus_that_cannot_be_used_are_no_cpu_run(
    arguments: list[str],
    environment: dict[str, str],
    tiny_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    command = ['start.py', str(tiny_file('bl')), '--work-dir', str(tmp_path / 'run'), *arguments]
    monkeypatch.setattr(sys, 'argv', command)
    with pytest.raises(UserError, match='has 8 GPUs, but torch'):
        start.main()


def test_a_check_says_that_the_run_is_possible_and_leaves_nothing(
    tiny_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = tiny_file('bl')
    command = ['start.py', str(config), '--work-dir', str(tmp_path / 'run'), '--check']
    monkeypatch.setattr(sys, 'argv', command)
    start.main()
    assert f'{config}: the settings and the data allow this run.' in capsys.readouterr().out
    assert not (tmp_path / 'run').exists()


def test_processes_of_another_launcher_are_not_ignored(
    tiny_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables that are left in a shell, for example."""
    for name, value in (LAUNCHED | {'LOCAL_WORLD_SIZE': '1'}).items():
        monkeypatch.setenv(name, value)
    command = ['start.py', str(tiny_file('bl')), '--work-dir', str(tmp_path), '--gpus', '2']
    monkeypatch.setattr(sys, 'argv', command)
    with pytest.raises(UserError, match=r'--gpus 2, but RANK, .* by a launcher of 1: unset them'):
        start.main()


@pytest.mark.parametrize(
    ('arguments', 'processes'),
    [([], 1), (['--gpus', '1'], 1), (['--gpus', '1', '--check', '64'], 64)],
)
def test_a_check_is_of_the_processes_that_it_names(
    arguments: list[str],
    processes: int,
    tiny_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = []
    monkeypatch.setattr(start, 'check_processes', counted.append)
    monkeypatch.setattr(start, 'prepare', lambda config, count: counted.append(count) or config)
    monkeypatch.setattr(start, 'choose_start', lambda *_: False)
    arguments = arguments if '--check' in arguments else ['--check', *arguments]
    command = ['start.py', str(tiny_file('bl')), '--work-dir', str(tmp_path / 'run'), *arguments]
    monkeypatch.setattr(sys, 'argv', command)
    start.main()
    assert counted == [processes, processes]


def test_a_process_takes_what_the_first_of_its_node_and_the_first_of_all_decide(
    tf32: None, tiny_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at no data, and not at the folder, of which another node may see an older state."""
    path = tiny_file('bl')
    prepared = start.prepare(start.load_config(path), 4)
    prepared.work_dir = str(tmp_path / 'run')
    chosen = True, 'elsewhere/epoch_7.pth', True, ['a change']
    decisions = {2: [prepared], 0: [chosen, prepared.identity.to_dict()], 3: [None]}
    built = []

    class Decided(start.Processes):
        def decided_by(self, leader: int, decide: object) -> object:
            return decisions[leader].pop()

    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(start.Processes, 'of_launcher', lambda: Decided(3, 4))
    monkeypatch.setattr(torch.distributed, 'init_process_group', built.append)
    monkeypatch.setattr(RUNNERS, 'build', lambda config: built.append(config) or Mock())
    for name in ('end_with_launcher', 'stop_on_signals'):
        monkeypatch.setattr(start, name, lambda: None)
    monkeypatch.setattr(sys, 'argv', ['start.py', str(path), '--work-dir', str(tmp_path / 'run')])
    start.main()
    backend, config = built
    assert backend == 'gloo'
    assert (config.load_from, config.resume) == ('elsewhere/epoch_7.pth', True)
    assert config.accepted_changes == ['a change']
    assert config.model_wrapper_cfg.type == 'MMDistributedDataParallel'
    assert not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


def test_a_single_process_needs_no_ddp(
    tf32: None, tiny_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if torchrun started it, as `tools/dist_train.sh CONFIG 1` does: DDP and a CUDA graph do
    not go together."""
    built = []
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(start.Processes, 'of_launcher', start.Processes)
    monkeypatch.setattr(torch.distributed, 'init_process_group', built.append)
    monkeypatch.setattr(RUNNERS, 'build', lambda config: built.append(config) or Mock())
    for name in ('end_with_launcher', 'stop_on_signals'):
        monkeypatch.setattr(start, name, lambda: None)
    command = ['start.py', str(tiny_file('bl')), '--work-dir', str(tmp_path / 'run')]
    monkeypatch.setattr(sys, 'argv', command)
    start.main()
    (config,) = built
    assert config.launcher == 'none'


def test_nodes_with_other_images_or_gpus_do_not_train_together() -> None:
    """None waits for another that has refused."""
    first = {'precision': 'float32', 'data': {'train': 'ab' * 32}}

    def agree(second: dict) -> list[str]:
        store = torch.distributed.HashStore()

        def node(rank: int) -> str:
            check = partial(start.check_node, first, (first, second)[rank])
            try:
                return str(start.Processes(rank, 2, store).decided_by(rank, check))
            except UserError as error:
                return str(error)

        with ThreadPoolExecutor(2) as pool:
            return [*pool.map(node, range(2))]

    assert agree(dict(first)) == ['None', 'None']
    for key, said in (
        ('precision', 'precision=float32, but this one has x.'),
        ('data', 'data=.*abababab'),
    ):
        for told in agree(first | {key: 'x'}):
            assert re.search(rf'differs from the first node: that one has {said}', told)


def test_a_run_holds_its_folder_while_it_trains(
    usual_signals: None,
    tiny_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, codes = tmp_path / 'run', []

    def train() -> None:
        if not (pid := os.fork()):  # another process, which wants to train there too
            try:
                claim(folder)
            except UserError:
                os._exit(7)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    monkeypatch.setattr(RUNNERS, 'build', lambda _: Mock(train=train))
    command = ['start.py', str(tiny_file('bl', generations=1)), '--work-dir', str(folder)]
    monkeypatch.setattr(sys, 'argv', command)
    start.main()
    assert codes == [7]


def test_a_run_reads_and_writes_checkpoints_in_our_way(
    usual_signals: None,
    tiny_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """mmengine's own would run what a checkpoint carries, and leave half of one on a full disk."""
    monkeypatch.setattr(RUNNERS, 'build', lambda _: Mock())
    command = ['start.py', str(tiny_file('bl', generations=1)), '--work-dir', str(tmp_path / 'run')]
    monkeypatch.setattr(sys, 'argv', command)
    register_backend('local', LocalBackend, force=True, prefixes='')
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    try:
        start.main()
        assert CheckpointLoader._get_checkpoint_loader('a.pth') is load_from_disk
        assert isinstance(get_file_backend('a.pth'), AtomicLocalBackend)
    finally:
        install()


def test_settings_are_checked_for_the_processes_of_all_nodes(
    tiny_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    monkeypatch.setenv('NNODES', '3')
    monkeypatch.setattr(start, 'check_processes', lambda _: None)
    monkeypatch.setattr(start, 'prepare', lambda _, count: sys.exit(counts.append(count)))
    command = ['start.py', str(tiny_file('bl')), '--gpus', '2', '--work-dir', str(tmp_path / 'run')]
    monkeypatch.setattr(sys, 'argv', command)
    with pytest.raises(SystemExit):
        start.main()
    assert counts == [2 * 3]


def test_the_place_is_looked_at_before_the_data(
    tiny_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ['start.py', str(tiny_file('bl', generations=1)), '--work-dir', '/proc/nowhere']
    monkeypatch.setattr(sys, 'argv', [*command, '--cfg-options', 'data_root=/nowhere'])
    with pytest.raises(UserError, match='No run can be written to /proc/nowhere'):
        start.main()


def test_a_run_goes_on_where_it_left_its_config_or_says_that_it_begins(
    tiny_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    places = []
    monkeypatch.setattr(start, '_train', lambda config, *_: places.append(config.work_dir))
    config, moved = tiny_file('bl', generations=1), tmp_path / 'moved/seed0'
    moved.mkdir(parents=True)
    (moved / 'run.json').touch()
    shutil.copy(config, moved / 'tiny.py')
    lost = tmp_path / 'lost'
    lost.mkdir()
    (lost / 'epoch_1.pth').touch()
    for arguments, place, anew in (
        ([str(config)], Path('work_dirs') / config.stem, False),
        ([str(config), '--resume'], Path('work_dirs') / config.stem, True),
        (
            [str(config), '--resume', '--start-from', 'snapshot_1.pth'],
            Path('work_dirs') / config.stem,
            False,
        ),
        ([str(moved / 'tiny.py'), '--resume'], moved, False),
        # It is refused: its run.json is lost.
        ([str(config), '--resume', '--work-dir', str(lost)], lost, False),
        (
            [str(moved / 'tiny.py'), '--work-dir', str(tmp_path / 'other')],
            tmp_path / 'other',
            False,
        ),
    ):
        monkeypatch.setattr(sys, 'argv', ['start.py', *arguments])
        start.main()
        assert places.pop() == str(place)
        assert ('a new one begins' in capsys.readouterr().out) == anew


@pytest.mark.parametrize('of_the_run', [False, True])
def test_a_finished_run_is_told_so_and_left_alone(
    of_the_run: bool,
    usual_signals: None,
    tiny_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """By the config that it was started with, and by the prepared one that lies in its folder."""
    config, folder = tiny_file('se', generations=2), tmp_path / 'run'
    command = ['start.py', str(config), '--work-dir', str(folder)]
    monkeypatch.setattr(sys, 'argv', command)
    start.main()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}
    if of_the_run:
        command[1] = str(folder / config.name)
    monkeypatch.setattr(sys, 'argv', [*command, '--resume'])
    capsys.readouterr()
    start.main()
    said = f'{folder}: this run is finished. There is nothing to do.'
    assert said in capsys.readouterr().out
    del before[folder / '.lock']
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_goes_as_the_page_says(
    usual_signals: None,
    tiny_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The numbered steps of pretrain's docstring, in the order in which a run first meets them."""
    steps = re.findall(r'^ *\d+\. ``(\w+)(?:\.(\w+))?``', pretrain.__doc__, re.MULTILINE)
    assert len(steps) > 12
    done = []

    def note(owner: object, name: str, step: str) -> None:
        original = getattr(owner, name)

        def noted(*args: object, **kwargs: object) -> object:
            if step not in done:
                done.append(step)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    def main(method: str, **algorithm: object) -> None:
        config = tiny_file(method, generations=2, **algorithm)
        command = ['start.py', str(config), '--work-dir', str(tmp_path / method)]
        begun = ['--start-from', str(tmp_path / 'se/snapshot_1.pth')] if method == 'sd' else []
        monkeypatch.setattr(sys, 'argv', [*command, *begun])
        start.main()

    main('se')
    for name, method in steps:
        owner = next((r.get(name) for r in (HOOKS, LOOPS, MODELS) if r.get(name)), start)
        note(owner, method or name, f'{name}.{method}')
    main('sd', teacher_weight=1.0)
    assert done == [f'{name}.{method}' for name, method in steps]
    assert signal.getsignal(signal.SIGTERM) is saving._receive  # as after a last iteration
