import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pretrain.models.cifar import build_cifar_densenet, build_cifar_resnet
from pretrain.models.resnet import build_resnet, build_se_resnet
from pretrain.net2net import check_net2net, net2net
from pretrain.runs.errors import UserError


def trained(network: nn.Module) -> nn.Module:
    """Every parameter and statistic is away from its first value, as after training."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network


PAIRS = {
    'CIFAR, deeper': (lambda: build_cifar_resnet(8, 10), lambda: build_cifar_resnet(20, 10)),
    'CIFAR, wider': (lambda: build_cifar_resnet(14, 10, 6), lambda: build_cifar_resnet(14, 10, 16)),
    'CIFAR, both': (lambda: build_cifar_resnet(8, 10, 8), lambda: build_cifar_resnet(14, 10, 13)),
    'ImageNet, deeper': (lambda: build_resnet(18, 7), lambda: build_resnet(34, 7)),
    'ImageNet, wider': (lambda: build_resnet(50, 7), lambda: build_resnet(50, 7, 96)),
}


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', PAIRS)
def test_function_is_preserved(name: str, training: bool) -> None:
    make_small, make_large = PAIRS[name]
    torch.manual_seed(0)
    # Doubles from the start: a third of a float32 weight is rounded.
    small, large = trained(make_small()).double(), make_large().double()
    check_net2net(small, large)
    net2net(small, large, noise=0.0)
    images = torch.randn(4, 3, 32, 32, dtype=torch.double)
    ours, theirs = (net.train(training)(images) for net in (large, small))
    assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert theirs.std() > 0.01


def test_wider_layer_against_the_papers_formula() -> None:
    """Weight by weight: the first layers of a CIFAR ResNet."""
    small, large = trained(build_cifar_resnet(8, 10, 4)), build_cifar_resnet(8, 10, 7)
    net2net(small, large, noise=0.0)
    old, new = small.conv1.weight, large.conv1.weight
    g = [
        next(i for i in range(4) if torch.equal(old[i], new[j])) for j in range(7)
    ]  # as the remapping drew it
    assert g[:4] == [0, 1, 2, 3]
    block, wider = small.layer1[0], large.layer1[0]
    h = [
        min(range(4), key=lambda i: abs(block.bn1.bias[i] - wider.bn1.bias[j]).item())
        for j in range(7)
    ]
    for j in range(7):
        for i in range(7):
            expected = block.conv1.weight[h[j], g[i]] / g.count(g[i])
            assert_close(wider.conv1.weight[j, i], expected, rtol=1e-6, atol=0)
            # The residual stream keeps its mapping g: what comes in is added to what goes out.
            expected = block.conv2.weight[g[j], h[i]] / h.count(h[i])
            assert_close(wider.conv2.weight[j, i], expected, rtol=1e-6, atol=0)
    assert torch.equal(wider.bn2.running_var, block.bn2.running_var[g])


def test_deeper_blocks_add_nothing_and_can_learn() -> None:
    small, large = trained(build_cifar_resnet(8, 10)), build_cifar_resnet(14, 10)
    net2net(small, large)
    new = large.layer2[1]
    assert new.bn2.weight.abs().max() == new.bn2.bias.abs().max() == 0
    large(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert new.bn2.weight.grad.abs().min() > 0


def test_noise_tells_repeated_channels_apart_and_leaves_the_others() -> None:
    small = trained(build_cifar_resnet(8, 10, 8))
    exact, noisy = build_cifar_resnet(8, 10), build_cifar_resnet(8, 10)
    networks = []
    for large, noise in ((exact, 0.0), (noisy, 0.05)):
        torch.manual_seed(0)
        net2net(small, large, noise=noise)
        networks.append(copy.deepcopy(large.conv1.weight))
    change = (networks[1] - networks[0]).flatten(1).std(dim=1)
    assert change[:8].max() == 0
    # 27 values a channel: their standard deviation is within a half of the noise's.
    spread = 0.05 * networks[0].std()
    assert (change[8:] > 0.5 * spread).all()
    assert (change[8:] < 1.5 * spread).all()


@pytest.mark.parametrize(
    ('small', 'large', 'message'),
    [
        (
            lambda: build_cifar_resnet(8, 10, 16),
            lambda: build_cifar_resnet(8, 10, 12),
            'layer1 of the student has 12 channels, but that of the source has 16: .*or narrower',
        ),
        (
            lambda: build_cifar_resnet(20, 10),
            lambda: build_cifar_resnet(14, 10),
            'layer1 of the student has 2 blocks, but that of the source has 3: .*never shallower',
        ),
        (lambda: build_resnet(18, 10), lambda: build_resnet(50, 10), 'the same kind of blocks'),
        (
            lambda: build_cifar_resnet(8, 10),
            lambda: build_resnet(18, 10),
            'the same number of stages',
        ),
        (
            lambda: build_cifar_resnet(8, 10),
            lambda: build_cifar_densenet(100, 10),
            'DenseNet is not one',
        ),
        (
            lambda: build_se_resnet(50, 10),
            lambda: build_resnet(50, 10),
            'basic or bottleneck blocks',
        ),
    ],
)
def test_networks_that_do_not_fit(small: object, large: object, message: str) -> None:
    with torch.device('meta'), pytest.raises(UserError, match=message):
        check_net2net(small(), large())


def test_noise_is_one_percent_of_the_spread_of_the_weights() -> None:
    small, networks = trained(build_cifar_resnet(8, 10, 8)), []
    for options in ({'noise': 0.0}, {}):
        networks.append(build_cifar_resnet(8, 10))
        torch.manual_seed(0)
        net2net(small, networks[-1], **options)
    exact, usual = (network.conv1.weight.detach() for network in networks)
    noise = (usual - exact)[8:].std()
    assert noise.item() == pytest.approx(0.01 * exact.std().item(), rel=0.5)
