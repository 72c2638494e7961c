import pytest
import torch
from torch import nn

from pretrain.models.resnet import build_resnet, build_se_resnet
from pretrain.runs.errors import UserError


@pytest.mark.parametrize(('depth', 'parameters'), [(101, 49_326_872), (152, 66_821_848)])
def test_se_resnet_adds_two_layers_a_block(depth: int, parameters: int) -> None:
    with torch.device('meta'):
        plain, network = build_resnet(depth, 1000), build_se_resnet(depth, 1000)
    # Of a block with C channels: C -> C/16 -> C with biases.
    blocks = {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    added = sum(
        count * (2 * c * (c // 16) + c // 16 + c)
        for count, c in zip(blocks, (256, 512, 1024, 2048), strict=True)
    )
    count = sum(p.numel() for p in network.parameters())
    assert count == sum(p.numel() for p in plain.parameters()) + added == parameters


def test_se_block_scales_its_residual() -> None:
    """Against a plain block and the formula of squeeze and excitation, in float64."""
    torch.manual_seed(0)
    network = build_se_resnet(50, 10).double().eval()
    block = network.layer1[1]
    x = torch.randn(2, 256, 5, 5, dtype=torch.float64)
    residual = x
    for conv, bn in ((block.conv1, block.bn1), (block.conv2, block.bn2), (block.conv3, block.bn3)):
        residual = bn(conv(residual))
        if bn is not block.bn3:
            residual = residual.clamp(min=0)
    squeezed = residual.mean(dim=(2, 3))
    hidden = squeezed @ block.se.fc1.weight.flatten(1).T + block.se.fc1.bias
    scale = hidden.clamp(min=0) @ block.se.fc2.weight.flatten(1).T + block.se.fc2.bias
    scale = 1 / (1 + (-scale).exp())
    expected = (x + residual * scale[:, :, None, None]).clamp(min=0)
    torch.testing.assert_close(block(x), expected)
    assert network.layer2[0](x).shape == (2, 512, 3, 3)


@pytest.mark.parametrize(('build', 'depth'), [(build_resnet, 20), (build_se_resnet, 18)])
def test_other_depths(build: type[nn.Module], depth: int) -> None:
    with pytest.raises(UserError, match=f'depth is {depth}: choose one of'):
        build(depth, 10)
