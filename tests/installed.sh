#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
# What an installation does where there is no compiler: the operators' tests, the self-test, features of the packaged
# photo; with "export" also an ONNX file. Runs on the first python of PATH, whose environment has the package with
# [cli] (and [export]), pytest and hypothesis. Cibuildwheel calls it for every wheel.
set -euo pipefail
tests=$(cd "$(dirname "$0")" && pwd)
python=$(command -v python)
cd "$(mktemp -d)"
PATH=$(dirname "$python")
for compiler in cc c++ gcc g++ clang nvcc; do
  if command -v "$compiler"; then echo "installed.sh: $compiler is beside python" >&2 && exit 1; fi
done

"$python" - "$tests" <<'CHECK'
import sys
from pathlib import Path

import vitadapter_fast
from vitadapter_fast.native import extension

package, repository = Path(vitadapter_fast.__file__).resolve(), Path(sys.argv[1]).parent
assert not package.is_relative_to(repository / "vitadapter_fast"), f"{package} is the repository's"
assert extension.unavailable_reason() is None, extension.unavailable_reason()
print(package, extension.build_info())
CHECK
"$python" -m pytest -q -p no:cacheprovider \
  "$tests/ops/test_ms_deform_attn.py" "$tests/ops/test_patch_embed.py" "$tests/ops/test_dwconv_gelu.py"
vitadapter-fast info --check
vitadapter-fast features --weights random
if [ "${1-}" = export ]; then
  vitadapter-fast export --static --size 64x96 --format onnx --out s.onnx
fi
echo "installed.sh: all passed in $PWD"
