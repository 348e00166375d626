# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Compile all kernels for the GPUs that this Triton supports: triton_versions.py runs it.

python compile_all.py [ARCH ...]    80, gfx942, ...; prints how many compiled and what did not
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

import torch
from cases import MODEL_HEADS, AttnCase, extractor, injector
from compile_triton import Launch, compiled, launches, patch_launches, recorded
from stub_driver import sm
from triton.backends.compiler import GPUTarget

from vitadapter_fast.ops.dwconv_gelu import _call as conv_call
from vitadapter_fast.ops.dwconv_gelu import triton as conv
from vitadapter_fast.ops.rope import _call as rope_call
from vitadapter_fast.ops.rope import triton as rope
from vitadapter_fast.ops.window_attention import _call as window_call
from vitadapter_fast.ops.window_attention import triton as windows

# More levels and grids than models have, and few points, to be quick.
FIVE = AttnCase("five", 1, 1, 16, 1, ((2, 2),) * 5, ((2, 2),) * 5)


def conv_launches(dtype: torch.dtype, grids: int) -> dict[str, Launch]:
    """Return the launches of the depthwise convolution, by the kernel's name."""
    shapes = (1, 4 * grids, 96), (96, 1, 3, 3), (96,)
    tokens, weight, bias = (torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
    call = conv_call.Call(tokens, [2, 2] * grids, weight, bias)
    with recorded() as found:
        conv.backward(call, torch.empty_like(conv.forward(call)), (True, True, True))
    return found


def window_launches(dtype: torch.dtype) -> dict[str, Launch]:
    """Return the launches of the attention within windows, by the kernel's name."""
    qkv = torch.empty(1, 32 * 32, 3, 6, 64, dtype=dtype, device="meta")
    call = window_call.Call(qkv, [32, 32], 14)
    with recorded() as found:
        out, logsumexp = windows.forward(call)
        windows.backward(call, torch.empty_like(out), (True,), out, logsumexp)
    return found


def rope_launches(dtype: torch.dtype) -> dict[str, Launch]:
    """Return the launches of the rotary position embedding, by the kernel's name."""
    qkv = torch.empty(1, 32 * 32 + 5, 3, 6, 64, dtype=dtype, device="meta")
    tables = torch.empty(64, 2, 16, device="meta")
    with recorded() as found:
        rope.forward(rope_call.Call(qkv, tables, [32, 32], False))
    return found


def all_launches() -> Iterator[tuple[str, Launch]]:
    """Yield what S launches in training, and in float32 what passes more sizes than that."""
    heads = MODEL_HEADS["s"]
    for kind, make in (("extractor", extractor), ("injector", injector)):
        for name, launch in launches(make(kind, 512, *heads), torch.bfloat16).items():
            yield f"{kind} {name}", launch
    for name, launch in launches(FIVE, torch.float32).items():
        yield f"five {name}", launch
    for dtype, grids in ((torch.bfloat16, 3), (torch.float32, 16)):
        for name, launch in conv_launches(dtype, grids).items():
            yield f"{grids} grids {name}", launch
    for dtype in (torch.bfloat16, torch.float32):
        found = patch_launches("bicubic", dtype, torch.float32) | window_launches(dtype)
        found |= rope_launches(dtype)
        for name, launch in found.items():
            yield f"{dtype} {name}", launch


def main(arch: str) -> int:
    """Compile for one GPU; return how many kernels failed."""
    is_hip = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if is_hip else sm(int(arch))
    done, failed = 0, []
    with mock.patch.object(torch.version, "hip", "6" if is_hip else None):
        for name, launch in all_launches():
            try:
                compiled(launch, target)
                done += 1
            except Exception as error:
                failed.append(f"{name}: {type(error).__name__}: {error}")
    print(f"{arch}: {done} compiled, {len(failed)} failed", *failed, sep="\n  ", flush=True)
    return len(failed)


if __name__ == "__main__":
    sys.exit(sum(map(main, sys.argv[1:] or ["90"])) > 0)
