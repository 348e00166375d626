# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled extension: what it links and says of itself; its build, and what is distributed."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools

from vitadapter_fast import _C, __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = (
    "LICENSE", "README.md", "constraints.txt", "convert_14to16.py", "pyproject.toml", "setup.py",
)  # fmt: skip
# With the release list of architectures a wheel has 31 MB.
MAX_BYTES = 40_000_000


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked; made of a copy, as it writes beside the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    built = shutil.ignore_patterns("__pycache__", "_C*.so")
    for name in ("csrc", "vitadapter_fast"):
        shutil.copytree(ROOT / name, source / name, ignore=built)
    for name in (*TOP_LEVEL, "tests/test_build.py"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    (archive,) = call_backend("build_sdist", source, out, dict(os.environ), check=True)
    with tarfile.open(archive) as file:
        file.extractall(out, filter="data")
    (unpacked,) = (path for path in out.iterdir() if path.is_dir())
    return unpacked


def call_backend(
    hook: str, source: Path, out: Path, environment: dict[str, str], *, check: bool = False
) -> Any:
    """Call setuptools as pip does; return the files that are in ``out``, or the failed process."""
    code = f"import setuptools.build_meta as backend; backend.{hook}({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True
    )
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return list(out.iterdir()) if done.returncode == 0 else done


def build(sdist: Path, tmp_path: Path, **switches: str) -> Any:
    """Build a wheel of the source distribution, in an environment that has no nvcc on PATH."""
    source, bare, out = tmp_path / "source", tmp_path / "bin", tmp_path / "out"
    shutil.copytree(sdist, source)
    bare.mkdir()
    for tool in ("sh", "gcc", "g++", "c++", "cc", "ld", "as", "ar", "ranlib", "uname"):
        if found := shutil.which(tool):
            (bare / tool).symlink_to(found)
    environment = {"PATH": str(bare), "HOME": str(tmp_path)} | switches
    return call_backend("build_wheel", source, out, environment)


def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def files_of_the_package() -> set[str]:
    """What an installation must have: the package's files as they lie here, but the extension."""
    paths = [path for path in (ROOT / "vitadapter_fast").rglob("*") if path.is_file()]
    kept = [path for path in paths if path.suffix not in (".pyc", ".so")]
    return {path.relative_to(ROOT).as_posix() for path in kept}


def test_extension_links_neither_torch_nor_cuda() -> None:
    libraries = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True, check=True)
    names = " ".join(line.split()[0] for line in libraries.stdout.splitlines())  # not addresses
    assert "libstdc++" in names
    for name in ("torch", "c10", "cuda", "nvrtc"):
        assert name not in names


def test_sources_include_no_torch_header() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".cu")]
    assert sources
    for path in sources:
        text = path.read_text()
        assert "#include <torch" not in text and "#include <ATen" not in text, path


def test_build_info_names_version_and_instruction_set() -> None:
    info = _C.build_info()
    assert info["version"] == __version__
    assert info["build_type"] in ("Release", "Debug")
    assert info["cpu_isa"] == os.environ.get("VITADAPTER_ISA", info["cpu_isa"])
    assert info["cpu_isa"] in ("avx512", "avx512bf16", "avx2", "neon", "portable")


def test_build_info_names_the_calls_that_have_specialized_kernels() -> None:
    info = _C.build_info()
    assert (info["head_channels"], info["points"]) == ([16, 32, 64, 128], 4)
    assert info["levels"] == [1, 2, 3, 4, 5]
    # The state of many points of float32 is too much for a lane.
    assert info["generic_backward"] == [
        *((4, 16, levels) for levels in (2, 3, 4, 5)),
        *((4, channels, 5) for channels in (32, 64, 128)),
    ]


def test_wrong_sizes_never_reach_a_kernel() -> None:
    sizes = {"value_shape": [1, 4, 1, 8], "queries": 1, "num_points": 1, "query_hw": []}
    codes = {"value_dtype": 0, "points_dtype": 0, "weights_dtype": 0}
    strides = {"value_strides": (32, 8), "points_strides": (2, 2), "weights_strides": (1, 1)}
    pointers = dict.fromkeys(("value", "points", "weights", "out"), 64)  # never read
    with pytest.raises(ValueError, match="level sizes do not add up"):
        _C.ms_deform_attn_forward_cpu(**pointers, **codes, **strides, **sizes, level_hw=[2, 3])
    with pytest.raises(ValueError, match="pairs"):
        _C.ms_deform_attn_forward_cpu(**pointers, **codes, **strides, **sizes, level_hw=[2])


def test_source_distribution_holds_what_a_build_needs(sdist: Path) -> None:
    found = {path.relative_to(sdist).as_posix() for path in sdist.rglob("*") if path.is_file()}
    csrc = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}
    wanted = {*TOP_LEVEL, *files_of_the_package(), *csrc, "PKG-INFO", "setup.cfg"}
    assert {name for name in found if ".egg-info/" not in name} == wanted


def test_wheel_of_a_debug_build_without_cuda_holds_the_package(sdist: Path, tmp_path: Path) -> None:
    done = build(sdist, tmp_path, VITADAPTER_DEBUG="1", VITADAPTER_CUDA="0")
    assert isinstance(done, list), done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = done
    assert wheel.stat().st_size < MAX_BYTES
    extension = f"vitadapter_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    facts = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    with zipfile.ZipFile(wheel) as file:
        found = set(file.namelist())
        info = f"vitadapter_fast-{__version__}.dist-info"
        assert found == {*files_of_the_package(), extension, *(f"{info}/{each}" for each in facts)}
        assert file.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        file.extract(extension, tmp_path)
    code = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_C", {str(tmp_path / extension)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
info = module.build_info()
print(info["build_type"], info["cuda_compiler"], info["no_cuda_reason"])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "Debug None by VITADAPTER_CUDA=0\n"


def test_sources_are_named_where_data_comes_from_others() -> None:
    sources = (ROOT / "README.md").read_text().partition("\n## Sources and license\n")[2]
    for origin in ("github.com/czczup/ViT-Adapter", "github.com/Shenggan/BCCD_Dataset) (MIT)"):
        assert origin in sources
    for license_file in ("vitadapter_fast/data/blood_cells_LICENSE.txt", "tests/data/bccd/LICENSE"):
        assert "MIT License" in (ROOT / license_file).read_text()


def test_demanding_cuda_without_nvcc_fails_with_the_remedy(sdist: Path, tmp_path: Path) -> None:
    done = build(sdist, tmp_path, VITADAPTER_CUDA="1", CUDACXX="/nowhere/nvcc")
    assert done.returncode != 0
    told = "but no nvcc was found: CUDACXX is /nowhere/nvcc. Put a working nvcc on PATH"
    assert told in " ".join(done.stderr.split())


def test_windows_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    called: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", called.update)
    runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setattr(sys, "platform", "win32")
    command = called["cmdclass"]["build_ext"](setuptools.Distribution())
    with pytest.raises(SystemExit, match=r"^vitadapter_fast: Windows is not supported, .*\.$"):
        command.build_extension(called["ext_modules"][0])


def test_wheels_are_for_the_pythons_and_gpus_that_are_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheels = project["tool"]["cibuildwheel"]
    building = " ".join((ROOT / "docs" / "building.md").read_text().split())
    pythons = [f"3.{each[3:-2]}" for each in wheels["build"].split()]
    assert project["project"]["requires-python"] == f">={pythons[0]}"
    assert f"for Python {pythons[0]} to {pythons[-1]}:" in building
    assert len(pythons) == int(pythons[-1][2:]) - int(pythons[0][2:]) + 1
    (with_cuda,) = wheels["overrides"]
    gpus = with_cuda["environment"]["VITADAPTER_CUDA_ARCHS"]
    assert f"releases `{gpus}`" in building and f'releases use "{gpus}"' in text_of("setup.py")
    script = wheels["test-command"].removeprefix("bash {project}/")
    for path in (script, "tests/wheel.sh"):
        assert (ROOT / path).stat().st_mode & 0o100
    workflow = text_of(".github/workflows/wheels.yml")
    (runners,) = re.findall(r"runner: \[(.+)\]", workflow)
    assert f'wc -l)" = {len(pythons) * len(runners.split(", ")) + 1}\n' in workflow


def test_unknown_switch_value_is_refused(sdist: Path, tmp_path: Path) -> None:
    done = build(sdist, tmp_path, VITADAPTER_CUDA="yes")
    assert done.returncode != 0 and "must be auto, 0 or 1, got 'yes'" in done.stderr
