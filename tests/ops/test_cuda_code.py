# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of the CUDA kernels: registers, local memory, instructions."""

import hashlib
import os
import re
import shutil
import subprocess
from functools import cache, lru_cache
from pathlib import Path

import pytest
from cuda_sources import KERNEL_FILES
from exclusive import exclusive

from vitadapter_fast import _C

ROOT = Path(__file__).resolve().parents[2]
# For devices that a build does not have by default; VITADAPTER_ALL_KERNELS=1 compiles all, which
# takes minutes.
FEW = ("-DVITADAPTER_HEAD_CHANNELS=32", "-DVITADAPTER_LEVELS=1\\,4")
DEFINITIONS = () if os.environ.get("VITADAPTER_ALL_KERNELS") else FEW
# As written beside each kernel.
REGISTERS = {
    "forward_kernel": 80,
    "generic_forward_kernel": 64,
    "generic_points_backward_kernel": 128,
    "place_kernel": 32,
    "gather_kernel": 64,
    "generic_gather_kernel": 128,
    "convolve_kernel": 168,
    "weight_gradient_kernel": 168,
    "columns_kernel": 42,
    "resize_add_kernel": 128,
    "rope_kernel": 56,
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
def compile_for(arch: str, *definitions: str) -> list[Path]:
    """Compile every kernel file for one architecture; unchanged sources are reused."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    csrc = ROOT / "csrc"
    digest = hashlib.sha256(" ".join(definitions).encode())
    for path in sorted(path for path in csrc.rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / f"cubin-{digest.hexdigest()[:16]}"
    with exclusive(folder):
        running = []
        cubins = [folder / f"{name.replace('/', '-')}.{arch}.cubin" for name in KERNEL_FILES]
        for name, cubin in zip(KERNEL_FILES, cubins, strict=True):
            if not cubin.exists():
                part = cubin.with_suffix(".part")
                command = ["nvcc", "-std=c++17", "-O3", "-DVITADAPTER_ISA=cuda", f"-I{csrc}"]
                command += definitions
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


@pytest.mark.parametrize("arch", ["sm_75", "sm_120"])
def test_kernels_for_other_devices_spill_nothing_and_keep_to_their_registers(arch: str) -> None:
    found = [usage for cubin in compile_for(arch, *DEFINITIONS) for usage in resources(cubin)]
    check_resources(found)


@lru_cache(maxsize=2)
def dump(binary: Path, arch: str) -> str:
    return output(disassembler(), "--dump-sass", "-arch", arch, binary)


def instructions(binary: Path, arch: str, kernel: str) -> dict[str, list[tuple[int, str, str]]]:
    """Return (address, instruction, operands) in kernels whose symbol matches, by what it captures.

    Without the padding after the code: a branch to itself and NOPs.
    """
    found: dict[str, list[tuple[int, str, str]]] = {}
    form = None
    for line in dump(binary, arch).splitlines():
        if match := re.search(r"Function : (\S+)", line):
            wanted = re.search(kernel, match[1])
            form = found.setdefault(wanted[1], []) if wanted else None
        code = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?([A-Z]\w+)([^;]*)", line)
        if form is not None and code and code[2] != "NOP":
            form.append((int(code[1], 16), code[2], code[3]))
    return found


def binary_for(arch: str, kernel_file: str) -> Path:
    """Return a binary with the kernels of one file for an architecture, built or compiled here."""
    info = _C.build_info()
    if arch == "sm_120":
        return compile_for(arch, *DEFINITIONS)[KERNEL_FILES.index(kernel_file)]
    if info["cuda_kernels"] and f"{arch[3:]}-real" in info["cuda_archs"]:
        return Path(_C.__file__)
    pytest.skip(f"the extension was built without {arch}")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_forward_takes_at_most_80_instructions_for_a_query_and_head(arch: str) -> None:
    binary = binary_for(arch, "ms_deform_attn/forward_cuda.cu")
    # bf16, D = 32, L = 1; classic or grid.
    kernel = r"\dforward_kernelINS_8BFloat16ELi32ELi1ELb([01])E"
    counts = {form: len(code) for form, code in instructions(binary, arch, kernel).items()}
    # A warp works on eight queries of one head. All is straight-line code, but for the search of
    # the query grid: six instructions a turn, at most twice.
    assert set(counts) == {"0", "1"}
    assert all(200 < count <= 8 * 80 for count in counts.values()), counts


def row_loop(code: list[tuple[int, str, str]]) -> int:
    """Return the length of the longest loop: a jump back, to a number that is an address."""
    lengths = [0]
    for end, name, operands in code:
        if name == "BRA" and (target := re.search(r"0x([0-9a-f]+)", operands)):
            lengths.append(sum(int(target[1], 16) <= at <= end for at, *_ in code))
    return max(lengths)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_convolution_takes_at_most_40_instructions_for_an_element(arch: str) -> None:
    binary = binary_for(arch, "dwconv_gelu/forward_cuda.cu")
    kernel = r"\dconvolve_kernelI(NS_8BFloat16E|NS_4HalfE|f)Li[48]ELNS_?\d?_4ThenE0E"
    loops = {name: row_loop(code) for name, code in instructions(binary, arch, kernel).items()}
    assert len(loops) == 3
    # Nine multiplications, GELU in 18, the rest moves data. The loop is unrolled three times.
    for name, length in loops.items():
        elements = 3 * (4 if name == "f" else 8)
        assert 27 * elements < length <= 40 * elements, (name, length)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_lanes_of_a_query_add_to_channels_in_a_row(arch: str) -> None:
    """Four points, four pixels each; no lane adds its eight channels one by one."""
    binary = binary_for(arch, "ms_deform_attn/backward_cuda.cu")
    kernel = r"\dpoints_backward_kernelINS_8BFloat16ELi32ELi1ELb([01])E\w+SumE0E"
    forms = instructions(binary, arch, kernel)
    assert set(forms) == {"0", "1"}
    for code in forms.values():
        adds = [operands for _, name, operands in code if name in ("RED", "REDG")]
        offsets = [int(match[1], 16) for each in adds if (match := re.search(r"\+(0x\w+)\]", each))]
        if arch == "sm_80":
            # One float at a time: four lanes, four channels. sm_80 has no others.
            assert len(adds) == 16 * 8 and all(offset % 16 == 0 for offset in offsets)
        else:
            assert len(adds) == 16 * 2 and all("128" in each or "x4" in each for each in adds)
