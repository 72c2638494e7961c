import ast
import functools
import json
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.config import Config
from safetensors.torch import save_file

import downstream.studies.transfer as transfer_module
import pretrain.runs.launch as launch_module
from downstream.studies.transfer import Transfer
from pretrain.build import prepare
from pretrain.runs.checkpoint import weights_sha256
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.launch import Launcher, Run
from tests.conftest import ROOT

DETECTION = Path('configs/demo/faster_rcnn_r18_voc07.py')
SEGMENTATION = Path('configs/demo/deeplabv3_r18_voc12.py')
METRICS = {DETECTION.stem: ('detection', 'mAP'), SEGMENTATION.stem: ('segmentation', 'mIoU')}
PROVENANCE = {
    'arch': 'ResNet',
    'depth': 18,
    'stem': 'v1',
    'style': 'pytorch',
    'mean': [123.675, 116.28, 103.53],
    'std': [58.395, 57.12, 57.375],
    'channel_order': 'RGB',
}


load_once = functools.cache(load_config)  # reading configs takes most of the time


def _frozen(argument: Path | list[str]) -> Path | tuple[str, ...]:
    return argument if isinstance(argument, Path) else tuple(argument)


def write_backbone(path: Path, value: float, **facts: object) -> Path:
    weights = OrderedDict(w=torch.tensor([value]))
    weights.provenance = PROVENANCE | {'weights_sha256': weights_sha256(weights)} | facts
    torch.save(weights, path)
    return path


def prepared(config: Config, *_: object) -> Config:
    """A prepared pretraining config, or a stand-in for a downstream one with the keys that a
    Launcher reads, since there is no data."""
    if 'algorithm' in config:
        return prepare(config)
    identity = {key: config[key] for key in ('randomness', 'batch_size', 'precision')}
    if 'backbone_file' in config:
        identity['backbone'] = torch.load(config.backbone_file, weights_only=True).provenance
    return Config(dict(identity=identity))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the runs that were started; each writes a record like that of a real run."""
    titles = []

    def launch(self: Launcher, run: Run) -> None:
        titles.append(run.title)
        run.work_dir.mkdir(parents=True, exist_ok=True)
        config = prepared(load_once(run.config, tuple(run.options)), 1)
        same = {'format': 2, 'status': 'finished', 'wall_seconds': 1.0, 'accepted_changes': []}
        same['identity'] = config.identity.to_dict()
        if run.config.stem not in METRICS:
            generations = [{'generation': 1, 'last': {'top1_error': 50.0}}]
            record = same | {'task': 'classification', 'generations': generations}
            record['paper'] = {'metric': 'top1_error'}
            (run.work_dir / 'run.json').write_text(json.dumps(record))
            return
        settings = dict(option.split('=', 1) for option in run.options)
        task, metric = METRICS[run.config.stem]
        record = same | {
            'task': task,
            'config': run.config.stem,
            'label': ast.literal_eval(settings['label']),
            'device': 'CPU',
            'world_size': 1,
            'paper': {'metric': metric},
            'data': {'train': {'count': 1}, 'val': {'count': 1}},
            'history': [{'epoch': 1}],
            'generations': [{'last': {metric: 0.5}}],
        }
        (run.work_dir / 'run.json').write_text(json.dumps(record))

    monkeypatch.setattr(Launcher, '_launch', launch)
    for module in (transfer_module, launch_module):
        monkeypatch.setattr(module, 'load_config', lambda *args: load_once(*map(_frozen, args)))
    monkeypatch.setattr(transfer_module, 'prepare_without_backbone', lambda *_: None)
    monkeypatch.setattr(launch_module, 'prepare', prepared)
    return titles


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    files = {
        name: [write_backbone(tmp_path / f'{name}.pth', x, seed=4)]
        for name, x in (('BL', 1), ('SD', 2))
    }
    return Transfer(files, [DETECTION, SEGMENTATION], seeds=[0, 1], work_dir=tmp_path / 'out')


def test_every_backbone_task_and_seed_once(transfer: Transfer, launched: list[str]) -> None:
    table = str(transfer.run())
    assert len(launched) == len(set(launched)) == 2 * 2 * 2
    assert launched[0].startswith(f'[1/8] {DETECTION.stem}, BL, pretraining4, seed 0')
    assert launched[-1].startswith(f'[8/8] {SEGMENTATION.stem}, SD, pretraining4, seed 1')
    assert (transfer.work_dir / 'transfer.md').read_text() == table
    assert [line.split('|')[2].strip() for line in table.splitlines()[2:6]] == ['BL', 'SD'] * 2


def test_finished_runs_are_skipped_and_others_done(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    transfer.run()
    launched.clear()
    record = transfer.work_dir / f'SD/pretraining4/{SEGMENTATION.stem}/seed1/run.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'status': 'running'}))
    (transfer.work_dir / f'BL/pretraining4/{DETECTION.stem}/seed0/run.json').unlink()
    transfer.run()
    assert launched == [
        f'[1/8] {DETECTION.stem}, BL, pretraining4, seed 0',
        f'[8/8] {SEGMENTATION.stem}, SD, pretraining4, seed 1',
    ]


def test_results_of_another_backbone_are_refused(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    transfer.run()
    write_backbone(tmp_path / 'SD.pth', 3, seed=4)
    with pytest.raises(UserError, match=r'other settings: it has backbone\.weights_sha256='):
        transfer.run()


def test_finished_run_with_other_settings_is_refused(
    transfer: Transfer, launched: list[str]
) -> None:
    transfer.run()
    record = transfer.work_dir / f'SD/pretraining4/{SEGMENTATION.stem}/seed1/run.json'
    content = json.loads(record.read_text())
    content['identity']['batch_size'] = 7
    record.write_text(json.dumps(content))
    with pytest.raises(UserError, match='other settings: it has batch_size=7, but this one has 8'):
        transfer.run()


def test_records_of_earlier_calls_do_not_enter_the_table(
    transfer: Transfer, launched: list[str]
) -> None:
    transfer.run()
    table = str(replace(transfer, seeds=[1]).run())
    assert [line.count(' 1 × 1 ') for line in table.splitlines()[2:6]] == [1] * 4


def test_impossible_comparisons_stop_before_anything_runs(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match='given twice'):
        replace(transfer, seeds=[0, 0]).run()
    write_backbone(tmp_path / 'SD.pth', 2, depth=152)
    with pytest.raises(UserError, match=r'SD is a ResNet-152, .* builds a ResNet-18'):
        transfer.run()
    assert not launched


def test_network_without_a_detector_stops_before_anything_runs(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    """Otherwise a week of pretraining would end in a backbone that no detector can use."""
    squeezed, wide = Path('configs/pretrain/ser152_sd.py'), tmp_path / 'wide.py'
    bases = [str(ROOT / f'configs/_base_/{name}.py') for name in ('runtime', 'pretrain/demo')]
    wide.write_text(f'_base_ = {bases}\nmodel = dict(network=dict(depth=50, width=128))\n')
    with pytest.raises(UserError, match='SE is a SEResNet, but the detectors'):
        replace(transfer, backbones={'SE': [squeezed]}).run()
    with pytest.raises(UserError, match='W is a ResNet of width 128, but the detectors'):
        replace(transfer, backbones={'W': [wide]}).run()
    assert not launched


def test_a_label_may_look_like_a_number(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    files = {'50': [tmp_path / 'BL.pth'], '101': [tmp_path / 'SD.pth']}
    assert 'missing' not in str(replace(transfer, backbones=files).run())


def test_missing_backbone_stops_before_anything_runs(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    (tmp_path / 'SD.pth').unlink()
    with pytest.raises(UserError, match=r'No checkpoint .*SD\.pth'):
        transfer.run()
    assert not launched


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch, launched: list[str]) -> list[Run]:
    """The ``Run`` objects that were started."""
    runs = []
    launch = Launcher._launch
    monkeypatch.setattr(Launcher, '_launch', lambda *args: (runs.append(args[1]), launch(*args)))
    return runs


def test_each_run_is_fitted_to_its_backbone(
    transfer: Transfer, options: list[Run], tmp_path: Path, capsys
) -> None:
    """One table can compare backbones with different preprocessing."""
    caffe = {'style': 'caffe', 'channel_order': 'BGR', 'mean': [103.53, 116.28, 123.675]}
    write_backbone(tmp_path / 'SD.pth', 2, seed=4, **caffe)
    assert str(replace(transfer, seeds=[0]).run()).count('| SD ') == 2
    given = {(run.work_dir.parts[-4], run.config): run.options for run in options}
    assert [o for o in given['BL', DETECTION] if o.startswith('model.')] == []
    assert [o for o in given['SD', DETECTION] if o.startswith('model.')] == [
        'model.backbone.style=caffe',
        'model.roi_head.shared_head.style=caffe',
        'model.data_preprocessor.mean=[103.53, 116.28, 123.675]',
        'model.data_preprocessor.bgr_to_rgb=False',
    ]
    said = [line for line in capsys.readouterr().out.splitlines() if 'adapted' in line]
    assert len(said) == 2
    assert said[0].startswith(
        f'{DETECTION.stem}, SD, pretraining4, seed 0: adapted to the backbone with '
    )
    assert said[1].endswith('model.data_preprocessor.bgr_to_rgb=False')


def test_what_no_config_can_take_stops_before_anything_runs(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    write_backbone(tmp_path / 'SD.pth', 2, stem='v1d')
    with pytest.raises(UserError, match=r'v1d, .* without model\.roi_head\.shared_head'):
        transfer.run()
    assert not launched
    assert str(replace(transfer, configs=[SEGMENTATION]).run()).count('| SD ') == 1


def test_a_foreign_file_that_tells_everything_is_imported(
    transfer: Transfer, options: list[Run], tmp_path: Path
) -> None:
    named = {f'backbone.{n}': t for n, t in torchvision.models.resnet18().state_dict().items()}
    named = {n: t for n, t in named.items() if '.fc.' not in n}
    preprocessor = 'dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)'
    content = {'meta': {'cfg': f'data_preprocessor = {preprocessor}'}, 'state_dict': named}
    torch.save(content, tmp_path / 'mmpretrain.pth')
    backbones = transfer.backbones | {'MM': [tmp_path / 'mmpretrain.pth']}
    foreign = replace(transfer, backbones=backbones, configs=[SEGMENTATION], seeds=[0])
    foreign.run()
    assert f'backbone_file={transfer.work_dir}/MM/pretraining0/backbone.pth' in options[-1].options
    assert 'model.data_preprocessor.mean=[1.0, 2.0, 3.0]' in options[-1].options
    replace(foreign).run()
    assert len(options) == 3  # still valid after another import


def test_a_foreign_file_does_not_replace_another_backbone(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    """It may be the only copy: that of a pretraining whose snapshots were deleted."""
    held = transfer.work_dir / 'TV/pretraining0/backbone.pth'
    held.parent.mkdir(parents=True)
    write_backbone(held, 5)
    before = held.read_bytes()
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / 'model.safetensors')
    backbones = transfer.backbones | {'TV': [tmp_path / 'model.safetensors']}
    with pytest.raises(UserError, match=r'holds the backbone of .*: give TV another name'):
        replace(transfer, backbones=backbones).run()
    assert held.read_bytes() == before


def test_a_foreign_file_that_does_not_tell_is_asked_about(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / 'model.safetensors')
    backbones = transfer.backbones | {'TV': [tmp_path / 'model.safetensors']}
    with pytest.raises(
        UserError, match=r'import_backbone\.py .*/model\.safetensors OUT --preprocessing'
    ):
        replace(transfer, backbones=backbones).run()
    assert not launched


def test_files_of_one_name_are_replicates(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    """The first replicate of every label is fine-tuned before the second ones."""
    backbones = {
        label: [
            write_backbone(tmp_path / f'{label}{seed}.pth', number + 10 * seed, seed=seed)
            for seed in (7, 5)
        ]
        for number, label in enumerate(('BL', 'SD'))
    }
    table = str(replace(transfer, backbones=backbones, configs=[DETECTION]).run())
    assert [title.split(', ')[1:] for title in launched] == [
        [label, f'pretraining{pretraining}', f'seed {seed}']
        for pretraining in (7, 5)
        for label in ('BL', 'SD')
        for seed in (0, 1)
    ]
    assert table.count(' 2 × 2 ') == 2
    assert (transfer.work_dir / f'SD/pretraining5/{DETECTION.stem}/seed1/run.json').is_file()


def test_files_that_do_not_tell_their_seed_are_numbered(
    transfer: Transfer, launched: list[str], tmp_path: Path
) -> None:
    files = [write_backbone(tmp_path / f'{x}.pth', x) for x in (1, 2)]
    table = str(replace(transfer, backbones={'BL': files}, configs=[DETECTION]).run())
    assert {title.split(', ')[2] for title in launched} == {'pretraining0', 'pretraining1'}
    assert ' 2 × 2 ' in table


@pytest.mark.parametrize(
    ('facts', 'message'),
    [
        ({'seed': 5, 'depth': 50}, 'replicates of BL differ in depth'),
        ({'seed': 5, 'algorithm': {'generations': [9]}}, 'replicates of BL differ in algorithm'),
        ({'seed': 5, 'data': {'count': 9}}, 'replicates of BL differ in data'),
        ({'seed': 4}, 'replicates of BL have the pretraining seed 4'),
    ],
)
def test_unlike_replicates_stop_before_anything_runs(
    transfer: Transfer, launched: list[str], tmp_path: Path, facts: dict, message: str
) -> None:
    files = [tmp_path / 'BL.pth', write_backbone(tmp_path / 'other.pth', 3, **facts)]
    with pytest.raises(UserError, match=message):
        replace(transfer, backbones={'BL': files}).run()
    with pytest.raises(UserError, match='Two files of BL hold the same weights'):
        replace(transfer, backbones={'BL': files[:1] * 2}).run()
    with pytest.raises(UserError, match='BL has a config and other files'):
        replace(transfer, backbones={'BL': [Path('bl.py'), *files]}).run()
    with pytest.raises(UserError, match='--pretrain-seeds needs a config'):
        replace(transfer, pretrain_seeds=[0, 1]).run()
    assert not launched


def test_each_config_is_pretrained_with_each_seed(
    transfer: Transfer,
    launched: list[str],
    options: list[Run],
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SD starts from the first mini-generation of SE with the same seed."""

    def export(checkpoint: Path, out: Path) -> None:
        assert checkpoint.name == 'snapshot_1.pth'  # the last generation of the record
        out.parent.mkdir(parents=True, exist_ok=True)
        seed = int(checkpoint.parent.name.removeprefix('seed'))
        value = sum(map(ord, str(out)))
        write_backbone(out, value, seed=seed, source=checkpoint.parts[-3])

    monkeypatch.setattr(transfer_module, 'export_backbone', export)
    monkeypatch.setattr(transfer_module, 'is_export_of', lambda backbone, _: backbone.exists())
    settings = ['epochs=2', 'image_size=32', 'batch_size=8', 'model.network.num_classes=4']
    study = replace(
        transfer,
        backbones={m.upper(): [Path(f'configs/demo/r18_{m}.py')] for m in ('bl', 'se', 'sd')},
        configs=[DETECTION],
        pretrain_seeds=[0, 3],
        pretrain_options=[f'data_root={image_folder}', *settings],
    )
    table = str(study.run())
    assert table.count(' 2 × 2 ') == 3
    pretrained = {run.work_dir: run.start_from for run in options if run.config.stem[:3] == 'r18'}
    folder = study.work_dir / 'pretrain'
    assert pretrained == {
        folder / f'r18_{m}/seed{seed}': folder / f'r18_se/seed{seed}/snapshot_1.pth'
        if m == 'sd'
        else None
        for m in ('bl', 'se', 'sd')
        for seed in (0, 3)
    }
    assert (study.work_dir / f'SD/pretraining3/{DETECTION.stem}/seed1/run.json').is_file()
    launched.clear()
    assert str(study.run()) == table
    assert not launched
    # Nor were the snapshots needed again: users may delete them after the export.
    asked = []
    monkeypatch.setattr(transfer_module, 'export_backbone', lambda *pair: asked.append(pair))
    assert str(study.run()) == table
    assert not asked
    (newer := folder / 'r18_bl/seed0/snapshot_1.pth').write_bytes(b'')
    study.run()
    assert asked == [(newer, study.work_dir / 'BL/pretraining0/backbone.pth')]
    newer.unlink()
    asked.clear()
    monkeypatch.setattr(transfer_module, 'is_export_of', lambda *_: False)
    study.run()
    assert len(asked) == 6
    said = re.findall(r'\$demo/(\S+/run\.json)', (ROOT / 'tools/demo.sh').read_text())
    assert said and all((study.work_dir / path).is_file() for path in said)


def test_the_weights_of_the_last_mini_generation_are_exported(
    transfer: Transfer,
    launched: list[str],
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the first are equal for SE and SD."""
    read, names = transfer_module.read_record, []
    two = {'generations': [{'generation': 1}, {'generation': 2}]}
    monkeypatch.setattr(transfer_module, 'read_record', lambda path: read(path) | two)
    monkeypatch.setattr(transfer_module, 'is_export_of', lambda *_: False)
    monkeypatch.setattr(transfer_module, 'export_backbone', lambda s, _: names.append(s.name))
    settings = ['epochs=2', 'image_size=32', 'batch_size=8', 'model.network.num_classes=4']
    study = replace(
        transfer,
        backbones={'SD': [Path('configs/demo/r18_sd.py')]},
        pretrain_options=[f'data_root={image_folder}', *settings],
    )
    study._pretrain()
    assert names == ['snapshot_2.pth']
