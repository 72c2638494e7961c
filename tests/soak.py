"""Kill runs again and again at random moments, and compare them with runs that nobody killed.

bash tools/soak.sh KILLS [REPORT.json]
"""

import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stopping import assert_same_run

from downstream.builtin import write_imagenet_folder, write_vocdevkit
from downstream.mmcv_ops import install
from pretrain.runs.backbone_file import write_backbone_file
from pretrain.runs.checkpoint import checkpoints, progress
from pretrain.runs.cli import positive, run, tool_parser
from pretrain.runs.start import main
from pretrain.studies.benchmark import report, row

ROOT = Path(__file__).resolve().parent.parent
PRETRAINING = ROOT / 'configs/demo/r18_sd.py'
FINE_TUNING = ROOT / 'configs/demo/deeplabv3_r18_voc12.py'
INTERVAL = 3.0  # seconds between two checkpoints
OPTIONS = [f'default_hooks.checkpoint.minutes={INTERVAL / 60}', 'default_hooks.logger.interval=1']
LINE = re.compile(r'Epoch\((\w+)\) +\[(\d+)\]\[ *(\d+)/(\d+)\](?:.* time: ([\d.]+))?')
# A session is a fork of this process, which has imported all it needs: nothing is written before.
CONTEXT = multiprocessing.get_context('fork')


class Session(NamedTuple):
    """Where a session was when it was killed."""

    moment: str
    repeated: float  # seconds of training since the last checkpoint


def train(config: Path, work_dir: Path, options: list[str], log: Path) -> None:
    """``tools/train.py CONFIG --resume``, with its output in a file."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ['tools/train.py', str(config), '--resume', '--work-dir', str(work_dir)]
    sys.argv += ['--cfg-options', *OPTIONS, *options]
    run(main)


def session(
    config: Path, work_dir: Path, options: list[str], after: float | None = None
) -> Session | None:
    """Train in a process of its own, which is killed ``after`` so many seconds.

    Returns:
        Where it was; None if it ended before.
    """
    log = work_dir.with_suffix('.log')
    process = CONTEXT.Process(target=train, args=(config, work_dir, options, log))
    process.start()
    process.join(after)
    ended = process.exitcode is not None
    process.kill()
    process.join()
    text = log.read_text()
    if ended:
        assert process.exitcode == 0, text
        return None
    lines = LINE.findall(text)
    trained = [line for line in lines if line[0] == 'train']
    repeated = 0.0
    if trained:
        _, epoch, iteration, length, _ = trained[-1]
        done = (int(epoch) - 1) * int(length) + int(iteration)
        if found := checkpoints(work_dir):
            epochs, iterations = progress(found[-1])
            done -= epochs * int(length) + iterations
        repeated = sum(float(seconds) for *_, seconds in trained[max(0, len(trained) - done) :])
    moments = {'train': 'training', 'val': 'validating'}
    moment = moments[lines[-1][0]] if lines else 'starting'
    return Session('saving' if [*work_dir.glob('.*.part')] else moment, repeated)


def soak(
    title: str, config: Path, folder: Path, kills: int, options: list[str]
) -> Iterator[list[dict]]:
    """Compare runs with ``kills`` kills in all with one run without any; after each of them give
    the rows of the report."""
    whole, rng, killed, runs = folder / 'whole', random.Random(title), [], 0
    folder.mkdir(parents=True)
    began = time.monotonic()
    session(config, whole, options)
    longest = (time.monotonic() - began) / 2
    last = checkpoints(whole)[-1].name
    while len(killed) < kills:
        runs += 1
        cut = folder / f'cut{runs}'
        while len(killed) < kills:
            if (found := session(config, cut, options, rng.uniform(0, longest))) is None:
                break
            killed.append(found)
            print(f'{title}: {len(killed)} of {kills} kills, {found}', flush=True)
        else:
            session(config, cut, options)
        assert_same_run(whole, cut, last)
        for path in cut.glob('*.pth'):
            path.unlink()
        yield list(summarise(title, runs, killed))


def summarise(title: str, runs: int, killed: list[Session]) -> Iterator[dict]:
    yield row(f'{title}: runs that ended bit for bit as if never killed', runs, f'of {runs}')
    yield row(f'{title}: kills', len(killed))
    for moment, count in Counter(each.moment for each in killed).items():
        yield row(f'{title}: kills while {moment}', count)
    repeated = max(each.repeated for each in killed)
    yield row(f'{title}: most training repeated after a kill', repeated, 's')


def soak_both(kills: int, path: Path) -> None:
    """Kill a pretraining and a fine-tuning run ``kills`` times each; write what came of it."""
    install()
    from mmseg.models.backbones import ResNet

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images, devkit, backbone = folder / 'images', folder / 'VOCdevkit', folder / 'backbone.pth'
        for write, settings in (
            (write_imagenet_folder, dict(root=images, train_per_class=8, val_per_class=4, size=32)),
            (write_vocdevkit, dict(root=devkit, trainval=64, test=16, size=96)),
        ):  # elsewhere, because drawing begins threads, which a fork would lack
            writer = CONTEXT.Process(target=write, kwargs=settings)
            writer.start()
            writer.join()
        # Narrow networks: the fewer seconds a run takes, the more kills there are in an hour.
        network = dict(_delete_=True, type='CifarResNet', depth=20, num_classes=20)
        options = [f'data_root={images}', f'model.network={network}', 'image_size=32']
        options += ['batch_size=8', 'epochs=4']
        stages = [('pretraining', PRETRAINING, options)]
        narrow = dict(depth=18, base_channels=8)
        weights = OrderedDict(ResNet(**narrow).state_dict())
        facts = dict(arch='ResNet', stem='v1', style='pytorch', channel_order='RGB', depth=18)
        facts |= dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
        write_backbone_file(backbone, weights, Path(__file__), facts)
        options = [f'data_root={devkit}', f'backbone_file={backbone}', f'model.backbone={narrow}']
        options += ['model.decode_head.in_channels=64', 'model.decode_head.channels=16']
        options += ['batch_size=4', 'train_cfg.max_epochs=9', 'train_cfg.val_interval=1']
        stages.append(('fine-tuning', FINE_TUNING, options))
        done = [row('seconds between two checkpoints', INTERVAL, 's')]
        for title, config, options in stages:
            for rows in soak(title, config, folder / title, kills, options):
                report([*rows, *done], path)
            done = [*rows, *done]


if __name__ == '__main__':
    parser = tool_parser(__doc__)
    parser.add_argument('kills', type=positive, help='of each of the two runs')
    parser.add_argument('report', type=Path, nargs='?', default=Path('work_dirs/soak.json'))
    args = parser.parse_args()
    soak_both(args.kills, args.report)
