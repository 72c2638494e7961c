import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mmengine.registry import HOOKS, LOOPS, MODELS

import pretrain
from pretrain.runs import start
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


def test_a_run_goes_as_the_page_says(
    tiny_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
