# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Compile the Triton kernels ahead of time, without a GPU, as the backend would launch them.

    python compile_triton.py ARCH    prints {configuration and kernel: usage} as JSON

In a process of its own: where Triton interprets, it cannot compile.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

import torch
import triton
from cases import MODEL_HEADS, AttnCase, extractor, injector
from stub_driver import sm, stub_driver
from triton.backends.compiler import GPUTarget

from vitadapter_fast.ops import _triton
from vitadapter_fast.ops.ms_deform_attn import _value_gradient
from vitadapter_fast.ops.ms_deform_attn import triton as backend
from vitadapter_fast.ops.ms_deform_attn._call import classic_call, grid_call
from vitadapter_fast.ops.patch_embed import triton as patch_embed
from vitadapter_fast.ops.patch_embed._call import MODES
from vitadapter_fast.ops.patch_embed._call import Call as PatchCall

# Heads of DINOv3's adapters, which are not powers of two.
HEADS_BETWEEN = (24, 40)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTER = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
}
Launch = tuple[Any, dict[str, Any]]


@contextmanager
def recorded(suffix: str = "") -> Iterator[dict[str, Launch]]:
    """Keep launches rather than make them: {name and, of the convolution, what for: launch}."""
    found: dict[str, Launch] = {}

    def record(kernel: Any, *, grid: tuple[int, ...], **arguments: Any) -> None:
        then = {0: " of gelu", 1: " of slope", 2: " of tokens"}.get(arguments.get("THEN", 3), "")
        found[kernel.__name__ + then + suffix] = (kernel, arguments)

    with mock.patch.object(_triton, "launch", record):
        yield found


def launches(case: AttnCase, dtype: torch.dtype) -> dict[str, Launch]:
    """Return every kernel launch of forward and of backward in both ways, by the kernel's name."""
    B, Q, M, L, P = case.batch, case.num_queries, case.heads, len(case.level_hw), case.points
    wide = torch.promote_types(dtype, torch.float32)
    value = torch.empty(B, case.num_tokens, M, case.channels, dtype=dtype, device="meta")
    weights = torch.empty(B, Q, M, L, P, dtype=dtype, device="meta")
    points_dtype = dtype if case.query_hw else wide
    points = torch.empty(B, Q, M, L, P, 2, dtype=points_dtype, device="meta")
    level_hw = [size for hw in case.level_hw for size in hw]
    query_hw = [size for hw in case.query_hw for size in hw]
    if query_hw:
        call = grid_call(value, level_hw, query_hw, points, weights)
    else:
        call = classic_call(value, level_hw, points, weights)
    with recorded() as found:
        grad_out = torch.empty_like(backend.forward(call))
    for how, threshold in (("atomics", float("inf")), ("records", 0)):
        with (
            recorded(f" {how}") as launched,
            mock.patch.object(_value_gradient, "POINTS_PER_PIXEL", threshold),
        ):
            backend.backward(call, grad_out, (True, True, True))
        found |= launched
    return found


def patch_launches(mode: str, dtype: torch.dtype, table_dtype: torch.dtype) -> dict[str, Launch]:
    """Return the launches of B's patch embedding at 1024 x 1024, by the kernel's name."""
    shapes = ((1, 3, 1024, 1024), (768, 3, 16, 16), (768,))
    image, weight, bias = (torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)
    table = torch.empty(37 * 37, 768, dtype=table_dtype, device="meta")
    call = PatchCall(image, weight, bias, table, [37, 37], mode)
    with recorded() as found:
        grad_out = torch.empty_like(patch_embed.forward(call))
        patch_embed.backward(call, grad_out, (False, False, False, True))
    return found


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """Return the kernel as Triton compiles it for a launch, specialized by its own rules.

    Tensors on the meta device are aligned like memory of torch's allocator.
    """
    kernel, arguments = launch
    with stub_driver(target):
        return kernel.warmup(grid=(1,), **arguments, **_triton.LAUNCH_OPTIONS)


def usage(kernel: Any, *, counts: bool) -> dict[str, int]:
    """Return registers and bytes of local memory; instructions and wide loads if it counts."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def dump(option: str) -> str:
            command = [TOOLS / "cuobjdump", option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", dump("--dump-resource-usage")))
        result = {
            "registers": int(found["REG"]),
            "local": int(found["STACK"]) + int(found["LOCAL"]),
        }
        if counts:
            instruction = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)"
            code = re.findall(instruction, dump("--dump-sass"), re.M)
            # After the code comes padding: a branch to itself and NOPs.
            result["instructions"] = sum(name != "NOP" for name in code)
            wide = (name.startswith("LDG") and ".128" in name for name in code)
            result["wide_loads"] = sum(wide)
    return result


def main(arch: int) -> None:
    """Compile what the models run: both entry points in bf16, the one they call in float32."""
    found = {}
    target = sm(arch)
    for model in ("s", "b"):
        for kind, make in (("injector", injector), ("extractor", extractor)):
            case = make(kind, 1024, *MODEL_HEADS[model])
            for dtype, form in (
                (torch.bfloat16, case),
                (torch.float32, case),
                (torch.bfloat16, case.classic()),
            ):
                name = f"{kind}_{model} {'grid' if form.query_hw else 'classic'} {POINTER[dtype]}"
                for kernel, launch in launches(form, dtype).items():
                    result = usage(compiled(launch, target), counts=kernel.startswith("forward"))
                    warps = launch[1]["num_warps"]
                    found[f"{name} {kernel}"] = result | {"rows": launch[1]["ROWS"], "warps": warps}
    for channels in HEADS_BETWEEN:
        case = extractor("", 1024, 6, channels)
        launch = launches(case, torch.bfloat16)["forward_kernel"]
        counts = {"rows": launch[1]["ROWS"], "warps": launch[1]["num_warps"]}
        result = usage(compiled(launch, target), counts=True)
        found[f"extractor_{channels} grid *bf16 forward_kernel"] = result | counts
    for mode in MODES:
        for dtype, table_dtype in (
            (torch.bfloat16, torch.bfloat16),
            (torch.bfloat16, torch.float32),
            (torch.float32, torch.float32),
        ):
            for kernel, launch in patch_launches(mode, dtype, table_dtype).items():
                name = f"{mode} {POINTER[dtype]} {POINTER[table_dtype]} {kernel}"
                found[name] = usage(compiled(launch, target), counts=False)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
