"""The speed of pretraining, as ratios of times that one run of the benchmark measures."""

import copy
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, RUNNERS
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from pretrain.build import prepare
from pretrain.datasets.augmentation import draw_augmentation
from pretrain.datasets.image_folder import Checked
from pretrain.runs.checkpoint import install, write_atomically
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.precision import forbid_tf32
from pretrain.runs.saving import save
from pretrain.runs.tables import Table

GPU = torch.cuda.is_available()
# Steps between two synchronisations. A GPU runs behind Python, and a benchmark that waited after
# each step would hide the time that this saves; a CPU has no such queue.
STRETCH = 20 if GPU else 1


def row(
    name: str,
    value: float,
    unit: str = '',
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict:
    """A row of the report; with a limit, also its goal, such as '≤ 1.26', and whether it is met."""
    goal, met = None, None
    if at_most is not None:
        goal, met = f'≤ {at_most:g}', value <= at_most
    if at_least is not None:
        goal, met = f'≥ {at_least:g}', value >= at_least
    return {'name': name, 'value': value, 'unit': unit, 'goal': goal, 'met': met}


def show(rows: Iterable[dict]) -> Table:
    """A table of rows; those with a goal come first."""
    cells = []
    for line in sorted(rows, key=lambda line: line['goal'] is None):
        digits = '.4g' if line['value'] < 1000 else ',.0f'
        value = f'{line["value"]:{digits}} {line["unit"]}'.rstrip()
        goal = line['goal'] or ''
        verdict = goal and ('met' if line['met'] else 'missed')
        cells.append([line['name'], value, goal, verdict])
    return Table(['', 'measured', 'goal', ''], cells)


def read_rows(path: Path) -> list[dict]:
    """The rows in a JSON file of :func:`report`.

    Raises:
        UserError: if the file holds none.
    """
    try:
        content = json.loads(path.read_bytes())
        rows = content if isinstance(content, list) else content['rows']
        str(show(rows))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path} holds no rows of tools/benchmark.py: give a file that its --json wrote.'
        ) from error
    return rows


def report(rows: Sequence[dict], path: Path | None) -> None:
    """Print rows and the machine on which they were measured; write both to ``path`` as JSON."""
    device = torch.cuda.get_device_name() if GPU else 'no GPU'
    machine = {'torch': torch.__version__, 'device': device, 'cores': os.cpu_count()}
    print(', '.join(f'{key} {value}' for key, value in machine.items()), show(rows), sep='\n\n')
    if path:
        write_atomically(path, (json.dumps(machine | {'rows': rows}, indent=1) + '\n').encode())


def report_all(commands: Iterable[Sequence[str]], minutes: float, path: Path) -> None:
    """Run benchmarks one after the other, each in its own process, and collect all rows in a file.

    The file is written after each benchmark. A failure does not stop the other benchmarks.

    Args:
        commands: a command line per benchmark, without ``--json FILE``, the most important first.
        minutes: the time limit for all of them; the benchmark that exceeds it is killed, and the
            later ones give no rows.
        path: the JSON file, which is replaced.

    Raises:
        UserError: at the end, if a benchmark failed or exceeded the time limit.
    """
    end, rows, missing = time.monotonic() + 60 * minutes, [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number, command in enumerate(commands):
            part = Path(scratch) / f'{number}.json'
            with suppress(subprocess.TimeoutExpired):
                left = max(0, end - time.monotonic())
                subprocess.run([*command, '--json', str(part)], timeout=left, check=False)
            if part.exists():
                rows += read_rows(part)
                report(rows, path)
            else:
                missing.append(' '.join(command[2:]))
    if missing:
        raise UserError(
            f'Failed or out of time: {"; ".join(missing)}. Read their output above, or raise '
            '--minutes.'
        )


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if GPU:
        torch.cuda.synchronize()


def seconds(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds per call of each step in ``rounds`` rounds, after one to warm up. The
    steps take turns of ``STRETCH`` calls, so that a slow phase of the machine affects all."""
    times = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(STRETCH):
                step()
            synchronize()
            if turn:
                times[name].append((time.perf_counter() - start) / STRETCH)
    return {name: statistics.median(values) for name, values in times.items()}


def median_of_turns(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Call ``measure`` three times; return the median of each of its values."""
    turns = [measure() for _ in range(3)]
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def fitting_batch(wanted: int, pixels: int, least: int = 1) -> int:
    """``wanted``, or the largest power of two below it that ResNet-152 can train on here: up to 4
    images of 224 x 224 per GiB of GPU memory, or 8 on a CPU, scaled to images of ``pixels`` pixels.
    It is at least ``least``, which the network needs."""
    room = 4 * torch.cuda.get_device_properties(0).total_memory / 2**30 if GPU else 8
    fitting = 2 ** int(math.log2(max(1, room * 224**2 / pixels)))
    return min(wanted, max(least, fitting))


@DATASETS.register_module()
class OneBatch(Dataset):
    """Returns the same random batch at each iteration, already on the device, so that loading costs
    nothing. ``root`` is the number of classes. With a ``size`` in pixels, the batch also has the
    augmentation that the device applies."""

    def __init__(self, root: str, split: str, seed: int, size: int | None = None, skip: Any = ()):
        self.classes, self.size = int(root), size
        self.metainfo: dict = {}
        self.batch: dict[str, Tensor] = {}

    @staticmethod
    def check(root: Path, *rules: object) -> Checked:
        return Checked(int(root.name), [], dict)

    def __len__(self) -> int:
        return 2**14

    def __getitems__(self, positions: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        if not self.batch:
            shape = len(positions), 3, self.size or 32, self.size or 32
            images = torch.randint(256, shape, dtype=torch.uint8)
            labels = torch.randint(self.classes, shape[:1])
            self.batch = {'inputs': images, 'data_samples': labels}
            if self.size:
                draws = [draw_augmentation() for _ in positions]
                self.batch['augmentation'] = torch.stack(draws)
            self.batch = {key: value.to(get_device()) for key, value in self.batch.items()}
        return dict(self.batch)

    def file_list(self) -> list[str]:
        return []


def without_data(path: str | Path, options: Sequence[str]) -> Config:
    """Prepare a pretraining config and torch as for a run, but with one random batch as the data.
    Unless ``options`` set ``batch_size``, the batch is reduced to fit this machine."""
    config = load_config(path, options)
    if not any(option.startswith('batch_size=') for option in options):
        config.batch_size = fitting_batch(config.batch_size, config.get('image_size', 32) ** 2)
    config.data_root = str(config.model.network.num_classes)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.num_workers = 0
        loader.collate_fn = dict(type='whole_batch')
        loader.dataset = dict(type='OneBatch')
    # As a run sets them.
    forbid_tf32()
    torch.backends.cudnn.benchmark = config.env_cfg.cudnn_benchmark
    return prepare(config)


def bl_and_sd(path: str | Path, options: Sequence[str]) -> tuple[Config, Config]:
    """The config ``path`` as BL and as SD, :func:`without_data`; UserError if it has no teacher."""
    distilled = without_data(path, options)
    if not distilled.algorithm.teacher_weight > 0:
        raise UserError(f'{path} has no teacher: give the config of an SD run.')
    return without_data(path, [*options, 'algorithm.teacher_weight=0.0']), distilled


def batch_of(config: Config) -> dict[str, Tensor]:
    """The batch of a config :func:`without_data`, leaving out its augmentation."""
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    return {key: batch[key] for key in ('inputs', 'data_samples')}


def bare_step(
    network: nn.Module,
    config: Config,
    memory_format: torch.memory_format = torch.channels_last,
    amp: torch.dtype = torch.bfloat16,
) -> Callable[[], object]:
    """A training step in plain PyTorch on a config :func:`without_data`: forward, backward, SGD,
    nothing else. If the config has bf16, a GPU computes in ``amp``."""
    device = get_device()
    network = network.to(device, memory_format=memory_format)
    options = {key: v for key, v in config.optim_wrapper.optimizer.items() if key != 'type'}
    optimizer = torch.optim.SGD(network.parameters(), **options)
    images, labels = batch_of(config).values()
    images = images.float().sub_(127.0).div_(64.0).contiguous(memory_format=memory_format)
    amp = amp if GPU else torch.bfloat16
    scaler = torch.amp.GradScaler(device, enabled=amp == torch.float16)

    def step() -> None:
        with torch.autocast(device, amp, enabled=config.precision == 'bf16'):
            loss = F.cross_entropy(network(images).float(), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def without_graph(config: Config) -> Config:
    """A copy of a prepared config that uses no CUDA graph: a graph computes in memory that it keeps
    and dispatches no operators."""
    config = copy.deepcopy(config)
    config.model.graph_batch = 0
    return config


def our_step(config: Config, teaching: bool) -> Callable[[], object]:
    """A training step of the suite without micro-batches, on a config :func:`without_data`."""
    model = MODELS.build(config.model).to(get_device()).train()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    batch = batch_of(config)
    model.teaching = teaching
    return lambda: model.train_step(batch, wrapper)


def peak_megabytes(step: Callable[[], object]) -> float:
    """The peak GPU memory of a step in MB (10^6 bytes), after cuDNN has chosen its algorithms."""
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() / 1e6


def step_rows(path: str | Path, options: Sequence[str], rounds: int) -> list[dict]:
    """Compare a step of SD with its teacher, a step of BL and the bare loop."""
    baseline, distilled = bl_and_sd(path, options)
    title = f'{Path(path).stem}, batch {distilled.batch_size}'
    rows = []
    if GPU:
        bl, sd = (
            peak_megabytes(our_step(without_graph(config), teaching=config is distilled))
            for config in (baseline, distilled)
        )
        weights = sum(w.nbytes for w in MODELS.build(distilled.model).teacher.buffers()) / 1e6
        rows += [row(f'{title}: BL, memory', bl, 'MB'), row(f'{title}: SD, memory', sd, 'MB')]
        extra = (sd - bl) / (2.2 * weights + 0.05 * bl)
        rows.append(row(f'{title}: extra memory of SD / allowed', extra, at_most=1.0))
    bare = title
    if distilled.model.graph_batch:
        title += ', CUDA graphs'  # but not in the bare loop
    steps = {
        'BL': our_step(baseline, teaching=False),
        'SD': our_step(distilled, teaching=True),
        'bare loop': bare_step(MODELS.build(distilled.model.network), distilled),
    }
    if distilled.precision == 'bf16':
        wide, _ = bl_and_sd(path, [*options, 'precision=float32'])
        steps['BL in float32'] = our_step(wide, teaching=False)
    median = seconds(steps, rounds)
    if 'BL in float32' in median:
        goal = None if GPU else {18: 0.62, 20: 0.68}.get(distilled.model.network.get('depth'))
        gain = median['BL'] / median['BL in float32']
        rows.append(row(f'{title}: BL step / BL step in float32', gain, at_most=goal))
    rate = distilled.batch_size / median['BL']
    whole = GPU and distilled.model.network == dict(type='ResNet', depth=152, num_classes=1000)
    ratio = median['SD'] / median['BL']
    return [
        *rows,
        *(
            row(f'{bare if name == "bare loop" else title}: {name}, per step', 1000 * value, 'ms')
            for name, value in median.items()
        ),
        row(f'{title}: BL', rate, 'images/s', at_least=1900.0 if whole else None),
        row(f'{title}: SD step / BL step', ratio, at_most=1.22 if GPU else 1.26),
        row(f'{title}: BL step / bare loop', median['BL'] / median['bare loop']),
    ]


class Enough(Exception):  # noqa: N818 - no error
    """Ends a run that has been measured."""


class Until(Hook):
    """Ends a run when ``enough``, called after each iteration, returns True."""

    priority = 'LOWEST'

    def __init__(self, enough: Callable[[Runner], bool]) -> None:
        self.enough = enough

    def after_train_iter(self, runner: Runner, **_: object) -> None:
        if self.enough(runner):
            raise Enough


def run_until(config: Config, enough: Callable[[Runner], bool]) -> None:
    """Run a prepared config in a temporary folder until ``enough`` (see :class:`Until`)."""
    config = copy.deepcopy(config)
    config.log_level = 'WARNING'
    config.optim_wrapper.optimizer.lr = 0.0  # the loss on random images stays finite
    with tempfile.TemporaryDirectory() as scratch:
        config.work_dir = config.experiment_name = scratch
        install()
        runner = RUNNERS.build(config)
        runner.register_hook(Until(enough))
        with suppress(Enough):
            runner.train()


def run_seconds(config: Config, rounds: int) -> float:
    """The seconds per iteration of a run of the config, including everything between iterations:
    the median of ``rounds`` stretches, after one to warm up."""
    ticks: list[float] = []

    def enough(runner: Runner) -> bool:
        if (runner.iter + 1) % STRETCH == 0:
            synchronize()
            ticks.append(time.perf_counter())
        return len(ticks) > rounds

    run_until(config, enough)
    return statistics.median(b - a for a, b in pairwise(ticks)) / STRETCH


def saving_rows(path: str | Path, options: Sequence[str], rounds: int) -> list[dict]:
    """The time to write a checkpoint, flush it to disk and read it back, while all processes wait,
    and its share of the time between two checkpoints."""
    config = without_data(path, [*options, 'batch_size=2'])
    spent, sizes = [], []

    def enough(runner: Runner) -> bool:
        synchronize()
        start = time.perf_counter()
        file = save(runner, 'epoch_0_iter_1.pth', dict(epoch=0, iter=1))
        spent.append(time.perf_counter() - start)
        sizes.append(file.stat().st_size / 1e6)
        return len(spent) == rounds

    run_until(config, enough)
    title, median = f'{Path(path).stem}: checkpoint', statistics.median(spent)
    share = median / (60 * config.default_hooks.checkpoint.minutes)
    return [
        row(f'{title}, size', sizes[-1], 'MB'),
        row(f'{title}, saving and verifying', median, 's'),
        row(f'{title}, share of the time between two checkpoints', share, at_most=0.01),
    ]


def write_images(root: Path, classes: int, count: int) -> None:
    """Create ``root``, an ImageNet-style folder with at least ``count`` training images of 500 x
    375 pixels, which are hard links to 32 files."""
    root.mkdir()
    for number in range(32):
        noise = Image.effect_noise((63, 47), 80).resize((500, 375)).convert('RGB')
        noise.save(root / f'{number}.jpg', quality=92)
    for label in range(classes):
        for split, images in (('train', -(-count // classes)), ('val', 1)):
            folder = root / split / f'{label:04}'
            folder.mkdir(parents=True)
            for number in range(images):
                os.link(root / f'{(label + number) % 32}.jpg', folder / f'{number}.jpg')


def runner_rows(path: str | Path, options: Sequence[str], rounds: int) -> list[dict]:
    """Compare a run with the bare loop and, if it has no loader workers, with its data path. Needs
    CIFAR-100 in ``data_root``; generates images in place of ImageNet."""
    alone = without_data(path, options)
    if alone.algorithm.teacher_weight > 0:
        raise UserError(
            f'{path} has a teacher, which a run may lack in the iterations that are measured: give '
            'the config of a baseline, and measure the teacher with tools/benchmark.py step.'
        )
    title = f'{Path(path).stem}, batch {alone.batch_size}'
    options = [*options, f'batch_size={alone.batch_size}']
    steps = {'bare loop': bare_step(MODELS.build(alone.model.network), alone)}
    with tempfile.TemporaryDirectory() as scratch:
        if 'image_size' in alone:
            root, classes = Path(scratch) / 'images', alone.model.network.num_classes
            write_images(root, classes, (rounds + 1) * STRETCH * alone.batch_size)
            options.append(f'data_root={root}')
        config = prepare(load_config(path, options))
        if config.train_dataloader.num_workers == 0:
            loader = Runner.build_dataloader(config.train_dataloader, seed=0)
            batches = chain.from_iterable(repeat(loader))
            steps['data path'] = lambda: next(batches)
        runs = {'run': without_graph(config)}
        if config.model.graph_batch:
            runs['run with CUDA graphs'] = config
        median = median_of_turns(
            lambda: (
                seconds(steps, rounds)
                | {name: run_seconds(run, rounds) for name, run in runs.items()}
            )
        )
    run = median['run']
    goal = 1.02 if config.model.network.get('depth') == 152 else 1.10
    rows = [row(f'{title}: {name}', 1000 * value, 'ms') for name, value in median.items()]
    rows += [row(f'{title}: {name}', config.batch_size / median[name], 'images/s') for name in runs]
    rows.append(row(f'{title}: run / bare loop', run / median['bare loop'], at_most=goal))
    if 'data path' in median:
        rows.append(row(f'{title}: data path / run', median['data path'] / run, at_most=0.03))
    return rows
