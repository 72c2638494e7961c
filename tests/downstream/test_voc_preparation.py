"""VOC and SBD on drawn scenes; the masks of the drawn aug split, as .mat files, are SBD's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from downstream.builtin import write_vocdevkit
from downstream.voc_preparation import check_voc07, check_voc12aug
from pretrain.runs.errors import UserError


@pytest.fixture(scope='module')
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOC2007 with 8 trainval and 3 test images; VOC2012 with 2 train, 6 aug and 3 val images."""
    root = tmp_path_factory.mktemp('drawn') / 'VOCdevkit'
    write_vocdevkit(root, trainval=8, test=3, size=64)
    return root


@pytest.fixture
def devkit(drawn: Path, tmp_path: Path) -> Path:
    """A copy of ``drawn`` without SBD's masks and list."""
    root = Path(shutil.copytree(drawn, tmp_path / 'VOCdevkit'))
    shutil.rmtree(root / 'VOC2012/SegmentationClassAug')
    (root / 'VOC2012/ImageSets/Segmentation/aug.txt').unlink()
    return root


def names(root: Path, split: str) -> list[str]:
    return (root / f'VOC2012/ImageSets/Segmentation/{split}.txt').read_text().split()


@pytest.fixture
def sbd(drawn: Path, tmp_path: Path) -> Path:
    """SBD, whose lists mix images of VOC2012's train and val with others."""
    root = tmp_path / 'benchmark_RELEASE'
    (root / 'dataset/cls').mkdir(parents=True)
    aug = names(drawn, 'aug')
    theirs = {
        'train': [*aug[4:], *names(drawn, 'val')],
        'val': [*aug[:4], names(drawn, 'train')[0]],
    }
    for split, members in theirs.items():
        (root / f'dataset/{split}.txt').write_text('\n'.join(members) + '\n')
    for name in aug:
        ids = np.array(Image.open(drawn / f'VOC2012/SegmentationClassAug/{name}.png'))
        content = {'GTcls': {'Boundaries': 0, 'Segmentation': ids, 'CategoriesPresent': [1]}}
        savemat(root / f'dataset/cls/{name}.mat', content, do_compression=True)
    return root


def test_counts_of_voc07(drawn: Path, capsys: pytest.CaptureFixture) -> None:
    check_voc07(drawn)
    assert capsys.readouterr().out.splitlines() == [
        "trainval: 8 images, not the paper's data, which has 5,011",
        "test: 3 images, not the paper's data, which has 4,952",
    ]


def test_bad_files_of_voc07_are_all_named(drawn: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(drawn, tmp_path / 'VOCdevkit'))
    for name in ('000002', '000009'):  # in trainval and in test
        (root / f'VOC2007/Annotations/{name}.xml').write_text('')
    with pytest.raises(UserError) as error:
        check_voc07(root)
    first, second = str(error.value).splitlines()
    assert 'trainval.txt names 8 images, but there is 1 unreadable annotation (000002' in first
    assert 'test.txt names 3 images, but there is 1 unreadable annotation (000009' in second


def test_a_missing_piece_is_one_sentence(devkit: Path, sbd: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        check_voc07(tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert lines[3] == (
        f'No {tmp_path}/VOC2007/ImageSets/Main/test.txt: unpack VOCtest_06-Nov-2007.tar of PASCAL '
        'VOC 2007.'
    )
    with pytest.raises(UserError, match='and add --sbd DIR') as error:
        check_voc12aug(devkit)
    lines = str(error.value).splitlines()
    assert [line.split(':')[0].split('/')[-1] for line in lines] == [
        'SegmentationClassAug',
        'aug.txt',
    ]
    (sbd / 'dataset/val.txt').unlink()
    (devkit / 'VOC2012/ImageSets/Segmentation/train.txt').unlink()
    with pytest.raises(UserError) as error:
        check_voc12aug(devkit, sbd)
    first, second = str(error.value).splitlines()
    assert 'train.txt: unpack VOCtrainval_11-May-2012.tar' in first
    assert 'dataset/val.txt: unpack benchmark.tgz' in second
    assert not (devkit / 'VOC2012/SegmentationClassAug').exists()


def test_sbd_becomes_aug(
    drawn: Path, devkit: Path, sbd: Path, capsys: pytest.CaptureFixture
) -> None:
    check_voc12aug(devkit, sbd)
    out = capsys.readouterr().out
    assert '6 written' in out
    assert "aug: 6 images, not the paper's data, which has 9,118" in out
    assert "train and aug: 8 images, not the paper's data, which has 10,582" in out
    assert names(devkit, 'aug') == names(drawn, 'aug')
    palette = Image.open(next((drawn / 'VOC2012/SegmentationClass').iterdir())).getpalette()
    for name in names(drawn, 'aug'):
        mask = Image.open(devkit / f'VOC2012/SegmentationClassAug/{name}.png')
        expected = np.array(Image.open(drawn / f'VOC2012/SegmentationClassAug/{name}.png'))
        assert (np.array(mask) == expected).all()
        assert mask.mode == 'P'
        for i in (*range(21), 255):
            assert mask.getpalette()[3 * i : 3 * i + 3] == palette[3 * i : 3 * i + 3]
    check_voc12aug(devkit)  # now without SBD


def test_nothing_is_overwritten(devkit: Path, sbd: Path, capsys: pytest.CaptureFixture) -> None:
    check_voc12aug(devkit, sbd)
    first, second, *_ = sorted((devkit / 'VOC2012/SegmentationClassAug').iterdir())
    Image.fromarray(np.full_like(Image.open(first), 7)).save(first)
    second.unlink()
    aug = devkit / 'VOC2012/ImageSets/Segmentation/aug.txt'
    reordered = '\n'.join(reversed(names(devkit, 'aug')))
    aug.write_text(reordered)
    capsys.readouterr()
    check_voc12aug(devkit, sbd)
    assert '5 already there, 1 written' in capsys.readouterr().out
    assert np.unique(Image.open(first)).tolist() == [7]
    assert second.exists()
    assert aug.read_text() == reordered
    aug.write_text('2007_000001\n')
    with pytest.raises(UserError, match=r'aug.txt exists with other names: delete it'):
        check_voc12aug(devkit, sbd)
    assert aug.read_text() == '2007_000001\n'


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _empty(path: Path) -> None:
    path.write_bytes(b'')


def _text(path: Path) -> None:
    path.write_text('404 Not Found\n' * 20)


def _other_content(path: Path) -> None:
    savemat(path, {'GTinst': {'Segmentation': 1}})


def _other_field(path: Path) -> None:
    savemat(path, {'GTcls': {'Boundaries': 1}})


def _version_7_3(path: Path) -> None:
    path.write_bytes(b'MATLAB 7.3 MAT-file'.ljust(124) + b'\x00\x02IM')


def _floats(path: Path) -> None:
    savemat(path, {'GTcls': {'Segmentation': np.full((4, 4), 0.5)}})


@pytest.mark.parametrize(
    'damage', [_truncated, _empty, _text, _other_content, _other_field, _floats, _version_7_3]
)
def test_a_damaged_mat_is_named(damage: object, devkit: Path, sbd: Path) -> None:
    path = sorted((sbd / 'dataset/cls').iterdir())[3]
    damage(path)
    with pytest.raises(UserError, match=rf'{path.name} is damaged'):
        check_voc12aug(devkit, sbd)
    assert not (devkit / 'VOC2012/ImageSets/Segmentation/aug.txt').exists()


def test_a_missing_mat_is_named(devkit: Path, sbd: Path) -> None:
    path = sorted((sbd / 'dataset/cls').iterdir())[3]
    path.unlink()
    with pytest.raises(UserError, match=rf'dataset/cls lacks 1 file \({path.name}\)'):
        check_voc12aug(devkit, sbd)
    assert not (devkit / 'VOC2012/SegmentationClassAug').exists()


def test_training_on_test_images_is_refused(drawn: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(drawn, tmp_path / 'VOCdevkit'))
    leaked = names(root, 'val')[1]
    shutil.copy(
        root / f'VOC2012/SegmentationClass/{leaked}.png',
        root / f'VOC2012/SegmentationClassAug/{leaked}.png',
    )
    with (root / 'VOC2012/ImageSets/Segmentation/aug.txt').open('a') as file:
        file.write(f'{leaked}\n')
    shared = rf'aug.txt and .*/val.txt share 1 image \({leaked}\), which would be trained on and'
    with pytest.raises(UserError, match=shared):
        check_voc12aug(root)
