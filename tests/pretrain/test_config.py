from pathlib import Path

import pytest
from mmengine.config import Config

from pretrain.build import prepare
from pretrain.config import batch_per_process, load_config
from pretrain.errors import UserError
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
        ('batch_size', 'key=value'),
    ],
)
def test_option_that_is_not_there(option: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(R152['sd'], [option])


def test_missing_config() -> None:
    with pytest.raises(UserError, match='No config'):
        load_config(Path('configs/nowhere.py'))


def test_batch_is_shared_evenly() -> None:
    config = Config({'batch_size': 256, 'randomness': {'seed': 0}})
    assert batch_per_process(config, 8) == 32
    with pytest.raises(UserError, match='256 cannot be shared by 3'):
        batch_per_process(config, 3)


@pytest.mark.parametrize(
    'option', ['batch_size=0', 'batch_size=x', 'randomness.seed=None', 'algorithm.generations=5']
)
def test_values_of_the_wrong_kind(option: str, image_folder: Path) -> None:
    options = [f'data_root={image_folder}', 'model.network.num_classes=4', 'batch_size=8', option]
    with pytest.raises(UserError, match=option.split('=')[0]):
        prepare(load_config(ROOT / 'configs/demo/r18_sd.py', options))


def test_hash_is_of_the_settings_not_of_the_place() -> None:
    here = load_config(R152['sd'], ['data_root=/a']).config_sha256
    assert load_config(R152['sd'], ['data_root=/b']).config_sha256 == here
    assert load_config(R152['sd'], ['randomness.seed=1']).config_sha256 != here


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
            assert differing <= {'algorithm', 'paper', 'config_sha256'}, name
        assert len({sum(config['algorithm']['generations']) for config in loaded.values()}) == 1


def test_recipe_of_section_4_2() -> None:
    config = load_config(R152['sd'])
    assert config.algorithm == dict(
        name='SD', generations=[45, 45], teacher_weight=1.0, temperature=2.0
    )
    assert config.batch_size == 256
    assert config.image_size == 224
    assert config.model.network == dict(type='ResNet', depth=152, num_classes=1000)
    assert config.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
