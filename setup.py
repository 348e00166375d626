# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Build the extension with CMake and Ninja; everything else is in pyproject.toml.

CMake is called from here, not by scikit-build-core's setuptools plugin: Ninja takes as long either
way, and the plugin has no place for the copy in a clone, the switches' check and these messages.

Environment:
    VITADAPTER_CUDA: auto (default: CUDA kernels if nvcc works), 1 (fail without nvcc), 0 (never).
    VITADAPTER_CUDA_ARCHS: list as CMAKE_CUDA_ARCHITECTURES; default "80-real;90-real;90-virtual"
        and the GPUs of this machine, releases use "80;86;89;90;100;120".
    CUDACXX: nvcc, 12.0 or newer; else that on PATH, in CUDA_HOME, CUDA_PATH or /usr/local/cuda.
    VITADAPTER_DEBUG: 1 for an unoptimized build with debug symbols.
    MAX_JOBS: parallel compile jobs; default: as many as the machine has cores.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent.resolve()


def version() -> str:
    """Read the version without importing the package, which would need torch."""
    facts: dict[str, str] = {}
    exec((ROOT / "vitadapter_fast" / "version.py").read_text(), facts)
    return facts["__version__"]


def tool(name: str) -> str:
    """Return the path of a build tool: from this environment first, then from PATH."""
    beside = Path(sysconfig.get_path("scripts")) / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        sys.exit(
            f"vitadapter_fast: building needs {name}, which was not found. `pip install .` brings "
            "it; with --no-build-isolation run `pip install cmake ninja pybind11 setuptools` first."
        )
    return found


class CMakeBuild(build_ext):
    """Hand the extension to CMake."""

    def get_source_files(self) -> list[str]:
        """Return what a source distribution takes along beside the package, README and LICENSE."""
        sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
        others = [ROOT / name for name in ("constraints.txt", "convert_14to16.py")]
        return [str(path.relative_to(ROOT)) for path in (*sorted(sources), *others)]

    def build_extension(self, ext: Extension) -> None:
        """Configure, build and install ``_C`` to where setuptools expects it."""
        if sys.platform == "win32":
            sys.exit(
                "vitadapter_fast: Windows is not supported, because nothing is tested there; in "
                "WSL 2 the Linux build works."
            )
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "CMAKE_BUILD_TYPE": "Debug" if os.environ.get("VITADAPTER_DEBUG") == "1" else "Release",
            "CMAKE_INSTALL_PREFIX": str(target.parent),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "VITADAPTER_VERSION": version(),
            "VITADAPTER_CUDA": os.environ.get("VITADAPTER_CUDA", "auto"),
        }
        if archs := os.environ.get("VITADAPTER_CUDA_ARCHS"):
            options["VITADAPTER_CUDA_ARCHS"] = archs
        if options["VITADAPTER_CUDA"] not in ("auto", "0", "1"):
            sys.exit(f"VITADAPTER_CUDA must be auto, 0 or 1, got {options['VITADAPTER_CUDA']!r}")
        jobs = os.environ.get("MAX_JOBS")
        cmake = tool("cmake")
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(
            [cmake, "-S", str(ROOT / "csrc"), "-B", str(build), "-G", "Ninja", *definitions],
            check=True,
        )
        subprocess.run(
            [cmake, "--build", str(build), *(["--parallel", jobs] if jobs else [])], check=True
        )
        subprocess.run([cmake, "--install", str(build)], check=True)
        # Python started in a clone imports the package from there: that copy needs it too.
        beside = ROOT / "vitadapter_fast" / target.name
        if beside != target:
            with contextlib.suppress(OSError):
                shutil.copyfile(target, beside)


class Sources(sdist):
    """Leave the tests to the repository: setuptools takes their modules, but not their data."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy ``files`` to the folder that becomes the archive."""
        super().make_release_tree(
            base_dir, [name for name in files if "tests" not in Path(name).parts]
        )


setup(
    ext_modules=[Extension("vitadapter_fast._C", [])],
    cmdclass={"build_ext": CMakeBuild, "sdist": Sources},
)
