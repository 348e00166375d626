# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: _triton_kernels.py."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _triton
from .._arguments import pairs
from .._triton import Config
from ._call import Call, new_outputs, split_sums

_MAX_IMAGES = 65535  # of the second axis of a launch


def unsupported_reason(call: Call) -> str | None:
    """Return why the Triton kernels cannot run this call, or None."""
    if (reason := _triton.unsupported_reason(call.tokens)) is not None:
        return reason
    if len(call.grid_hw) > 2 * _triton.MAX_SIZES:
        return f"it takes at most {_triton.MAX_SIZES} grids"
    if call.tokens.shape[0] > _MAX_IMAGES:
        return f"it takes at most {_MAX_IMAGES} images, got {call.tokens.shape[0]}"
    return None


def forward(call: Call) -> Tensor:
    """Return GELU of the convolved tokens, [B, N, C] in their dtype."""
    out = new_outputs(call)
    tokens = _triton.rows("tokens", call.tokens)
    unused = _triton.rows("grad_out", out)
    with _triton.current_device(out):
        _convolve("gelu", call, {**tokens, **unused, "bias": call.bias, "out": out})
    return out


def backward(call: Call, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of tokens, weight and bias; None where ``needs`` says so."""
    tokens, grad = _triton.rows("tokens", call.tokens), _triton.rows("grad_out", grad_out)
    grad_sum = call.tokens.new_empty(call.tokens.shape)
    grad_tokens, partial = None, None
    with _triton.current_device(grad_out):
        _convolve("slope", call, {**tokens, **grad, "bias": call.bias, "out": grad_sum})
        if needs[0]:
            grad_tokens = torch.empty_like(grad_sum)
            rows = {**_triton.rows("tokens", grad_sum), **_triton.rows("grad_out", grad_sum)}
            _convolve("nothing", call, {**rows, "bias": None, "out": grad_tokens})
        if needs[1] or needs[2]:
            partial = _sum_up(call, tokens, grad_sum)
    return [grad_tokens, *split_sums(call, partial, needs)]


def _convolve(then: str, call: Call, tensors: dict[str, Any]) -> None:
    from ._triton_kernels import CONFIGS, STRIP, convolve_kernel

    channels = _channels(call)
    has_bias = tensors["bias"] is not None
    # Compilers that trace a launch want a tensor where the kernel uses none.
    bias = tensors["bias"].contiguous() if has_bias else call.weight
    arguments = {
        **_shape(call),
        **tensors,
        "weight": call.weight.contiguous(),
        "bias": bias,
        "num_tokens": call.tokens.shape[1],
        "THEN": ("gelu", "slope", "nothing").index(then),
        "HAS_BIAS": has_bias,
        "STRIP": STRIP,
    }

    def run(config: Config) -> None:
        grid = (_num_tiles(call, STRIP, config.rows) * _groups(call), call.tokens.shape[0])
        _triton.launch(convolve_kernel, grid=grid, **_launch_parameters(config), **arguments)

    # Three rows of sums.
    default, width = CONFIGS.get(channels, CONFIGS[0]), 3 * channels
    _triton.run_configured(_key(then, call), default, run, width=width)


def _sum_up(call: Call, tokens: dict[str, Any], grad_sum: Tensor) -> Tensor:
    """Return partial sums of the gradients of weight and bias, [tiles, 10, C]."""
    from ._triton_kernels import CONFIGS, WEIGHT_STRIP, weight_gradient_kernel

    B, N, C = call.tokens.shape
    compute = torch.promote_types(call.tokens.dtype, torch.float32)
    config = CONFIGS.get(_channels(call), CONFIGS[0])
    # Its partial sums depend on the tile, so this kernel is not tuned.
    tiles = _num_tiles(call, WEIGHT_STRIP, config.rows)
    partial = call.tokens.new_empty(B * tiles, 10, C, dtype=compute)
    _triton.launch(
        weight_gradient_kernel,
        grid=(tiles * _groups(call), B),
        **_launch_parameters(config),
        **_shape(call),
        **tokens,
        grad_sum=grad_sum,
        partial=partial,
        num_tokens=N,
        STRIP=WEIGHT_STRIP,
    )
    return partial


def _shape(call: Call) -> dict[str, int]:
    sizes = pairs(call.grid_hw)
    packed = _triton.packed_sizes("hw", sizes)
    C = int(call.tokens.shape[2])
    return {**packed, "C": C, "GRIDS": len(sizes), "CHANNELS": _channels(call)}


def _channels(call: Call) -> int:
    """Return how many channels a program takes, a power of two: a divisor of C if there is one."""
    C = int(call.tokens.shape[2])
    divisor = min(C & -C, 64)
    return divisor if divisor >= 16 else min(64, 1 << (C - 1).bit_length())


def _groups(call: Call) -> int:
    return -(-int(call.tokens.shape[2]) // _channels(call))


def _num_tiles(call: Call, strip: int, columns: int) -> int:
    # -(-a // b) is the ceiling of a / b.
    return sum(-(-h // strip) * -(-w // columns) for h, w in pairs(call.grid_hw))


def _launch_parameters(config: Config) -> dict[str, int]:
    return {"ROWS": config.rows, "num_warps": config.num_warps, "num_stages": config.num_stages}


def _key(kernel: str, call: Call) -> tuple[Any, ...]:
    # An int: under a compiler sizes may be symbols.
    return f"dwconv_gelu {kernel}", call.tokens.device, call.tokens.dtype, int(call.tokens.shape[2])
