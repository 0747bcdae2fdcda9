# Greylag's everyday commands. Each makes its own virtual environment if there is none, installs what
# constraints.txt pins, and runs; a second call starts within seconds.
#
#   make demo     train and evaluate a Vision-RWKV classifier on embedded data; prints where its report is
#   make test     the test suite            (make test ARGS="tests/wkv -k stream")
#   make lint     ruff, pyright, import contracts
#   make bench    the benchmarks            (make bench ARGS="--backend chunked")
#   make clean    remove the environment and the caches (runs/ stays)
#
# VENV=folder picks another environment, PYTHON=python3.12 another interpreter, JOBS=1 fewer test processes.

VENV ?= .venv
JOBS ?= 2
ARGS ?=
PIP_FLAGS ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.greylag-installed
CANDIDATES := python3 python3.12 python3.11 python3.13 python3.14 python
TRIED := $(or $(PYTHON),python3)
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help install demo test lint ruff types contracts format bench clean lock

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

# The stamp is written last: an installation that breaks midway is taken up again by the next call.
$(STAMP): pyproject.toml constraints.txt
	@if ! "$(BIN)/python" -m pip --version >/dev/null 2>&1; then \
	  found=""; \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",$(CANDIDATES)); do \
	    if "$$candidate" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then \
	      found="$$candidate"; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    version="$$("$(TRIED)" --version 2>/dev/null)" || version="missing"; \
	    echo "Greylag needs Python 3.11 or newer with its venv module, but $(TRIED) is $$version:" \
	      "install one, or name it, as in: make $(MAKECMDGOALS) PYTHON=/usr/bin/python3.12" >&2; \
	    exit 2; \
	  fi; \
	  echo "Making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv "$(VENV)"; \
	fi
	@rm -f "$(STAMP)"
	@echo "Installing greylag into $(VENV) (the first time this downloads PyTorch: some gigabytes, some minutes)"
	"$(BIN)/python" -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch "$(STAMP)"

demo: $(STAMP)
	"$(BIN)/greylag" demo $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: ruff types contracts

ruff: $(STAMP)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .

types: $(STAMP)
	"$(BIN)/pyright" --pythonpath "$(BIN)/python"

contracts: $(STAMP)
	"$(BIN)/lint-imports"

format: $(STAMP)
	"$(BIN)/ruff" check --fix .
	"$(BIN)/ruff" format .

bench: $(STAMP)
	"$(BIN)/python" -m benchmarks.wkv $(ARGS)

# Pin the set that is installed now; see the head of constraints.txt.
lock: $(STAMP)
	@{ sed -n '/^#/p;/^#/!q' constraints.txt; \
	   "$(BIN)/python" -m pip freeze --disable-pip-version-check --exclude-editable --exclude greylag; } > constraints.new
	@mv constraints.new constraints.txt && touch "$(STAMP)"

clean:
	rm -rf "$(VENV)" .ci/venv build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
