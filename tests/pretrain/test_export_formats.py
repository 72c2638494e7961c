"""Exports, loaded by the libraries that they are for: the same logits and feature maps."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
import yaml
from mmengine.config import Config
from torch import Tensor, nn

from downstream.import_backbone import import_backbone
from downstream.mmcv_ops import install
from pretrain.export import export
from pretrain.export_formats import WRITERS
from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError
from tests.conftest import ROOT
from tools.export import FORMATS

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
README = ROOT / 'tools/README.md'
SNAPSHOT = 'work_dirs/demo/pretrain/r18_sd/seed0/snapshot_2.pth'


def library(name: str):
    return pytest.importorskip(name, reason=f'{name} is not installed')


def student(checkpoint: Path) -> torchvision.models.ResNet:
    weights = load_from_disk(checkpoint)['state_dict']
    depth = load_from_disk(checkpoint)['meta']['identity']['model']['network']['depth']
    network = torchvision.models.get_model(f'resnet{depth}', num_classes=4)
    network.load_state_dict(
        {n.removeprefix('student.'): t for n, t in weights.items() if n.startswith('student.')}
    )
    return network.eval()


def features(network: nn.Module, inputs: Tensor) -> Tensor:
    """The feature maps before the final pooling."""
    return nn.Sequential(*list(network.children())[:-2])(inputs)


@pytest.fixture(scope='module')
def pixels() -> Tensor:
    """RGB from 0 to 255."""
    return 255 * torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def inputs(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_tool_offers_every_format() -> None:
    assert tuple(WRITERS) == FORMATS


def test_torchvision(checkpoint: Path, tmp_path: Path, inputs: Tensor) -> None:
    export(checkpoint, tmp_path / 'whole.pth', 'torchvision', classifier=True)
    network = torchvision.models.resnet18(num_classes=4)
    network.load_state_dict(torch.load(tmp_path / 'whole.pth', weights_only=True))
    with torch.inference_mode():
        assert_same(network.eval()(inputs), student(checkpoint)(inputs))
    export(checkpoint, tmp_path / 'backbone.pth')
    assert load_backbone_file(tmp_path / 'backbone.pth').provenance['depth'] == 18


@pytest.mark.parametrize('depth', [18, 50])
def test_timm(depth: int, write_checkpoint: Callable, tmp_path: Path, inputs: Tensor) -> None:
    timm = library('timm')
    checkpoint = write_checkpoint(depth, 'run/snapshot_2.pth')
    export(checkpoint, tmp_path / 'whole', 'timm', classifier=True)
    export(checkpoint, tmp_path / 'backbone', 'timm')
    whole, backbone = (
        timm.create_model(f'local-dir:{tmp_path}/{name}', pretrained=True).eval()
        for name in ('whole', 'backbone')
    )
    reference = student(checkpoint)
    with torch.inference_mode():
        assert_same(whole(inputs), reference(inputs))
        assert_same(backbone.forward_features(inputs), features(reference, inputs))
        assert_same(backbone(inputs), features(reference, inputs).mean((2, 3)))
    assert whole.pretrained_cfg['label_names'] == ['ant', 'bee', 'cat', 'dog']
    data = timm.data.resolve_model_data_config(whole)
    assert (tuple(data['input_size']), data['crop_pct'], data['crop_mode']) == (
        (3, 48, 48),
        0.875,
        'center',
    )
    assert (list(data['mean']), list(data['std'])) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_an_export_for_timm_comes_back(checkpoint: Path, tmp_path: Path) -> None:
    """Its config.json tells all that a backbone file must know."""
    export(checkpoint, tmp_path / 'timm', 'timm', classifier=True)
    import_backbone(tmp_path / 'timm/model.safetensors', tmp_path / 'there_and_back.pth')
    export(checkpoint, tmp_path / 'backbone.pth')
    first, second = (
        load_backbone_file(tmp_path / name) for name in ('backbone.pth', 'there_and_back.pth')
    )
    assert first.provenance['weights_sha256'] == second.provenance['weights_sha256']
    assert second.provenance['mean'] == pytest.approx(MEAN)


@pytest.mark.parametrize('depth', [18, 50])
def test_huggingface(
    depth: int, write_checkpoint: Callable, tmp_path: Path, inputs: Tensor, pixels: Tensor
) -> None:
    transformers = library('transformers')
    checkpoint = write_checkpoint(depth, 'run/snapshot_2.pth')
    export(checkpoint, tmp_path / 'whole', 'huggingface', classifier=True)
    export(checkpoint, tmp_path / 'backbone', 'huggingface')
    kinds = transformers.AutoModelForImageClassification, transformers.AutoModel
    loaded = [
        kind.from_pretrained(tmp_path / name, output_loading_info=True)
        for kind, name in zip(kinds, ('whole', 'backbone'), strict=True)
    ]
    for _, info in loaded:
        assert not any(info.values()), info
    (whole, _), (backbone, _) = loaded
    reference = student(checkpoint)
    with torch.inference_mode():
        assert_same(whole.eval()(inputs).logits, reference(inputs))
        maps = backbone.eval()(inputs).last_hidden_state
        assert_same(maps, features(reference, inputs))
    assert whole.config.id2label == {0: 'ant', 1: 'bee', 2: 'cat', 3: 'dog'}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'whole')
    grey = processor(np.full((96, 128, 3), 128, np.uint8), return_tensors='pt')['pixel_values']
    assert grey.shape == (1, 3, 48, 48)
    expected = [(128 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    assert grey[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('size', [48, 384])
def test_huggingface_crops_the_centre(size: int, checkpoint: Path, tmp_path: Path) -> None:
    """Of a white square with a black rim on all sides of which nothing is in the test's crop."""
    transformers = library('transformers')
    content = load_from_disk(checkpoint)
    content['meta']['identity']['image_size'] = size
    torch.save(content, checkpoint)
    export(checkpoint, tmp_path / 'out', 'huggingface', classifier=True)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'out')
    photo = np.zeros((800, 1600, 3), np.uint8)
    photo[30:-30, 430:-430] = 255
    (pixels,) = processor(photo, return_tensors='pt')['pixel_values']
    assert pixels.shape == (3, size, size)
    white = [(255 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    torch.testing.assert_close(pixels, torch.tensor(white).view(3, 1, 1).expand_as(pixels))


def test_mmpretrain(checkpoint: Path, tmp_path: Path, inputs: Tensor) -> None:
    export(checkpoint, tmp_path / 'whole', 'mmpretrain', classifier=True)
    mmpretrain = library('mmpretrain')
    model = mmpretrain.get_model(
        str(tmp_path / 'whole/config.py'), pretrained=str(tmp_path / 'whole/model.pth')
    )
    with torch.inference_mode():
        assert_same(model.eval()(inputs), student(checkpoint)(inputs))


def test_mmpretrains_names_are_those_of_openmmlab(
    checkpoint: Path, tmp_path: Path, inputs: Tensor
) -> None:
    """mmdet's ResNet is mmpretrain's; the import reads the config as mmpretrain writes one."""
    export(checkpoint, tmp_path / 'whole', 'mmpretrain', classifier=True)
    install()
    registry = importlib.import_module('mmdet.registry').MODELS
    importlib.import_module('mmdet.models')
    config = Config.fromfile(tmp_path / 'whole/config.py')
    backbone = registry.build(config.model.backbone)
    weights = load_from_disk(tmp_path / 'whole/model.pth')['state_dict']
    head = {n: t for n, t in weights.items() if n.startswith('head.')}
    backbone.load_state_dict(
        {n.removeprefix('backbone.'): t for n, t in weights.items() if n not in head}
    )
    reference = student(checkpoint)
    with torch.inference_mode():
        backbone.eval()  # which gives None
        assert_same(backbone(inputs)[-1], features(reference, inputs))
    assert torch.equal(head['head.fc.weight'], reference.fc.weight)
    assert config.model.head.num_classes == config.data_preprocessor.num_classes == 4
    import_backbone(tmp_path / 'whole/model.pth', tmp_path / 'backbone.pth')
    provenance = load_backbone_file(tmp_path / 'backbone.pth').provenance
    assert provenance['mean'] == MEAN
    assert provenance['channel_order'] == 'RGB'


def test_metafile_is_that_of_a_model_zoo(checkpoint: Path, tmp_path: Path) -> None:
    record(checkpoint)
    export(checkpoint, tmp_path / 'whole', 'mmpretrain', classifier=True)
    content = yaml.safe_load((tmp_path / 'whole/metafile.yml').read_text())
    (model,) = content['Models']
    assert model['In Collection'] == content['Collections'][0]['Name']
    assert all((tmp_path / 'whole' / model[key]).is_file() for key in ('Config', 'Weights'))
    parameters = sum(p.numel() for p in torchvision.models.resnet18(num_classes=4).parameters())
    assert model['Metadata']['Parameters'] == parameters
    assert model['Results'][0]['Metrics'] == {'Top 1 Accuracy': 58.25}


def record(checkpoint: Path) -> None:
    """The record of the run beside its checkpoint."""
    data = {'train': {'count': 9, 'sha256': 'a'}, 'val': {'count': 4, 'sha256': 'b'}}
    content = {
        'format': 2,
        'status': 'finished',
        'task': 'classification',
        'identity': load_from_disk(checkpoint)['meta']['identity'],
        'data': data,
        'history': [{'epoch': 2, 'metrics': {'top1_error': 41.75}}],
    }
    (checkpoint.parent / 'run.json').write_text(json.dumps(content))


@pytest.mark.parametrize('name', ['timm', 'huggingface', 'mmpretrain'])
def test_card_says_where_the_weights_come_from(name: str, checkpoint: Path, tmp_path: Path) -> None:
    record(checkpoint)
    provenance = export(checkpoint, tmp_path / 'whole', name, classifier=True)
    card = (tmp_path / 'whole/README.md').read_text()
    _, head, text = card.split('---\n', 2)
    assert yaml.safe_load(head)['license'] == 'apache-2.0'
    assert '| top-1 accuracy | 58.25 % ' in text
    assert '| data | 9 training and 4 test images |' in text
    assert 'run/epoch_2.pth' in text
    assert provenance['source_sha256'] in text
    assert 'booktitle = {CVPR}' in text


@pytest.mark.parametrize('classifier', [True, False])
def test_onnx(
    classifier: bool, checkpoint: Path, tmp_path: Path, inputs: Tensor, pixels: Tensor
) -> None:
    """It takes pixels, of any number of images."""
    library('onnxscript')
    onnxruntime = library('onnxruntime')
    export(checkpoint, tmp_path / 'model.onnx', 'onnx', classifier)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    reference = student(checkpoint)
    with torch.inference_mode():
        theirs = reference(inputs) if classifier else features(reference, inputs)
    (name,) = (output.name for output in session.get_outputs())
    assert name == ('logits' if classifier else 'features')
    for count in (1, 3):
        (ours,) = session.run(None, {'images': pixels[:count].numpy()})
        assert_same(torch.from_numpy(ours), theirs[:count])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata['provenance'])['epoch'] == 2
    assert ('classes' in metadata) == classifier


def test_onnx_without_its_packages_is_one_sentence(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='onnx is not installed: run pip install onnx onnxscript'):
        export(checkpoint, tmp_path / 'model.onnx', 'onnx', classifier=True)


def test_other_networks_have_onnx_alone(train: Callable, tmp_path: Path) -> None:
    train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    for name in ('torchvision', 'timm', 'huggingface', 'mmpretrain'):
        with pytest.raises(
            UserError, match='is a TinyNet, not a ResNet of the usual width: only --format onnx'
        ):
            export(tmp_path / 'epoch_1.pth', tmp_path / 'out', name, classifier=True)
    with pytest.raises(UserError, match='--format onnx --classifier'):
        export(tmp_path / 'epoch_1.pth', tmp_path / 'out', 'onnx')
    library('onnxscript')
    onnxruntime = library('onnxruntime')
    export(tmp_path / 'epoch_1.pth', tmp_path / 'model.onnx', 'onnx', classifier=True)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    (logits,) = session.run(None, {'images': np.zeros((2, 3, 32, 32), np.float32)})
    assert logits.shape == (2, 4)


@pytest.mark.parametrize('name', FORMATS)
def test_nothing_is_overwritten(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder/precious').touch()
    (tmp_path / 'file').write_text('precious')
    for out in (tmp_path / 'folder', tmp_path / 'file'):
        with pytest.raises(UserError, match=f'{out} exists: delete it, or choose another name'):
            export(checkpoint, out, name, classifier=True)
    assert [path.name for path in (tmp_path / 'folder').iterdir()] == ['precious']
    assert (tmp_path / 'file').read_text() == 'precious'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'folder', 'run']


def test_weights_that_are_not_finite_are_not_exported(checkpoint: Path, tmp_path: Path) -> None:
    content = load_from_disk(checkpoint)
    content['state_dict']['student.fc.weight'][0, 0] = float('inf')
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match=r'fc\.weight is not finite'):
        export(checkpoint, tmp_path / 'out', 'timm', classifier=True)
    assert not (tmp_path / 'out').exists()


SECTION = README.read_text().split('## Use the weights elsewhere')[1].split('\n## ')[0]
SNIPPETS = re.findall(r'```python\n(.*?)```', SECTION, re.DOTALL)
COMMANDS = re.findall(
    r'^python tools/export\.py (\S+) (\S+)(?: --format (\w+))?( --classifier)?$', SECTION, re.M
)


@pytest.mark.parametrize('snippet', SNIPPETS, ids=lambda text: re.search(r'\w+', text[7:])[0])
def test_snippets_of_the_readme(
    snippet: str,
    write_checkpoint: Callable,
    tmp_path: Path,
    inputs: Tensor,
    pixels: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install()
    for module in re.findall(r'^(?:import|from) (\w+)', snippet, re.MULTILINE):
        library(module)
    checkpoint = write_checkpoint(18, SNAPSHOT)
    monkeypatch.chdir(tmp_path)
    for source, out, name, classifier in COMMANDS:
        assert source == SNAPSHOT
        if f"'{out}" in snippet.replace('local-dir:', ''):
            export(source, out, name or 'torchvision', bool(classifier))
    scope = {'pixels': pixels, 'inputs': inputs}
    exec(snippet.replace('num_classes=20', 'num_classes=4'), scope)
    reference = student(checkpoint)
    with torch.inference_mode():
        logits, maps = reference(inputs), features(reference, inputs)
        if 'backbone' in scope:
            scope['backbone'].eval()  # which gives None
            assert_same(scope['backbone'](inputs)[-1], maps)
        elif 'session' in scope:
            assert_same(
                torch.from_numpy(scope['session'].run(None, {'images': pixels.numpy()})[0]),
                logits,
            )
        else:
            output = scope['model'].eval()(inputs)
            assert_same(getattr(output, 'logits', output), logits)


def test_the_snippet_for_mmdet_works_in_a_new_process(checkpoint: Path, tmp_path: Path) -> None:
    """Here, other tests have installed the operators that mmdet lacks with mmcv-lite."""
    export(checkpoint, tmp_path / 'r18_backbone.pth')
    (snippet,) = (text for text in SNIPPETS if 'mmdet' in text)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', snippet]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)


def test_there_is_a_snippet_for_each_format() -> None:
    assert {name or 'torchvision' for _, _, name, _ in COMMANDS} == {*FORMATS}
    assert len(SNIPPETS) == len(COMMANDS) == len(FORMATS) + 1  # mmdet takes torchvision's too


@pytest.mark.parametrize('prefix', [False, True])
def test_a_training_snapshot_as_init_cfg(
    prefix: bool, checkpoint: Path, recwarn: pytest.WarningsRecorder, capfd
) -> None:
    """mmengine finds no tensor under the backbone's names, and goes on."""
    assert "prefix='student.'" in SECTION
    install()
    importlib.import_module('mmdet.models')
    registry = importlib.import_module('mmdet.registry').MODELS
    init = dict(type='Pretrained', checkpoint=str(checkpoint))
    init |= {'prefix': 'student.'} if prefix else {}
    backbone = registry.build(dict(type='ResNet', depth=18, init_cfg=init))
    backbone.init_weights()
    theirs = student(checkpoint).layer4[1].conv2.weight
    assert torch.equal(backbone.layer4[1].conv2.weight, theirs) == prefix


def test_exports_state_the_preprocessing_of_the_test(checkpoint: Path, tmp_path: Path) -> None:
    for name in ('timm', 'huggingface', 'mmpretrain'):
        export(checkpoint, tmp_path / name, name, classifier=True)
    timm = json.loads((tmp_path / 'timm/config.json').read_text())['pretrained_cfg']
    hf = json.loads((tmp_path / 'huggingface/preprocessor_config.json').read_text())
    _, resize, crop, _ = Config.fromfile(tmp_path / 'mmpretrain/config.py').test_pipeline
    assert (timm['interpolation'], timm['crop_pct']) == ('bilinear', 0.875)
    assert hf['resample'] == 2  # Pillow's number of bilinear
    assert (hf['size'], hf['crop_size']) == ({'shortest_edge': 55}, {'height': 48, 'width': 48})
    assert (resize.scale, resize.edge, crop.crop_size) == (55, 'short', 48)
    content = load_from_disk(checkpoint)
    del content['meta']['identity']['image_size']  # as on CIFAR-100, whose test has whole images
    torch.save(content, checkpoint)
    export(checkpoint, tmp_path / 'cifar', 'timm', classifier=True)
    timm = json.loads((tmp_path / 'cifar/config.json').read_text())['pretrained_cfg']
    assert (timm['input_size'], timm['crop_pct']) == ([3, 32, 32], 1.0)
