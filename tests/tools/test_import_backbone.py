from pathlib import Path

import torch
import torchvision

from pretrain.runs.backbone_file import load_backbone_file
from tests.tools.commands import start


def test_a_backbone_file_from_torchvisions_weights(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'resnet18.pth')
    files = [str(tmp_path / 'resnet18.pth'), str(tmp_path / 'backbone.pth')]
    done = start('tools/import_backbone.py', *files, '--preprocessing', 'imagenet-rgb')()
    assert done.returncode == 0, done.stderr
    assert 'depth 18, stem v1, style pytorch' in done.stdout
    assert load_backbone_file(tmp_path / 'backbone.pth').provenance['channel_order'] == 'RGB'
