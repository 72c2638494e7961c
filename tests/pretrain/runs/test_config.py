import copy
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from mmengine.config import Config

from pretrain.build import prepare
from pretrain.runs.config import (
    batch_per_process,
    check_settings,
    literal,
    load_config,
    stage_of,
)
from pretrain.runs.errors import UserError
from tests.conftest import ROOT

R152 = {name: ROOT / f'configs/pretrain/r152_{name}.py' for name in ('bl', 'se', 'sd')}


def test_options_override_what_is_there() -> None:
    options = ['algorithm.generations=[1, 1]', 'data_root=/x', 'optim_wrapper.optimizer.lr=0.2']
    config = load_config(R152['sd'], options)
    assert config.algorithm.generations == [1, 1]
    assert config.data_root == '/x'
    assert config.optim_wrapper.optimizer.lr == 0.2
    assert load_config(R152['sd'], ['resume=true']).resume is True


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('algorithm.temprature=3', 'did you mean algorithm.temperature'),
        ('dataroot=/x', 'did you mean data_root'),
        ('train_dataloader.num_worker=1', 'did you mean train_dataloader.num_workers'),
        ('lr=0.1', r'did you mean optim_wrapper\.optimizer\.lr\?'),
        ('depht=50', r'did you mean model\.network\.depth\?'),
        ('model.depth=50', r'did you mean model\.network\.depth\?'),
        ('num_workers=1', r'train_dataloader\.num_workers or val_dataloader\.num_workers\?'),
        ('batch_size', 'key=value'),
        ('model.data_preprocessor.mean.0=1', r'did you mean model\.data_preprocessor\.mean\?'),
    ],
)
def test_option_that_is_not_there(option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(R152['sd'], [option])


def own_config(folder: Path, base: str, *lines: str) -> Path:
    """A config file that inherits one of ours."""
    own = folder / 'own.py'
    own.write_text('\n'.join((f'_base_ = {str(ROOT / f"configs/{base}.py")!r}', *lines, '')))
    return own


def prepared(path: Path) -> Config:
    config = load_config(path)
    return stage_of(config).prepare(config)


@pytest.mark.parametrize(
    ('base', 'line', 'near'),
    [
        ('pretrain/r50_sd', 'max_epochs = 3', 'epochs'),
        ('pretrain/r50_sd', 'imagesize = 64', 'image_size'),
        ('pretrain/cifar100/resnet20_sd_t2', 'skip_unusable = True', r'.*'),  # not of CIFAR
        ('pretrain/cifar100/resnet20_sd_t2', 'image_size = 64', r'(?!image_size).*'),
        ('pretrain/r50_bl', 'lr = 0.2', r'optim_wrapper\.optimizer\.lr'),
        ('pretrain/r50_bl', 'optimizer = dict(lr=0.2)', r'optim_wrapper\.optimizer'),
        ('downstream/faster_rcnn_r50_voc07', 'max_epochs = 3', r'train_cfg\.max_epochs'),
        ('downstream/faster_rcnn_r50_voc07', 'num_classes = 3', r'(?!.*num_classes).*'),
        ('downstream/deeplabv3_r50_voc12aug', 'trainlist = "a.txt"', 'train_list'),
        ('downstream/knn_r50', 'neighbors = 5', 'neighbours'),
    ],
)
def test_a_config_that_sets_what_nothing_reads(
    base: str, line: str, near: str, tmp_path: Path
) -> None:
    """Of a config file; the same name as an option is an error already."""
    name = line.split()[0]
    for lines in ([line], [line, 'identity = dict()']):  # or one that inherits from a run's copy
        own = own_config(tmp_path, base, *lines)
        with pytest.raises(UserError, match=rf'own\.py sets {name}, .* mean {near}\? \(Begin'):
            prepared(own)


@pytest.mark.parametrize(
    ('base', 'line', 'message'),
    [
        ('pretrain/r50_sd', 'compile = True', r'compile is True, .*set model\.compiled=True'),
        ('pretrain/r50_sd', 'train_cfg = dict(max_epochs=3)', 'leave it out; set epochs'),
        ('pretrain/r50_sd', 'find_unused_parameters = True', 'follows from algorithm.features'),
        (
            'downstream/knn_r50',
            'model = dict(pretrained="a")',
            r'model\.pretrained is a, .* set ba',
        ),
        (
            'downstream/deeplabv3_r50_voc12aug',
            'train_dataloader = dict(dataset=dict(datasets=[dict(data_root="/x")]))',
            r'train_dataloader\.dataset\.datasets\.0\.data_root is /x, .* set data_root',
        ),
        (
            'downstream/faster_rcnn_r50_voc07',
            'val_dataloader = dict(dataset=dict(metainfo=dict(classes=["a"])))',
            r'val_dataloader\.dataset\.metainfo is .* set classes',
        ),
        ('downstream/faster_rcnn_r50_voc07', 'task = "pose"', 'task is pose: it must be detection'),
        ('downstream/faster_rcnn_r50_voc07', 'task = ["x"]', r"task is \['x'\]: it must be det"),
    ],
)
def test_what_has_no_effect_in_a_config_file(
    base: str, line: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        prepared(own_config(tmp_path, base, line))


@pytest.mark.parametrize('base', ['pretrain/r50_sd', 'downstream/faster_rcnn_r50_voc07'])
def test_settings_of_mmengine_and_variables_are_no_mistakes(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They pass the check of names: what fails is that there are no images."""
    lines = 'from pathlib import Path', 'from math import sqrt', '_size = 3'
    lines += 'label = f"{_size}"', 'custom_hooks = []', 'experiment_name = "mine"'
    lines += 'custom_imports = dict(imports=["json"])', 'randomness = dict(seed=_size)'
    lines += 'sync_bn = "torch"', 'activation_checkpointing = ["student.layer1"]'
    if 'faster' in base:
        lines += 'find_unused_parameters = True', 'scale_range = (0.5, 2.0)'
    own = own_config(tmp_path, base, *lines)
    config = load_config(own)
    assert not {'_size', 'Path', 'sqrt'} & config.keys()
    assert (config.label, config.randomness.seed, config.custom_hooks) == ('3', 3, [])
    # The suite's own settings are not read from the working directory.
    (tmp_path / 'configs/pretrain').mkdir(parents=True)
    (tmp_path / 'configs/pretrain/r152_bl.py').write_text('no Python')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='data_root'):
        prepared(own)


def test_missing_config() -> None:
    with pytest.raises(UserError, match='No config'):
        load_config(Path('configs/nowhere.py'))
    with pytest.raises(UserError, match=r'did you mean configs/pretrain/r18_sd\.py\?'):
        load_config('configs/pretrain/r18_ds.py')


@pytest.mark.parametrize(
    'path',
    [
        'pretrain/r152_sd.py',
        'pretrain/cifar100/densenet190_sd_t2.py',
        'downstream/faster_rcnn_r152_voc07.py',
        'downstream/deeplabv3_r152_voc12aug.py',
    ],
)
def test_text_of_a_config_is_not_formatted_and_reads_back(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run writes it several times at its start and with each checkpoint."""
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', Mock(side_effect=AssertionError))
    config = load_config(f'configs/{path}')
    copy.deepcopy(config).dump(tmp_path / 'again.py')
    again = load_config(tmp_path / 'again.py')
    assert again.to_dict() == config.to_dict()
    assert again.filename == str(tmp_path / 'again.py')


def test_batch_is_shared_evenly() -> None:
    config = Config({'batch_size': 256, 'micro_batches': 1, 'randomness': {'seed': 0}})
    assert batch_per_process(config, 8) == 32
    said = '256 cannot be divided evenly among 3 processes: choose a multiple of 3'
    with pytest.raises(UserError, match=said):
        batch_per_process(config, 3)


@pytest.mark.parametrize(
    'option',
    [
        'load_from=epoch_3.pth',
        'resume=True',
        'batch_size=0',
        'batch_size=x',
        'micro_batches=0',
        'randomness.seed=None',
        'randomness.seed=-1',
        'data_seed=-1',
        'data_seed=x',
        'image_size=0',
        'image_size=32.5',
        'train_dataloader.num_workers=-1',
        'train_cfg.val_interval=0',
        'default_hooks.logger.interval=0',
        'keep_epochs=[0]',
        'algorithm.generations=5',
        'algorithm.rates=0.5',
        'algorithm.temperature=1e999',
        'algorithm.teacher_weight=1e999',
        'epochs=0',
        'randomness.seed=4294967296',
        'data_seed=4294967296',
        'optim_wrapper.optimizer.lr=-1',
        'optim_wrapper.optimizer.lr=1e999',
        'default_hooks.checkpoint.minutes=-1',
        'default_hooks.logger=None',
        'default_hooks.checkpoint=None',
        'model.network=None',
        'optim_wrapper.optimizer=None',
        'train_dataloader.sampler=None',
        'train_dataloader.dataset.crop_area=[1.0, 0.5]',
        'train_dataloader.dataset.crop_area=[0.5]',
        'algorithm.taught_after=1',
        "train_dataloader.dataset.crop_area=['a', 1]",
        "algorithm={'temprature': 3}",
    ],
)
def test_values_of_the_wrong_kind(option: str, image_folder: Path) -> None:
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=8', option]
    with pytest.raises(UserError, match=option.split('=')[0]):
        prepare(load_config(ROOT / 'configs/demo/r18_sd.py', options))


@pytest.mark.parametrize(
    ('key', 'value'), [('train_dataloader.dataset.crop_area', 0.5), ('micro_batches', True)]
)
def test_values_of_the_wrong_kind_in_a_config(key: str, value: object, image_folder: Path) -> None:
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=8']
    config = load_config(ROOT / 'configs/demo/r18_sd.py', options)
    config.merge_from_dict({key: value})
    with pytest.raises(UserError, match=f'{re.escape(key)} is {value}: '):
        prepare(config)


@pytest.mark.parametrize(
    ('key', 'value', 'instead'),
    [
        ('train_cfg.max_epochs', 3, 'epochs'),
        ('train_cfg.micro_batches', 2, 'micro_batches'),
        ('train_dataloader.batch_size', 32, 'batch_size'),
        ('val_dataloader.batch_size', 32, 'batch_size'),
        ('train_dataloader.dataset.size', 96, 'image_size'),
        ('val_dataloader.dataset.root', '/elsewhere', 'data_root'),
        ('param_scheduler', [{'type': 'StepLR'}], r'algorithm\.schedule'),
        ('model.loss', {'type': 'LabelSmoothLoss'}, r'algorithm\.teacher_weight'),
    ],
)
def test_what_the_suite_replaces_is_refused_in_a_config(
    key: str, value: object, instead: str, image_folder: Path
) -> None:
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=8']
    config = load_config(ROOT / 'configs/demo/r18_sd.py', options)
    config.merge_from_dict({key: value})
    with pytest.raises(UserError, match=f'{re.escape(key)} is .* no effect: .*set {instead}'):
        prepare(config)


def test_none_of_a_list_is_an_empty_one(image_folder: Path) -> None:
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=8']
    config = load_config(ROOT / 'configs/demo/r18_sd.py', [*options, 'keep_epochs=None'])
    assert prepare(config).keep_epochs == []


def test_a_misspelt_setting_in_a_config_is_named(image_folder: Path) -> None:
    config = load_config(ROOT / 'configs/demo/r18_sd.py', [f'data_root={image_folder}'])
    config.algorithm.temprature = 3.0
    with pytest.raises(UserError, match=r'no algorithm\.temprature: did you mean algorithm\.temp'):
        prepare(config)


def test_a_network_that_cannot_compute_the_images_is_found_before_training(
    image_folder: Path,
) -> None:
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'image_size=32']
    with pytest.raises(UserError, match='cannot train on 1 image of 32 x 32 pixels at a time'):
        prepare(load_config(ROOT / 'configs/demo/r18_sd.py', [*options, 'batch_size=1']))
    prepare(load_config(ROOT / 'configs/demo/r18_sd.py', [*options, 'batch_size=2']))


def test_a_constructor_of_optimizers_is_not_judged_without_the_network() -> None:
    """Nor the optimizer that it builds, as Muon's from groups of layers."""
    config = load_config(ROOT / 'configs/demo/r18_sd.py')
    config.optim_wrapper.update(constructor='OfItsLayers', paramwise_cfg=dict(decay_rate=0.9))
    config.optim_wrapper.optimizer = dict(type='OfGroups', lr=0.1)
    check_settings(config)


@pytest.mark.parametrize(
    ('option', 'fault'),
    [
        (
            'type=Adam',
            "Adam cannot be built with these settings .* argument 'momentum'.*_delete_=True",
        ),
        ('type=adam', 'adam cannot'),
        (
            'momentum=0',
            'SGD cannot be built with these settings .*Nesterov momentum requires a momentum',
        ),
        ('weight_decay=-1', 'SGD cannot be built with these settings .*Invalid weight_decay value'),
    ],
)
def test_settings_that_the_optimizer_does_not_take_are_found_before_training(
    option: str, fault: str, image_folder: Path
) -> None:
    options = [f'optim_wrapper.optimizer.{option}', f'data_root={image_folder}']
    options += ['model.network.num_classes=4']
    with pytest.raises(UserError, match=f'The optimizer {fault}'):
        prepare(load_config(ROOT / 'configs/demo/r18_sd.py', options))


@pytest.mark.parametrize(
    ('option', 'fault'),
    [
        ('epochs=ten', 'give a number, such as 90'),
        ('epochs=None', 'give a number'),
        ('epochs=True', 'give a number'),
        ('resume=1', 'give True or False'),
        ('model.data_preprocessor.mean=grey', 'give a list'),
        ('algorithm=SD', 'give a dict'),
        ('algorithm=None', 'give a dict'),
        ('visualizer.vis_backends.0=None', 'give a dict'),
        ('precision={}', 'give a string'),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_key(option: str, fault: str) -> None:
    with pytest.raises(UserError, match=f'{option}: {fault}'):
        load_config(R152['sd'], [option])


@pytest.mark.parametrize('text', ['{[1]: 2}', '1 +', '(', 'a b', '"', '\\', '[' * 500, '-x', ''])
def test_what_is_no_literal_is_a_string(text: str) -> None:
    assert literal(text) == text


def test_a_number_may_be_a_name() -> None:
    assert load_config(R152['sd'], ['data_root=2012', 'label=1e3']).data_root == '2012'
    assert load_config(R152['sd'], ['data_seed=1']).data_seed == 1


CONFIGS = {
    'a = (': 'SyntaxError',
    '1 / 0': 'ZeroDivisionError',
    "_base_ = 'nowhere.py'": 'nowhere.py',
    "model = dict(type='FasterRCNN')": 'has no stage: inherit from',
}


@pytest.mark.parametrize('text', CONFIGS)
def test_a_config_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(UserError, match=rf'mine\.py .*{CONFIGS[text]}'):
        load_config(tmp_path / 'mine.py')


def test_methods_differ_in_the_algorithm_alone() -> None:
    for name, configs in {
        'r152': R152,
        'demo': {m: ROOT / f'configs/demo/r18_{m}.py' for m in R152},
    }.items():
        loaded = {method: load_config(path).to_dict() for method, path in configs.items()}
        for method, config in loaded.items():
            assert config['algorithm'].keys() == loaded['sd']['algorithm'].keys()
            assert config['algorithm']['name'] == method.upper()
            differing = {k for k in config if config[k] != loaded['sd'][k]}
            assert differing <= {'algorithm', 'paper'}, name


DEFAULTS = dict(
    generations=1,
    teacher_weight=0.0,
    temperature=1.0,
    label_weight=None,
    symmetric=False,
    fresh_student=False,
    confidence_penalty=0.0,
    taught_after=0,
    copy_every=None,
    lag=None,
    decay=None,
    features={},
    schedule='cosine',
    rates=None,
)


TABLE_4 = {
    'r101': ('ResNet', 101, ('bl', 'se', 'sd')),
    'r152': ('ResNet', 152, ('bl', 'se', 'sd')),
    'ser101': ('SEResNet', 101, ('bl', 'sd')),
    'ser152': ('SEResNet', 152, ('sd',)),
}


@pytest.mark.parametrize('backbone', TABLE_4)
def test_rows_of_table_4_differ_in_network_and_algorithm_alone(backbone: str) -> None:
    kind, depth, rows = TABLE_4[backbone]
    files = {path.stem for path in R152['sd'].parent.glob(f'{backbone}_*.py')}
    assert files == {f'{backbone}_{row}' for row in rows}
    reference = load_config(R152['sd']).to_dict()
    for row in rows:
        config = load_config(R152['sd'].with_name(f'{backbone}_{row}.py')).to_dict()
        assert config['algorithm'] == load_config(R152[row]).algorithm
        assert config['model']['network'] == dict(type=kind, depth=depth, num_classes=1000)
        config['model']['network'] = reference['model']['network']
        differing = {key for key, value in config.items() if reference[key] != value}
        assert differing <= {'algorithm', 'paper'}
        errors = config['paper']['top1_error'], config['paper']['top5_error']
        assert [len(e) for e in errors] == [1 if row == 'bl' else 2] * 2


def test_other_depths_differ_in_depth_alone() -> None:
    for depth in (18, 34, 50):
        for row in ('bl', 'sd'):
            config = load_config(R152['sd'].with_name(f'r{depth}_{row}.py')).to_dict()
            reference = load_config(R152[row]).to_dict()
            assert config['model']['network'].pop('depth') == depth
            del reference['model']['network']['depth'], reference['paper'], config['paper']
            assert config == reference


def test_recipe_of_section_4_2() -> None:
    config = load_config(R152['sd'])
    assert config.epochs == 90
    assert config.algorithm == DEFAULTS | dict(
        name='SD', generations=2, teacher_weight=1.0, temperature=2.0
    )
    assert config.batch_size == 256
    assert config.image_size == 224
    assert config.train_dataloader.dataset == dict(type='ClassFolder', crop_area=(0.08, 1.0))
    assert config.model.network == dict(type='ResNet', depth=152, num_classes=1000)
    assert config.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True
    )


CIFAR = ROOT / 'configs/pretrain/cifar100'
ROWS = {
    'bl': dict(name='BL'),
    'se': dict(name='SE', generations=4),
    'sd_t2': dict(name='SD T=2', generations=4, teacher_weight=1.0, temperature=2.0),
    'sd_t3': dict(name='SD T=3', generations=4, teacher_weight=1.0, temperature=3.0),
}
BACKBONES = {
    'resnet20': dict(type='CifarResNet', depth=20),
    'resnet32': dict(type='CifarResNet', depth=32),
    'resnet56': dict(type='CifarResNet', depth=56),
    'resnet110': dict(type='CifarResNet', depth=110),
    'densenet100': dict(type='CifarDenseNet', depth=100),
    'densenet190': dict(type='CifarDenseNet', depth=190),
}


@pytest.mark.parametrize('row', ROWS)
@pytest.mark.parametrize('backbone', BACKBONES)
def test_rows_of_table_3(backbone: str, row: str) -> None:
    """Section 4.1; the rows of a backbone differ in algorithm and paper's numbers alone."""
    config = load_config(CIFAR / f'{backbone}_{row}.py')
    assert config.algorithm == DEFAULTS | ROWS[row]
    assert config.model.network == BACKBONES[backbone] | {'num_classes': 100}
    resnet = backbone.startswith('resnet')
    assert (config.epochs, config.batch_size) == ((164, 128) if resnet else (300, 64))
    assert config.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    assert len(config.paper.top1_error) == (1 if row == 'bl' else 4)
    assert config.paper.best <= config.paper.top1_error[-1]
    baseline = load_config(CIFAR / f'{backbone}_bl.py').to_dict()
    differing = {key for key, value in config.to_dict().items() if baseline.get(key) != value}
    assert differing <= {'algorithm', 'paper'}


@pytest.mark.parametrize('backbone', BACKBONES)
def test_generation_1_has_one_number_in_the_paper(backbone: str) -> None:
    first = {load_config(CIFAR / f'{backbone}_{row}.py').paper.top1_error[0] for row in ROWS}
    first.discard(load_config(CIFAR / f'{backbone}_bl.py').paper.top1_error[0])
    assert len(first) == 1


# Of the methods beside Table 3's, the key that each states besides `algorithm`: the other network
# that it needs.
OTHERS = dict.fromkeys(('symmetric', 'ban', 'tolerant', 'label_refinery'))
OTHERS |= dict.fromkeys(('lag1', 'lag10', 'lag_epoch', 'ema'))
OTHERS |= dict.fromkeys(('sd_linear', 'sd_one_cycle', 'sd_rates', 'sd_unequal'))
OTHERS |= dict.fromkeys(('kd', 'fitnet', 'fsp'), 'teacher')
OTHERS |= dict.fromkeys(('net2deeper', 'net2wider'), 'initial')
FIRST_NETWORKS = {'resnet14_bl', 'resnet20_narrow'}  # which Net2Net starts from


def test_other_methods_differ_in_the_algorithm_and_the_other_network_alone() -> None:
    baseline = load_config(CIFAR / 'resnet20_bl.py').to_dict()
    algorithms = {}
    for method, network in OTHERS.items():
        config = load_config(CIFAR / f'resnet20_{method}.py').to_dict()
        differing = {key for key, value in config.items() if baseline.get(key) != value}
        assert differing - {'paper'} == {'algorithm'} | ({network} if network else set()), method
        algorithms[method] = config['algorithm']
    for name in FIRST_NETWORKS:
        config = load_config(CIFAR / f'{name}.py').to_dict()
        differing = {key for key, value in config.items() if baseline.get(key) != value}
        assert differing - {'paper'} == {'model'}, name
    for one, other, keys in (
        (algorithms['symmetric'], DEFAULTS | ROWS['sd_t2'], {'name', 'symmetric'}),
        (algorithms['tolerant'], algorithms['ban'], {'name', 'confidence_penalty'}),
    ):
        assert {key for key in one if one[key] != other[key]} == keys


def test_every_row_is_listed() -> None:
    rows = {f'{backbone}_{row}' for backbone in BACKBONES for row in ROWS}
    others = {f'resnet20_{method}' for method in OTHERS}
    assert {path.stem for path in CIFAR.glob('*.py')} == rows | others | FIRST_NETWORKS


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('train_cfg.max_epochs=3', r'train_cfg\.max_epochs=3 would have no effect .* set epochs'),
        ('model.loss.temperature=9.0', r'loss\.temperature=9\.0 .* set algorithm\.teacher_weight'),
        ('model.loss.teacher_weight=0.0', r'set algorithm\.teacher_weight'),
        ('param_scheduler.eta_min=0.01', 'set algorithm.schedule'),
        ('train_dataloader.batch_size=7', 'set batch_size'),
        ('randomness.seed=5', 'with data_seed=0, .* add the option data_seed=5'),
    ],
)
def test_an_option_that_cannot_change_a_run_s_own_config_is_named(
    option: str, message: str, image_folder: Path, tmp_path: Path
) -> None:
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=8']
    prepare(load_config(ROOT / 'configs/pretrain/r50_sd.py', options)).dump(tmp_path / 'own.py')
    for allowed in (['epochs=4', 'randomness.seed=5', 'data_seed=5'], ['randomness.seed=0']):
        load_config(tmp_path / 'own.py', allowed)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / 'own.py', [option])
