"""Detectors and segmenters in bf16 under CPU autocast."""

import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS, RUNNERS

from downstream.build import prepare
from downstream.mmcv_ops import install
from pretrain.runs.config import load_config

DETECTORS = {
    'C4': ('configs/demo/faster_rcnn_r18_voc07.py', ()),
    'FPN': (
        'configs/downstream/faster_rcnn_r50_fpn_voc07.py',
        ('model.backbone.depth=18', 'model.neck.in_channels=[64, 128, 256, 512]'),
    ),
}
SEGMENTER = ('configs/demo/deeplabv3_r18_voc12.py', ())


@pytest.fixture
def build(voc, backbone_file, tmp_path):
    """``build(config, options, precision)``: a Runner with initialised weights."""
    install()

    def make(path, options, precision, **heads):
        small = ('batch_size=2', 'image_scale=(64, 48)')
        small += (
            ('crop_size=(33, 33)',)
            if path == SEGMENTER[0]
            else (
                'model.train_cfg.rcnn.sampler.num=4',
                'model.train_cfg.rpn_proposal.max_per_img=8',
            )
        )
        files = (f'data_root={voc}', f'backbone_file={backbone_file}')
        options = (*files, f'precision={precision}', *small, *options)
        config = load_config(path, options)
        config.train_dataloader.num_workers = config.val_dataloader.num_workers = 0
        config.model.update(heads)
        config = prepare(config)
        config.work_dir = str(tmp_path / precision)
        config.experiment_name = f'{path}-{precision}-{tmp_path}'
        runner = RUNNERS.build(config)
        runner.model.init_weights()
        for module in runner.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # Else random weights with frozen BN statistics give activations of a million.
                torch.nn.init.constant_(module.weight, 0.2)
        return runner

    return make


@pytest.fixture(autouse=True)
def any_precision(monkeypatch):
    """Pretend that this processor has bfloat16; autocast emulates it anywhere."""
    monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: True)


def batch_of(runner):
    torch.manual_seed(0)
    np.random.seed(0)
    data = next(iter(runner.build_dataloader(runner.cfg.train_dataloader, seed=0)))
    return runner.model.data_preprocessor(data, True)


def dtypes(model, name, seen):
    """Record the dtypes of all input and output tensors of a submodule in ``seen``."""

    def look(_, args, output):
        flat, _ = torch.utils._pytree.tree_flatten((args, output))
        seen.setdefault(name, set()).update(x.dtype for x in flat if torch.is_tensor(x))

    model.get_submodule(name).register_forward_hook(look)


@pytest.mark.parametrize('kind', DETECTORS)
def test_detector_computes_regions_and_losses_in_float32(kind, build, monkeypatch):
    from mmcv.ops.nms import ext_module

    runner = build(*DETECTORS[kind], 'bf16')
    model = runner.model.train()
    seen, layouts, boxes = {}, [], set()
    layers = ['backbone.layer3.1.conv2', 'rpn_head.rpn_conv', 'roi_head.bbox_head.fc_cls']
    for name in (*layers, 'roi_head.bbox_roi_extractor', 'rpn_head', 'roi_head.bbox_head'):
        dtypes(model, name, seen)
    for layer in model.roi_head.bbox_roi_extractor.roi_layers:
        layer.register_forward_pre_hook(lambda _, args: layouts.append(args))
    suppress = ext_module.nms

    def look(bboxes, scores, **settings):
        boxes.update((bboxes.dtype, scores.dtype))
        return suppress(bboxes, scores, **settings)

    monkeypatch.setattr(ext_module, 'nms', look)
    losses = model(**batch_of(runner), mode='loss')
    loss, values = model.parse_losses(losses)
    loss.backward()
    for name in layers:
        assert torch.bfloat16 in seen[name], name
    assert seen['backbone.layer3.1.conv2'] == {torch.bfloat16}
    assert boxes == {torch.float32}
    assert layouts
    for maps, rois in layouts:
        assert maps.dtype == rois.dtype == torch.float32
        assert maps.is_contiguous()
    assert all(value.dtype == torch.float32 for value in values.values())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in trained)
    assert all(p.grad.isfinite().all() for p in trained)
    model.eval()
    with torch.no_grad():
        (sample, *_) = model(**batch_of(runner), mode='predict')
    assert sample.pred_instances.bboxes.dtype == torch.float32


AUXILIARY = dict(type='FCNHead', in_channels=256, in_index=2, channels=8, num_convs=1)


@pytest.mark.parametrize(
    'heads', [{}, {'auxiliary_head': AUXILIARY}, {'auxiliary_head': [AUXILIARY]}]
)
def test_segmenter_computes_losses_in_float32(heads, build):
    runner = build(*SEGMENTER, 'bf16', **heads)
    model = runner.model.train()
    seen = {}
    for name in ('backbone.layer4.1.conv2', 'decode_head.bottleneck'):
        dtypes(model, name, seen)
    logits = []
    loss_by_feat = model.decode_head.loss_by_feat
    model.decode_head.loss_by_feat = lambda z, *rest: logits.append(z) or loss_by_feat(z, *rest)
    loss, values = model.parse_losses(model(**batch_of(runner), mode='loss'))
    loss.backward()
    assert all(torch.bfloat16 in types for types in seen.values())
    assert logits[0].dtype == values['loss'].dtype == torch.float32
    assert ('aux.loss_ce' in values or 'aux_0.loss_ce' in values) == bool(heads)
    classes = {m.num_classes for m in model.modules() if hasattr(m, 'num_classes')}
    assert classes == {21}
    assert all(p.grad.isfinite().all() for p in model.parameters())
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.running_var.dtype for m in norms} == {torch.float32}


@pytest.mark.parametrize('case', [*DETECTORS.values(), SEGMENTER], ids=[*DETECTORS, 'DeepLabv3'])
def test_bf16_is_close_to_float32(case, build):
    """Compare losses that do not depend on the sampled RoIs, for the same weights and images; bf16
    has a precision of 8 bits. Both precisions use channels_last."""
    values = []
    for precision in ('float32', 'bf16'):
        runner = build(*case, precision)
        maps = []
        runner.model.backbone.layer3.register_forward_hook(lambda *c, maps=maps: maps.append(c[-1]))
        torch.manual_seed(0)
        _, logs = runner.model.train().parse_losses(runner.model(**batch_of(runner), mode='loss'))
        values.append(logs)
        assert maps[0].is_contiguous(memory_format=torch.channels_last)
        assert not maps[0].is_contiguous()
    exact, ours = values
    compared = [name for name in exact if 'rpn' in name] or ['decode.loss_ce']
    for name in compared:
        torch.testing.assert_close(ours[name], exact[name], rtol=0.02, atol=0.005, msg=name)
    assert any(ours[name] != exact[name] for name in compared)


def test_precision_is_resolved_and_part_of_the_identity(voc, backbone_file):
    options = (f'data_root={voc}', f'backbone_file={backbone_file}')
    for precision in ('auto', 'bf16', 'float32'):
        config = load_config(SEGMENTER[0], (*options, f'precision={precision}'))
        resolved = 'float32' if precision == 'float32' else 'bf16'
        assert prepare(config).identity['precision'] == resolved


def test_cudnn_searches_while_training_on_crops_of_one_size(voc, backbone_file, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)
    options = (f'data_root={voc}', f'backbone_file={backbone_file}')
    segmenter, detector = (
        prepare(load_config(path, options)) for path, _ in (SEGMENTER, DETECTORS['C4'])
    )
    assert 'cudnn' not in detector.default_hooks
    assert not segmenter.env_cfg.cudnn_benchmark
    hook = HOOKS.build(segmenter.default_hooks.cudnn)
    hook.before_train_epoch(None)
    assert torch.backends.cudnn.benchmark
    hook.before_val_epoch(None)
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize('path', [SEGMENTER[0], DETECTORS['C4'][0], 'configs/demo/r18_sd.py'])
def test_metrics_are_collected_by_messages(path):
    """Collecting them in files would need a file system that all nodes share."""
    assert load_config(path).val_evaluator.collect_device == 'gpu'
