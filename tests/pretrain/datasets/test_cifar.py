"""CIFAR-100, on a tiny fake of the official files and, where they are, on themselves."""

import hashlib
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from torch import Tensor

from pretrain.datasets import cifar
from pretrain.datasets.cifar import Cifar100
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.randomness import EpochSampler

CLASSES = ('ant', 'bee', 'cat', 'dog', 'elk')
COUNTS = {'train': 60, 'test': 20}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict]:
    """Noise images of 5 classes in the official format; what was written."""
    rng = np.random.default_rng(0)
    contents = {'meta': {'fine_label_names': list(CLASSES)}}
    for name, count in COUNTS.items():
        contents[name] = {
            'data': rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            'fine_labels': rng.permutation(np.arange(count) % len(CLASSES)).tolist(),
        }
    for name, content in contents.items():
        data = pickle.dumps(content, protocol=2)
        (tmp_path / name).write_bytes(data)
        monkeypatch.setitem(cifar.MD5, name, hashlib.md5(data).hexdigest())
    return contents


@pytest.fixture
def train(files: dict, tmp_path: Path) -> Cifar100:
    return Cifar100(str(tmp_path), 'train', seed=3)


def images(content: dict) -> np.ndarray:
    return content['data'].reshape(-1, 3, 32, 32)


def inputs(dataset: Cifar100, epoch: int, indices: object) -> Tensor:
    return dataset.__getitems__([(epoch, int(index)) for index in indices])['inputs'].cpu()


def crops(image: np.ndarray) -> dict[bytes, tuple[int, int, bool]]:
    """(y, x, mirrored) of everything that a (3, 32, 32) training image may become."""
    grey = np.array([129, 124, 112], np.uint8)[:, None, None]
    padded = np.broadcast_to(grey, (3, 40, 40)).copy()
    padded[:, 4:36, 4:36] = image
    found = {}
    for y in range(9):
        for x in range(9):
            crop = padded[:, y : y + 32, x : x + 32]
            found[crop.tobytes()] = (y, x, False)
            found[crop[:, :, ::-1].tobytes()] = (y, x, True)
    assert len(found) == 162
    return found


def test_train_gives_crops_and_mirror_images_all_equally_often(train: Cifar100, files: dict):
    possible = [crops(image) for image in images(files['train'])]
    epochs = 300
    seen = Counter(
        possible[index][image.tobytes()]
        for epoch in range(epochs)
        for index, image in enumerate(inputs(train, epoch, range(60)).numpy())
    )
    expected = epochs * 60 / 162
    chi_square = sum((seen[draw] - expected) ** 2 / expected for draw in possible[0].values())
    # 161 degrees of freedom: 161 on average, 18 the standard deviation.
    assert 161 - 4 * 18 < chi_square < 161 + 4 * 18


def test_images_of_an_epoch_are_drawn_one_by_one(train: Cifar100, files: dict):
    draws = [
        crops(original)[image.tobytes()]
        for original, image in zip(
            images(files['train']), inputs(train, 0, range(60)).numpy(), strict=True
        )
    ]
    assert len(set(draws)) > 40


def test_val_is_left_alone(files: dict, tmp_path: Path):
    dataset = Cifar100(str(tmp_path), 'val', seed=3, images=7)
    batch = dataset.__getitems__([(2, index) for index in range(20)])
    np.testing.assert_array_equal(batch['inputs'].cpu(), images(files['test']))
    assert batch['data_samples'].tolist() == files['test']['fine_labels']
    assert len(dataset) == 20
    assert dataset.metainfo == {'classes': CLASSES}


def test_a_batch_is_channels_last_bytes_with_labels(train: Cifar100, files: dict):
    batch = train.__getitems__([(0, 7), (0, 2), (0, 59)])
    assert batch['inputs'].dtype == torch.uint8
    assert batch['inputs'].shape == (3, 3, 32, 32)
    assert batch['inputs'].is_contiguous(memory_format=torch.channels_last)
    assert batch['data_samples'].dtype == torch.int64
    labels = files['train']['fine_labels']
    assert batch['data_samples'].tolist() == [labels[7], labels[2], labels[59]]


def test_samples_depend_on_seed_epoch_and_index_alone(train: Cifar100, tmp_path: Path):
    state = torch.get_rng_state()
    whole = inputs(train, 4, range(60))
    assert torch.equal(torch.get_rng_state(), state)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    resumed = Cifar100(str(tmp_path), 'train', seed=3)
    inputs(resumed, 5, [1])
    for size in (1, 7, 60):
        split = torch.cat([inputs(resumed, 4, part) for part in order.split(size)])
        assert torch.equal(split, whole[order])
    other_seed = Cifar100(str(tmp_path), 'train', seed=4)
    for other in inputs(train, 5, range(60)), inputs(other_seed, 4, range(60)):
        assert (other == whole).flatten(1).all(dim=1).sum() < 5  # 1 in 162 by chance


def test_a_batch_of_two_epochs_is_an_error(train: Cifar100):
    with pytest.raises(ValueError, match='too many values'):
        train.__getitems__([(0, 1), (1, 1)])


def test_loader_gives_whole_batches(files: dict, tmp_path: Path):
    config = dict(
        dataset=dict(type='Cifar100', root=str(tmp_path), split='train', seed=3),
        sampler=dict(type='EpochSampler', shuffle=True, seed=3),
        collate_fn=dict(type='whole_batch'),
        batch_size=16,
        num_workers=0,
        drop_last=True,
    )
    loader = Runner.build_dataloader(config, seed=0)
    assert isinstance(loader.dataset, DATASETS.get('Cifar100'))
    assert isinstance(loader.sampler, EpochSampler)
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        positions = list(loader.sampler)
        batches = list(loader)
        assert [len(batch['data_samples']) for batch in batches] == [16, 16, 16]
        expected = loader.dataset.__getitems__(positions[:48])
        for key in ('inputs', 'data_samples'):
            assert torch.equal(torch.cat([batch[key] for batch in batches]), expected[key])


def test_fewer_images_are_the_first_of_each_class(files: dict, tmp_path: Path):
    dataset = Cifar100(str(tmp_path), 'train', seed=3, images=15)
    taken: Counter = Counter()
    first = []
    for index, label in enumerate(files['train']['fine_labels']):
        taken[label] += 1
        if taken[label] <= 3:
            first.append(index)
    md5 = cifar.MD5['train']
    assert dataset.file_list() == [f'train-{md5}/{index}' for index in first]
    batch = dataset.__getitems__([(0, index) for index in range(15)])
    assert sorted(batch['data_samples'].tolist()) == sorted([*range(5)] * 3)
    for original, label, image in zip(
        first, batch['data_samples'].tolist(), batch['inputs'].cpu().numpy(), strict=True
    ):
        assert label == files['train']['fine_labels'][original]
        assert image.tobytes() in crops(images(files['train'])[original])


def test_all_images_are_the_default(train: Cifar100, tmp_path: Path):
    every = Cifar100(str(tmp_path), 'train', seed=3, images=60)
    assert len(train) == 60
    assert every.file_list() == train.file_list()
    assert torch.equal(inputs(every, 1, range(60)), inputs(train, 1, range(60)))


@pytest.mark.parametrize('images', [0, -5, 7, 65, 10.0, '10'])
def test_an_impossible_number_of_images(images, files: dict, tmp_path: Path):
    with pytest.raises(UserError, match=rf'images is {images}: .* multiple of 5, .* up to 60\.$'):
        Cifar100(str(tmp_path), 'train', seed=3, images=images)


def test_folder_is_checked(files: dict, tmp_path: Path):
    assert Cifar100.check(tmp_path, batch_size=60)[:2] == (5, [])
    with pytest.raises(UserError, match='60 training images, fewer than batch_size=61'):
        Cifar100.check(tmp_path, batch_size=61)


@pytest.mark.parametrize('name', ['train', 'test', 'meta'])
def test_a_missing_file(name, files: dict, tmp_path: Path):
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf'^No file .*/{name}: unpack .* data_root=DIR'):
        Cifar100.check(tmp_path, batch_size=1)


class Trap:
    """Unpickles to a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize('name', ['train', 'test', 'meta'])
def test_a_foreign_file_is_not_unpickled(name, files: dict, tmp_path: Path):
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / 'sprung')))
    with pytest.raises(UserError, match=rf'/{name} is damaged or not the official file'):
        Cifar100.check(tmp_path, batch_size=1)
    with pytest.raises(UserError, match=rf'/{name} is damaged or not the official file'):
        Cifar100(str(tmp_path), 'val' if name == 'test' else 'train', seed=0)
    assert not (tmp_path / 'sprung').exists()


@pytest.mark.skipif(
    'CIFAR100_ROOT' not in os.environ, reason='set CIFAR100_ROOT to a cifar-100-python folder'
)
def test_official_files():
    root = Path(os.environ['CIFAR100_ROOT'])
    assert Cifar100.check(root, batch_size=128)[:2] == (100, [])
    content = pickle.loads((root / 'train').read_bytes(), encoding='latin1')
    channels = content['data'].reshape(-1, 3, 1024)
    preprocessor = load_config('configs/pretrain/cifar100/resnet20_bl.py').model.data_preprocessor
    assert channels.mean(axis=(0, 2)).round(1).tolist() == preprocessor.mean
    assert channels.std(axis=(0, 2)).round(1).tolist() == preprocessor.std
    assert tuple(channels.mean(axis=(0, 2)).round()) == cifar.FILL
    train = Cifar100(str(root), 'train', seed=0)
    assert (len(train), len(set(train.file_list()))) == (50000, 50000)
    assert train.metainfo['classes'][content['fine_labels'][0]] == 'cattle'  # bos_taurus
    for index, image in zip((0, 49999), inputs(train, 0, (0, 49999)).numpy(), strict=True):
        assert image.tobytes() in crops(images(content)[index])
    val = Cifar100(str(root), 'val', seed=0)
    labels = val.__getitems__([(0, index) for index in range(10000)])['data_samples']
    assert labels.bincount().tolist() == [100] * 100
    few = Cifar100(str(root), 'train', seed=0, images=2000)
    labels = few.__getitems__([(0, index) for index in range(2000)])['data_samples']
    assert labels.bincount().tolist() == [20] * 100
