import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import torchvision
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig
from torch.distributed.run import config_from_args, parse_args
from torch.nn.parallel import DistributedDataParallel

from pretrain.runs import processes
from pretrain.runs.cli import report_to_torchrun, run
from pretrain.runs.errors import UserError
from pretrain.runs.launch import usable_cores
from pretrain.runs.processes import (
    Processes,
    check_processes,
    ddp_settings,
    end_with_launcher,
    number_of_nodes,
    start_processes,
    usable_gpus,
)
from tests.conftest import ROOT

TORCH = ['sm_75', 'sm_80', 'sm_86', 'sm_90a', 'compute_100']


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(count, available, gpus, devices)``: what NVML, the CUDA runtime and /dev say."""
    monkeypatch.setattr(processes, 'DEVICES', tmp_path)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)

    def pretend(count=0, available=True, gpus=(), devices=0):
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: count or len(gpus))
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: available)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: gpus[index])
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index: f'Card {index}')
        monkeypatch.setattr(torch.cuda, 'get_arch_list', lambda: TORCH)
        for index in range(devices):
            (tmp_path / f'nvidia{index}').touch()
        (tmp_path / 'nvidiactl').touch()

    return pretend


def test_a_machine_without_gpus(machine):
    machine(available=False)
    assert usable_gpus() == 0
    check_processes(1)
    with pytest.raises(UserError, match=f'no GPU and {usable_cores()} CPU core'):
        check_processes(usable_cores() + 1)


@pytest.mark.parametrize(
    ('seen', 'count'),
    [
        (dict(count=8, available=False), 8),  # driver too old, fabric manager down
        (dict(devices=4, available=False), 4),  # torch without CUDA, driver not loaded
    ],
)
def test_gpus_that_cannot_be_used_are_no_cpu_run(seen, count, machine, monkeypatch):
    machine(**seen)
    for ask in (usable_gpus, lambda: check_processes(1)):
        with pytest.raises(UserError, match=rf'has {count} GPUs, but torch .*nvidia-smi'):
            ask()
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)  # as torch says of none visible
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert usable_gpus() == 0  # asked for


@pytest.mark.parametrize('capability', [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 1)])
def test_gpus_that_torch_has_kernels_for(capability, machine):
    machine(gpus=[capability])
    assert usable_gpus() == 1


def test_amds_gpus_are_not_compared_with_nvidias(machine, monkeypatch):
    machine(gpus=[(9, 0)])
    monkeypatch.setattr(torch.cuda, 'get_arch_list', lambda: ['gfx90a', 'gfx1100'])
    assert usable_gpus() == 1


@pytest.mark.parametrize('capability', [(6, 0), (7, 0)])
def test_a_gpu_that_torch_has_no_kernels_for_is_named(capability, machine):
    machine(gpus=[(9, 0), capability])
    sm = 'sm_{}{}'.format(*capability)
    with pytest.raises(UserError, match=rf'GPU 1, a Card 1 \({sm}\).*sm_75, sm_80'):
        usable_gpus()


def agree(decisions):
    """Let a thread a process decide, as on two nodes of two; what each returns or raises."""
    store = distributed.HashStore()

    def process(rank):
        group = Processes(rank, 4, store)
        try:
            return [group.decided_by(rank - rank % 2, lambda: decisions[rank]()), group.decisions]
        except (UserError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(process, range(4)))


def fail(sentence):
    raise UserError(sentence)


def test_the_first_of_each_node_decides_for_it():
    called = []
    decisions = [lambda rank=rank: called.append(rank) or {'node': rank} for rank in range(4)]
    assert agree(decisions) == [[{'node': rank}, 1] for rank in (0, 0, 2, 2)]
    assert sorted(called) == [0, 2]


def test_an_error_on_one_node_ends_all():
    begun = time.monotonic()
    decisions = [dict, dict, lambda: fail('No data root x.'), dict]
    assert agree(decisions) == ['No data root x.'] * 4
    assert time.monotonic() - begun < 30


def test_a_single_process_decides_for_itself():
    assert Processes().decided_by(0, lambda: 3) == 3


def test_an_error_is_torchruns_to_show(monkeypatch, tmp_path):
    monkeypatch.delenv('TORCHELASTIC_ERROR_FILE', raising=False)
    assert not report_to_torchrun('No data.')
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'error.json'))
    assert report_to_torchrun('No data.')
    assert json.loads((tmp_path / 'error.json').read_text())['message'] == 'No data.'


ONE_FAILS = """
import os, time
from pretrain.runs.cli import run
from pretrain.runs.errors import UserError

def main():
    if os.environ['RANK'] == '1':
        raise UserError('The loss is nan at epoch 1, iteration 7: lower the rate.')
    print('line\\n' * 200, flush=True)
    time.sleep(600)

run(main)
"""
START = """
import sys
from pretrain.runs.cli import run
from pretrain.runs.processes import start_processes

run(lambda: start_processes(sys.argv[1:], 2, 1))
"""


def test_error_of_one_process_ends_all_and_is_the_last_line(tmp_path: Path) -> None:
    (tmp_path / 'one_fails.py').write_text(ONE_FAILS)
    result = subprocess.run(
        [sys.executable, '-c', START, str(tmp_path / 'one_fails.py')],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    assert result.returncode == 1
    assert 'Traceback' not in result.stderr
    assert result.stderr.count('The loss is nan') == 1
    last = result.stderr.splitlines()[-1]
    assert last == 'error: The loss is nan at epoch 1, iteration 7: lower the rate.'


def kernels(wrap):
    """How often gradients are copied, multiplied or divided in an iteration of a small ResNet."""
    torch.manual_seed(0)
    model = wrap(torchvision.models.resnet18())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    names = ('aten::mul', 'aten::div_', 'aten::_foreach_copy_')
    names += ('torch.distributed.ddp.reducer::copy_bucket_to_grad',)  # unless they are views
    for _ in range(3):  # the first two rebuild the buckets
        with torch.profiler.profile() as profile:
            model(torch.ones(1, 3, 32, 32)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return sum(event.name in names for event in profile.events())


@pytest.mark.skipif(
    'batched_grad_copy' not in signature(DistributedDataParallel).parameters,
    reason='this torch copies the gradients one by one',
)
# Eight processes would print each warning. Files that another test has left open are not meant.
@pytest.mark.filterwarnings('error', 'ignore::ResourceWarning')
def test_gradients_are_copied_a_bucket_at_a_time():
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        settings = ddp_settings()
        settings.pop('type')
        alone = kernels(lambda model: model.eval())
        ours = kernels(lambda model: DistributedDataParallel(model.eval(), **settings))
        settings['batched_grad_copy'] = False
        theirs = kernels(lambda model: DistributedDataParallel(model.eval(), **settings))
    finally:
        distributed.destroy_process_group()
    assert ours - alone <= 2 * 4  # buckets
    assert theirs - alone >= 62  # parameters


def test_each_process_keeps_its_own_statistics():
    """SnapshotHook averages them. With torch's default all would have those of the first."""
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        settings = ddp_settings()
        settings.pop('type')
        model = DistributedDataParallel(torchvision.models.resnet18(), **settings)
    finally:
        distributed.destroy_process_group()
    assert not model.will_sync_module_buffers()


@pytest.mark.parametrize(('code', 'outcome'), [(75, 75), (143, 143), (-9, 'Process 3 .* SIGKILL')])
def test_end_of_a_process_that_reported_no_error(code, outcome, monkeypatch, tmp_path):
    failure = ProcessFailure(3, 1, code, str(tmp_path / 'no.json'))
    error = ChildFailedError('start', {3: failure})
    monkeypatch.setattr('torch.distributed.run.main', Mock(side_effect=error))
    monkeypatch.setattr(os, 'environ', {})
    if isinstance(outcome, int):
        with pytest.raises(SystemExit) as stop:
            start_processes(['x.py'], 4, nodes=1)
        assert stop.value.code == outcome
    else:
        with pytest.raises(UserError, match=outcome):
            start_processes(['x.py'], 4, nodes=1)


@pytest.mark.parametrize(
    'victim',
    [
        RuntimeError('x'),
        RuntimeError('[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1'),
        distributed.DistBackendError('NCCL error: remote process exited'),
    ],
)
@pytest.mark.parametrize('later', [UserError('The data changed.'), None])
def test_the_error_that_came_first_is_shown_and_none_that_follows_from_it(
    victim, later, tmp_path, monkeypatch
):
    """A process that lost the one that failed may exit before it."""
    failures = {}
    errors = [(later, 9), (victim, 5), (UserError('No data.'), 7)]
    for rank, (error, time_of_error) in enumerate(errors):
        if error:
            path = tmp_path / f'{rank}.json'
            monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(path))
            monkeypatch.setattr('time.time', lambda now=time_of_error: now)
            with pytest.raises(SystemExit):
                run(Mock(side_effect=error))
            failures[rank] = ProcessFailure(rank, 1, 1, str(path))
    monkeypatch.undo()
    error = ChildFailedError('start', failures)
    monkeypatch.setattr('torch.distributed.run.main', Mock(side_effect=error))
    monkeypatch.setattr(os, 'environ', {})
    with pytest.raises(UserError, match=r'^No data\.$'):
        start_processes(['x.py'], 4, nodes=1)


@pytest.fixture
def torchrun(monkeypatch):
    """The arguments that torchrun was called with."""
    calls = []
    monkeypatch.setattr('torch.distributed.run.main', calls.append)
    monkeypatch.setattr(os, 'environ', {})
    return calls


def test_one_node_needs_no_address(torchrun, usual_signals):
    start_processes(['-m', 'module', 'x.py'], 4, nodes=1)
    ((*arguments,),) = torchrun
    assert arguments[:3] == ['--standalone', '--local-addr=127.0.0.1', '--nproc_per_node=4']
    assert '--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGUSR1,SIGQUIT' in arguments
    assert arguments[-3:] == ['-m', 'module', 'x.py']
    assert int(os.environ['OMP_NUM_THREADS']) >= 1


@pytest.mark.skipif(
    'shutdown_timeout' not in signature(LaunchConfig).parameters,
    reason='this torch kills what has not ended after 30 s',
)
def test_processes_have_time_to_validate_and_save_when_they_are_told_to_stop(torchrun):
    start_processes(['x.py'], 2, nodes=1)
    config, *_ = config_from_args(parse_args(torchrun[0]))
    assert config.shutdown_timeout == 300  # seconds, as Slurm's warning comes before its time limit


def test_a_run_under_nohup_goes_on_when_its_terminal_closes(torchrun, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        processes.start_processes(['x.py'], 2, 1)
    finally:
        signal.signal(signal.SIGHUP, before)
    (handled,) = (a for a in torchrun[0] if a.startswith('--signals-to-handle='))
    assert 'SIGTERM' in handled and 'SIGHUP' not in handled


def test_a_process_whose_launcher_ended_first_does_not_wait_for_it(torchrun, monkeypatch):
    """It would look for the others for an hour."""
    monkeypatch.setattr(processes, 'end_with_parent', lambda: None)
    end_with_launcher()  # of another launcher, such as Slurm
    start_processes(['x.py'], 2, nodes=1)
    monkeypatch.setattr(os, 'getppid', os.getpid)  # as in a process that it has started
    end_with_launcher()
    monkeypatch.setattr(os, 'getppid', lambda: 1)
    with pytest.raises(SystemExit) as stop:
        end_with_launcher()
    assert stop.value.code == 143


@pytest.mark.parametrize(
    'variables',
    [
        {},
        {'NODE_RANK': '2'},
        {'MASTER_ADDR': 'node7'},
        {'MASTER_ADDR': 'node7', 'NODE_RANK': '3'},
        {'MASTER_ADDR': 'node7', 'NODE_RANK': 'one'},
    ],
)
def test_a_node_knows_its_place_among_several(variables, torchrun):
    """Two nodes of one rank would wait for the others."""
    os.environ.update(variables)
    with pytest.raises(
        UserError, match=r'NNODES=3 needs MASTER_ADDR, .* and NODE_RANK, .* up to 2'
    ):
        start_processes(['x.py'], 4, nodes=3)
    assert not torchrun


@pytest.mark.parametrize(('nodes', 'number'), [(None, 1), ('', 1), ('1', 1), ('4', 4)])
def test_the_number_of_nodes(nodes, number, monkeypatch):
    monkeypatch.setattr(os, 'environ', {} if nodes is None else {'NNODES': nodes})
    assert number_of_nodes() == number


@pytest.mark.parametrize('nodes', ['two', '1:4', '0', '-1'])
def test_no_number_of_nodes(nodes, monkeypatch):
    monkeypatch.setenv('NNODES', nodes)
    with pytest.raises(UserError, match=f'NNODES={nodes}: set it to the number of nodes'):
        number_of_nodes()


def test_several_nodes_meet_at_the_first(torchrun):
    os.environ.update(NODE_RANK='2', MASTER_ADDR='node7', OMP_NUM_THREADS='5')
    for variables, port in (
        ({}, 29500),
        ({'SLURM_JOB_ID': '1234567'}, 34567),  # two jobs can share a node
        ({'MASTER_PORT': '4000'}, 4000),
    ):
        os.environ.update(variables)
        start_processes(['x.py'], 4, nodes=3)
        assert torchrun[-1][:5] == [
            '--nnodes=3', '--node_rank=2', '--master_addr=node7', f'--master_port={port}',
            '--nproc_per_node=4',
        ]  # fmt: skip
    assert os.environ['OMP_NUM_THREADS'] == '5'


def test_each_gpu_needs_a_core(machine, monkeypatch):
    machine(gpus=[(9, 0)] * 8)
    monkeypatch.setattr(processes, 'usable_cores', lambda: 7)
    with pytest.raises(UserError, match='only 7 CPU cores to run them'):
        check_processes(8)
