# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0

PYTHON ?= python
CPP := $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh' 'tests/sanitizers/*.cpp')

.PHONY: demo train-demo test test-all test-rest fuzz sanitize tsan lint docs wheel-test aarch64 onedl bench gpu gpu-build gpu-test gpu-test-triton gpu-sanitize gpu-bench compiled kernels triton-versions

demo:  ## features of the packaged photo, as a picture
	$(PYTHON) -m vitadapter_fast features

train-demo:  ## a detector learns blood cells from scratch: scores, loss curve, detections
	$(PYTHON) -m vitadapter_fast train --data tests/data/bccd --out train_demo --model tiny --size 240x320 \
	  --epochs 30 --lr 1e-3 --layer-decay 1 --flip both --jitter 0 --device cpu

IN_PARALLEL := -q -n 2 --dist loadfile --no-loadscope-reorder

test:  ## the core: every operator and backend, golden files, weights, commands, docs
	$(PYTHON) -m pytest $(IN_PARALLEL)

test-all:  ## the long tests as well
	$(PYTHON) -m pytest $(IN_PARALLEL) --all

test-rest:  ## the long tests alone; GROUP=kernels or GROUP=others: half of them
	$(PYTHON) -m pytest $(IN_PARALLEL) --rest=$(or $(GROUP),all)

FUZZ_SECONDS ?= 300
RANDOM_CALLS := $(PYTHON) -m pytest -q tests/ops/test_random_cases.py
HOSTILE_CALLS := $(PYTHON) -m pytest -q tests/ops/test_hostile_calls.py

fuzz:  ## 22,000 random and hostile calls, 500 touched models, then the checkpoint reader and the extension under atheris
	VITADAPTER_FUZZ=6 $(RANDOM_CALLS) -k "not cuda and not triton"
	VITADAPTER_FUZZ=5 $(PYTHON) -m pytest -q tests/fused/test_touched.py -k several
	VITADAPTER_FUZZ=25 $(HOSTILE_CALLS) -k "not cuda and not triton"
	VITADAPTER_FUZZ=5 $(RANDOM_CALLS) tests/ops/test_hostile_calls.py -k "cuda or triton"
	mkdir -p build/fuzz
	cd build/fuzz && $(PYTHON) ../../tests/fuzz/checkpoint.py -max_total_time=$(FUZZ_SECONDS)
	cd build/fuzz && $(PYTHON) ../../tests/fuzz/bindings.py -max_total_time=$(FUZZ_SECONDS)

sanitize: tsan  ## all compiled kernels under GCC's address, undefined-behavior and thread sanitizers
	VITADAPTER_FUZZ=2 $(PYTHON) -m pytest -q tests/ops -k "address_and_undefined"

tsan:  ## the CPU kernels under ThreadSanitizer
	$(PYTHON) -m pytest -q tests/ops/test_sanitizers.py -k thread_sanitizer

compiled:  ## the model compiled by inductor, in training and eval, in every form
	VITADAPTER_ALL_COMPILED=1 $(PYTHON) -m pytest -q tests/model/test_model_compiled.py

kernels:  ## every CUDA kernel compiled for sm_75 and sm_120: none spills
	VITADAPTER_ALL_KERNELS=1 $(PYTHON) -m pytest -q tests/ops/test_cuda_code.py

triton-versions:  ## the Triton kernels compiled by the oldest, a middle and the installed Triton
	$(PYTHON) tests/triton_versions.py

lint:
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $(CPP)

docs:  ## the site of README, docs/ and docstrings in build/site; a dead link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict -f .mkdocs.yml

wheel-test:  ## a wheel, and what it does in an environment of its own without a compiler
	tests/wheel.sh

aarch64:  ## the CPU kernels of an ARM processor, under qemu on this one: 17 minutes of a core
	tests/aarch64.sh

onedl:  ## the tests with OneDL's mmcv, mmdet and mmseg, in an environment of their own; to compile mmcv takes 8 minutes of a core
	tests/integrations/install.sh build/onedl onedl
	VITADAPTER_CUDA=0 build/onedl/bin/pip install -q --no-deps .
	VITADAPTER_FRAMEWORKS=required build/onedl/bin/pytest -q -n 2 --dist loadfile $(addprefix tests/integrations/test_,$(addsuffix .py,mmdet_backbone mmdet_detectors mmdet_recipes mmseg original_configs replace_mmcv))

bench:  ## every contender found here, checked and timed; report/ holds tables and pictures
	$(PYTHON) -m pytest benchmarks/ -q --benchmark-json=bench.json
	$(PYTHON) benchmarks/report.py bench.json -o report

# Of the device: the rest of the tests marked cuda is Triton's (gpu-test-triton).
OPERATORS := $(addprefix tests/ops/test_,$(addsuffix _device.py,cuda cuda_awkward dwconv_gelu patch_embed rope))
ON_DEVICE := $(PYTHON) -m pytest -q -m cuda
NO_DEVICE := no CUDA device was found: make gpu builds for one, tests on it and times it
CAPABILITY := import torch; assert torch.cuda.is_available(), '$(NO_DEVICE)'; print('%d%d-real' % torch.cuda.get_device_capability())
KERNELS := from vitadapter_fast.native.cuda_device import cuda_unavailable_reason as why; assert why() is None, why()

gpu:  ## all on a GPU: build, tests, 25 minutes of timing; stops at what fails, build/gpu has what was found
	$(MAKE) gpu-build
	$(MAKE) gpu-test
	$(MAKE) gpu-bench

gpu-build:  ## the kernels for the card that is here, in place: python -m reads this folder's package
	archs=$$($(PYTHON) -c "$(CAPABILITY)") && VITADAPTER_CUDA=1 VITADAPTER_CUDA_ARCHS=$$archs \
	  $(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -c "$(KERNELS)"
	$(PYTHON) -m vitadapter_fast info --check

gpu-test:  ## cheap ones first: what only a device shows, every shape, windows and the model in Triton
	$(ON_DEVICE) $(OPERATORS) tests/model/test_model_device.py tests/weights/test_load.py --junitxml=build/gpu/behavior.xml \
	  -k "not triton and not output_and_gradients and not memcheck"
	$(ON_DEVICE) $(OPERATORS) --junitxml=build/gpu/shapes.xml -k "not triton and output_and_gradients"
	$(ON_DEVICE) tests/ops/test_window_attention_device.py tests/ops/test_cuda_device.py \
	  --junitxml=build/gpu/triton.xml -k "window_attention or (triton and (model_s or compiled))"

gpu-test-triton:  ## every operator in Triton: most tests compile kernels of their own
	$(ON_DEVICE) $(OPERATORS) --junitxml=build/gpu/all_triton.xml -k "triton"

SANITIZER ?= compute-sanitizer
SANITIZED := VITADAPTER_TEST_SANITIZED=1 $(SANITIZER) --error-exitcode 9
UNDER := $(ON_DEVICE) -x -p no:cacheprovider

# Each tensor an allocation of its own: a read past its end is then a fault. torch probes the driver
# with calls that may fail: only what kernels do counts.
gpu-sanitize:  ## the CUDA kernels under memcheck; those with shared memory under racecheck and synccheck
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZED) --tool memcheck --report-api-errors no \
	  $(UNDER) $(OPERATORS) -k "not triton and not float16 and (prime or odd or one_pixel or five or nan)"
	$(SANITIZED) --tool racecheck $(UNDER) tests/ops/test_dwconv_gelu_device.py \
	  -k "output_and_gradients and not triton and prime"
	$(SANITIZED) --tool synccheck $(UNDER) tests/ops/test_dwconv_gelu_device.py \
	  -k "output_and_gradients and not triton and prime"

# A row of ours that fails is reported last, so that the report is there.
gpu-bench:  ## benchmarks/results/DEVICE.json, written row by row, and build/gpu/report of it
	file=$$($(PYTHON) benchmarks/results.py) && status=0 && \
	  { $(PYTHON) -m pytest benchmarks/ -q --scale gpu --benchmark-json=$$file || status=$$?; } && \
	  $(PYTHON) benchmarks/report.py $$file -o build/gpu/report && exit $$status
