"""From image file to feature maps, downstream models compute the same as torchvision's."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS
from PIL import Image
from torch import Tensor, nn

from downstream.backbone import fitting_options
from downstream.build import prepare
from downstream.import_backbone import import_backbone
from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.config import load_config
from tests.downstream.conftest import write_voc

STAGES = ('layer1', 'layer2', 'layer3', 'layer4')
CONFIGS = {
    ('detection', 18): 'configs/demo/faster_rcnn_r18_voc07.py',
    ('detection', 50): 'configs/downstream/faster_rcnn_r50_voc07.py',
    ('pyramid', 50): 'configs/downstream/faster_rcnn_r50_fpn_voc07.py',
    ('segmentation', 18): 'configs/demo/deeplabv3_r18_voc12.py',
    ('segmentation', 50): 'configs/downstream/deeplabv3_r50_voc12aug.py',
}
SIZE = (96, 64)  # width and height: multiples of 32, so no padding


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOCdevkit with images of smooth colours, whose channels differ."""
    root = write_voc(tmp_path_factory.mktemp('parity') / 'VOCdevkit', count=4)
    rng = np.random.default_rng(0)
    for year in ('VOC2007', 'VOC2012'):
        coarse = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        image = cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / year / 'JPEGImages/100000.jpg'), image)
    mask = np.zeros(SIZE[::-1], np.uint8)
    cv2.imwrite(str(root / 'VOC2012/SegmentationClass/100000.png'), mask)
    annotation = root / 'VOC2007/Annotations/100000.xml'
    size = '<width>{}</width><height>{}</height>'
    annotation.write_text(annotation.read_text().replace(size.format(64, 48), size.format(*SIZE)))
    return root


def randomise(network: nn.Module) -> None:
    """Give norms random parameters and statistics that are no defaults and keep activations in
    range."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.4, 0.9),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)


def reference(depth: int, stem: str = 'v1', style: str = 'pytorch') -> torchvision.models.ResNet:
    """torchvision's ResNet, changed by hand to the given stem and style."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(f'resnet{depth}')
    if stem != 'v1':
        network.conv1 = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
        )
    for name in STAGES:
        first = getattr(network, name)[0]
        if style == 'caffe':
            first.conv1.stride, first.conv2.stride = first.conv2.stride, (1, 1)
        if stem == 'v1d' and first.downsample is not None:
            convolution, norm = first.downsample
            pool = nn.AvgPool2d(convolution.stride, convolution.stride)
            convolution.stride = (1, 1)
            first.downsample = nn.Sequential(pool, convolution, norm)
    randomise(network)
    return network.eval()


def dilate(network: torchvision.models.ResNet) -> None:
    """Dilate ``layer4`` for output stride 16, as ``replace_stride_with_dilation=[False, False,
    True]`` does; torchvision offers that only for bottlenecks with its own stem."""
    for index, block in enumerate(network.layer4):
        wide = block.conv2 if hasattr(block, 'conv3') else block.conv1
        for module in block.modules():
            if isinstance(module, nn.Conv2d | nn.AvgPool2d):
                module.stride = (1, 1)
            if isinstance(module, nn.AvgPool2d):
                module.kernel_size = (1, 1)
        if index:
            wide.dilation = wide.padding = (2, 2)


def features(images: Tensor, *networks: nn.Module) -> dict[str, Tensor]:
    """The outputs of layer1 to layer4 of networks that are run one after the other."""
    outputs, hooks = {}, []
    for network in networks:
        for name, stage in network.named_children():
            if name in STAGES:
                keep = partial(_keep, outputs, name)
                hooks.append(stage.register_forward_hook(keep))
    with torch.inference_mode():
        for network in networks:
            images = network(images)
            images = images[-1] if isinstance(images, tuple) else images
    for hook in hooks:
        hook.remove()
    return outputs


def _keep(outputs: dict, name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
    outputs[name] = output.clone()


def downstream_features(task: str, depth: int, root: Path, backbone_file: Path):
    """The features of the first test image from the config's data set, pipeline, preprocessor and
    model; and the path of that image."""
    path = CONFIGS[task, depth]
    provenance = load_backbone_file(backbone_file).provenance
    options = [f'data_root={root}', f'backbone_file={backbone_file}', 'batch_size=2']
    options.append(f'image_scale={SIZE}')  # no resizing, which is not compared here
    options += fitting_options(load_config(path), provenance)
    config = prepare(load_config(path, options))
    with MODELS.switch_scope_and_registry(config.default_scope) as models:
        model = models.build(config.model)
    with DATASETS.switch_scope_and_registry(config.default_scope) as datasets:
        dataset = datasets.build(config.val_dataloader.dataset)
    model.init_weights()
    model.eval()
    item = dataset[0]
    images = model.data_preprocessor(pseudo_collate([item]), False)['inputs']
    assert images.shape == (1, 3, SIZE[1], SIZE[0])
    more = [model.roi_head.shared_head] if task == 'detection' else []
    return features(images, model.backbone, *more), item['data_samples'].img_path


def normalised(path: str, mean: list[float], std: list[float], order: str) -> Tensor:
    """A (1, 3, H, W) tensor made with Pillow and NumPy; ``mean`` and ``std`` are for 0-255."""
    pixels = np.asarray(Image.open(path).convert('RGB'), dtype=np.float64)
    pixels = pixels if order == 'RGB' else pixels[..., ::-1]
    return torch.tensor((pixels - mean) / std).permute(2, 0, 1)[None].float()


def exported(network: nn.Module, folder: Path, preprocessing: str, style: str | None) -> Path:
    torch.save(network.state_dict(), folder / 'source.pth')
    import_backbone(folder / 'source.pth', folder / 'backbone.pth', style, preprocessing)
    return folder / 'backbone.pth'


IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], 'RGB')


@pytest.mark.parametrize(('task', 'depth'), CONFIGS)
def test_feature_maps_are_torchvisions(task, depth, images, tmp_path) -> None:
    network = reference(depth)
    file = exported(network, tmp_path, 'imagenet-rgb', 'pytorch')
    ours, image = downstream_features(task, depth, images, file)
    if task == 'segmentation' and depth == 50:
        weights = network.state_dict()
        network = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True])
        network.load_state_dict(weights)
        network.eval()
    elif task == 'segmentation':
        dilate(network)
    theirs = features(normalised(image, *IMAGENET), network)
    assert tuple(ours) == tuple(theirs) == STAGES
    for stage in STAGES:
        assert theirs[stage].std() > 0.1
        torch.testing.assert_close(ours[stage], theirs[stage], rtol=1e-4, atol=1e-4)

    swapped = features(normalised(image, *IMAGENET[:2], 'BGR'), network)
    for stage in STAGES:  # another channel order would fail above
        assert (swapped[stage] - theirs[stage]).abs().max() > 0.01


@pytest.mark.parametrize(
    ('task', 'stem', 'style'),
    [
        ('detection', 'v1', 'caffe'),
        ('detection', 'v1c', 'pytorch'),
        ('pyramid', 'v1d', 'pytorch'),
        ('segmentation', 'v1c', 'caffe'),
        ('segmentation', 'v1d', 'pytorch'),
    ],
)
def test_other_stems_and_preprocessing_after_fitting(task, stem, style, images, tmp_path) -> None:
    network = reference(50, stem, style)
    file = exported(network, tmp_path, 'caffe-bgr', style)
    ours, image = downstream_features(task, 50, images, file)
    if task == 'segmentation':
        dilate(network)
    pixels = normalised(image, [103.53, 116.28, 123.675], [1.0, 1.0, 1.0], 'BGR')
    theirs = features(pixels, network)
    for stage in STAGES:
        scale = theirs[stage].abs().max()
        torch.testing.assert_close(ours[stage] / scale, theirs[stage] / scale, rtol=0, atol=1e-5)


def test_dilation_by_hand_is_torchvisions() -> None:
    ours = reference(50)
    dilate(ours)
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True])
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64)
    mine, other = features(images, ours), features(images, theirs.eval())
    assert all(torch.equal(mine[stage], other[stage]) for stage in STAGES)
