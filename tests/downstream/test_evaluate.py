"""Testing a checkpoint gives the metrics of its run's record, and a row for each class."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS
from PIL import Image

import downstream.evaluate as module
from downstream.evaluate import evaluate
from downstream.mmcv_ops import install
from downstream.voc_checks import metainfo
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.errors import UserError
from pretrain.runs.record import read_record
from tests.conftest import TINY
from tests.downstream.conftest import DEMOS, Finished

CLASSIFIER = 'configs/demo/r18_bl.py'


def rows(text: str) -> dict[str, tuple[str, str]]:
    """The count and metric of each class in the table of a report."""
    return {name: (count, value) for name, *_, count, value in table(text)[2:]}


def table(text: str) -> list[list[str]]:
    """The cells of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]


def numbers(text: str) -> dict[str, float]:
    """The metrics in the first line of a report."""
    pairs = re.findall(r'([\w ]+) ([\d.]+)', text.splitlines()[0])
    return {name.strip(): float(value) for name, value in pairs}


def images_of_classes(finished: Finished) -> dict[str, int]:
    """The training images of each class, counted in VOC's files without difficult objects."""
    root = Path(next(o for o in finished.options if o.startswith('data_root=')).partition('=')[2])
    images = Counter()
    if 'faster_rcnn' in str(finished.config):
        classes = metainfo('mmdet', 'VOCDataset')['classes']
        for name in (root / 'VOC2007/ImageSets/Main/trainval.txt').read_text().split():
            tree = ElementTree.parse(root / f'VOC2007/Annotations/{name}.xml')
            images.update({node.text for node in tree.findall("object[difficult='0']/name")})
    else:
        classes = metainfo('mmseg', 'PascalVOCDataset')['classes']
        folder = root / 'VOC2012'
        for names, masks in (('train', 'SegmentationClass'), ('aug', 'SegmentationClassAug')):
            for name in (folder / f'ImageSets/Segmentation/{names}.txt').read_text().split():
                ids = np.unique(Image.open(folder / masks / f'{name}.png'))
                images.update(classes[i] for i in ids if i < 255)
    return {name: images[name] for name in classes}


def test_mean_over_classes_that_have_enough_training_images() -> None:
    values, images = [10.0, 20.0, np.nan, 60.0], [49, 50, 70, 51]
    title = 'mIoU of the 2 classes with 50 training images or more'
    assert module._of_frequent_classes('mIoU', values, images) == {title: 40.0}
    assert module._of_frequent_classes('mIoU', values, [50] * 4) == {}
    assert module._of_frequent_classes('mIoU', values, [49] * 4) == {}
    assert module._of_frequent_classes('mIoU', values, [49, 49, 50, 49]) == {}  # not tested


def test_detector_or_segmenter_gives_what_its_record_says(
    finished: Finished, capsys: pytest.CaptureFixture
) -> None:
    evaluate(finished.config, finished.checkpoint, finished.options)
    assert 'was trained with' not in capsys.readouterr().err
    options = [*finished.options, 'batch_size=4096']  # above the number of training images
    text = evaluate(finished.config, finished.checkpoint, options)
    last = read_record(finished.folder / 'run.json')['generations'][-1]['last']
    if 'mAP' in last:
        assert numbers(text) == {'mAP': pytest.approx(100 * last['mAP'], abs=0.005)}
    else:
        assert numbers(text)['mIoU'] == pytest.approx(last['mIoU'], abs=0.01)
        assert numbers(text)['pixel accuracy'] == pytest.approx(last['aAcc'], abs=0.01)
    header, _, *cells = table(text)
    assert header[:2] == ['class', 'training images']
    assert {name: int(images) for name, images, *_ in cells} == images_of_classes(finished)
    counts = {name: int(count) for name, (count, _) in rows(text).items()}
    assert counts['cat'] > 0
    assert counts['dog'] > 0
    assert counts['train'] == 0


def test_another_setting_than_in_the_config_of_the_runs_folder_is_told(
    finished: Finished, capsys: pytest.CaptureFixture
) -> None:
    """That config holds the identity of its run, which the setting does not change."""
    own = finished.folder / Path(finished.config).name
    evaluate(own, finished.checkpoint)
    assert 'was trained with' not in capsys.readouterr().err
    evaluate(own, finished.checkpoint, ['val_dataloader.dataset.pipeline.1.keep_ratio=False'])
    assert 'is tested with False' in capsys.readouterr().err


def test_classifier_gives_what_its_record_says(
    train: Callable, image_folder: Path, tmp_path: Path
) -> None:
    train('bl', tmp_path, 'algorithm.generations=1')
    options = [f'data_root={image_folder}', *TINY, 'algorithm.generations=1']
    options.append('batch_size=999')  # there are fewer training images, which it does not use
    text = evaluate(CLASSIFIER, tmp_path / 'snapshot_1.pth', options)
    last = read_record(tmp_path / 'run.json')['generations'][-1]['last']
    assert numbers(text)['top1_error'] == pytest.approx(last['top1_error'], abs=0.005)
    values = rows(text)
    assert {count for count, _ in values.values()} == {'3'}
    mean = np.mean([float(value) for _, value in values.values()])
    assert mean == pytest.approx(last['top1_error'], abs=0.01)


def test_classes_of_a_classifier_are_counted_one_by_one() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 50)  # the last of four classes has no image
    wrong = generator.random((50, 2)) < 0.4
    metric = METRICS.build(dict(type='TopKError'))
    metric.results = [(bool(top1),) for top1, _ in wrong]
    dataset = SimpleNamespace(labels=labels, metainfo={'classes': 'abcd'})
    _, columns, classes = module._classification(metric, dataset)
    assert columns == ('images', 'top-1 error')
    for label, (count, error) in enumerate(classes[:3]):
        mine = [bool(w) for w, of in zip(wrong[:, 0], labels, strict=True) if of == label]
        assert (count, error) == (len(mine), pytest.approx(100 * sum(mine) / len(mine)))
    assert classes[3][0] == 0
    assert np.isnan(classes[3][1])


def scenes(generator: np.random.Generator, classes: int) -> list[tuple[dict, list[np.ndarray]]]:
    """The results of VOCMetric for ten images: some detections overlap an object, some do not."""
    found = []
    for _ in range(10):
        corners = generator.integers(0, 50, (4, 2)).astype(np.float32)
        boxes = np.hstack([corners, corners + 30])
        labels = generator.integers(0, classes, 4)
        shifted = boxes + generator.integers(0, 12, (4, 1))
        detections = np.hstack([shifted, generator.random((4, 1))]).astype(np.float32)
        guesses = np.where(generator.random(4) < 0.7, labels, 0)
        truth = {'bboxes': boxes[:3], 'labels': labels[:3]}
        truth |= {'bboxes_ignore': boxes[3:], 'labels_ignore': labels[3:]}
        found.append((truth, [detections[guesses == label] for label in range(classes)]))
    return found


def of_class(label: int, results: list) -> list:
    """The same results for a single class, as class 0."""
    kept = []
    for truth, detections in results:
        mine = {
            key: value[truth[f'labels{"_ignore" * key.endswith("_ignore")}'] == label]
            for key, value in truth.items()
        }
        mine = {k: v * 0 if k.startswith('labels') else v for k, v in mine.items()}
        kept.append((mine, [detections[label]]))
    return kept


@pytest.mark.parametrize('thresholds', [0.5, [0.3, 0.5, 0.75]])
def test_classes_of_a_detector_are_each_its_own_metric(thresholds: float | list[float]) -> None:
    install()
    import mmdet.evaluation  # noqa: F401

    with METRICS.switch_scope_and_registry('mmdet') as metrics:
        metric = metrics.build(
            dict(type='VOCMetric', metric='mAP', eval_mode='11points', iou_thrs=thresholds)
        )
    metric.dataset_meta = {'classes': ('a', 'b', 'c')}
    metric.results = scenes(np.random.default_rng(0), 3)
    values, _, classes = module._detection(metric, None)
    assert values['mAP'] == pytest.approx(100 * metric.compute_metrics(metric.results)['mAP'])
    for label, (count, ap) in enumerate(classes):
        mine = of_class(label, metric.results)
        metric.dataset_meta = {'classes': ('x',)}
        assert count == sum(len(truth['labels']) for truth, _ in mine)
        assert ap == pytest.approx(100 * metric.compute_metrics(mine)['mAP'])
        assert 0 < ap < 100


def test_classes_of_a_segmenter_are_counted_pixel_by_pixel() -> None:
    install()
    import mmseg.evaluation  # noqa: F401

    generator = torch.Generator().manual_seed(0)
    truths = torch.randint(0, 3, (5, 8, 9), generator=generator)  # class 3 of four is absent
    guesses = torch.where(torch.rand(5, 8, 9, generator=generator) < 0.6, truths, truths.flip(2))
    truths[:, :2] = 255  # ignored
    with METRICS.switch_scope_and_registry('mmseg') as metrics:
        metric = metrics.build(dict(type='IoUMetric', iou_metrics=['mIoU']))
    metric.results = [
        metric.intersect_and_union(guess, truth, 4, 255)
        for guess, truth in zip(guesses, truths, strict=True)
    ]
    values, _, classes = module._segmentation(metric, None)
    pairs = list(zip(truths.flatten().tolist(), guesses.flatten().tolist(), strict=True))
    pairs = [(truth, guess) for truth, guess in pairs if truth != 255]
    expected = []
    for label, (count, iou) in enumerate(classes[:3]):
        both = sum(truth == guess == label for truth, guess in pairs)
        either = sum(label in pair for pair in pairs)
        expected.append(100 * both / either)
        assert count == sum(truth == label for truth, _ in pairs)
        assert iou == pytest.approx(expected[-1])
    assert classes[3][0] == 0
    assert np.isnan(classes[3][1])
    assert values['mIoU'] == pytest.approx(np.mean(expected))
    right = sum(truth == guess for truth, guess in pairs)
    assert values['pixel accuracy'] == pytest.approx(100 * right / len(pairs))


def test_checkpoint_of_another_kind_is_one_sentence(
    train: Callable, tmp_path: Path, backbone_file: str
) -> None:
    train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    checkpoint = tmp_path / 'epoch_1.pth'
    with pytest.raises(UserError, match=r'epoch_1\.pth holds a classifier, .* a detector: give'):
        evaluate(DEMOS['detection'], checkpoint)
    with pytest.raises(UserError, match='trains no network that could be tested'):
        evaluate('configs/small/knn_r18.py', checkpoint)
    with pytest.raises(UserError, match=r'is a backbone file, .*: give a checkpoint of a run'):
        evaluate(CLASSIFIER, backbone_file)
    with pytest.raises(UserError, match='No checkpoint'):
        evaluate(CLASSIFIER, tmp_path / 'none.pth')


def test_another_setting_or_other_classes_are_told(
    train: Callable, image_folder: Path, tmp_path: Path, capsys
) -> None:
    train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    options = [f'data_root={image_folder}', *TINY[:1], 'image_size=40', *TINY[2:]]
    evaluate(CLASSIFIER, tmp_path / 'epoch_1.pth', options)
    assert 'was trained with image_size=32, but is tested with 40' in capsys.readouterr().err
    evaluate(CLASSIFIER, tmp_path / 'epoch_1.pth', [*options, 'image_size=32'])
    assert 'was trained with' not in capsys.readouterr().err
    content = load_from_disk(tmp_path / 'epoch_1.pth')
    content['meta']['dataset_meta'] = {'classes': ('ant', 'bee', 'cat', 'dog')}
    torch.save(content, tmp_path / 'other.pth')
    message = r'on 4 classes \(ant, bee, cat, dog\), but the test images have 4 classes \(class0, '
    with pytest.raises(UserError, match=message):
        evaluate(CLASSIFIER, tmp_path / 'other.pth', options)


def test_student_is_tested_without_its_teacher(
    train: Callable, image_folder: Path, tmp_path: Path
) -> None:
    train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    options = [f'data_root={image_folder}', *TINY]
    expected = evaluate(CLASSIFIER, tmp_path / 'epoch_1.pth', options)
    options += ['algorithm.teacher_weight=1.0', 'algorithm.features={"type": "HintLoss"}']
    options += ['teacher.checkpoint=none.pth', 'initial.checkpoint=none.pth']
    assert evaluate(CLASSIFIER, tmp_path / 'epoch_1.pth', options) == expected


def test_weights_that_do_not_fit_their_model_are_named(train: Callable, tmp_path: Path) -> None:
    train('bl', tmp_path, 'epochs=1', 'algorithm.generations=1')
    content = load_from_disk(tmp_path / 'epoch_1.pth')
    del content['state_dict']['student.0.weight']
    torch.save(content, tmp_path / 'part.pth')
    with pytest.raises(
        UserError, match=r'part\.pth does not hold the weights .* \(0\.weight\)\): use'
    ):
        evaluate(CLASSIFIER, tmp_path / 'part.pth')
