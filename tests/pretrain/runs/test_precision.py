import sys

import pytest
import torch

from pretrain.runs import start
from pretrain.runs.errors import UserError
from pretrain.runs.precision import autocast, forbid_tf32, resolve_precision


@pytest.fixture
def machine(monkeypatch):
    """``machine(gpus=[(8, 0)], avx512_bf16=True, amx=True)``: the hardware that torch reports."""

    def pretend(gpus=(), avx512_bf16=False, amx=False):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda index: gpus[index])
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index: f'Card {gpus[index]}')
        monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda: avx512_bf16)
        monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: amx)

    return pretend


@pytest.mark.parametrize(
    ('hardware', 'expected'),
    [
        ({}, 'float32'),
        (dict(avx512_bf16=True), 'bf16'),
        (dict(amx=True), 'bf16'),
        (dict(gpus=[(8, 0)]), 'bf16'),
        (dict(gpus=[(9, 0), (9, 0)]), 'bf16'),
        (dict(gpus=[(7, 5)], avx512_bf16=True), 'float32'),  # the GPU is what computes
        (dict(gpus=[(9, 0), (7, 0)]), 'float32'),
    ],
)
def test_auto_is_bf16_where_the_hardware_has_it(hardware, expected, machine):
    machine(**hardware)
    assert resolve_precision('auto') == expected
    assert resolve_precision('float32') == 'float32'
    if expected == 'bf16':
        assert resolve_precision('bf16') == 'bf16'
    else:
        with pytest.raises(UserError, match="set precision='auto'"):
            resolve_precision('bf16')


def test_an_old_gpu_is_named(machine):
    machine(gpus=[(8, 6), (7, 5)])
    with pytest.raises(UserError, match=r'GPU 1 \(Card \(7, 5\), older than Ampere\)'):
        resolve_precision('bf16')


def test_a_run_says_why_auto_is_float32(machine, monkeypatch, capsys, tiny_file, tmp_path):
    machine(gpus=[(7, 5)])
    path = tiny_file('bl')
    path.write_text(path.read_text().replace("precision = 'float32'", "precision = 'auto'"))
    monkeypatch.setattr(sys, 'argv', ['start.py', str(path), '--work-dir', str(tmp_path / 'run')])
    monkeypatch.setattr(start, 'usable_gpus', lambda: 1)
    monkeypatch.setattr(start, 'prepare', lambda *_: sys.exit())
    with pytest.raises(SystemExit):
        start.main()
    said = "'auto' means float32 here: GPU 0 (Card (7, 5), older than Ampere) has no bfloat16."
    assert said in capsys.readouterr().err


def test_an_avx512_processor_that_emulates_bf16_does_not_count(machine, monkeypatch):
    machine()
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: True)
    assert resolve_precision('auto') == 'float32'


def test_another_machine_may_compute_in_bf16(machine):
    machine()
    assert resolve_precision('bf16', elsewhere=True) == 'bf16'


def test_another_word_is_refused():
    with pytest.raises(UserError, match=r"precision is 'fp16': choose 'auto', 'bf16' or 'float32'"):
        resolve_precision('fp16')


def test_only_bf16_is_autocast():
    layer, images = torch.nn.Linear(3, 2), torch.ones(1, 3)
    for precision, dtype in (('bf16', torch.bfloat16), ('float32', torch.float32)):
        with autocast(precision, 'cpu'):
            assert layer(images).dtype == dtype


def test_float32_is_no_tf32(tf32):
    forbid_tf32()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
