"""Splits with everything that may be wrong with them and, where it is, the real BCCD."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from downstream import voc as module
from downstream.voc import check_detection, check_segmentation
from pretrain.runs.errors import UserError
from tests.conftest import ROOT

BCCD = ROOT / 'data/bccd-voc'
CLASSES = ('cat', 'dog')


@pytest.fixture
def year(voc: Path, tmp_path: Path) -> Path:
    """A copy of VOC2007: 8 pictures, 64x48 pixels, of a cat or a dog each."""
    return Path(shutil.copytree(voc / 'VOC2007', tmp_path / 'VOC2007'))


@pytest.fixture
def masks(voc: Path, tmp_path: Path) -> Path:
    """A copy of VOC2012: 8 pictures with masks, 64x48 pixels."""
    return Path(shutil.copytree(voc / 'VOC2012', tmp_path / 'VOC2012'))


def detect(year: Path, **options: object) -> int:
    return check_detection(year / 'ImageSets/Main/trainval.txt', year, CLASSES, **options)


def segment(year: Path) -> int:
    split = year / 'ImageSets/Segmentation/val.txt'
    return check_segmentation(split, year / 'JPEGImages', year / 'SegmentationClass', 21)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def set_box(year: Path, name: str, *box: object) -> None:
    keys = ('xmin', 'ymin', 'xmax', 'ymax')
    inner = ''.join(f'<{key}>{value}</{key}>' for key, value in zip(keys, box, strict=True))
    path = year / f'Annotations/{name}.xml'
    text = path.read_text()
    path.write_text(
        text.partition('<bndbox>')[0] + f'<bndbox>{inner}</bndbox></object></annotation>'
    )


def test_sound_splits_are_counted(year: Path, masks: Path, capsys: pytest.CaptureFixture) -> None:
    assert detect(year) == segment(masks) == 8
    assert capsys.readouterr().out == ''


BOXES = {
    (1, 1, 64, 48): '',
    (1, 1, 2, 2): '',
    ('63.9', 47, '64.9', '48.5'): '',  # the fractions are cut off
    (0, 1, 64, 48): 'boxes outside the picture',
    (1, -3, 64, 48): 'boxes outside the picture',
    (1, 1, 65, 48): 'boxes outside the picture',
    (1, 1, 64, 49): 'boxes outside the picture',
    (70, 50, 80, 60): 'boxes outside the picture',
    (20, 5, 10, 30): 'inverted or empty boxes',
    (5, 30, 10, 20): 'inverted or empty boxes',
    (5, 5, 5, 9): 'inverted or empty boxes',
    (5, 9, 9, 9): 'inverted or empty boxes',
    ('5.1', 5, '5.9', 9): 'inverted or empty boxes',
}


@pytest.mark.parametrize(('box', 'kind'), BOXES.items())
def test_boxes(box: tuple, kind: str, year: Path) -> None:
    set_box(year, '000002', *box)
    if not kind:
        assert detect(year) == 8
        return
    numbers = ','.join(str(int(float(number))) for number in box)
    with pytest.raises(UserError, match=rf'1 {kind} \(000002.xml: cat {numbers}.*\)'):
        detect(year)


def _no_xml(year: Path) -> None:
    (year / 'Annotations/000003.xml').unlink()


def _no_picture(year: Path) -> None:
    (year / 'JPEGImages/000003.jpg').unlink()


def _no_folder(year: Path) -> None:
    shutil.rmtree(year / 'Annotations')


def _cut_xml(year: Path) -> None:
    path = year / 'Annotations/000003.xml'
    path.write_bytes(path.read_bytes()[:-9])


def _binary_xml(year: Path) -> None:
    (year / 'Annotations/000003.xml').write_bytes(b'\xff\xfe\x00')


def _no_corner(year: Path) -> None:
    edit(year / 'Annotations/000003.xml', 'xmin', 'left')


def _endless_box(year: Path) -> None:
    set_box(year, '000003', 1, 1, 'inf', 20)


def _endless_number(year: Path) -> None:
    set_box(year, '000003', 1, 'nan', 20, 20)


def _odd_difficult(year: Path) -> None:
    edit(year / 'Annotations/000003.xml', '<difficult>0', '<difficult>Unspecified')


def _no_name(year: Path) -> None:
    edit(year / 'Annotations/000003.xml', '<name>dog</name>', '')


def _unknown_class(year: Path) -> None:
    edit(year / 'Annotations/000003.xml', 'dog', 'Dog')


def _other_size(year: Path) -> None:
    edit(year / 'Annotations/000003.xml', '<width>64', '<width>48')


def _cut_picture(year: Path) -> None:
    path = year / 'JPEGImages/000003.jpg'
    path.write_bytes(path.read_bytes()[:-40])


def _no_picture_at_all(year: Path) -> None:
    (year / 'JPEGImages/000003.jpg').write_text('<html>')


def _lying_picture(year: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = year / 'JPEGImages/000003.jpg'
    with Image.open(path) as image:
        image.save(path, exif=exif)


def _twice(year: Path) -> None:
    for split in ('Main/trainval.txt', 'Segmentation/val.txt'):
        if (path := year / 'ImageSets' / split).exists():
            path.write_text(path.read_text() + '000003\n')


def _unknown_name(year: Path) -> None:
    for split in ('Main/trainval.txt', 'Segmentation/val.txt'):
        if (path := year / 'ImageSets' / split).exists():
            path.write_text(path.read_text() + '000099\n')


def _empty(year: Path) -> None:
    for split in ('Main/trainval.txt', 'Segmentation/val.txt'):
        if (path := year / 'ImageSets' / split).exists():
            path.write_text('')


def _no_split(year: Path) -> None:
    shutil.rmtree(year / 'ImageSets')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (_no_xml, r'names 8 images, but .*Annotations lacks 1 files \(000003.xml\): unpack'),
        (_no_picture, r'names 8 images, but .*JPEGImages lacks 1 files \(000003.jpg\): unpack'),
        (
            _no_folder,
            r'Annotations lacks 8 files \(000000.xml, 000001.xml, 000002.xml, 000003.xml, .*\)',
        ),
        (_cut_xml, r'there are 1 unreadable annotations \(000003.xml: .*line 1'),
        (_binary_xml, r'1 unreadable annotations \(000003.xml: '),
        (_no_corner, r'1 unreadable annotations \(000003.xml: bndbox/xmin is missing\)'),
        (_endless_box, r'1 unreadable annotations \(000003.xml: .*infinity'),
        (_endless_number, r'1 unreadable annotations \(000003.xml: .*NaN'),
        (_odd_difficult, r'1 unreadable annotations \(000003.xml: .*Unspecified'),
        (_no_name, r'1 unreadable annotations \(000003.xml: name is missing\)'),
        (_unknown_class, r'1 objects of an unknown class \(000003.xml: Dog\)'),
        (_other_size, r'1 pictures of another size .* \(000003.jpg: 64x48, not 48x48\)'),
        (_lying_picture, r'1 pictures of another size .* \(000003.jpg: 48x64, not 64x48\)'),
        (_cut_picture, r'1 truncated \(000003.jpg\)'),
        (_no_picture_at_all, r'1 not an image \(000003.jpg\)'),
        (_twice, r'names 9 images, but there are 1 names given twice \(000003\)'),
        (
            _unknown_name,
            r'lacks 1 files \(000099.jpg\); .*Annotations lacks 1 files \(000099.xml\)',
        ),
        (_empty, r'trainval.txt is empty'),
        (_no_split, r'No split file .*trainval.txt: data_root must name'),
    ],
)
def test_bad_detection_data(damage: Callable, message: str, year: Path) -> None:
    damage(year)
    with pytest.raises(UserError, match=message) as error:
        detect(year)
    assert 'drop_invalid_boxes' not in str(error.value)


def save_mask(year: Path, change: Callable[[Image.Image], Image.Image], **options: object) -> None:
    path = year / 'SegmentationClass/000003.png'
    with Image.open(path) as mask:
        change(mask).save(path, **options)


def with_ids(*ids: int) -> Callable[[Image.Image], Image.Image]:
    def change(mask: Image.Image) -> Image.Image:
        pixels = np.array(mask)
        pixels[0, : len(ids)] = ids
        return Image.fromarray(pixels)

    return change


def _palette_mask(year: Path) -> None:
    def change(mask: Image.Image) -> Image.Image:
        mask.putpalette(bytes(range(256)) * 3)
        return mask

    save_mask(year, change)


def _all_ids(year: Path) -> None:
    save_mask(year, with_ids(*range(21), 255))


def _id_21(year: Path) -> None:
    save_mask(year, with_ids(21))


def _ids_200_254(year: Path) -> None:
    save_mask(year, with_ids(200, 254))


def _colours(year: Path) -> None:
    save_mask(year, lambda mask: mask.convert('RGB'))


def _jpeg_mask(year: Path) -> None:
    save_mask(year, lambda mask: mask, format='JPEG')


def _small_mask(year: Path) -> None:
    save_mask(year, lambda mask: mask.resize((32, 48)))


def _broken_mask(year: Path) -> None:
    """Between a whole header and a whole end."""
    path = year / 'SegmentationClass/000003.png'
    data = bytearray(path.read_bytes())
    data[50:60] = bytes(10)
    path.write_bytes(data)


def _cut_mask(year: Path) -> None:
    path = year / 'SegmentationClass/000003.png'
    path.write_bytes(path.read_bytes()[:100])


def _no_mask(year: Path) -> None:
    (year / 'SegmentationClass/000003.png').unlink()


@pytest.mark.parametrize('change', [_palette_mask, _all_ids])
def test_masks_as_vocs_and_sbds(change: Callable, masks: Path) -> None:
    change(masks)
    assert segment(masks) == 8


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (_id_21, r'1 masks with an unknown class id \(000003.png: 21\)'),
        (_ids_200_254, r'1 masks with an unknown class id \(000003.png: 200, 254\)'),
        (_colours, r'1 masks that are no grey or palette PNG \(000003.png: RGB PNG\)'),
        (_jpeg_mask, r'1 masks that are no grey or palette PNG \(000003.png: L JPEG\)'),
        (_small_mask, r'1 masks of another size .* \(000003.png: 32x48, not 64x48\)'),
        (_lying_picture, r'1 masks of another size .* \(000003.png: 64x48, not 48x64\)'),
        (_broken_mask, r'1 truncated \(000003.png\)'),
        (_cut_mask, r'1 truncated \(000003.png\)'),
        (_cut_picture, r'1 truncated \(000003.jpg\)'),
        (_no_mask, r'names 8 images, but .*SegmentationClass lacks 1 files \(000003.png\)'),
        (_no_picture, r'JPEGImages lacks 1 files \(000003.jpg\)'),
        (_twice, r'1 names given twice \(000003\)'),
        (_unknown_name, r'lacks 1 files \(000099.jpg\); .*lacks 1 files \(000099.png\)'),
        (_empty, r'val.txt is empty'),
        (_no_split, r'No split file .*val.txt: data_root must name'),
    ],
)
def test_bad_segmentation_data(damage: Callable, message: str, masks: Path) -> None:
    damage(masks)
    with pytest.raises(UserError, match=message):
        segment(masks)


def test_everything_is_found_at_once(year: Path) -> None:
    for name in ('000000', '000001', '000002', '000004'):
        set_box(year, name, 9, 9, 9, 9)
    _unknown_class(year)
    _unknown_name(year)
    (year / 'JPEGImages/000005.jpg').write_bytes(b'')
    with pytest.raises(UserError) as error:
        detect(year)
    split = year / 'ImageSets/Main/trainval.txt'
    assert str(error.value) == (
        f'{split} names 9 images, but {year}/JPEGImages lacks 1 files (000099.jpg); '
        f'{year}/Annotations lacks 1 files (000099.xml); there are 4 inverted or empty boxes '
        '(000000.xml: cat 9,9,9,9, 000001.xml: dog 9,9,9,9, 000002.xml: cat 9,9,9,9, '
        '000004.xml: cat 9,9,9,9), '
        '1 objects of an unknown class (000003.xml: Dog), 1 empty (000005.jpg): unpack the data '
        'again, correct these files or take them out of the split, or have such boxes ignored by '
        'drop_invalid_boxes=True.'
    )


def test_invalid_boxes_may_be_dropped(year: Path, capsys: pytest.CaptureFixture) -> None:
    set_box(year, '000002', 9, 9, 9, 20)
    assert detect(year, drop_invalid_boxes=True) == 8
    out = capsys.readouterr().out
    assert '1 inverted or empty boxes (000002.xml: cat 9,9,9,20)' in out
    set_box(year, '000001', 0, 9, 9, 20)
    with pytest.raises(UserError, match='1 boxes outside the picture') as error:
        detect(year, drop_invalid_boxes=True)
    assert 'empty' not in str(error.value)


def test_a_second_look_is_none(year: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, look = [], module._look_at_boxes

    def count(year: Path, classes: tuple, name: str) -> list:
        names.append(name)
        return look(year, classes, name)

    monkeypatch.setattr(module, '_look_at_boxes', count)
    set_box(year, '000002', 9, 9, 9, 20)
    for _ in range(2):
        with pytest.raises(UserError, match='1 inverted or empty'):
            detect(year)
        assert len(names) == 8
    set_box(year, '000002', 9, 9, 10, 20)
    assert detect(year) == detect(year) == 8
    assert len(names) == 16
    os.utime(year / 'JPEGImages/000001.jpg', ns=(0, 0))
    assert detect(year) == 8
    assert len(names) == 24
    with pytest.raises(UserError, match=r'4 objects of an unknown class'):
        check_detection(year / 'ImageSets/Main/trainval.txt', year, ('cat',))


def test_processes_find_the_same(year: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f'{index:06}' for index in range(40)]
    for name in names[8:]:
        shutil.copy(year / 'JPEGImages/000003.jpg', year / f'JPEGImages/{name}.jpg')
        shutil.copy(year / 'Annotations/000003.xml', year / f'Annotations/{name}.xml')
    (year / 'ImageSets/Main/trainval.txt').write_text('\n'.join(names))
    set_box(year, '000030', 9, 9, 9, 20)
    set_box(year, '000012', 9, 9, 9, 99)
    messages = []
    for chunk in (32, 1):  # in this process, in several
        monkeypatch.setattr(module, '_CHUNK', chunk)
        monkeypatch.setenv('XDG_CACHE_HOME', str(year / f'cache{chunk}'))
        with pytest.raises(UserError, match='names 40 images') as error:
            detect(year)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.skipif(not BCCD.is_dir(), reason=f'{BCCD} is not there')
def test_bccd_has_two_empty_boxes(capsys: pytest.CaptureFixture) -> None:
    def check(split: str, **options: object) -> int:
        path = BCCD / f'ImageSets/Main/{split}.txt'
        return check_detection(path, BCCD, ('RBC', 'WBC', 'Platelets'), **options)

    with pytest.raises(UserError) as error:
        check('trainval')
    assert (
        'names 292 images, but there are 2 inverted or empty boxes (BloodImage_00338.xml: RBC '
        '504,337,504,337, BloodImage_00343.xml: RBC 181,329,181,329): unpack'
    ) in str(error.value)
    assert capsys.readouterr().out == ''
    assert check('trainval', drop_invalid_boxes=True) == 292
    assert '2 inverted or empty boxes' in capsys.readouterr().out
    assert check('test') == 72
