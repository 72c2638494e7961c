import errno
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image

from pretrain.datasets.decode import EncodedImage, random_box
from pretrain.datasets.image_folder import ClassFolder, list_images
from pretrain.runs.errors import UserError
from pretrain.runs.randomness import EpochSampler, stable_seed, torch_seed

AREA = (0.08, 1.0)


@pytest.fixture
def dataset(image_folder: Path) -> ClassFolder:
    return ClassFolder(str(image_folder), 'train', seed=3, size=32, crop_area=AREA)


def test_sample_depends_on_seed_epoch_and_index_alone(
    dataset: ClassFolder, image_folder: Path
) -> None:
    first = dataset[4, 7]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = dataset[4, 7]
    assert torch.equal(torch.get_rng_state(), state)
    other_seed = ClassFolder(str(image_folder), 'train', seed=4, size=32, crop_area=AREA)
    for key in ('inputs', 'augmentation'):
        assert torch.equal(again[key], first[key])
        assert not torch.equal(dataset[5, 7][key], first[key])
        assert not torch.equal(other_seed[4, 7][key], first[key])


def test_sample_is_rgb_uint8_with_its_label(image_folder: Path) -> None:
    dataset = ClassFolder(str(image_folder), 'val', seed=0, size=32)
    sample = dataset[0, 4]
    assert sample.keys() == {'inputs', 'data_samples'}
    assert sample['inputs'].dtype == torch.uint8
    assert sample['inputs'].shape == (3, 32, 32)
    assert sample['data_samples'] == 1
    assert dataset.file_list()[4] == 'class1/1.png'
    assert dataset.metainfo['classes'] == ('class0', 'class1', 'class2', 'class3')


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_do_not_depend_on_the_workers(
    workers: int, tiny_config: Callable, tmp_path: Path, dataset: ClassFolder
) -> None:
    config = tiny_config('bl', tmp_path, f'train_dataloader.num_workers={workers}')
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    assert isinstance(loader.dataset, ClassFolder)
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        positions = list(loader.sampler)
        batches = list(loader)
        assert {position[0] for position in positions} == {epoch}
        for key in ('inputs', 'augmentation'):
            given = torch.cat([batch[key] for batch in batches])
            expected = torch.stack([loader.dataset[position][key] for position in positions])
            assert torch.equal(given, expected)


def test_sampler_visits_everything_once_in_a_new_order(dataset: ClassFolder) -> None:
    sampler = EpochSampler(dataset, shuffle=True, seed=0)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        order = [index for _, index in sampler]
        assert sorted(order) == list(range(len(dataset)))
        orders.append(tuple(order))
    other_seed = EpochSampler(dataset, shuffle=True, seed=1)
    other_seed.set_epoch(0)
    orders.append(tuple(index for _, index in other_seed))
    assert len(set(orders)) == 4


def test_seeds_do_not_add_up() -> None:
    assert stable_seed(0, 1, 2) == stable_seed(0, 1, 2)
    assert len({stable_seed(a, b) for a in range(20) for b in range(20)}) == 400


def test_folder_is_counted(image_folder: Path) -> None:
    assert ClassFolder.check(image_folder, batch_size=32)[:2] == (4, [])
    with pytest.raises(UserError, match='32 training images, fewer than batch_size=33'):
        ClassFolder.check(image_folder, batch_size=33)
    val = len(list((image_folder / 'val').rglob('*.*')))
    assert ClassFolder.check(image_folder, batch_size=2, processes=val)[:2] == (4, [])
    with pytest.raises(UserError, match=f'has {val} test images for {val + 1} processes'):
        ClassFolder.check(image_folder, batch_size=2, processes=val + 1)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_content_tells_which_split_has_other_images(
    split: str, image_folder: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(image_folder, tmp_path / 'root')
    before = ClassFolder.check(root, batch_size=2).hash_content()
    Image.new('RGB', (40, 36)).save(root / split / 'class0/0.png')
    after = ClassFolder.check(root, batch_size=2).hash_content()
    assert before.keys() == after.keys() == {'train', 'val'}
    assert {name for name in before if before[name] != after[name]} == {split}


def test_no_python_object_for_each_image(dataset: ClassFolder) -> None:
    """Forked workers would copy a million of them; they share arrays."""
    values = list(vars(dataset).values())
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    assert [len(array) for array in arrays] == [len(dataset)] * 2
    assert not any(array.dtype.hasobject for array in arrays)
    found = [value for value in gc.get_referents(*values) if hasattr(value, '__len__')]
    assert max(map(len, found)) < len(dataset)
    assert len(gc.get_referents(*values)) < len(dataset)


def test_images_are_torchvisions_in_its_order(tmp_path: Path) -> None:
    names = ('b/Z.JPEG', 'b/a.jpg', 'b/ä.png', 'b/a/1.PNG', 'b/a b/2.jpg', 'b/x.txt', 'A/狗.webp')
    for split in ('train', 'val'):
        for name in names:
            path = tmp_path / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b'')
    theirs = torchvision.datasets.ImageFolder(str(tmp_path / 'train'))
    ours = ClassFolder(str(tmp_path), 'train', seed=0, size=32)
    assert ours.metainfo['classes'] == tuple(theirs.classes)
    assert ours.labels.tolist() == theirs.targets
    paths = [str(Path(path).relative_to(tmp_path / 'train')) for path, _ in theirs.samples]
    assert ours.file_list() == paths


def _hidden(train: Path) -> None:
    shutil.copytree(train / 'a', train / 'a/.ipynb_checkpoints')


def _hidden_class(train: Path) -> None:
    for split in ('train', 'val'):
        shutil.copytree(train / 'a', train.parent / split / '.ipynb_checkpoints')


def _loop(train: Path) -> None:
    (train / 'a/loop').symlink_to(train)


def _no_utf8(train: Path) -> None:
    shutil.copy(train / 'a/0.png', os.fsencode(train) + b'/a/L\xf6we.png')


def _same_folder(train: Path) -> None:
    shutil.rmtree(train / 'a')
    (train / 'a').symlink_to(train.parent / 'val/a')


def _thumbnails(train: Path) -> None:
    (train / 'a/@eaDir').mkdir()
    shutil.copy(train / 'a/0.png', train / 'a/@eaDir/SYNOPHOTO_THUMB_XL.jpg')


def _hidden_files(train: Path) -> None:
    """A copy of an image, and what macOS keeps beside one."""
    shutil.copy(train / 'a/0.png', train / 'a/.0.png')
    (train / 'a/._0.png').write_bytes(b'\0\5\x16\7')


def _loose(train: Path) -> None:
    shutil.copy(train / 'a/0.png', train.parent / 'val/ILSVRC2012_val_00000001.JPEG')


def _space(train: Path) -> None:
    (train / 'a').rename(train / 'a ')


def _renamed(train: Path) -> None:
    for name in ('1.JFIF', '2.gif', '3', '4.jpg.1', '5.PNG~'):
        shutil.copy(train / 'a/0.png', train / 'a' / name)
    for name in ('notes.txt', 'LICENSE'):
        (train / 'a' / name).write_text('not an image')
    shutil.copy(train / 'a/0.png', train / 'a/0.png.json')  # such names are not looked into
    (train / 'a/gone').symlink_to('nowhere')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (_loose, r'val has 1 image \(ILSVRC2012_val_00000001.JPEG\) outside the class folders'),
        (_space, r"only train has 1 class \('a '\), only val has 1 class \('a'\)"),
        (
            _renamed,
            r'5 without the suffix of a JPEG, .* \(train/a/1.JFIF, train/a/2.gif, train/a/3, '
            r'train/a/4.jpg.1, train/a/5.PNG~\)\. .*skip_unusable',
        ),
        (_hidden, r'a/\.ipynb_checkpoints is hidden, .* would be trained on: move it elsewhere or'),
        (_hidden_class, r'train/\.ipynb_checkpoints is hidden'),
        (_thumbnails, r'train/a/@eaDir is hidden, or a folder in which devices .* keep copies'),
        (
            _hidden_files,
            r'run cannot use: 2 hidden .train/a/[.]0.png, train/a/[.]_0.png.[.] .*skip_un',
        ),
        (_loop, r'a/loop is a link to a folder above it: delete it'),
        (_no_utf8, r'train has a name that is not UTF-8 .*: rename it'),
        (_same_folder, r'train/a and val/a of .* are the same folder'),
    ],
)
def test_what_would_change_the_experiment_is_refused(
    damage: Callable, message: str, tmp_path: Path
) -> None:
    for grey, path in enumerate(('train/a', 'train/b', 'val/a', 'val/b')):
        (tmp_path / path).mkdir(parents=True)
        Image.new('RGB', (4, 4), (grey,) * 3).save(tmp_path / path / '0.png')
    assert ClassFolder.check(tmp_path, 2)[:2] == (2, [])
    damage(tmp_path / 'train')
    with pytest.raises(UserError, match=message):
        ClassFolder.check(tmp_path, 2)


def test_a_folder_that_cannot_be_read_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to read it, or when the file system fails."""
    for path in ('train/a/b', 'train/a'):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(tmp_path / path / '0.png')
    (tmp_path / 'train/._a.jpg').touch()  # macOS's, beside the classes
    assert len(list_images(tmp_path, 'train').paths) == 2
    scandir = os.scandir

    def fails(path: str | bytes) -> Iterator[os.DirEntry]:
        if os.fsencode(path).endswith(b'/b'):
            raise PermissionError(errno.EACCES, 'Permission denied', path)
        return scandir(path)

    with monkeypatch.context() as patched:
        patched.setattr('os.scandir', fails)
        with pytest.raises(
            UserError, match=r'train/a/b cannot be read \(Permission denied\): make'
        ):
            list_images(tmp_path, 'train')


def test_images_that_are_in_both_splits_are_told(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ClassFolder.check(image_folder, 2)  # the same names, other images
    assert capsys.readouterr().err == ''
    root = shutil.copytree(image_folder, tmp_path / 'root')
    for name in ('class1/0.png', 'class3/2.png'):
        shutil.copyfile(root / 'train' / name, root / 'val' / name)
    ClassFolder.check(root, 2)
    said = 'share 2 images (class1/0.png, class3/2.png): a run is tested on images that it was'
    assert capsys.readouterr().err.count(said) == 1
    ClassFolder.check(root, 2)
    assert capsys.readouterr().err == ''


def test_images_of_other_formats_are_left_out_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for grey, path in enumerate(('train/a', 'val/a')):
        (tmp_path / path).mkdir(parents=True)
        Image.new('RGB', (4, 4), (grey,) * 3).save(tmp_path / path / '0.png')
    Image.new('RGB', (4, 4)).save(tmp_path / 'val/a/1.gif')
    ClassFolder.check(tmp_path, 1, skip_unusable=True)
    assert 'val/a/1.gif' in capsys.readouterr().out
    assert len(list_images(tmp_path, 'val').paths) == 1


def test_no_class_is_lost_with_its_unusable_images(tmp_path: Path) -> None:
    for grey, path in enumerate(('train/a', 'train/b', 'val/a', 'val/b')):
        (tmp_path / path).mkdir(parents=True)
        Image.new('RGB', (4, 4), (grey,) * 3).save(tmp_path / path / '0.png')
    (tmp_path / 'val/b/1.png').write_bytes(b'')
    assert ClassFolder.check(tmp_path, 2, skip_unusable=True)[:2] == (2, ['val/b/1.png'])
    (tmp_path / 'val/b/0.png').write_bytes(b'')
    with pytest.raises(UserError, match=r'val/b has no usable image'):
        ClassFolder.check(tmp_path, 2, skip_unusable=True)


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='data_root'):
        ClassFolder.check(tmp_path, 2)
    for split in ('train', 'val'):
        (tmp_path / split).mkdir()
    with pytest.raises(UserError, match='no class folder'):
        ClassFolder.check(tmp_path, 2)
    for split, name in (('train', 'a'), ('train', 'b'), ('val', 'a')):
        (tmp_path / split / name).mkdir()
        Image.new('RGB', (4, 4)).save(tmp_path / split / name / '0.png')
    with pytest.raises(UserError, match=r"different classes: only train has 1 class \('b'\)\."):
        ClassFolder.check(tmp_path, 2)
    (tmp_path / 'val/b').mkdir()
    with pytest.raises(UserError, match=r'val/b has no image'):
        ClassFolder.check(tmp_path, 2)


def test_classes_whose_names_look_alike_are_told_apart(tmp_path: Path) -> None:
    for split, name in (('train', 'caf\xe9'), ('val', 'cafe\u0301'), ('train', 'x'), ('val', 'x')):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new('RGB', (4, 4)).save(tmp_path / split / name / '0.png')
    with pytest.raises(UserError) as error:
        ClassFolder.check(tmp_path, 2)
    assert r"only train has 1 class ('caf\xe9'), only val has 1 class ('cafe\u0301')" in str(
        error.value
    )


def test_unusable_images_stop_a_run_or_are_left_out(
    image_folder: Path, tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / 'images'
    shutil.copytree(image_folder, root)
    for path, size in (('train/class1/3.png', 40), ('val/class0/1.png', 0)):
        (root / path).write_bytes((root / path).read_bytes()[:size])
    make = partial(tiny_config, 'bl', tmp_path, f'data_root={root}')
    named = r'1 empty \(val/class0/1.png\), 1 truncated \(train/class1/3.png\).*skip_unusable=True'
    with pytest.raises(UserError, match=named):
        make()
    config = make('skip_unusable=True')
    assert 'Left out' in capsys.readouterr().out
    lists = []
    for loader, count in ((config.train_dataloader, 31), (config.val_dataloader, 11)):
        dataset = DATASETS.build(loader.dataset)
        assert len(dataset) == len(dataset.file_list()) == count
        lists += dataset.file_list()
    assert 'class1/3.png' not in lists[:31]
    assert 'class0/1.png' not in lists[31:]


def test_a_training_crop_is_the_box_that_was_drawn(image_folder: Path) -> None:
    dataset = ClassFolder(str(image_folder), 'train', seed=3, size=32, crop_area=(0.3, 0.5))
    for index in range(8):
        with torch_seed(stable_seed(3, 4, index)):
            box = random_box(36, 40, (0.3, 0.5))  # height before width
        image = EncodedImage(image_folder / f'train/class0/{index}.png')
        assert torch.equal(dataset[4, index]['inputs'], image.crop(box, 32))
