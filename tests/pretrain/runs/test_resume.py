"""Where a run begins, which checkpoint it may continue, and what SE, SD and a branch share."""

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from pretrain.build import may_differ, prepare
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError
from pretrain.runs.identity import FORMAT, differences
from pretrain.runs.resume import check_resume, choose_start

RESUME = Namespace(resume=True, start_from=None, accept_change=[])


def check(path: str, *arguments: object, **named: object) -> list[dict]:
    return check_resume(load_from_disk(path), path, *arguments, **named)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.faults
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    train: Callable, tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train('bl', tmp_path, 'algorithm.generations=1')
    config = tiny_config('bl', tmp_path, 'algorithm.generations=1')
    (tmp_path / 'epoch_best.pth').write_bytes(b'')  # not one of ours
    flip(tmp_path / 'epoch_3.pth')
    choose_start(config, RESUME)
    assert config.load_from == str(tmp_path / 'epoch_2.pth')
    assert 'epoch_3.pth is damaged' in capsys.readouterr().err
    flip(tmp_path / 'epoch_2.pth')
    with pytest.raises(UserError, match=r'All checkpoints of .* are damaged'):
        choose_start(config, RESUME)


@pytest.mark.faults
def test_a_record_that_is_missing_is_not_made_up(
    train: Callable, tiny_config: Callable, tmp_path: Path
) -> None:
    train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    (tmp_path / 'run.json').unlink()
    with pytest.raises(UserError, match=r'no run\.json'):
        choose_start(tiny_config('bl', tmp_path, 'epochs=1', 'algorithm.generations=1'), RESUME)


@pytest.mark.faults
def test_a_finished_run_is_neither_begun_anew_nor_changed(
    train: Callable, tiny_config: Callable, tmp_path: Path
) -> None:
    """With its checkpoints, and when they were deleted to save space."""
    settings = 'epochs=2', 'algorithm.generations=1'
    train('bl', tmp_path, *settings)
    same, other = (
        tiny_config('bl', tmp_path, *settings, f'micro_batches={pieces}') for pieces in (1, 2)
    )
    assert not choose_start(same, RESUME)
    with pytest.raises(UserError, match='--accept-change micro_batches'):
        choose_start(other, RESUME)
    accepted = Namespace(**vars(RESUME) | {'accept_change': ['micro_batches']})
    assert not choose_start(other, accepted)  # no iteration would have the new setting
    other.train_cfg.max_epochs = 3
    assert choose_start(other, accepted)
    for path in tmp_path.glob('epoch_*.pth'):
        path.unlink()
    assert not choose_start(same, RESUME)
    with pytest.raises(UserError, match='a finished run with other settings: it has micro_batches'):
        choose_start(other, RESUME)


def leave(folder: Path, identity: dict, epoch: int | None = None, **record: object) -> Path:
    """What a run that was stopped leaves in its folder, with a checkpoint of ``epoch`` if given;
    returns the path that such a checkpoint has."""
    folder.mkdir(exist_ok=True)
    record = {'status': 'running', 'task': 'classification', 'format': FORMAT} | record
    record = {'identity': identity, 'started_from': None, 'accepted_changes': []} | record
    (folder / 'run.json').write_text(json.dumps(record))
    path = folder / f'epoch_{epoch}.pth'
    if epoch is not None:
        torch.save({'meta': {'epoch': epoch, 'format': FORMAT, 'identity': identity}}, path)
    return path


def test_a_start_that_is_given_comes_before_that_of_the_record(
    tiny_config: Callable, tmp_path: Path
) -> None:
    config = tiny_config('se', tmp_path / 'run')
    identity = config.identity.to_dict()
    recorded, given = (leave(tmp_path / name, identity, 1) for name in 'ab')
    leave(tmp_path / 'run', identity, started_from=str(recorded))
    choose_start(config, Namespace(**vars(RESUME) | {'start_from': str(given)}))
    assert config.load_from == str(given)


@pytest.mark.faults
def test_a_branch_goes_on_from_its_own_checkpoint_if_it_has_one(
    tiny_config: Callable, tmp_path: Path
) -> None:
    """And else from the one that it began with, which its record knows. Another order of the
    images is for the beginning of a branch alone."""
    config, other = (tiny_config('se', tmp_path / 'branch', f'data_seed={seed}') for seed in (0, 1))
    source = leave(tmp_path / 'source', config.identity.to_dict(), 1)
    begin = Namespace(**vars(RESUME) | {'start_from': str(source)})
    for given in (config, other):
        assert choose_start(given, begin)
        assert (given.load_from, given.resume) == (str(source), True)
    leave(tmp_path / 'branch', config.identity.to_dict(), started_from=str(source))
    choose_start(config, RESUME)
    assert (config.load_from, config.resume) == (str(source), True)
    own = leave(tmp_path / 'branch', config.identity.to_dict(), 2, started_from=str(source))
    for arguments in (begin, RESUME):
        choose_start(config, arguments)
        assert config.load_from == str(own)
        with pytest.raises(UserError, match='data_seed=0, but this run asks for 1'):
            choose_start(other, arguments)


def test_accepted_changes_are_not_forgotten(tiny_config: Callable, tmp_path: Path) -> None:
    """A snapshot of before may differ in them, however often the run is resumed."""
    config = tiny_config('se', tmp_path / 'run', 'micro_batches=2')
    earlier = {'epoch': 1, 'key': 'data.train', 'was': 'x', 'now': 'y'}
    identity = config.identity.to_dict()
    for micro_batches, accepted in ((2, []), (1, ['micro_batches'])):
        leave(
            tmp_path / 'run', identity | {'micro_batches': micro_batches}, 2,
            accepted_changes=[earlier],
        )  # fmt: skip
        choose_start(config, Namespace(**vars(RESUME) | {'accept_change': accepted}))
        keys = [change['key'] for change in config.accepted_changes]
        assert keys == ['data.train', *accepted]


def test_a_change_that_no_iteration_was_trained_with_is_forgotten(
    tiny_config: Callable, tmp_path: Path
) -> None:
    """The run was killed after the record was written and before the next checkpoint."""
    config = tiny_config('se', tmp_path / 'run')
    change = {'epoch': 2, 'key': 'micro_batches', 'was': 1, 'now': 2}
    path = leave(tmp_path / 'run', config.identity.to_dict(), 2, accepted_changes=[change])
    content = load_from_disk(path)
    for changes in ([], [change]):
        content['meta']['accepted_changes'] = changes
        torch.save(content, path)
        choose_start(config, RESUME)
        assert config.accepted_changes == changes


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., str]:
    def write(identity: dict, **meta: object) -> str:
        meta = {'epoch': 3, 'format': FORMAT, 'identity': identity} | meta
        torch.save({'meta': meta}, tmp_path / 'a.pth')
        return str(tmp_path / 'a.pth')

    return write


def test_every_difference_is_named_with_both_values(checkpoint: Callable) -> None:
    path = checkpoint({'loader': {'shuffle': True}, 'batch': 8, 'c': 1})
    ours = {'loader': {'shuffle': False}, 'batch': 4, 'c': 1}
    with pytest.raises(UserError) as error:
        check(path, ours)
    said = str(error.value)
    assert f'{path} (epoch 3) was trained with batch=8, but this run asks for 4; ' in said
    assert 'shuffle=True, but this run asks for False: go back to the old values, or' in said
    assert '; loader.shuffle=True' in said
    assert '--accept-change batch --accept-change loader.shuffle' in said


def test_other_images_are_told_without_their_whole_hashes(checkpoint: Callable) -> None:
    path = checkpoint({'data': {'train': 'ab' * 32, 'val': 'c'}})
    with pytest.raises(UserError) as error:
        check(path, {'data': {'train': 'cd' * 32, 'val': 'c'}})
    said = 'data.train=abababab, but this run asks for cdcdcdcd (other images in data_root, or'
    assert said in str(error.value)


def test_accepted_changes_are_returned(checkpoint: Callable) -> None:
    path = checkpoint({'data': {'train': 'x', 'val': 'y'}, 'seed': 0})
    ours = {'data': {'train': 'z', 'val': 'y'}, 'seed': 0}
    assert check(path, ours, accepted=['data', 'seed']) == [
        {'epoch': 3, 'key': 'data.train', 'was': 'x', 'now': 'z'}
    ]
    with pytest.raises(UserError, match='seed=0, but this run asks for 1'):
        check(path, ours | {'seed': 1}, accepted=['data'])


@pytest.mark.parametrize(
    'part',
    [
        {'optim_wrapper': {'optimizer': {'lr': 0.1}}},
        {'optim_wrapper': {'paramwise_cfg': {'bias_lr_mult': 0.1}}},
        {'param_scheduler': [{'gamma': 0.1}]},
        {'model': {'network': {'width': 0.1}}},
    ],
)
def test_what_a_checkpoint_holds_cannot_be_changed(part: dict, checkpoint: Callable) -> None:
    """mmengine restores the rate and the schedule: the change would be recorded and not made.
    Weights do not fit another network."""
    path = checkpoint(part | {'seed': 0})
    ours = json.loads(json.dumps(part | {'seed': 0}).replace('0.1', '0.2'))
    with pytest.raises(
        UserError, match=r'=0\.1, but this run asks for 0\.2: go back to the old values, on which'
    ):
        check(path, ours, accepted=[*part])


def test_what_iterations_are_counted_by_cannot_be_changed(
    checkpoint: Callable, tmp_path: Path
) -> None:
    """Another number of processes and another order can, at the end of an epoch."""
    before = {'batch_size': 8, 'randomness': {'seed': 0}, 'world_size': 2, 'data_seed': 0}
    before['data'] = {'train': 'x'}
    end, within = checkpoint(before), str(tmp_path / 'epoch_3_iter_1.pth')
    shutil.copy(end, within)
    changes = {'batch_size': 4, 'randomness': {'seed': 1}, 'world_size': 4, 'data_seed': 1}
    changes['data'] = {'train': 'y'}
    refused = {
        (path, key)
        for path in (end, within)
        for key, value in changes.items()
        if not accepts(path, before | {key: value}, key)
    }
    assert refused == {
        *((path, key) for path in (end, within) for key in ('batch_size', 'randomness')),
        (within, 'world_size'),
        (within, 'data_seed'),
        (within, 'data'),
    }


def accepts(path: str, identity: dict, key: str) -> bool:
    try:
        return bool(check(path, identity, accepted=[key]))
    except UserError as error:
        assert 'go back to the old values, on which the checkpoint depends' in str(error)
        return False


def test_an_epoch_of_another_length_is_refused(
    image_folder: Path, tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """Mini-generations would end at iterations that never come, and no teacher would be taken."""
    root = shutil.copytree(image_folder, tmp_path / 'images')
    train('sd', tmp_path / 'run', f'data_root={root}')
    (tmp_path / 'run/epoch_3.pth').unlink()  # as if it had been stopped
    for path in root.glob('train/*/[01]*'):
        path.unlink()
    config = tiny_config('sd', tmp_path / 'run', f'data_root={root}')
    choose_start(config, Namespace(**vars(RESUME) | {'accept_change': ['data']}))
    with pytest.raises(UserError, match=r'epoch_2\.pth is of a run with 4 iterations per epoch'):
        Runner.from_cfg(config).train()


def test_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({'meta': {'epoch': 1}}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='not written by this suite'):
        check(str(tmp_path / 'a.pth'), {})


@pytest.mark.parametrize(
    'content',
    [[1], torch.ones(1), {}, {'meta': None}, {'meta': {'epoch': 3}}, {'conv1.weight': 1}, None],
)
def test_a_file_of_another_program_is_named(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / 'a.pth')
    fault = 'was not written by this suite' if isinstance(content, dict) else 'holds a .*not a dict'
    with pytest.raises(UserError, match=rf'a\.pth {fault}'):
        check(str(tmp_path / 'a.pth'), {})


def sd_identity(**algorithm: object) -> dict:
    defaults = dict(name='SD', generations=[2, 2], teacher_weight=1.0, temperature=2.0)
    defaults |= dict(taught_after=2, confidence_penalty=0.0)
    return {
        'task': 'classification',
        'randomness': {'seed': 0},
        'data_seed': 0,
        'algorithm': defaults | algorithm,
        'teacher': None,
    }


def sd_checkpoint(path: Path, epoch: int, **algorithm: object) -> str:
    meta = {'epoch': epoch, 'format': FORMAT, 'identity': sd_identity(**algorithm)}
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
    path = sd_checkpoint(tmp_path / 'a.pth', epoch)
    assert check(path, sd_identity(**ours), may_differ) == []


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
        (1, {'copy_every': 1}),
        (1, {'decay': 0.9}),
        (1, {'lag': 5}),
        (1, {'features': ['a loss']}),
        (3, {'taught_after': 4}),  # the checkpoint's run has a teacher since epoch 2
    ],
)
def test_what_has_happened_differs(epoch: int, ours: dict, tmp_path: Path) -> None:
    (key, *_) = ours
    with pytest.raises(UserError, match=f'trained with algorithm.{key}='):
        check(sd_checkpoint(tmp_path / 'a.pth', epoch), sd_identity(**ours), may_differ)


def test_a_mini_generation_has_begun_with_its_first_iteration(tmp_path: Path) -> None:
    ours = sd_identity(teacher_weight=0.0)
    assert check(sd_checkpoint(tmp_path / 'epoch_2.pth', 2), ours, may_differ) == []
    with pytest.raises(
        UserError, match=r'algorithm\.teacher_weight=1\.0, but this run asks for 0\.0'
    ):
        check(sd_checkpoint(tmp_path / 'epoch_2_iter_1.pth', 2), ours, may_differ)


def test_another_data_seed_is_for_a_branch_alone(tmp_path: Path) -> None:
    """And a branch begins with an epoch, whose images no order has dealt out yet."""
    path, other = sd_checkpoint(tmp_path / 'a.pth', 1), sd_identity() | {'data_seed': 1}
    check(path, other, may_differ, another_run=True)
    within = sd_checkpoint(tmp_path / 'epoch_1_iter_2.pth', 1)
    for refused, another_run in ((path, False), (within, True)):
        with pytest.raises(UserError, match='data_seed=0, but this run asks for 1'):
            check(refused, other, may_differ, another_run)


def test_foreign_teacher_joins_before_it_teaches(tmp_path: Path) -> None:
    ours = sd_identity(taught_after=2) | {'teacher': 'its hash'}
    check(sd_checkpoint(tmp_path / 'a.pth', 2), ours, may_differ)
    with pytest.raises(UserError, match='teacher=None, but this run asks for its hash'):
        check(sd_checkpoint(tmp_path / 'a.pth', 3), ours, may_differ)


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
    'algorithm.schedule=linear': 'param_scheduler.* RestartLR',
    'algorithm.rates=[0.5]': r'restart_weights=\[1.0\], .* \[0.5\]',
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
    check(str(tmp_path / 'epoch_1.pth'), before.identity.to_dict(), may_differ)
    with pytest.raises(UserError, match=CHANGES[change]):
        check(str(tmp_path / 'epoch_1.pth'), after.identity.to_dict(), may_differ)


def test_a_resumed_run_keeps_the_number_of_processes(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny_config('bl', tmp_path)
    one, two = (prepare(config, count).identity.to_dict() for count in (1, 2))
    assert differences(one, two, may_differ(1, one, two, False)) == {'world_size': (1, 2)}


def test_a_checkpoint_within_an_epoch_is_known_by_its_content(checkpoint: Callable) -> None:
    """Whatever its file is called."""
    ours = {'data_seed': 1}
    end = checkpoint({'data_seed': 0}, iter=9, epoch_length=3)
    assert check(end, ours, accepted=['data_seed'])
    within = checkpoint({'data_seed': 0}, iter=10, epoch_length=3)
    with pytest.raises(UserError, match=r'data_seed=0, but this run asks for 1: .* depends'):
        check(within, ours, accepted=['data_seed'])
