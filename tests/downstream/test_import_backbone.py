import json
import math
import re
from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.config import Config
from safetensors.torch import save_file
from torch import Tensor, nn

from downstream.build import prepare
from downstream.import_backbone import _read_mmengine_config, import_backbone
from downstream.preprocessings import PREPROCESSINGS
from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.checkpoint import weights_sha256
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.record import describe

IMAGENET = {'style': 'pytorch', 'preprocessing': 'imagenet-rgb'}
BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')


def state_dict(network: str) -> dict[str, Tensor]:
    """A torchvision network's state dict; each tensor repeats one value, so files stay small."""
    with torch.device('meta'):
        layout = torchvision.models.get_model(network, num_classes=4).state_dict()
    torch.manual_seed(0)
    return {n: torch.rand(()).to(t.dtype).expand(t.shape) for n, t in layout.items()}


@pytest.fixture(scope='session')
def resnet50() -> dict[str, Tensor]:
    return state_dict('resnet50')


@pytest.fixture(scope='session')
def resnet18() -> dict[str, Tensor]:
    return state_dict('resnet18')


def deep_stem(weights: dict[str, Tensor], names: str) -> dict[str, Tensor]:
    """The same network with a deep stem under the names of 'timm' or 'openmmlab'."""
    layers = {
        'timm': ('conv1.0', 'conv1.1', 'conv1.3', 'conv1.4', 'conv1.6', 'bn1'),
        'openmmlab': ('stem.0', 'stem.1', 'stem.3', 'stem.4', 'stem.6', 'stem.7'),
    }
    torch.manual_seed(1)
    parts = []
    for before, after in ((3, 32), (32, 32), (32, 64)):
        parts += [nn.Conv2d(before, after, 3, bias=False), nn.BatchNorm2d(after)]
    stem = {}
    for layer, part in zip(layers[names], parts, strict=True):
        stem |= part.state_dict(prefix=f'{layer}.')
    kept = {n: t for n, t in weights.items() if not n.startswith(('conv1.', 'bn1.'))}
    return stem | kept


def averaging(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network with average pooling before the convolution of each shortcut (v1d)."""
    return {
        name.replace('downsample.1', 'downsample.2').replace('downsample.0', 'downsample.1'): tensor
        for name, tensor in weights.items()
    }


def mmpretrain(weights: dict[str, Tensor], **changes: object) -> dict:
    """A checkpoint as mmpretrain's Runner writes it, with the config as mmengine prints it."""
    model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=50, style='pytorch'))
    preprocessor = dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True, num_classes=4
    )
    config = Config(dict(model=model, data_preprocessor=preprocessor, odd={'a b': [1, (2, None)]}))
    config.merge_from_dict(changes)
    named = {
        f'head.{name}' if name.startswith('fc.') else f'backbone.{name}': tensor
        for name, tensor in weights.items()
    }
    return {'meta': {'cfg': config.pretty_text, 'epoch': 100}, 'state_dict': named, 'optimizer': {}}


def imported(content: object, folder: Path, **stated: str):
    source = folder / 'source.pth'
    torch.save(content, source)
    import_backbone(source, folder / 'out.pth', **stated)
    return load_backbone_file(folder / 'out.pth')


@pytest.mark.parametrize('depth', [18, 34, 50, 101, 152])
def test_every_depth_of_torchvision(depth: int, tmp_path: Path) -> None:
    theirs = state_dict(f'resnet{depth}')
    ours = imported(theirs, tmp_path, **IMAGENET)
    assert theirs.keys() - ours.keys() == {'fc.weight', 'fc.bias'}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    facts = dict(arch='ResNet', depth=depth, stem='v1', style='pytorch', channel_order='RGB')
    assert facts.items() <= ours.provenance.items()
    assert ours.provenance['source'] == f'{tmp_path.name}/source.pth'


def test_preprocessings_are_those_of_the_libraries(resnet18, tmp_path: Path) -> None:
    weights = imported(resnet18, tmp_path, preprocessing='caffe-bgr')
    assert weights.provenance['mean'] == [103.53, 116.28, 123.675]
    assert weights.provenance['std'] == [1.0, 1.0, 1.0]
    assert weights.provenance['channel_order'] == 'BGR'
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    for fact in ('mean', 'std'):
        theirs = [255 * value for value in getattr(transform, fact)]
        assert PREPROCESSINGS['imagenet-rgb'][fact] == pytest.approx(theirs)


@pytest.mark.parametrize('names', ['timm', 'openmmlab'])
@pytest.mark.parametrize('stem', ['v1c', 'v1d'])
@pytest.mark.parametrize('network', ['resnet18', 'resnet50'])
def test_deep_stems(names, stem, network, request, tmp_path: Path) -> None:
    plain = request.getfixturevalue(network)
    theirs = deep_stem(plain, names)
    if stem == 'v1d':
        theirs = averaging(theirs)
    ours = imported(theirs, tmp_path, **IMAGENET)
    assert (ours.provenance['stem'], ours.provenance['depth']) == (stem, int(network[6:]))
    assert [n for n in ours if n.startswith('stem.7')] == [f'stem.7.{n}' for n in BATCH_NORM]
    last = {'timm': 'conv1.6', 'openmmlab': 'stem.6'}[names]
    assert torch.equal(ours['stem.6.weight'], theirs[f'{last}.weight'])
    shortcut = f'layer2.0.downsample.{int(stem == "v1d")}.weight'
    assert torch.equal(ours[shortcut], plain['layer2.0.downsample.0.weight'])


@pytest.mark.parametrize('name', ['resnet18d', 'resnet50c'])
def test_timms_own_networks(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip('timm', reason='timm is not needed otherwise; names are emulated')
    theirs = timm.create_model(name, pretrained=False).state_dict()
    ours = imported(theirs, tmp_path, **IMAGENET)
    assert len(ours) == len(theirs) - 2
    assert ours.provenance['stem'] == {'c': 'v1c', 'd': 'v1d'}.get(name[-1], 'v1')


def test_safetensors_with_half_precision(resnet18, tmp_path: Path) -> None:
    types = {torch.float32: torch.float16, torch.int64: torch.int64}
    half = {name: tensor.to(types[tensor.dtype]).contiguous() for name, tensor in resnet18.items()}
    save_file(half, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    import_backbone(tmp_path / 'model.safetensors', tmp_path / 'out.pth', **IMAGENET)
    ours = load_backbone_file(tmp_path / 'out.pth')
    assert ours['conv1.weight'].dtype == torch.float32
    assert torch.equal(ours['conv1.weight'], resnet18['conv1.weight'].half().float())
    assert ours['bn1.num_batches_tracked'].dtype == torch.int64


@pytest.mark.parametrize('wrapper', ['state_dict', 'model', 'model_state_dict', 'net', 'weights'])
@pytest.mark.parametrize(
    'prefix',
    ['', 'module.', 'backbone.', 'module.backbone.', 'model.', '_orig_mod.module.', 'encoder_q.'],
)
def test_wrappers(wrapper, prefix, resnet18, tmp_path: Path) -> None:
    named = {prefix + name: t for name, t in resnet18.items() if not name.startswith('fc.')}
    ours = imported({wrapper: named, 'epoch': 3}, tmp_path, preprocessing='imagenet-rgb')
    assert all(torch.equal(ours[name], resnet18[name]) for name in ours)


def test_one_of_several_networks_is_not_chosen(resnet18, tmp_path: Path) -> None:
    averaged = {f'module.{name}': tensor for name, tensor in resnet18.items()}
    with pytest.raises(UserError, match=r'several ResNets \(model, model_ema\.module\): save'):
        imported({'model': resnet18, 'model_ema': averaged}, tmp_path, **IMAGENET)
    both = {f'encoder_{side}.{name}': t for side in 'qk' for name, t in resnet18.items()}
    with pytest.raises(UserError, match=r'\(state_dict\.encoder_q, state_dict\.encoder_k\)'):
        imported({'state_dict': both}, tmp_path, **IMAGENET)


def test_files_older_than_the_batch_counter(resnet18, tmp_path: Path) -> None:
    old = {name: t for name, t in resnet18.items() if not name.endswith('num_batches_tracked')}
    ours = imported(old, tmp_path, **IMAGENET)
    assert weights_sha256(ours) == weights_sha256(imported(resnet18, tmp_path, **IMAGENET))
    assert ours['bn1.num_batches_tracked'] == torch.tensor(0)


@pytest.mark.parametrize(
    ('changes', 'facts'),
    [
        ({}, dict(style='pytorch', mean=[123.675, 116.28, 103.53], channel_order='RGB')),
        (
            {'model.backbone.style': 'caffe', 'data_preprocessor.to_rgb': False},
            dict(style='caffe', mean=[123.675, 116.28, 103.53], channel_order='BGR'),
        ),
        (
            {'model.data_preprocessor': dict(mean=[1.0] * 3, std=[2.0] * 3, to_rgb=False)},
            dict(mean=[1.0] * 3, std=[2.0] * 3, channel_order='BGR'),
        ),
        # mmdet and mmseg have another name for the order of the channels.
        (
            {'model.data_preprocessor': dict(mean=[1.0] * 3, std=[2.0] * 3, bgr_to_rgb=True)},
            dict(mean=[1.0] * 3, channel_order='RGB'),
        ),
        (
            {'model.data_preprocessor': dict(mean=[1.0] * 3, std=[2.0] * 3, bgr_to_rgb=False)},
            dict(mean=[1.0] * 3, channel_order='BGR'),
        ),
    ],
)
def test_openmmlab_tells_everything(changes, facts, resnet50, tmp_path: Path) -> None:
    ours = imported(mmpretrain(resnet50, **changes), tmp_path)
    assert facts.items() <= ours.provenance.items()
    assert torch.equal(ours['layer4.2.bn3.weight'], resnet50['layer4.2.bn3.weight'])
    assert len(ours) == len(resnet50) - 2


def test_a_config_in_a_checkpoint_is_not_run(resnet50, tmp_path: Path) -> None:
    content = mmpretrain(resnet50)
    content['meta']['cfg'] = 'raise SystemExit("a checkpoint must not run code")'
    with pytest.raises(UserError, match=r'--style pytorch\|caffe --preprocessing'):
        imported(content, tmp_path)
    content['meta']['cfg'] = 'model = dict(backbone=dict(style=print("run")))'
    with pytest.raises(UserError, match='config cannot be read'):
        imported(content, tmp_path)
    content['meta']['cfg'] = 'no Python'
    with pytest.raises(UserError, match='config cannot be read'):
        imported(content, tmp_path)


def timm_config(folder: Path, architecture: str, mean: float = 0.5) -> None:
    config = {
        'architecture': architecture,
        'pretrained_cfg': {'mean': [mean] * 3, 'std': [0.5] * 3},
    }
    (folder / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize(
    'changes',
    [
        {'data_preprocessor.std': [58.395, 0.0, 57.375]},
        {'data_preprocessor.std': [58.395, -1.0, 57.375]},
        {'data_preprocessor.std': 58.395},
        {'data_preprocessor.mean': [123.675]},
        {'data_preprocessor.mean': ['a', 'b', 'c']},
        {'model.backbone.style': 'tensorflow'},
    ],
)
def test_impossible_facts_are_refused(changes: dict, resnet50, tmp_path: Path) -> None:
    ((key, value),) = changes.items()
    fact = key.split('.')[-1]
    with pytest.raises(UserError, match=re.escape(f'{fact} {value}') + '.*: save only'):
        imported(mmpretrain(resnet50, **changes), tmp_path)


def test_numbers_in_timms_config_must_be_finite(resnet50, tmp_path: Path) -> None:
    timm_config(tmp_path, 'resnet50', mean=math.nan)
    with pytest.raises(UserError, match=r'mean .nan, nan, nan., std'):
        imported(resnet50, tmp_path)


def test_a_backbone_file_is_not_imported_again(resnet18, tmp_path: Path) -> None:
    """It would lose the label, seed and error of its pretraining."""
    imported(resnet18, tmp_path, **IMAGENET)
    before = (tmp_path / 'out.pth').read_bytes()
    for out in ('out.pth', 'other.pth'):
        with pytest.raises(
            UserError, match=r'out\.pth is a backbone file already: use it as it is'
        ):
            import_backbone(tmp_path / 'out.pth', tmp_path / out, **IMAGENET)
    assert (tmp_path / 'out.pth').read_bytes() == before
    assert not (tmp_path / 'other.pth').exists()


def test_counters_of_another_type_are_the_same_counters(resnet18, tmp_path: Path) -> None:
    counters = {n: t.float() for n, t in resnet18.items() if n.endswith('num_batches_tracked')}
    ours = imported(resnet18 | counters, tmp_path, **IMAGENET)
    assert ours['bn1.num_batches_tracked'].dtype == torch.int64
    assert weights_sha256(ours) == weights_sha256(imported(resnet18, tmp_path, **IMAGENET))


def test_parts_of_a_large_tensor_are_saved_alone(resnet18, tmp_path: Path) -> None:
    flat = torch.cat([resnet18['conv1.weight'].flatten(), torch.zeros(5_000_000)])
    part = flat[:9408].view(64, 3, 7, 7)
    ours = imported(resnet18 | {'conv1.weight': part}, tmp_path, **IMAGENET)
    assert torch.equal(ours['conv1.weight'], part)
    assert (tmp_path / 'out.pth').stat().st_size < 5_000_000


def test_timms_folder_tells_everything(resnet50, tmp_path: Path) -> None:
    timm_config(tmp_path, 'resnet50d')
    ours = imported(averaging(deep_stem(resnet50, 'timm')), tmp_path)
    assert ours.provenance['mean'] == PREPROCESSINGS['inception-rgb']['mean']
    assert ours.provenance['style'] == 'pytorch'
    with pytest.raises(
        UserError, match=r'trained with mean .127\.5, .* but the option says .123\.675'
    ):
        imported(averaging(deep_stem(resnet50, 'timm')), tmp_path, preprocessing='imagenet-rgb')


def test_another_architecture_in_timms_folder(resnet50, tmp_path: Path) -> None:
    """It differs in layers without weights, which only ``config.json`` shows."""
    timm_config(tmp_path, 'resnetblur50')
    with pytest.raises(UserError, match=r'those of resnet50, .* is of resnetblur50'):
        imported(resnet50, tmp_path, **IMAGENET)
    lacking = {'architecture': 'resnet50', 'pretrained_cfg': {'mean': [0.5, 0.5, 'x']}}
    for damaged in ('{', '[]', json.dumps(lacking)):
        (tmp_path / 'config.json').write_text(damaged)
        with pytest.raises(UserError, match=r'config\.json beside it is damaged'):
            imported(resnet50, tmp_path, **IMAGENET)
    (tmp_path / 'config.json').write_text('{"architectures": ["another library"]}')
    imported(resnet50, tmp_path, **IMAGENET)


@pytest.mark.parametrize(
    ('stated', 'asked'),
    [
        ({}, r'--style pytorch\|caffe --preprocessing imagenet-rgb\|inception-rgb\|caffe-bgr'),
        ({'style': 'caffe'}, r'OUT --preprocessing imagenet-rgb\|inception-rgb\|caffe-bgr$'),
        ({'preprocessing': 'imagenet-rgb'}, r'OUT --style pytorch\|caffe$'),
    ],
)
def test_what_nothing_tells_is_asked_for(stated, asked, resnet50, tmp_path: Path) -> None:
    command = rf'python tools/import_backbone\.py {tmp_path}/source\.pth '
    with pytest.raises(UserError, match=f'{command}.*{asked}'):
        imported(resnet50, tmp_path, **stated)
    assert not (tmp_path / 'out.pth').exists()


def test_the_same_weights_of_another_style_are_another_backbone(
    resnet50, tmp_path: Path, capsys
) -> None:
    for style, said in (('pytorch', 0), ('pytorch', 0), ('caffe', 1)):
        imported(resnet50, tmp_path, style=style, preprocessing='imagenet-rgb')
        assert capsys.readouterr().out.count('which held the backbone of') == said


def test_half_of_the_preprocessing_is_not_enough(resnet50, tmp_path: Path) -> None:
    content = mmpretrain(resnet50)
    content['meta']['cfg'] = content['meta']['cfg'].replace('to_rgb=True', 'other=True')
    with pytest.raises(UserError, match='OUT --preprocessing'):
        imported(content, tmp_path)
    assert (
        imported(content, tmp_path, preprocessing='imagenet-rgb').provenance['style'] == 'pytorch'
    )


@pytest.mark.parametrize(
    ('stated', 'message'),
    [
        ({'style': 'caffe'}, 'trained with style pytorch, but the option says caffe'),
        ({'preprocessing': 'caffe-bgr'}, 'trained with channel_order RGB, but the option says BGR'),
        (
            {'preprocessing': 'inception-rgb'},
            r'trained with mean \[123.675.* but the option says \[127.5',
        ),
    ],
)
def test_what_contradicts_the_file_is_an_error(stated, message, resnet50, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        imported(mmpretrain(resnet50), tmp_path, **stated)


def test_a_run_without_a_label_has_the_files(resnet18, voc: Path, tmp_path: Path) -> None:
    imported(resnet18, tmp_path, **IMAGENET)
    options = [f'data_root={voc}', f'backbone_file={tmp_path}/out.pth']
    config = prepare(load_config('configs/demo/deeplabv3_r18_voc12.py', options))
    assert describe(config)['label'] == 'source'


def test_a_basic_block_has_one_style(resnet18, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='style pytorch, but the option says caffe'):
        imported(resnet18, tmp_path, style='caffe', preprocessing='imagenet-rgb')


def squeezed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {'layer1.0.se.fc1.weight': torch.ones(1)}


def without_statistics(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if 'running' not in name}


def quantised(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {'conv1.weight': weights['conv1.weight'].to(torch.int8)}


def sparse(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {'conv1.weight': torch.ones(64, 3, 7, 7).to_sparse()}


def without_values(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {'conv1.weight': torch.empty(64, 3, 7, 7, device='meta')}


def numbered(weights: dict[str, Tensor]) -> dict:
    return weights | {1: torch.ones(1)}


def poisoned(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    spoilt = weights['layer3.1.conv2.weight'].clone()
    spoilt[0, 0, 0, 0] = float('inf')
    return weights | {'layer3.1.conv2.weight': spoilt}


def one_gone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name != 'layer2.1.bn2.weight'}


def two_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    named = {f'backbone.{name}': tensor for name, tensor in weights.items()}
    return named | {'neck.0.weight': torch.ones(1)}


def three_blocks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if not name.startswith('layer4.2.')}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (squeezed, r'1 tensor is not in a ResNet-50 v1 \(layer1.0.se.fc1.weight\): only plain'),
        (
            without_statistics,
            r'106 tensors that a ResNet-50 v1 has are missing \(bn1.running_mean, ',
        ),
        (one_gone, r'1 tensor that a ResNet-50 v1 has is missing \(layer2.1.bn2.weight\)'),
        (quantised, 'conv1.weight has the type torch.int8'),
        (sparse, 'conv1.weight is not a dense tensor'),
        (without_values, 'conv1.weight is not a dense tensor'),
        (numbered, '1 is not a tensor: save only the state dict'),
        (poisoned, 'layer3.1.conv2.weight is not finite'),
        (two_prefixes, 'neck.0.weight is not part of the backbone'),
        (three_blocks, r'is not a ResNet-18, .* its stages have \(3, 4, 6, 2\) blocks'),
        (averaging, r'20 tensors that .* are missing \(layer1.0.downsample.0.weight, '),
    ],
)
def test_anything_but_a_plain_resnet_is_named(change, message, resnet50, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        imported(change(resnet50), tmp_path, **IMAGENET)
    assert not (tmp_path / 'out.pth').exists()


@pytest.mark.parametrize(
    ('network', 'message'),
    [
        ('resnext50_32x4d', r'a different shape .*layer1.0.conv1.weight \(128, 64, 1, 1\) instead'),
        ('wide_resnet50_2', r'a different shape .*layer1.0.conv1.weight \(128, 64, 1, 1\) instead'),
        ('vit_b_32', r'\(0, 0, 0, 0\) blocks and its first tensor is class_token'),
        ('mobilenet_v3_small', 'first tensor is features.0.0.weight'),
    ],
)
def test_another_family_is_named(network, message, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        imported(state_dict(network), tmp_path, **IMAGENET)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([1, 2], 'holds a list, not a dict of tensors'),
        ({}, 'holds no state dict'),
        ({'epoch': 1}, 'epoch is not a tensor'),
        (
            {'meta': {'identity': {}}, 'state_dict': {'student.conv1.weight': torch.ones(1)}},
            r'written by this suite: if it is a pretraining checkpoint, use tools/export\.py',
        ),
    ],
)
def test_no_state_dict_is_an_error(content, message, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        imported(content, tmp_path, **IMAGENET)


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_our_classifier_in_another_run(prefix, resnet18, tmp_path: Path) -> None:
    """Its snapshots also hold a teacher, but no identity."""
    weights = {f'{prefix}student.{name}': tensor for name, tensor in resnet18.items()}
    weights |= {f'{prefix}teacher.{name}': -tensor for name, tensor in resnet18.items()}
    ours = imported({'state_dict': weights}, tmp_path, preprocessing='imagenet-rgb')
    assert len(ours) == len(resnet18) - 2
    assert all(torch.equal(ours[name], resnet18[name]) for name in ours)


def test_detector_of_a_run_of_mmengine(resnet50, tmp_path: Path) -> None:
    """Its config has style and preprocessing; its neck and heads are left out."""
    content = mmpretrain(resnet50)
    content['state_dict'] |= {'neck.lateral.weight': torch.ones(1), 'rpn_head.a': torch.ones(1)}
    ours = imported(content, tmp_path)
    assert len(ours) == len(resnet50) - 2
    assert ours.provenance['channel_order'] == 'RGB'


class Unsafe:
    def __reduce__(self):
        return print, ('run',)


def test_damaged_missing_and_unsafe_files(resnet18, tmp_path: Path, capsys) -> None:
    for suffix in ('pth', 'safetensors'):
        damaged = tmp_path / f'damaged.{suffix}'
        damaged.write_bytes(b'x' * 100)
        with pytest.raises(UserError, match=f'damaged.{suffix} is damaged'):
            import_backbone(damaged, tmp_path / 'out.pth', **IMAGENET)
        with pytest.raises(UserError, match=f'No checkpoint .*missing.{suffix}'):
            import_backbone(tmp_path / f'missing.{suffix}', tmp_path / 'out.pth', **IMAGENET)
    with pytest.raises(UserError, match=r'could run code.*save only model\.state_dict\(\)'):
        imported({'state_dict': resnet18, 'args': Unsafe()}, tmp_path, **IMAGENET)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(('part', 'order'), [('backbone', 'BGR'), ('network', None)])
def test_only_openmmlabs_models_load_bgr(part: str, order: str | None) -> None:
    """A loop of one's own with our classifier may give it any order."""
    text = f'model = dict({part}=dict(depth=50), data_preprocessor=dict(bgr_to_rgb=False))'
    found = _read_mmengine_config({'meta': {'cfg': text}})
    assert found.get('channel_order') == order
