# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Compile the Triton kernels ahead of time, without a GPU, as the backend would launch them.

    python compile_triton.py NAME ...    prints {kernel: usage} of configurations as JSON

Runs in a process of its own: where the interpreter is on, nothing can be compiled.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from cases import AttnCase
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vitadapter_fast.ops import _triton
from vitadapter_fast.ops.ms_deform_attn import _classic_call, _grid_call, _value_gradient
from vitadapter_fast.ops.ms_deform_attn import triton as backend

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTER = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
}
Launch = tuple[Any, dict[str, Any]]


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
        call = _grid_call(value, level_hw, query_hw, points, weights)
    else:
        call = _classic_call(value, level_hw, points, weights)
    found: dict[str, Launch] = {}
    suffix = ""

    def record(kernel: Any, *, grid: tuple[int, ...], **arguments: Any) -> None:
        found[kernel.__name__ + suffix] = (kernel, arguments)

    with mock.patch.object(_triton, "launch", record):
        grad_out = torch.empty_like(backend.forward(call))
        for how, threshold in (("atomics", float("inf")), ("records", 0)):
            suffix = f" {how}"
            with mock.patch.object(_value_gradient, "POINTS_PER_PIXEL", threshold):
                backend.backward(call, grad_out, (True, True, True))
    return found


def compiled(launch: Launch, arch: int) -> bytes:
    """Return the machine code; specialized as Triton does for memory of torch's allocator."""
    kernel, arguments = launch
    options = {name: arguments[name] for name in ("num_warps", "num_stages")}
    signature, constants, aligned = {}, {}, []
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        argument = arguments[name]
        if parameter.is_constexpr:
            signature[name], constants[name] = "constexpr", argument
        elif isinstance(argument, torch.Tensor):
            signature[name] = POINTER[argument.dtype]
            aligned.append(index)
        else:
            assert parameter.do_not_specialize, name
            signature[name] = "i32" if abs(argument) < 2**31 else "i64"
    if VERSION >= (3, 3):
        attributes: Any = {(index,): [["tt.divisibility", 16]] for index in aligned}
    else:
        from triton.compiler import AttrsDescriptor  # type: ignore[attr-defined]

        signature = {k: v for k, v in signature.items() if v != "constexpr"}
        if VERSION < (3, 2):
            attributes = AttrsDescriptor(divisible_by_16=tuple(aligned), equal_to_1=())
        else:
            attributes = AttrsDescriptor.from_dict(
                {"arg_properties": {"tt.divisibility": aligned}, "cls": "AttrsDescriptor"}
            )
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options=options).asm["cubin"]  # type: ignore[no-any-return]


def usage(cubin: bytes) -> dict[str, int]:
    """Return registers, local memory and the number of machine instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(option: str) -> str:
            command = [TOOLS / "cuobjdump", option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

        counted = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", dump("--dump-resource-usage")))
        code = re.findall(
            r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w+)", dump("--dump-sass"), re.M
        )
    # After the code comes padding: a branch to itself and NOPs.
    instructions = sum(name != "NOP" for name in code)
    return {name: int(count) for name, count in counted.items()} | {"instructions": instructions}
