"""The k-NN probe against a slow reference, and as a run like any other."""

import math
from argparse import Namespace
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torchvision
from mmengine.registry import RUNNERS
from torch import nn

from downstream.build import prepare
from downstream.probe import ProbeRunner, knn_accuracy
from downstream.studies.report_page import write_report
from downstream.studies.tables import TASKS
from downstream.studies.transfer import Transfer
from pretrain.datasets.image_folder import ClassFolder
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.launch import Launcher
from pretrain.runs.record import read_record
from pretrain.runs.resume import choose_start
from pretrain.runs.tables import find_records
from tests.downstream.conftest import write_backbone

CONFIG = Path('configs/small/knn_r18.py')


def slow_knn(bank, bank_labels, queries, labels, neighbours, temperature) -> float:
    """The weighted vote in float64, one pair at a time."""

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))

    right = 0
    for query, label in zip(queries.double().tolist(), labels.tolist(), strict=True):
        similarities = [cosine(query, other) for other in bank.double().tolist()]
        nearest = sorted(range(len(bank)), key=lambda i: -similarities[i])[:neighbours]
        votes = defaultdict(float)
        for index in nearest:
            votes[int(bank_labels[index])] += math.exp(similarities[index] / temperature)
        right += max(votes, key=votes.get) == label
    return 100 * right / len(labels)


@pytest.mark.parametrize(
    ('neighbours', 'temperature'), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (500, 0.2)]
)
def test_vote_is_the_slow_one(
    neighbours: int, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('downstream.probe.CHUNK', 16)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 8, generator=generator)
    bank_labels, labels = (torch.randint(0, 5, (n,), generator=generator) for n in (60, 40))
    bank, queries = (
        centres[of] + 1.3 * torch.randn(len(of), 8, generator=generator)
        for of in (bank_labels, labels)
    )
    ours = knn_accuracy(bank, bank_labels, queries, labels, neighbours, temperature)
    assert ours == slow_knn(bank, bank_labels, queries, labels, neighbours, temperature)
    assert 25 < ours < 95


def test_neighbours_and_temperature_matter() -> None:
    """Two distant neighbours of one class outvote a near one of another, unless T is small."""
    bank = torch.tensor([[1.0, 0.1], [1.0, 0.9], [0.9, 1.0]])
    votes = [
        knn_accuracy(
            bank, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]), k, t
        )
        for k, t in ((1, 1.0), (3, 1.0), (3, 0.07), (3, 1e-5))
    ]
    assert votes == [100.0, 0.0, 100.0, 100.0]


@pytest.fixture
def run(image_folder: Path, tmp_path: Path):
    """``run(backbone_file, 'key=value', ...)``: the ProbeRunner of a finished run."""

    def start(file: str, *options: str, launcher: str = 'none') -> ProbeRunner:
        settings = [f'data_root={image_folder}', 'image_size=32', f'backbone_file={file}']
        config = prepare(load_config(CONFIG, [*settings, 'precision=float32', *options]))
        config.update(work_dir=str(tmp_path / 'run'), launcher=launcher)
        runner = RUNNERS.build(config)
        runner.train()
        return runner

    return start


@pytest.mark.parametrize('order', ['RGB', 'BGR'])
def test_features_are_those_of_torchvision(
    order: str, run, image_folder: Path, tmp_path: Path
) -> None:
    file = write_backbone(tmp_path / 'backbone.pth', channel_order=order)
    swap = order == 'RGB'
    runner = run(file, f'model.data_preprocessor.bgr_to_rgb={swap}')
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    network.load_state_dict(torch.load(file, weights_only=True))
    dataset = ClassFolder(str(image_folder), 'val', 0, 32)
    pixels = torch.stack([dataset[0, i]['inputs'] for i in range(len(dataset))]).float()
    pixels = pixels if swap else pixels.flip(1)
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    inputs = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    maps = []
    network.layer4.register_forward_hook(lambda *given: maps.append(given[-1].double()))
    with torch.inference_mode():
        expected = network.eval()(inputs)
    features, scale = runner._features(dataset)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    values = maps[0].flatten()
    assert scale['rms'] == pytest.approx(values.square().mean().sqrt().item(), rel=1e-4)
    assert scale['positive_share'] == pytest.approx((values > 0).double().mean().item(), rel=1e-3)


def test_record_is_like_any_other(run, backbone_file: str, tmp_path: Path) -> None:
    run(backbone_file)
    first = read_record(tmp_path / 'run/run.json')
    assert first['data']['train']['count'] == 32
    assert first['data']['val']['count'] == 12
    assert first['identity']['backbone']['depth'] == 18
    assert find_records(tmp_path, TASKS) == [first]
    accuracy = first['generations'][-1]['last']['top1_accuracy']
    assert 0 <= accuracy <= 100
    assert first['features']['rms'] > 0
    assert 0 < first['features']['positive_share'] <= 1
    run(backbone_file, 'loader.batch_size=5')  # does not change the result
    again = read_record(tmp_path / 'run/run.json')
    assert again['generations'] == first['generations']
    assert again['features'] == pytest.approx(first['features'], rel=1e-5)  # as float32 is rounded
    assert again['identity'] == first['identity']
    write_report([tmp_path], tmp_path / 'report.html')
    assert f'{accuracy:.2f}' in (tmp_path / 'report.html').read_text()


def test_a_finished_probe_is_left_alone(run, backbone_file: str) -> None:
    config = run(backbone_file).config
    arguments = Namespace(resume=True, start_from=None, accept_change=[])
    assert not choose_start(config, arguments)
    config.identity.neighbours = 7
    with pytest.raises(UserError, match='a finished run with other settings: it has neighbours=20'):
        choose_start(config, arguments)


def test_only_the_first_process_probes(
    run, backbone_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('RANK', '1')
    run(backbone_file, launcher='pytorch')
    assert not (tmp_path / 'run/run.json').exists()
    run(backbone_file)  # alone, in a shell where another program left the variable
    assert (tmp_path / 'run/run.json').exists()


def test_the_number_of_processes_does_not_matter(backbone_file: str, image_folder: Path) -> None:
    config = load_config(CONFIG, [f'data_root={image_folder}', f'backbone_file={backbone_file}'])
    assert prepare(config, world_size=4).identity == prepare(config).identity


def test_what_cannot_be_probed_is_one_sentence(backbone_file: str, image_folder: Path) -> None:
    options = [f'backbone_file={backbone_file}']
    with pytest.raises(UserError, match=r'No folder .*tiny-imagenet-100/train'):
        prepare(load_config(CONFIG, [*options, 'data_root=/none/tiny-imagenet-100']))
    options.append(f'data_root={image_folder}')
    for key in ('neighbours', 'image_size', 'loader.batch_size'):
        with pytest.raises(UserError, match=f'{key} is 0: it must be a whole number of at least 1'):
            prepare(load_config(CONFIG, [*options, f'{key}=0']))
    with pytest.raises(UserError, match=r'loader\.num_workers is -1'):
        prepare(load_config(CONFIG, [*options, 'loader.num_workers=-1']))
    for temperature in ('0.0', '-0.07', '1e999'):
        with pytest.raises(UserError, match=r'temperature is .*: it must be a number above 0'):
            prepare(load_config(CONFIG, [*options, f'temperature={temperature}']))
    with pytest.raises(UserError, match='depth 18, the config has 50'):
        prepare(load_config('configs/downstream/knn_r50.py', options))
    with pytest.raises(UserError, match='channel_order RGB, the config has BGR'):
        prepare(load_config(CONFIG, [*options, 'model.data_preprocessor.bgr_to_rgb=False']))


def test_probe_has_its_rows_in_the_transfer_table(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each backbone has one run, however many seeds are given: a probe is deterministic."""
    launched = []

    def launch(_: Launcher, run) -> None:
        launched.append(run.work_dir)
        config = prepare(load_config(run.config, run.options))
        config.work_dir = str(run.work_dir)
        RUNNERS.build(config).train()

    monkeypatch.setattr(Launcher, '_launch', launch)
    files = {}
    for label, mean in (('BL', 123.675), ('SD', 100.0)):
        add = {'bn1.bias': torch.full((64,), len(label) * mean / 100)}
        facts = dict(seed=0, mean=[mean, 116.28, 103.53], std=[58.395, 57.12, 57.375])
        files[label] = [Path(write_backbone(tmp_path / f'{label}.pth', add=add, **facts))]
    study = Transfer(
        backbones=files,
        configs=[CONFIG],
        seeds=[0, 1, 2],
        work_dir=tmp_path / 'study',
        downstream_options=[f'data_root={image_folder}', 'image_size=32', 'precision=float32'],
    )
    table = str(study.run())
    assert len(launched) == 2
    lines = [line for line in table.splitlines() if line.startswith('| probe top1_accuracy')]
    assert [line.split('|')[2].strip() for line in lines] == ['BL', 'SD']
    assert all(' 1 × 1 ' in line for line in lines)
    assert 'knn_r18: ResNet-18, 32 training and 12 test images, no training, in float32 on' in table
    assert str(study.run()) == table
    assert len(launched) == 2


def test_the_test_images_are_classified_by_the_training_images(
    run, backbone_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr('downstream.probe.knn_accuracy', lambda *a: calls.append(a) or 0.0)
    config = run(backbone_file, 'neighbours=7').config
    ((*images, neighbours, temperature),) = calls
    assert [len(part) for part in images] == [32, 32, 12, 12]
    assert (neighbours, temperature) == (7, config.temperature)
