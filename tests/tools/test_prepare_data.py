import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from downstream.builtin import write_vocdevkit
from pretrain.runs.errors import UserError
from tests.tools.commands import assert_one_sentence, start
from tools.prepare_data import main

COMMAND = 'tools/prepare_data.py'


@pytest.fixture
def prepare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The tool, in this process."""

    def run(*args: object) -> None:
        monkeypatch.setattr(sys, 'argv', [COMMAND, *map(str, args)])
        main()

    return run


def test_a_smaller_copy_of_imagenet(image_folder: Path, tmp_path: Path) -> None:
    command = [COMMAND, 'imagenet', '--shorter-side', '20', '--root']
    done = start(*command, str(image_folder), '--out', str(tmp_path / 'small'))()
    assert done.returncode == 0, done.stderr
    assert '44 re-encoded' in done.stdout
    assert Image.open(tmp_path / 'small/val/class2/1.png').size == (22, 20)
    wrong = start(*command, '/nowhere', '--out', str(tmp_path / 'other'))()
    assert_one_sentence(wrong, 'No /nowhere/train: unpack ILSVRC2012_img_train.tar')
    assert not (tmp_path / 'other').exists()


def test_imagenet_alone(
    image_folder: Path, prepare: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prepare('imagenet', '--root', image_folder)
    assert 'train: 32 images' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prepare('imagenet', '--root', image_folder, '--shorter-side', 20)
    assert '--out and --shorter-side go together' in capsys.readouterr().err
    for numbers in (('--shorter-side', 0), ('--shorter-side', 20, '--processes', 0)):
        with pytest.raises(SystemExit):
            prepare('imagenet', '--root', image_folder, '--out', tmp_path / 'out', *numbers)
        assert '0: give a whole number above 0' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_voc(prepare: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / 'VOCdevkit'
    write_vocdevkit(root, trainval=4, test=2, size=64)
    prepare('voc07', '--root', root)
    prepare('voc12aug', '--root', root)
    out = capsys.readouterr().out
    assert 'trainval: 4 images' in out
    assert 'train and aug: 4 images' in out
    with pytest.raises(UserError, match='nowhere/dataset/cls'):
        prepare('voc12aug', '--root', root, '--sbd', tmp_path / 'nowhere')


def test_cifar100(prepare: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'cifar-100-python\.tar\.gz'):
        prepare('cifar100', '--root', tmp_path)
