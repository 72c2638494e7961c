import pytest
from mmengine.config import Config

from pretrain.runs.errors import UserError
from pretrain.runs.identity import FORMAT, differences, identity_in, identity_of, upgrade


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


def test_a_later_format_is_refused() -> None:
    meta = {'identity': {'task': 'x'}, 'epoch': 1, 'format': FORMAT}
    assert identity_in({'meta': meta}, 'a.pth') == {'task': 'x'}
    with pytest.raises(UserError, match=rf'a\.pth has format {FORMAT + 1}, .*: update the suite'):
        identity_in({'meta': meta | {'format': FORMAT + 1}}, 'a.pth')
