import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from PIL import Image

from pretrain import build
from pretrain.build import _hooks, _try_images, prepare
from pretrain.datasets.cifar import Cifar100
from pretrain.datasets.image_folder import Checked
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_record
from pretrain.runs.resume import choose_start
from tests.conftest import ROOT


def test_algorithm_reaches_every_part(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config('sd', tmp_path, 'randomness.seed=7')
    assert config.model.loss.temperature == 2.0
    assert config.param_scheduler.periods == [1, 2]
    assert config.train_cfg.max_epochs == 3
    hook = config.default_hooks.snapshot
    assert (hook.generations, hook.taught_after) == ([1, 2], 1)
    assert config.train_dataloader.sampler.seed == config.train_dataloader.dataset.seed == 7
    assert config.identity.algorithm == config.algorithm


def test_each_seed_reaches_what_it_is_the_seed_of(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config('sd', tmp_path, 'randomness.seed=7', 'data_seed=9')
    for loader in (config.train_dataloader, config.val_dataloader):
        assert loader.sampler.seed == loader.dataset.seed == 9
    config.initial.checkpoint = 'small.pth'
    hooks = _hooks(config)
    assert hooks['snapshot']['seed'] == hooks['initial']['seed'] == 7


def test_an_ensemble_sharpens_students_that_no_temperature_softens(
    tiny_config: Callable, tmp_path: Path
) -> None:
    for symmetric, temperature in ((False, 2.0), (True, 1.0)):
        config = tiny_config('sd', tmp_path, f'algorithm.symmetric={symmetric}')
        assert config.default_hooks.ensemble.temperature == temperature


def test_batch_is_global(image_folder: Path) -> None:
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=32']
    config = prepare(load_config(ROOT / 'configs/demo/r18_sd.py', options), world_size=4)
    assert config.train_dataloader.batch_size == 8
    assert config.identity.batch_size == 32


def test_a_gpu_gets_batches_while_it_computes_and_a_fused_optimizer(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy waits for the device unless the batch is pinned and the copy does not block."""
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=8']
    config = load_config(ROOT / 'configs/pretrain/r152_sd.py', options)
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda gpu=gpu: gpu)
        prepared = prepare(config)
        for loader in (prepared.train_dataloader, prepared.val_dataloader):
            assert loader.pin_memory == gpu
        assert prepared.model.data_preprocessor.non_blocking
        assert prepared.optim_wrapper.optimizer.get('fused', False) == gpu
        assert prepare(prepared).identity == prepared.identity  # as from the run's own folder


@pytest.mark.parametrize(
    ('gpu', 'config', 'options', 'processes', 'graph_batch'),
    [
        (True, 'cifar100/resnet20_sd_t3', [], 1, 128),
        (True, 'cifar100/resnet20_sd_t3', ['batch_size=64'], 1, 64),
        (False, 'cifar100/resnet20_sd_t3', [], 1, 0),
        (True, 'cifar100/resnet20_sd_t3', [], 2, 64),
        # Their gradients are summed, and a graph would overwrite the first.
        (True, 'cifar100/resnet20_sd_t3', ['micro_batches=2'], 1, 0),
        (True, 'cifar100/resnet20_sd_t3', ['model.compiled=True'], 1, 0),
        (True, 'cifar100/resnet20_sd_t3', ['cuda_graph=False'], 1, 0),
        (True, 'r152_sd', ['model.network.num_classes=4', 'batch_size=8'], 1, 0),
        (True, 'r152_sd', ['model.network.num_classes=4', 'batch_size=8', 'cuda_graph=True'], 1, 8),
        (True, 'r152_sd', ['model.network.num_classes=4', 'batch_size=8', 'cuda_graph=True'], 2, 4),
    ],
)
def test_on_a_gpu_a_process_uses_a_graph_if_the_config_asks_for_it(
    gpu: bool,
    config: str,
    options: list[str],
    processes: int,
    graph_batch: int,
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(Cifar100, 'check', lambda *_: Checked(100, [], dict))
    options = [f'data_root={image_folder}', *options]
    given = load_config(ROOT / f'configs/pretrain/{config}.py', options)
    # An old torch captures only where no thread of NCCL or of pinned memory uses the GPU.
    monkeypatch.setattr(build, 'THREADS_MAY_RUN', False)
    alone = processes == 1 and config.startswith('cifar100')
    assert prepare(given, processes).model.graph_batch == (graph_batch if alone else 0)
    monkeypatch.setattr(build, 'THREADS_MAY_RUN', True)
    prepared = prepare(given, processes)
    assert prepared.model.graph_batch == graph_batch
    assert 'graph_batch' not in prepared.identity.model  # it changes no result
    assert 'cuda_graph' not in prepared.identity


def test_what_a_gpu_cannot_do_is_found_before_training(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=8']
    config = load_config(ROOT / 'configs/demo/r18_bl.py', options)
    config.optim_wrapper.optimizer = dict(type='RMSprop', lr=0.1)
    assert 'fused' not in prepare(config).optim_wrapper.optimizer
    options = ['train_dataloader.num_workers=1', 'batch_size=4']
    config = load_config(ROOT / 'configs/pretrain/cifar100/resnet20_bl.py', options)
    monkeypatch.setattr(Cifar100, 'check', lambda *_: Checked(100, [], dict))
    with pytest.raises(UserError, match='the images are on the GPU'):
        prepare(config)


def test_number_of_classes_must_agree(image_folder: Path) -> None:
    config = load_config(
        ROOT / 'configs/pretrain/r152_sd.py', [f'data_root={image_folder}', 'batch_size=8']
    )
    with pytest.raises(UserError, match=r'4 classes.*model\.network\.num_classes=4'):
        prepare(config)


def test_a_single_class_is_nothing_to_learn(image_folder: Path, tmp_path: Path) -> None:
    """As when the images of all classes are in one folder."""
    for split in ('train', 'val'):
        shutil.copytree(image_folder / split / 'class0', tmp_path / split / 'images')
    options = [f'data_root={tmp_path}', 'batch_size=8', 'model.network.num_classes=1']
    with pytest.raises(UserError, match='holds a single class, so there is nothing to learn'):
        prepare(load_config(ROOT / 'configs/pretrain/r18_bl.py', options))


def test_other_images_under_the_same_names_are_another_run(
    image_folder: Path, tiny_config: Callable, train: Callable, tmp_path: Path
) -> None:
    """A resume is refused with both values, or the change is accepted and the record tells."""
    root = shutil.copytree(image_folder, tmp_path / 'images')
    options = (f'data_root={root}', 'epochs=2', 'algorithm.generations=1')
    train('bl', tmp_path / 'run', *options)
    for path in root.glob('train/*/*.png'):
        Image.new('RGB', (40, 36)).save(path)
    config = tiny_config('bl', tmp_path / 'run', *options)
    resume = Namespace(resume=True, start_from=None, accept_change=[])
    with pytest.raises(UserError, match=r'data\.train=\w{8}, but this run asks for \w{8} \(other'):
        choose_start(config, resume)
    resume.accept_change = ['data']
    choose_start(config, resume)
    (change,) = config.accepted_changes
    assert (change['key'], change['epoch']) == ('data.train', 2)
    Runner.from_cfg(config).train()
    assert read_record(tmp_path / 'run/run.json')['accepted_changes'] == [change]


class Reads(torch.nn.Module):
    """Computes with a value of its input, which the meta device does not have."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * inputs.mean().item()


class Odd(torch.nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise ValueError('an odd size')


def test_only_what_no_device_can_compute_is_refused() -> None:
    with torch.device('meta'):
        _try_images(Reads(), 2, 32)
        with pytest.raises(UserError, match=r'cannot train on 2 images .* an odd size'):
            _try_images(Odd(), 2, 32)


def test_the_model_computes_in_the_precision_of_the_run(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('pretrain.runs.precision.device_without_bf16', lambda: None)
    config = tiny_config('sd', tmp_path, 'precision=auto')
    assert config.model.precision == config.identity.precision == 'bf16'


def test_micro_batches_reach_the_training_loop(tiny_config: Callable, tmp_path: Path) -> None:
    assert tiny_config('bl', tmp_path, 'micro_batches=2').train_cfg.micro_batches == 2


@pytest.mark.parametrize('name', ['ImageFolder', 'ConcatDataset', 'None'])
def test_a_data_set_that_is_not_for_pretraining_is_named(name: str, image_folder: Path) -> None:
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=8']
    config = load_config(
        ROOT / 'configs/pretrain/r152_sd.py', [*options, f'train_dataloader.dataset.type={name}']
    )
    with pytest.raises(UserError, match=f'dataset.type is {name}, which is no data set for pret'):
        prepare(config)


@pytest.mark.parametrize('part', ['dataset', 'sampler'])
def test_a_part_of_a_loader_that_was_removed_is_named(part: str, image_folder: Path) -> None:
    options = [f'data_root={image_folder}', f'train_dataloader.{part}=None']
    with pytest.raises(UserError, match=f'train_dataloader.{part} is None, but every run needs'):
        prepare(load_config(ROOT / 'configs/pretrain/r152_sd.py', options))
