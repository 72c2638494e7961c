"""How a run begins: a config, checked and filled in, goes on from its last checkpoint or starts.

``python -m pretrain.runs.start CONFIG`` is ``tools/train.py CONFIG``, wherever the suite is
installed.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from pretrain.runs.checkpoint import check_resume, install
from pretrain.runs.cli import run
from pretrain.runs.config import load_config
from pretrain.runs.errors import UserError
from pretrain.runs.launch import usable_cores
from pretrain.runs.precision import forbid_tf32
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
        '--gpus', type=int, metavar='N', help='start N processes, each with a GPU or a CPU core'
    )
    parser.add_argument('--check', action='store_true', help='check that it can run, and stop')
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


def become_torchrun(processes: int, nodes: int) -> NoReturn:
    """Replace this process by torchrun, which starts this command in each of its processes.

    Several nodes find each other by ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT``.

    Raises:
        UserError: if there are several nodes and no ``MASTER_ADDR``.
    """
    environment = os.environ
    rendezvous = ['--standalone']
    if nodes > 1:
        if 'MASTER_ADDR' not in environment:
            raise UserError(f'NNODES={nodes} without MASTER_ADDR: set it to the address of node 0.')
        rendezvous = [
            f'--nnodes={nodes}',
            f'--node_rank={environment.get("NODE_RANK", 0)}',
            f'--master_addr={environment["MASTER_ADDR"]}',
            f'--master_port={environment.get("MASTER_PORT", 29500)}',
        ]
    environment.setdefault('OMP_NUM_THREADS', str(max(1, usable_cores() // processes)))
    torchrun = ['-m', 'torch.distributed.run', *rendezvous, f'--nproc_per_node={processes}']
    os.execv(
        sys.executable,
        [sys.executable, *torchrun, '-m', 'pretrain.runs.start', *sys.argv[1:]],
    )


def main() -> None:
    args = parse_args()
    launched = 'LOCAL_RANK' in os.environ
    # Once, before the processes start: a mistake is one sentence and not one traceback a process.
    launches = args.gpus is not None and not launched
    nodes = int(os.environ.get('NNODES', 1))
    world_size = args.gpus * nodes if launches else int(os.environ.get('WORLD_SIZE', 1))
    config = load_config(args.config, args.cfg_options)
    config.work_dir = args.work_dir or str(Path('work_dirs') / Path(args.config).stem)
    if launches:
        check_processes(args.gpus)
    config = prepare(config, world_size)
    choose_start(config, args)
    if args.check:
        return
    if launches:
        become_torchrun(args.gpus, nodes)
    install()
    config.launcher = 'pytorch' if launched else 'none'
    if launched and not torch.cuda.is_available():
        # mmengine's own start-up would ask for a CUDA device.
        torch.distributed.init_process_group('gloo')
        wrapper = config.get('model_wrapper_cfg') or dict(broadcast_buffers=False)
        config.model_wrapper_cfg = dict(wrapper, device_ids=None)
    forbid_tf32()
    RUNNERS.build(config).train()


if __name__ == '__main__':
    run(main)
