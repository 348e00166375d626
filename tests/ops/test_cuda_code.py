# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of the CUDA kernels: registers, local memory, instructions."""

import hashlib
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from vitadapter_fast import _C

ROOT = Path(__file__).resolve().parents[2]
KERNEL_FILES = [
    "ms_deform_attn/forward_cuda.cu",
    "ms_deform_attn/backward_cuda.cu",
    "ms_deform_attn/gather_cuda.cu",
    "patch_embed/columns_cuda.cu",
    "patch_embed/resize_add_cuda.cu",
]

# As written beside each kernel.
REGISTERS = {
    "forward_kernel": 80,
    "generic_forward_kernel": 64,
    "generic_points_backward_kernel": 128,
    "place_kernel": 32,
    "gather_kernel": 64,
    "generic_gather_kernel": 128,
    "columns_kernel": 40,
    "resize_add_kernel": 112,
}


def register_bound(kernel: str, arguments: str) -> int:
    if kernel != "points_backward_kernel":
        return REGISTERS[kernel]
    channels, levels = map(int, re.findall(r"Li(\d+)E", arguments))
    if arguments.endswith("SumE1E"):  # records
        return 128 if levels == 1 and channels != 16 and not arguments.startswith("f") else 255
    return 255 if levels > 1 and channels in (16, 128) else 128


def disassembler() -> str:
    """Return cuobjdump: of a CUDA toolkit, or the one that triton carries."""
    if found := shutil.which("cuobjdump"):
        return found
    triton = pytest.importorskip("triton", reason="neither cuobjdump nor triton is here")
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def output(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@cache
def compile_for(arch: str) -> list[Path]:
    """Compile every kernel file for one architecture; unchanged sources are reused."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    csrc = ROOT / "csrc"
    digest = hashlib.sha256()
    for path in sorted(path for path in csrc.rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / f"cubin-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    running = []
    cubins = [folder / f"{Path(name).stem}.{arch}.cubin" for name in KERNEL_FILES]
    for name, cubin in zip(KERNEL_FILES, cubins, strict=True):
        if not cubin.exists():
            part = cubin.with_suffix(".part")
            command = ["nvcc", "-std=c++17", "-O3", "-DVITADAPTER_ISA=cuda", f"-I{csrc}"]
            command += [f"-arch={arch}", "-cubin", str(csrc / name)]
            running.append((subprocess.Popen([*command, "-o", str(part)]), part, cubin))
    for process, part, cubin in running:
        assert process.wait() == 0, f"nvcc failed for {cubin}"
        part.rename(cubin)
    return cubins


def resources(binary: Path) -> list[tuple[str, str, str, dict[str, int]]]:
    """Return (arch, kernel, template arguments, resources) of every kernel in a binary."""
    found, arch, symbol = [], "", ""
    for line in output(disassembler(), "--dump-resource-usage", binary).splitlines():
        if match := re.search(r"arch = (sm_\d+)", line) or re.search(r"\.(sm_\d+)\.cubin", line):
            arch = match[1]
        if match := re.search(r"Function (\S+):", line):
            symbol = match[1]
        if "REG:" in line and (name := re.search(r"\d([a-z_]+_kernel)I(\w+?)EEv", symbol)):
            usage = {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
            found.append((arch, name[1], name[2], usage))
    return found


def check_resources(found: list[tuple[str, str, str, dict[str, int]]]) -> None:
    assert {kernel for _, kernel, _, _ in found} == {*REGISTERS, "points_backward_kernel"}
    faults = [
        f"{kernel}<{arguments}> {arch} {usage}"
        for arch, kernel, arguments, usage in found
        if usage["STACK"] or usage["LOCAL"] or usage["REG"] > register_bound(kernel, arguments)
    ]
    assert not faults, "\n".join(faults)


def test_built_kernels_spill_nothing_and_keep_to_their_registers() -> None:
    info = _C.build_info()
    if not info["cuda_kernels"]:
        pytest.skip("the extension was built without CUDA kernels")
    found = resources(Path(_C.__file__))
    built = set(re.findall(r"(\d+)(?:-real|;|$)", info["cuda_archs"]))
    assert {arch for arch, *_ in found} == {f"sm_{number}" for number in built}
    check_resources(found)


def test_kernels_for_blackwell_spill_nothing_and_keep_to_their_registers() -> None:
    check_resources([usage for cubin in compile_for("sm_120") for usage in resources(cubin)])


def forward_instructions(binary: Path, arch: str) -> dict[str, int]:
    """Count the machine instructions of the bf16, D = 32, L = 1 forward kernels, by entry point."""
    counts, form = {"grid": 0, "classic": 0}, ""
    for line in output(disassembler(), "--dump-sass", "-arch", arch, binary).splitlines():
        if match := re.search(r"Function : (\S+)", line):
            wanted = re.search(r"\dforward_kernelINS_8BFloat16ELi32ELi1ELb([01])E", match[1])
            form = ("classic", "grid")[int(wanted[1])] if wanted else ""
        instruction = re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+ )?([A-Z]\w+)", line)
        # After the code comes padding: a branch to itself and NOPs.
        if form and instruction and instruction[1] != "NOP":
            counts[form] += 1
    return counts


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_forward_takes_at_most_80_instructions_for_a_query_and_head(arch: str) -> None:
    info = _C.build_info()
    if arch == "sm_120":
        binary = compile_for(arch)[0]
    elif info["cuda_kernels"] and f"{arch[3:]}-real" in info["cuda_archs"]:
        binary = Path(_C.__file__)
    else:
        pytest.skip(f"the extension was built without {arch}")
    counts = forward_instructions(binary, arch)
    # A warp works on eight queries of one head. All is straight-line code, but for the search of
    # the query grid: six instructions a turn, at most twice.
    assert all(200 < count <= 8 * 80 for count in counts.values()), counts
