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

bench: setup ## measure everything beside its floor and its peers, some minutes on two cores; ARGS="..." goes to bench
	@.venv/bin/python -m fastcifar bench $(ARGS)

train: setup ## prepare CIFAR-10 and train: the seed recipe on a GPU, the cpu recipe without one; ARGS="..." goes to train
	@scripts/train.sh $(ARGS)
