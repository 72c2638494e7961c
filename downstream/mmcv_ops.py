"""Run mmcv's operators on torchvision where mmcv's compiled extension is missing.

``mmcv-lite`` lacks the compiled module ``mmcv._ext``, so ``import mmdet.models`` fails.
:func:`install` provides that module with the three functions that Faster R-CNN calls. All other
operators can be imported but raise NotImplementedError when called.

The functions have the signatures of ``mmcv/ops/csrc/pytorch/pybind.cpp`` and the results of mmcv's
kernels: ``tests/downstream/test_mmcv_ops_parity.py`` compares them with stored outputs. Half
precision is computed in float32 and cast back, as torchvision does under autocast.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

import torch
import torchvision  # also registers torch.ops.torchvision
from torch import Tensor

_EXTENSION = 'mmcv._ext'
_ORIGIN = 'torchvision'
_AVERAGE_POOLING = 1  # mmcv's code for pool_mode="avg"; "max" is 0


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)


def _c_float(value: float) -> float:
    """Round ``value`` to float32, as mmcv's kernels do; torchvision's take a double."""
    return torch.tensor(value, dtype=torch.float32).item()


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression: drop a box whose IoU with a kept box exceeds the threshold.

    Args:
        boxes: ``(N, 4)`` as x1, y1, x2, y2.
        scores: ``(N,)``.
        iou_threshold: rounded to float32 before the comparison.
        offset: a side measures ``x2 - x1 + offset``; 1 for inclusive pixel coordinates. With 1 and
            fractional coordinates mmcv rounds at another step, so the two may disagree on a box
            whose IoU is within rounding of the threshold, as do mmcv's CPU and CUDA kernels.

    Returns:
        ``(K,)`` int64 indices of the kept boxes by descending score. Equal scores keep the input's
        order; in mmcv their order is undefined.
    """
    dtype = _compute_dtype(boxes, scores)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        # Adding the offset to x2 and y2 adds it to the sides of boxes and of intersections.
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    # A float32 IoU of exactly 0.1 would exceed the double 0.1.
    return torchvision.ops.nms(boxes, scores, _c_float(iou_threshold))


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average-pool each region of interest (RoI) into ``output``, in place.

    ``input`` is ``(B, C, H, W)``, ``output`` ``(K, C, aligned_height, aligned_width)`` and ``rois``
    ``(K, 5)``: batch index, x1, y1, x2, y2 in image pixels, which ``spatial_scale`` turns into
    feature pixels. A bin averages ``sampling_ratio`` samples along each axis; with 0 or less, the
    bin size in feature pixels, rounded up. ``aligned`` shifts RoIs by half a pixel; False is the
    legacy grid, where an RoI is at least 1 x 1. ``argmax_y`` and ``argmax_x`` are unused.

    Raises:
        NotImplementedError: if ``pool_mode`` is not 1 (average).
        RuntimeError: on the CPU, if a value of ``rois`` is not finite or, with ``aligned``, a side
            is negative.
    """
    _check_pool_mode(pool_mode)
    if rois.device.type == 'cpu':  # on CUDA the check would synchronise; mmcv skips it too
        _check_rois(rois, aligned)
    dtype = _compute_dtype(input, rois)
    pooled = torch.ops.torchvision.roi_align(
        input.to(dtype),
        rois.to(dtype),
        _c_float(spatial_scale),
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient with respect to ``input`` to ``grad_input``, in place.

    Arguments, shapes and the NotImplementedError are as in :func:`roi_align_forward`; ``rois`` are
    not checked again. On CUDA the sum is not deterministic, which
    ``torch.use_deterministic_algorithms`` reports.
    """
    _check_pool_mode(pool_mode)
    dtype = _compute_dtype(grad_output, rois)
    grad_input += torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype),
        rois.to(dtype),
        _c_float(spatial_scale),
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )


def _check_pool_mode(pool_mode: int) -> None:
    if pool_mode != _AVERAGE_POOLING:
        raise _not_covered("RoIAlign with pool_mode='max'")


def _check_rois(rois: Tensor, aligned: bool) -> None:
    # mmcv's kernel checks the sides too. NaN or infinity would make torchvision's kernel read
    # outside the feature map.
    usable = rois.isfinite().all(dim=1)
    if aligned:
        usable &= (rois[:, 1:3] <= rois[:, 3:]).all(dim=1)
    if not usable.all():
        raise RuntimeError(
            'RoIAlign needs finite boxes with x1 <= x2 and y1 <= y2, got (index, x1, y1, x2, y2) = '
            f'{tuple(rois[~usable][0].tolist())}: has the training diverged?'
        )


def _not_covered(what: str) -> NotImplementedError:
    return NotImplementedError(
        f'{what} has no torchvision stand-in: install compiled mmcv in place of mmcv-lite to use it'
    )


def _uncovered_op(name: str) -> Callable[..., NoReturn]:
    """``__getattr__`` of the provided module: importing mmcv.ops looks up every operator."""
    if name.startswith('__'):  # looked up by importlib and inspect, not operators
        raise AttributeError(f'module {_EXTENSION!r} has no attribute {name!r}')

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise _not_covered(f'mmcv operator {name!r}')

    return refuse


class _OpsFinder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, origin=_ORIGIN) if fullname == _EXTENSION else None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(
            nms=nms,
            roi_align_forward=roi_align_forward,
            roi_align_backward=roi_align_backward,
            # mmcv.utils.collect_env calls these; without mmcv.ops it reports "n/a" itself.
            get_compiler_version=lambda: 'n/a',
            get_compiling_cuda_version=lambda: 'n/a',
            __getattr__=_uncovered_op,
        )


def install() -> bool:
    """Make ``mmcv.ops`` importable. Call this before the first import of mmcv.ops, mmdet or mmseg.

    If ``mmcv._ext`` is compiled, nothing changes. Returns whether torchvision provides the
    operators.

    Raises:
        ModuleNotFoundError: if neither mmcv nor mmcv-lite is installed.
    """
    spec = importlib.util.find_spec(_EXTENSION)
    if spec is None:
        sys.meta_path.append(_OpsFinder())  # last, so a compiled module takes precedence
        return True
    return spec.origin == _ORIGIN
