"""The built-in images, and how mmdet and mmseg read them as PASCAL VOC."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from downstream import builtin
from downstream.builtin import CLASSES, draw_scene, random_numbers
from downstream.mmcv_ops import install
from pretrain.runs.cli import run
from pretrain.runs.errors import UserError

IMAGENET = dict(train_per_class=2, val_per_class=1, size=40)
VOC = dict(trainval=48, test=5, size=96)


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp('builtin') / 'imagenet'
    builtin.write_imagenet_folder(root, **IMAGENET)
    return root


@pytest.fixture(scope='module')
def devkit(tmp_path_factory):
    root = tmp_path_factory.mktemp('builtin') / 'VOCdevkit'
    builtin.write_vocdevkit(root, **VOC)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def scenes(split: str, count: int) -> list[list[builtin.SceneObject]]:
    """The objects in the first ``count`` images of a split, from the generator with seed 0."""
    return [draw_scene(VOC['size'], random_numbers(0, f'{split}/{i}'))[1] for i in range(count)]


@pytest.mark.parametrize('kind', CLASSES)
def test_the_mask_is_what_is_painted(kind):
    black, white = np.zeros((128, 128, 3), np.uint8), np.full((128, 128, 3), 255, np.uint8)
    mask, cut = builtin.draw_object(black, kind, (64, 64), 80, random_numbers(0, kind))
    builtin.draw_object(white, kind, (64, 64), 80, random_numbers(0, kind))
    seen_through = (white.astype(int) - black).mean(axis=2)
    assert not cut
    assert mask.sum() > 600
    assert seen_through[mask].max() < 140
    assert seen_through[~mask].min() > 115


def test_imagenet_counts_and_sizes(imagenet):
    for split, count in {'train': 2, 'val': 1}.items():
        assert tuple(sorted(p.name for p in (imagenet / split).iterdir())) == CLASSES
        for kind in CLASSES:
            paths = sorted((imagenet / split / kind).iterdir())
            assert [p.name for p in paths] == [f'{kind}_{i:04}.jpg' for i in range(count)]
            for path in paths:
                with Image.open(path) as image:
                    assert (image.size, image.mode) == ((40, 40), 'RGB')


@pytest.mark.parametrize(('split', 'count'), [('trainval', 48), ('test', 5)])
def test_mmdet_reads_the_boxes_of_what_is_visible(devkit, split, count):
    install()
    from mmdet.datasets import VOCDataset

    dataset = VOCDataset(
        data_root=str(devkit),
        ann_file=f'VOC2007/ImageSets/Main/{split}.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        pipeline=[],
    )
    assert dataset.metainfo['classes'] == CLASSES
    ignored = 0
    for info, objects in zip(dataset, scenes(f'VOC2007/{split}', count), strict=True):
        with Image.open(info['img_path']) as image:
            assert image.size == (info['width'], info['height'])
        for instance, item in zip(info['instances'], objects, strict=True):
            rows, columns = np.nonzero(item.visible)
            corners = [columns.min(), rows.min(), columns.max(), rows.max()]  # 0-based, as in mmdet
            assert instance['bbox'] == corners
            assert instance['bbox_label'] == CLASSES.index(item.kind)
            assert instance['ignore_flag'] == (item.visibility < 0.5)  # difficult in VOC's XML
            ignored += instance['ignore_flag']
    assert ignored or split == 'test'


@pytest.mark.parametrize(('split', 'count'), [('train', 12), ('aug', 36), ('val', 5)])
def test_mmseg_reads_the_masks_that_were_drawn(devkit, split, count):
    install()
    from mmseg.datasets import LoadAnnotations, PascalVOCDataset

    masks = 'SegmentationClassAug' if split == 'aug' else 'SegmentationClass'
    dataset = PascalVOCDataset(
        data_root=str(devkit / 'VOC2012'),
        ann_file=f'ImageSets/Segmentation/{split}.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path=masks),
        pipeline=[LoadAnnotations()],
    )
    for sample, objects in zip(dataset, scenes(f'VOC2012/{split}', count), strict=True):
        with Image.open(sample['img_path']) as image, Image.open(sample['seg_map_path']) as mask:
            assert image.size == mask.size
            if split != 'aug':
                colours = np.reshape(mask.getpalette(), (-1, 3))
                assert colours[:21].tolist() == dataset.metainfo['palette']
                assert colours[255].tolist() == [224, 224, 192]
        expected = np.zeros_like(sample['gt_seg_map'])
        for item in objects:
            expected[item.visible] = 1 + CLASSES.index(item.kind)
        void = sample['gt_seg_map'] == 255
        assert void.any() == (split != 'aug')
        np.testing.assert_array_equal(sample['gt_seg_map'][~void], expected[~void])


def test_every_scene_class_is_drawn_and_no_other():
    kinds = {item.kind for scene in scenes('VOC2007/trainval', 48) for item in scene}
    assert kinds == set(builtin.SCENE_CLASSES)
    assert kinds < set(CLASSES)


def test_the_border_of_255_is_narrow_and_about_the_object():
    scene = next(scene for scene in scenes('some', 50) if len(scene) == 1)
    plain = np.array(builtin.voc_mask(scene, border=False))
    for y, x in np.argwhere(np.array(builtin.voc_mask(scene, border=True)) == 255):
        around = plain[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert len(np.unique(around)) == 2


def test_the_same_parameters_give_the_same_bytes(imagenet, devkit, tmp_path):
    builtin.write_imagenet_folder(tmp_path / 'i', **IMAGENET)
    builtin.write_vocdevkit(tmp_path / 'v', **VOC)
    assert contents(tmp_path / 'i') == contents(imagenet)
    assert contents(tmp_path / 'v') == contents(devkit)


def test_another_seed_gives_other_images(imagenet, tmp_path):
    builtin.write_imagenet_folder(tmp_path / 'i', **IMAGENET, seed=1)
    other, own = contents(tmp_path / 'i'), contents(imagenet)
    assert other.keys() == own.keys()
    assert len({*other.values(), *own.values()}) == 2 * len(own)


def test_a_second_call_does_nothing(imagenet):
    before = {p: p.stat().st_mtime_ns for p in imagenet.parent.rglob('*')}
    builtin.write_imagenet_folder(imagenet, **IMAGENET)
    assert {p: p.stat().st_mtime_ns for p in imagenet.parent.rglob('*')} == before


def test_other_parameters_are_refused(imagenet):
    with pytest.raises(UserError, match='delete it or choose another'):
        builtin.write_imagenet_folder(imagenet, **IMAGENET | {'size': 41})


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, 'voc_mask', lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        builtin.write_vocdevkit(tmp_path / 'v', **VOC)
    assert list(tmp_path.iterdir()) == []


def test_the_command_leaves_a_foreign_folder_alone(tmp_path, monkeypatch):
    (tmp_path / 'imagenet').mkdir()
    (tmp_path / 'imagenet/photo.jpg').write_bytes(b'dear')
    monkeypatch.setattr(sys, 'argv', ['builtin', str(tmp_path)])
    with pytest.raises(SystemExit, match=r'^error: .*imagenet exists .* delete it'):
        run(builtin.main)
    assert contents(tmp_path) == {'imagenet/photo.jpg': b'dear'}
