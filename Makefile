# One command for each habit. `make` alone lists them.

.PHONY: help setup test lint bench train

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 8

setup: ## make .venv with everything in it (about 6 GB; a second run does nothing)
	@scripts/setup.sh

test: setup ## run the tests and report coverage
	@.venv/bin/python -m pytest --cov --cov-report=term -q

lint: setup ## check style
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

bench: setup ## measure training against plain PyTorch
	@.venv/bin/python -m pytest benchmarks --benchmark-only -q

train: setup ## prepare CIFAR-10 and train: the seed recipe on a GPU, the cpu recipe without one; ARGS="..." goes to train
	@scripts/train.sh $(ARGS)
