# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0

PYTHON ?= python
CPP := $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/sanitizers/*.cpp')

.PHONY: demo train-demo test fuzz sanitize tsan lint bench gpu

demo:  ## features of the packaged photo, as a picture
	$(PYTHON) -m vitadapter_fast features

train-demo:  ## a detector learns blood cells from scratch: scores, loss curve, detections
	$(PYTHON) -m vitadapter_fast.integrations.train_demo --data tests/data/bccd --out train_demo

test:
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

FUZZ_SECONDS ?= 300
RANDOM_CALLS := $(PYTHON) -m pytest -q tests/ops/test_random_cases.py
HOSTILE_CALLS := $(PYTHON) -m pytest -q tests/ops/test_hostile_calls.py

fuzz:  ## 22,000 random and hostile calls, then the checkpoint reader and the extension under atheris
	VITADAPTER_FUZZ=6 $(RANDOM_CALLS) -k "not cuda and not triton"
	VITADAPTER_FUZZ=25 $(HOSTILE_CALLS) -k "not cuda and not triton"
	VITADAPTER_FUZZ=2 $(RANDOM_CALLS) tests/ops/test_hostile_calls.py -k "cuda or triton"
	mkdir -p build/fuzz
	cd build/fuzz && $(PYTHON) ../../tests/fuzz/checkpoint.py -max_total_time=$(FUZZ_SECONDS)
	cd build/fuzz && $(PYTHON) ../../tests/fuzz/bindings.py -max_total_time=$(FUZZ_SECONDS)

sanitize: tsan  ## all compiled kernels under GCC's address, undefined-behavior and thread sanitizers
	VITADAPTER_FUZZ=2 $(PYTHON) -m pytest -q tests/ops -k "address_and_undefined"

tsan:  ## the CPU kernels under ThreadSanitizer
	$(PYTHON) -m pytest -q tests/ops/test_sanitizers.py -k thread_sanitizer

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
