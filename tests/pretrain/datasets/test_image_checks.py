import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pretrain.datasets import image_checks as module
from pretrain.datasets.decode import Box, EncodedImage
from pretrain.datasets.image_checks import UNUSABLE, check_images
from pretrain.datasets.image_folder import list_images
from pretrain.runs.file_checks import fingerprint, paths_within


def image(mode: str = 'RGB', side: int = 64) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3))
    return Image.fromarray(noise.astype(np.uint8)).convert(mode)


def encode(image: Image.Image, format: str = 'JPEG', **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


JPEG = encode(image())
PNG = encode(image(), 'PNG')
WEBP = encode(image(), 'WEBP')
PROGRESSIVE = encode(image(), progressive=True)
THUMBNAIL = encode(image(side=16))
WITH_THUMBNAIL = encode(image(), exif=b'Exif\0\0' + THUMBNAIL)
# The beginning of the header's last part: what is in front of it is a header cut between parts.
CUT_HEADER = WITH_THUMBNAIL[: WITH_THUMBNAIL.index(b'\xff\xda', 100 + len(THUMBNAIL))]
TWO = {'save_all': True, 'append_images': [image().rotate(90)]}
DEEP = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ImageNet-style root with one ordinary image in either split."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    root = tmp_path / 'root'
    for split in ('train', 'val'):
        (root / split / 'n01').mkdir(parents=True)
        (root / split / 'n01/ordinary.JPEG').write_bytes(JPEG)
    return root


def scan(root: Path, processes: int | None = None) -> dict[str, list[str]]:
    lists = [list_images(root, split).paths.tolist() for split in ('train', 'val')]
    names = [*lists[0], *lists[1]]
    return check_images(root, names, fingerprint(paths_within(root, names)), processes)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are looked at, in this process."""
    paths, look = [], module.check_image
    monkeypatch.setattr(module, 'check_image', lambda path: paths.append(path) or look(path))
    return paths


@pytest.mark.parametrize(
    'data',
    [
        PROGRESSIVE,
        PNG,
        WEBP,
        WITH_THUMBNAIL,
        JPEG + b'garbage' * 100,
        JPEG + b'\xff\xda' + b'a film of the phone' * 1000,
        JPEG + bytes(10_000),
        PNG + bytes(10_000),
        encode(image(), 'BMP'),
        encode(image(), 'MPO', **TWO),
        encode(image('P'), 'PNG'),
        encode(image('RGBA'), 'PNG'),
        encode(image(), 'GIF'),
        encode(image(), 'AVIF'),
        encode(image('CMYK')),
        encode(image('L')),
        encode(image('1'), 'PNG'),
        encode(image('LA'), 'PNG'),
        encode(image(), 'TIFF', compression='tiff_lzw'),
        encode(image(), keep_rgb=True),
        encode(image(), subsampling=2)[:-2] + b'\0\0\x17\xff\xd9',
        encode(image(side=1)),
        encode(image().resize((3000, 1))),
        JPEG[:2] + b'\xff\xe1\0\x10Exif\0\0\x1c\xff\x13\x37abcd' + JPEG[2:],
        JPEG[:2] + b'\xff\xe1\0\x12Exif\0\0MM\0*\0\0\0\x08\0\x05' + JPEG[2:],
        JPEG[:2] + b'\xff\xe2\0\x10MPF\0II*\0\x08\0\0\0\0\0' + JPEG[2:],
    ],
)
def test_usable_whatever_its_name(data: bytes, root: Path) -> None:
    path = root / 'train/n01/a.JPEG'
    path.write_bytes(data)
    assert scan(root) == {}
    shown = EncodedImage(path)
    assert shown.crop(Box(0, 0, shown.height, shown.width), 8).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ('data', 'kind'),
    [
        (b'', 'empty'),
        (b'<html>404 Not Found</html>', 'not an image'),
        (JPEG[: len(JPEG) // 2], 'truncated'),
        (JPEG[:-2], 'truncated'),
        (JPEG[:3], 'truncated'),
        (JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2), 'truncated'),
        (PROGRESSIVE[: len(PROGRESSIVE) // 2], 'truncated'),
        (CUT_HEADER, 'truncated'),
        (CUT_HEADER + b'\xff\xda', 'truncated'),
        (PNG[: len(PNG) // 2], 'truncated'),
        (PNG[: len(PNG) // 2] + bytes(len(PNG) // 2), 'truncated'),
        (WEBP[: len(WEBP) // 2], 'truncated'),
        (encode(image(), 'GIF')[:-500], 'truncated'),
        (encode(image(), 'BMP')[:-1], 'truncated'),
        (encode(DEEP, 'PNG'), '16-bit'),
        (encode(DEEP, 'TIFF'), '16-bit'),
        (encode(image(), 'GIF', **TWO), 'animated'),
        (encode(image(), 'PNG', **TWO), 'animated'),
        (encode(image(), 'WEBP', **TWO), 'animated'),
    ],
)
def test_kinds(data: bytes, kind: str, root: Path) -> None:
    (root / 'val/n01/a.png').write_bytes(data)
    assert scan(root) == {kind: ['val/n01/a.png']}
    assert kind in UNUSABLE


def test_too_large(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 64 * 64 // 2 - 1)
    assert scan(root) == {'too large': ['train/n01/ordinary.JPEG', 'val/n01/ordinary.JPEG']}


def test_files_are_those_of_torchvision(root: Path, tmp_path: Path) -> None:
    """Below classes, in any depth, through links and of its suffixes; a link may lead nowhere."""
    elsewhere = tmp_path / 'elsewhere'
    (elsewhere / 'deep').mkdir(parents=True)
    (root / 'train/n02').symlink_to(elsewhere)
    for path in ('deep/b.Png', 'a.jpeg', '._a.jpg', 'notes.txt'):
        (elsewhere / path).write_bytes(b'')
    (root / 'train/outside.txt').write_bytes(b'')
    (root / 'val/n01/gone.jpg').symlink_to(tmp_path / 'nowhere')
    names = ['train/n02/._a.jpg', 'train/n02/a.jpeg', 'train/n02/deep/b.Png']
    assert scan(root) == {'empty': names, 'unreadable': ['val/n01/gone.jpg']}


def test_root_may_be_relative(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / 'val/n01/a.jpg').write_bytes(b'')
    monkeypatch.chdir(root)
    assert scan(Path()) == {'empty': ['val/n01/a.jpg']}


def test_result_is_kept_until_a_file_changes(root: Path, tmp_path: Path, looks: list[str]) -> None:
    path = root / 'train/n01/a.jpg'
    path.write_bytes(JPEG[:-2])
    found = {'truncated': ['train/n01/a.jpg']}
    assert scan(root) == found
    assert len(looks) == 3
    assert scan(root) == found
    assert len(looks) == 3
    modified = path.stat().st_mtime_ns
    path.write_bytes(JPEG[:-2])
    os.utime(path, ns=(modified, modified + 1))
    assert scan(root) == found
    assert len(looks) == 6
    path.write_bytes(JPEG)
    os.utime(path, ns=(modified, modified + 1))  # of another size only
    assert scan(root) == {}
    path.unlink()
    assert scan(root) == {}
    assert len(looks) == 6 + 3 + 2
    other = root.rename(tmp_path / 'other')
    assert scan(other) == {}
    assert len(looks) == 11 + 2


@pytest.mark.parametrize('content', ['{"a', '[]', '{}', '\udcff'])
def test_damaged_result_is_replaced(content: str, root: Path, tmp_path: Path) -> None:
    scan(root)
    (cache,) = (tmp_path / 'cache/snapshot-distillation').iterdir()
    intact = cache.read_bytes()
    cache.write_bytes(content.encode(errors='surrogateescape'))
    assert scan(root) == {}
    assert cache.read_bytes() == intact
    assert list(json.loads(intact).values()) == [{}]


def test_unwritable_cache_is_no_obstacle(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / 'cache').write_text('a file in the place of the folder')
    assert scan(root) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('warning: ')


def test_processes_find_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(40):
        data = (b'', JPEG, PNG[:-100])[index % 3]
        (root / f'train/n01/{index}.jpg').write_bytes(data)
    monkeypatch.setattr(module, '_CHUNK', 1)
    found = scan(root, processes=2)
    monkeypatch.setenv('XDG_CACHE_HOME', str(root))
    assert scan(root, processes=1) == found
    assert {kind: len(names) for kind, names in found.items()} == {'empty': 14, 'truncated': 13}
