"""SE and SD share generation 1, a teacher may join late, a branch has random numbers of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from pretrain.build import prepare
from pretrain.resume import may_differ
from pretrain.runs.errors import UserError
from pretrain.runs.identity import FORMAT, check_resume, differences


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


CHANGES = {
    'train_dataloader.sampler.shuffle=False': 'train_dataloader.sampler.shuffle=True, .* False',
    'train_dataloader.sampler.type=DefaultSampler': 'type=EpochSampler, .* DefaultSampler',
    'train_dataloader.drop_last=False': 'train_dataloader.drop_last=True, .* False',
    'train_dataloader.dataset.crop_area=(0.5,1)': r'crop_area=\[0\.7, 1\.0\], .* \[0\.5, 1\]',
    'val_dataloader.sampler.shuffle=True': 'val_dataloader.sampler.shuffle=False, .* True',
    'val_evaluator.type=Accuracy': 'val_evaluator.type=TopKError, .* Accuracy',
    'model.data_preprocessor.mean=[0,0,0]': r'data_preprocessor\.mean=.* \[0, 0, 0\]',
    'model.data_preprocessor.type=ImgDataPreprocessor': 'type=AugmentingPreprocessor, .* ImgData',
    'image_size=40': 'image_size=32, .* 40',
    'batch_size=4': 'batch_size=8, .* 4',
    'micro_batches=2': 'micro_batches=1, .* 2',
    'randomness.seed=1': 'randomness.seed=0, .* 1',
    'optim_wrapper.optimizer.lr=0.5': r'optimizer\.lr=0\.03, .* 0\.5',
    'epochs=4': 'epochs=3, .* 4',
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_resumed_run_keeps_each_setting(
    change: str, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    before, after = (
        tiny_config('bl', tmp_path, 'algorithm.generations=1', *c) for c in ([], [change])
    )
    meta = {'epoch': 1, 'format': FORMAT, 'identity': before.identity.to_dict()}
    torch.save({'meta': meta}, tmp_path / 'epoch_1.pth')
    check_resume(str(tmp_path / 'epoch_1.pth'), before.identity.to_dict(), may_differ)
    with pytest.raises(UserError, match=CHANGES[change]):
        check_resume(str(tmp_path / 'epoch_1.pth'), after.identity.to_dict(), may_differ)


def test_a_resumed_run_keeps_the_number_of_processes(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config('bl', tmp_path)
    one, two = (prepare(config, count).identity.to_dict() for count in (1, 2))
    assert differences(one, two, may_differ(1, one, two, False)) == {'world_size': (1, 2)}
