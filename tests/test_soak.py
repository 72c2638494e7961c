"""Kill runs again and again at random moments, and compare them with runs that nobody killed."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from downstream.builtin import write_imagenet_folder, write_vocdevkit
from pretrain.export import export_backbone
from pretrain.runs.checkpoint import checkpoints
from tests.conftest import ROOT
from tests.stopping import assert_same_run

LONGEST = 20.0  # seconds of training before a kill


def start(config: str, work_dir: Path, options: list[str]) -> subprocess.Popen:
    command = [sys.executable, '-u', '-m', 'pretrain.runs.start', str(ROOT / config), '--resume']
    settings = ['default_hooks.checkpoint.minutes=0.05', *options]  # 3 seconds
    return subprocess.Popen(
        [*command, '--work-dir', str(work_dir), '--cfg-options', *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate()
    assert not process.returncode, output


def killed(process: subprocess.Popen, rng: random.Random) -> bool:
    """Kill a run while it starts (every fifth time) or trains; False if it ended before."""
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 10))
    else:
        for line in process.stdout:
            if 'Epoch(train)' in line or 'Epoch(val)' in line:
                break
        time.sleep(rng.uniform(0, LONGEST))
    ended = process.poll() is not None
    if ended:
        finish(process)
    process.kill()
    process.wait()
    return not ended


def soak(title: str, config: str, folder: Path, kills: int, options: list[str]) -> Path:
    """Compare runs with ``kills`` kills in all with one run without any; returns its folder."""
    whole, rng = folder / title / 'whole', random.Random(title)
    finish(start(config, whole, options))
    last, done, runs = checkpoints(whole)[-1].name, 0, 0
    while done < kills:
        runs += 1
        cut = folder / title / f'cut{runs}'
        while done < kills and killed(start(config, cut, options), rng):
            done += 1
            print(f'{title}: killed {done} of {kills} times', flush=True)
        finish(start(config, cut, options))
        assert_same_run(whole, cut, last)
    print(f'{title}: {done} kills in {runs} runs, bit for bit the run without any', flush=True)
    return whole


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_kills_change_nothing(tmp_path: Path) -> None:
    """As many kills of either stage as ``tools/soak.sh`` asks for."""
    kills = int(os.environ.get('SOAK_KILLS', 3))
    images, devkit = tmp_path / 'data/imagenet', tmp_path / 'data/VOCdevkit'
    write_imagenet_folder(images, train_per_class=100, val_per_class=20, size=64)
    write_vocdevkit(devkit, trainval=480, test=120, size=256)
    options = [f'data_root={images}']
    whole = soak('pretraining', 'configs/demo/r18_sd.py', tmp_path, kills, options)
    backbone = tmp_path / 'backbone.pth'
    export_backbone(whole / 'snapshot_2.pth', backbone)
    options = [f'data_root={devkit}', f'backbone_file={backbone}']
    soak('fine-tuning', 'configs/demo/faster_rcnn_r18_voc07.py', tmp_path, kills, options)
