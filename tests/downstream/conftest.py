"""A backbone file of a random ResNet and a VOCdevkit of a few small images."""

import shutil
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
import torchvision
from mmengine.registry import RUNNERS, DefaultScope

from downstream.build import prepare
from pretrain.runs.checkpoint import weights_sha256
from pretrain.runs.config import load_config

PROVENANCE = {
    'format': 1,
    'arch': 'ResNet',
    'depth': 18,
    'stem': 'v1',
    'style': 'pytorch',
    'mean': [0.485 * 255, 0.456 * 255, 0.406 * 255],
    'std': [0.229 * 255, 0.224 * 255, 0.225 * 255],
    'channel_order': 'RGB',
    'algorithm': {'name': 'BL', 'generations': [1], 'teacher_weight': 0.0, 'temperature': 1.0},
}


@lru_cache(maxsize=1)
def backbone_weights(depth: int) -> dict[str, torch.Tensor]:
    """The weights of a random ResNet without its classifier; no BN statistic is a default."""
    torch.manual_seed(0)
    weights = getattr(torchvision.models, f'resnet{depth}')().state_dict()
    return {
        name: tensor + 0.01 * torch.rand_like(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
        if not name.startswith('fc.')
    }


def write_backbone(path: Path, depth: int = 18, drop=(), add=(), **facts) -> str:
    """Write a backbone file; ``drop`` and ``add`` change its tensors, ``facts`` its provenance."""
    weights = OrderedDict(backbone_weights(depth))
    for name in drop:
        del weights[name]
    weights.update(dict(add))
    sums = {'weights_sha256': weights_sha256(weights)}
    weights.provenance = PROVENANCE | {'depth': depth} | sums | facts
    torch.save(weights, path)
    return str(path)


@pytest.fixture(name='write_backbone', scope='session')
def write_backbone_fixture():
    return write_backbone


@pytest.fixture(scope='session')
def backbone_file(tmp_path_factory) -> str:
    return write_backbone(tmp_path_factory.mktemp('backbone') / 'resnet18.pth')


@pytest.fixture(scope='session')
def backbone_file_152(tmp_path_factory) -> str:
    return write_backbone(tmp_path_factory.mktemp('backbone') / 'resnet152.pth', depth=152)


def write_voc(root: Path, count: int = 8) -> Path:
    """Write ``count`` training images of one rectangle each, alternately a 'cat' and a 'dog', and
    copies of them under other names as test images."""
    rng = np.random.default_rng(0)
    names = [f'{i:06d}' for i in range(count)]
    tests = [f'1{name[1:]}' for name in names]
    for year in ('VOC2007', 'VOC2012'):
        for folder in ('JPEGImages', 'Annotations', 'SegmentationClass', 'SegmentationClassAug'):
            (root / year / folder).mkdir(parents=True)
    for i, name in enumerate(names):
        image = rng.integers(0, 80, (48, 64, 3), dtype=np.uint8)
        x, y = rng.integers(2, 20, 2).tolist()
        image[y : y + 24, x : x + 24] += (90, 150)[i % 2]
        mask = np.zeros((48, 64), np.uint8)
        mask[y - 1 : y + 25, x - 1 : x + 25] = 255
        mask[y : y + 24, x : x + 24] = (8, 12)[i % 2]
        for year in ('VOC2007', 'VOC2012'):
            cv2.imwrite(str(root / year / 'JPEGImages' / f'{name}.jpg'), image)
        for folder in ('SegmentationClass', 'SegmentationClassAug'):
            cv2.imwrite(str(root / 'VOC2012' / folder / f'{name}.png'), mask)
        corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), (x + 1, y + 1, x + 24, y + 24), strict=True)
        box = ''.join(f'<{key}>{value}</{key}>' for key, value in corners)
        tree = ElementTree.fromstring(
            '<annotation><size><width>64</width><height>48</height></size><object>'
            f'<name>{("cat", "dog")[i % 2]}</name><difficult>{int(i == 0)}</difficult>'
            f'<bndbox>{box}</bndbox></object></annotation>'
        )
        ElementTree.ElementTree(tree).write(root / f'VOC2007/Annotations/{name}.xml')
    for path in [path for path in root.rglob('*/*.*') if path.stem in names]:
        shutil.copy(path, path.with_stem(tests[names.index(path.stem)]))
    half = count // 2
    for split, members in {
        'VOC2007/ImageSets/Main/trainval.txt': names,
        'VOC2007/ImageSets/Main/test.txt': tests,
        'VOC2012/ImageSets/Segmentation/train.txt': names[:half],
        'VOC2012/ImageSets/Segmentation/aug.txt': names[half:],
        'VOC2012/ImageSets/Segmentation/val.txt': tests,
    }.items():
        (root / split).parent.mkdir(parents=True, exist_ok=True)
        (root / split).write_text('\n'.join(members) + '\n')
    return root


@pytest.fixture(scope='session')
def voc(tmp_path_factory) -> Path:
    return write_voc(tmp_path_factory.mktemp('data') / 'VOCdevkit')


DEMOS = {
    'detection': 'configs/demo/faster_rcnn_r18_voc07.py',
    'segmentation': 'configs/demo/deeplabv3_r18_voc12.py',
}
TINY = {
    'detection': [
        'image_scale=(64, 48)',
        'model.train_cfg.rcnn.sampler.num=4',
        'model.test_cfg.rpn.max_per_img=4',
    ],
    'segmentation': ['image_scale=(64, 64)', 'crop_size=(33, 33)'],
}


class Finished(NamedTuple):
    """A finished run: its config file, its options except ``backbone_file``, and its folder."""

    config: str
    options: list[str]
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / 'epoch_1.pth'


@pytest.fixture(scope='session', params=DEMOS)
def finished(request, voc, backbone_file, tmp_path_factory) -> Finished:
    """A run of one epoch of a tiny detector or segmenter."""
    task, folder = request.param, tmp_path_factory.mktemp('finished')
    options = [f'data_root={voc}', 'precision=float32', 'train_cfg.max_epochs=1']
    options += ['train_cfg.val_interval=1', 'param_scheduler=[]', *TINY[task]]
    config = prepare(load_config(DEMOS[task], [*options, f'backbone_file={backbone_file}']))
    config.work_dir = str(folder)
    config.experiment_name = f'finished-{task}'
    scopes = DefaultScope._instance_dict.copy()
    RUNNERS.build(config).train()
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)
    return Finished(DEMOS[task], options, folder)
