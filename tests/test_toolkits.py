# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Which nvcc a build takes, for which GPUs, and that the sources suit the oldest of both."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "ops"))

from cuda_sources import KERNEL_FILES
from exclusive import exclusive

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
COMMON = "80-real;90-real;90-virtual"

NVCC = """#!/bin/sh
case $1 in
--version) echo "Cuda compilation tools, release {release}, V{release}.99" ;;
--list-gpu-code) for number in {known}; do echo sm_$number; done ;;
*) exit 1 ;;
esac
"""
KNOWN = {
    "11.8": "50 60 70 75 80 86 87 89 90",
    "12.0": "50 60 70 75 80 86 87 89 90",
    "13.0": "75 80 86 87 88 89 90 100 110 103 120 121",
}


def make_nvcc(folder: Path, release: str) -> Path:
    """Write a compiler that says what it is, and compiles nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(NVCC.format(release=release, known=KNOWN[release]))
    nvcc.chmod(0o755)
    return nvcc


def choose(
    tmp_path: Path, archs: str = "", gpus: str = "", home: Path | None = None, **environment: str
) -> Any:
    """Return what csrc/cuda.cmake says, on a machine with these GPUs and nothing on PATH."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    smi = tools / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nfor each in {gpus}; do echo $each; done\n")
    smi.chmod(0o755)
    script = tmp_path / "show.cmake"
    script.write_text(
        f'include({CSRC}/cuda.cmake)\nmessage("archs=${{cuda_archs}}\\nreason=${{no_cuda_reason}}")'
        '\nmessage("nvcc=$ENV{CUDACXX}")\n'
    )
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    options = [f"-DVITADAPTER_CUDA_ARCHS={archs}", f"-DVITADAPTER_CUDA_HOME={home or 'nowhere'}"]
    path = f"{tools}:/bin" + (f":{environment.pop('PATH')}" if "PATH" in environment else "")
    done = subprocess.run(
        [str(cmake), *options, "-P", str(script)],
        capture_output=True,
        text=True,
        env={"PATH": path, **environment},
    )
    told = dict(re.findall(r"^(archs|reason|nvcc)=(.*)$", done.stderr, re.MULTILINE))
    return told if done.returncode == 0 else " ".join(done.stderr.split())


def test_nvcc_is_found_by_name_then_path_then_where_installers_leave_it(tmp_path: Path) -> None:
    nvcc = {name: make_nvcc(tmp_path / name / "bin", "13.0") for name in "abcde"}
    homes = {name: str(tmp_path / name) for name in nvcc}
    places = {
        "CUDACXX": str(nvcc["a"]),
        "PATH": f"{homes['b']}/bin",
        "CUDA_HOME": homes["c"],
        "CUDA_PATH": homes["d"],
    }
    for name in "abcd":
        found = choose(tmp_path, home=Path(homes["e"]), **places)
        assert (found["nvcc"], found["reason"]) == (str(nvcc[name]), "")
        places.pop(next(iter(places)))
    assert choose(tmp_path, home=Path(homes["e"]))["nvcc"] == str(nvcc["e"])
    looked = "neither by CUDACXX nor in PATH, CUDA_HOME, CUDA_PATH or nowhere"
    assert choose(tmp_path)["reason"] == f"no nvcc was found: {looked}"
    told = choose(tmp_path, CUDACXX="/nowhere/nvcc", PATH=f"{homes['b']}/bin")
    assert told["reason"] == "no nvcc was found: CUDACXX is /nowhere/nvcc"


@pytest.mark.parametrize(
    ("release", "asked", "gpus", "archs"),
    [
        ("12.0", "", "", COMMON),
        ("12.0", "", "8.9 9.0", COMMON),
        ("12.0", "", "7.5 7.5", f"{COMMON};75-real"),
        ("12.0", "", "7.0 12.0", COMMON),  # one too old, one too new for this nvcc
        ("13.0", "", "12.0 10.0", f"{COMMON};120-real;100-real"),
        ("13.0", "native", "8.9 12.0 8.9", "89-real;120-real"),
        ("12.0", "all-major", "", "75-real;80-real;90-real;90-virtual"),
        ("13.0", "all-major", "", "75-real;80-real;90-real;100-real;110-real;120-real;121-virtual"),
        ("13.0", "90a-real;120f;80-virtual", "", "90a-real;120f;80-virtual"),
    ],
)
def test_architectures_are_the_common_ones_and_those_of_this_machine_or_as_asked(
    release: str, asked: str, gpus: str, archs: str, tmp_path: Path
) -> None:
    nvcc = str(make_nvcc(tmp_path, release))
    assert choose(tmp_path, asked, gpus, CUDACXX=nvcc) == {
        "archs": archs,
        "reason": "",
        "nvcc": nvcc,
    }


@pytest.mark.parametrize(
    ("release", "asked", "gpus", "reason"),
    [
        ("11.8", "", "", "NVCC is of CUDA 11.8, and 12.0 or newer is needed"),
        ("11.8", "80", "", "NVCC is of CUDA 11.8, and 12.0 or newer is needed"),
        ("12.0", "80;70-real", "", "sm_70 is too old: sm_75 or newer is needed"),
        ("13.0", "native", "7.0", "sm_70 is too old: sm_75 or newer is needed"),
        ("13.0", "native", "", "VITADAPTER_CUDA_ARCHS is native, and nvidia-smi names no GPU"),
        (
            "12.0",
            "120-real",
            "",
            "NVCC of CUDA 12.0 does not know sm_120, only 50, 60, 70, 75, 80, 86, 87, 89, 90",
        ),
    ],
)
def test_toolkit_or_architecture_that_cannot_do_it_is_one_sentence(
    release: str, asked: str, gpus: str, reason: str, tmp_path: Path
) -> None:
    nvcc = str(make_nvcc(tmp_path, release))
    assert choose(tmp_path, asked, gpus, CUDACXX=nvcc)["reason"] == reason.replace("NVCC", nvcc)


@pytest.mark.parametrize("asked", ["9.0", "80 90", "sm_80", "8", "80-reel", "90+PTX"])
def test_malformed_architectures_are_refused(asked: str, tmp_path: Path) -> None:
    told = choose(tmp_path, asked, CUDACXX=str(make_nvcc(tmp_path, "13.0")))
    assert f"must be native, all, all-major or a list such as 80-real;90, got '{asked}'" in told


@pytest.fixture(scope="module")
def oldest_headers() -> list[Path]:
    """The headers of CUDA 12.0, as NVIDIA distributes them to Python."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    folder = ROOT / "build" / "cuda-12.0"
    with exclusive(folder):
        if not (folder / "done").exists():
            wheels = ["nvidia-cuda-nvcc-cu12==12.0.140", "nvidia-cuda-runtime-cu12==12.0.146"]
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *wheels]
            done = subprocess.run([*command, "-d", folder], capture_output=True, text=True)
            if done.returncode != 0 and "VITADAPTER_OLDEST_TOOLKIT" not in os.environ:
                pytest.skip("the headers of CUDA 12.0 cannot be fetched here")
            assert done.returncode == 0, done.stderr[-2000:]
            for wheel in folder.glob("*.whl"):
                with zipfile.ZipFile(wheel) as file:
                    headers = [name for name in file.namelist() if "/include/" in name]
                    # The glue between nvcc's own output and the runtime: of its own version.
                    headers = [name for name in headers if not name.endswith("host_runtime.h")]
                    file.extractall(folder, headers)
                wheel.unlink()
            (folder / "done").touch()
    return [folder / "nvidia" / part / "include" for part in ("cuda_nvcc", "cuda_runtime")]


def compile_with(headers: list[Path], source: Path, out: Path, *flags: str) -> Any:
    """Compile with the nvcc at hand, whose own headers come after the given ones.

    All but the object code of the host, which needs the glue too.
    """
    command = ["nvcc", "-std=c++17", "-DVITADAPTER_ISA=cuda", "-cuda", str(source), "-o", str(out)]
    command += [f"-I{folder}" for folder in (*headers, CSRC)]
    return subprocess.run([*command, *flags], capture_output=True, text=True)


def test_oldest_headers_are_those_that_are_read(oldest_headers: list[Path], tmp_path: Path) -> None:
    """What CUDA 12.1 added is missing; without this the test below could not fail."""
    source = tmp_path / "newer.cu"
    source.write_text(
        "__global__ void add(float4* to, float4 what) {\n#if __CUDA_ARCH__ >= 900\n"
        "  atomicAdd(to, what);\n#endif\n}\n"
    )
    done = compile_with(oldest_headers, source, tmp_path / "out.o", "-arch=sm_90")
    assert 'no instance of overloaded function "atomicAdd"' in done.stdout + done.stderr
    assert compile_with([], source, tmp_path / "out.o", "-arch=sm_90").returncode == 0


@pytest.mark.parametrize("name", ["cuda_probe/probe.cu", *KERNEL_FILES])
def test_sources_compile_with_the_oldest_headers(
    name: str, oldest_headers: list[Path], tmp_path: Path
) -> None:
    """For the host, the oldest GPU and the newest that CUDA 12.0 knows; machine code: see ops/."""
    targets = [f"-gencode=arch=compute_{each},code=compute_{each}" for each in (75, 90)]
    few = ["-DVITADAPTER_HEAD_CHANNELS=32", "-DVITADAPTER_LEVELS=2"]
    done = compile_with(oldest_headers, CSRC / name, tmp_path / "out.o", *targets, *few)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
