# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0

PYTHON ?= python
CPP := $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

.PHONY: demo test lint bench gpu

demo:  ## features of the packaged photo, as a picture
	$(PYTHON) -m vitadapter_fast features

test:
	$(PYTHON) -m pytest -q

lint:
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(CPP)

bench:
	$(PYTHON) benchmarks/bench_ms_deform_attn.py --out benchmarks/results/cpu_ms_deform_attn.json

# pytest exits with 5 where no test is marked cuda.
gpu:
	$(PYTHON) -c "import torch; assert torch.cuda.is_available(), 'make gpu needs a CUDA device'"
	$(PYTHON) -m pytest -q -m cuda || test $$? -eq 5
