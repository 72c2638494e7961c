"""Measure speed as ratios within one run; prints medians.

python tools/benchmark.py cifar [--config CONFIG] [--json FILE] [--cfg-options data_root=DIR ...]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS
from mmengine.runner import Runner

from pretrain.build import prepare
from pretrain.checkpoint import write_atomically
from pretrain.cli import run
from pretrain.config import load_config
from pretrain.record import read_record

CIFAR = Path(__file__).resolve().parent.parent / 'configs/pretrain/cifar100/resnet20_bl.py'
ROUNDS = 3  # the parts take turns, so that a slow spell of the machine hits all of them


def seconds(step: Callable[[], object], repeats: int) -> list[float]:
    """The time of each of ``repeats`` calls, the device's work included."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def row(name: str, value: float, unit: str, goal: float | None = None) -> dict:
    """A line of the report; a goal is an upper bound."""
    met = None if goal is None else value <= goal
    return {'name': name, 'value': value, 'unit': unit, 'goal': goal, 'met': met}


def bare_step(config: Config) -> Callable[[], object]:
    """The config's network and batch in plain PyTorch: forward, backward, SGD, nothing else."""
    device = get_device()
    network = MODELS.build(config.model.network).to(device, memory_format=torch.channels_last)
    options = {k: v for k, v in config.optim_wrapper.optimizer.items() if k != 'type'}
    optimizer = torch.optim.SGD(network.parameters(), **options)
    images = torch.randn(config.batch_size, 3, 32, 32, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(config.model.network.num_classes, (config.batch_size,), device=device)
    bf16 = config.model.bf16 and device != 'cpu'

    def step() -> None:
        with torch.autocast('cuda', torch.bfloat16, enabled=bf16):
            logits = network(images)
        loss = F.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def runner_seconds(config: Config, work_dir: str) -> float:
    """The median iteration of a run of the config, everything that a run does included."""
    config.work_dir = work_dir
    config.experiment_name = work_dir
    Runner.from_cfg(config).train()
    return read_record(Path(work_dir) / 'run.json')['generations'][0]['seconds_per_iter']


def batches(config: Config) -> Iterator[dict]:
    loader = Runner.build_dataloader(config.train_dataloader, seed=0)
    for epoch in range(1_000):
        loader.sampler.set_epoch(epoch)
        yield from loader


def cifar(config: Config) -> list[dict]:
    """A run of one epoch against the bare loop, and the share of the data path."""
    bare, ours, data = [], [], []
    step, loader = bare_step(config), batches(config)
    seconds(step, 3), seconds(lambda: next(loader), 3)  # warm up
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(ROUNDS):
            bare += seconds(step, 20)
            data += seconds(lambda: next(loader), 20)
            ours.append(runner_seconds(config, f'{scratch}/{turn}'))
    bare_s, ours_s, data_s = map(statistics.median, (bare, ours, data))
    iterations = -(-50_000 // config.batch_size)
    return [
        row('bare loop, step', 1000 * bare_s, 'ms'),
        row('run, step', 1000 * ours_s, 'ms'),
        row('run, epoch of 50,000 pictures', ours_s * iterations, 's'),
        row('run / bare loop', ours_s / bare_s, 'ratio', goal=1.10),
        row('data path', 1000 * data_s, 'ms'),
        row('data path / step', data_s / ours_s, 'ratio', goal=0.03),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('part', choices=['cifar'])
    parser.add_argument('--config', type=Path, default=CIFAR)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the rows there as well')
    parser.add_argument('--cfg-options', nargs='*', default=[], metavar='KEY=VALUE')
    args = parser.parse_args()
    short = ['epochs=1', 'train_dataloader.dataset.images=5000', 'log_level=WARNING']
    rows = cifar(prepare(load_config(args.config, [*args.cfg_options, *short])))
    print(f'{args.config.stem}, torch {torch.__version__}, {get_device()}')
    for line in rows:
        goal = (
            ''
            if line['goal'] is None
            else f'  goal {line["goal"]}, {"met" if line["met"] else "missed"}'
        )
        print(f'{line["name"]:32} {line["value"]:10.3f} {line["unit"]}{goal}')
    if args.json:
        write_atomically(args.json, (json.dumps(rows, indent=1) + '\n').encode())


if __name__ == '__main__':
    run(main)
