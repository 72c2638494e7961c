"""Checks of splits with every kind of fault, and of the real BCCD where it is available."""

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from downstream import builtin
from downstream import voc_checks as module
from downstream.voc_checks import (
    Split,
    check_detection,
    check_segmentation,
    count_images,
    metainfo,
)
from pretrain.runs.errors import UserError
from tests.conftest import ROOT

BCCD = ROOT / 'data/bccd-voc'
CLASSES = ('cat', 'dog')


@pytest.fixture
def year(voc: Path, tmp_path: Path) -> Path:
    """A copy of VOC2007: 8 images, 64x48 pixels, of a cat or a dog each."""
    return Path(shutil.copytree(voc / 'VOC2007', tmp_path / 'VOC2007'))


@pytest.fixture
def masks(voc: Path, tmp_path: Path) -> Path:
    """A copy of VOC2012: 8 images with masks, 64x48 pixels."""
    year = Path(shutil.copytree(voc / 'VOC2012', tmp_path / 'VOC2012'))
    lists = year / 'ImageSets/Segmentation'
    (lists / 'all.txt').write_text(
        (lists / 'train.txt').read_text() + (lists / 'aug.txt').read_text()
    )
    return year


def boxes(year: Path, split: str = 'trainval') -> Split:
    return Split(year / f'ImageSets/Main/{split}.txt', year / 'JPEGImages', year / 'Annotations')


def detect(year: Path, **options: object) -> int:
    (count,) = check_detection([boxes(year)], [], CLASSES, **options)
    return count


def segment(year: Path) -> int:
    split = Split(
        year / 'ImageSets/Segmentation/all.txt', year / 'JPEGImages', year / 'SegmentationClass'
    )
    (count,) = check_segmentation([split], [], [str(i) for i in range(21)])
    return count


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
    ('63.9', 47, '64.9', '48.5'): '',  # fractions are cut off
    (0, 1, 64, 48): 'box outside the image, whose first pixel is 1,1',
    (1, -3, 64, 48): 'box outside the image, whose first pixel is 1,1',
    (1, 1, 65, 48): 'box outside the image, whose first pixel is 1,1',
    (1, 1, 64, 49): 'box outside the image, whose first pixel is 1,1',
    (70, 50, 80, 60): 'box outside the image, whose first pixel is 1,1',
    (20, 5, 10, 30): 'inverted or empty box',
    (5, 30, 10, 20): 'inverted or empty box',
    (5, 5, 5, 9): 'inverted or empty box',
    (5, 9, 9, 9): 'inverted or empty box',
    ('5.1', 5, '5.9', 9): 'inverted or empty box',
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


def _no_image(year: Path) -> None:
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


def _cut_image(year: Path) -> None:
    path = year / 'JPEGImages/000003.jpg'
    path.write_bytes(path.read_bytes()[:-40])


def _no_image_at_all(year: Path) -> None:
    (year / 'JPEGImages/000003.jpg').write_text('<html>')


def _lying_image(year: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = year / 'JPEGImages/000003.jpg'
    with Image.open(path) as image:
        image.save(path, exif=exif)


def _twice(year: Path) -> None:
    for split in ('Main/trainval.txt', 'Segmentation/all.txt'):
        if (path := year / 'ImageSets' / split).exists():
            path.write_text(path.read_text() + '000003\n')


def _unknown_name(year: Path) -> None:
    for split in ('Main/trainval.txt', 'Segmentation/all.txt'):
        if (path := year / 'ImageSets' / split).exists():
            path.write_text(path.read_text() + '000099\n')


def _empty(year: Path) -> None:
    for split in ('Main/trainval.txt', 'Segmentation/all.txt'):
        if (path := year / 'ImageSets' / split).exists():
            path.write_text('')


def _no_split(year: Path) -> None:
    shutil.rmtree(year / 'ImageSets')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (_no_xml, r'names 8 images, but .*Annotations lacks 1 file \(000003.xml\): unpack'),
        (_no_image, r'names 8 images, but .*JPEGImages lacks 1 file \(000003.jpg\): unpack'),
        (
            _no_folder,
            r'Annotations lacks 8 files \(000000.xml, 000001.xml, 000002.xml, 000003.xml, .*\)',
        ),
        (_cut_xml, r'there is 1 unreadable annotation \(000003.xml: .*line 1'),
        (_binary_xml, r'1 unreadable annotation \(000003.xml: '),
        (_no_corner, r'1 unreadable annotation \(000003.xml: bndbox/xmin is missing\)'),
        (_endless_box, r'1 unreadable annotation \(000003.xml: .*infinity'),
        (_endless_number, r'1 unreadable annotation \(000003.xml: .*NaN'),
        (_odd_difficult, r'1 unreadable annotation \(000003.xml: .*Unspecified'),
        (_no_name, r'1 unreadable annotation \(000003.xml: object/name is missing\)'),
        (_unknown_class, r"1 unknown class: 'Dog' \(1, first in 000003.xml\)\. Correct"),
        (
            _other_size,
            r'1 image whose size differs from the annotation \(000003.jpg: 64x48, not 48x48\)',
        ),
        (
            _lying_image,
            r'1 image whose size differs from the annotation \(000003.jpg: 48x64, not 64x48\)',
        ),
        (_cut_image, r'1 truncated \(000003.jpg\)'),
        (_no_image_at_all, r'1 not an image \(000003.jpg\)'),
        (_twice, r'names 9 images, but there is 1 name given twice \(000003\)'),
        (
            _unknown_name,
            r'lacks 1 file \(000099.jpg\); .*Annotations lacks 1 file \(000099.xml\)',
        ),
        (_empty, r'trainval.txt is empty'),
        (_no_split, r'No split file .*trainval.txt: set data_root to a VOCdevkit'),
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
    """Damage the data between an intact header and an intact end."""
    path = year / 'SegmentationClass/000003.png'
    data = bytearray(path.read_bytes())
    data[50:60] = bytes(10)
    path.write_bytes(data)


def _cut_mask(year: Path) -> None:
    path = year / 'SegmentationClass/000003.png'
    path.write_bytes(path.read_bytes()[:100])


def _no_mask(year: Path) -> None:
    (year / 'SegmentationClass/000003.png').unlink()


def _few_bits(year: Path) -> None:
    """PIL reads the value 1 of a 2-bit greyscale PNG as 85."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, 'big')
        return len(data).to_bytes(4, 'big') + kind + data + crc

    header = struct.pack('>IIBBBBB', 64, 48, 2, 0, 0, 0, 0)
    rows = zlib.compress((b'\0' + b'\x55' * 16) * 48)
    chunks = chunk(b'IHDR', header) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    (year / 'SegmentationClass/000003.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)


def _other_palettes(year: Path) -> None:
    """Two masks whose ids a tool assigned by the colours in each."""
    for name, colour in (('000002', 'red'), ('000003', 'blue')):
        mask = Image.new('RGB', (64, 48), 'white')
        mask.paste(colour, (9, 9, 30, 30))
        mask.quantize(4).save(year / f'SegmentationClass/{name}.png')


@pytest.mark.parametrize('change', [_palette_mask, _all_ids])
def test_masks_as_vocs_and_sbds(change: Callable, masks: Path) -> None:
    change(masks)
    assert segment(masks) == 8


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (_id_21, r'1 unknown class id: 21 \(1, first in 000003.png\)\. Correct'),
        (
            _ids_200_254,
            r'2 unknown class ids: 200 \(1, first in 000003.png\), 254 \(1, first in .*\)\. '
            r'.* "classes=\[...\]" with the names of the ids 0 to 254, in this order\.',
        ),
        (_colours, r'1 mask not in 8-bit grey or palette PNG format \(000003.png: RGB PNG\)'),
        (_few_bits, r'1 mask not in 8-bit grey or palette PNG format \(000003.png: L PNG\)'),
        (
            _other_palettes,
            r'mask whose palette gives a class id a different colour \(000003.png: \d is',
        ),
        (_jpeg_mask, r'1 mask not in 8-bit grey or palette PNG format \(000003.png: L JPEG\)'),
        (_small_mask, r'1 mask whose size differs from the image \(000003.png: 32x48, not 64x48\)'),
        (
            _lying_image,
            r'1 mask whose size differs from the image \(000003.png: 64x48, not 48x64\)',
        ),
        (_broken_mask, r'1 truncated \(000003.png\)'),
        (_cut_mask, r'1 truncated \(000003.png\)'),
        (_cut_image, r'1 truncated \(000003.jpg\)'),
        (_no_mask, r'names 8 images, but .*SegmentationClass lacks 1 file \(000003.png\)'),
        (_no_image, r'JPEGImages lacks 1 file \(000003.jpg\)'),
        (_twice, r'1 name given twice \(000003\)'),
        (_unknown_name, r'lacks 1 file \(000099.jpg\); .*lacks 1 file \(000099.png\)'),
        (_empty, r'all.txt is empty'),
        (_no_split, r'No split file .*all.txt: set data_root to a VOCdevkit'),
    ],
)
def test_bad_segmentation_data(damage: Callable, message: str, masks: Path) -> None:
    damage(masks)
    with pytest.raises(UserError, match=message):
        segment(masks)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('000000\r\n000001\r\n', ''),
        ('000000\r000001\r', ''),
        ('000000\n000001', ''),
        ('000000\n000001  \n', r'Line 2 of .*trainval.txt has spaces around its name'),
        (' 000000\n000001\n', r'Line 1 of .*trainval.txt has spaces around its name'),
        ('000000\n000001\n\n', r'Line 3 of .*trainval.txt has no name: it is blank'),
        ('\n\n', r'trainval.txt is empty'),
        ('000000\n./000001\n', r"Line 2 of .*trainval.txt has './000001', which is not the short"),
        (
            '000000\n../JPEGImages/000001\n',
            r"Line 2 .* has '../JPEGImages/000001', which is not the",
        ),
        ('000000\na/../000001\n', r"Line 2 .* has 'a/../000001', which is not the shortest name"),
        ('000000\na//b\n', r"Line 2 .* has 'a//b', .* relative to the folder of the images"),
        ('/voc/JPEGImages/000000\n', r"Line 1 .* has '/voc/JPEGImages/000000', which is not"),
        (
            '000000 ' * 10_000 + '7\n',
            r'Line 1 .* a name that is too long, .{0,80}\. Write one name',
        ),
        ('ä' * 130 + '\n', r"Line 1 .* a name that is too long, which begins with 'ää"),
        ('000000  1\n000001 -1\n', r'trainval.txt names 2 .*lacks 2 files \(000000  1.jpg, 000001'),
        ('000000.jpg\n', r'trainval.txt names 1 .*lacks 1 file \(000000.jpg.jpg\)'),
        ('JPEGImages/000000\n', r'lacks 1 file \(JPEGImages/000000.jpg\)'),
        ('\ufeff000000\n', r'trainval.txt must be UTF-8 without a byte order mark'),
        ('狗\n'.encode('gbk'), r'trainval.txt must be UTF-8 without'),
        ('000000\n'.encode('utf-16'), r'trainval.txt must be UTF-8 without'),
        ('000000\n'.encode('utf-16-le'), r'trainval.txt must be UTF-8 without'),
    ],
)
def test_lists(content: str | bytes, message: str, year: Path) -> None:
    """Lists as other tools write them; mmdet uses every line unchanged."""
    path = year / 'ImageSets/Main/trainval.txt'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if message:
        with pytest.raises(UserError, match=message):
            detect(year)
    else:
        assert detect(year) == 2


def test_names_may_have_spaces_and_any_letters(year: Path) -> None:
    for folder, suffix in (('JPEGImages', 'jpg'), ('Annotations', 'xml')):
        path = year / folder / f'000003.{suffix}'
        path.rename(path.with_stem('mein Löwe 狗'))
    edit(year / 'ImageSets/Main/trainval.txt', '000003', 'mein Löwe 狗')
    assert detect(year) == 8


BOX = '<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>'
OBJECT = f'<object><name>dog</name>{BOX}</object>'
PART = f'<part><name>head</name>{BOX}</part>'


@pytest.mark.parametrize(
    'text',
    [
        f'<annotation>{OBJECT}</annotation>',
        '<annotation></annotation>',
        f'<annotation><object><name>dog</name>{PART}{BOX}{PART}</object></annotation>',
        f'<!DOCTYPE a [<!ENTITY x "dog">]><annotation>{OBJECT.replace("dog", "&x;")}</annotation>',
        f'<annotation>{OBJECT.replace(">2<", "> 2.7 <")}</annotation>',
        f'\ufeff<annotation>{OBJECT}</annotation>',
        f'<?xml version="1.0" encoding="utf-16"?><annotation>{OBJECT}</annotation>'.encode(
            'utf-16'
        ),
        f'<?xml version="1.0" encoding="latin-1"?><annotation><a>ö</a>{OBJECT}</annotation>'.encode(
            'latin-1'
        ),
    ],
)
def test_annotations_that_mmdet_reads_whole(text: str | bytes, year: Path) -> None:
    path = year / 'Annotations/000003.xml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert detect(year) == 8


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'no element found'),
        ('0 0.5 0.5 0.2 0.2', 'syntax error'),
        ('{"shapes": []}', 'not well-formed'),
        ('<html><body></body></html>', 'its root is <html>, not <annotation>'),
        (
            f'<annotations><annotation>{OBJECT}</annotation></annotations>',
            'its root is <annotations>',
        ),
        (
            f'<annotation xmlns="http://a.b">{OBJECT}</annotation>',
            'its root is <{http://a.b}annotation>',
        ),
        (f'<annotation><objects>{OBJECT}</objects></annotation>', 'an object is not an <object>'),
        (f'<annotation>{OBJECT.replace("object", "Object")}</annotation>', 'an object is not an'),
        (
            f'<annotation><object><name>dog</name>{BOX}{BOX}</object></annotation>',
            '<object> holds 2',
        ),
        (
            f'<annotation><object><name>dog</name><name>cat</name>{BOX}</object></annotation>',
            'holds 2',
        ),
        (f'<annotation>{OBJECT.replace("<ymin>", "<xmin>1</xmin><ymin>")}</annotation>', 'holds 2'),
        ('<annotation><object><name>dog</name><polygon/></object></annotation>', 'has no bndbox'),
        (
            f'<annotation>{OBJECT.replace("dog", "")}</annotation>',
            'is missing',
        ),
        (
            f'<annotation>{OBJECT.replace("<b", "<difficult/><b", 1)}</annotation>',
            'invalid literal',
        ),
        (f'<annotation>{OBJECT.replace(">2<", ">2,5<")}</annotation>', 'could not convert'),
        (f'<annotation><size><width>1.5</width></size>{OBJECT}</annotation>', 'invalid literal'),
        (f'<?xml version="1.0" encoding="unicode"?><annotation>{OBJECT}</annotation>', 'encoding'),
        (f'<?xml version="1.0" encoding="gbk"?><annotation>{OBJECT}</annotation>', 'encoding'),
        (f'<annotation><a>ö</a>{OBJECT}</annotation>'.encode('latin-1'), 'not well-formed'),
    ],
)
def test_annotations_of_which_something_would_be_lost(
    text: str | bytes, message: str, year: Path
) -> None:
    path = year / 'Annotations/000003.xml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf'1 unreadable annotation \(000003.xml: .*{message}'):
        detect(year)


def test_unknown_classes_are_named_once_over_all_splits(year: Path) -> None:
    edit(year / 'Annotations/000003.xml', 'dog', ' dog ')
    for name in ('100002', '100004'):
        edit(year / f'Annotations/{name}.xml', 'cat', 'lynx')
    with pytest.raises(UserError) as error:
        check_detection([boxes(year)], [boxes(year, 'test')], CLASSES)
    assert str(error.value) == (
        "The objects have 2 unknown classes: ' dog ' (1, first in 000003.xml), 'lynx' (2, first in "
        '100002.xml). Correct these names or, if all classes are your own, add the option '
        "\"classes=[' dog ', 'cat', 'dog', 'lynx']\"."
    )


def test_splits_share_no_image(year: Path) -> None:
    lists = year / 'ImageSets/Main'
    (lists / 'more.txt').write_text('000002\n')
    (lists / 'test.txt').write_text('000004\n100001\n')
    train = [boxes(year), boxes(year, 'more')]
    with pytest.raises(UserError) as error:
        check_detection(train, [boxes(year, 'test')], CLASSES)
    assert str(error.value).splitlines() == [
        f'{lists}/trainval.txt and {lists}/more.txt share 1 image (000002), which would count '
        'twice: keep each in only one list.',
        f'{lists}/trainval.txt and {lists}/test.txt share 1 image (000004), which would be '
        'trained on and tested on: keep each in only one list.',
    ]
    elsewhere = Split(
        lists / 'more.txt',
        Path(shutil.copytree(year, year.with_name('VOC2008'))) / 'JPEGImages',
        year / 'Annotations',
    )
    assert check_detection(train[:1], [elsewhere], CLASSES) == [8, 1]


def test_a_class_without_object_is_told(year: Path, capsys: pytest.CaptureFixture) -> None:
    (year / 'ImageSets/Main/test.txt').write_text('100000\n100002\n')
    check_detection([boxes(year)], [boxes(year, 'test')], ('cat', 'dog', 'cow'))
    first, second = capsys.readouterr().err.splitlines()
    what = 'no object of these classes (difficult ones do not count), so they'
    assert first == f'warning: {boxes(year).list_file}: {what} are not learned: cow.'
    assert second.endswith(f'test.txt: {what} are left out of the mean: dog, cow.')
    check_detection([boxes(year)], [boxes(year, 'test')], ('cat', 'dog', 'cow'))
    assert not capsys.readouterr().err  # warns once, not for every run


def test_a_class_without_pixel_is_told(masks: Path, capsys: pytest.CaptureFixture) -> None:
    """Where it is predicted, its IoU is 0 and counts in mmseg's mean."""
    from mmseg.evaluation import IoUMetric

    lists, folders = masks / 'ImageSets/Segmentation', (masks / 'JPEGImages',)
    splits = [
        Split(lists / f'{name}.txt', *folders, masks / 'SegmentationClass')
        for name in ('all', 'val')
    ]
    classes = [str(i) for i in range(14)]
    check_segmentation(splits[:1], splits[1:], classes)
    absent = ', '.join(i for i in classes if i not in ('0', '8', '12'))
    what = 'no pixel of these classes, so they'
    first, second = capsys.readouterr().err.splitlines()
    assert first == f'warning: {lists}/all.txt: {what} are not learned: {absent}.'
    untested = 'count as 0 in the mean where they are predicted'
    assert second == f'warning: {lists}/val.txt: {what} {untested}: {absent}.'
    metric = IoUMetric()
    metric.dataset_meta = {'classes': classes}
    truth, predicted = torch.tensor([[8, 8, 12, 12]]), torch.tensor([[8, 8, 12, 13]])
    sample = {'pred_sem_seg': {'data': predicted}, 'gt_sem_seg': {'data': truth}}
    metric.process({}, [sample])
    assert metric.evaluate(1)['mIoU'] == 50.0  # of 100, 50 and 0


def ignore(year: Path, names: list[str], change: Callable[[str], str]) -> None:
    for name in names:
        path = year / f'Annotations/{name}.xml'
        path.write_text(change(path.read_text()))


def make_difficult(text: str) -> str:
    return text.replace('<difficult>0', '<difficult>1')


def remove_objects(text: str) -> str:
    return text.partition('<object>')[0] + '</annotation>'


@pytest.mark.parametrize('change', [make_difficult, remove_objects])
@pytest.mark.parametrize('split', ['trainval', 'test'])
def test_a_split_without_an_object_that_counts_is_refused(
    change: Callable, split: str, year: Path
) -> None:
    """Training would learn nothing, and the mean over no class would be 0."""
    ignore(year, boxes(year, split).list_file.read_text().split(), change)
    with pytest.raises(UserError, match=rf'^\S*{split}.txt names no image with an object that'):
        check_detection([boxes(year)], [boxes(year, 'test')], CLASSES)


def test_only_objects_that_count_make_a_class_present(
    year: Path, capsys: pytest.CaptureFixture
) -> None:
    """mmdet neither trains nor tests on difficult objects and dropped boxes."""
    dogs = [f'00000{i}' for i in (1, 3, 5, 7)]
    ignore(year, dogs[1:], make_difficult)
    set_box(year, dogs[0], 9, 9, 9, 20)
    assert detect(year, drop_invalid_boxes=True) == 8
    assert 'so they are not learned: dog.' in capsys.readouterr().err
    assert count_images([boxes(year)], CLASSES, 'detection') == [3, 0]  # 000000 is difficult
    other = shutil.copytree(year, year.parent / 'other')  # the same names, but other images
    assert count_images([boxes(year), boxes(other)], CLASSES, 'detection') == [6, 0]
    with pytest.raises(UserError, match=r"1 unknown class: 'dog' \(4, first in 000001.xml\)"):
        check_detection([boxes(year)], [], ('cat',), drop_invalid_boxes=True)


@pytest.mark.parametrize('suffix', ['.JPG', '.png'])
def test_another_suffix_is_told(suffix: str, year: Path, masks: Path) -> None:
    """OpenCV reads a file by its content; mmdet and mmseg find it by its suffix."""
    for root, check in ((year, detect), (masks, segment)):
        for path in (root / 'JPEGImages').iterdir():
            path.rename(path.with_suffix(suffix))
        instead = rf'\) and has 000000{suffix} instead \(rename it, whatever its format\): unpack'
        with pytest.raises(UserError, match=instead):
            check(root)
        for path in (root / 'JPEGImages').iterdir():
            with Image.open(path) as image:
                image.save(path.with_suffix('.jpg'), 'PNG')
        assert check(root) == 8
    path = year / 'Annotations/000003.xml'
    path.rename(path.with_suffix('.json'))
    with pytest.raises(
        UserError, match=r'lacks 1 file \(000003.xml\) and has 000003.json instead:'
    ):
        detect(year)


def test_an_image_that_opencv_cannot_read_is_told(year: Path) -> None:
    """PIL reads it, but mmdet and mmseg would not."""
    for name, format in (('000001', 'TGA'), ('000003', 'PCX')):
        path = year / f'JPEGImages/{name}.jpg'
        Image.open(path).convert('RGB').save(path, format)
    said = r'2 images that OpenCV cannot read \(000001.jpg, 000003.jpg\)'
    with pytest.raises(UserError, match=said):
        detect(year)


def test_names_may_have_folders(year: Path, masks: Path) -> None:
    """CVAT and ImageNet's detection challenge have such names."""
    for root, labels in ((year, 'Annotations'), (masks, 'SegmentationClass')):
        for folder in (root / 'JPEGImages', root / labels):
            (folder / 'camera 1').mkdir()
            for path in folder.glob('00000[13].*'):
                path.rename(folder / 'camera 1' / path.name)
        for path in root.glob('ImageSets/*/*.txt'):
            text = path.read_text().replace('000001', 'camera 1/000001')
            path.write_text(text.replace('000003', 'camera 1/000003'))
    assert detect(year) == segment(masks) == 8
    (year / 'Annotations/camera 1/000003.xml').unlink()
    with pytest.raises(UserError, match=r'Annotations lacks 1 file \(camera 1/000003.xml\)'):
        detect(year)


@pytest.mark.parametrize('size', [(1, 1), (1, 60), (60, 1), (2, 201), (2, 200), (2, 2)])
def test_images_too_thin_to_be_resized(size: tuple, year: Path, masks: Path) -> None:
    """mmseg drops a dimension of one pixel, and resizing rounds a thin side to 0."""
    for root in (year, masks):
        Image.new('RGB', size).save(root / 'JPEGImages/000003.jpg')
    (year / 'Annotations/000003.xml').write_text('<annotation></annotation>')
    Image.new('L', size).save(masks / 'SegmentationClass/000003.png')
    if size in ((2, 200), (2, 2)):
        assert detect(year) == segment(masks) == 8
        return
    for check, root in ((detect, year), (segment, masks)):
        with pytest.raises(UserError, match=rf'1 too thin \(000003.jpg: {size[0]}x{size[1]}\)'):
            check(root)


def _exif(image: Path, format: str = 'JPEG') -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(image).copy().save(image, format, exif=exif)


def _xmp(image: Path) -> None:
    """An XMP orientation, which PIL uses and OpenCV does not."""
    orientation = '<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    Image.open(image).copy().save(image, xmp=orientation.encode())


def _app1(content: bytes) -> Callable[[Path], None]:
    def insert(image: Path) -> None:
        data = image.read_bytes()
        segment = b'\xff\xe1' + (len(content) + 2).to_bytes(2, 'big') + content
        image.write_bytes(data[:2] + segment + data[2:])

    return insert


@pytest.mark.parametrize(
    'change',
    [
        _exif,
        partial(_exif, format='PNG'),
        partial(_exif, format='WEBP'),
        _xmp,
        _app1(b'Exif\0\0'),
        _app1(b'Exif\0\0Exif\0\0II*\0\x08\0\0\0\0\0'),
        _app1(b'Exif\0\0\x1c\xff\x13\x37abcdefgh'),
        _app1(b'Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0\0\x01'),
        _app1(b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'),
        _app1(b'http://ns.adobe.com/xap/1.0/\0garbage'),
    ],
)
def test_the_size_is_the_one_that_opencv_reads(change: Callable, year: Path) -> None:
    image, annotation = year / 'JPEGImages/000003.jpg', year / 'Annotations/000003.xml'
    change(image)
    height, width, _ = cv2.imread(str(image)).shape
    size = f'<size><width>{width}</width><height>{height}</height></size>'
    annotation.write_text(f'<annotation>{size}{OBJECT}</annotation>')
    assert detect(year) == 8
    size = f'<size><width>{height}</width><height>{width}</height></size>'
    annotation.write_text(f'<annotation>{size}{OBJECT}</annotation>')
    with pytest.raises(UserError, match=rf'000003.jpg: {width}x{height}, not {height}x{width}'):
        detect(year)


def test_images_and_labels_may_share_a_folder(year: Path, masks: Path) -> None:
    for parent, labels in ((year, 'Annotations'), (masks, 'SegmentationClass')):
        for path in (parent / labels).iterdir():
            path.rename(parent / 'JPEGImages' / path.name)
    folders = year / 'JPEGImages', year / 'JPEGImages'
    assert check_detection([Split(boxes(year).list_file, *folders)], [], CLASSES) == [8]
    folders = masks / 'JPEGImages', masks / 'JPEGImages'
    split = Split(masks / 'ImageSets/Segmentation/all.txt', *folders)
    assert check_segmentation([split], [], [str(i) for i in range(21)]) == [8]
    (masks / 'JPEGImages/000003.png').unlink()
    with pytest.raises(UserError, match=r'JPEGImages lacks 1 file \(000003.png\): unpack'):
        check_segmentation([split], [], [str(i) for i in range(21)])


@pytest.mark.parametrize(
    ('ids', 'held'),
    [((0, 255), 'only the class id 0,'), ((0,), 'only the class id 0,'), ((255,), 'no class id,')],
)
def test_masks_without_a_class_are_refused(ids: tuple, held: str, masks: Path) -> None:
    """With masks of 0 and 255 only, a constant 0 is always right, because 255 is ignored."""
    pixels = np.resize(np.array(ids, np.uint8), (48, 64))
    for path in (masks / 'SegmentationClass').iterdir():
        Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=rf'All masks of .*all.txt hold {held}'):
        segment(masks)


@pytest.mark.parametrize(
    ('change', 'wrong'),
    [
        (lambda palette: palette, ''),
        (lambda palette: [i for i in range(256) for _ in range(3)], ''),
        (
            lambda palette: [*palette[:36], 1, 2, 3],
            r'000003.png: 12 is \[1, 2, 3\], not \[64, 0, 128\]',
        ),
    ],
)
def test_a_palette_shows_vocs_colours_or_the_ids(change: Callable, wrong: str, masks: Path) -> None:
    voc = metainfo('mmseg', 'PascalVOCDataset')
    colours = [channel for colour in voc['palette'] for channel in colour]
    path = masks / 'SegmentationClass/000003.png'
    mask = Image.open(path)
    mask.putpalette(change(colours))
    mask.save(path)
    folders = masks / 'JPEGImages', masks / 'SegmentationClass'
    splits = [Split(masks / 'ImageSets/Segmentation/all.txt', *folders)]
    if wrong:
        with pytest.raises(UserError, match=f'different colour \\({wrong}'):
            check_segmentation(splits, [], **voc)
    else:
        assert check_segmentation(splits, [], **voc) == [8]


def test_vocs_names_are_those_of_both_libraries() -> None:
    boxes, masks = metainfo('mmdet', 'VOCDataset'), metainfo('mmseg', 'PascalVOCDataset')
    assert ('background', *boxes['classes']) == tuple(masks['classes'])
    assert boxes['classes'] == builtin.CLASSES
    drawn = np.frombuffer(builtin.voc_palette(), np.uint8).reshape(256, 3)
    assert drawn[:21].tolist() == [list(colour) for colour in masks['palette']]


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
        "The objects have 1 unknown class: 'Dog' (1, first in 000003.xml). Correct these names "
        "or, if all classes are your own, add the option \"classes=['Dog', 'cat', 'dog']\".\n"
        f'{split} names 9 images, but {year}/JPEGImages lacks 1 file (000099.jpg); '
        f'{year}/Annotations lacks 1 file (000099.xml); there are 4 inverted or empty boxes '
        '(000000.xml: cat 9,9,9,9, 000001.xml: dog 9,9,9,9, 000002.xml: cat 9,9,9,9, '
        '000004.xml: cat 9,9,9,9), 1 empty (000005.jpg): unpack the data again, correct these '
        'files or take them out of the split, or ignore such boxes with '
        'drop_invalid_boxes=True.'
    )


def test_invalid_boxes_may_be_dropped(year: Path, capsys: pytest.CaptureFixture) -> None:
    set_box(year, '000002', 9, 9, 9, 20)
    assert detect(year, drop_invalid_boxes=True) == 8
    out = capsys.readouterr().out
    assert '1 inverted or empty box (000002.xml: cat 9,9,9,20)' in out
    set_box(year, '000001', 0, 9, 9, 20)
    with pytest.raises(UserError, match='1 box outside the image') as error:
        detect(year, drop_invalid_boxes=True)
    assert 'empty' not in str(error.value)


def test_a_second_look_is_none(year: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, check = [], module._check_boxes

    def count(label: Path, *image: object) -> tuple[list, list]:
        names.append(label)
        return check(label, *image)

    monkeypatch.setattr(module, '_check_boxes', count)
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
    with pytest.raises(UserError, match=r"1 unknown class: 'dog' \(4, first in 000001.xml\)"):
        check_detection([boxes(year)], [], ('cat',))
    assert len(names) == 24


def test_processes_find_the_same(year: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f'{index:06}' for index in range(40)]
    for name in names[8:]:
        shutil.copy(year / 'JPEGImages/000003.jpg', year / f'JPEGImages/{name}.jpg')
        shutil.copy(year / 'Annotations/000003.xml', year / f'Annotations/{name}.xml')
    (year / 'ImageSets/Main/trainval.txt').write_text('\n'.join(names))
    set_box(year, '000030', 9, 9, 9, 20)
    set_box(year, '000012', 9, 9, 9, 99)
    messages = []
    for chunk in (32, 1):  # in one process, then in several
        monkeypatch.setattr(module, '_CHUNK', chunk)
        monkeypatch.setenv('XDG_CACHE_HOME', str(year / f'cache{chunk}'))
        with pytest.raises(UserError, match='names 40 images') as error:
            detect(year)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


@pytest.mark.skipif(not BCCD.is_dir(), reason=f'{BCCD} is not there')
def test_bccd_has_two_empty_boxes(capsys: pytest.CaptureFixture) -> None:
    def check(split: str, **options: object) -> int:
        (count,) = check_detection([boxes(BCCD, split)], [], ('RBC', 'WBC', 'Platelets'), **options)
        return count

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


def test_files_that_cannot_be_read_are_the_only_problem_told(year: Path, masks: Path) -> None:
    """What they hold is not known, so nothing is said about it."""
    for path in (year / 'Annotations').iterdir():
        path.write_text('<annotation>')
    for path in (masks / 'SegmentationClass').iterdir():
        Image.open(path).convert('RGB').save(path)
    kinds = {detect: 'unreadable annotations', segment: 'masks not in 8-bit grey or palette PNG'}
    for (check, kind), root in zip(kinds.items(), (year, masks), strict=True):
        with pytest.raises(UserError, match=f'names 8 images, but there are 8 {kind}') as error:
            check(root)
        assert len(str(error.value).splitlines()) == 1
