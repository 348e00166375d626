# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A small call of every op in; where it runs here, why not elsewhere, how far it is off out."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..errors import BackendUnavailable
from ..model.rope import RotaryEmbedding
from ..native import cuda_device
from ..ops._backends import NAMES
from .tolerance import share

Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Probe:
    """A small real call of one op: tensors, and how to run it on a backend."""

    tensors: tuple[Tensor, ...]
    run: Run

    def to(self, device: str, dtype: torch.dtype) -> "Probe":
        """Return the probe on a device, in a dtype."""
        moved = tuple(t.to(device, dtype).detach().requires_grad_() for t in self.tensors)
        return Probe(moved, self.run)


def _random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


# Extractor of a 64-pixel image with S's heads: three query grids on one map, and the reverse.
_GRIDS = [(8, 8), (4, 4), (2, 2)]


def _classic(backend: str, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # Locations are never 16 bits wide: see ms_deform_attn.
    wide = torch.promote_types(value.dtype, torch.float32)
    return ops.ms_deform_attn(value, _GRIDS, locations.to(wide), weights, backend=backend)


def _grid(backend: str, value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    return ops.ms_deform_attn_grid(value, _GRIDS[1:2], _GRIDS, offsets, logits, backend=backend)


def _patch(backend: str, image: Tensor, weight: Tensor, bias: Tensor, table: Tensor) -> Tensor:
    return ops.patch_embed(image, weight, bias, table, (5, 5), backend=backend)


def _conv(backend: str, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.dwconv_gelu(tokens, _GRIDS, weight, bias, backend=backend)


def _windows(backend: str, qkv: Tensor) -> Tensor:
    return ops.window_attention(qkv, (8, 8), 5, backend=backend)


def _int8(backend: str, x: Tensor, plus: Tensor) -> Tensor:
    weight, scales = ops.int8_weight(_random(40, 96))
    return ops.int8_linear(x, weight.to(x.device), scales.to(x.device), plus=plus, backend=backend)


def _norm(backend: str, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    wide = torch.promote_types(tokens.dtype, torch.float32)
    weight, bias = weight.to(wide), bias.to(wide)
    return ops.batch_norm(tokens, weight, bias, has_planes=True, backend=backend)[0]


def _rope(backend: str, qkv: Tensor) -> Tensor:
    tables = RotaryEmbedding(qkv.shape[4], "exact")((5, 6), qkv)
    return ops.rope(qkv, tables, (5, 6), backend=backend)


def probes() -> dict[str, Probe]:
    """Return one probe for every op, by the op's name."""
    weights = _random(1, 16, 6, 12).softmax(-1).view(1, 16, 6, 3, 4)
    locations = _random(1, 16, 6, 3, 4, 2) / 4 + 0.5
    patch = (_random(1, 3, 64, 96), _random(32, 3, 16, 16), _random(32), _random(25, 32))
    norm = (_random(2, 64, 96), _random(96), _random(96))
    conv = (_random(1, 84, 96), _random(96, 1, 3, 3), _random(96))
    return {
        "batch_norm": Probe(norm, _norm),
        "dwconv_gelu": Probe(conv, _conv),
        "int8_linear": Probe((_random(2, 35, 96), _random(2, 35, 40)), _int8),
        "ms_deform_attn": Probe((_random(1, 84, 6, 64), locations, weights), _classic),
        "ms_deform_attn_grid": Probe(
            (_random(1, 16, 6, 64), _random(1, 84, 6, 1, 4, 2), _random(1, 84, 6, 1, 4)), _grid
        ),
        "patch_embed": Probe(patch, _patch),
        "rope": Probe((_random(2, 35, 3, 6, 64),), _rope),
        "window_attention": Probe((_random(1, 64, 3, 2, 64),), _windows),
    }


def _device_for(backend: str) -> str:
    # Without a device Triton may still run, in its interpreter.
    return "cuda" if backend in ("cuda", "triton") and torch.cuda.is_available() else "cpu"


def why_not(op: str, probe: Probe, backend: str) -> str | None:
    """Return why ``backend`` cannot run the probe of ``op`` on this machine, or None.

    Args:
        op: Name of the op, as ``probes`` has it.
        probe: Its call; runs on the device of the backend, in float32.
        backend: "cuda", "triton", "cpu" or "reference".
    """
    try:
        probe.run(backend, *probe.to(_device_for(backend), torch.float32).tensors)
    except BackendUnavailable as error:
        # "op: backend 'name' cannot run: reason", or what the op has instead.
        told, is_refused, reason = str(error).partition("cannot run: ")
        if backend == "cuda" and is_refused and not torch.cuda.is_available():
            # A tensor of the CPU was refused for being one; the table is about the machine.
            reason = cuda_device.cuda_unavailable_reason() or reason
        return reason or told.removeprefix(f"{op}: ")
    except Exception as error:  # the table is for machines where something is broken
        return f"it fails here: {type(error).__name__}: {error}"
    return None


def table() -> dict[str, dict[str, str | None]]:
    """Return {op: {backend: None where it runs here, else the reason}}."""
    return {
        op: {backend: why_not(op, probe, backend) for backend in NAMES}
        for op, probe in probes().items()
    }


def _results(probe: Probe, backend: str, cotangent: Tensor) -> list[Tensor]:
    out = probe.run(backend, *probe.tensors)
    return [out.detach(), *torch.autograd.grad(out, probe.tensors, cotangent.to(out))]


def check(probe: Probe, backend: str, dtype: torch.dtype) -> float:
    """Return the worst error of output and gradients, as a share of what is allowed.

    Allowed is what ``tolerance`` says of the reference in ``dtype``.

    Args:
        probe: The call, in float64 on the CPU.
        backend: A backend that can run it here.
        dtype: float32, float16 or bfloat16, for the tensors of the call.

    Returns:
        At most 1 where the backend is right; infinity where it gives NaN.

    Raises:
        BackendUnavailable: The backend cannot run here.
    """
    device = _device_for(backend)
    rounded = probe.to(device, dtype)
    cotangent = _random(*probe.run("reference", *probe.tensors).shape).to(device, dtype)
    truth = _results(rounded.to(device, torch.float64), "reference", cotangent)
    reference = _results(rounded, "reference", cotangent)
    results = _results(rounded, backend, cotangent)
    return max(share(*each) for each in zip(results, reference, truth, strict=True))
