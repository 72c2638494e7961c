"""A tiny ImageNet-style folder and runs on it that take seconds."""

import os

# Before the imports, some of which ask CUDA for its GPUs: it reads this variable only once. Runs
# are compared bit for bit on the CPU. To test the mmcv operators on a GPU, make it visible:
# CUDA_VISIBLE_DEVICES=0 bash tools/test.sh tests/downstream/test_mmcv_ops_parity.py
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import mmengine.config.utils
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from pretrain.build import prepare
from pretrain.runs import saving
from pretrain.runs.checkpoint import install
from pretrain.runs.config import load_config
from pretrain.runs.launch import Launcher, Run
from pretrain.runs.resume import choose_start

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    'precision=float32',  # runs are compared bit for bit, and with plain torch
    'image_size=32',
    'batch_size=8',
    'epochs=3',
    'algorithm.generations=[1, 2]',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
)


@MODELS.register_module()
class TinyNet(nn.Sequential):
    """Two convolutions with batch norm: a student that trains in a moment."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, num_classes),
        )


@pytest.fixture(scope='session', autouse=True)
def deterministic() -> None:
    torch.use_deterministic_algorithms(not torch.cuda.is_available())


@pytest.fixture(scope='session', autouse=True)
def installed() -> None:
    """Call ``install``, as ``pretrain.runs.start`` does for a command's run."""
    install()


@pytest.fixture(scope='session', autouse=True)
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the results of file checks out of the user's cache, also in child processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        yield


@pytest.fixture(scope='session', autouse=True)
def metafiles() -> Iterator[None]:
    """Cache metafiles: mmengine reads all of mmdet's or mmseg's for each config that inherits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.utils, 'load', cache(mmengine.config.utils.load))
        yield


@pytest.fixture(scope='session', autouse=True)
def names_of_runs() -> Iterator[None]:
    """Number the Runners: two of one name in the same second would share a logger and a folder."""
    set_up, number = Runner.setup_env, itertools.count()

    def numbered(runner: Runner, settings: dict) -> None:
        set_up(runner, settings)
        runner._timestamp += f'_{next(number)}'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, 'setup_env', numbered)
        yield


@pytest.fixture(autouse=True)
def every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save every epoch, however long this machine takes to write a file."""
    monkeypatch.setattr(saving, 'SHARE', 1e9)


@pytest.fixture(autouse=True)
def default_scope() -> Iterator[None]:
    """Restore the default scope, which a Runner of mmdet or mmseg leaves set for later tests."""
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture
def tf32() -> Iterator[None]:
    """Let a GPU of this process compute float32 as TF32."""
    backends = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 classes of 8 + 3 coloured noise images of 40 x 36 pixels."""
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for split, count in (('train', 8), ('val', 3)):
        for label in range(4):
            folder = root / split / f'class{label}'
            folder.mkdir(parents=True)
            for index in range(count):
                noise = rng.integers(0, 60, (36, 40, 3)) + 50 * label
                Image.fromarray(noise.astype(np.uint8)).save(folder / f'{index}.png')
    return root


@pytest.fixture
def tiny_config(image_folder: Path) -> Callable[..., Config]:
    """``tiny_config('sd', work_dir, 'key=value', ...)``: a prepared demo config of test size with
    TinyNet."""

    def make(method: str, work_dir: Path, *options: str) -> Config:
        path = ROOT / f'configs/demo/r18_{method}.py'
        config = load_config(path, [f'data_root={image_folder}', *TINY, *options])
        config.model.network = dict(type='TinyNet', num_classes=4)
        config.work_dir = str(work_dir)
        # mmengine tells runs of a process apart by their names, by default the time in seconds.
        config.experiment_name = f'{method}-{work_dir}'
        return prepare(config)

    return make


@pytest.fixture
def train(tiny_config: Callable[..., Config]) -> Callable[..., Runner]:
    """``train('sd', work_dir, 'key=value', ...)``: a whole tiny run."""

    def run(method: str, work_dir: Path, *options: str) -> Runner:
        runner = Runner.from_cfg(tiny_config(method, work_dir, *options))
        runner.train()
        return runner

    return run


TINY_CONFIG = """
_base_ = ['{root}/configs/_base_/runtime.py', '{root}/configs/_base_/pretrain/demo.py']
data_root = '{data}'
precision = 'float32'
image_size = 32
batch_size = 8
epochs = 4
algorithm = {algorithm}
model = dict(network=dict(_delete_=True, type='TinyNet', num_classes=4))
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
paper = dict(metric='top1_error')
"""


@pytest.fixture
def tiny_file(image_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """``tiny_file('sd', generations=2, ...)``: a config file for four epochs of TinyNet."""

    def write(stem: str, **algorithm: object) -> Path:
        path = tmp_path / f'{stem}.py'
        algorithm = {'name': stem.upper()} | algorithm
        path.write_text(TINY_CONFIG.format(root=ROOT, data=image_folder, algorithm=algorithm))
        return path

    return write


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Run a Launcher's runs in this process, where TinyNet is registered; the list of them."""
    runs = []

    def launch(self: Launcher, run: Run) -> None:
        runs.append(run)
        config = load_config(run.config, run.options)
        config.work_dir = str(run.work_dir)
        config.experiment_name = f'{run.title}-{run.work_dir}-{len(runs)}'
        config = prepare(config)
        choose_start(
            config,
            Namespace(
                resume=True,
                start_from=run.start_from and str(run.start_from),
                accept_change=[],
            ),
        )
        Runner.from_cfg(config).train()

    monkeypatch.setattr(Launcher, '_launch', launch)
    return runs
