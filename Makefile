# `make` lists the targets. Everything runs in .venv, which `make install` makes; with SGLANG=0.5.17
# in .venv-0.5.17, with that release of SGLang.
.DEFAULT_GOAL := help
.PHONY: help install model demo test lint format demo-data clean

SGLANG ?=
export SGLANG
BIN := .venv$(if $(filter-out 0.5.23,$(SGLANG)),-$(SGLANG))/bin
# Importing SGLang compiles 3,000 files, 15 s of processor time in each process that starts: Python
# keeps the result in .venv, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE
# What to hand to pytest, e.g. make test ARGS="-k scanner -x"
ARGS ?=
# Test processes at a time; an engine takes one core and up to 3 GB. A GPU is for one engine. (nproc
# says what OMP_NUM_THREADS says where that is set.)
JOBS ?= $(if $(shell command -v nvidia-smi),0,$(if $(filter 1,$(shell env -u OMP_NUM_THREADS nproc)),0,2))

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: ## Make .venv: SGLang for this machine (SGLANG=0.5.17: another one), our packages, test tools
	@scripts/install.sh

model: install ## Get SmolLM2-135M-Instruct, the real model of demo and tests (93 MB, once)
	@$(BIN)/python -m sglang.srt.blendserve.cli fetch-model smollm2 >/dev/null

demo: model ## answer a mixed batch, and questions about documents, under fcfs and blendserve (10 minutes, more on slow cores)
	@$(BIN)/python benchmark/demo/run.py $(ARGS)
	@printf '\n=== Documents x questions, the questions one after the other, under the same policies\n'
	@$(BIN)/python benchmark/documents/run.py --small --fresh --peers fcfs blendserve --out out/demo/documents

test: model ## Run all tests, those with a real engine included
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: install ## ruff (rules and format) and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: install ## Let ruff format everything
	@$(BIN)/ruff format .

demo-data: install ## Write benchmark/demo/demo.jsonl again from its sources
	@$(BIN)/python benchmark/demo/make_batch.py

clean: ## Remove .venv and .venv-*, outputs and caches (not the model)
	rm -rf .venv .venv-* out build .mypy_cache .ruff_cache .pytest_cache .hypothesis
