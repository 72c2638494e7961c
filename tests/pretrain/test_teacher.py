"""The method outside this suite's runs: in a loop of one's own, with networks of timm."""

import copy
import gc
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

import pretrain.build  # noqa: F401  (fills the registries)
from pretrain.classifier import SnapshotClassifier
from pretrain.models.resnet import build_resnet
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError
from pretrain.studies.kernels import Counter
from pretrain.teacher import Pointwise, SnapshotTeacher, fold, freeze
from tests.conftest import ROOT


def test_loss_schedule_and_teacher_import_no_mmengine() -> None:
    code = 'import pretrain.losses, pretrain.schedule, pretrain.teacher, sys; '
    code += 'print([name for name in sys.modules if name.startswith("mmengine")])'
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == '[]'


@pytest.fixture
def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.Flatten(), nn.LazyLinear(4)
    )


def test_a_teacher_is_the_student_as_it_was_taken(student: nn.Module) -> None:
    images = torch.randn(5, 3, 8, 8)
    student(images)
    teacher = SnapshotTeacher(student).train()
    assert teacher(images) is None
    assert list(teacher.parameters()) == []
    for _ in range(2):  # the second snapshot takes the first one's place
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        student.train()(images).square().mean().backward()
        optimizer.step()
        expected = copy.deepcopy(student).eval()(images).detach()
        teacher.take(student)
        student.zero_grad()
        student(images).sum().backward()
        optimizer.step()
        torch.testing.assert_close(teacher(images), expected, atol=1e-5, rtol=1e-5)
        assert not teacher(images).requires_grad
    resumed = SnapshotTeacher(student)
    resumed.load_state_dict(teacher.state_dict())
    assert torch.equal(resumed(images), teacher(images))


POINTWISE = [
    ({}, True),
    ({'bias': False}, True),
    ({'padding': 'same'}, True),
    ({'stride': 2}, False),
    ({'stride': (1, 2)}, False),
    ({'groups': 2}, False),
    ({'padding': 1}, False),
]


@pytest.mark.parametrize(('options', 'replaced'), POINTWISE)
@pytest.mark.parametrize('normalised', [True, False])
def test_pointwise_convolutions_teach_as_matrix_products(
    options: dict, replaced: bool, normalised: bool
) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 1, **options), *[nn.BatchNorm2d(6)] * normalised, nn.ReLU()]
    network, images = nn.Sequential(*layers), torch.randn(2, 4, 5, 7)
    network(images)  # running statistics
    network = freeze(network).eval()
    folded = fold(network, 'float32')
    assert isinstance(folded.get_submodule('0'), Pointwise) == replaced
    for memory_format in (torch.contiguous_format, torch.channels_last):
        inputs = images.contiguous(memory_format=memory_format)
        torch.testing.assert_close(folded(inputs), network(inputs), atol=1e-6, rtol=1e-5)
    with Counter() as counter:
        folded(inputs)  # channels_last
    biased = options.get('bias', True) or normalised
    assert counter.kernels == (2 if replaced else 2 + biased)
    halved = fold(network, 'bf16')(inputs.to(torch.bfloat16))
    assert halved.dtype == torch.bfloat16
    torch.testing.assert_close(halved.float(), network(inputs), atol=0.03, rtol=0.03)


class Tied(nn.Module):
    """Uses the weight of a convolution as well as the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(self.conv(inputs), self.conv.weight)


def test_folding_keeps_no_other_copy_of_the_weights() -> None:
    """Such as those that torch.fx makes, which wait for Python's garbage collection."""

    def memory() -> int:
        kinds = torch.Tensor, nn.Parameter  # no tensors without data, which other tests may leave
        tensors = [x for x in gc.get_objects() if type(x) in kinds]
        storages = {x.data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        return sum(storages.values())

    teacher = freeze(build_resnet(18, 10)).eval()
    gc.collect()
    gc.disable()
    try:
        before = memory()
        former = [fold(teacher, 'bf16')]
        half = sum(w.nbytes for w in teacher.buffers()) / 2
        assert memory() - before == pytest.approx(half, rel=0.01)  # biases in place of statistics
        former.clear()
        kept = fold(teacher, 'bf16')
        assert memory() - before == pytest.approx(half, rel=0.01)
        del kept
    finally:
        gc.enable()


def test_a_convolution_whose_weight_is_read_stays_one() -> None:
    network, images = freeze(Tied()).eval(), torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(fold(network, 'float32')(images), network(images))


@pytest.mark.parametrize(
    ('name', 'traced', 'options'),
    [
        ('vit_tiny_patch16_224', False, {'img_size': 32, 'depth': 2}),
        ('swin_tiny_patch4_window7_224', True, {'img_size': 56, 'depths': (1, 1, 1, 1)}),
    ],
)
def test_networks_of_timm_teach_whether_they_can_be_traced_or_not(
    name: str, traced: bool, options: dict
) -> None:
    model = SnapshotClassifier(
        network=dict(type='Timm', name=name, num_classes=4, **options),
        loss=dict(type='SnapshotDistillationLoss', teacher_weight=1.0, temperature=2.0),
        data_preprocessor=dict(type='ImgDataPreprocessor'),
    ).train()
    size = options['img_size']
    batch = {'inputs': torch.randn(2, 3, size, size), 'data_samples': torch.tensor([0, 3])}
    model.teaching = True
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        losses = model(**batch, mode='loss')
        model(**batch, mode='loss')['loss'].backward()
    told = [str(w.message) for w in warned if 'cannot fold the teacher' in str(w.message)]
    assert len(told) == (0 if traced else 1)
    assert losses['loss'].isfinite()
    with torch.no_grad():
        expected = model.teacher(batch['inputs'])
    torch.testing.assert_close(model.teach(batch['inputs']), expected, atol=1e-5, rtol=1e-5)


class SharedConvolution(nn.Module):
    """Uses one twice: calls it, or reads its weights."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first, second = self.norms
        images, weight = first(self.convolution(images)), self.convolution.weight
        again = F.conv2d(images, weight, padding=1) if self.reads else self.convolution(images)
        return second(again).mean(dim=(2, 3))


@pytest.mark.parametrize('reads', [True, False])
def test_a_convolution_that_is_used_twice_is_not_folded(reads: bool) -> None:
    """Else the batch normalisation would act on both uses."""
    torch.manual_seed(0)
    network = SharedConvolution(reads).train()
    for scale in (1.0, 3.0):
        network(scale * torch.randn(8, 3, 8, 8))  # other running statistics for each norm
    teacher, images = freeze(network).eval(), torch.randn(2, 3, 8, 8)
    with pytest.warns(UserWarning, match='it uses convolution more than once'):
        folded = fold(teacher, 'float32')
    torch.testing.assert_close(folded(images), teacher(images))


def test_a_network_of_timm_keeps_the_weights_that_its_settings_ask_for() -> None:
    model = SnapshotClassifier(
        network=dict(type='Timm', name='resnet18', num_classes=4, zero_init_last=False),
        loss=dict(type='SnapshotDistillationLoss', teacher_weight=0.0, temperature=1.0),
        data_preprocessor=dict(type='ImgDataPreprocessor'),
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.init_weights()  # as the Runner calls it
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0.0, rtol=0.0)
    assert before['student.layer1.0.bn2.weight'].eq(1).all()


@MODELS.register_module()
class Drawn(BaseModule):
    """A network of mmengine's kind, which draws its weights when it is told to."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(init_cfg=dict(type='Constant', layer='Linear', val=3.0))
        self.fc = nn.Linear(2, num_classes)


def test_a_network_of_mmengine_draws_its_weights_each_time() -> None:
    model = SnapshotClassifier(
        network=dict(type='Drawn', num_classes=4),
        loss=dict(type='SnapshotDistillationLoss', teacher_weight=0.0, temperature=1.0),
        data_preprocessor=dict(type='ImgDataPreprocessor'),
    )
    model.init_weights()
    assert model.student.fc.weight.eq(3).all()
    nn.init.zeros_(model.student.fc.weight)
    model.renew_student(0)
    assert model.student.fc.weight.eq(3).all()


def test_an_unknown_network_of_timm_is_named() -> None:
    with pytest.raises(UserError, match='has no network resnet51'):
        MODELS.build(dict(type='Timm', name='resnet51', num_classes=4))


class Images(torch.utils.data.Dataset):
    """Dicts as mmengine's loaders take them, or pairs as torch's."""

    def __init__(self, as_dict: bool) -> None:
        self.as_dict = as_dict

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict | tuple:
        image = torch.full((3, 32, 32), 20 * index, dtype=torch.uint8)
        if self.as_dict:
            return {'inputs': image, 'data_samples': index % 2}
        return image.float(), index % 2


def examples() -> list[str]:
    text = (ROOT / 'configs/README.md').read_text().split('## SD in your own training')[1]
    return re.findall(r'```python\n(.*?)```', text.split('\n## ')[0], re.DOTALL)


@pytest.mark.parametrize('number', [0, 1])
def test_examples_train(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand in the README, but for small networks and two epochs."""
    monkeypatch.chdir(tmp_path)
    code = examples()[number]
    for text, small in (('[45, 45]', '[1, 1]'), ("'resnet50'", "'resnet10t'")):
        assert text in code
        code = code.replace(text, small)
    names = {'train_set': Images(as_dict=number == 1)}
    exec(code, names)
    assert [path.name for path in sorted(tmp_path.rglob('snapshot_*'))] == [
        'snapshot_1.pth',
        'snapshot_2.pth',
    ]
    model = names['runner'].model if number else names['teacher']
    assert model.teaching
    if number == 1:
        saved = load_from_disk(next(tmp_path.rglob('snapshot_1.pth')))
        teacher = model.teacher.state_dict()
        assert torch.equal(teacher['fc.weight'], saved['state_dict']['student.fc.weight'])
