import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from pretrain.datasets import cifar
from pretrain.datasets.completeness import check_cifar100, check_imagenet, print_counts
from pretrain.runs.errors import UserError


def test_counts_beside_the_papers(capsys: pytest.CaptureFixture) -> None:
    print_counts({'train': 50_000, 'val': 9_999}, {'train': 50_000, 'val': 10_000})
    assert capsys.readouterr().out.splitlines() == [
        'train: 50,000 images, as in the paper',
        "val: 9,999 images, not the paper's data, which has 10,000",
    ]


def test_imagenet(
    image_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder.parent)
    check_imagenet(Path(image_folder.name))
    assert capsys.readouterr().out.splitlines() == [
        "train: 32 images, not the paper's data, which has 1,281,167",
        "val: 12 images, not the paper's data, which has 50,000",
        '4 classes',
    ]


def test_bad_imagenet(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        check_imagenet(tmp_path)
    first, second = str(error.value).splitlines()
    assert f'No {tmp_path}/train: unpack ILSVRC2012_img_train.tar' in first
    assert f'No {tmp_path}/val: unpack ILSVRC2012_img_val.tar' in second
    for split in ('train', 'val'):
        (tmp_path / split / 'n01').mkdir(parents=True)
        (tmp_path / split / 'n01/a.JPEG').write_bytes(b'')
    with pytest.raises(UserError, match=r'2 empty \(train/n01/a.JPEG, val/n01/a.JPEG\)'):
        check_imagenet(tmp_path)


def test_cifar100(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UserError, match=r'cifar-100-python\.tar\.gz') as error:
        check_cifar100(tmp_path)
    assert len(str(error.value).splitlines()) == 3
    contents = {'meta': {'fine_label_names': ['ant', 'bee']}}
    for name, count in {'train': 6, 'test': 4}.items():
        pixels = np.zeros((count, 3072), np.uint8)
        contents[name] = {'data': pixels, 'fine_labels': [0, 1] * (count // 2)}
    for name, content in contents.items():
        data = pickle.dumps(content, protocol=2)
        (tmp_path / name).write_bytes(data)
        monkeypatch.setitem(cifar.MD5, name, hashlib.md5(data).hexdigest())
    check_cifar100(tmp_path)
    out = capsys.readouterr().out
    assert 'train: 6 images' in out
    assert 'val: 4 images' in out
    (tmp_path / 'test').write_bytes(b'damaged')
    with pytest.raises(UserError, match='md5'):
        check_cifar100(tmp_path)
