"""Whole tiny runs: what Algorithm 1 promises, and what a stop in the middle may not change."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.runner import Runner

from pretrain.classifier import student_weights
from pretrain.hooks import SnapshotHook
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_record


def assert_same_training_state(path: Path, other: Path) -> None:
    """Weights, buffers, teacher, momentum and schedule are equal bit for bit."""
    ours, theirs = load_from_disk(path), load_from_disk(other)
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        mine, yours = dict(flatten(ours[part])), dict(flatten(theirs[part]))
        assert mine.keys() == yours.keys()
        for key, value in mine.items():
            same = torch.equal(value, yours[key]) if torch.is_tensor(value) else value == yours[key]
            assert same, f'{part} {key} differs'


def flatten(node: object, prefix: str = ''):
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else None
    )
    if items is None:
        yield prefix, node
    else:
        for key, value in items:
            yield from flatten(value, f'{prefix}.{key}')


class Stop(Hook):
    """Ends the process, as far as the Runner can see, when epoch ``epoch`` begins."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def before_train_iter(self, runner: Runner, **_: object) -> None:
        if runner.epoch + 1 == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize('method', ['bl', 'se', 'sd'])
def test_run_follows_algorithm_1(
    method: str, tiny_config: Callable, image_folder: Path, tmp_path: Path
) -> None:
    """The Runner against Algorithm 1 written out with torch alone."""
    lengths = [3] if method == 'bl' else [1, 2]
    config = tiny_config(method, tmp_path, f'algorithm.generations={lengths}')
    runner = Runner.from_cfg(config)
    student = copy.deepcopy(runner.model.student)
    preprocess = copy.deepcopy(runner.model.data_preprocessor)
    loader = runner.build_dataloader(config.train_dataloader, seed=0)
    runner.train()

    alpha = config.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD(
        student.parameters(), lr=alpha, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    teacher = None
    epoch = 0
    student.train()
    for length in lengths:
        for done in range(length):
            loader.sampler.set_epoch(epoch)
            for index, batch in enumerate(loader):
                progress = (done * len(loader) + index) / (length * len(loader))
                optimizer.param_groups[0]['lr'] = 0.5 * alpha * (1 + math.cos(math.pi * progress))
                images, labels = preprocess(batch)['inputs'], batch['data_samples']
                logits = student(images)
                loss = F.cross_entropy(logits, labels)
                if teacher is not None:
                    with torch.no_grad():
                        q = F.softmax(teacher(images) / 2.0, dim=1)
                    p = F.log_softmax(logits, dim=1)
                    loss = 1.5 * loss + (q * (q.log() - p)).sum(dim=1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            epoch += 1
        if method == 'sd':
            teacher = copy.deepcopy(student).eval()

    for name, tensor in student.state_dict().items():
        # Twelve steps whose rate and loss are rounded in another order.
        torch.testing.assert_close(
            runner.model.student.state_dict()[name], tensor, atol=2e-4, rtol=2e-3, msg=name
        )


def test_snapshot_ensemble_is_distillation_without_teacher(train: Callable, tmp_path: Path) -> None:
    train('se', tmp_path / 'se')
    train('sd', tmp_path / 'off', 'algorithm.teacher_weight=0.0')
    assert_same_training_state(tmp_path / 'se/epoch_3.pth', tmp_path / 'off/epoch_3.pth')


def test_generation_1_is_shared_with_a_run_without_teacher(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    train('se', tmp_path / 'se')
    train('sd', tmp_path / 'sd')
    ensemble = load_from_disk(tmp_path / 'se/snapshot_1.pth')
    distilled = load_from_disk(tmp_path / 'sd/snapshot_1.pth')
    for name, tensor in ensemble['state_dict'].items():
        assert torch.equal(tensor, distilled['state_dict'][name])
    assert not torch.equal(
        load_from_disk(tmp_path / 'se/epoch_3.pth')['state_dict']['student.0.weight'],
        load_from_disk(tmp_path / 'sd/epoch_3.pth')['state_dict']['student.0.weight'],
    )
    # In both directions: with and without the teacher in the file.
    for method, source in (('sd', 'se'), ('se', 'sd')):
        config = tiny_config(method, tmp_path / f'{method}-from-{source}')
        config.load_from, config.resume = str(tmp_path / source / 'snapshot_1.pth'), True
        Runner.from_cfg(config).train()
        assert_same_training_state(
            tmp_path / f'{method}-from-{source}/epoch_3.pth', tmp_path / method / 'epoch_3.pth'
        )


@pytest.mark.parametrize('stop_at', [2, 3])
def test_resumed_run_is_the_same_run(
    stop_at: int, tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """Stopped at the hand-over (epoch 2) and amid mini-generation 2 (epoch 3)."""
    train('sd', tmp_path / 'whole')
    runner = Runner.from_cfg(tiny_config('sd', tmp_path / 'cut'))
    runner.register_hook(Stop(stop_at))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    config = tiny_config('sd', tmp_path / 'cut')
    config.load_from, config.resume = str(tmp_path / f'cut/epoch_{stop_at - 1}.pth'), True
    config.experiment_name += '-resumed'
    Runner.from_cfg(config).train()
    assert_same_training_state(tmp_path / 'whole/epoch_3.pth', tmp_path / 'cut/epoch_3.pth')


def test_a_teacher_that_the_checkpoint_lacks_is_refused(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """SE in mini-generation 2, resumed as SD: the student that would teach is not in the file, and
    new weights must not teach instead. At the end of mini-generation 1 the student itself does."""
    train('se', tmp_path / 'se')
    config = tiny_config('sd', tmp_path / 'sd')
    config.load_from, config.resume = str(tmp_path / 'se/epoch_2.pth'), True
    with pytest.raises(UserError, match=r'epoch_2\.pth has no teacher, .* --start-from'):
        Runner.from_cfg(config).train()
    copies = 'algorithm.copy_every=2', 'algorithm.lag=2'
    config = tiny_config('sd', tmp_path / 'copies', *copies)
    config.load_from, config.resume = str(tmp_path / 'se/snapshot_1.pth'), True
    with pytest.raises(UserError, match=r'snapshot_1\.pth has no teacher, .* --work-dir\.$'):
        Runner.from_cfg(config).train()


def test_snapshots_and_teacher_of_each_generation(train: Callable, tmp_path: Path) -> None:
    train('sd', tmp_path, 'algorithm.generations=[1, 1, 1]')
    snapshots = [load_from_disk(tmp_path / f'snapshot_{k}.pth') for k in (1, 2, 3)]
    assert [s['meta']['epoch'] for s in snapshots] == [1, 2, 3]
    for k in (1, 2):
        for name, tensor in snapshots[k - 1]['state_dict'].items():
            if name.startswith('student.'):
                teacher = snapshots[k]['state_dict'][name.replace('student.', 'teacher.', 1)]
                assert torch.equal(teacher, tensor), name


def test_checkpoint_of_another_network_is_refused(train: Callable, tmp_path: Path) -> None:
    runner = train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    checkpoint = load_from_disk(tmp_path / 'epoch_1.pth')
    del checkpoint['state_dict']['student.0.weight']
    torch.save(checkpoint, tmp_path / 'broken.pth')
    with pytest.raises(UserError, match=r'is of another network: .*student\.0\.weight'):
        runner.load_checkpoint(str(tmp_path / 'broken.pth'))


def test_whole_generations_begin_anew(train: Callable, tmp_path: Path) -> None:
    """Each begins with weights of its own and no momentum, and is taught by the one before."""
    train('sd', tmp_path, 'epochs=1', 'algorithm.generations=3', 'algorithm.fresh_student=True')
    snapshots = [load_from_disk(tmp_path / f'snapshot_{k}.pth') for k in (1, 2, 3)]
    assert [s['meta']['epoch'] for s in snapshots] == [1, 2, 3]
    students = [student_weights(snapshot)['0.weight'] for snapshot in snapshots]
    for k in (1, 2):
        assert torch.equal(snapshots[k]['state_dict']['teacher.0.weight'], students[k - 1])
        # A student that went on from its teacher would be close to it.
        assert (students[k] - students[k - 1]).norm() > 0.5 * students[k].norm()
    steps = [s['optimizer']['state'][0]['momentum_buffer'].norm() for s in snapshots]
    assert all(step > 0 for step in steps)


def test_whole_generation_is_algorithm_1_with_a_teacher(
    tiny_config: Callable, tmp_path: Path
) -> None:
    """The second generation against torch alone, from the weights that the hook drew."""
    options = ['epochs=1', 'algorithm.generations=2', 'algorithm.fresh_student=True']
    config = tiny_config('sd', tmp_path, *options)
    start = {}

    class Look(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner: Runner, **_: object) -> None:
            if runner.iter % 4 == 0:
                start.update(copy.deepcopy(runner.model.student.state_dict()))

    runner = Runner.from_cfg(config)
    runner.register_hook(Look())
    preprocess = copy.deepcopy(runner.model.data_preprocessor)
    loader = runner.build_dataloader(config.train_dataloader, seed=0)
    student, teacher = (copy.deepcopy(runner.model.student) for _ in range(2))
    runner.train()

    teacher.load_state_dict(student_weights(load_from_disk(tmp_path / 'snapshot_1.pth')))
    teacher.eval()
    student.load_state_dict(start)
    student.train()
    alpha = config.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD(
        student.parameters(), lr=alpha, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    loader.sampler.set_epoch(1)
    for index, batch in enumerate(loader):
        rate = 0.5 * alpha * (1 + math.cos(math.pi * index / len(loader)))
        optimizer.param_groups[0]['lr'] = rate
        images, labels = preprocess(batch)['inputs'], batch['data_samples']
        logits = student(images)
        with torch.no_grad():
            q = F.softmax(teacher(images) / 2.0, dim=1)
        p = F.log_softmax(logits, dim=1)
        loss = 1.5 * F.cross_entropy(logits, labels) + (q * (q.log() - p)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, tensor in student.state_dict().items():
        # Four steps whose rate and loss are rounded in another order.
        torch.testing.assert_close(
            runner.model.student.state_dict()[name], tensor, atol=1e-4, rtol=1e-3, msg=name
        )


@pytest.mark.parametrize('stop_at', [2, 3])
def test_whole_generations_resume_as_the_same_run(
    stop_at: int, tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    options = ['epochs=1', 'algorithm.generations=3', 'algorithm.fresh_student=True']
    train('sd', tmp_path / 'whole', *options)
    runner = Runner.from_cfg(tiny_config('sd', tmp_path / 'cut', *options))
    runner.register_hook(Stop(stop_at))
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    config = tiny_config('sd', tmp_path / 'cut', *options)
    config.load_from, config.resume = str(tmp_path / f'cut/epoch_{stop_at - 1}.pth'), True
    config.experiment_name += '-resumed'
    Runner.from_cfg(config).train()
    assert_same_training_state(tmp_path / 'whole/epoch_3.pth', tmp_path / 'cut/epoch_3.pth')


def test_teacher_of_another_run(tiny_config: Callable, train: Callable, tmp_path: Path) -> None:
    """It teaches after ``taught_after`` epochs and stays as it is."""
    one = ('algorithm.generations=1',)
    train('bl', tmp_path / 'teacher', *one, 'randomness.seed=5')
    path = tmp_path / 'teacher/snapshot_1.pth'
    options = (*one, f'teacher.checkpoint={path}', 'algorithm.taught_after=1')
    train('sd', tmp_path / 'student', *options)
    train('bl', tmp_path / 'alone', *one)
    weights = student_weights(load_from_disk(path))
    student, alone = (
        [load_from_disk(tmp_path / name / f'epoch_{epoch}.pth') for epoch in (2, 3)]
        for name in ('student', 'alone')
    )
    for checkpoint in student:
        for name, tensor in weights.items():
            assert torch.equal(checkpoint['state_dict'][f'teacher.{name}'], tensor)
    for with_teacher, without in zip(student, alone, strict=True):
        ours, theirs = student_weights(with_teacher), student_weights(without)
        assert not torch.equal(ours['0.weight'], theirs['0.weight'])
    history = read_record(tmp_path / 'student/run.json')['history']
    assert [('difference' in entry['train']) for entry in history] == [False, True, True]
    untaught = read_record(tmp_path / 'alone/run.json')['history']
    assert history[0]['metrics'] == untaught[0]['metrics']


def test_teacher_of_another_architecture_is_refused(
    tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    path = tmp_path / 'snapshot_1.pth'
    checkpoint = load_from_disk(path)
    checkpoint['meta']['identity']['model']['network']['type'] = 'OtherNet'
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r'network.type=OtherNet.*TinyNet.*same network'):
        tiny_config('sd', tmp_path / 'sd', f'teacher.checkpoint={path}')
    with pytest.raises(UserError, match='teacher_weight is 0'):
        checkpoint['meta']['identity']['model']['network']['type'] = 'TinyNet'
        torch.save(checkpoint, path)
        tiny_config('bl', tmp_path / 'bl', f'teacher.checkpoint={path}')


@pytest.mark.parametrize('there', [False, True])
@pytest.mark.parametrize('lacking', [[], [1]])
def test_all_processes_save_a_shared_snapshot_or_none_does(
    there: bool, lacking: list, train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may have begun to write it when another process looks."""
    runner = train('se', tmp_path)
    hook = next(hook for hook in runner.hooks if isinstance(hook, SnapshotHook))
    runner.train_loop._epoch, runner.train_loop._iter = 1, 4
    if not there:
        (tmp_path / 'snapshot_1.pth').unlink()
    saved = []
    monkeypatch.setattr('pretrain.hooks.save', lambda runner, name, done: saved.append(name))
    monkeypatch.setattr('pretrain.hooks.is_main_process', lambda: False)
    monkeypatch.setattr(
        'pretrain.hooks.broadcast_object_list', lambda objects: objects.__setitem__(0, lacking)
    )
    hook.before_train(runner)
    assert saved == [f'snapshot_{end}.pth' for end in lacking]


def test_a_run_that_begins_from_another_snapshot_copies_it(
    train: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even over the copy of an earlier start from elsewhere, which was killed before it saved."""
    runner = train('se', tmp_path / 'run')
    hook = next(hook for hook in runner.hooks if isinstance(hook, SnapshotHook))
    saved = []
    monkeypatch.setattr('pretrain.hooks.save', lambda runner, name, done: saved.append(name))
    for source, iterations, expected in (
        (tmp_path / 'other/snapshot_1.pth', 4, ['snapshot_1.pth']),
        (tmp_path / 'other/snapshot_1.pth', 6, []),  # the run has trained since
        (tmp_path / 'run/epoch_1.pth', 4, []),
        (None, 4, []),
    ):
        runner.train_loop._epoch, runner.train_loop._iter = 1, iterations
        runner.cfg.load_from = source and str(source)
        saved.clear()
        hook.before_train(runner)
        assert saved == expected


def test_a_student_within_an_epoch_does_not_stand_for_a_missing_snapshot(
    train: Callable, tmp_path: Path
) -> None:
    runner = train('se', tmp_path)
    hook = next(hook for hook in runner.hooks if isinstance(hook, SnapshotHook))
    runner.train_loop._epoch, runner.train_loop._iter = 1, 6
    (tmp_path / 'snapshot_1.pth').unlink()
    with pytest.raises(UserError, match=r'snapshot_1\.pth is missing'):
        hook.before_train(runner)
    assert not (tmp_path / 'snapshot_1.pth').exists()


def test_kept_epochs(train: Callable, tmp_path: Path) -> None:
    train('bl', tmp_path, 'keep_epochs=[1, 2]')
    assert [load_from_disk(tmp_path / f'kept_{e}.pth')['meta']['epoch'] for e in (1, 2)] == [1, 2]
    assert not (tmp_path / 'kept_3.pth').exists()
