#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
# A wheel without CUDA kernels, built from here, and an environment of its own in which it works without a compiler.
#   tests/wheel.sh [WHEEL]    WHEEL: test this one instead of building
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

wheel=${1-}
if [ -z "$wheel" ]; then
  VITADAPTER_CUDA=0 python3 -m pip wheel -q --no-deps -w "$work" .
  wheel=$(echo "$work"/*.whl)
fi
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q -c constraints.txt "$wheel[cli,export]" pytest hypothesis
TMPDIR="$work" PATH="$work/venv/bin:$PATH" tests/installed.sh export
