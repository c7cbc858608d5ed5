# One command for each habit. `make` alone lists them.

.PHONY: help setup test test-avx2 test-softcuda test-all lint bench train

PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto
AVX2 = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
SOFTCUDA = PYTHONPATH=$(CURDIR)/tests/softcuda FASTCIFAR_AUGMENT=reference

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

setup: ## make .venv with everything in it (about 6 GB; a second run does nothing)
	@scripts/setup.sh

test: setup ## run the tests that a change needs, a few minutes on two cores
	@$(PYTEST) -m "not slow"

test-avx2: setup ## run what depends on the CPU's instructions as on one with AVX2 alone
	@$(AVX2) $(PYTEST) -m "not slow" tests/models tests/engine tests/optim

test-softcuda: setup ## run the tests marked gpu on a software CUDA device, its work done at once and as late as allowed
	@$(SOFTCUDA) $(PYTEST) -m gpu
	@$(SOFTCUDA) SOFTCUDA_LAZY=1 $(PYTEST) -m gpu

test-all: test test-avx2 test-softcuda ## run all tests: those of the three above, and the slow ones
	@$(PYTEST) -m slow

lint: setup ## check style
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

bench: setup ## measure everything beside its floor and its peers, some minutes on two cores; ARGS="..." goes to bench
	@.venv/bin/python -m fastcifar bench $(ARGS)

train: setup ## prepare CIFAR-10 and train: the seed recipe on a GPU, the cpu recipe without one; ARGS="..." goes to train
	@scripts/train.sh $(ARGS)
