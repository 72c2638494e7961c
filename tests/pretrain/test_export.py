import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from pretrain.export import export_backbone, is_export_of
from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.checkpoint import load_from_disk, weights_sha256
from pretrain.runs.errors import UserError


def test_loads_unchanged_in_torchvision(checkpoint: Path, tmp_path: Path) -> None:
    export_backbone(checkpoint, tmp_path / 'backbone.pth')
    weights = torch.load(tmp_path / 'backbone.pth', weights_only=True)
    network = torchvision.models.resnet18()
    network.fc = torch.nn.Identity()
    network.load_state_dict(weights, strict=True)
    student = load_from_disk(checkpoint)['state_dict']
    assert torch.equal(network.layer4[1].conv2.weight, student['student.layer4.1.conv2.weight'])


def test_provenance_travels_with_the_file(checkpoint: Path, tmp_path: Path) -> None:
    returned = export_backbone(checkpoint, tmp_path / 'backbone.pth')
    weights = load_backbone_file(tmp_path / 'backbone.pth')
    assert weights.provenance == returned
    expected = dict(depth=18, stem='v1', style='pytorch', channel_order='RGB', seed=5, epoch=2)
    assert expected.items() <= returned.items()
    assert returned['mean'] == [123.675, 116.28, 103.53]
    assert returned['weights_sha256'] == weights_sha256(weights)
    assert returned['source'] == 'run/epoch_2.pth'
    assert returned['algorithm']['name'] == 'SD'


def test_the_export_of_a_finished_run_is_known(checkpoint: Path, tmp_path: Path) -> None:
    """By recipe, seed and epoch: the snapshot itself may have been deleted."""
    out = tmp_path / 'backbone.pth'
    record = {
        'identity': load_from_disk(checkpoint)['meta']['identity'],
        'history': [{'epoch': 1}, {'epoch': 2}],
    }
    assert not is_export_of(out, record)
    export_backbone(checkpoint, out)
    assert is_export_of(out, record)
    for key, value in (('batch_size', 1), ('randomness', {'seed': 6})):
        assert not is_export_of(out, record | {'identity': record['identity'] | {key: value}})
    assert not is_export_of(out, record | {'history': [{'epoch': 3}]})
    weights = load_from_disk(out)
    weights.provenance['feature_scale'] = 2.0  # by tools/scale_features.py
    torch.save(weights, out)
    assert not is_export_of(out, record)


def test_only_a_backbone_file_is_replaced(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, before = tmp_path / 'out.pth', checkpoint.read_bytes()
    for other in (checkpoint, checkpoint.parent):  # a slip of the user's: SNAPSHOT SNAPSHOT
        with pytest.raises(
            UserError, match=f'{other} exists and is not a backbone file: delete it'
        ):
            export_backbone(checkpoint, other)
    assert checkpoint.read_bytes() == before
    export_backbone(checkpoint, out)
    export_backbone(checkpoint, out)
    assert capsys.readouterr().out == ''
    content = load_from_disk(checkpoint)
    content['state_dict']['student.conv1.weight'][0] += 1
    torch.save(content, checkpoint)
    exported = export_backbone(checkpoint, out)
    assert load_backbone_file(out).provenance == exported
    told = f'Replacing {out}, which held the backbone of run/epoch_2.pth.\n'
    assert capsys.readouterr().out == told


def test_only_seeds_leave_the_recipe_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    content = load_from_disk(checkpoint)
    identity = content['meta']['identity']

    def exported(**other: object) -> dict:
        content['meta']['identity'] = identity | other
        torch.save(content, checkpoint)
        return export_backbone(checkpoint, tmp_path / 'backbone.pth')

    first, second = exported(), exported(randomness={'seed': 6}, data_seed=7)
    assert (first['seed'], second['seed']) == (5, 6)
    assert first['recipe_sha256'] == second['recipe_sha256']
    assert exported(batch_size=4)['recipe_sha256'] != first['recipe_sha256']


def test_a_seed_changes_nothing_else_in_the_identity(tiny_config: Callable, tmp_path: Path) -> None:
    """Else two replicates would have different recipes."""
    first, second = (
        tiny_config('sd', tmp_path, f'randomness.seed={seed}').identity.to_dict() for seed in (0, 3)
    )
    differing = {key for key in first if first[key] != second[key]}
    assert differing and differing <= {'seed', 'data_seed', 'randomness'}


def test_the_runs_own_record_tells_data_and_error(checkpoint: Path, tmp_path: Path) -> None:
    identity = load_from_disk(checkpoint)['meta']['identity']
    data = {'train': {'count': 9, 'sha256': 'a'}, 'val': {'count': 4, 'sha256': 'b'}}
    history = [{'epoch': e, 'metrics': {'top1_error': 50.0 - e, 'top5_error': 9.0}} for e in (1, 2)]
    record = {'format': 2, 'status': 'running', 'task': 'classification', 'identity': identity}
    record |= {'data': data, 'history': history}

    def told(source: Path = checkpoint, **other: object) -> tuple:
        (checkpoint.parent / 'run.json').write_text(json.dumps(record | other))
        provenance = export_backbone(source, tmp_path / 'backbone.pth')
        assert load_backbone_file(tmp_path / 'backbone.pth').provenance == provenance
        return provenance.get('data'), provenance.get('top1_error')

    assert told() == (data, 48.0)
    assert told(history=[*history[:1], {'epoch': 2}]) == (data, None)
    assert told(identity=identity | {'randomness': {'seed': 6}}) == (None, None)
    within = checkpoint.with_name('epoch_2_iter_7.pth')
    shutil.copy(checkpoint, within)
    assert told(within) == (data, None)
    shutil.copy(checkpoint, checkpoint.with_name('snapshot_1.pth'))
    assert told(checkpoint.with_name('snapshot_1.pth')) == (data, 48.0)


def test_export_is_repeatable(checkpoint: Path, tmp_path: Path) -> None:
    first = export_backbone(checkpoint, tmp_path / 'a.pth')
    assert export_backbone(checkpoint, tmp_path / 'b.pth') == first


def test_hash_sees_every_change() -> None:
    weights = {'a': torch.zeros(2, 3), 'b': torch.ones(2)}
    changes = [
        {'a': torch.zeros(3, 2), 'b': torch.ones(2)},
        {'a': torch.zeros(2, 3), 'c': torch.ones(2)},
        {'a': torch.zeros(2, 3), 'b': torch.ones(2, dtype=torch.float64)},
        {'a': torch.zeros(2, 3), 'b': torch.tensor([1.0, 1.0000001])},
    ]
    hashes = {weights_sha256(w) for w in [weights, *changes]}
    assert len(hashes) == 5
    assert weights_sha256(dict(reversed(weights.items()))) == weights_sha256(weights)


def test_changed_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    export_backbone(checkpoint, tmp_path / 'backbone.pth')
    weights = torch.load(tmp_path / 'backbone.pth', weights_only=True)
    weights['bn1.weight'][0] += 1e-3
    torch.save(weights, tmp_path / 'backbone.pth')
    with pytest.raises(UserError, match='changed after its export'):
        load_backbone_file(tmp_path / 'backbone.pth')


def test_other_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    export_backbone(checkpoint, tmp_path / 'own.pth')
    with pytest.raises(UserError, match=r'is a backbone file, .*snapshot_1\.pth\.$'):
        export_backbone(tmp_path / 'own.pth', tmp_path / 'out.pth')
    with pytest.raises(UserError, match='not a backbone file'):
        load_backbone_file(checkpoint)
    torch.save(OrderedDict(a=torch.zeros(1)), tmp_path / 'plain.pth')
    with pytest.raises(UserError, match='not a backbone file'):
        load_backbone_file(tmp_path / 'plain.pth')
    with pytest.raises(UserError, match=r'not written by this suite: .* tools/import_backbone\.py'):
        export_backbone(tmp_path / 'plain.pth', tmp_path / 'out.pth')


def test_other_networks_are_refused(train: Callable, tmp_path: Path) -> None:
    train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    with pytest.raises(UserError, match='not a checkpoint of a ResNet'):
        export_backbone(tmp_path / 'epoch_1.pth', tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


def test_a_stated_width_is_refused_only_if_it_is_another(checkpoint: Path, tmp_path: Path) -> None:
    content = load_from_disk(checkpoint)
    for width in (128, 64):
        content['meta']['identity']['model']['network']['width'] = width
        torch.save(content, checkpoint)
        if width == 128:
            with pytest.raises(UserError, match='of a ResNet of width 128'):
                export_backbone(checkpoint, tmp_path / 'out.pth')
        else:
            assert export_backbone(checkpoint, tmp_path / 'out.pth')['depth'] == 18


def test_weights_that_are_not_finite_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    content = load_from_disk(checkpoint)
    content['state_dict']['student.conv1.weight'][0, 0, 0, 0] = float('nan')
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match='not finite'):
        export_backbone(checkpoint, tmp_path / 'out.pth')
