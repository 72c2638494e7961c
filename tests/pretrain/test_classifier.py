import copy

import pytest
import torch

import pretrain.build  # noqa: F401  (fills the registries)
from pretrain.classifier import SnapshotClassifier, freeze


def make(teacher_weight: float) -> SnapshotClassifier:
    torch.manual_seed(0)
    return SnapshotClassifier(
        network=dict(type='ResNet', depth=18, num_classes=4),
        loss=dict(type='SnapshotDistillationLoss', teacher_weight=teacher_weight, temperature=2.0),
        data_preprocessor=dict(type='ImgDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3),
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
    calls = []
    model.teacher.register_forward_hook(lambda *_: calls.append(1))
    assert set(model(**batch, mode='loss')) == {'loss'}
    model(**batch, mode='predict')
    assert not calls
    model.statistics.clear()  # as SnapshotHook does at each epoch
    model.teaching = True
    assert set(model(**batch, mode='loss')) == {'loss', 'cross_entropy', 'kl'}
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
    model.take_snapshot()
    snapshot = copy.deepcopy(model.student.state_dict())
    step()
    for name, tensor in model.teacher.state_dict().items():
        assert torch.equal(tensor, snapshot[name]), f'{name} moved'
    moved = [n for n, t in model.student.state_dict().items() if not torch.equal(t, snapshot[n])]
    assert 'bn1.running_mean' in moved
    assert 'conv1.weight' in moved


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
    for network in (model.student, model.teacher):
        network.layer4.register_forward_hook(lambda _, __, output: seen.append(output))
    model(**batch, mode='loss')
    assert [output.is_contiguous(memory_format=torch.channels_last) for output in seen] == [
        True
    ] * 2
    assert {output.dtype for output in seen} == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason='autocast is for GPUs')
@pytest.mark.parametrize('bf16', [True, False])
def test_bf16_is_for_gpus(bf16: bool, batch: dict) -> None:
    model = make(1.0).cuda().train()
    model.bf16 = bf16
    seen = []
    model.student.layer4.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    cuda = {name: tensor.cuda() for name, tensor in batch.items()}
    losses = model(**cuda, mode='loss')
    assert seen == [torch.bfloat16 if bf16 else torch.float32]
    assert losses['loss'].dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())
