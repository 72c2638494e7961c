"""Write a pretrained network in the formats that torchvision, timm, mmpretrain, transformers and
ONNX Runtime load.

Only ONNX needs packages of its own; the other formats are files of weights and settings.
"""

import importlib.util
import json
import re
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS
from safetensors.torch import save_file
from torch import Tensor, nn

import pretrain.models  # noqa: F401, registers the networks
from pretrain.runs.checkpoint import save_sealed, write_atomically
from pretrain.runs.errors import UserError, number_of

PAPER = 'Snapshot Distillation: Teacher-Student Optimization in One Generation'
PAPER_URL = 'https://arxiv.org/abs/1812.00123'
CITATION = f"""@inproceedings{{yang2019snapshot,
  title     = {{{PAPER}}},
  author    = {{Yang, Chenglin and Xie, Lingxi and Su, Chi and Yuille, Alan L.}},
  booktitle = {{CVPR}},
  year      = {{2019}}
}}"""
LICENSE = 'apache-2.0'
COLLECTION = {  # the entry of metafile.yml
    'Name': 'Snapshot Distillation',
    'Paper': {'Title': PAPER, 'URL': PAPER_URL, 'Conference': 'CVPR 2019'},
    'README': 'README.md',
    'License': LICENSE,
}


class Snapshot(NamedTuple):
    """A pretrained network and what is known of it.

    Attributes:
        path: of the checkpoint.
        weights: the student's, under the network's own names.
        network: its config, as ``model.network`` of a pretraining config.
        classes: the class names, in the order of the logits.
        image_size: height and width of the images in pixels.
        centre_share: side of a test image's centre crop as a share of its shorter side.
        provenance: of :func:`pretrain.export.export_backbone`, which adds the source and hashes.
    """

    path: Path
    weights: OrderedDict[str, Tensor]
    network: dict[str, Any]
    classes: tuple[str, ...]
    image_size: int
    centre_share: float
    provenance: dict[str, Any]

    @property
    def name(self) -> str:
        """The network's name in timm and torchvision, such as 'resnet50'."""
        return f'{self.network["type"].lower()}{self.network["depth"]}'

    @property
    def with_classifier(self) -> bool:
        return 'fc.weight' in self.weights

    @property
    def top1(self) -> float | None:
        """Top-1 accuracy in percent on the run's test images; None if no record has it."""
        error = self.provenance.get('top1_error')
        return None if error is None else 100 - error


def write_torchvision(snapshot: Snapshot, out: Path) -> None:
    """Write the state dict of a torchvision ResNet with its classifier."""
    save_sealed(dict(snapshot.weights), out)


def write_timm(snapshot: Snapshot, out: Path) -> None:
    """Write a folder for ``timm.create_model('local-dir:FOLDER', pretrained=True)`` or the Hub."""
    mean, std = _normalisation(snapshot)
    count = len(snapshot.classes) if snapshot.with_classifier else 0
    config = {
        'architecture': snapshot.name,
        'num_classes': count,
        'num_features': _features(snapshot),
        'global_pool': 'avg',
        'pretrained_cfg': {
            'num_classes': count,
            'input_size': [3, snapshot.image_size, snapshot.image_size],
            'interpolation': 'bilinear',
            'crop_pct': snapshot.centre_share,
            'mean': mean,
            'std': std,
            'first_conv': 'conv1',
            'classifier': 'fc',
            'license': LICENSE,
        },
    }
    if count:
        config['label_names'] = list(snapshot.classes)
    usage = f"timm.create_model('local-dir:{out.name}', pretrained=True)"
    with _new_folder(out) as folder:
        save_file(snapshot.weights, folder / 'model.safetensors', {'format': 'pt'})
        (folder / 'config.json').write_text(_json(config))
        (folder / 'README.md').write_text(_card(snapshot, 'timm', usage))


def write_huggingface(snapshot: Snapshot, out: Path) -> None:
    """Write a folder for ``from_pretrained`` of transformers or for the Hub."""
    bottleneck = 'layer1.0.conv3.weight' in snapshot.weights
    convolutions = re.findall(r'layer(\d)\.\d+\.conv1\.weight', ' '.join(snapshot.weights))
    kind = 'ResNetForImageClassification' if snapshot.with_classifier else 'ResNetModel'
    config = {
        'architectures': [kind],
        'model_type': 'resnet',
        'hidden_sizes': [64 * 2**stage * (4 if bottleneck else 1) for stage in range(4)],
        'depths': [convolutions.count(str(stage)) for stage in range(1, 5)],
        'layer_type': 'bottleneck' if bottleneck else 'basic',
        'downsample_in_bottleneck': False,  # the stride is on the 3x3 convolution
        'dtype': 'float32',
    }
    if snapshot.with_classifier:
        config['id2label'] = dict(enumerate(snapshot.classes))
        config['label2id'] = {name: index for index, name in enumerate(snapshot.classes)}
    mean, std = _normalisation(snapshot)
    side = snapshot.image_size
    images = {
        'image_processor_type': 'BitImageProcessor',
        'do_resize': True,
        'size': {'shortest_edge': round(side / snapshot.centre_share)},
        'resample': 2,  # bilinear
        'do_center_crop': True,
        'crop_size': {'height': side, 'width': side},
        'image_mean': mean,
        'image_std': std,
    }
    prefix = 'resnet.' if snapshot.with_classifier else ''
    weights = {_huggingface_name(name, prefix): t for name, t in snapshot.weights.items()}
    usage = f"transformers.{kind}.from_pretrained('{out.name}')"
    with _new_folder(out) as folder:
        save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
        (folder / 'config.json').write_text(_json(config))
        (folder / 'preprocessor_config.json').write_text(_json(images))
        (folder / 'README.md').write_text(_card(snapshot, 'transformers', usage))


def _huggingface_name(name: str, prefix: str) -> str:
    """The name that transformers gives to a tensor, from torchvision's.

    Example:
        >>> _huggingface_name('layer2.0.downsample.1.bias', '')
        'encoder.stages.1.layers.0.shortcut.normalization.bias'
    """
    if name.startswith('fc.'):
        return name.replace('fc', 'classifier.1')
    name = name.replace('downsample.0', 'shortcut.conv').replace('downsample.1', 'shortcut.bn')
    name = re.sub(r'^(conv|bn)1', r'embedder.embedder.\1', name)
    name = re.sub(r'^layer(\d)', lambda stage: f'encoder.stages.{int(stage[1]) - 1}.layers', name)
    name = re.sub(r'(conv|bn)(\d)', lambda part: f'layer.{int(part[2]) - 1}.{part[1]}', name)
    return prefix + name.replace('conv', 'convolution').replace('bn', 'normalization')


def write_mmpretrain(snapshot: Snapshot, out: Path) -> None:
    """Write a folder for ``mmpretrain.get_model(CONFIG, pretrained=WEIGHTS)`` and for the
    ``backbone`` of any OpenMMLab model, with a ``metafile.yml`` as in OpenMMLab's model zoos."""
    config = Config(_mmpretrain_settings(snapshot))
    weights = OrderedDict(
        (f'{"head" if name.startswith("fc.") else "backbone"}.{name}', tensor)
        for name, tensor in snapshot.weights.items()
    )
    meta = {'cfg': config.pretty_text, 'dataset_meta': {'classes': snapshot.classes}}
    metafile = {'Collections': [COLLECTION], 'Models': [_model_of_metafile(snapshot)]}
    usage = f"mmpretrain.get_model('{out.name}/config.py', pretrained='{out.name}/model.pth')"
    with _new_folder(out) as folder:
        save_sealed({'meta': meta, 'state_dict': weights}, folder / 'model.pth')
        config.dump(folder / 'config.py')
        (folder / 'metafile.yml').write_text(yaml.safe_dump(metafile, sort_keys=False))
        (folder / 'README.md').write_text(_card(snapshot, 'mmpretrain', usage))


def _mmpretrain_settings(snapshot: Snapshot) -> dict[str, Any]:
    """mmpretrain's config of the network and of the preprocessing of test images."""
    size = snapshot.image_size
    settings = {
        'model': {
            'type': 'ImageClassifier',
            'backbone': {
                'type': 'ResNet',
                'depth': snapshot.network['depth'],
                'num_stages': 4,
                'out_indices': (3,),
                'style': 'pytorch',
            },
            'neck': {'type': 'GlobalAveragePooling'},
        },
        'data_preprocessor': {
            'mean': snapshot.provenance['mean'],
            'std': snapshot.provenance['std'],
            'to_rgb': True,
        },
        'test_pipeline': [
            # As in training: without EXIF orientation, and with antialiasing.
            {
                'type': 'LoadImageFromFile',
                'color_type': 'color_ignore_orientation',
                'imdecode_backend': 'pillow',
            },
            {
                'type': 'ResizeEdge',
                'scale': round(size / snapshot.centre_share),
                'edge': 'short',
                'backend': 'pillow',
            },
            {'type': 'CenterCrop', 'crop_size': size},
            {'type': 'PackInputs'},
        ],
    }
    if snapshot.with_classifier:
        settings['data_preprocessor']['num_classes'] = len(snapshot.classes)
        settings['model']['head'] = {
            'type': 'LinearClsHead',
            'num_classes': len(snapshot.classes),
            'in_channels': _features(snapshot),
            'loss': {'type': 'CrossEntropyLoss'},
            'topk': (1, 5) if len(snapshot.classes) > 5 else (1,),
        }
    return settings


def _model_of_metafile(snapshot: Snapshot) -> dict[str, Any]:
    model = {
        'Name': f'{snapshot.name}_{snapshot.provenance["algorithm"]["name"].lower()}',
        'In Collection': COLLECTION['Name'],
        'Config': 'config.py',
        'Weights': 'model.pth',
        'Metadata': {'Parameters': _parameters(snapshot.weights), 'Architecture': ['ResNet']},
    }
    if snapshot.top1 is not None:
        metrics = {'Top 1 Accuracy': round(snapshot.top1, 2)}
        model['Results'] = [
            {'Task': 'Image Classification', 'Dataset': _data(snapshot), 'Metrics': metrics}
        ]
    return model


class _FromPixels(nn.Module):
    """Normalises RGB pixels from 0 to 255 before the network, so that no user has to do it."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer('mean', torch.tensor(mean).view(3, 1, 1))
        self.register_buffer('std', torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def write_onnx(snapshot: Snapshot, out: Path) -> None:
    """Write an ONNX file that maps ``images``, float32 (N, 3, S, S) RGB from 0 to 255, to
    ``logits`` (N, C) or, without a classifier, to ``features`` (N, C, S/32, S/32), rounded up. N is
    any number, S the image size of training. The metadata hold classes and provenance.

    Raises:
        UserError: if onnx or onnxscript is not installed.
    """
    for package in ('onnx', 'onnxscript'):
        if importlib.util.find_spec(package) is None:
            raise UserError(f'{package} is not installed: run pip install onnx onnxscript.')
    network = MODELS.build(snapshot.network)
    whole = snapshot.network['type'] != 'ResNet' or snapshot.with_classifier
    network.load_state_dict(snapshot.weights, strict=whole)
    if not whole:
        network = nn.Sequential(*list(network.children())[:-2])  # without the pooling and fc
    facts = snapshot.provenance
    model = _FromPixels(network, facts['mean'], facts['std']).eval()
    images = torch.zeros(2, 3, snapshot.image_size, snapshot.image_size)
    program = torch.onnx.export(
        model,
        (images,),
        input_names=['images'],
        output_names=['logits' if whole else 'features'],
        dynamic_shapes=({0: torch.export.Dim('batch')},),
        dynamo=True,
        verbose=False,
    )
    metadata = {'provenance': json.dumps(facts), 'paper': PAPER_URL, 'license': LICENSE}
    if whole:
        metadata['classes'] = json.dumps(snapshot.classes)
    program.model.metadata_props.update(metadata)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'model.onnx'
        program.save(file)
        write_atomically(out, file.read_bytes())


WRITERS: Mapping[str, Callable[[Snapshot, Path], None]] = {
    'torchvision': write_torchvision,
    'timm': write_timm,
    'mmpretrain': write_mmpretrain,
    'huggingface': write_huggingface,
    'onnx': write_onnx,
}


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder, renamed to ``out`` when all its files are written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as parent:
        folder = Path(parent) / out.name
        folder.mkdir()
        yield folder
        folder.rename(out)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + '\n'


def _features(snapshot: Snapshot) -> int:
    return 2048 if 'layer1.0.conv3.weight' in snapshot.weights else 512


def _parameters(weights: Mapping[str, Tensor]) -> int:
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    return sum(t.numel() for name, t in weights.items() if not name.endswith(statistics))


def _normalisation(snapshot: Snapshot) -> list[list[float]]:
    """Mean and standard deviation of each channel, for pixels from 0 to 1."""
    # Rounded, so that the files hold 0.224 and not 0.22399999999999998.
    return [[round(v / 255, 12) for v in snapshot.provenance[fact]] for fact in ('mean', 'std')]


def _data(snapshot: Snapshot) -> str:
    counts = {split: data['count'] for split, data in snapshot.provenance['data'].items()}
    return f'{counts["train"]} training and {number_of(counts["val"], "test images")}'


def _card(snapshot: Snapshot, library: str, usage: str) -> str:
    """A model card for the Hugging Face Hub: a YAML header, then Markdown."""
    facts, algorithm = snapshot.provenance, snapshot.provenance['algorithm']
    task = 'image-classification' if snapshot.with_classifier else 'image-feature-extraction'
    head = {
        'license': LICENSE,
        'library_name': library,
        'pipeline_tag': task,
        'tags': [task, library, 'snapshot-distillation'],
    }
    classes = number_of(len(snapshot.classes), 'classes')
    what = f'with {classes}' if snapshot.with_classifier else 'backbone'
    rows = {
        'algorithm': f'{algorithm["name"]}, mini-generations of {algorithm["generations"]} epochs',
        'epoch': facts['epoch'],
        'seed': facts['seed'],
        'image size': f'{snapshot.image_size} pixels, '
        f'centre crop of {snapshot.centre_share:.3f} of the side',
        'mean, standard deviation': f'{facts["mean"]}, {facts["std"]} (RGB, 0 to 255)',
        'parameters': f'{_parameters(snapshot.weights):,}',
        'source': f'{facts["source"]} (SHA-256 {facts["source_sha256"]})',
        'settings': f'SHA-256 {facts["recipe_sha256"]}',
    }
    if 'data' in facts:
        rows['data'] = _data(snapshot)
    if snapshot.top1 is not None:
        rows['top-1 accuracy'] = f'{snapshot.top1:.2f} % on the test images, one centre crop'
    table = '\n'.join(f'| {name} | {value} |' for name, value in rows.items())
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---

# {snapshot.name}, {what}

Pretrained with the suite that reproduces [{PAPER}]({PAPER_URL}).

```python
import {library}

model = {usage}
```

|     |     |
| --- | --- |
{table}

The licence is that of the suite; the training images may have their own terms of use.

```bibtex
{CITATION}
```
"""
