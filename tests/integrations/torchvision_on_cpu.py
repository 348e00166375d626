# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Make PyPI's torchvision, which is built for CUDA, load beside a torch that is not; for tests.

Its compiled part names CUDA libraries that a CPU build of torch does not bring. Empty ones of the
same names, loaded when Python starts, satisfy the linker; on CPU tensors nothing calls them.
"""

import ctypes
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

SITE = Path(sysconfig.get_path("purelib"))
FOLDER = SITE / "torchvision_stubs"
LOADER = """\
import ctypes
import pathlib

for library in sorted(pathlib.Path(__file__).parent.glob("*.so*")):
    ctypes.CDLL(str(library))
"""


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def symbols(library: Path, kind: str) -> set[tuple[str, str]]:
    """Name and version of the ``defined`` or ``undefined`` dynamic symbols."""
    lines = output_of("nm", "--dynamic", f"--{kind}-only", library).splitlines()
    names = [line.split()[-1].replace("@@", "@").partition("@") for line in lines]
    return {(name, version) for name, _, version in names}


def is_loadable(name: str) -> bool:
    if (SITE / "torch" / "lib" / name).exists():
        return True
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def write_library(name: str, functions: list[str]) -> None:
    """Compile a library of functions that do nothing, versioned as CUDA's runtime is."""
    script = FOLDER / "versions"
    script.write_text(f"{name} {{ *; }};\n")
    versioned = [f"-Wl,--version-script={script}"] if name.startswith("libcudart") else []
    source = "".join(f"void {function}(void) {{}}\n" for function in functions)
    subprocess.run(
        ["gcc", "-w", "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{name}", *versioned]
        + ["-o", str(FOLDER / name)],
        input=source,
        text=True,
        check=True,
    )
    script.unlink()


def main() -> None:
    if (
        subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True).returncode
        == 0
    ):
        return
    extension = next((SITE / "torchvision").glob("_C*.so"))
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", output_of("readelf", "--dynamic", extension))
    absent = [name for name in needed if not is_loadable(name)]
    known = {
        name
        for lib in (SITE / "torch" / "lib").glob("lib*.so")
        for name, _ in symbols(lib, "defined")
    }
    FOLDER.mkdir(exist_ok=True)
    wanted = symbols(extension, "undefined")
    # Without a version a symbol may be in any library; Python's own are in the program.
    unversioned = sorted(
        name
        for name, version in wanted
        if not version
        and name not in known
        and not re.match(r"_?Py|_ITM_|__gmon|__cxa_finalize", name)
    )
    for library in absent:
        functions = sorted(name for name, version in wanted if version == library)
        if not library.startswith("libcudart"):
            functions, unversioned = unversioned, []
        write_library(library, functions)
    (FOLDER / "__init__.py").write_text(LOADER)
    # Python runs the lines of .pth files that start with "import" when it starts.
    (SITE / "torchvision_stubs.pth").write_text(f"import {FOLDER.name}\n")
    subprocess.run([sys.executable, "-c", "import torchvision"], check=True)


if __name__ == "__main__":
    main()
