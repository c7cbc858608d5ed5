# One command for each habit. `make` alone lists them.

.PHONY: help setup test test-avx2 test-softcuda test-all lint bench train

PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto
AVX2 = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
SOFTCUDA = PYTHONPATH=$(CURDIR)/tests/softcuda FASTCIFAR_AUGMENT=reference

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

setup: ## create .venv with all dependencies (about 6 GB; a second run does nothing)
	@scripts/setup.sh

test: setup ## run all tests but the slow ones, a few minutes on two cores
	@$(PYTEST) -m "not slow"

test-avx2: setup ## run the tests that depend on the CPU's instruction set, limited to AVX2
	@$(AVX2) $(PYTEST) -m "not slow" tests/models tests/engine tests/optim

test-softcuda: setup ## run the tests marked gpu on a software CUDA device, once with prompt and once with late streams
	@$(SOFTCUDA) $(PYTEST) -m gpu
	@$(SOFTCUDA) SOFTCUDA_LAZY=1 $(PYTEST) -m gpu

test-all: test test-avx2 test-softcuda ## run all tests: the three targets above and the slow tests
	@$(PYTEST) -m slow

lint: setup ## check style
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

bench: setup ## compare everything with its roofline and its peers, some minutes on two cores; ARGS="..." is passed to bench
	@.venv/bin/python -m fastcifar bench $(ARGS)

train: setup ## prepare CIFAR-10 and train: the seed recipe on a GPU, else the quick recipe; ARGS="..." is passed to train
	@scripts/train.sh $(ARGS)
