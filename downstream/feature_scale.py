"""Backbone files with last feature maps times a factor, to compare backbones at one scale.

The gradient of a layer's weights is proportional to its input. So a new layer without batch
normalisation, such as the classifier of a detector, learns more slowly from smaller features. The
k-NN probe, which does not depend on the scale, records it.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pretrain.runs.backbone_file import load_backbone_file, write_backbone_file
from pretrain.runs.errors import UserError

_EPS = 1e-5  # of each batch normalisation in the ResNets of mmdet, mmseg and torchvision


def write_scaled(source: str | Path, out: str | Path, factor: float) -> dict:
    """Write the backbone of a file with last feature maps ``factor`` times as large to ``out``.

    Args:
        source: a backbone file.
        out: the file to write; another backbone file there is replaced.
        factor: at least 1; of two backbones, scale the one with the smaller values.

    Returns:
        The provenance, that of ``source`` with the key ``feature_scale``.

    Raises:
        UserError: if ``source`` is not a backbone file, if ``factor`` is below 1, not finite or too
            large for the weights, or if ``out`` is ``source`` or exists and is not a backbone file.

    Example:
        >>> write_scaled('sd.pth', 'scaled.pth', 3.5)['feature_scale']  # doctest: +SKIP
        3.5
    """
    source, out = Path(source), Path(out)
    if not (math.isfinite(factor) and factor >= 1):
        raise UserError(
            f'The factor is {factor:g}: it must be a number of at least 1. Of two backbones, scale '
            'the one whose features are smaller.'
        )
    weights = load_backbone_file(source)
    if out.exists() and out.samefile(source):
        raise UserError(f'{out} is the backbone file itself: choose another name for the result.')
    scaled = scale_features(weights, factor)
    if not all(tensor.isfinite().all() for tensor in scaled.values()):
        raise UserError(f'The factor is {factor:g}: it is too large for the weights of {source}.')
    scale = round(weights.provenance.get('feature_scale', 1.0) * factor, 9)
    return write_backbone_file(out, scaled, source, weights.provenance | {'feature_scale': scale})


def scale_features(weights: Mapping[str, Tensor], factor: float) -> OrderedDict[str, Tensor]:
    """Weights of a ResNet whose last feature maps are ``factor`` times those of ``weights``.

    With frozen batch normalisation, this holds up to rounding, and no other layer's output changes.
    Both branches of each block in ``layer4`` get scaled outputs. The first batch normalisation of
    each later block gets scaled running statistics, which cancel the factor.

    Args:
        weights: of a ResNet, under torchvision's names.
        factor: at least 1.
    """
    scaled = OrderedDict((name, tensor.clone()) for name, tensor in weights.items())
    last = 'bn3' if 'layer4.0.bn3.weight' in weights else 'bn2'
    norms = [n.removesuffix('.running_var') for n in weights if n.endswith('.running_var')]
    for norm in norms:
        if re.fullmatch(rf'layer4\.(\d+\.{last}|0\.downsample\.\d+)', norm):
            scaled[f'{norm}.weight'] *= factor
            scaled[f'{norm}.bias'] *= factor
        elif re.fullmatch(r'layer4\.[1-9]\d*\.bn1', norm):
            scaled[f'{norm}.running_mean'] *= factor
            variance = weights[f'{norm}.running_var']
            scaled[f'{norm}.running_var'] = factor * factor * (variance + _EPS) - _EPS
    return scaled
