# One command for each habit. `make` alone lists them.

.PHONY: help setup test test-avx2 test-all lint bench train

PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto
AVX2 = ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 12

setup: ## make .venv with everything in it (about 6 GB; a second run does nothing)
	@scripts/setup.sh

test: setup ## run the tests that a change needs, a few minutes on two cores
	@$(PYTEST) -m "not slow"

test-avx2: setup ## run what depends on the CPU's instructions as on one with AVX2 alone
	@$(AVX2) $(PYTEST) -m "not slow" tests/models tests/engine tests/optim

test-all: test test-avx2 ## run all tests: those of `make test`, as on an AVX2 CPU, and the slow ones
	@$(PYTEST) -m slow

lint: setup ## check style
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

bench: setup ## measure everything beside its floor and its peers, some minutes on two cores; ARGS="..." goes to bench
	@.venv/bin/python -m fastcifar bench $(ARGS)

train: setup ## prepare CIFAR-10 and train: the seed recipe on a GPU, the cpu recipe without one; ARGS="..." goes to train
	@scripts/train.sh $(ARGS)
