from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from pretrain.runs.errors import UserError
from pretrain.runs.identity import FORMAT, check_resume, differences, identity_of, upgrade


def nothing_may(*_: object) -> tuple[str, ...]:
    return ()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., str]:
    def write(identity: dict, **meta: object) -> str:
        meta = {'epoch': 3, 'format': FORMAT, 'identity': identity} | meta
        torch.save({'meta': meta}, tmp_path / 'a.pth')
        return str(tmp_path / 'a.pth')

    return write


def test_an_identity_is_the_whole_config_but_for_places_and_displays() -> None:
    config = Config(
        dict(
            data_root='/a', batch_size=8, work_dir='/b', label='x', unheard_of=dict(of=(1, 2)),
            default_hooks=dict(logger=dict(interval=1), ema=dict(type='EMAHook')),
            loader=dict(num_workers=2, dataset=dict(root='/a', datasets=[dict(data_root='/a')])),
        )
    )  # fmt: skip
    assert identity_of(config, ['batch_*'], teacher='hash') == {
        'unheard_of': {'of': [1, 2]},
        'default_hooks': {'ema': {'type': 'EMAHook'}},
        'loader': {'dataset': {'datasets': [{}]}},
        'teacher': 'hash',
    }


@pytest.mark.parametrize(
    ('theirs', 'ours', 'found'),
    [
        ({'a': 1}, {'a': 1.0}, {}),
        ({'a': 0.1}, {'a': 0.2}, {'a': (0.1, 0.2)}),
        ({'a': {'b': [1, 2]}}, {'a': {'b': [1, 3]}}, {'a.b': ([1, 2], [1, 3])}),
        ({'a': None}, {}, {}),
        ({}, {'a': 1}, {'a': (None, 1)}),
        ({'a': [{'p': 1}, {'p': 2}]}, {'a': [{'p': 1}, {'p': 3}]}, {'a.1.p': (2, 3)}),
        ({'a': [{'p': 1}]}, {'a': []}, {'a': ([{'p': 1}], [])}),
        ({'free': 1, 'a': {'free': {'x': 1}}}, {'free': 2, 'a': {'free': {'x': 2}}}, {}),
        ({'freedom': 1}, {'freedom': 2}, {'freedom': (1, 2)}),
    ],
)
def test_differences(theirs: dict, ours: dict, found: dict) -> None:
    assert differences(theirs, ours, ['free', 'a.free']) == found


def test_every_difference_is_named_with_both_values(checkpoint: Callable) -> None:
    path = checkpoint({'randomness': {'seed': 0}, 'batch_size': 8, 'c': 1})
    ours = {'randomness': {'seed': 1}, 'batch_size': 4, 'c': 1}
    with pytest.raises(UserError) as error:
        check_resume(path, ours, nothing_may)
    assert f'{path} (epoch 3) was trained with batch_size=8, this run asks for 4; ' in str(
        error.value
    )
    assert 'randomness.seed=0, this run asks for 1: keep them, or' in str(error.value)
    assert '--accept-change batch_size --accept-change randomness.seed' in str(error.value)


def test_accepted_changes_are_returned(checkpoint: Callable) -> None:
    path = checkpoint({'data': {'train': 'x', 'val': 'y'}, 'seed': 0})
    ours = {'data': {'train': 'z', 'val': 'y'}, 'seed': 0}
    assert check_resume(path, ours, nothing_may, accepted=['data', 'seed']) == [
        {'epoch': 3, 'key': 'data.train', 'was': 'x', 'now': 'z'}
    ]
    with pytest.raises(UserError, match='seed=0, this run asks for 1'):
        check_resume(path, ours | {'seed': 1}, nothing_may, accepted=['data'])


def test_what_a_checkpoint_holds_cannot_be_changed(checkpoint: Callable) -> None:
    """mmengine restores the rate and the schedule: the change would be recorded and not made."""
    path = checkpoint({'optim_wrapper': {'optimizer': {'lr': 0.1}}, 'seed': 0})
    ours = {'optim_wrapper': {'optimizer': {'lr': 0.2}}, 'seed': 0}
    with pytest.raises(UserError, match=r'lr=0\.1, this run asks for 0\.2: keep them, since'):
        check_resume(path, ours, nothing_may, accepted=['optim_wrapper'])


def test_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({'meta': {'epoch': 1}}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='not written by this suite'):
        check_resume(str(tmp_path / 'a.pth'), {}, nothing_may)


def test_an_earlier_format_is_read_under_the_present_names() -> None:
    old = {
        'seed': 1,
        'optimizer': {'lr': 0.1},
        'network': {'depth': 18},
        'compiled': True,
        'task': 'x',
    }
    assert upgrade(old, 1) == {
        'randomness': {'seed': 1},
        'optim_wrapper': {'optimizer': {'lr': 0.1}},
        'model': {'network': {'depth': 18}, 'compiled': True},
        'task': 'x',
    }
    new = upgrade(old, 1)
    assert upgrade(new, FORMAT) == new


@pytest.mark.parametrize(
    'content',
    [[1], torch.ones(1), {}, {'meta': None}, {'meta': {'epoch': 3}}, {'conv1.weight': 1}, None],
)
def test_a_file_of_another_program_is_named(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=r'a\.pth was not written by this suite'):
        check_resume(str(tmp_path / 'a.pth'), {}, nothing_may)
