#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
# The CPU kernels on aarch64 without such a machine: the extension cross-compiled, the operators' tests and the model's
# golden files under qemu, which executes each instruction by itself.
#   tests/aarch64.sh [TEST ...]     TEST: instead of all of these, as pytest takes it
# Needs Debian's packages g++-aarch64-linux-gnu, qemu-user-static and mmdebstrap. build/aarch64 keeps the system, the
# packages and the objects for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in aarch64-linux-gnu-g++ qemu-aarch64-static mmdebstrap; do
  command -v "$tool" >/dev/null || { echo "aarch64.sh: no $tool: see the head of this file" >&2; exit 2; }
done
work=$PWD/build/aarch64 system=$PWD/build/aarch64/system
mkdir -p "$work"

# What belongs to the other processor: Debian's Python, and packages whose files pip only unpacks.
if [ ! -e "$work/complete" ]; then
  rm -rf "$system" "$work/packages" "$work/tools"
  mmdebstrap --quiet --arch=arm64 --variant=extract \
    --include=python3,libpython3-dev,libstdc++6,libgomp1 bookworm "$system"
  python3 -m venv "$work/tools"
  "$work/tools/bin/pip" install -q -c constraints.txt cmake ninja pybind11
  unpack() {
    "$work/tools/bin/pip" install -q --target "$work/packages" --upgrade --only-binary=:all: --python-version 3.11 \
      --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 "$@"
  }
  # pip asks this machine, not that one, which of torch's packages are needed. 2.10 is the last torch whose wheel of
  # aarch64 needs no CUDA.
  unpack numpy safetensors pytest hypothesis filelock fsspec jinja2 networkx sympy typing_extensions
  unpack --no-deps torch==2.10.0
  touch "$work/complete"
fi

cat >"$work/python" <<PYTHON
#!/bin/sh
exec qemu-aarch64-static -L "$system" -E PYTHONPATH="$work/packages" "$system/usr/bin/python3.11" "\$@"
PYTHON
chmod +x "$work/python"

PATH="$work/tools/bin:$PATH" cmake -S csrc -B "$work/objects" -G Ninja --log-level=WARNING \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_CXX_FLAGS="-idirafter $system/usr/include" \
  -DPython_EXECUTABLE="$work/python" -DPython_INCLUDE_DIR="$system/usr/include/python3.11" \
  -Dpybind11_DIR="$("$work/tools/bin/python" -m pybind11 --cmakedir)" \
  -DVITADAPTER_VERSION="$(sed -n 's/^__version__ = "\(.*\)"/\1/p' vitadapter_fast/version.py)" \
  -DVITADAPTER_CUDA=0 -DCMAKE_INSTALL_PREFIX="$work/tree/vitadapter_fast"
rm -rf "$work/tree" && mkdir "$work/tree"
git ls-files -z vitadapter_fast tests pyproject.toml | xargs -0 cp --parents -t "$work/tree"
PATH="$work/tools/bin:$PATH" cmake --build "$work/objects"
PATH="$work/tools/bin:$PATH" cmake --install "$work/objects" >/dev/null

cd "$work/tree"
"$work/python" -c "
import platform
from vitadapter_fast.native import extension
assert platform.machine() == 'aarch64' and extension.unavailable_reason() is None
print(extension.build_info())"
# Not what starts another Python or a compiler: the kernel of this machine runs no program of that one.
if [ $# -eq 0 ]; then
  set -- tests/model/test_model_golden.py tests/ops/test_{ms_deform_attn,patch_embed,dwconv_gelu,window_attention}.py \
    tests/ops/test_{rope,batch_norm,token_rows,gemm}.py
fi
"$work/python" -m pytest -q -p no:cacheprovider \
  -k "not triton and not cuda and not build and not compile" "$@"
