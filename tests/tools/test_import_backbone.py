import sys
from pathlib import Path

import torch
import torchvision

from pretrain.export import load_backbone_file
from tests.tools.test_train import assert_one_sentence, call


def test_what_the_error_asks_for_is_enough(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / 'resnet18.pth')
    command = [sys.executable, 'tools/import_backbone.py']
    command += [str(tmp_path / 'resnet18.pth'), str(tmp_path / 'backbone.pth')]
    asked = '--preprocessing imagenet-rgb|inception-rgb|caffe-bgr'
    assert_one_sentence(call(*command), asked)
    done = call(*command, '--preprocessing', 'imagenet-rgb')
    assert done.returncode == 0, done.stderr
    assert 'depth 18, stem v1, style pytorch' in done.stdout
    assert load_backbone_file(tmp_path / 'backbone.pth').provenance['channel_order'] == 'RGB'
