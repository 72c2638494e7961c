"""Measure speed as ratios within one run; prints medians.

python tools/benchmark.py step   [CONFIG] [--cfg-options batch_size=8 ...]   # training steps
python tools/benchmark.py runner [CONFIG] [--cfg-options batch_size=8 ...]   # a whole run's loop
python tools/benchmark.py finetune CONFIG --cfg-options backbone_file=FILE   # of mmdet or mmseg
python tools/benchmark.py loader PICTURES                                    # the data path
python tools/benchmark.py show FILE [FILE ...]                               # what --json wrote
"""

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import chain, pairwise, repeat
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from downstream.builtin import write_imagenet_folder, write_vocdevkit
from pretrain.build import LOSS_SETTINGS, prepare
from pretrain.classifier import SnapshotClassifier
from pretrain.datasets.augmentation import AugmentingPreprocessor, draw_augmentation
from pretrain.datasets.decode import Picture, random_box
from pretrain.datasets.shrink import shrink_picture
from pretrain.runs.checkpoint import install, write_atomically
from pretrain.runs.cli import run
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.report import markdown

R152 = Path(__file__).resolve().parent.parent / 'configs/pretrain/r152_sd.py'
SIZE, AREA = 224, (0.08, 1.0)  # of Section 4.2


def row(
    name: str,
    value: float,
    unit: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict:
    """A line of the report, with its goal if it has one."""
    met = None
    if at_most is not None:
        met = value <= at_most
    if at_least is not None:
        met = value >= at_least
    goal = at_most if at_least is None else at_least
    return {'name': name, 'value': value, 'unit': unit, 'goal': goal, 'met': met}


def seconds(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median time of each step. They take turns, so that a slow spell hits all of them."""
    times = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


# ------------------------------------------------------------------------------- training steps


def bare_step(
    network: nn.Module, config: Config, memory_format: torch.memory_format, amp: torch.dtype
) -> Callable[[], object]:
    """A network and the config's batch in plain PyTorch: forward, backward, SGD, nothing else."""
    device = get_device()
    network = network.to(device, memory_format=memory_format)
    options = {key: v for key, v in config.optim_wrapper.optimizer.items() if key != 'type'}
    optimizer = torch.optim.SGD(network.parameters(), **options)
    images, labels = synthetic(config)
    images = images.float().sub_(127.0).div_(64.0).contiguous(memory_format=memory_format)
    on_gpu = device != 'cpu'
    scaler = torch.amp.GradScaler(device, enabled=on_gpu and amp == torch.float16)

    def step() -> None:
        with torch.autocast('cuda', amp, enabled=on_gpu):
            loss = F.cross_entropy(network(images).float(), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def synthetic(config: Config) -> tuple[Tensor, Tensor]:
    """A batch on the device: uint8 images (N, 3, H, W) and classes (N,)."""
    generator = torch.Generator().manual_seed(0)
    size = config.get('image_size', 32)
    images = torch.randint(256, (config.batch_size, 3, size, size), generator=generator)
    classes = config.model.network.num_classes
    labels = torch.randint(classes, (config.batch_size,), generator=generator)
    return images.byte().to(get_device()), labels.to(get_device())


def our_step(config: Config, teaching: bool) -> tuple[SnapshotClassifier, Callable[[], object]]:
    """An iteration of the suite's, as the Runner calls it."""
    model = MODELS.build(config.model).to(get_device()).train()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    images, labels = synthetic(config)
    model.teaching = teaching
    return model, lambda: model.train_step({'inputs': images, 'data_samples': labels}, wrapper)


def peak_megabytes(config: Config, teaching: bool) -> float:
    """What three iterations need at most on a GPU."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _, step = our_step(config, teaching)
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated() / 1e6


def reference_steps(config: Config) -> dict[str, Callable[[], object]]:
    """The training loops of torchvision's references and of timm, where it is installed."""
    depth, classes = config.model.network.depth, config.model.network.num_classes
    network = torchvision.models.get_model(f'resnet{depth}', num_classes=classes)
    steps = {'torchvision': bare_step(network, config, torch.contiguous_format, torch.float16)}
    if find_spec('timm'):
        import timm

        network = timm.create_model(f'resnet{depth}', num_classes=classes)
        steps['timm'] = bare_step(network, config, torch.channels_last, torch.float16)
    return steps


def step_rows(config: Config, rounds: int) -> list[dict]:
    """BL against SD in generation 2, bare loops and the loops of other projects."""
    gpu = torch.cuda.is_available()
    baseline, distilled = copy.deepcopy(config), config
    baseline.model.loss.teacher_weight = 0.0
    if gpu:
        peaks = [peak_megabytes(c, t) for c, t in ((baseline, False), (distilled, True))]
    _, bl = our_step(baseline, teaching=False)
    student, sd = our_step(distilled, teaching=True)
    images, _ = synthetic(config)
    inputs = student.data_preprocessor({'inputs': images})['inputs']
    inputs = inputs.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def unfolded() -> None:
        student._compute(student.teacher, inputs)

    network = MODELS.build(config.model.network)
    steps = {
        'BL': bl,
        'SD': sd,
        'teacher': lambda: student.teach(inputs),
        'teacher, not folded': unfolded,
        'bare loop': bare_step(network, config, torch.channels_last, torch.bfloat16),
    }
    if config.model.network.type == 'ResNet':
        steps |= reference_steps(config)
    median = seconds(steps, rounds)
    rows = [row(f'{name}: step', 1000 * value, 'ms') for name, value in median.items()]
    images_per_second = config.batch_size / median['BL']
    wanted = gpu and config.model.network == dict(type='ResNet', depth=152, num_classes=1000)
    rows.append(row('BL', images_per_second, 'images/s', at_least=1900.0 if wanted else None))
    rows.append(
        row('SD step / BL step', median['SD'] / median['BL'], '', at_most=1.22 if gpu else 1.26)
    )
    for teacher in ('teacher', 'teacher, not folded'):
        rows.append(row(f'{teacher} / BL step', median[teacher] / median['BL'], ''))
    rows.append(row('BL step / bare loop', median['BL'] / median['bare loop'], ''))
    others = [median[name] for name in ('torchvision', 'timm') if name in median]
    if others:
        best = min(others)
        rows.append(row('BL step / best other loop', median['BL'] / best, '', at_most=1.0))
    if gpu:
        weights = sum(b.numel() * b.element_size() for b in student.teacher.buffers()) / 1e6
        extra = (peaks[1] - peaks[0]) / (2.2 * weights + 0.05 * peaks[0])
        rows += [
            row('BL: peak memory', peaks[0], 'MB'),
            row('SD: peak memory', peaks[1], 'MB'),
            row('extra memory of SD / allowed', extra, '', at_most=1.0),
        ]
    return rows


# --------------------------------------------------------------------------------- a run's loop


class Stopwatch(Hook):
    """Times the iterations of a run, everything between two of them included."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def after_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        self.ticks.append(time.perf_counter())


def run_seconds(config: Config, work_dir: str) -> float:
    """The median iteration of a run of the config but the first, which warms up."""
    config.work_dir = config.experiment_name = work_dir
    install()
    runner = RUNNERS.build(config)
    watch = Stopwatch()
    runner.register_hook(watch, priority='LOWEST')
    runner.train()
    return statistics.median(b - a for a, b in pairwise(watch.ticks))


def runner_rows(config: Config, rounds: int) -> list[dict]:
    """A run of one epoch against the bare loop and, without workers, the share of the data path."""
    network = MODELS.build(config.model.network)
    steps = {'bare loop': bare_step(network, config, torch.channels_last, torch.bfloat16)}
    on_device = config.train_dataloader.num_workers == 0
    if on_device:
        loader = Runner.build_dataloader(config.train_dataloader, seed=0)
        loader.sampler.set_epoch(0)
        batches = chain.from_iterable(repeat(loader))
        steps['data path'] = lambda: next(batches)
    # A run and the loop take turns.
    runs, others = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(3):
            others.append(seconds(steps, rounds))
            runs.append(run_seconds(config, f'{scratch}/{turn}'))
    ours = statistics.median(runs)
    median = {name: statistics.median(turn[name] for turn in others) for name in steps}
    bare = median['bare loop']
    goal = 1.02 if config.model.network.depth == 152 else 1.10
    name = Path(config.filename).stem
    rows = [
        row(f'{name}: bare loop', 1000 * bare, 'ms'),
        row(f'{name}: run', 1000 * ours, 'ms'),
        row(f'{name}: run', config.batch_size / ours, 'images/s'),
        row(f'{name}: run / bare loop', ours / bare, '', at_most=goal),
    ]
    if on_device:
        path = median['data path']
        rows += [
            row(f'{name}: data path', 1000 * path, 'ms'),
            row(f'{name}: data path / run', path / ours, '', at_most=0.03),
        ]
    return rows


def runner_config(path: Path, options: list[str], rounds: int, scratch: Path) -> Config:
    """One short epoch of the config: on CIFAR-100, or on drawn pictures in ImageNet's place."""
    config = load_config(path, options)
    short = ['epochs=1', 'algorithm.generations=1', 'log_level=WARNING']
    if config.train_dataloader.dataset.type == 'Cifar100':
        return prepare(
            load_config(path, [*options, *short, 'train_dataloader.dataset.images=5000'])
        )
    count = -(-(rounds + 1) * config.batch_size // 20)
    write_imagenet_folder(scratch / 'pictures', train_per_class=count, val_per_class=1, size=256)
    short += [f'data_root={scratch / "pictures"}', 'model.network.num_classes=20']
    return prepare(load_config(path, [*options, *short]))


# ------------------------------------------------------------------------------- fine-tuning


def finetune_rows(config: Config) -> list[dict]:
    """A fine-tuning run against what mmdet's and mmseg's own ``tools/train.py`` make of the same
    model, data and optimizer: mmengine's Runner as it is."""
    theirs = copy.deepcopy(config)
    theirs.custom_hooks = []
    theirs.runner_type = 'Runner'
    configs = {'ours': config, 'theirs': theirs}
    times = {name: [] for name in configs}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(3):
            for name, settings in configs.items():
                times[name].append(run_seconds(settings, f'{scratch}/{turn}_{name}'))
    ours, other = (statistics.median(values) for values in times.values())
    name = Path(config.filename).stem
    return [
        row(f'{name}: run / library run', ours / other, '', at_most=1.0),
        row(f'{name}: run', 1000 * ours, 'ms'),
        row(f'{name}: library run', 1000 * other, 'ms'),
        row(f'{name}: run', config.batch_size / ours, 'images/s'),
    ]


def finetune_config(path: Path, options: list[str], rounds: int, scratch: Path) -> Config:
    """One short epoch of the config on drawn pictures of VOC's size."""
    from downstream.build import prepare

    count = (rounds + 1) * load_config(path, options).batch_size
    write_vocdevkit(scratch / 'VOCdevkit', trainval=count, test=1, size=500)
    short = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'param_scheduler=[]']
    short += ['log_level=WARNING', f'data_root={scratch / "VOCdevkit"}']
    return prepare(load_config(path, [*options, *short]))


# --------------------------------------------------------------------------------- the data path


def ours(path: Path) -> tuple[Tensor, Tensor]:
    picture = Picture(path)
    box = random_box(picture.height, picture.width, AREA)
    return picture.crop(box, SIZE), draw_augmentation()


def torchvision_pipeline(*more: v2.Transform) -> Callable[[Path], Tensor]:
    """PIL decodes, torchvision transforms, as in its reference scripts."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=AREA, antialias=True),
            v2.RandomHorizontalFlip(),
            *more,
            v2.PILToTensor(),
        ]
    )

    def load(path: Path) -> Tensor:
        with path.open('rb') as file:
            return transform(Image.open(file).convert('RGB'))

    return load


def opencv_pipeline(rotation: bool, rng: np.random.Generator) -> Callable[[Path], np.ndarray]:
    """OpenCV through mmcv, call for call what mmpretrain's transforms do."""

    def load(path: Path) -> np.ndarray:
        image = mmcv.imfrombytes(path.read_bytes(), backend='cv2')
        top, left, height, width = random_box(*image.shape[:2], AREA)
        box = np.array([left, top, left + width - 1, top + height - 1])
        image = mmcv.imresize(mmcv.imcrop(image, box), (SIZE, SIZE), interpolation='area')
        if rng.random() < 0.5:
            image = mmcv.imflip(image)
        if rotation:
            image = mmcv.imrotate(image, rng.uniform(-10, 10), border_value=(104, 116, 124))
            for adjust in (mmcv.adjust_brightness, mmcv.adjust_contrast, mmcv.adjust_color):
                image = adjust(image, rng.uniform(0.6, 1.4))
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    return load


def loader_rows(folder: Path, rounds: int) -> list[dict]:
    """Pictures a second of one core: decode, crop, resize with antialiasing, mirror.

    The whole augmentation of Section 4.2 adds rotation and jitter. The suite mirrors, rotates and
    jitters on the device, which the last row times, so a core does the same for either comparison.
    """
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    if not files:
        raise UserError(f'{folder} holds no file: name a folder of full-size photos.')
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    bilinear = v2.InterpolationMode.BILINEAR
    rotate = v2.RandomRotation(10, interpolation=bilinear, fill=(124, 116, 104))
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
    rng = np.random.default_rng(0)
    pipelines = {
        'ours': ours,
        'torchvision, crop and mirror': torchvision_pipeline(),
        'OpenCV, crop and mirror': opencv_pipeline(False, rng),
        'torchvision, whole augmentation': torchvision_pipeline(rotate, jitter),
        'OpenCV, whole augmentation': opencv_pipeline(True, rng),
        'decode alone': lambda path: Image.open(path).convert('RGB'),
    }
    if find_spec('timm'):
        from timm.data import create_transform

        transform = create_transform(
            SIZE, is_training=True, use_prefetcher=True, interpolation='bilinear', color_jitter=None
        )
        pipelines['timm, crop and mirror'] = lambda path: transform(Image.open(path).convert('RGB'))
    with tempfile.TemporaryDirectory() as scratch:
        small = [Path(scratch) / f'{number}.jpg' for number in range(len(files))]
        for source, target in zip(files, small, strict=True):
            target.write_bytes(shrink_picture(source.read_bytes(), 256))
        steps = {
            name: lambda load=load: [load(path) for path in files]
            for name, load in pipelines.items()
        }
        steps['ours, of pictures shrunk to 256'] = lambda: [ours(path) for path in small]
        median = seconds(steps, rounds)
    rate = {name: len(files) / value for name, value in median.items()}
    rows = [row(name, value, 'pictures/s') for name, value in rate.items()]
    for other, goal in (('torchvision', 2.3), ('OpenCV', 1.2), ('timm', None)):
        for augmentation in ('crop and mirror', 'whole augmentation'):
            name = f'{other}, {augmentation}'
            if name in rate:
                rows.append(row(f'ours / {name}', rate['ours'] / rate[name], '', at_least=goal))
    batch = [ours(path) for path in files]
    data = {
        'inputs': torch.stack([image for image, _ in batch]).to(get_device()),
        'augmentation': torch.stack([augmentation for _, augmentation in batch]).to(get_device()),
    }
    preprocessor = AugmentingPreprocessor(mean=[127.0] * 3, std=[64.0] * 3).to(get_device())
    device = seconds({'device': lambda: preprocessor(dict(data))}, rounds)['device']
    name = 'mirror, rotation, jitter and normalisation on the device'
    return [*rows, row(name, len(files) / device, 'pictures/s')]


def show(rows: list[dict]) -> str:
    """A Markdown table of rows, those with a goal first."""
    cells = []
    for line in sorted(rows, key=lambda line: line['goal'] is None):
        goal = verdict = ''
        if line['goal'] is not None:
            below = line['met'] == (line['value'] <= line['goal'])
            goal = f'{"≤" if below else "≥"} {line["goal"]:g}'
            verdict = 'met' if line['met'] else 'missed'
        value = f'{line["value"]:.4g} {line["unit"]}'.rstrip()
        cells.append([line['name'], value, goal, verdict])
    return markdown(['', 'measured', 'goal', ''], cells, [], texts=1)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest='part', required=True)
    for name in ('step', 'runner', 'finetune'):
        part = parts.add_parser(name)
        if name == 'finetune':
            part.add_argument('config', type=Path)
        else:
            part.add_argument('config', type=Path, nargs='?', default=R152)
        part.add_argument('--cfg-options', nargs='*', default=[], metavar='KEY=VALUE')
    parts.add_parser('loader').add_argument('pictures', type=Path, help='full-size photos')
    for part in parts.choices.values():
        part.add_argument('--rounds', type=int, default=5, help='timings of each step')
        part.add_argument('--json', type=Path, metavar='FILE', help='write the rows there as well')
    part = parts.add_parser('show')
    part.add_argument('files', type=Path, nargs='+', help='written by --json')
    part.add_argument('--goals', action='store_true', help='only the rows that have one')
    return parser.parse_args()


def measure(args: argparse.Namespace) -> list[dict]:
    if args.part == 'loader':
        return loader_rows(args.pictures, args.rounds)
    if args.part == 'step':
        config = load_config(args.config, args.cfg_options)
        if not config.algorithm.teacher_weight > 0:
            raise UserError(f'{args.config} has no teacher: give the config of an SD row.')
        settings = {key: config.algorithm[key] for key in LOSS_SETTINGS}
        config.model.loss = dict(type='SnapshotDistillationLoss', **settings)
        torch.backends.cudnn.benchmark = True
        return step_rows(config, args.rounds)
    with tempfile.TemporaryDirectory() as scratch:
        if args.part == 'finetune':
            settings = (args.config, args.cfg_options, args.rounds, Path(scratch))
            return finetune_rows(finetune_config(*settings))
        config = runner_config(args.config, args.cfg_options, args.rounds, Path(scratch))
        return runner_rows(config, args.rounds)


def main() -> None:
    args = parse_args()
    if args.part == 'show':
        rows = [line for path in args.files for line in json.loads(path.read_text())]
        print(show([line for line in rows if line['goal'] is not None or not args.goals]))
        return
    rows = measure(args)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    print(f'torch {torch.__version__}, {device}, {os.cpu_count()} cores\n\n{show(rows)}')
    if args.json:
        write_atomically(args.json, (json.dumps(rows, indent=1) + '\n').encode())


if __name__ == '__main__':
    run(main)
