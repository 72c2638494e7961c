"""The number format in which networks compute: one setting for GPU and CPU in both stages."""

import torch

from pretrain.runs.errors import UserError


def resolve_precision(precision: str, elsewhere: bool = False) -> str:
    """Resolve a config's ``precision`` on this machine.

    Args:
        precision: 'auto', 'bf16' or 'float32'. 'auto' is bf16 on hardware that computes in it, and
            float32 elsewhere, because emulated bf16 is slower than float32.
        elsewhere: whether the run will use another machine, which may compute in bf16.

    Returns:
        'bf16' or 'float32'.

    Raises:
        UserError: if it is none of the three, or 'bf16' on hardware that does not compute in it,
            unless the run is ``elsewhere``.

    Example:
        >>> resolve_precision('float32')
        'float32'
    """
    if precision not in ('auto', 'bf16', 'float32'):
        raise UserError(f"precision is {precision!r}: choose 'auto', 'bf16' or 'float32'.")
    without = device_without_bf16()
    if precision == 'auto':
        return 'float32' if without else 'bf16'
    if precision == 'bf16' and without and not elsewhere:
        raise UserError(
            f"precision='bf16', but {without} does not compute in bfloat16: set precision='auto', "
            'which means float32 there.'
        )
    return precision


def device_without_bf16() -> str | None:
    """Name a GPU, or without GPUs the CPU, that does not compute in bfloat16; None if all do."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if torch.cuda.get_device_capability(index) < (8, 0):
                return f'GPU {index} ({torch.cuda.get_device_name(index)}, older than Ampere)'
        return None
    # torch.ops.mkldnn._is_mkldnn_bf16_supported() is True for every AVX512 processor, although most
    # of them emulate bfloat16.
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return None
    return 'this processor (neither AVX512-BF16 nor AMX)'


def autocast(precision: str, device_type: str) -> torch.autocast:
    """A context manager or decorator under which layers compute in ``precision``.

    Weights, their gradients and the statistics of batch normalisation stay float32.

    Args:
        precision: 'bf16' or 'float32'.
        device_type: 'cuda', 'cpu', or 'meta' if only shapes are computed.
    """
    device_type = 'cpu' if device_type == 'meta' else device_type
    return torch.autocast(device_type, torch.bfloat16, enabled=precision == 'bf16')


def forbid_tf32() -> None:
    """Compute float32 in full precision on GPUs: by default, cuDNN's convolutions use TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
