"""mmdet's and mmseg's metrics, as the configs use them, against VOC's rules written out slowly.

What differs from the rules, and moves VOC's own test sets by little or nothing:

- A class without objects, or with difficult ones alone, is left out of the mean AP, and a class
  that is in neither masks nor predictions out of the mean IoU.
- mmdet's steps of a tenth are binary fractions, as in py-faster-rcnn, of which three are a hair too
  large: a recall of exactly 0.3, 0.6 or 0.7 does not reach its step. Small sets show it.
- Among equal scores mmdet's order is that of an unstable sort.
- Where an object and a difficult one overlap a detection equally, mmdet takes the object, VOC the
  first of the file.
- mmseg sums pixels in float32 and rounds to 0.01 points.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from numpy.random import Generator
from PIL import Image
from torch.utils.data import DataLoader

from downstream.build import prepare
from downstream.builtin import write_vocdevkit
from pretrain.runs.config import load_config
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings('ignore:Pascal VOC2007 uses `11points`')


class Truth(NamedTuple):
    box: tuple[int, int, int, int]  # the first and the last pixel of a side, as VOC has it
    label: int
    difficult: bool


class Detection(NamedTuple):
    box: tuple[int, int, int, int]
    label: int
    score: float


class Scene(NamedTuple):
    truths: list[Truth]
    detections: list[Detection]


def area(box: Sequence[int]) -> int:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def iou(a: Sequence[int], b: Sequence[int]) -> Fraction:
    common = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return Fraction(common, area(a) + area(b) - common)


def judge(scenes: Sequence[Scene], label: int) -> list[tuple[float, bool]]:
    """Score and right or wrong of each detection of a class, from the highest score.

    A detection belongs to the object that it overlaps most, if by half or more. The first of an
    object is right and each other one wrong; those of difficult objects are dropped.
    """
    found = set()
    judged = []
    ranked = [(d, scene) for scene in scenes for d in scene.detections if d.label == label]
    for detection, scene in sorted(ranked, key=lambda pair: -pair[0].score):
        truths = [truth for truth in scene.truths if truth.label == label]
        best = max(truths, key=lambda truth: iou(truth.box, detection.box), default=None)
        if best is None or iou(best.box, detection.box) < Fraction(1, 2):
            judged.append((detection.score, False))
        elif not best.difficult:
            judged.append((detection.score, id(best) not in found))
            found.add(id(best))
    return judged


def average_precision(right: Sequence[bool], objects: int, mode: str) -> Fraction:
    """The mean over recalls of the best precision at that recall or a higher one: over 0, 0.1, ...,
    1 (VOC2007), or over each object that is there to be found (VOC2012's area)."""
    found = 0
    points = []
    for count, hit in enumerate(right, 1):
        found += hit
        points.append((Fraction(found, objects), Fraction(found, count)))
    steps = 10 if mode == '11points' else objects
    recalls = [Fraction(k, steps) for k in range(0 if mode == '11points' else 1, steps + 1)]
    best = [max((p for r, p in points if r >= recall), default=0) for recall in recalls]
    return Fraction(sum(best), len(recalls))


def mean_ap(scenes: Sequence[Scene], mode: str, ties: bool | None = None) -> float:
    """Over the classes with objects; ``ties`` puts the right or the wrong of equal scores first."""
    objects = defaultdict(int)
    for truth in (truth for scene in scenes for truth in scene.truths if not truth.difficult):
        objects[truth.label] += 1
    values = []
    for label, count in objects.items():
        judged = judge(scenes, label)
        if ties is not None:
            judged.sort(key=lambda pair: (-pair[0], pair[1] != ties))
        values.append(average_precision([hit for _, hit in judged], count, mode))
    return float(sum(values) / len(values)) if values else 0.0


class Evaluation:
    """The val loader, preprocessor and metric of a config, between which a model would stand."""

    def __init__(self, config: Config) -> None:
        with MODELS.switch_scope_and_registry(config.default_scope):
            self.dataset: BaseDataset = DATASETS.build(config.val_dataloader.dataset)
            self.preprocessor = MODELS.build(config.model.data_preprocessor)
            self.evaluator = Evaluator(config.val_evaluator)
        self.evaluator.dataset_meta = self.dataset.metainfo

    def samples(self) -> list[BaseDataElement]:
        """The data samples as the model receives them, and gives them back with predictions."""
        loader = DataLoader(self.dataset, batch_size=1, collate_fn=pseudo_collate)
        batches = [self.preprocessor(batch, training=False) for batch in loader]
        return [sample for batch in batches for sample in batch['data_samples']]

    def __call__(self, samples: Sequence[BaseDataElement]) -> dict[str, float]:
        for sample in samples:
            self.evaluator.process([sample])
        return self.evaluator.evaluate(len(samples))


@pytest.fixture(scope='module')
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes with difficult objects, and masks with a palette and a border of 255."""
    root = tmp_path_factory.mktemp('scenes') / 'VOCdevkit'
    write_vocdevkit(root, trainval=4, test=30, size=64)
    return root


@pytest.fixture(scope='module')
def files(voc: Path, backbone_file: str) -> list[str]:
    return [f'data_root={voc}', f'backbone_file={backbone_file}', 'batch_size=4']


def evaluation(config: str, *options: str) -> Evaluation:
    return Evaluation(prepare(load_config(ROOT / 'configs/demo' / config, options)))


@pytest.fixture(scope='module', params=['11points', 'area'])
def detection(request, files: list[str]) -> Iterator[Evaluation]:
    """Without the four processes that the metric starts for each of hundreds of tiny sets."""
    mode = f'val_evaluator.eval_mode={request.param}'
    prepared = evaluation('faster_rcnn_r18_voc07.py', *files, mode)
    import mmdet.evaluation.functional.mean_ap as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, 'Pool', lambda _: ThreadPool(1))
        yield prepared


def mode_of(detection: Evaluation) -> str:
    return detection.evaluator.metrics[0].eval_mode


def to_instances(items: Sequence[Truth | Detection]) -> InstanceData:
    instances = InstanceData(
        bboxes=torch.tensor([item.box for item in items], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([item.label for item in items], dtype=torch.int64),
    )
    if items and isinstance(items[0], Detection):
        instances.scores = torch.tensor([item.score for item in items])
    return instances


def to_samples(scenes: Iterable[Scene]) -> list[BaseDataElement]:
    from mmdet.structures import DetDataSample

    samples = []
    for scene in scenes:
        sample = DetDataSample()
        sample.gt_instances = to_instances([t for t in scene.truths if not t.difficult])
        sample.ignored_instances = to_instances([t for t in scene.truths if t.difficult])
        sample.pred_instances = to_instances(scene.detections)
        if not scene.detections:
            sample.pred_instances.scores = torch.zeros(0)
        samples.append(sample)
    return samples


def random_box(rng: Generator) -> tuple[int, int, int, int]:
    x, y = rng.integers(0, 40, 2).tolist()
    width, height = rng.integers(1, 25, 2).tolist()
    return x, y, x + width - 1, y + height - 1


def near(box: Sequence[int], rng: Generator) -> tuple[int, int, int, int]:
    """The box itself, one that overlaps it by exactly a half, or one a few pixels away."""
    x1, y1, x2, y2 = box
    match rng.integers(4):
        case 0:
            return box
        case 1:
            return x1, y1, x2 + (x2 - x1 + 1), y2
        case _:
            dx1, dy1, dx2, dy2 = rng.integers(-3, 4, 4).tolist()
            return x1 + dx1, y1 + dy1, max(x2 + dx2, x1 + dx1), max(y2 + dy2, y1 + dy1)


def random_scenes(rng: Generator, scores: Sequence[float]) -> list[Scene]:
    """One to four images with objects of some classes and detections of some, usual and difficult
    ones alike. Each detection takes its score from the shuffled ``scores``."""
    classes = rng.permutation(20).tolist()
    left = iter(rng.permutation(scores).tolist())
    images = rng.integers(1, 5)
    truths: list[list[Truth]] = [[] for _ in range(images)]
    for label in classes[:4]:
        usual = rng.choice([0, 1, 2, 3, 4, 6, 7, 8, 9])  # of 5, mmdet would not see 3 as 0.6
        for difficult, count in ((False, usual), (True, rng.integers(0, 4))):
            for image in rng.integers(0, images, count):
                truths[image].append(Truth(random_box(rng), label, difficult))
    scenes = []
    for there in truths:
        there.sort(key=lambda truth: truth.difficult)
        boxes = [
            (near(truth.box, rng), truth.label)
            for truth in there
            if truth.label != classes[0]
            for _ in range(rng.integers(0, 4))
        ]
        boxes += [(random_box(rng), c) for c in classes[1:6] for _ in range(rng.integers(0, 3))]
        scenes.append(Scene(there, [Detection(*box, next(left)) for box in boxes]))
    return scenes


def test_voc_ap_on_random_sets(detection: Evaluation) -> None:
    rng = np.random.default_rng(0)
    mode = mode_of(detection)
    seen = []
    for _ in range(200):
        scenes = random_scenes(rng, np.arange(1, 400) / 400)
        ours = detection(to_samples(scenes))
        assert ours['pascal_voc/mAP'] == pytest.approx(mean_ap(scenes, mode), abs=1e-6)
        assert ours['pascal_voc/AP50'] == pytest.approx(ours['pascal_voc/mAP'], abs=5.1e-4)
        seen.append(ours['pascal_voc/mAP'])
    assert min(seen) < 0.2
    assert max(seen) > 0.6


def test_voc_ap_lies_between_the_orders_of_equal_scores(detection: Evaluation) -> None:
    rng = np.random.default_rng(1)
    mode = mode_of(detection)
    spread = 0.0
    for _ in range(50):
        scenes = random_scenes(rng, np.arange(1, 400) % 4 / 4)
        worst, best = (mean_ap(scenes, mode, ties) for ties in (False, True))
        ours = detection(to_samples(scenes))['pascal_voc/mAP']
        assert worst - 1e-6 <= ours <= best + 1e-6
        spread = max(spread, best - worst)
    assert spread > 0.1


BOX = (10, 10, 19, 19)  # 10 by 10 pixels
HALF = (10, 10, 19, 29)  # twice as many
FAR = (40, 40, 49, 49)


@pytest.mark.parametrize(
    ('scenes', 'expected'),
    [
        # The second find of an object is wrong, but all has been found before.
        ([Scene([Truth(BOX, 3, False)], [Detection(BOX, 3, 0.8), Detection(BOX, 3, 0.9)])], 1.0),
        ([Scene([Truth(BOX, 3, False)], [Detection(FAR, 3, 0.9), Detection(BOX, 3, 0.8)])], 0.5),
        # 100 pixels of 200 are half. Without VOC's pixel more a side it would be 81 of 171.
        ([Scene([Truth(BOX, 3, False)], [Detection(HALF, 3, 0.9)])], 1.0),
        ([Scene([Truth(BOX, 3, False)], [Detection((10, 10, 19, 30), 3, 0.9)])], 0.0),
        # What is difficult is neither to be found nor wrong when found, however often.
        (
            [
                Scene(
                    [Truth(BOX, 3, False), Truth(FAR, 3, True)],
                    [Detection(FAR, 3, 0.9), Detection(FAR, 3, 0.8), Detection(BOX, 3, 0.7)],
                )
            ],
            1.0,
        ),
        # Another class's object does not count, nor does a class without objects.
        (
            [Scene([Truth(BOX, 3, False), Truth(FAR, 4, True)], [Detection(BOX, 5, 0.9)])],
            0.0,
        ),
        ([Scene([Truth(BOX, 3, False)], [Detection(BOX, 3, 0.8), Detection(BOX, 5, 0.9)])], 1.0),
        # A class that is never detected counts with 0.
        ([Scene([Truth(BOX, 3, False), Truth(FAR, 4, False)], [Detection(BOX, 3, 0.8)])], 0.5),
        # In an image without objects every detection is wrong; its score decides.
        (
            [
                Scene([], [Detection(BOX, 3, 0.9)]),
                Scene([Truth(BOX, 3, False)], [Detection(BOX, 3, 0.8)]),
            ],
            0.5,
        ),
        ([Scene([], [Detection(BOX, 3, 0.9)]), Scene([], [])], 0.0),
    ],
)
def test_voc_ap_by_hand(detection: Evaluation, scenes: list[Scene], expected: float) -> None:
    assert detection(to_samples(scenes))['pascal_voc/mAP'] == pytest.approx(expected)
    assert mean_ap(scenes, mode_of(detection)) == pytest.approx(expected)


def test_recall_of_exactly_three_tenths(detection: Evaluation) -> None:
    """Three of ten objects: the steps 0, 0.1, 0.2 and 0.3 are reached, mmdet sees the first three.
    The most this can cost is one step of one class, 0.45 points of VOC's mean over 20."""
    boxes = [(10 * i, 0, 10 * i + 5, 5) for i in range(10)]
    found = [Detection(box, 3, 0.9 - 0.1 * i) for i, box in enumerate(boxes[:3])]
    scenes = [Scene([Truth(box, 3, False) for box in boxes], found)]
    rule, theirs = {'11points': (4 / 11, 3 / 11), 'area': (0.3, 0.3)}[mode_of(detection)]
    assert mean_ap(scenes, mode_of(detection)) == pytest.approx(rule)
    assert detection(to_samples(scenes))['pascal_voc/mAP'] == pytest.approx(theirs)


def read_truths(path: Path, classes: Sequence[str]) -> list[Truth]:
    truths = [
        Truth(
            tuple(int(item.find(f'bndbox/{c}').text) for c in ('xmin', 'ymin', 'xmax', 'ymax')),
            classes.index(item.find('name').text),
            item.find('difficult').text == '1',
        )
        for item in ElementTree.parse(path).iter('object')
    ]
    return sorted(truths, key=lambda truth: truth.difficult)


@pytest.mark.parametrize('detection', ['area'], indirect=True)  # there are classes of 5 objects
def test_voc_ap_from_the_annotation_files(detection: Evaluation, voc: Path) -> None:
    """The val pipeline's resizing leaves the truth in pixels of the file, counted from 0."""
    rng = np.random.default_rng(2)
    classes = detection.dataset.metainfo['classes']
    scores = iter(rng.permutation(400).tolist())
    samples = detection.samples()
    scenes = []
    for sample in samples:
        truths = read_truths(voc / f'VOC2007/Annotations/{sample.img_id}.xml', classes)
        detections = [
            Detection(near(t.box, rng), t.label, next(scores) / 400) for t in truths for _ in '123'
        ]
        scenes.append(Scene(truths, detections))
        from_zero = [d._replace(box=tuple(c - 1 for c in d.box)) for d in detections]
        sample.pred_instances = to_instances(from_zero)
    assert any(truth.difficult for scene in scenes for truth in scene.truths)
    expected = mean_ap(scenes, mode_of(detection))
    assert 0.1 < expected < 0.95
    assert detection(samples)['pascal_voc/mAP'] == pytest.approx(expected, abs=1e-6)


def mean_iou(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
    """In percent, over the classes of a truth or a prediction; pixels whose truth is 255 are not
    there."""
    confusion = [[0] * 21 for _ in range(21)]
    for truth, prediction in pairs:
        for true, predicted in zip(truth.flat, prediction.flat, strict=True):
            if true != 255:
                confusion[true][predicted] += 1
    values = []
    for k in range(21):
        there = sum(confusion[k]) + sum(row[k] for row in confusion) - confusion[k][k]
        if there:
            values.append(confusion[k][k] / there)
    return 100 * sum(values) / len(values)


@pytest.fixture(scope='module')
def segmentation(files: list[str]) -> Evaluation:
    return evaluation('deeplabv3_r18_voc12.py', *files)


def to_masks(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[BaseDataElement]:
    from mmseg.structures import SegDataSample

    samples = []
    for truth, prediction in pairs:
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(truth)[None])
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(prediction)[None])
        samples.append(sample)
    return samples


ROUNDED = dict(abs=0.005 + 1e-4, rel=0)


def test_mean_iou_on_random_masks(segmentation: Evaluation) -> None:
    rng = np.random.default_rng(3)
    absent = 0
    for _ in range(60):
        # Some classes are in the truth alone, some in the prediction alone, some in neither.
        there, predicted = (rng.choice(21, rng.integers(1, 12)) for _ in range(2))
        pairs = []
        for _ in range(rng.integers(1, 4)):
            shape = rng.integers(4, 16, 2)
            truth = rng.choice([*there, 255], shape)
            known = np.where(truth == 255, 0, truth)
            prediction = np.where(rng.random(shape) < 0.6, known, rng.choice(predicted, shape))
            pairs.append((truth, prediction))
        absent += len({*range(21)} - {*there} - {*predicted}) > 0
        assert segmentation(to_masks(pairs))['mIoU'] == pytest.approx(mean_iou(pairs), **ROUNDED)
    assert absent


def test_mean_iou_by_hand(segmentation: Evaluation) -> None:
    truth = np.array([[0, 0, 0, 7], [0, 255, 255, 20]])
    prediction = np.array([[0, 0, 7, 7], [5, 20, 3, 20]])
    # Class 0: 2 of 4. Class 7: 1 of 2. Class 20: 1 of 1, the border not counted, so that class 3
    # is nowhere. Class 5, in the prediction alone: 0 of 1. The other 17 are left out.
    expected = 100 * (2 / 4 + 1 / 2 + 1 + 0) / 4
    assert segmentation(to_masks([(truth, prediction)]))['mIoU'] == pytest.approx(expected)
    # A class of the truth alone counts with 0 as well.
    nothing = np.zeros_like(truth)
    expected = 100 * (4 / 6 + 0 + 0) / 3
    found = segmentation(to_masks([(truth, nothing)]))['mIoU']
    assert found == pytest.approx(expected, **ROUNDED)


def test_mean_iou_from_the_mask_files(segmentation: Evaluation, voc: Path) -> None:
    """The val pipeline gives class ids and not colours, at the size of the image."""
    rng = np.random.default_rng(4)
    samples = segmentation.samples()
    pairs = []
    for sample in samples:
        stem = Path(sample.img_path).stem
        truth = np.asarray(Image.open(voc / f'VOC2012/SegmentationClass/{stem}.png'))
        known = np.where(truth == 255, 0, truth)
        prediction = np.where(
            rng.random(truth.shape) < 0.8, known, rng.integers(0, 21, truth.shape)
        )
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(prediction).long()[None])
        pairs.append((truth, prediction))
    assert any((truth == 255).any() for truth, _ in pairs)
    assert segmentation(samples)['mIoU'] == pytest.approx(mean_iou(pairs), **ROUNDED)


def test_mean_iou_of_as_many_pixels_as_voc_has(segmentation: Evaluation) -> None:
    """2.6e8 pixels in float32, whose whole numbers end at 1.7e7."""
    rng = np.random.default_rng(5)
    shares = np.array([0.73, *[0.27 / 20] * 20])
    areas = rng.multinomial(500 * 375, shares, 1449)
    common = rng.binomial(areas, 0.8)
    predicted = common + rng.binomial(areas, 0.3)
    expected = 100 * np.mean(common.sum(0) / (areas + predicted - common).sum(0))
    columns = common, areas + predicted - common, predicted, areas
    results = list(zip(*(torch.from_numpy(c).float() for c in columns), strict=True))
    found = segmentation.evaluator.metrics[0].compute_metrics(results)['mIoU']
    assert found == pytest.approx(expected, **ROUNDED)
