import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch.utils._python_dispatch import TorchDispatchMode

import pretrain.build  # noqa: F401  (fills the registries)
from pretrain.classifier import SnapshotClassifier, fold, freeze

RESNET = dict(type='ResNet', depth=18, num_classes=4)


def make(
    teacher_weight: float,
    network: dict = RESNET,
    compiled: bool = False,
    precision: str = 'float32',
) -> SnapshotClassifier:
    torch.manual_seed(0)
    return SnapshotClassifier(
        network=network,
        loss=dict(type='SnapshotDistillationLoss', teacher_weight=teacher_weight, temperature=2.0),
        data_preprocessor=dict(type='ImgDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3),
        compiled=compiled,
        precision=precision,
    )


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        'inputs': torch.randn(6, 3, 32, 32, generator=generator),
        'data_samples': torch.tensor([0, 1, 2, 3, 0, 1]),
    }


def test_methods_share_their_first_weights_and_random_numbers() -> None:
    baseline = make(teacher_weight=0.0)
    after_baseline = torch.get_rng_state()
    distilled = make(teacher_weight=1.0)
    assert torch.equal(after_baseline, torch.get_rng_state())
    for name, tensor in baseline.student.state_dict().items():
        assert torch.equal(tensor, distilled.student.state_dict()[name])


def test_a_new_student_follows_from_its_seed_alone() -> None:
    """All processes begin a generation with the same weights, whatever each has drawn before."""
    model, drawn = make(teacher_weight=0.0), []
    for before, seed in ((0, 5), (1, 5), (1, 6)):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        model.renew_student(seed)
        assert torch.equal(torch.get_rng_state(), state)
        drawn.append(model.student.conv1.weight.clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_baseline_holds_no_teacher() -> None:
    assert not [name for name in make(0.0).state_dict() if name.startswith('teacher')]


def test_teacher_is_saved_but_cannot_be_trained() -> None:
    model = make(1.0)
    names = {name.removeprefix('teacher.') for name in model.state_dict() if 'teacher.' in name}
    assert names == set(model.student.state_dict())
    assert {name.split('.')[0] for name, _ in model.named_parameters()} == {'student'}


def test_frozen_network_computes_the_same() -> None:
    student = make(0.0).student.eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(freeze(copy.deepcopy(student))(images), student(images))


def test_no_teacher_forward_until_teaching(batch: dict) -> None:
    model = make(1.0).train()
    calls, teach = [], model.teach
    model.teach = lambda inputs: calls.append(1) or teach(inputs)
    assert set(model(**batch, mode='loss')) == {'loss', 'error'}
    model(**batch, mode='predict')
    assert not calls
    model.statistics.clear()  # as SnapshotHook does at each epoch
    model.teaching = True
    assert set(model(**batch, mode='loss')) == {'loss', 'cross_entropy', 'kl', 'error'}
    model(**batch, mode='predict')
    assert len(calls) == 1


def test_snapshot_is_the_student_and_stays_still(batch: dict) -> None:
    model = make(1.0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-4)
    model.teaching = True

    def step() -> None:
        optimizer.zero_grad()
        model(**batch, mode='loss')['loss'].backward()
        optimizer.step()

    step()
    model.set_teacher(model.student.state_dict())
    snapshot = copy.deepcopy(model.student.state_dict())
    step()
    for name, tensor in model.teacher.state_dict().items():
        assert torch.equal(tensor, snapshot[name]), f'{name} moved'
    moved = [n for n, t in model.student.state_dict().items() if not torch.equal(t, snapshot[n])]
    assert 'bn1.running_mean' in moved
    assert 'conv1.weight' in moved


@pytest.mark.parametrize(
    'network',
    [
        dict(type='ResNet', depth=18, num_classes=4),
        dict(type='SEResNet', depth=50, num_classes=4),
        dict(type='CifarResNet', depth=20, num_classes=4),
        dict(type='CifarDenseNet', depth=100, num_classes=4),
    ],
)
def test_folded_teacher_has_the_logits_of_the_teacher(network: dict, batch: dict) -> None:
    model = make(1.0, network)
    for module in model.teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model.teacher(batch['inputs'])
    logits = model.teach(batch['inputs'])
    # Float32; the folding multiplies and adds in another order.
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert not logits.requires_grad
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    folded = [m for m in model._folded[0].modules() if isinstance(m, torch.nn.BatchNorm2d)]
    norms = [m for m in model.teacher.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    # A DenseNet normalises before it convolves: half of its layers cannot be folded.
    assert len(folded) <= len(norms) // 2 + 2 if 'Dense' in network['type'] else not folded


def test_compiling_is_asked_for_and_no_part_of_the_state(batch: dict) -> None:
    plain, compiled = make(1.0), make(1.0, compiled=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    with torch.compiler.set_stance('force_eager'):  # what compiled code computes is torch's matter
        for model, expected in ((plain, False), (compiled, True)):
            model.set_teacher(model.student.state_dict())
            model.teach(batch['inputs'])
            assert [
                n._compiled_call_impl is not None
                for n in (model.student, model._folded[0], model.teacher)
            ] == [expected, expected, False]


@pytest.mark.slow
def test_compiled_networks_compute_the_same(batch: dict) -> None:
    losses, gradients = [], []
    for compiled in (False, True):
        model = make(1.0, compiled=compiled).train()
        model.set_teacher(model.student.state_dict())
        model.teaching = True
        loss = model(**batch, mode='loss')['loss']
        loss.backward()
        losses.append(loss.detach())
        gradients.append(model.student.conv1.weight.grad)
    # Float32; compiled code fuses and reorders.
    torch.testing.assert_close(*losses, atol=0, rtol=1e-5)
    # Of the whole gradient: single values near 0 have no digits of their own.
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_new_teacher_is_folded_anew(batch: dict) -> None:
    model = make(1.0)
    first = model.teach(batch['inputs'])
    with torch.no_grad():
        model.student.fc.bias += 1.0
    model.set_teacher(model.student.state_dict())
    torch.testing.assert_close(model.teach(batch['inputs']), first + 1.0)


def test_teacher_normalises_with_running_statistics(batch: dict) -> None:
    model = make(1.0)
    assert not any(module.training for module in model.train().teacher.modules())
    assert model.student.training
    one_by_one = torch.cat([model.teacher(image[None]) for image in batch['inputs']])
    # Reductions of another batch size round differently.
    torch.testing.assert_close(model.teacher(batch['inputs']), one_by_one, atol=1e-5, rtol=1e-4)


def test_both_networks_compute_in_channels_last(batch: dict) -> None:
    model = make(1.0).train()
    model.teaching = True
    seen = []
    model(**batch, mode='loss')  # folds the teacher
    for network in (model.student, *model._folded):
        network.get_submodule('layer4.1.conv2').register_forward_hook(
            lambda *call: seen.append(call[-1])
        )
    model(**batch, mode='loss')
    assert [output.is_contiguous(memory_format=torch.channels_last) for output in seen] == [
        True
    ] * 2
    assert {output.dtype for output in seen} == {torch.float32}


DEVICES = [
    'cpu',
    pytest.param(
        'cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
    ),
]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(
    ('precision', 'dtype'), [('bf16', torch.bfloat16), ('float32', torch.float32)]
)
def test_layers_compute_in_the_precision_and_all_else_in_float32(
    device: str, precision: str, dtype: torch.dtype, batch: dict
) -> None:
    model = make(1.0, precision=precision).to(device).train()
    model.teaching = True
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    seen = []
    model(**batch, mode='loss')  # folds the teacher
    for network in (model.student, *model._folded):
        network.get_submodule('layer4.1.conv2').register_forward_hook(
            lambda *call: seen.append(call[-1].dtype)
        )
    losses = model(**batch, mode='loss')
    losses['loss'].backward()
    assert seen == [dtype, dtype]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
    assert all(p.grad.dtype == torch.float32 for p in model.student.parameters())
    assert all(p.grad.isfinite().all() for p in model.student.parameters())


def test_bf16_is_close_to_float32(batch: dict) -> None:
    """Losses, statistics and gradient of the same weights; bf16 has 8 bits, 2^-8 = 0.4 %."""
    results = []
    for precision in ('float32', 'bf16'):
        model = make(
            1.0, dict(type='CifarResNet', depth=20, num_classes=4), precision=precision
        ).train()
        model.teaching = True
        losses = model(**batch, mode='loss')
        losses['loss'].backward()
        gradient = torch.cat([p.grad.flatten() for p in model.student.parameters()])
        statistics = torch.cat([m.flatten() for m in model.student.buffers()]).float()
        results.append((losses, gradient, statistics))
    (exact, gradient, statistics), (ours, rounded, measured) = results
    for name, loss in exact.items():
        torch.testing.assert_close(ours[name], loss, rtol=0.02, atol=0.01)
    # The rounding errors of twenty layers add up in the gradient of the first.
    assert 0.9 < F.cosine_similarity(rounded, gradient, dim=0) < 1
    torch.testing.assert_close(measured, statistics, rtol=0.01, atol=0.01)


def test_methods_share_generation_1_in_bf16(batch: dict) -> None:
    """A teacher that does not teach yet changes no bit of the student's update."""
    students = []
    for weight in (0.0, 1.0):
        model = make(weight, precision='bf16').train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(**batch, mode='loss')['loss'].backward()
        optimizer.step()
        students.append(model.student.state_dict())
    assert all(torch.equal(students[0][name], tensor) for name, tensor in students[1].items())


class Casts(TorchDispatchMode):
    """Counts the copies of a tensor to another type."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(
    'network',
    [
        RESNET,
        dict(type='SEResNet', depth=50, num_classes=4),
        dict(type='CifarResNet', depth=20, num_classes=4),
    ],
)
def test_teacher_is_cast_to_bf16_once_and_not_at_each_forward(network: dict, batch: dict) -> None:
    model = make(1.0, network, precision='bf16')
    model.teach(batch['inputs'])
    with Casts() as casts:
        logits = model.teach(batch['inputs'])
    assert casts.count == 2  # of the images, and of the logits to float32
    # And what autocast would compute from float32 weights, to the bit.
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        expected = fold(model.teacher, 'float32')(batch['inputs']).float()
    assert torch.equal(logits, expected)


class Untraceable(torch.nn.Module):
    """Its course depends on its input, as in networks that torch.fx cannot trace."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, num_classes, 3)
        self.bn = torch.nn.BatchNorm2d(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.sum() > -1e9:
            images = self.bn(self.conv(images))
        return images.mean(dim=(2, 3))


def test_network_that_cannot_be_traced_teaches_unfolded(batch: dict, monkeypatch) -> None:
    monkeypatch.setitem(MODELS._module_dict, 'Untraceable', Untraceable)
    model = make(1.0, dict(type='Untraceable', num_classes=4))
    with pytest.warns(UserWarning, match='torch.fx cannot fold the teacher .*not folded'):
        logits = model.teach(batch['inputs'])
    assert torch.equal(logits, model.teacher(batch['inputs']))
