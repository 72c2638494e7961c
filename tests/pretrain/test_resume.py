"""SE and SD share generation 1, a teacher may join late, a branch has random numbers of its own."""

from pathlib import Path

import pytest
import torch

from pretrain.resume import may_differ
from pretrain.runs.errors import UserError
from pretrain.runs.identity import FORMAT, check_resume


def identity(**algorithm: object) -> dict:
    defaults = dict(name='SD', generations=[2, 2], teacher_weight=1.0, temperature=2.0)
    defaults |= dict(taught_after=2, confidence_penalty=0.0)
    return {
        'task': 'classification',
        'randomness': {'seed': 0},
        'data_seed': 0,
        'algorithm': defaults | algorithm,
        'teacher': None,
    }


def checkpoint(path: Path, epoch: int, **algorithm: object) -> str:
    meta = {'epoch': epoch, 'format': FORMAT, 'identity': identity(**algorithm)}
    torch.save({'meta': meta}, path)
    return str(path)


@pytest.mark.parametrize(
    ('epoch', 'ours'),
    [
        (3, {}),
        (3, {'name': 'other'}),
        (2, {'teacher_weight': 0.0}),  # SE from SD's end of generation 1
        (2, {'temperature': 3.0}),
        (1, {'temperature': 3.0, 'name': 'other'}),
    ],
)
def test_what_has_happened_is_the_same(epoch: int, ours: dict, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / 'a.pth', epoch)
    assert check_resume(path, identity(**ours), may_differ) == []


@pytest.mark.parametrize(
    ('epoch', 'ours'),
    [
        (3, {'teacher_weight': 0.0}),
        (3, {'temperature': 3.0}),
        (3, {'generations': [2, 3]}),
        (2, {'generations': [3, 3]}),
        (2, {'generations': [2, 5, 5]}),  # mmengine would go on with the old periods
        (1, {'generations': [4], 'name': 'BL'}),
        (4, {'generations': [2]}),
        (1, {'confidence_penalty': 1.0}),
    ],
)
def test_what_has_happened_differs(epoch: int, ours: dict, tmp_path: Path) -> None:
    (key, *_) = ours
    with pytest.raises(UserError, match=f'trained with algorithm.{key}='):
        check_resume(checkpoint(tmp_path / 'a.pth', epoch), identity(**ours), may_differ)


def test_another_data_seed_is_for_a_branch_alone(tmp_path: Path) -> None:
    path, other = checkpoint(tmp_path / 'a.pth', 1), identity() | {'data_seed': 1}
    check_resume(path, other, may_differ, another_run=True)
    with pytest.raises(UserError, match='data_seed=0, this run asks for 1'):
        check_resume(path, other, may_differ)


def test_foreign_teacher_joins_before_it_teaches(tmp_path: Path) -> None:
    ours = identity(taught_after=2) | {'teacher': 'its hash'}
    check_resume(checkpoint(tmp_path / 'a.pth', 2), ours, may_differ)
    with pytest.raises(UserError, match='teacher=None, this run asks for its hash'):
        check_resume(checkpoint(tmp_path / 'a.pth', 3), ours, may_differ)
