import numpy as np
import pytest
import torch
from torch import nn

from pretrain.feature_losses import FSPLoss, HintLoss, flow, forward_to_layers
from pretrain.models.cifar import build_cifar_resnet
from pretrain.runs.errors import UserError


def sines(shape: tuple[int, ...], step: float) -> torch.Tensor:
    """The inputs of the peers' figures below."""
    return (torch.arange(np.prod(shape), dtype=torch.float64) * step).sin().view(shape)


STUDENT = [sines((2, 3, 4, 4), 0.7), sines((2, 5, 4, 4), 1.3)]
TEACHER = [sines((2, 3, 4, 4), 1.1), sines((2, 5, 4, 4), 0.3)]


# What peers compute of them in float64; for torchdistill the second image's matrix.
REPDISTILLER_HINT = 0.9843966878998313
REPDISTILLER_FSP = 0.007055030877608428
TORCHDISTILL_FLOW = [
    [
        -0.09500045762839932,
        -0.02121045501491339,
        0.11072136376141287,
        -0.060854741860328514,
        -0.06561664140339299,
    ],
    [
        -0.05838884164197246,
        0.09209846853481578,
        -0.00987331387576939,
        -0.08478050008229587,
        0.07271148885912057,
    ],
    [
        0.07129401993627313,
        0.05860332914056472,
        -0.1147300252389937,
        0.026433034112944682,
        0.09513821319120161,
    ],
]


def slow_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Eqn 1 of A Gift from KD for one image, pixel by pixel."""
    matrix = np.zeros((len(first), len(second)))
    height, width = first.shape[1:]
    for s in range(height):
        for t in range(width):
            for i in range(len(first)):
                for j in range(len(second)):
                    matrix[i, j] += first[i, s, t] * second[j, s, t] / (height * width)
    return matrix


def test_flow_against_a_loop_and_against_torchdistill() -> None:
    matrices = flow(*STUDENT)
    for ours, first, second in zip(matrices, *STUDENT, strict=True):
        np.testing.assert_allclose(ours, slow_flow(first.numpy(), second.numpy()), rtol=1e-12)
    # FSPLoss.compute_fsp_matrix of torchdistill (3e4373c) for the second image.
    np.testing.assert_allclose(matrices[1], TORCHDISTILL_FLOW, rtol=1e-12)


def test_fsp_loss_against_a_loop_and_against_repdistiller() -> None:
    loss = FSPLoss([('a', 'b'), ('c', 'd')])
    value = loss([*STUDENT, *TEACHER], [*TEACHER, *STUDENT])
    total = 0.0
    for n in range(2):
        ours, theirs = (
            slow_flow(*(features[n].numpy() for features in networks))
            for networks in (STUDENT, TEACHER)
        )
        total += ((ours - theirs) ** 2).sum() / ours.size / 2  # λ = 1 / (I J), two images
    assert value.item() == pytest.approx(2 * total, rel=1e-12)  # both pairs are the same here
    # FSP of RepDistiller (b84f547), for one pair.
    assert value.item() / 2 == pytest.approx(REPDISTILLER_FSP, rel=1e-12)


def test_hint_loss_against_a_loop_and_against_repdistiller() -> None:
    loss = HintLoss('guided', 'hint', (3, 5)).double()
    guided, hint = STUDENT[0], TEACHER[1]
    value = loss([guided], [hint])
    weight, bias = (p.detach().numpy() for p in loss.regressor.parameters())
    squares = [
        (
            sum(weight[c, i, 0, 0] * guided[n, i, y, x].item() for i in range(3))
            + bias[c]
            - hint[n, c, y, x].item()
        )
        ** 2
        for n, c, y, x in np.ndindex(*hint.shape)
    ]
    assert value.item() == pytest.approx(np.mean(squares), rel=1e-12)
    # HintLoss of RepDistiller (b84f547), whose regressor is apart: ours as the identity.
    same = HintLoss('guided', 'hint', (5, 5)).double()
    nn.init.dirac_(same.regressor.weight)
    nn.init.zeros_(same.regressor.bias)
    assert same([STUDENT[1]], [TEACHER[1]]).item() == pytest.approx(REPDISTILLER_HINT, rel=1e-12)


def test_gradient_reaches_the_student_and_the_regressor_alone() -> None:
    student, teacher = build_cifar_resnet(8, 10), build_cifar_resnet(14, 10).eval()
    loss = HintLoss('layer2', 'layer2', (32, 32))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        _, theirs = forward_to_layers(teacher, images, loss.teacher_layers)
    logits, ours = forward_to_layers(student, images, loss.student_layers)
    loss(ours, theirs).backward()
    learns = {name.split('.')[0] for name, p in student.named_parameters() if p.grad is not None}
    assert learns == {'conv1', 'bn1', 'layer1', 'layer2'}
    assert loss.regressor.weight.grad.abs().sum() > 0
    assert logits.shape == (2, 10)
    assert ours[0].shape == (2, 32, 16, 16)


def test_features_are_those_before_a_relu_in_place() -> None:
    network = build_cifar_resnet(8, 10).eval()
    images = torch.randn(2, 3, 32, 32)
    _, (stem, normed) = forward_to_layers(network, images, ['conv1', 'bn1'])
    assert torch.equal(normed, network.bn1(stem))
    assert normed.min() < 0
    assert not any(module._forward_hooks for module in network.modules())


def test_layer_that_does_not_exist() -> None:
    network = build_cifar_resnet(8, 10)
    with pytest.raises(UserError, match=r'a layer layer9, .*choose from conv1, bn1, .*layer3'):
        forward_to_layers(network, torch.zeros(1, 3, 32, 32), ['layer1', 'layer9'])


def test_sizes_that_do_not_fit() -> None:
    def features(*sizes: tuple[int, int, int]) -> list[torch.Tensor]:
        return [torch.zeros(2, *size) for size in sizes]

    hint = HintLoss('layer1', 'layer2', (16, 32))
    with pytest.raises(UserError, match='layer1 gives 16x8x8, the hint layer layer2 32x4x4'):
        hint(features((16, 8, 8)), features((32, 4, 4)))
    with pytest.raises(UserError, match=r'features.channels, now \[16, 32\]'):
        hint(features((16, 8, 8)), features((64, 8, 8)))
    fsp = FSPLoss([('layer1', 'layer2')])
    other_sizes = features((16, 8, 8), (32, 4, 4))
    with pytest.raises(UserError, match=r'layer1 and layer2 .*16x8x8 and 32x4x4 in the student'):
        fsp(other_sizes, other_sizes)
    with pytest.raises(UserError, match='the same numbers of channels in both networks'):
        fsp(features((16, 8, 8), (16, 8, 8)), features((16, 8, 8), (32, 8, 8)))
