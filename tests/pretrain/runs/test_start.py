import os
import sys

import pytest

from pretrain.runs.errors import UserError
from pretrain.runs.start import become_torchrun


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that have replaced this process."""
    commands = []
    monkeypatch.setattr(os, 'execv', lambda _, command: commands.append(command))
    monkeypatch.setattr(os, 'environ', {})
    monkeypatch.setattr(sys, 'argv', ['start.py', 'x.py', '--gpus', '4', '--resume'])
    return commands


def test_one_node_needs_no_address(executed: list[list[str]]) -> None:
    become_torchrun(4, nodes=1)
    (command,) = executed
    assert '--standalone' in command
    assert '--nproc_per_node=4' in command
    assert command[-6:] == ['-m', 'pretrain.runs.start', 'x.py', '--gpus', '4', '--resume']
    assert int(os.environ['OMP_NUM_THREADS']) >= 1


def test_several_nodes_meet_at_the_first(executed: list[list[str]]) -> None:
    with pytest.raises(UserError, match='NNODES=3 without MASTER_ADDR'):
        become_torchrun(4, nodes=3)
    os.environ.update(NODE_RANK='2', MASTER_ADDR='node7', OMP_NUM_THREADS='5')
    become_torchrun(4, nodes=3)
    (command,) = executed
    assert command[3:8] == [
        '--nnodes=3', '--node_rank=2', '--master_addr=node7', '--master_port=29500',
        '--nproc_per_node=4',
    ]  # fmt: skip
    assert os.environ['OMP_NUM_THREADS'] == '5'
