"""What is counted as a kernel and as a wait, and that a run's whole iteration is counted."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import nn
from torch.autograd import DeviceType

from pretrain.classifier import SnapshotClassifier
from pretrain.studies import kernels
from pretrain.studies.kernels import Counter, kernel_rows
from tests.conftest import ROOT


def counted(function) -> tuple[int, int]:
    with Counter() as counter:
        function()
    return counter.kernels, counter.waits


def test_an_operator_is_a_kernel_and_a_view_is_none() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert counted(lambda: x + 1) == (1, 0)
    assert counted(lambda: x.to(torch.bfloat16)) == (1, 0)
    assert counted(lambda: x.view(-1).detach()[3:].expand(2, -1)) == (0, 0)
    assert counted(lambda: x.view(-1).unsqueeze_(0).resize_(4)) == (0, 0)
    assert counted(lambda: torch.empty(3)) == (0, 0)


def test_convolutions_count_their_bias_and_their_gradients() -> None:
    image = torch.rand(1, 3, 8, 8)
    weight, bias = nn.Parameter(torch.rand(2, 3, 3, 3)), torch.rand(2)
    assert counted(lambda: F.conv2d(image, weight)) == (1, 0)
    assert counted(lambda: F.conv2d(image, weight, bias)) == (2, 0)
    with torch.inference_mode():
        assert counted(lambda: F.conv2d(image, weight, bias)) == (2, 0)
    gradient = torch.ones(1, 2, 6, 6)
    out = F.conv2d(image, weight)
    first = counted(lambda: torch.autograd.grad(out, weight, gradient))
    image.requires_grad_()
    out = F.conv2d(image, weight)
    both = counted(lambda: torch.autograd.grad(out, [weight, image], gradient))
    assert both[0] - first[0] == 1


def test_values_that_are_read_are_waited_for() -> None:
    x = torch.ones(())
    assert counted(x.item)[1] == counted(lambda: float(x))[1] == counted(lambda: bool(x))[1] == 1
    assert counted(lambda: x.new_tensor((0.3, 0.6)))[1] == 1
    assert counted(lambda: x * 2.0)[1] == 0


@pytest.mark.parametrize('teacher_weight', [0.0, 1.0])
def test_kernels_of_the_loss_and_the_statistics(teacher_weight: float) -> None:
    """Of an iteration but for the networks. A teacher costs 21 kernels, for the terms of Eqn 3, for
    their gradient and for what the student is compared with."""
    loss = dict(type='SnapshotDistillationLoss', teacher_weight=teacher_weight, temperature=2.0)
    model = SnapshotClassifier(dict(type='CifarResNet', depth=8, num_classes=6), loss, None)
    logits, teacher_logits = torch.rand(2, 3, 6)
    logits.requires_grad_()
    model._compute, model.teach = lambda *_: logits, lambda _: teacher_logits
    batch = torch.rand(3, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(3)

    def iteration() -> None:
        model.parse_losses(model(*batch, mode='loss'))[0].backward()

    model.teaching = teacher_weight > 0
    iteration()  # and the gradient, to which the next one is added
    assert counted(iteration) == (17 + 21 * model.teaching, 0)


def test_kernels_of_a_small_network() -> None:
    path = ROOT / 'configs/pretrain/r152_sd.py'
    rows = kernel_rows(path, ['model.network.depth=18'], rounds=1)
    values = {row['name']: row['value'] for row in rows}
    bl, sd = (values[f'r152_sd: {name}, kernels per iteration'] for name in ('BL', 'SD'))
    assert values['r152_sd: extra kernels of SD over BL'] == sd - bl
    waits = [value for name, value in values.items() if 'waits' in name]
    assert waits == [0, 0]
    # Of each of the 20 convolutions in BL: itself and the cast of its weights, two gradients (the
    # first has one) and the cast of the weights' back; its normalisation, forward and backward.
    assert bl > 20 * 7
    # Of the teacher each convolution has a bias.
    assert sd - bl > 20 * 2


def test_a_gpu_s_kernels_and_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SimpleNamespace(device_type=DeviceType.CUDA, count=60, self_device_time_total=3e5)
    copied = SimpleNamespace(device_type=DeviceType.CUDA, count=20, self_device_time_total=1e5)
    python = SimpleNamespace(device_type=DeviceType.CPU, count=99, self_device_time_total=4e5)
    profiler = mock.Mock(**{'key_averages.return_value': [kernel, copied, python]})
    monkeypatch.setattr(kernels, 'profile', lambda activities: profiler)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr('time.perf_counter', iter((10.0, 10.5)).__next__)
    profiled = kernels.Profile()
    assert any(profiled(SimpleNamespace(iter=step)) for step in range(100))
    assert profiled.kernels == (60 + 20) / 20
    assert profiled.utilisation == pytest.approx(0.4 / 0.5)


def test_kernels_are_counted_without_a_graph_and_profiled_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph dispatches no operators that could be counted."""
    seen = []
    monkeypatch.setattr(kernels, 'GPU', True)
    monkeypatch.setattr(kernels, 'Profile', lambda: mock.Mock(kernels=9, utilisation=0.5))

    def run_until(config: Config, enough: object) -> None:
        seen.append(config.model.graph_batch)
        for _ in range(kernels.WARM_UP + 1):
            enough(SimpleNamespace(iter=0))

    monkeypatch.setattr(kernels, 'run_until', run_until)
    prepared = kernels.bl_and_sd

    def with_graph(*arguments: object) -> tuple[Config, Config]:
        configs = prepared(*arguments)
        for config in configs:
            config.model.graph_batch = 2
        return configs

    monkeypatch.setattr(kernels, 'bl_and_sd', with_graph)
    path = ROOT / 'configs/pretrain/cifar100/resnet20_sd_t3.py'
    kernel_rows(path, ['batch_size=2'], rounds=1)
    assert seen == [0, 2, 0, 2]
