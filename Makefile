# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0

PYTHON ?= python
CPP := $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')

.PHONY: demo train-demo test lint bench gpu

demo:  ## features of the packaged photo, as a picture
	$(PYTHON) -m vitadapter_fast features

train-demo:  ## a detector learns blood cells from scratch: scores, loss curve, detections
	$(PYTHON) -m vitadapter_fast.integrations.train_demo --data tests/data/bccd --out train_demo

test:
	$(PYTHON) -m pytest -q -n 2 --dist loadfile

lint:
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(CPP)

bench:  ## every contender found here, checked and timed; report/ holds tables and pictures
	$(PYTHON) -m pytest benchmarks/ -q --benchmark-json=bench.json
	$(PYTHON) benchmarks/report.py bench.json -o report

gpu:
	$(PYTHON) -c "import torch; assert torch.cuda.is_available(), 'make gpu needs a CUDA device'"
	VITADAPTER_CUDA=1 $(PYTHON) -m pip install --no-build-isolation --no-deps .
	$(PYTHON) -m pytest -q -m cuda
	$(PYTHON) -m pytest benchmarks/ -q --scale gpu --benchmark-json=benchmarks/results/gpu.json
