"""Teachers other than the last snapshot: lagging copies, averages and other runs' networks."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from pretrain.classifier import student_weights
from pretrain.net2net import Net2NetHook
from pretrain.other_runs import check_other_run
from pretrain.runs.checkpoint import load_from_disk, weights_sha256
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_record
from tests.pretrain.test_hooks import Stop, assert_same_training_state

LENGTH = 4  # iterations of an epoch of the tiny data
LAG = ['algorithm.generations=1', 'algorithm.copy_every=1', 'algorithm.lag=3']
SETTINGS = {
    'lag 1': ['algorithm.generations=1', 'algorithm.copy_every=1'],
    'lag 3': LAG,
    'lag 4, every 2': ['algorithm.copy_every=2', 'algorithm.lag=4'],
    'every epoch': ['algorithm.generations=1', f'algorithm.copy_every={LENGTH}'],
    'average': ['algorithm.copy_every=1', 'algorithm.decay=0.7'],
}


@MODELS.register_module()
class DeepNet(nn.Sequential):
    """A teacher of another architecture than TinyNet's."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, 12, 3, stride=2, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, num_classes),
        )


def teacher_of(step: int, students: list[nn.Module], settings: dict) -> nn.Module | None:
    """The teacher of step l from all students θ_0, θ_1, ... so far; slowly, in float64."""
    every, lag, decay = (settings.get(name) for name in ('copy_every', 'lag', 'decay'))
    old = [c for c in range(1, step) if c % every == 0 and step - c >= (lag or 1)]
    if not old:
        return None
    teacher = copy.deepcopy(students[old[-1]])
    if decay:
        states = [students[c].state_dict() for c in old]
        for name, tensor in teacher.state_dict().items():
            if tensor.is_floating_point():
                mean = states[0][name].double()
                for state in states[1:]:
                    mean = decay * mean + (1 - decay) * state[name].double()
                tensor.copy_(mean)
    return teacher.eval()


@pytest.mark.parametrize('name', SETTINGS)
def test_run_follows_algorithm_1(name: str, tiny_config: Callable, tmp_path: Path) -> None:
    """The Runner against Algorithm 1 with the general c_l, written out with torch alone."""
    config = tiny_config('sd', tmp_path, *SETTINGS[name])
    lengths = list(config.algorithm.generations)
    runner = Runner.from_cfg(config)
    student = copy.deepcopy(runner.model.student)
    preprocess = copy.deepcopy(runner.model.data_preprocessor)
    loader = runner.build_dataloader(config.train_dataloader, seed=0)
    runner.train()

    alpha = config.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD(
        student.parameters(), lr=alpha, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    students, epoch, step, taught = [copy.deepcopy(student)], 0, 0, 0
    student.train()
    for length in lengths:
        for done in range(length):
            loader.sampler.set_epoch(epoch)
            # An epoch is taught as a whole or not at all.
            teaching = teacher_of(step + 1, students, config.algorithm) is not None
            for index, batch in enumerate(loader):
                step += 1
                progress = (done * LENGTH + index) / (length * LENGTH)
                optimizer.param_groups[0]['lr'] = 0.5 * alpha * (1 + math.cos(math.pi * progress))
                images, labels = preprocess(batch)['inputs'], batch['data_samples']
                logits = student(images)
                loss = F.cross_entropy(logits, labels)
                if teaching:
                    with torch.no_grad():
                        teacher = teacher_of(step, students, config.algorithm)
                        q = F.softmax(teacher(images) / 2.0, dim=1)
                    p = F.log_softmax(logits, dim=1)
                    loss = 1.5 * loss + (q * (q.log() - p)).sum(dim=1).mean()
                    taught += 1
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                students.append(copy.deepcopy(student))
            epoch += 1
    assert taught >= LENGTH
    for key, tensor in student.state_dict().items():
        # Twelve steps whose rate and loss are rounded in another order.
        torch.testing.assert_close(
            runner.model.student.state_dict()[key], tensor, atol=2e-4, rtol=2e-3, msg=key
        )
    last = teacher_of(step, students, config.algorithm).state_dict()
    for key, tensor in runner.model.teacher.state_dict().items():
        torch.testing.assert_close(tensor, last[key], atol=2e-4, rtol=2e-3, msg=key)
    entries = [entry['train'] for entry in read_record(tmp_path / 'run.json')['history']]
    assert [('agreement' in entry) for entry in entries].count(True) * LENGTH == taught


@pytest.mark.parametrize('name', ['lag 3', 'lag 4, every 2', 'average'])
def test_run_that_is_stopped_within_an_epoch_is_the_same_run(
    name: str, tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """While copies wait to teach. The checkpoint of iteration 6 holds them."""
    train('sd', tmp_path / 'whole', *SETTINGS[name])

    class StopAt(Hook):
        priority = 'VERY_HIGH'

        def before_train_iter(self, runner: Runner, **_: object) -> None:
            if runner.iter == LENGTH + 2:
                raise KeyboardInterrupt

    every = (*SETTINGS[name], 'default_hooks.checkpoint.minutes=0')
    runner = Runner.from_cfg(tiny_config('sd', tmp_path / 'cut', *every))
    runner.register_hook(StopAt())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    config = tiny_config('sd', tmp_path / 'cut', *SETTINGS[name])
    config.load_from, config.resume = str(tmp_path / 'cut/epoch_1_iter_2.pth'), True
    config.experiment_name += '-resumed'
    assert ('waiting_copies' in load_from_disk(config.load_from)) == ('lag' in name)
    Runner.from_cfg(config).train()
    assert_same_training_state(tmp_path / 'whole/epoch_3.pth', tmp_path / 'cut/epoch_3.pth')


def test_run_that_is_stopped_between_epochs_is_the_same_run(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    train('sd', tmp_path / 'whole', *LAG)
    runner = Runner.from_cfg(tiny_config('sd', tmp_path / 'cut', *LAG))
    runner.register_hook(Stop(3))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    config = tiny_config('sd', tmp_path / 'cut', *LAG)
    config.load_from, config.resume = str(tmp_path / 'cut/epoch_2.pth'), True
    config.experiment_name += '-resumed'
    Runner.from_cfg(config).train()
    assert_same_training_state(tmp_path / 'whole/epoch_3.pth', tmp_path / 'cut/epoch_3.pth')


def test_copies_and_snapshots_have_the_mean_statistics_of_all_processes(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has seen other images. Copies every two of four iterations."""
    runner = Runner.from_cfg(tiny_config('sd', tmp_path, *SETTINGS['lag 4, every 2']))
    names = {id(tensor): name for name, tensor in runner.model.student.named_buffers()}
    averaged = []

    def average(tensors: list[torch.Tensor], op: str) -> None:
        averaged.append((runner.iter, op, [names[id(tensor)] for tensor in tensors]))

    monkeypatch.setattr('pretrain.hooks.all_reduce_params', average)
    runner.train()
    statistics = [f'{layer}.running_{kind}' for layer in (1, 4) for kind in ('mean', 'var')]
    assert averaged == [(done, 'mean', statistics) for done in (2, 4, 6, 8, 10, 12)]


def test_mini_generations_in_iterations_are_those_in_epochs(
    train: Callable, tmp_path: Path
) -> None:
    """Eqn 4 with copies every epoch teaches as mini-generations of an epoch do; the rate of the
    former does not restart, so the latter's is made constant."""
    constant = 'optim_wrapper.optimizer.lr=0.0'  # no weight moves, the statistics do
    train('sd', tmp_path / 'epochs', 'algorithm.generations=[1, 1, 1]', constant)
    train('sd', tmp_path / 'copies', *SETTINGS['every epoch'], constant)
    ours, theirs = (
        [e['train'] for e in read_record(tmp_path / name / 'run.json')['history']]
        for name in ('copies', 'epochs')
    )
    for mine, other in zip(ours, theirs, strict=True):
        # One teacher is folded, the other is not: float32 rounds differently.
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_lag_longer_than_the_run(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config('sd', tmp_path, 'algorithm.copy_every=2', 'algorithm.lag=8')
    with pytest.raises(
        UserError, match=r'lag=8 and copy_every=2, no epoch of the 12 iterations has a teacher'
    ):
        Runner.from_cfg(config).train()
    assert not list(tmp_path.glob('*.pth'))


def deep_teacher(tiny_config: Callable, folder: Path) -> Path:
    """The snapshot of a run of DeepNet."""
    config = tiny_config('bl', folder, 'epochs=1', 'algorithm.generations=1')
    config.model.network = config.identity.model.network = dict(type='DeepNet', num_classes=4)
    Runner.from_cfg(config).train()
    return folder / 'snapshot_1.pth'


def test_teacher_of_another_architecture(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """It teaches from the first epoch on and stays as it is; its hash is the run's."""
    path = deep_teacher(tiny_config, tmp_path / 'deep')
    network = {'type': 'DeepNet', 'num_classes': 4}
    options = [
        'algorithm.generations=1',
        f'teacher.checkpoint={path}',
        f'teacher.network={network}',
    ]
    runner = train('sd', tmp_path / 'kd', *options)
    weights = student_weights(load_from_disk(path))
    for name, tensor in runner.model.teacher.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert [type(runner.model.student).__name__, len(weights)] == ['TinyNet', 14]
    record = read_record(tmp_path / 'kd/run.json')
    assert record['identity']['teacher'] == weights_sha256(weights)
    assert record['identity']['model']['teacher_network'] == network
    assert all('difference' in entry['train'] for entry in record['history'])
    alone = train('bl', tmp_path / 'bl', 'algorithm.generations=1')
    mine, theirs = (r.model.student.state_dict()['0.weight'] for r in (runner, alone))
    assert not torch.equal(mine, theirs)
    # Weights alone, as another library saves them, are the same teacher.
    torch.save(dict(weights), tmp_path / 'weights.pth')
    config = tiny_config(
        'sd', tmp_path / 'again', options[0], options[2],
        f'teacher.checkpoint={tmp_path / "weights.pth"}',
    )  # fmt: skip
    assert config.identity.teacher == record['identity']['teacher']


@pytest.mark.parametrize(
    ('theirs', 'network', 'message'),
    [
        ({}, {}, r'network.type=DeepNet, but this run asks for TinyNet.*teacher.network'),
        ({'mean': [0.0] * 3}, {'num_classes': 4}, r'mean=\[0.0, 0.0, 0.0\], but this run asks for'),
        ({'image_size': 64}, {'num_classes': 4}, 'image_size=64, but this run asks for 32'),
        ({}, {'num_classes': 5}, 'network.num_classes=4, but this run asks for 5'),
        ({'num_classes': 5}, {'num_classes': 5}, 'with 5 classes, but the student has 4'),
    ],
)
def test_teacher_that_does_not_fit(
    theirs: dict, network: dict, message: str, tiny_config: Callable, tmp_path: Path
) -> None:
    identity = tiny_config('sd', tmp_path / 'deep').identity.to_dict()
    classes = theirs.get('num_classes', 4)
    identity['model']['network'] = {'type': 'DeepNet', 'num_classes': classes}
    identity['image_size'] = theirs.get('image_size', 32)
    if 'mean' in theirs:
        identity['model']['data_preprocessor']['mean'] = theirs['mean']
    path = tmp_path / 'teacher.pth'
    weights = {f'student.{k}': v for k, v in DeepNet(classes).state_dict().items()}
    meta = {'epoch': 1, 'format': 2, 'identity': identity}
    torch.save({'meta': meta, 'state_dict': weights}, path)
    options = [f'teacher.checkpoint={path}']
    if network:
        options.append(f'teacher.network={ {"type": "DeepNet"} | network }')
    with pytest.raises(UserError, match=message):
        tiny_config('sd', tmp_path / 'kd', *options)


def test_settings_that_do_not_go_together(tiny_config: Callable, tmp_path: Path) -> None:
    path = tmp_path / 'weights.pth'
    torch.save({'0.weight': torch.zeros(1)}, path)
    hint = {'type': 'HintLoss', 'student': '3', 'teacher': '3', 'channels': [16, 16]}
    for options, message in (
        ([f'teacher.checkpoint={path}'], '13 tensors that the network has are missing'),
        ([f'teacher.checkpoint={path}', 'algorithm.copy_every=1'], 'leave one of them out'),
        (['algorithm.copy_every=1', 'algorithm.teacher_weight=0'], 'copy_every is given, but'),
        (["teacher.network={'type': 'TinyNet', 'num_classes': 4}"], 'need teacher.checkpoint'),
        ([f'algorithm.features={hint}'], 'algorithm.features need teacher.checkpoint'),
        ([f'algorithm.features={hint | {"student": "stem"}}'], 'a layer stem, which the network'),
        ([f'algorithm.features={hint | {"teacher": "0"}}'], 'guided layer 3 gives 16x7x7'),
        (["initial.network={'type': 'TinyNet', 'num_classes': 4}"], 'needs initial.checkpoint'),
        ([f'initial.checkpoint={path}'], 'initial.network cannot be built'),
    ):
        with pytest.raises(UserError, match=message):
            tiny_config('sd', tmp_path / 'run', *options)


def test_features_alone_train_the_first_mini_generation(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """FitNets in both stages, against torch alone."""
    path = deep_teacher(tiny_config, tmp_path / 'deep')
    features = {'type': 'HintLoss', 'student': '0', 'teacher': '0', 'channels': [8, 12]}
    options = [
        f'teacher.checkpoint={path}', "teacher.network={'type': 'DeepNet', 'num_classes': 4}",
        f'algorithm.features={features}',
    ]  # fmt: skip
    config = tiny_config('sd', tmp_path / 'fitnet', *options)
    runner = Runner.from_cfg(config)
    student, regressor, teacher = (
        copy.deepcopy(module)
        for module in (runner.model.student, runner.model.features.regressor, DeepNet(4))
    )
    preprocess = copy.deepcopy(runner.model.data_preprocessor)
    loader = runner.build_dataloader(config.train_dataloader, seed=0)
    runner.train()

    teacher.load_state_dict(student_weights(load_from_disk(path)))
    teacher.eval()
    student.train()
    alpha = config.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD(
        [*student.parameters(), *regressor.parameters()],
        lr=alpha, momentum=0.9, weight_decay=1e-4, nesterov=True,
    )  # fmt: skip
    epoch = 0
    for length in (1, 2):
        for done in range(length):
            loader.sampler.set_epoch(epoch)
            for index, batch in enumerate(loader):
                progress = (done * LENGTH + index) / (length * LENGTH)
                optimizer.param_groups[0]['lr'] = 0.5 * alpha * (1 + math.cos(math.pi * progress))
                images, labels = preprocess(batch)['inputs'], batch['data_samples']
                logits = student(images)
                with torch.no_grad():
                    hint, q = teacher[0](images), F.softmax(teacher(images) / 2.0, dim=1)
                if epoch == 0:
                    loss = (regressor(student[0](images)) - hint).square().mean()
                else:
                    p = F.log_softmax(logits, dim=1)
                    loss = 1.5 * F.cross_entropy(logits, labels)
                    loss = loss + (q * (q.log() - p)).sum(dim=1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            epoch += 1
    for key, tensor in student.state_dict().items():
        # Twelve steps whose rate and loss are rounded in another order.
        torch.testing.assert_close(
            runner.model.student.state_dict()[key], tensor, atol=2e-4, rtol=2e-3, msg=key
        )
    record = read_record(tmp_path / 'fitnet/run.json')
    assert [('difference' in entry['train']) for entry in record['history']] == [False, True, True]
    assert 'ensemble' not in record


def test_net2net_begins_as_the_smaller_network(tiny_config: Callable, tmp_path: Path) -> None:
    """A ResNet-14 from a ResNet-8: before the first update both compute the same."""
    small = {'type': 'CifarResNet', 'depth': 8, 'num_classes': 4}
    config = tiny_config('bl', tmp_path / 'small', 'epochs=1', 'algorithm.generations=1')
    config.model.network = config.identity.model.network = small
    runner = Runner.from_cfg(config)
    runner.train()
    path = tmp_path / 'small/snapshot_1.pth'
    options = [f'initial.checkpoint={path}', f'initial.network={small}']
    with pytest.raises(UserError, match='TinyNet is not one'):
        tiny_config('bl', tmp_path / 'tiny', *options)
    with pytest.raises(UserError, match=r'depth=8, but this run asks for 14.*as initial\.network'):
        check_other_run(str(path), small | {'depth': 14}, config, 'initial.network')
    large = tiny_config('bl', tmp_path / 'large', 'epochs=1', 'algorithm.generations=1')
    large.model.network = small | {'depth': 14}
    large.default_hooks.initial = dict(
        type='Net2NetHook', network=small, checkpoint=str(path), seed=0
    )

    class Look(Hook):
        priority = 'LOWEST'

        def before_train(self, runner: Runner) -> None:
            self.student = copy.deepcopy(runner.model.student).eval()

    look, larger = Look(), Runner.from_cfg(large)
    larger.register_hook(look)
    larger.train()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = look.student(images), runner.model.student.eval()(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(larger.model.student.fc.weight, look.student.fc.weight)
    # When it is resumed, the student is what it has become.
    trained = copy.deepcopy(larger.model.student.state_dict())
    next(hook for hook in larger.hooks if isinstance(hook, Net2NetHook)).before_train(larger)
    for name, tensor in larger.model.student.state_dict().items():
        assert torch.equal(tensor, trained[name]), name


def test_copies_wait_for_the_epoch_that_taught_after_names(train: Callable, tmp_path: Path) -> None:
    options = ('algorithm.generations=1', 'algorithm.copy_every=1', 'algorithm.taught_after=2')
    train('sd', tmp_path, *options)
    history = read_record(tmp_path / 'run.json')['history']
    assert ['difference' in entry['train'] for entry in history] == [False, False, True]
