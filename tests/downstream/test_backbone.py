from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from downstream.backbone import (
    ExportedBackbone,
    backbone_parts,
    check_handoff,
    fitting_options,
    take_layers,
    top_level,
    values_agree,
)
from downstream.build import prepare
from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError

PYRAMID = 'configs/downstream/faster_rcnn_r50_fpn_voc07.py'
DEMOS = ('configs/demo/faster_rcnn_r18_voc07.py', 'configs/demo/deeplabv3_r18_voc12.py')


def prepared(config, voc, backbone_file, *options):
    options = (f'data_root={voc}', f'backbone_file={backbone_file}', *options)
    return prepare(load_config(config, options))


@pytest.fixture(name='provenance')
def provenance_fixture(backbone_file):
    return load_backbone_file(backbone_file).provenance


@pytest.mark.parametrize('config', DEMOS)
def test_every_tensor_of_the_file_arrives_and_stays(config, voc, backbone_file):
    config = prepared(config, voc, backbone_file)
    with MODELS.switch_scope_and_registry(config.default_scope) as models:
        model = models.build(config.model)
    model.init_weights()
    loaded = dict(model.backbone.state_dict())
    if config.task == 'detection':
        shared = model.roi_head.shared_head.state_dict()
        assert top_level(loaded) == ('conv1', 'bn1', 'layer1', 'layer2', 'layer3')
        assert top_level(shared) == ('layer4',)
        loaded |= shared
    weights = load_backbone_file(backbone_file)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)


@pytest.mark.parametrize('config', DEMOS)
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'drop': ['layer2.1.bn2.running_var']},
            '1 tensor that the model has is missing .*layer2.1',
        ),
        ({'drop': ['layer4.0.conv1.weight']}, r'1 tensor .*\(layer4\.0\.conv1\.weight\)'),
        (
            {'add': {'layer3.0.se.weight': torch.ones(1)}},
            r'1 tensor is not in the model \(layer3.0.se.weight',
        ),
        (
            {'add': {'conv1.weight': torch.ones(64, 1, 7, 7)}},
            'a different shape than in the model .*conv1.weight',
        ),
        ({'add': {'layer5.weight': torch.ones(1)}}, 'layer5, but the model takes .* used once'),
        ({'depth': 34}, 'depth 34, the config has 18: change model.backbone.depth'),
        ({'stem': 'v1c'}, 'stem v1c, the config has v1: change model.backbone.deep_stem'),
        ({'style': 'caffe'}, 'style caffe, the config has pytorch'),
        ({'arch': 'SEResNet'}, 'arch SEResNet, the config has ResNet'),
        ({'channel_order': 'BGR'}, 'channel_order BGR, the config has RGB'),
        ({'mean': [0.0, 0.0, 0.0]}, r'mean \[0.0, 0.0, 0.0\], the config has \[123.675'),
        ({'std': [1.0, 1.0, 1.0]}, r'std \[1.0, 1.0, 1.0\], the config has \[58.395'),
        ({'weights_sha256': '0'}, 'was changed after its export'),
    ],
)
def test_another_backbone_is_an_error_before_the_run(
    config, change, message, write_backbone, voc, tmp_path
):
    path = write_backbone(tmp_path / 'other.pth', **change)
    with pytest.raises(UserError, match=message):
        prepared(config, voc, path)


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.backbone.depth=34', 'depth 18, the config has 34: change model.backbone.depth'),
        ('model.roi_head.shared_head.depth=34', 'change model.roi_head.shared_head.depth'),
        ('model.roi_head.shared_head.style=caffe', 'change model.roi_head.shared_head.style'),
        ('model.backbone.style=caffe', 'style pytorch, the config has caffe'),
        ('model.backbone.deep_stem=True', 'stem v1, the config has v1c'),
        ('model.backbone.avg_down=True', 'stem v1, the config has none of'),
        ('model.backbone.type=ResNetV1c', 'arch ResNet, the config has ResNetV1c'),
        ('model.backbone.type=ResNeXt', 'arch ResNet, the config has ResNeXt'),
        ('model.data_preprocessor.bgr_to_rgb=False', 'channel_order RGB, the config has BGR'),
        ('model.data_preprocessor.mean=[103.53,116.28,123.675]', 'has .103.53, 116.28, 123.675.'),
        ('model.data_preprocessor.std=[1,1,1]', 'model.data_preprocessor.std'),
    ],
)
def test_another_config_is_an_error_before_the_run(option, message, voc, backbone_file):
    with pytest.raises(UserError, match=message):
        prepared(DEMOS[0], voc, backbone_file, option)


def test_the_libraries_own_bases_would_not_pass(provenance):
    """mmdet's C4 base is caffe style and BGR; mmseg's DeepLabv3 base has a deep stem."""
    caffe = load_config(DEMOS[0]).model
    caffe.data_preprocessor = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0])
    with pytest.raises(UserError, match='channel_order'):
        check_handoff(caffe, provenance)
    deep = load_config(DEMOS[1]).model
    deep.backbone.type = 'ResNetV1c'
    with pytest.raises(UserError, match='arch'):
        check_handoff(deep, provenance)


def test_rounding_of_mean_and_std_is_no_difference(provenance):
    check_handoff(load_config(DEMOS[1]).model, provenance)
    rounded = {**provenance, 'mean': [123.68, 116.28, 103.53]}
    with pytest.raises(UserError, match='mean'):
        check_handoff(load_config(DEMOS[1]).model, rounded)


def test_a_normalisation_that_is_not_there_is_an_error(provenance):
    model = ConfigDict(
        backbone=dict(type='ResNet', depth=18), data_preprocessor=dict(bgr_to_rgb=True)
    )
    with pytest.raises(UserError, match=r'the config has \[\]'):
        check_handoff(model, provenance)


OTHER = {
    'stem': 'v1c',
    'style': 'caffe',
    'mean': [103.53, 116.28, 123.675],
    'std': [1.0, 1.0, 1.0],
    'channel_order': 'BGR',
}


@pytest.mark.parametrize('config', [*DEMOS, PYRAMID])
def test_a_config_is_fitted_to_a_backbone_and_back(config, provenance):
    provenance = provenance | {'depth': load_config(config).model.backbone.depth}
    assert fitting_options(load_config(config), provenance) == []
    other = provenance | OTHER
    parts = backbone_parts(load_config(config).model)
    options = fitting_options(load_config(config), other)
    assert len(options) == 1 + len(parts) + 3
    assert 'model.backbone.deep_stem=True' in options
    assert 'model.data_preprocessor.mean=[103.53, 116.28, 123.675]' in options
    fitted = load_config(config, options)
    check_handoff(fitted.model, other)
    assert fitting_options(fitted, other) == []
    with pytest.raises(UserError, match='stem v1, the config has v1c'):
        check_handoff(fitted.model, provenance)
    back = fitting_options(fitted, provenance)
    check_handoff(load_config(config, [*options, *back]).model, provenance)


def test_depth_and_family_are_not_fitted(provenance):
    for fact, value in (('depth', 50), ('arch', 'SEResNet')):
        other = provenance | {fact: value}
        config = load_config(DEMOS[0])
        assert fitting_options(config, other) == []
        with pytest.raises(UserError, match=fact):
            check_handoff(config.model, other)


def test_a_switch_that_is_not_there_is_off(provenance):
    config = load_config(DEMOS[1])
    del config.model.backbone['deep_stem'], config.model.backbone['avg_down']
    assert fitting_options(config, provenance) == []
    assert fitting_options(config, provenance | {'stem': 'v1c'}) == [
        'model.backbone.deep_stem=True'
    ]


def test_a_shared_head_cannot_take_a_pooling_shortcut(provenance):
    for path in (*DEMOS, PYRAMID):
        config = load_config(path)
        other = provenance | {'stem': 'v1d', 'depth': config.model.backbone.depth}
        fitted = load_config(path, fitting_options(config, other))
        if len(backbone_parts(fitted.model)) == 1:
            check_handoff(fitted.model, other)
        else:
            with pytest.raises(UserError, match=r'v1d, .* without model.roi_head.shared_head'):
                check_handoff(fitted.model, other)


def test_select_takes_the_layers_of_one_part():
    module = torch.nn.ModuleDict({'layer4': torch.nn.Linear(2, 3)})
    weights = {'conv1.weight': torch.ones(1)} | dict(module.state_dict())
    assert take_layers(weights, module, ['layer4']).keys() == module.state_dict().keys()


def test_the_initializer_is_strict_by_itself(backbone_file):
    module = torch.nn.ModuleDict({'conv1': torch.nn.Conv2d(3, 64, 7, bias=True)})
    with pytest.raises(UserError, match='1 tensor that the model has is missing'):
        ExportedBackbone(backbone_file, ['conv1'])(module)


def test_a_damaged_or_missing_file_is_an_error(voc, backbone_file, tmp_path):
    damaged = tmp_path / 'damaged.pth'
    damaged.write_bytes(Path(backbone_file).read_bytes()[:1000])
    with pytest.raises(UserError, match='damaged'):
        prepared(DEMOS[0], voc, damaged)
    with pytest.raises(UserError, match=r'missing\.pth'):
        prepared(DEMOS[0], voc, tmp_path / 'missing.pth')
    with pytest.raises(UserError, match='backbone_file=FILE'):
        prepared(DEMOS[0], voc, '')


def test_numbers_of_a_fact_agree_but_for_rounding() -> None:
    assert values_agree([123.675, 116.28], (255 * 0.485, 255 * 0.456))
    assert not values_agree([123.675, 116.28], [123.68, 116.28])
    assert not values_agree([1.0], [1.0, 1.0])
