import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from pretrain.models.cifar import build_cifar_densenet, build_cifar_resnet
from pretrain.runs.errors import UserError

RESNETS = {8: 81_140, 14: 178_356, 20: 275_572, 32: 470_004, 56: 858_868, 110: 1_733_812}
DENSENETS = {(100, 24, 12): 800_032, (190, 80, 40): 25_821_620}


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def convolution(inputs: int, outputs: int, side: int = 3) -> int:
    """Parameters of a convolution without bias."""
    return side * side * inputs * outputs


def test_resnet_parameter_counts():
    for depth, expected in RESNETS.items():
        # Of each layer the convolution and its batch normalisation.
        layers, width = [(3, 16)], 16
        for outputs in (16, 32, 64):
            for _ in range((depth - 2) // 3):
                layers.append((width, outputs))
                width = outputs
        assert len(layers) == depth - 1
        parameters = sum(convolution(i, o) + 2 * o for i, o in layers) + 64 * 100 + 100
        assert parameters == expected
        with torch.device('meta'):
            assert count(build_cifar_resnet(depth, 100)) == expected


def test_densenet_parameter_counts():
    for (depth, width, growth), expected in DENSENETS.items():
        parameters, layers = convolution(3, width), 1
        for block in range(3):
            for _ in range((depth - 4) // 6):
                parameters += 2 * width + convolution(width, 4 * growth, side=1)
                parameters += 2 * 4 * growth + convolution(4 * growth, growth)
                width += growth
                layers += 2
            if block < 2:
                parameters += 2 * width + convolution(width, width // 2, side=1)
                width //= 2
                layers += 1
        assert layers == depth - 1
        parameters += 2 * width + 100 * width + 100
        assert parameters == expected
        with torch.device('meta'):
            assert count(build_cifar_densenet(depth, 100)) == expected


def shapes(network: nn.Module, *names: str) -> dict[str, tuple[int, ...]]:
    """The outputs' shapes of some modules and of the network, for a batch of two."""
    seen = {}
    for name in names:
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: tuple(output.shape)})
        )
    with torch.device('meta'):
        seen['logits'] = tuple(network(torch.zeros(2, 3, 32, 32)).shape)
    return seen


@pytest.mark.parametrize('depth', RESNETS)
def test_resnet_shapes(depth: int):
    with torch.device('meta'):
        network = build_cifar_resnet(depth, num_classes=7)
    assert shapes(network, 'relu', 'layer1', 'layer2', 'layer3') == {
        'relu': (2, 16, 32, 32),
        'layer1': (2, 16, 32, 32),
        'layer2': (2, 32, 16, 16),
        'layer3': (2, 64, 8, 8),
        'logits': (2, 7),
    }


@pytest.mark.parametrize(('depth', 'widths'), [(100, (216, 300, 342)), (190, (1320, 1900, 2190))])
def test_densenet_shapes(depth: int, widths: tuple[int, ...]):
    with torch.device('meta'):
        network = build_cifar_densenet(depth, num_classes=7)
    blocks = [f'features.denseblock{block}' for block in (1, 2, 3)]
    expected = {
        block: (2, width, side, side)
        for block, width, side in zip(blocks, widths, (32, 16, 8), strict=True)
    }
    assert shapes(network, *blocks) == expected | {'logits': (2, 7)}


def plain_resnet20(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """ResNet-20 in training mode, written out."""

    def conv_bn(x: Tensor, conv: str, bn: str) -> Tensor:
        x = F.conv2d(x, weights[f'{conv}.weight'], padding=1)
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
        scale, shift = (weights[f'{bn}.{name}'][:, None, None] for name in ('weight', 'bias'))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = conv_bn(x, 'conv1', 'bn1').relu()
    for stage in (1, 2, 3):
        if stage > 1:
            n, c, h, w = x.shape
            x = x.view(n, c, h // 2, 2, w // 2, 2).mean(dim=(3, 5))
        for block in range(3):
            name = f'layer{stage}.{block}'
            y = conv_bn(x, f'{name}.conv1', f'{name}.bn1').relu()
            y = conv_bn(y, f'{name}.conv2', f'{name}.bn2')
            identity = torch.zeros_like(y)
            identity[:, : x.shape[1]] = x
            x = (y + identity).relu()
    return x.mean(dim=(2, 3)) @ weights['fc.weight'].T + weights['fc.bias']


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_resnet20_is_the_plain_one(memory_format: torch.memory_format):
    torch.manual_seed(0)
    network = build_cifar_resnet(20, num_classes=5).double()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # no scale stays 1, no shift 0
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64).to(memory_format=memory_format)
    logits = network(x)
    expected = plain_resnet20(x.contiguous(), dict(network.named_parameters()))
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    weights = list(network.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(logits[:, 0].sum(), weights),
        torch.autograd.grad(expected[:, 0].sum(), weights),
        rtol=1e-7,
        atol=1e-9,
    )


def test_resnet_shortcut_has_no_parameters_and_no_convolution_strides():
    with torch.device('meta'):
        network = build_cifar_resnet(56, num_classes=100)
    assert {name.split('.')[0] for name, _ in network.named_parameters()} == {
        *('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'fc')
    }
    assert not any('downsample' in name for name in network.state_dict())
    strides = {m.stride for m in network.modules() if isinstance(m, nn.Conv2d)}
    assert strides == {(1, 1)}


@pytest.mark.parametrize('build', [build_cifar_resnet, build_cifar_densenet])
def test_initialisation_is_torchvisions(build):
    torch.manual_seed(0)
    depth = {build_cifar_resnet: 20, build_cifar_densenet: 100}[build]
    for module in build(depth, 100).modules():
        if isinstance(module, nn.Conv2d):
            outputs, inputs, side, _ = module.weight.shape
            fan = side * side * (outputs if build is build_cifar_resnet else inputs)
            count = module.weight.numel()
            assert module.bias is None
            # The error of a standard deviation that was estimated from so many.
            tolerance = 5 / (2 * count) ** 0.5
            assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=tolerance)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_densenet_runs_forward_and_backward():
    torch.manual_seed(0)
    network = build_cifar_densenet(100, num_classes=10)
    assert list(network.features)[:2] == [network.features.conv0, network.features.denseblock1]
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ('name', 'known'), [('CifarResNet', '8, 14, 20, 32, 56, 110'), ('CifarDenseNet', '100, 190')]
)
def test_another_depth(name: str, known: str):
    with pytest.raises(UserError, match=rf'^model.network.depth is 44: choose one of {known}\.$'):
        MODELS.build(dict(type=name, depth=44, num_classes=100))
