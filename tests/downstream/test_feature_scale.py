"""A scaled backbone computes what it did, but its last feature maps are larger."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from downstream.build import prepare
from downstream.feature_scale import scale_features, write_scaled
from downstream.mmcv_ops import install
from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.cli import written
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from tests.downstream.conftest import write_backbone
from tests.downstream.test_parity import randomise


@pytest.mark.parametrize(
    ('depth', 'stem'),
    [(18, {}), (50, {}), (34, dict(deep_stem=True)), (50, dict(deep_stem=True, avg_down=True))],
)
@pytest.mark.parametrize('factor', [1.0, 3.44, 100.0])
def test_only_the_last_maps_change_and_by_the_factor(depth: int, stem: dict, factor: float) -> None:
    install()
    init_default_scope('mmdet')
    network = MODELS.build(dict(type='ResNet', depth=depth, out_indices=(0, 1, 2, 3), **stem))
    randomise(network)
    network.layer4[1].bn1.running_var[0] = 0  # of a dead channel
    weights = network.state_dict()
    kept = {name: tensor.clone() for name, tensor in weights.items()}
    scaled = scale_features(weights, factor)
    assert all(torch.equal(weights[name], tensor) for name, tensor in kept.items())
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    network.double().eval()
    with torch.inference_mode():
        *before, last = network(images)
        inner = network.layer4[1].norm1(network.layer4[1].conv1(network.layer4[0](before[-1])))
        network.load_state_dict(scaled)
        *after, larger = network(images)
        again = network.layer4[1].norm1(network.layer4[1].conv1(network.layer4[0](before[-1])))
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    # The scaled weights are rounded to float32.
    torch.testing.assert_close(larger, factor * last, rtol=1e-5, atol=1e-5 * factor)
    torch.testing.assert_close(again, inner, rtol=1e-4, atol=1e-4)


def test_a_scaled_file_is_a_backbone_file(tmp_path: Path, voc: Path) -> None:
    source = write_backbone(tmp_path / 'sd.pth', seed=2, top1_error=30.5)
    provenance = write_scaled(source, tmp_path / 'scaled.pth', 2.0)
    weights = load_backbone_file(tmp_path / 'scaled.pth')
    assert weights.provenance == provenance
    before = load_backbone_file(source).provenance
    changed = {key for key in provenance if provenance[key] != before.get(key)}
    assert changed == {'feature_scale', 'weights_sha256', 'source', 'source_sha256'}
    assert provenance['feature_scale'] == 2.0
    assert written('x.pth', provenance).endswith('seed 2, top1_error 30.5, feature_scale 2.0')
    again = write_scaled(tmp_path / 'scaled.pth', tmp_path / 'again.pth', 1.1)
    assert again['feature_scale'] == 2.2
    config = load_config(
        'configs/demo/faster_rcnn_r18_voc07.py',
        [f'backbone_file={tmp_path / "scaled.pth"}', f'data_root={voc}', 'batch_size=2'],
    )
    assert prepare(config).identity.backbone.feature_scale == 2.0


def test_what_cannot_be_scaled_is_one_sentence(tmp_path: Path) -> None:
    source = write_backbone(tmp_path / 'sd.pth')
    before = Path(source).read_bytes()
    for factor in (0.5, 0.0, -3.0, float('nan'), float('inf')):
        with pytest.raises(UserError, match=f'The factor is {factor:g}: it must be a number of at'):
            write_scaled(source, tmp_path / 'out.pth', factor)
    (tmp_path / 'link.pth').symlink_to(source)
    for out in (source, tmp_path / 'link.pth'):
        with pytest.raises(UserError, match=re.escape(f'{out} is the backbone file itself')):
            write_scaled(source, out, 2.0)
    with pytest.raises(UserError, match=r'is 1e\+30: it is too large for the weights of .*sd\.pth'):
        write_scaled(source, tmp_path / 'out.pth', 1e30)
    torch.save({'conv1.weight': torch.zeros(1)}, tmp_path / 'plain.pth')
    with pytest.raises(UserError, match='is not a backbone file'):
        write_scaled(tmp_path / 'plain.pth', tmp_path / 'out.pth', 2.0)
    assert not (tmp_path / 'out.pth').exists()
    assert Path(source).read_bytes() == before
