import copy
import math
import shutil
import signal
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS, RUNNERS
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import Dataset

from downstream.backbone import backbone_parts
from downstream.build import prepare
from downstream.voc_checks import metainfo
from pretrain.runs import saving
from pretrain.runs.backbone_file import load_backbone_file
from pretrain.runs.checkpoint import load_from_disk
from pretrain.runs.config import load_config, walk
from pretrain.runs.errors import UserError
from pretrain.runs.identity import FORMAT, differences
from pretrain.runs.processes import ddp_settings
from pretrain.runs.resume import check_resume
from tests.stopping import Signal, assert_same_run

DETECTION = 'configs/downstream/faster_rcnn_r152_voc07.py'
PYRAMID = 'configs/downstream/faster_rcnn_r152_fpn_voc07.py'
SEGMENTATION = 'configs/downstream/deeplabv3_r152_voc12aug.py'
DEMO_DETECTION = 'configs/demo/faster_rcnn_r18_voc07.py'
DEMO_SEGMENTATION = 'configs/demo/deeplabv3_r18_voc12.py'
DEMOS = (DEMO_DETECTION, DEMO_SEGMENTATION)
DEMO_BCCD = 'configs/small/faster_rcnn_r18_bccd.py'


def with_files(config, voc, backbone_file, *options):
    files = (f'data_root={voc}', f'backbone_file={backbone_file}')
    return load_config(config, (*files, 'precision=float32', *options))


class Images(Dataset):
    """A data set of ``count`` items, for a sampler only."""

    def __init__(self, count):
        self.count = count
        self.metainfo = {}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index

    def full_init(self):
        pass


def iterations_per_epoch(config, images):
    loader = config.train_dataloader.to_dict() | {'dataset': Images(images), 'num_workers': 0}
    loader |= {'persistent_workers': False}
    with MODELS.switch_scope_and_registry(config.default_scope):
        return len(Runner.build_dataloader(loader, seed=0))


def learning_rates(config, epoch_length):
    """The learning rate of every iteration, from the config's scheduler."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = OPTIMIZERS.build(config.optim_wrapper.optimizer.to_dict() | {'params': [parameter]})
    (settings,) = (scheduler.to_dict() for scheduler in config.param_scheduler)
    scheduler_class = PARAM_SCHEDULERS.get(settings.pop('type'))
    if settings.pop('convert_to_iter_based', False):
        scheduler = scheduler_class.build_iter_from_epoch(
            optimizer, epoch_length=epoch_length, **settings
        )
    else:
        scheduler = scheduler_class(optimizer, **settings)
    optimizer.step()
    for _ in range(config.train_cfg.max_epochs):
        for _ in range(epoch_length):
            yield optimizer.param_groups[0]['lr']
            if not scheduler.by_epoch:
                scheduler.step()
        if scheduler.by_epoch:
            scheduler.step()


def test_detection_is_the_papers_recipe(voc, backbone_file_152):
    config = prepare(with_files(DETECTION, voc, backbone_file_152, 'batch_size=8'))
    assert load_config(DETECTION).batch_size == 16
    config.train_dataloader.batch_size = 16
    length = iterations_per_epoch(config, 5011)
    assert length == 314
    rates = list(learning_rates(config, length))
    assert len(rates) == 3140
    assert rates[: 8 * length] == [0.01] * (8 * length)
    assert rates[8 * length :] == pytest.approx([0.001] * (2 * length))

    dataset = config.train_dataloader.dataset.dataset
    assert (dataset.type, dataset.ann_file) == ('VOCDataset', 'VOC2007/ImageSets/Main/trainval.txt')
    assert 'filter_cfg' not in dataset
    assert config.val_dataloader.dataset.ann_file == 'VOC2007/ImageSets/Main/test.txt'
    for split in (dataset, config.val_dataloader.dataset):
        (resize,) = (step for step in split.pipeline if step.type == 'Resize')
        assert resize.scale == (1000, 600)
        assert resize.keep_ratio
    assert config.val_evaluator.eval_mode == '11points'
    model = config.model
    assert model.backbone.depth == model.roi_head.shared_head.depth == 152
    assert model.roi_head.bbox_head.num_classes == 20
    assert model.backbone.frozen_stages == -1
    assert config.paper == dict(metric='mAP', BL=73.49, SD=74.93)


@pytest.mark.parametrize('path', [DETECTION, SEGMENTATION])
def test_resnet50_differs_from_the_papers_recipe_in_depth_alone(path):
    paper, other = load_config(path), load_config(path.replace('r152', 'r50'))
    assert (paper.model.backbone.depth, other.model.backbone.depth) == (152, 50)
    options = [f'{key}.depth=152' for key in backbone_parts(other.model)]
    other = load_config(path.replace('r152', 'r50'), options)
    differing = {key for key in paper if paper[key] != other[key]}
    assert differing == {'paper'}
    assert other.paper == dict(metric=paper.paper.metric)


def test_segmentation_is_the_papers_recipe(voc, backbone_file_152):
    config = prepare(with_files(SEGMENTATION, voc, backbone_file_152))
    assert config.train_dataloader.batch_size == 8
    length = iterations_per_epoch(config, 10582)
    assert length == 1322
    total = 50 * length
    rates = list(learning_rates(config, length))
    assert len(rates) == total
    expected = [0.007 * (1 - i / (total - 1)) ** 0.9 for i in range(total)]  # 0 at the end
    assert rates == pytest.approx(expected, rel=1e-6)

    splits = [dataset.ann_file for dataset in config.train_dataloader.dataset.dataset.datasets]
    folder = 'VOC2012/ImageSets/Segmentation'
    assert splits == [f'{folder}/train.txt', f'{folder}/aug.txt']
    masks = [d.data_prefix.seg_map_path for d in config.train_dataloader.dataset.dataset.datasets]
    assert masks == ['VOC2012/SegmentationClass', 'VOC2012/SegmentationClassAug']
    for dataset in config.train_dataloader.dataset.dataset.datasets:
        steps = {step.type: step for step in dataset.pipeline}
        assert steps['RandomResize'].scale == (500, 500)
        assert steps['RandomResize'].ratio_range == (0.5, 2.0)
        assert steps['RandomCrop'].crop_size == (513, 513)
        assert 'PhotoMetricDistortion' not in steps
    assert config.val_dataloader.dataset.ann_file == f'{folder}/val.txt'
    assert 'Resize' not in [step.type for step in config.val_dataloader.dataset.pipeline]
    model = config.model
    assert (model.backbone.type, model.backbone.depth) == ('ResNet', 152)
    assert model.data_preprocessor.size == (513, 513)
    assert math.prod(model.backbone.strides) * 4 == 16
    assert model.decode_head.num_classes == 21
    assert model.get('auxiliary_head') is None
    assert config.paper == dict(metric='mIoU', BL=77.53, SD=77.97)


@pytest.mark.parametrize('config', [DETECTION, PYRAMID, SEGMENTATION])
def test_only_batch_normalisation_is_ever_frozen(config, voc, backbone_file_152):
    config = prepare(with_files(config, voc, backbone_file_152, 'batch_size=8'))
    scope = MODELS.switch_scope_and_registry(config.default_scope)
    with scope as models, torch.device('meta'):
        model = models.build(config.model)
    model.train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    if config.task == 'detection':
        assert frozen == {id(p) for norm in norms for p in norm.parameters()}
        assert not any(norm.training for norm in norms)
    else:
        assert not frozen
        assert all(norm.training for norm in norms)


def test_scale_keeps_vocs_images_at_their_size(voc, backbone_file_152):
    """A 500 x 375 image is not resampled when the random ratio is 1."""
    from mmcv.transforms import RandomResize

    config = prepare(with_files(SEGMENTATION, voc, backbone_file_152))
    steps = {
        step.type: step for step in config.train_dataloader.dataset.dataset.datasets[0].pipeline
    }
    settings = {k: v for k, v in steps['RandomResize'].items() if k != 'type'}
    resize = RandomResize(**settings | {'ratio_range': (1.0, 1.0), 'resize_type': 'Resize'})
    image = torch.randint(0, 255, (375, 500, 3), dtype=torch.uint8).numpy()
    assert (resize({'img': image.copy()})['img'] == image).all()


def test_rate_must_fall_before_the_end(voc, backbone_file):
    options = ['train_cfg.max_epochs=2', 'param_scheduler.0.milestones=[2]']
    config = with_files(DEMO_DETECTION, voc, backbone_file, *options)
    with pytest.raises(UserError, match=r'after epoch 2.*param_scheduler\.0\.milestones'):
        prepare(config)
    config = with_files(DEMO_SEGMENTATION, voc, backbone_file, options[0])
    assert prepare(config).param_scheduler[0].end == 2


def test_a_warm_up_keeps_its_length(voc, backbone_file):
    config = with_files(DEMO_SEGMENTATION, voc, backbone_file, 'train_cfg.max_epochs=2')
    by_iteration = dict(type='LinearLR', by_epoch=False, start_factor=0.1, begin=0, end=500)
    by_epoch = dict(type='LinearLR', start_factor=0.1, begin=0, end=1)
    config.param_scheduler = [by_iteration, by_epoch, *config.param_scheduler]
    assert [scheduler.end for scheduler in prepare(config).param_scheduler] == [500, 1, 2]
    steps = dict(type='MultiStepLR', by_epoch=False, milestones=[700])
    config.param_scheduler = [steps, by_iteration]
    assert prepare(config).param_scheduler[1].end == 500


def test_a_data_set_and_an_optimizer_of_the_users_own(cells, backbone_file, monkeypatch):
    from mmdet.registry import OPTIMIZERS

    monkeypatch.setitem(OPTIMIZERS.module_dict, 'OfMatrices', torch.optim.Muon)
    config = with_files(DEMO_BCCD, cells, backbone_file)
    config.val_dataloader.dataset.type = 'Cells'
    config.optim_wrapper.optimizer = dict(type='OfMatrices', lr=0.1)
    before = torch.get_rng_state()
    config = prepare(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert config.train_dataloader.dataset.dataset.type == 'XMLDataset'
    assert config.val_dataloader.dataset.type == 'Cells'


@pytest.mark.parametrize('config', DEMOS)
def test_the_seed_of_a_run_is_that_of_its_augmentation(config, voc, backbone_file):
    config = prepare(with_files(config, voc, backbone_file, 'randomness.seed=7'))
    assert config.train_dataloader.dataset.seed == 7


def test_difficult_objects_are_ignored(voc, backbone_file):
    from mmdet.registry import DATASETS

    config = prepare(with_files(DEMO_DETECTION, voc, backbone_file))
    for split in (config.train_dataloader.dataset.dataset, config.val_dataloader.dataset):
        with MODELS.switch_scope_and_registry('mmdet'):
            sample = DATASETS.build(split)[0]['data_samples']
        assert len(sample.gt_instances) == 0
        assert len(sample.ignored_instances) == 1


@pytest.fixture
def on_gpus(monkeypatch):
    """Pretend that there are GPUs, so that SyncBN averages statistics over the processes."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)


@pytest.mark.parametrize('config', DEMOS)
def test_a_config_is_not_changed_and_can_be_prepared_again(config, voc, backbone_file):
    config = with_files(config, voc, backbone_file)
    before = config.to_dict()
    once = prepare(config)
    assert config.to_dict() == before
    assert prepare(once).to_dict() == once.to_dict()


@pytest.mark.parametrize('config', [DETECTION, PYRAMID, SEGMENTATION, *DEMOS])
def test_batch_size_counts_all_processes(config, voc, backbone_file, backbone_file_152, on_gpus):
    file = backbone_file_152 if 'r152' in config else backbone_file
    config = with_files(config, voc, file, 'batch_size=8')
    assert prepare(config, world_size=4).train_dataloader.batch_size == 2
    with pytest.raises(UserError, match='cannot be divided evenly among 3 processes'):
        prepare(config, world_size=3)


@pytest.mark.parametrize('config', DEMOS)
def test_pieces_share_a_batch(config, voc, backbone_file, on_gpus):
    given = with_files(config, voc, backbone_file, 'batch_size=8', 'micro_batches=2')
    config = prepare(given, world_size=2)
    assert config.train_dataloader.batch_size == 4
    assert config.train_cfg.micro_batches == 2
    assert config.identity.micro_batches == 2
    with pytest.raises(
        UserError, match='3 processes with 2 micro-batches each: choose a multiple of 6'
    ):
        prepare(given, world_size=3)
    given.micro_batches = 0
    with pytest.raises(UserError, match='micro_batches is 0'):
        prepare(given)


class Updates(Hook):
    """Counts the steps of the optimizer."""

    count = 0

    def before_train(self, runner):
        runner.optim_wrapper.optimizer.register_step_post_hook(self.add)

    def add(self, *_):
        self.count += 1


@pytest.mark.parametrize('config', DEMOS)
def test_an_iteration_is_an_update_whatever_the_pieces(config, voc, backbone_file, tmp_path):
    """The log, the schedule and the epochs count updates, not micro-batches."""
    options = ['batch_size=4', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=2']
    options += ['param_scheduler=[]', 'optim_wrapper.optimizer.lr=1e-5', 'micro_batches=2']
    options += [option for option in SMALL[config] if 'param_scheduler' not in option]
    prepared = prepare(with_files(config, voc, backbone_file, *options))
    prepared.work_dir = str(tmp_path)
    runner = RUNNERS.build(prepared)
    runner.register_hook(updates := Updates())
    runner.train()
    assert runner.iter == updates.count == 8 // 4


def test_a_pyramid_is_filled_from_every_layer(voc, backbone_file_152):
    config = prepare(with_files(PYRAMID, voc, backbone_file_152, 'batch_size=8'))
    assert config.model.backbone.init_cfg.layers == (
        'conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4'
    )  # fmt: skip
    assert config.model.roi_head.bbox_head.num_classes == 20
    theirs = load_config(DETECTION)
    for key in ('batch_size', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'image_scale'):
        assert load_config(PYRAMID)[key] == theirs[key]


def test_what_table_5_is_trained_with():
    """What the paper says, or the deviations in configs/README.md, not the libraries' defaults."""
    sgd = dict(type='SGD', momentum=0.9, weight_decay=1e-4)
    for path, lr in ((DETECTION, 0.01), (PYRAMID, 0.01), (SEGMENTATION, 0.007)):
        config = load_config(path)
        assert config.optim_wrapper == dict(type='OptimWrapper', optimizer=sgd | dict(lr=lr))
        if config.task == 'detection':
            assert config.model.train_cfg.rcnn.sampler.num == 128
    head = load_config(SEGMENTATION).model.decode_head
    assert (tuple(head.dilations), head.channels) == ((1, 6, 12, 18), 256)
    assert head.align_corners and head.loss_decode.avg_non_ignore


def test_statistics_are_synchronised_on_gpus_alone(voc, backbone_file, monkeypatch):
    config = with_files(DEMO_SEGMENTATION, voc, backbone_file, 'batch_size=8')
    on_cpu = prepare(config, world_size=4)
    assert on_cpu.get('sync_bn') is None
    assert on_cpu.default_hooks.buffers.type == 'SyncBuffersHook'  # running statistics alone
    on_a_cluster = prepare(config, world_size=4, elsewhere=True)  # by a node without a GPU
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    on_gpus, alone = (prepare(config, world_size=count) for count in (4, 1))
    assert on_gpus.sync_bn == 'torch'
    assert on_gpus.identity == on_a_cluster.identity
    assert alone.get('sync_bn') is None
    assert not {'buffers'} & {*on_gpus.default_hooks, *alone.default_hooks}


def test_one_image_a_process_cannot_be_normalised(voc, backbone_file, monkeypatch):
    config = with_files(DEMO_SEGMENTATION, voc, backbone_file, 'batch_size=4')
    with pytest.raises(UserError, match='fewer processes, a larger batch_size or fewer'):
        prepare(config, world_size=4)
    prepare(config, world_size=4, elsewhere=True)  # on a cluster, with a GPU for each process
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert prepare(config, world_size=4).train_dataloader.batch_size == 1


SPLITS = {
    DEMO_DETECTION: 'VOC2007/ImageSets/Main/trainval.txt',
    DEMO_SEGMENTATION: 'VOC2012/ImageSets/Segmentation/train.txt',
}


def _remove_split(root, split):
    (root / split).unlink()


def _empty_split(root, split):
    (root / split).write_text('')


def _unknown_name(root, split):
    with (root / split).open('a') as file:
        file.write('000099\n')


def _remove_annotations(root, split):
    shutil.rmtree(root / split.split('/')[0] / 'JPEGImages')


def _few_images(root, split):
    (root / split).write_text('000001\n')
    aug = (root / split).with_name('aug.txt')
    if aug.exists():
        aug.write_text('000002\n')


@pytest.mark.parametrize('config', DEMOS)
@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (_remove_split, 'No split file .*: set data_root to a VOCdevkit'),
        (_empty_split, 'is empty'),
        (_unknown_name, r'names \d images, but .*JPEGImages lacks 1 file \(000099\.jpg'),
        (_remove_annotations, r'names (\d) images, but .*JPEGImages lacks \1 files'),
        (_few_images, r'has \d training images?, fewer than batch_size=\d'),
    ],
)
def test_bad_data_is_one_sentence(config, damage, message, voc, backbone_file, tmp_path):
    root = Path(shutil.copytree(voc, tmp_path / 'VOCdevkit'))
    damage(root, SPLITS[config])
    with pytest.raises(UserError, match=message):
        prepare(with_files(config, root, backbone_file))


def test_a_missing_annotation_is_named(voc, backbone_file, tmp_path):
    root = Path(shutil.copytree(voc, tmp_path / 'VOCdevkit'))
    (root / 'VOC2007/Annotations/000003.xml').unlink()
    with pytest.raises(UserError, match=r'Annotations lacks 1 file \(000003.xml'):
        prepare(with_files(DEMO_DETECTION, root, backbone_file))


def test_all_that_is_wrong_is_named_at_once(voc, backbone_file, tmp_path):
    root = Path(shutil.copytree(voc, tmp_path / 'VOCdevkit'))
    for name in ('000003', '100003'):
        Image.new('L', (64, 48), 200).save(root / f'VOC2012/SegmentationClass/{name}.png')
    (root / 'VOC2012/SegmentationClassAug/000005.png').unlink()
    with pytest.raises(UserError) as error:
        prepare(with_files(DEMO_SEGMENTATION, root, backbone_file))
    masks, aug = str(error.value).splitlines()
    assert '1 unknown class id: 200 (2, first in 000003.png)' in masks  # one in train, one in val
    assert 'SegmentationClassAug lacks 1 file (000005.png)' in aug


@pytest.mark.parametrize('config', DEMOS)
def test_a_missing_data_root_is_named(config, backbone_file, tmp_path):
    with pytest.raises(UserError, match=r'No data root .*nowhere: .*data_root=DIR'):
        prepare(with_files(config, tmp_path / 'nowhere', backbone_file))


SMALL = {
    DEMO_DETECTION: [
        'image_scale=(64, 48)',
        'model.train_cfg.rcnn.sampler.num=4',
        'model.test_cfg.rpn.max_per_img=4',
    ],
    DEMO_SEGMENTATION: ['image_scale=(64, 64)', 'crop_size=(33, 33)', 'param_scheduler.0.end=2'],
}


@pytest.fixture
def cells(voc, tmp_path):
    """The images of VOC2007 in BCCD's layout and with its classes. The box of number 4 is empty.

    The folder is called VOC2007 because mmdet's VOCDataset would use VOC's class names there."""
    root = Path(shutil.copytree(voc / 'VOC2007', tmp_path / 'VOC2007'))
    for path in (root / 'Annotations').iterdir():  # of 8 training and 8 test images
        i = int(path.stem) % 10
        tree = ElementTree.parse(path)
        tree.find('object/name').text = ('RBC', 'WBC', 'Platelets')[i % 3]
        if i == 4:
            tree.find('object/bndbox/xmax').text = tree.findtext('object/bndbox/xmin')
        tree.write(path)
    return root


def test_other_classes_are_trained_and_evaluated(cells, backbone_file, tmp_path):
    options = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'optim_wrapper.optimizer.lr=0']
    options.append('param_scheduler=[]')
    config = prepare(with_files(DEMO_BCCD, cells, backbone_file, *options, *SMALL[DEMO_DETECTION]))
    assert config.model.roi_head.bbox_head.num_classes == 3
    assert config.identity.drop_invalid_boxes
    config.work_dir = str(tmp_path / 'run')
    runner = RUNNERS.build(config)
    runner.train()
    assert runner.model.roi_head.bbox_head.fc_cls.out_features == 4  # 3 classes and background
    assert math.isfinite(runner.message_hub.get_scalar('val/pascal_voc/mAP').current())


def test_the_mean_is_over_the_configs_classes(cells, backbone_file, monkeypatch):
    from mmdet.models.utils.misc import samplelist_boxtype2tensor
    from mmdet.registry import DATASETS, METRICS
    from mmengine.structures import InstanceData

    classes = ['RBC', 'WBC', 'Platelets', *(f'other{i}' for i in range(20))]
    config = prepare(with_files(DEMO_BCCD, cells, backbone_file, f'classes={classes}'))
    with MODELS.switch_scope_and_registry('mmdet'):
        dataset = DATASETS.build(config.val_dataloader.dataset)
        metric = METRICS.build(config.val_evaluator)
    printed = []
    monkeypatch.setattr(
        'mmdet.evaluation.functional.mean_ap.print_log', lambda text, **_: printed.append(text)
    )
    metric.dataset_meta = dataset.metainfo
    samples = [sample['data_samples'] for sample in dataset]
    samplelist_boxtype2tensor(samples)
    for sample in samples:  # every red blood cell is found, and nothing else
        found = sample.gt_instances[sample.gt_instances.labels == 0]
        sample.pred_instances = InstanceData(
            bboxes=found.bboxes, labels=found.labels, scores=torch.ones(len(found))
        )
    metric.process({}, [sample.to_dict() for sample in samples])
    assert metric.evaluate(len(samples))['pascal_voc/mAP'] == pytest.approx(1 / 3)
    rows = [line for line in printed[-1].splitlines() if line.startswith('|')]
    assert [row.split()[1] for row in rows] == ['class', *classes, 'mAP']


@pytest.mark.parametrize('config', DEMOS)
@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('classes=dog', "classes is 'dog': give a list of different names"),
        ("classes=('dog')", "classes is 'dog': give a list"),
        ('classes=20', 'classes is 20: give a list'),
        ('classes=[]', r'classes is \[\]: give a list'),
        ("classes=['dog', 1]", r"classes is \['dog', 1\]: give a list"),
        ("classes=['dog', 'dog']", r"classes is \['dog', 'dog'\]: give a list"),
        ("train_list=['a.txt', 'b.txt']", r"train_list is \['a.txt', 'b.txt'\]: .* of one list"),
        ('load_from=epoch_12.pth', r'load_from is epoch_12\.pth, .* no effect: leave it out'),
        ('resume=True', 'resume is True, which would have no effect'),
        ('val_list=2012', 'val_list is 2012: give the path of one list'),
        ('image_scale=[(64, 48), (96, 72)]', r'image_scale.0 is \(64, 48\): .* whole number'),
    ],
)
def test_settings_of_other_libraries_are_one_sentence(config, option, message, voc, backbone_file):
    with pytest.raises(UserError, match=message):
        prepare(with_files(config, voc, backbone_file, option))


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('compile', True, 'compile is True, which would have no effect'),
        ('optim_wrapper.accumulative_counts', 4, 'leave it out; set micro_batches'),
        ('train_dataloader.batch_size', 4, 'leave it out; set batch_size'),
        ('model.backbone.init_cfg', 'r18.pth', 'leave it out; set backbone_file'),
        ('model.roi_head.bbox_head.num_classes', 3, 'leave it out; set classes'),
    ],
)
def test_settings_without_effect_are_refused_in_a_config(key, value, message, voc, backbone_file):
    config = with_files(DEMO_DETECTION, voc, backbone_file)
    config.merge_from_dict({key: value})  # as a config that inherits ours does
    with pytest.raises(UserError, match=message):
        prepare(config)


def test_sizes_in_a_pipeline_that_would_be_replaced_are_refused(voc, backbone_file):
    config = with_files(DEMO_SEGMENTATION, voc, backbone_file)
    crop = config.train_dataloader.dataset.datasets[0].pipeline[3]
    crop.crop_size = [*config.crop_size]
    prepare(config)
    crop.crop_size = (64, 64)
    with pytest.raises(
        UserError, match=r'RandomCrop has crop_size=\(64, 64\), .* set crop_size, wh'
    ):
        prepare(config)


def test_a_detection_pipeline_may_have_other_sizes(voc, backbone_file):
    config = with_files(DEMO_DETECTION, voc, backbone_file)
    resize = dict(type='RandomResize', ratio_range=(0.5, 2.0), keep_ratio=True)
    crop = dict(type='RandomCrop', crop_size=(40, 40))
    config.train_dataloader.dataset.pipeline[2:3] = [resize, crop]
    pipeline = prepare(config).train_dataloader.dataset.dataset.pipeline
    assert pipeline[2].scale == config.image_scale
    assert (pipeline[2].ratio_range, pipeline[3].crop_size) == ((0.5, 2.0), (40, 40))
    config.scale_range, config.crop_size = (1.0, 1.5), (32, 32)
    with pytest.raises(UserError, match=r'set scale_range, which is \(1\.0, 1\.5\)'):
        prepare(config)


def test_a_backbone_given_as_mmsegs_users_do_is_one_sentence(voc, backbone_file):
    config = with_files(DEMO_SEGMENTATION, voc, backbone_file, 'model.pretrained=r18.pth')
    with pytest.raises(UserError, match=r'model\.pretrained is r18\.pth, .*; set backbone_file=F'):
        prepare(config)


def test_images_of_different_sizes_are_tested_one_by_one(voc, backbone_file):
    options = (voc, backbone_file, 'val_dataloader.batch_size=2')
    assert prepare(with_files(DEMO_DETECTION, *options)).val_dataloader.batch_size == 2
    with pytest.raises(UserError, match='batch_size must be 1: mmseg'):
        prepare(with_files(DEMO_SEGMENTATION, *options))


def test_other_masks_are_trained_and_evaluated(voc, backbone_file, tmp_path):
    """Masks of three classes that are not VOC's, in one folder, with the user's own lists."""
    root = Path(shutil.copytree(voc / 'VOC2012', tmp_path / 'mine'))
    for path in (root / 'SegmentationClass').iterdir():
        Image.open(path).point(lambda i: {8: 1, 12: 2}.get(i, i)).save(path)
    for own, theirs in (('train.txt', 'train'), ('test.txt', 'val')):
        shutil.move(root / f'ImageSets/Segmentation/{theirs}.txt', root / own)
    options = [
        'train_list=train.txt',
        'val_list=test.txt',
        'batch_size=2',
        *SMALL[DEMO_SEGMENTATION],
    ]
    options += ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1']
    options += ["classes=['otter', 'lynx', 'ground']"]
    config = prepare(with_files(DEMO_SEGMENTATION, root, backbone_file, *options))
    assert {split: len(lists) for split, lists in config.identity.data.items()} == {
        'train': 1,
        'val': 1,
    }
    config.work_dir = str(tmp_path / 'run')
    runner = RUNNERS.build(config)
    runner.train()
    assert runner.model.decode_head.conv_seg.out_channels == 3
    assert runner.val_dataloader.dataset.metainfo['classes'] == ('otter', 'lynx', 'ground')
    assert math.isfinite(runner.message_hub.get_scalar('val/mIoU').current())


def test_invalid_boxes_are_ignored_if_asked_for(cells, backbone_file):
    from mmdet.registry import DATASETS

    config = with_files(DEMO_BCCD, cells, backbone_file)
    prepared = prepare(config)
    for split in (prepared.train_dataloader.dataset.dataset, prepared.val_dataloader.dataset):
        with MODELS.switch_scope_and_registry('mmdet'):
            dataset = DATASETS.build(split)
        assert len(dataset) == 8
        ignored = [
            i for i, sample in enumerate(dataset) if sample['data_samples'].ignored_instances
        ]
        assert ignored == [0, 4]  # 0 is difficult, 4 is empty
    config.drop_invalid_boxes = False
    with pytest.raises(UserError, match=r'1 inverted or empty box \(000004.xml: WBC'):
        prepare(config)


@pytest.mark.parametrize(
    ('config', 'metric'), [(DEMO_DETECTION, 'pascal_voc/mAP'), (DEMO_SEGMENTATION, 'mIoU')]
)
def test_trains_evaluates_and_resumes(
    config, metric, voc, backbone_file, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    """A run that is stopped after one iteration and resumed equals the whole run bit for bit."""
    options = ['batch_size=4', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    # A low rate: a random backbone with frozen BN statistics has huge activations.
    options += ['optim_wrapper.optimizer.lr=1e-5', *SMALL[config]]
    options += ['param_scheduler.0.milestones=[1]'] if config == DEMO_DETECTION else []
    # The log is written up to three iterations late.
    options += ['micro_batches=2', 'default_hooks.logger.interval=3']
    config = prepare(with_files(config, voc, backbone_file, *options))

    def run(folder: str, session: int) -> Runner:
        config.work_dir = str(tmp_path / folder)
        config.experiment_name = f'{tmp_path}-{folder}-{session}'
        return RUNNERS.build(config)

    whole = run('whole', 0)
    whole.train()
    assert (whole.epoch, whole.iter) == (2, 2 * 8 // 4)
    assert math.isfinite(whole.message_hub.get_scalar(f'val/{metric}').current())
    assert len(list((tmp_path / 'whole/pictures').iterdir())) == 8

    received = []
    monkeypatch.setattr(saving, '_received', received)
    cut = run('cut', 0)
    cut.register_hook(Signal(received, signal.SIGTERM, at=1))
    with pytest.raises(SystemExit, match='143'):
        cut.train()
    (checkpoint,) = (tmp_path / 'cut').glob('*_iter_*.pth')
    assert checkpoint.name == 'epoch_0_iter_1.pth'
    middle = load_from_disk(str(checkpoint))['state_dict']['backbone.conv1.weight']
    received.clear()
    config.update(load_from=str(checkpoint), resume=True)
    end = run('cut', 1).train().backbone.conv1.weight.detach()
    assert_same_run(tmp_path / 'whole', tmp_path / 'cut', 'epoch_2.pth')
    start = load_backbone_file(backbone_file)['conv1.weight']
    # The run resumed from the checkpoint and did not start from the backbone file again.
    assert 0 < (end - middle).norm() < (end - start).norm()


PIPELINE = 'train_dataloader.dataset.pipeline'
FIRST = 'train_dataloader.dataset.datasets.0.pipeline'
CHANGES = {
    (DEMO_DETECTION, f'{PIPELINE}.3.prob=0.1'): r'pipeline\.3\.prob=0\.5, .* 0\.1',
    (DEMO_DETECTION, f'{PIPELINE}.2.keep_ratio=False'): r'keep_ratio=True, .* False',
    (DEMO_DETECTION, 'train_dataloader.sampler.shuffle=False'): 'shuffle=True, .* False',
    (DEMO_DETECTION, 'train_dataloader.sampler.type=DefaultSampler'): 'EpochSampler, .* Default',
    (DEMO_DETECTION, 'train_dataloader.batch_sampler.type=X'): 'AspectRatioBatchSampler, .* X',
    (DEMO_DETECTION, 'image_scale=(100,75)'): r'image_scale=\[96, 72\], .* \[100, 75\]',
    (DEMO_DETECTION, 'val_evaluator.eval_mode=area'): 'eval_mode=11points, .* area',
    (DEMO_DETECTION, 'model.test_cfg.rpn.max_per_img=9'): 'max_per_img=20, .* 9',
    (DEMO_DETECTION, 'optim_wrapper.clip_grad.max_norm=1.0'): r'max_norm=5\.0, .* 1\.0',
    (DEMO_DETECTION, 'batch_size=4'): 'batch_size=8, .* 4',
    (DEMO_SEGMENTATION, f'{FIRST}.4.prob=0.1'): r'datasets\.0\.pipeline\.4\.prob=0\.5, .* 0\.1',
    (DEMO_SEGMENTATION, 'scale_range=(0.5,2)'): r'scale_range=\[0\.8, 1\.25\], .* \[0\.5, 2\]',
    (DEMO_SEGMENTATION, 'crop_size=(65,65)'): r'crop_size=\[81, 81\], .* \[65, 65\]',
    (DEMO_SEGMENTATION, 'train_dataloader.drop_last=False'): 'drop_last=True, .* False',
    (DEMO_SEGMENTATION, "val_evaluator.iou_metrics=['mDice']"): r"\['mIoU'\], .* \['mDice'\]",
}


@pytest.fixture(scope='module')
def identity(voc, backbone_file):
    """``identity(config, 'key=value', ...)``: the identity, which must not change on resuming."""
    return cache(
        lambda config, *options: prepare(
            with_files(config, voc, backbone_file, *options)
        ).identity.to_dict()
    )


REMOVED = (
    'model.data_preprocessor', 'model.data_preprocessor.mean', 'model.backbone',
    'model.backbone.strides', 'model.backbone.norm_cfg', 'train_dataloader.dataset',
    'train_dataloader.dataset.pipeline', 'train_dataloader.dataset.ann_file',
    'train_dataloader.dataset.data_prefix', 'val_dataloader.dataset',
    'val_dataloader.dataset.type', 'val_dataloader.dataset.ann_file',
    'val_dataloader.dataset.data_prefix', 'val_dataloader.dataset.pipeline', 'model.roi_head',
    'model.roi_head.bbox_head', 'model.roi_head.shared_head.norm_cfg', 'model.decode_head',
    'train_dataloader.dataset.datasets.0.data_prefix.img_path',
    'train_dataloader.dataset.datasets.1.pipeline',
)  # fmt: skip


@pytest.mark.parametrize('path', DEMOS)
def test_a_part_that_was_removed_is_named(path, voc, backbone_file):
    for key in sorted({*REMOVED} & {key for key, _ in walk(load_config(path).to_dict())}):
        whole, _, name = key.rpartition('.')
        named = (
            rf'{key} (is None, but every run needs it|cannot be built)',
            rf'{whole} cannot be built',
            rf'has [\w.]*{name}[\w.]*=None: give',
            rf'trained with {name} .*, the config has \[\]: change {key}',
            r'has no data set of type None',
        )
        with pytest.raises(UserError, match='|'.join(named)):
            prepare(with_files(path, voc, backbone_file, f'{key}=None'))


def test_each_removed_part_is_in_a_demo():
    keys = {key for path in DEMOS for key, _ in walk(load_config(path).to_dict())}
    assert {*REMOVED} <= keys


@pytest.mark.parametrize('path', DEMOS)
def test_data_sets_of_other_types_are_named(path, voc, backbone_file):
    config = with_files(path, voc, backbone_file)
    config.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=config.train_dataloader.dataset
    )
    with pytest.raises(UserError, match=r'RepeatDataset cannot be used; set train_cfg\.max_epochs'):
        prepare(config)
    for kind in ('x', 'json', 'None'):
        with pytest.raises(UserError, match=f'has no data set of type {kind}: correct the type'):
            prepare(with_files(path, voc, backbone_file, f'val_dataloader.dataset.type={kind}'))


@pytest.mark.parametrize(('config', 'change'), CHANGES)
def test_a_resumed_run_keeps_each_setting(config, change, identity):
    before, after = identity(config), identity(config, change)
    checkpoint = {'meta': {'epoch': 1, 'format': FORMAT, 'identity': before}}
    check_resume(checkpoint, 'epoch_1.pth', before)
    with pytest.raises(UserError, match=CHANGES[config, change]):
        check_resume(checkpoint, 'epoch_1.pth', after)


@pytest.mark.parametrize(
    'step',
    [
        dict(type='RandomCrop', crop_size=(60, 60)),
        dict(type='RandomResize', ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type='Expand', ratio_range=(1, 4)),
    ],
)
def test_a_resumed_run_keeps_the_sizes_of_own_steps(step, voc, backbone_file):
    """Those that no setting gives, since crop_size and scale_range are None."""
    config = with_files(DEMO_DETECTION, voc, backbone_file)
    found = []
    for factor in (1, 2):
        own = copy.deepcopy(config)
        name = 'ratio_range' if 'ratio_range' in step else 'crop_size'
        values = tuple(factor * value for value in step[name])
        own.train_dataloader.dataset.pipeline.insert(3, step | {name: values})
        found.append(prepare(own).identity.to_dict())
    (changed,) = differences(*found)
    assert changed == f'train_dataloader.dataset.dataset.pipeline.3.{name}'


@pytest.mark.faults
@pytest.mark.parametrize('config', DEMOS)
def test_a_resumed_run_keeps_its_processes_and_its_data(config, voc, backbone_file, tmp_path):
    """A replaced image is noticed even if its name and size are the same."""
    root = Path(shutil.copytree(voc, tmp_path / 'VOCdevkit'))
    config, split = with_files(config, root, backbone_file), root / SPLITS[config]
    one, two = (prepare(config, count).identity.to_dict() for count in (1, 2))
    assert differences(one, two) == {'world_size': (1, 2)}
    name, folder = split.read_text().split()[0], split.parents[2]
    image = folder / f'JPEGImages/{name}.jpg'
    Image.open(image).transpose(Image.Transpose.ROTATE_180).save(image)
    other = prepare(config).identity.to_dict()
    assert differences(one, other).keys() == {'data.train'}
    if config.task == 'detection':
        label = folder / f'Annotations/{name}.xml'
        label.write_text(label.read_text().replace('<difficult>1', '<difficult>0'))
    else:
        label = folder / f'SegmentationClass/{name}.png'
        Image.open(label).transpose(Image.Transpose.ROTATE_180).save(label)
    assert differences(other, prepare(config).identity.to_dict()).keys() == {'data.train'}


@pytest.mark.parametrize('config', DEMOS)
def test_the_config_in_the_folder_of_a_run_is_the_same_run(
    config: str, voc: Path, backbone_file: Path, tmp_path: Path
) -> None:
    """That file holds the prepared config and what the start of a run adds to it."""
    begun = prepare(with_files(config, voc, backbone_file))
    begun.model_wrapper_cfg = ddp_settings(False)
    begun.dump(tmp_path / 'run.py')
    again = prepare(load_config(tmp_path / 'run.py'))
    assert differences(begun.identity.to_dict(), again.identity.to_dict()) == {}


def test_detection_on_several_data_sets(voc, backbone_file, tmp_path):
    """VOC07 and VOC12 together, for example: every set has the classes and the stated settings."""
    root = shutil.copytree(voc, tmp_path / 'VOCdevkit')
    config = with_files(DEMO_DETECTION, root, backbone_file, 'drop_invalid_boxes=True')
    for loader in (config.train_dataloader, config.val_dataloader):
        names = (root / loader.dataset.ann_file).read_text().splitlines()
        sets = [copy.deepcopy(loader.dataset) for _ in range(2)]
        for start, part in enumerate(sets):
            part.ann_file += f'.{start}'
            (root / part.ann_file).write_text('\n'.join(names[start::2]))
        loader.dataset = dict(type='ConcatDataset', datasets=sets)
    config = prepare(config)
    with DATASETS.switch_scope_and_registry('mmdet') as registry:
        train, val = (
            registry.build(loader.dataset)
            for loader in (config.train_dataloader, config.val_dataloader)
        )
    assert (
        train.metainfo['classes']
        == val.metainfo['classes']
        == metainfo('mmdet', 'VOCDataset')['classes']
    )
    alone = prepare(with_files(DEMO_DETECTION, voc, backbone_file, 'drop_invalid_boxes=True'))
    with DATASETS.switch_scope_and_registry('mmdet') as registry:
        assert len(train) == len(registry.build(alone.train_dataloader.dataset))


@pytest.mark.parametrize(
    ('path', 'head'), [(DEMO_DETECTION, 'roi_head'), (DEMO_SEGMENTATION, 'decode_head')]
)
def test_a_model_without_the_head_of_its_task_is_named(path, head, voc, backbone_file):
    """A one-stage detector, for example."""
    config = with_files(path, voc, backbone_file)
    del config.model[head]
    config.model.type = 'Other'
    with pytest.raises(UserError, match=f'A Other has no {head}.*: set a model with one'):
        prepare(config)


@pytest.mark.parametrize('linked', [False, True])
def test_folders_of_images_may_be_elsewhere(linked, voc, backbone_file, tmp_path):
    """An absolute folder is read from there, also if data_root is a link to another place."""
    elsewhere = shutil.copytree(voc / 'VOC2012/JPEGImages', tmp_path / 'photos')
    root = tmp_path / 'a/b/VOCdevkit'
    if linked:
        root.parent.mkdir(parents=True)
        root.symlink_to(voc)
    config = with_files(DEMO_SEGMENTATION, root if linked else voc, backbone_file)
    for loader in (config.train_dataloader, config.val_dataloader):
        for dataset in loader.dataset.get('datasets') or [loader.dataset]:
            dataset.data_prefix.img_path = str(elsewhere)
    before = prepare(config).identity.data
    for photo in elsewhere.iterdir():
        photo.write_bytes(photo.read_bytes() + b' ')
    after = prepare(config).identity.data
    hashes = [[*before.train, *before.val], [*after.train, *after.val]]
    assert all(a != b for a, b in zip(*hashes, strict=True))
