"""The command line, as a user meets it: exit codes, one sentence, two processes."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.record import read_record
from tests.conftest import ROOT
from tests.tools.commands import assert_one_sentence, call, start

SD = str(ROOT / 'configs/demo/r18_sd.py')


def train(*args: str, **settings: object) -> subprocess.CompletedProcess:
    return start('tools/train.py', *args, **settings)()


@pytest.fixture
def options(image_folder: Path) -> list[str]:
    return [
        f'data_root={image_folder}',
        'model.network.num_classes=4',
        'image_size=32',
        'precision=float32',
        'batch_size=8',
        'epochs=2',
        'algorithm.generations=2',
        'train_dataloader.num_workers=0',
        'val_dataloader.num_workers=0',
    ]


PROBE = """
import os
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, MODELS


@MODELS.register_module()
class Plain(torch.nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(
            torch.nn.Conv2d(3, 16, 5, stride=2),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(4),
            torch.nn.Flatten(),
            torch.nn.Linear(256, num_classes),
        )


@HOOKS.register_module()
class DumpHook(Hook):
    def after_train(self, runner):
        path = os.path.join(os.environ['PROBE_DIR'], f'rank{runner.rank}.pth')
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        torch.save(model.state_dict(), path)
"""
SMALL_CONFIG = """
_base_ = {base!r}
model = dict(network=dict(_delete_=True, type={network!r}, num_classes=4))
"""
PROBED_CONFIG = f"""{SMALL_CONFIG}
custom_imports = dict(imports=['probe'])
custom_hooks = [dict(type='DumpHook')]
"""


def test_two_processes_share_a_teacher(options: list[str], tmp_path: Path) -> None:
    """Two processes on the CPU, with batch normalisation: one teacher, and it is the snapshot."""
    (tmp_path / 'probe.py').write_text(PROBE)
    config = tmp_path / 'probed_sd.py'
    config.write_text(PROBED_CONFIG.format(base=SD, network='TinyNet'))
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = str(server.getsockname()[1])
    group = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    processes = [
        start(
            'tools/train.py', str(config), '--work-dir', str(tmp_path / 'run'),
            '--cfg-options', *options,
            PYTHONPATH=str(tmp_path), PROBE_DIR=str(tmp_path), RANK=rank, LOCAL_RANK=rank, **group,
        )
        for rank in ('0', '1')
    ]  # fmt: skip
    for result in [wait() for wait in processes]:
        assert result.returncode == 0, result.stdout + result.stderr
    first, second = (torch.load(tmp_path / f'rank{r}.pth', weights_only=True) for r in (0, 1))
    snapshot = load_from_disk(tmp_path / 'run/snapshot_1.pth')['state_dict']
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        if name.startswith('teacher.'):
            assert torch.equal(tensor, snapshot[name.replace('teacher.', 'student.', 1)]), name
    assert not torch.equal(first['student.0.weight'], first['teacher.0.weight'])
    assert 'teacher.1.running_mean' in first


def test_two_processes_train_as_one_does(options: list[str], tmp_path: Path) -> None:
    """The user's command: the same batches, losses and weights, without the batch normalisation
    that sees a share."""
    (tmp_path / 'probe.py').write_text(PROBE)
    config = tmp_path / 'plain_sd.py'
    config.write_text(PROBED_CONFIG.format(base=SD, network='Plain'))
    weights, records, losses = [], [], []
    for command, *args in (
        (train, str(config)),
        (call, 'bash', 'tools/dist_train.sh', str(config), '2'),
    ):
        out = tmp_path / command.__name__
        out.mkdir()
        result = command(
            *args, '--work-dir', str(out / 'run'), '--cfg-options', *options,
            PYTHONPATH=f'{tmp_path}:{ROOT}', PROBE_DIR=str(out),
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        weights.append(torch.load(out / 'rank0.pth', weights_only=True))
        records.append(read_record(out / 'run/run.json'))
        logged = load_from_disk(out / 'run/epoch_2.pth')['message_hub']['log_scalars']
        losses.append(logged['train/loss'].data[0].tolist())
    one, two = weights
    assert not torch.equal(one['student.0.weight'], one['teacher.0.weight'])
    for name, tensor in one.items():
        # Sums of eight float32 gradients in another order, over eight steps.
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert records[1]['ensemble'] == records[0]['ensemble']
    for ours, theirs in zip(*(record['history'] for record in records), strict=True):
        assert ours['metrics'] == theirs['metrics']
        assert ours['train'] == pytest.approx(theirs['train'], rel=1e-4)


def test_more_processes_than_the_machine_has(options: list[str], tmp_path: Path) -> None:
    work_dir = str(tmp_path / 'run')
    result = train(SD, '--gpus', '4096', '--work-dir', work_dir, '--cfg-options', *options)
    assert_one_sentence(result, '4096 processes', 'no GPU', 'CPU core')
    assert not (tmp_path / 'run').exists()


def test_a_run_is_not_started_over_by_accident(options: list[str], tmp_path: Path) -> None:
    (tmp_path / 'run.json').write_text('{}')
    result = train(SD, '--work-dir', str(tmp_path), '--cfg-options', *options)
    assert_one_sentence(result, 'already holds a run', '--resume')
    assert (tmp_path / 'run.json').read_text() == '{}'
    assert {path.name for path in tmp_path.iterdir()} == {'.lock', 'run.json'}


def test_resume_and_start_from(options: list[str], tmp_path: Path) -> None:
    """SD, resumed when it is over, which does nothing, and SE from its end of generation 1."""
    for name in ('sd', 'se'):
        base = str(ROOT / f'configs/demo/r18_{name}.py')
        (tmp_path / f'{name}.py').write_text(SMALL_CONFIG.format(base=base, network='TinyNet'))
    sd, se = str(tmp_path / 'sd.py'), str(tmp_path / 'se.py')
    first, second = str(tmp_path / 'sd'), str(tmp_path / 'se')
    assert train(sd, '--work-dir', first, '--cfg-options', *options).returncode == 0
    assert train(sd, '--work-dir', first, '--resume', '--cfg-options', *options).returncode == 0
    record = read_record(tmp_path / 'sd/run.json')
    assert (record['sessions'], len(record['history'])) == (1, 2)
    snapshot = str(tmp_path / 'sd/snapshot_1.pth')
    ensemble = train(se, '--work-dir', second, '--start-from', snapshot, '--cfg-options', *options)
    assert ensemble.returncode == 0, ensemble.stdout + ensemble.stderr
    shared = read_record(tmp_path / 'se/run.json')
    assert shared['started_from'] == snapshot
    assert shared['generations'][0]['last'] == record['generations'][0]['last']
    again = train(sd, '--work-dir', second, '--resume', '--cfg-options', *options)
    assert_one_sentence(again, 'algorithm.teacher_weight=0.0, but this run asks for 1.0')


def test_mistakes_are_one_sentence(options: list[str], tmp_path: Path) -> None:
    result = train(SD, '--cfg-options', 'data_root=/nowhere', cwd=tmp_path)
    assert_one_sentence(result, 'train/<class>/', 'data_root')
    result = train(SD, '--cfg-options', 'algorithm.temprature=3', cwd=tmp_path)
    assert_one_sentence(result, 'did you mean algorithm.temperature')
    assert not list(tmp_path.iterdir())


def test_commands_of_the_readme_exist() -> None:
    for script in ('setup', 'demo', 'test', 'dist_train', 'slurm_train'):
        assert os.access(ROOT / f'tools/{script}.sh', os.X_OK)
        assert call('bash', '-n', f'tools/{script}.sh').returncode == 0
    assert call('bash', 'tools/dist_train.sh', SD).returncode == 2


def test_scripts_keep_their_line_ends_in_a_clone_on_windows() -> None:
    scripts = [str(path.relative_to(ROOT)) for path in ROOT.glob('tools/*.sh')]
    told = call('git', 'check-attr', 'eol', '.ci/run', *scripts).stdout
    assert told.count(': eol: lf\n') == len(scripts) + 1 > 6


# Runs a command, with ``WARN`` in a process group of its own that gets SIGUSR1 once it has begun.
RUN = """
run() {
  if [ -z "${WARN:-}" ]; then "$@"; return; fi
  rm -f "$OUT.begun"
  setsid "$@" &
  until [ -e "$OUT.begun" ] || ! kill -0 $! 2> /dev/null; do sleep 0.05; done
  kill -USR1 -- -$! 2> /dev/null || true
  wait $!
}
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., tuple[int, list[list[str]]]]:
    """``slurm(argument, ..., NAME='value')``: the exit code of slurm_train.sh and what it called.

    With stand-ins for scontrol; for srun, which as Slurm kills the other tasks (143) if one fails
    and returns the highest code; and for dist_train.sh, which exits with 75, the request to be
    resumed, unless it resumes already, or with ``CODE``. With ``WARN`` it waits for the signal,
    which srun sends to all processes of a task.
    """
    programs = {
        'srun': f'{RUN}\nprintf "%s " "$@" | sed "s/bash -c.*//;q" >> "$OUT"; '
        'while [ "$1" != bash ]; do shift; done; export SLURM_STEP_NODELIST=x; status=0; '
        'for SLURM_NODEID in 0 1 2; do export SLURM_NODEID; code=143; '
        '[ $status -ne 0 ] || { code=0; run "$@" || code=$?; }; '
        '[ $code -le $status ] || status=$code; done; exit $status',
        'scontrol': 'if [ "$1" = requeue ]; then echo "$@" >> "$OUT"; exit ${REQUEUE:-0}; fi; '
        'echo node7; echo node8; echo node9',
        'dist_train.sh': 'echo "$MASTER_ADDR $NNODES $NODE_RANK: $*" >> "$OUT"; '
        '[[ " $* " != *" --resume "* ]] || exit ${CODE:-0}; [ -n "${WARN:-}" ] || exit 75; '
        'trap "exit 75" USR1; touch "$OUT.begun"; for i in {1..200}; do sleep 0.05; done; exit 9',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    shutil.copy(ROOT / 'tools/slurm_train.sh', tmp_path)

    def run(*args: str, **environment: str) -> tuple[int, list[list[str]]]:
        result = call(
            'bash', str(tmp_path / 'slurm_train.sh'), SD, '3', '8', *args,
            cwd=tmp_path, PATH=f'{tmp_path}:{os.environ["PATH"]}', OUT=str(tmp_path / 'out'),
            **environment,
        )  # fmt: skip
        lines = (tmp_path / 'out').read_text().splitlines()
        return result.returncode, [line.split() for line in lines]

    return run


def test_slurm_starts_each_node_with_its_rank(slurm: Callable) -> None:
    code, lines = slurm('--resume', 'a b', SRUN_ARGS='--partition=gpu\n  --time=1:00')
    assert code == 0
    assert lines[0] == [
        '--nodes=3', '--ntasks=3', '--ntasks-per-node=1', '--gpus-per-node=8',
        '--kill-on-bad-exit=1', '--signal=USR1@300', '--partition=gpu', '--time=1:00',
    ]  # fmt: skip
    ranks = [['node7', '3', f'{rank}:', SD, '8', '--resume', 'a', 'b'] for rank in range(3)]
    assert lines[1:] == ranks


def test_slurm_passes_on_the_cores_that_a_batch_job_has(slurm: Callable) -> None:
    _, lines = slurm('--resume', SLURM_CPUS_PER_TASK='64')
    assert '--cpus-per-task=64' in lines[0]


@pytest.mark.parametrize('signal', [{}, {'WARN': '1'}])
def test_slurm_resumes_a_run_whose_time_is_up(
    signal: dict, slurm: Callable, tmp_path: Path
) -> None:
    """All tasks end their runs before it starts again, and no file is left."""
    code, lines = slurm('--work-dir', 'x', **signal)
    assert code == 0
    calls = [line[4:] for line in lines if line[0] == 'node7']
    resumed = ['8', '--resume', '--work-dir', 'x']
    assert calls == [['8', '--work-dir', 'x']] * 3 + [resumed] * 3
    assert [*tmp_path.glob('**/.slurm_train*')] == []


def test_slurm_does_not_resume_a_run_that_failed(slurm: Callable) -> None:
    code, lines = slurm('--resume', CODE='3')
    assert code == 143  # of the tasks that Slurm killed
    assert len([line for line in lines if line[0] == 'node7']) == 1


def test_slurm_requeues_a_batch_job(slurm: Callable) -> None:
    code, lines = slurm('--work-dir', 'x', SLURM_JOB_ID='12')
    assert code == 75
    assert lines[-1] == ['requeue', '12']
    code, _ = slurm('--work-dir', 'x', SLURM_JOB_ID='12', REQUEUE='1')  # as in salloc
    assert code == 75
    code, lines = slurm('--work-dir', 'x', SLURM_JOB_ID='12', SLURM_RESTART_COUNT='1')
    assert code == 0
    assert lines[-1][4:] == ['8', '--resume', '--work-dir', 'x']
