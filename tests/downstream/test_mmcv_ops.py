"""The torchvision stand-in for ``mmcv._ext``, called through mmcv's public wrappers.

The references are plain loops in float64. Results in float64 must agree within 1e-12 (sums of a few
hundred terms of order 1), in float32 within 1e-5, and in float16 within 2e-3 (outputs of order 1
are rounded once to 11 bits).
"""

import importlib.util
import math
import os
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

from downstream.mmcv_ops import install

SHIM = install()

import mmcv.ops  # noqa: E402

ROOT = Path(__file__).parents[2]
shim_only = pytest.mark.skipif(not SHIM, reason='compiled mmcv is installed')
DEVICES = [
    'cpu',
    pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3}


# --- non-maximum suppression ---


def reference_nms(boxes, scores, threshold, offset=0):
    """Greedy suppression at IoU > threshold, one pair at a time."""
    boxes, threshold = boxes.cpu().numpy(), np.float32(threshold)
    kept = []
    for i in np.argsort(-scores.cpu().numpy(), kind='stable'):
        if all(reference_iou(boxes[i], boxes[k], offset) <= threshold for k in kept):
            kept.append(int(i))
    return kept


def reference_iou(a, b, offset):
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0)
    area_a, area_b = ((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b))
    return width * height / (area_a + area_b - width * height)


def random_detections(seed, clusters=12, per_cluster=10):
    """Boxes jittered around shared centres, so that many overlap, with distinct scores.

    Coordinates are integers, so areas are exact in float32 and no order of operations can move an
    IoU across a threshold.
    """
    rng = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 200, (clusters, 1, 2), generator=rng)
    size = torch.randint(10, 60, (clusters, 1, 2), generator=rng)
    box = torch.cat((corner, corner + size), dim=2)
    jitter = torch.randint(-4, 5, (clusters, per_cluster, 4), generator=rng)
    boxes = (box + jitter).flatten(0, 1).float()
    return boxes, torch.randperm(len(boxes), generator=rng) / len(boxes)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('threshold', [0.1, 0.5, 0.7])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_matches_the_reference(offset, threshold, device):
    for seed in range(3):
        boxes, scores = (x.to(device) for x in random_detections(seed))
        dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset=offset)
        expected = reference_nms(boxes, scores, threshold, offset)
        assert 0 < len(expected) < len(boxes)
        assert kept.tolist() == expected
        assert torch.equal(dets, torch.cat((boxes, scores[:, None]), dim=1)[expected])


def test_nms_offset_changes_the_outcome():
    # Two 2 x 2 squares overlap by 1 x 2: IoU 2/6. With inclusive pixels, 3 x 3 by 2 x 3: 6/12.
    boxes = torch.tensor([[0, 0, 2, 2], [1, 0, 3, 2]]).float()
    scores = torch.tensor([0.9, 0.8])
    assert mmcv.ops.nms(boxes, scores, 0.4, offset=0)[1].tolist() == [0, 1]
    assert mmcv.ops.nms(boxes, scores, 0.4, offset=1)[1].tolist() == [0]


@pytest.mark.parametrize('threshold', [0.1, 0.2, 0.5])
def test_nms_keeps_a_box_at_the_threshold_itself(threshold):
    # The IoU equals the threshold in float32; for 0.1 and 0.2 it exceeds the float64 threshold.
    boxes = torch.tensor([[0, 0, 10, 1], [0, 0, 10 * threshold, 1]])
    assert mmcv.ops.nms(boxes, torch.tensor([0.9, 0.8]), threshold)[1].tolist() == [0, 1]


def test_nms_score_threshold_and_max_num():
    boxes, scores = random_detections(0)
    expected = [i for i in reference_nms(boxes, scores, 0.5) if scores[i] > 0.3]
    kept = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.3)[1]
    assert len(expected) > 5 and kept.tolist() == expected
    kept = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=5)[1]
    assert kept.tolist() == expected[:5]


def test_nms_takes_numpy():
    boxes, scores = random_detections(0)
    dets, kept = mmcv.ops.nms(boxes.numpy(), scores.numpy(), 0.5)
    assert isinstance(dets, np.ndarray) and kept.tolist() == reference_nms(boxes, scores, 0.5)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_nms_takes_scores_of_less_precision_than_the_boxes(dtype, device):
    # As under autocast: boxes decoded in float32, scores from a half-precision head.
    boxes, scores = (x.to(device) for x in random_detections(0))
    scores = scores.to(dtype)
    kept = mmcv.ops.nms(boxes, scores, 0.5)[1]
    assert kept.tolist() == reference_nms(boxes, scores.float(), 0.5)


@shim_only
def test_nms_breaks_ties_by_input_order():
    boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 9], [20, 20, 30, 30]]).float()
    assert mmcv.ops.nms(boxes, torch.ones(3), 0.5)[1].tolist() == [0, 2]


@pytest.mark.parametrize('split_thr', [10000, 1], ids=['at once', 'class by class'])
def test_batched_nms_suppresses_within_a_class(split_thr):
    boxes, scores = random_detections(1)
    labels = torch.randint(0, 3, scores.shape, generator=torch.Generator().manual_seed(0))
    expected = []
    for label in range(3):
        members = (labels == label).nonzero().flatten()
        expected += members[reference_nms(boxes[members], scores[members], 0.5)].tolist()
    expected.sort(key=lambda i: -scores[i])
    config = {'type': 'nms', 'iou_threshold': 0.5, 'split_thr': split_thr}
    dets, kept = mmcv.ops.batched_nms(boxes, scores, labels, config)
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat((boxes, scores[:, None]), dim=1)[expected])
    _, kept = mmcv.ops.batched_nms(boxes, scores, labels, config | {'max_num': 7})
    assert kept.tolist() == expected[:7]


@pytest.mark.parametrize('device', DEVICES)
def test_nms_of_nothing(device):
    dets, kept = mmcv.ops.nms(
        torch.zeros(0, 4, device=device), torch.zeros(0, device=device), 0.5, offset=1
    )
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.int64


# --- RoIAlign ---


def reference_roi_align(features, rois, size, scale, sampling_ratio, aligned):
    """RoIAlign as a matrix: ``weights @ features``, with the gradient ``weights.T @ grad``.

    Returns the output ``(K, C, size, size)`` and ``weights (K * size**2, B * H * W)``.
    """
    batch, channels, height, width = features.shape
    weights = torch.zeros(len(rois), size, size, batch, height, width, dtype=torch.float64)
    shift = 0.5 if aligned else 0.0
    for k, (index, *corners) in enumerate(rois.double().tolist()):
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        sides = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        bin_h, bin_w = (side / size for side in sides)
        grid_h, grid_w = (sampling_ratio or math.ceil(b) for b in (bin_h, bin_w))
        for p, q in np.ndindex(size, size):
            for i, j in np.ndindex(grid_h, grid_w):
                y = y1 + (p + (i + 0.5) / grid_h) * bin_h
                x = x1 + (q + (j + 0.5) / grid_w) * bin_w
                for row, col, weight in bilinear(y, x, height, width):
                    weights[k, p, q, int(index), row, col] += weight / (grid_h * grid_w)
    weights = weights.reshape(len(rois) * size**2, -1)
    flat = features.double().transpose(0, 1).reshape(channels, -1)
    output = (weights @ flat.T).reshape(len(rois), size, size, channels).permute(0, 3, 1, 2)
    return output, weights


def bilinear(y, x, height, width):
    """The pixels and weights of a sample; it has none if it is over a pixel outside the map."""
    if not (-1 <= y <= height and -1 <= x <= width):
        return
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    for row, wy in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
        for col, wx in ((left, 1 - (x - left)), (min(left + 1, width - 1), x - left)):
            yield row, col, wy * wx


SCALE = 1 / 16
# In image pixels, of which the 9 x 12 maps span 144 x 192. No sample lies on the limits of sampling
# (-1, height, width), where a rounding error would turn a value into 0. All numbers are exact in
# float16.
ROIS = torch.tensor(
    [
        [0, 20, 10, 150, 100],  # inside
        [2, 3, 5, 189, 141],  # the whole map
        [1, -50, -30, 60, 70],  # over the top left corner
        [1, 150, 110, 250, 200],  # over the bottom right corner
        [0, 300, 300, 400, 390],  # outside
        [2, 41, 43, 46, 47],  # a fraction of a feature pixel
        [1, 64, 32, 64, 32],  # empty
    ]
).double()


def features(dtype=torch.float64, device='cpu'):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 9, 12, dtype=torch.float64, generator=rng).to(device, dtype)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_matches_the_reference(aligned, sampling_ratio, dtype, device):
    x = features(dtype, device).requires_grad_()
    layer = mmcv.ops.RoIAlign(3, SCALE, sampling_ratio, aligned=aligned)
    output = layer(x, ROIS.to(device, dtype))
    expected, weights = reference_roi_align(
        x.detach().cpu(), ROIS, 3, SCALE, sampling_ratio, aligned
    )
    tolerance = TOLERANCE[dtype]
    assert output.dtype == dtype
    torch.testing.assert_close(output.double().cpu(), expected, rtol=tolerance, atol=tolerance)

    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (grad_x,) = torch.autograd.grad(output, x, grad.to(device))
    per_bin = grad.double().permute(0, 2, 3, 1).reshape(-1, 2)
    expected = (weights.T @ per_bin).reshape(3, 9, 12, 2).permute(0, 3, 1, 2)
    assert grad_x.dtype == dtype
    torch.testing.assert_close(grad_x.double().cpu(), expected, rtol=tolerance, atol=tolerance)


def test_roi_align_adds_to_the_gradient_that_is_there():
    """mmcv's wrapper passes zeros, but the operator must add to whatever it receives."""
    x = features().requires_grad_()
    grad = torch.ones(len(ROIS), 2, 3, 3, dtype=torch.float64)
    (alone,) = torch.autograd.grad(mmcv.ops.RoIAlign(3, SCALE, 2)(x, ROIS), x, grad)
    total, empty = features(), grad.new_zeros(0)
    mmcv._ext.roi_align_backward(grad, ROIS, empty, empty, total, 3, 3, SCALE, 2, 1, True)
    torch.testing.assert_close(total, features() + alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_gradcheck(aligned):
    layer = mmcv.ops.RoIAlign(2, SCALE, 0, aligned=aligned)
    assert torch.autograd.gradcheck(lambda x: layer(x, ROIS), features().requires_grad_())


def test_roi_align_takes_memory_that_is_not_contiguous():
    layer = mmcv.ops.RoIAlign(3, SCALE, 2)
    x = features().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.equal(layer(x, ROIS), layer(features(), ROIS))
    (strided,) = torch.autograd.grad(layer(x, ROIS).transpose(2, 3).sum(), x)
    (plain,) = torch.autograd.grad(layer(x, ROIS).sum(), x)
    assert torch.equal(strided, plain)


def test_roi_align_under_autocast():
    x = features(torch.float32).requires_grad_()
    layer = mmcv.ops.RoIAlign(3, SCALE, 2)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        half = x.to(torch.bfloat16)
        output = layer(half, ROIS.to(torch.bfloat16))
        output.sum().backward()
    exact = layer(half.float(), ROIS.to(torch.bfloat16).float())
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, exact.to(torch.bfloat16))  # only the result is rounded
    assert x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_of_nothing(aligned, device):
    x = features(torch.float32, device).requires_grad_()
    output = mmcv.ops.RoIAlign(7, SCALE, 0, aligned=aligned)(x, x.new_zeros(0, 5))
    assert output.shape == (0, 2, 7, 7)
    output.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


# --- what is not covered ---


@shim_only
def test_max_pooling_is_refused():
    with pytest.raises(NotImplementedError, match=r"pool_mode='max'.*install compiled mmcv"):
        mmcv.ops.RoIAlign(3, SCALE, 2, pool_mode='max')(features(), ROIS)


@shim_only
def test_another_operator_is_refused_by_name_when_called():
    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(NotImplementedError, match=r"'sigmoid_focal_loss_forward'.*install compile"):
        mmcv.ops.sigmoid_focal_loss(logits, target)
    with pytest.raises(NotImplementedError, match="'softnms'"):
        mmcv.ops.soft_nms(torch.zeros(1, 4), torch.zeros(1))
    assert not hasattr(mmcv._ext, '__path__')  # dunder names are not operators


# --- how the module is found ---


@shim_only
def test_the_module_has_a_real_spec():
    spec = importlib.util.find_spec('mmcv._ext')
    assert (spec.name, spec.origin) == ('mmcv._ext', 'torchvision')
    assert sys.modules['mmcv._ext'].__spec__.loader is spec.loader
    if sys.version_info < (3, 14):  # mmcv and mmengine call it
        assert pkgutil.find_loader('mmcv._ext') is spec.loader


@shim_only
def test_install_is_idempotent():
    before = list(sys.meta_path)
    assert install() is True
    assert sys.meta_path == before


@shim_only
def test_compiler_versions_are_those_of_collect_env_without_ops():
    assert (mmcv.ops.get_compiler_version(), mmcv.ops.get_compiling_cuda_version()) == ('n/a',) * 2


@pytest.fixture
def compiled(tmp_path):
    """A folder with an ``_ext`` module that has every operator; its nms always keeps box 1."""
    (tmp_path / '_ext.py').write_text(
        'def nms(boxes, scores, iou_threshold, offset):\n'
        '    return boxes.new_tensor([1]).long()\n'
        'def __getattr__(name):\n'
        "    if name.startswith('__'):\n"
        '        raise AttributeError(name)\n'
        '    return print\n'
    )
    return str(tmp_path)


@shim_only
def test_a_compiled_module_wins(compiled, monkeypatch):
    monkeypatch.setattr(mmcv, '_ext', mmcv._ext)  # restores it after the import below
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    monkeypatch.setattr(mmcv, '__path__', [*mmcv.__path__, compiled])
    assert install() is False  # although the finder is installed
    extension = mmcv.utils.ext_loader.load_ext('_ext', ['nms', 'roi_align_forward'])
    assert extension.nms(torch.zeros(2, 4), torch.ones(2), 0.5, 0).tolist() == [1]


@shim_only
def test_nothing_is_installed_beside_a_compiled_module(compiled, monkeypatch):
    finders = [f for f in sys.meta_path if not type(f).__module__.startswith('downstream')]
    assert len(finders) == len(sys.meta_path) - 1
    monkeypatch.setattr(sys, 'meta_path', finders)
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    monkeypatch.setattr(mmcv, '__path__', [*mmcv.__path__, compiled])
    assert install() is False
    assert not any(type(f).__module__.startswith('downstream') for f in sys.meta_path)


def run_python(code, *args):
    """Run code in a fresh interpreter without mmcv imported, with our warnings as errors."""
    return subprocess.run(
        [sys.executable, '-W', 'error:::downstream.mmcv_ops', '-c', textwrap.dedent(code), *args],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.slow
@shim_only
def test_mmcv_ops_calls_the_compiled_module(compiled):
    code = """
        import sys
        import mmcv
        import torch
        from downstream.mmcv_ops import install

        install()
        mmcv.__path__.append(sys.argv[1])
        assert install() is False
        import mmcv.ops
        assert mmcv.ops.nms(torch.zeros(2, 4), torch.ones(2), 0.5)[1].tolist() == [1]
    """
    run_python(code, compiled)


@pytest.mark.slow
def test_mmdet_and_mmseg_import_in_silence():
    done = run_python("""
        import sys
        sys.modules['pkg_resources'] = None  # as setuptools 82 has it
        import downstream.build, downstream.import_backbone, pretrain.build
        from downstream.mmcv_ops import install
        install()
        import mmdet.datasets, mmdet.evaluation, mmdet.models, mmseg.models
    """)
    assert done.stdout == ''
    assert 'mmcv_ops' not in done.stderr
