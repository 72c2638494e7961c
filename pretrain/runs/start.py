"""How a run begins: a config, checked and filled in, goes on from its last checkpoint or starts.

``python -m pretrain.runs.start CONFIG`` is ``tools/train.py CONFIG``, wherever the suite is
installed.
"""

import argparse
import importlib
import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from pretrain.runs.checkpoint import check_resume
from pretrain.runs.cli import run
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.launch import usable_cores
from pretrain.runs.record import read_record


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train any config, pretraining and downstream alike.'
    )
    parser.add_argument('config', help='a file of configs/')
    parser.add_argument('--work-dir', help='where the run lives (default: work_dirs/<config name>)')
    parser.add_argument('--resume', action='store_true', help='go on from the last checkpoint')
    parser.add_argument(
        '--start-from', metavar='CHECKPOINT', help="begin with another run's end of generation 1"
    )
    parser.add_argument('--cfg-options', nargs='*', default=[], metavar='KEY=VALUE')
    parser.add_argument(
        '--check', type=int, metavar='GPUS', help='check that so many a node can run it, and stop'
    )
    parser.add_argument('--nodes', type=int, default=1, help='with --check: number of nodes')
    return parser.parse_args()


def check_processes(count: int) -> None:
    """Each process needs a GPU of its own or, on a machine without any, a CPU core."""
    gpus, cores = torch.cuda.device_count(), usable_cores()
    if gpus and count > cores:
        raise UserError(
            f'{count} processes, but this one may use only {cores} CPU cores: on Slurm, ask for '
            'more, as in SRUN_ARGS="--cpus-per-task=64".'
        )
    if not 1 <= count <= (gpus or cores):
        have = f'{gpus} GPUs' if gpus else f'no GPU and {cores} CPU cores'
        raise UserError(
            f'{count} processes on a machine with {have}: ask for {gpus or cores} or fewer.'
        )


def prepare(config: Config, world_size: int) -> Config:
    """Have the stage that the config belongs to check it and fill it in."""
    return importlib.import_module(f'{config.stage}.build').prepare(config, world_size)


def choose_start(config: Config, args: argparse.Namespace) -> None:
    """Set where the run begins: afresh, from its last checkpoint or from another run's."""
    work_dir = Path(config.work_dir)
    checkpoints = sorted(work_dir.glob('epoch_*.pth'), key=lambda p: int(p.stem.split('_')[1]))
    record = read_record(work_dir / 'run.json')
    if not args.resume and (checkpoints or record is not None):
        raise UserError(
            f'{config.work_dir} already holds a run: add --resume to go on with it, or --work-dir '
            'for a new one.'
        )
    started_from = record['started_from'] if record else None
    config.load_from = str(checkpoints[-1]) if checkpoints else args.start_from or started_from
    config.resume = config.load_from is not None
    if config.resume:
        check_resume(config.load_from, config.identity.to_dict(), another_run=not checkpoints)


def main() -> None:
    args = parse_args()
    launched = 'LOCAL_RANK' in os.environ
    world_size = (
        args.check * args.nodes if args.check is not None else int(os.environ.get('WORLD_SIZE', 1))
    )
    config = load_config(args.config, args.cfg_options)
    config.work_dir = args.work_dir or str(Path('work_dirs') / Path(args.config).stem)
    if args.check is not None:
        check_processes(args.check)
    config = prepare(config, world_size)
    choose_start(config, args)
    if args.check is not None:
        return
    config.launcher = 'pytorch' if launched else 'none'
    if launched and not torch.cuda.is_available():
        # mmengine's own start-up would ask for a CUDA device.
        torch.distributed.init_process_group('gloo')
        wrapper = config.get('model_wrapper_cfg') or dict(broadcast_buffers=False)
        config.model_wrapper_cfg = dict(wrapper, device_ids=None)
    RUNNERS.build(config).train()


if __name__ == '__main__':
    run(main)
