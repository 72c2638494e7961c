"""The torchvision stand-in for ``mmcv._ext`` against stored outputs of mmcv's compiled kernels.

``data/mmcv_ops.npz`` holds the outputs of ``CALLS`` with mmcv 2.1.0 on a CPU. Its compiled module
was built by g++ 12 for x86-64 and torch 2.14, from the source distribution's unchanged
``mmcv/ops/csrc/pytorch/{nms,roi_align}.cpp`` and ``.../pytorch/cpu/{nms,roi_align}.cpp``, with the
three declarations and definitions of ``pybind.cpp`` that belong to them. The calls went through
mmcv's Python wrappers. Where compiled mmcv is installed, this command records them again:

    PYTHONPATH=. python tests/downstream/test_mmcv_ops_parity.py

Inputs are computed, not stored: they come from the raw bits of NumPy's PCG64, which are the same
in all versions of NumPy.

Kept indices are compared exactly. RoIAlign is compared within a fraction of the largest value:
1e-5 in float32 and 1e-12 in float64, because a compiler may fuse a multiplication and an addition,
which moves the coordinate of a sample by one unit in the last place; 0.02 in float16, which the
compiled kernel uses in every step and the stand-in only in the last.

The compiled CPU kernels accept fewer inputs: nms takes only float32, RoIAlign takes no bfloat16 and
reads a channels_last map as if it were contiguous. Half precision is therefore compared with the
stand-in's own float32 results, within one rounding. Equal scores are left out: the compiled nms
orders them by torch's unstable sort, which may differ between processors.
"""

import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream.mmcv_ops import install

SHIM = install()

import mmcv.ops  # noqa: E402

DATA = Path(__file__).parent / 'data' / 'mmcv_ops.npz'
shim_only = pytest.mark.skipif(not SHIM, reason='compiled mmcv is installed')
DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')),
]
TOLERANCE = {'float64': 1e-12, 'float32': 1e-5, 'float16': 0.02}


def whole_numbers(seed, shape, below):
    """Integers from 0 to ``below`` - 1, the same in every version of NumPy."""
    raw = np.random.PCG64(seed).random_raw(math.prod(shape)) % below
    return raw.astype(np.int64).reshape(shape)


# --- inputs ---


def random_detections(seed, count, extent, side, unit):
    """Boxes with sides up to ``side * unit``, distinct scores, and labels of five classes.

    If ``unit`` is a power of two, areas and their sums are exact in float32, so every processor
    finds the same IoU.
    """
    corner = whole_numbers(seed, (count, 2), extent) - 1
    size = whole_numbers(seed + 1, (count, 2), side + 1)
    boxes = np.concatenate((corner, corner + size), axis=1) * unit
    order = np.argsort(whole_numbers(seed + 2, (count,), 2**60), kind='stable')
    labels = whole_numbers(seed + 3, (count,), 5)
    return boxes.astype(np.float32), ((order + 1) / 4096).astype(np.float32), labels


DETECTIONS = {  # 'ties': an IoU equals a threshold
    'thousands': functools.partial(random_detections, 10, 4000, 2400, 1023, 1 / 8),
    'ties': functools.partial(random_detections, 20, 300, 12, 12, 1.0),
    'rounded': functools.partial(random_detections, 30, 1000, 1000, 700, 0.37),
    'one': functools.partial(random_detections, 40, 1, 12, 12, 1.0),
    'none': functools.partial(random_detections, 50, 0, 12, 12, 1.0),
}

MAP = (2, 2, 9, 12)  # at 1/16 it spans 144 x 192 image pixels
# Batch index, x1, y1, x2, y2. Every number is exact in float16.
DESIGNED_ROIS = [
    [0, 20, 10, 150, 100],  # inside
    [1, 3, 5, 189, 141],  # the whole map
    [1, -50, -30, 60, 70],  # over the top left corner
    [0, 150, 110, 250, 200],  # over the bottom right corner
    [0, -300, -200, 700, 600],  # many times the map
    [1, 300, 20, 400, 90],  # to the right of it
    [0, 20, -200, 90, -100],  # above it
    [1, 41, 43, 46, 47],  # a fraction of a feature pixel
    [0, 64, 32, 64, 32],  # empty
    [1, 64, 32, 64, 96],  # without width
    [1, 30.5, 40, 94.5, 41],  # flat
    # With four bins of two samples, some samples lie on -1 and on the height 9, the outermost that
    # count: those of the first box with aligned=False, those of the second with True.
    [0, -24, -24, 104, 104],
    [0, -16, -16, 112, 112],
    [1, 64, 24, 192, 152],
    [1, 72, 32, 200, 160],
]
INVERTED_ROIS = [[0, 90, 20, 40, 80], [1, 30, 70, 60, 50], [0, 90, 80, 40, 20]]


def random_rois(seed, count):
    index = whole_numbers(seed, (count, 1), MAP[0])
    corner = whole_numbers(seed + 1, (count, 2), 600) - 60
    size = whole_numbers(seed + 2, (count, 2), 500)
    return np.concatenate((index, corner * 0.37, (corner + size) * 0.37), axis=1)


ROIS = {
    'designed': functools.partial(np.array, DESIGNED_ROIS),
    'inverted': functools.partial(np.array, INVERTED_ROIS),
    'random': functools.partial(random_rois, 60, 20),
    'thousands': functools.partial(random_rois, 70, 2000),
    'one': functools.partial(random_rois, 80, 1),
    'none': functools.partial(random_rois, 90, 0),
}


def feature_values(seed, shape):
    """Random values from -3.9 to 3.9 that are exact in float16."""
    return (whole_numbers(seed, shape, 2001) - 1000) / 256


# --- calls ---


def load(detections, device):
    return (torch.from_numpy(x).to(device) for x in DETECTIONS[detections]())


def nms(device, detections, **options):
    boxes, scores, _ = load(detections, device)
    dets, kept = mmcv.ops.nms(boxes, scores, **options)
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), dim=1)[kept])
    return {'kept': kept}


def batched_nms(device, detections, class_agnostic=False, **config):
    boxes, scores, labels = load(detections, device)
    dets, kept = mmcv.ops.batched_nms(boxes, scores, labels, config or None, class_agnostic)
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), dim=1)[kept])
    return {'kept': kept}


def roi_align(device, rois, dtype='float32', **options):
    dtype = getattr(torch, dtype)
    features = torch.from_numpy(feature_values(1, MAP)).to(device, dtype).requires_grad_()
    boxes = torch.from_numpy(ROIS[rois]()).to(device, dtype)
    output = mmcv.ops.RoIAlign(**options)(features, boxes)
    grad = torch.from_numpy(feature_values(2, output.shape)).to(device, dtype)
    (gradient,) = torch.autograd.grad(output, features, grad)
    return {'output': output.detach(), 'gradient': gradient}


TIED_THRESHOLDS = (0.1, 0.3, 1 / 3, 0.5, 0.7)


def nms_calls():
    for offset in (0, 1):
        for threshold in TIED_THRESHOLDS:
            yield {'detections': 'ties', 'iou_threshold': threshold, 'offset': offset}
        for detections, threshold in (
            ('thousands', 0.3),
            ('thousands', 0.7),
            ('rounded', 0.5),
            ('rounded', 0.7),
            ('one', 0.5),
            ('none', 0.5),
        ):
            yield {'detections': detections, 'iou_threshold': threshold, 'offset': offset}
    for options in (
        {'iou_threshold': 0.0},
        {'iou_threshold': 1.0},
        {'iou_threshold': 0.5, 'score_threshold': 0.04},
        {'iou_threshold': 0.5, 'score_threshold': 0.04, 'max_num': 10},
        {'iou_threshold': 0.5, 'score_threshold': 1.0},
        {'iou_threshold': 0.5, 'max_num': 1000},
    ):
        yield {'detections': 'ties', **options}


def batched_nms_calls():
    for options in (
        {'iou_threshold': 0.5},
        {'iou_threshold': 0.5, 'class_agnostic': True},
        {'iou_threshold': 0.5, 'max_num': 20},
        {'iou_threshold': 0.5, 'split_thr': 300},  # from 300 boxes, class by class
        {'iou_threshold': 0.5, 'split_thr': 301},
        {'iou_threshold': 0.5, 'split_thr': 1, 'max_num': 20},
        {'iou_threshold': 0.3, 'offset': 1, 'score_threshold': 0.02},
        {},  # no suppression, only sorting
    ):
        yield {'detections': 'ties', **options}
    for options in (
        {'iou_threshold': 0.7, 'max_num': 1000},
        {'iou_threshold': 0.5, 'score_threshold': 0.05, 'max_num': 100},
        {'iou_threshold': 0.5, 'split_thr': 1000},
    ):
        yield {'detections': 'thousands', **options}
    yield {'detections': 'rounded', 'iou_threshold': 0.5}
    yield {'detections': 'one', 'iou_threshold': 0.5}
    yield {'detections': 'none', 'iou_threshold': 0.5, 'class_agnostic': True}


def roi_align_calls():
    for aligned, ratio in itertools.product((True, False), (0, 2)):
        options = {'spatial_scale': 1 / 16, 'sampling_ratio': ratio, 'aligned': aligned}
        for size in (1, (2, 5), 4, 7):
            yield {'rois': 'designed', 'output_size': size, **options}
        for dtype in ('float64', 'float16'):
            yield {'rois': 'designed', 'dtype': dtype, 'output_size': 4, **options}
        yield {'rois': 'random', 'output_size': 3, **options}
        for dtype in ('float64', 'float32'):  # 0.1 differs between the two
            tenth = options | {'spatial_scale': 0.1}
            yield {'rois': 'random', 'dtype': dtype, 'output_size': 3, **tenth}
        yield {'rois': 'one', 'output_size': 7, **options}
        yield {'rois': 'none', 'output_size': 7, **options}
        if ratio == 2:
            yield {'rois': 'thousands', 'output_size': 1, **options}
        if not aligned:  # raises if aligned, else sides become 1
            yield {'rois': 'inverted', 'output_size': 7, **options}
    # The arguments of the C4 detector, and a negative sampling ratio.
    for size, ratio in ((14, 0), (7, -1)):
        yield {
            'rois': 'designed',
            'output_size': size,
            'spatial_scale': 1 / 16,
            'sampling_ratio': ratio,
        }


CALLS = [
    *((nms, call) for call in nms_calls()),
    *((batched_nms, call) for call in batched_nms_calls()),
    *((roi_align, call) for call in roi_align_calls()),
]


def name_of(function, arguments):
    listed = ', '.join(f'{name}={value}' for name, value in arguments.items())
    return f'{function.__name__}({listed})'


# --- comparison ---


@pytest.fixture(scope='module')
def recorded():
    with np.load(DATA) as arrays:
        return dict(arrays)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize(('function', 'arguments'), CALLS, ids=[name_of(*call) for call in CALLS])
def test_equals_the_compiled_kernel(function, arguments, device, recorded):
    for part, ours in function(device, **arguments).items():
        theirs = torch.from_numpy(recorded[f'{name_of(function, arguments)} {part}'])
        if part == 'kept':
            assert ours.tolist() == theirs.tolist()
            continue
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        largest = theirs.abs().max().item() if theirs.numel() else 0.0
        tolerance = TOLERANCE[arguments.get('dtype', 'float32')] * largest
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=tolerance)


def test_the_file_holds_these_calls_and_no_others(recorded):
    parts = {nms: ['kept'], batched_nms: ['kept'], roi_align: ['output', 'gradient']}
    expected = [f'{name_of(*call)} {part}' for call in CALLS for part in parts[call[0]]]
    assert sorted(recorded) == sorted(expected)


def float32_ious(detections, offset):
    """The IoU of every pair of boxes."""
    boxes, _, _ = DETECTIONS[detections]()
    x1, y1, x2, y2 = boxes.T
    width = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1) + np.float32(offset)
    height = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1) + np.float32(offset)
    intersection = width.clip(0) * height.clip(0)
    area = (x2 - x1 + np.float32(offset)) * (y2 - y1 + np.float32(offset))
    first, second = np.triu_indices(len(boxes), 1)
    intersection = intersection[first, second]
    union = area[first] + area[second] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


@pytest.mark.parametrize('offset', [0, 1])
def test_detections_do_and_do_not_lie_at_the_threshold(offset):
    ties, rounded = float32_ious('ties', offset), float32_ious('rounded', offset)
    for threshold in TIED_THRESHOLDS:
        assert (ties == np.float32(threshold)).any()
    for threshold in (0.5, 0.7):  # no IoU is within rounding of these
        assert abs(rounded - threshold).min() > 1e-6


# --- half precision ---


@shim_only
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_nms_is_that_of_the_same_boxes_in_float32(dtype, device):
    boxes, scores, _ = load('rounded', device)
    boxes = boxes.to(dtype)
    dets, kept = mmcv.ops.nms(boxes, scores, 0.5)
    assert kept.tolist() == mmcv.ops.nms(boxes.float(), scores, 0.5)[1].tolist()
    assert torch.equal(dets[:, :4], boxes[kept].float())


@shim_only
@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('aligned', [True, False])
def test_half_precision_roi_align_rounds_the_result_alone(aligned, dtype, device):
    layer = mmcv.ops.RoIAlign(7, 1 / 16, 0, aligned=aligned)
    half = torch.from_numpy(feature_values(1, MAP)).to(device, dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    boxes = torch.from_numpy(ROIS['designed']()).to(device, dtype)
    output, expected = layer(half, boxes), layer(single, boxes.float())
    grad = torch.from_numpy(feature_values(2, output.shape)).to(device, dtype)
    output.backward(grad)
    expected.backward(grad.float())
    one_rounding = {'rtol': torch.finfo(dtype).eps, 'atol': 1e-5}
    torch.testing.assert_close(output.float(), expected, **one_rounding)
    torch.testing.assert_close(half.grad.float(), single.grad, **one_rounding)


# --- errors ---


@pytest.mark.parametrize('roi', [[0, 90, 20, 40, 80], [0, 20, 80, 40, 20], [0, math.nan, 2, 9, 9]])
def test_aligned_roi_align_refuses_what_the_compiled_kernel_refuses(roi):
    rois = torch.tensor([[0, 0, 0, 9, 9], roi]).float()
    with pytest.raises(RuntimeError):
        mmcv.ops.RoIAlign(3, 1 / 16, 2)(torch.zeros(MAP), rois)


@shim_only  # the compiled kernel reads outside the map
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('coordinate', [math.nan, math.inf, -math.inf])
def test_roi_align_refuses_a_box_that_is_not_finite(coordinate, aligned):
    rois = torch.tensor([[0, 0, 0, 9, 9], [1, 0, coordinate, 9, 9]])
    with pytest.raises(RuntimeError, match=r'\(1\.0, 0\.0, -?(nan|inf), 9\.0, 9\.0\)'):
        mmcv.ops.RoIAlign(3, 1 / 16, 2, aligned=aligned)(torch.zeros(MAP), rois)


@shim_only
@pytest.mark.parametrize(('kind', 'op'), [('soft_nms', 'softnms'), ('nms_rotated', 'nms_rotated')])
def test_another_kind_of_nms_in_a_config_is_refused_by_name(kind, op):
    with pytest.raises(NotImplementedError, match=f"'{op}'"):
        mmcv.ops.batched_nms(*load('ties', 'cpu'), {'type': kind, 'iou_threshold': 0.5})


@shim_only
def test_another_region_pooling_is_refused_by_name():
    rois = torch.tensor(DESIGNED_ROIS[:1]).float()
    with pytest.raises(NotImplementedError, match="'roi_pool_forward'"):
        mmcv.ops.RoIPool(7, 1 / 16)(torch.zeros(MAP), rois)


if __name__ == '__main__':
    if SHIM:
        raise SystemExit('only compiled mmcv can record what compiled mmcv gives')
    np.savez_compressed(
        DATA,
        **{
            f'{name_of(function, arguments)} {part}': array.numpy()
            for function, arguments in CALLS
            for part, array in function('cpu', **arguments).items()
        },
    )
