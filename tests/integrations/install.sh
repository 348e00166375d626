#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
# Makes a virtual environment with mmdet, mmseg, detectron2, torchvision, transformers, timm, smp and peft on a
# CPU build of torch, for the tests of this folder: four minutes on two cores, 1.8 GB.
#   tests/integrations/install.sh VENV && VENV/bin/pip install --no-deps . \
#     && VITADAPTER_FRAMEWORKS=required VENV/bin/pytest tests/integrations
# With onedl as a second argument: OneDL's mmcv, mmdet and mmseg instead, which bear the same names, and no others;
# for them `make onedl`.
set -euo pipefail
venv=${1:?usage: install.sh VENV [onedl]}
flavor=${2:-openmmlab}
case $flavor in
  openmmlab) mmcv=mmcv frameworks="mmengine mmdet mmsegmentation" versions=constraints.txt ;;
  onedl)
    mmcv=onedl-mmcv frameworks="onedl-mmengine onedl-mmdetection onedl-mmsegmentation" versions=onedl.txt
    ;;
  *) echo "install.sh: no flavor $flavor: openmmlab, onedl" >&2 && exit 2 ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$venv"
# Also for what pip installs on its own to build a package.
export PIP_CONSTRAINT=$work/constraints.txt
cat "$here/../../constraints.txt" "$here/$versions" > "$PIP_CONSTRAINT"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

echo "-- torch, torchvision"
pip install -q torch torchvision setuptools wheel ninja
"$venv/bin/python" "$here/torchvision_on_cpu.py"

# PyPI has both flavors of mmcv as source alone. All its files read torch's headers first, for longer than all else;
# compiled once beforehand they cost nothing. gcc passes over a compiled header in silence unless every
# flag that matters is the same, so both commands take them from here.
echo "-- $mmcv from source"
query() { "$venv/bin/python" -c "import os, sysconfig, torch; print($1)"; }
torch_include=$(query "os.path.join(os.path.dirname(torch.__file__), 'include')")
python_include=$(query "sysconfig.get_path('include')")
flags="-O1 -g0 -w"
header=$work/torch_headers.h
echo '#include <torch/types.h>' > "$header"
g++ $flags -fPIC -std=c++17 -DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext \
  -I"$torch_include" -I"$torch_include/torch/csrc/api/include" -I"$python_include" \
  -x c++-header "$header" -o "$header.gch"
CFLAGS="$flags -include $header" MMCV_WITH_OPS=1 FORCE_CUDA=0 MAX_JOBS=${MAX_JOBS:-$(nproc)} \
  pip wheel -q --no-deps --no-build-isolation -w "$work" "$mmcv" > "$work/mmcv.log" 2>&1 \
  || { tail -n 50 "$work/mmcv.log"; exit 1; }

echo "-- mmdet, mmseg"
# ftfy and regex: mmseg imports them and does not say so.
pip install -q "$work"/*mmcv-*.whl $frameworks ftfy regex pycocotools \
  numpy safetensors pillow rich matplotlib pytest pytest-xdist
[ "$flavor" = openmmlab ] || exit 0

echo "-- transformers, timm, smp, peft"
pip install -q transformers kernels peft accelerate timm segmentation-models-pytorch

echo "-- detectron2"
# PyPI has no upload by its authors. This one holds the Python files as they are; its
# compiled part is for another Python and is left unused: rotated boxes and deformable convolution.
pip install -q cloudpickle fvcore hydra-core iopath omegaconf tabulate termcolor tqdm yacs
pip install -q --no-deps --only-binary=:all: --platform any --implementation cp --abi none \
  --python-version 3.10 --target "$(query "sysconfig.get_path('purelib')")" sal-detectron2==0.7.2
