"""What a ResNet run saves, as far as exports read it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn


def trained_like(network: nn.Module) -> nn.Module:
    """Statistics that no network starts with, so that a tensor in another's place is noticed."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.uniform_(0.2, 0.6)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """``write_checkpoint(depth, 'run/epoch_2.pth')``: a checkpoint of a ResNet with 4 classes."""

    def write(depth: int, place: str) -> Path:
        torch.manual_seed(0)
        network = torchvision.models.get_model(f'resnet{depth}', num_classes=4)
        # In the memory format of a classifier's student.
        weights = trained_like(network).to(memory_format=torch.channels_last).state_dict()
        content = {f'student.{k}': v for k, v in weights.items()}
        content |= {f'teacher.{k}': v + 1 for k, v in weights.items()}
        algorithm = dict(name='SD', generations=[1, 1], teacher_weight=1.0, temperature=2.0)
        preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
        meta = {
            'epoch': 2,
            'cfg': 'raise SystemExit("a checkpoint must not run code")',
            'dataset_meta': {'classes': ('ant', 'bee', 'cat', 'dog')},
            'format': 2,
            'identity': {
                'task': 'classification',
                'randomness': dict(seed=5),
                'model': dict(
                    data_preprocessor=preprocessor,
                    network=dict(type='ResNet', depth=depth, num_classes=4),
                ),
                'algorithm': algorithm,
                'image_size': 48,
                'crop_area': [0.7, 1.0],
            },
        }
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        torch.save({'meta': meta, 'state_dict': content}, path)
        return path

    return write


@pytest.fixture
def checkpoint(write_checkpoint: Callable[..., Path]) -> Path:
    return write_checkpoint(18, 'run/epoch_2.pth')
