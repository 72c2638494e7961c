import sys
from pathlib import Path

from PIL import Image

from tests.tools.test_train import assert_one_sentence, call


def test_a_smaller_copy_of_imagenet(image_folder: Path, tmp_path: Path) -> None:
    command = ['tools/prepare_data.py', 'imagenet', '--max-side', '20', '--root']
    done = call(sys.executable, *command, str(image_folder), '--out', str(tmp_path / 'small'))
    assert done.returncode == 0, done.stderr
    assert '44 written anew' in done.stdout
    assert Image.open(tmp_path / 'small/val/class2/1.png').size == (22, 20)
    wrong = call(sys.executable, *command, '/nowhere', '--out', str(tmp_path / 'other'))
    assert_one_sentence(wrong, 'No folder /nowhere/train')
    assert not (tmp_path / 'other').exists()
