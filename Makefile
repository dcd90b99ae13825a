# Three targets do all the set-up: `make demo`, `make test` and `make clients`. All work on a fresh clone, and again.
PYTHON ?= python3
BIN := .venv/bin
CODE := llama tests tools benchmarks examples setup.py example_completion.py example_infilling.py example_instructions.py

.PHONY: demo test clients solutions floors ray docs format fuzz mutants gpu gpu-wheels
# Damaged inputs that `make fuzz` tries of each kind, and the seed they come from.
N ?= 20000
SEED ?= 0

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The lock files are complete and hold the hash of every file: see constraints.txt.
LOCKED = $(INSTALL) --no-deps --no-build-isolation --require-hashes

# What setup.py compiles, and with which options.
KERNELS := $(wildcard llama/kernels/csrc/*) llama/kernels/levels.py

# Stamps: an environment is made once, and again when what it is made from changes.
.venv/core: pyproject.toml setup.py requirements.txt constraints.txt requirements-build.lock requirements.lock \
		$(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(LOCKED) --requirement requirements-build.lock
	$(LOCKED) --requirement requirements.lock
	$(INSTALL) --constraint constraints.txt torch
	$(INSTALL) --no-deps --no-build-isolation --editable .
	# pip does so for packages that are not editable; each program of the tests then starts 0.3 s sooner.
	$(BIN)/python -m compileall -q llama
	touch $@

.venv/dev: .venv/core requirements-dev.lock
	$(LOCKED) --requirement requirements-dev.lock
	touch $@

demo: .venv/core
	$(BIN)/python example_completion.py --max_gen_len 48
	$(BIN)/python example_infilling.py --suffix_first --max_gen_len 16
	$(BIN)/python example_instructions.py --max_gen_len 64

test: .venv/dev
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	# Meanwhile the tests are compiled: pytest rewrites their asserts, which takes each worker four seconds otherwise.
	$(BIN)/python -m pytest -n 0 --collect-only > /dev/null & $(BIN)/mypy && wait
	$(BIN)/python -m pytest

# Real clients, unmodified, against the server of .venv. They need environments of their own: one for each lock file.
CLIENTS := tests/clients
.venv-%/ready: BIN = .venv-$*/bin
.venv-%/ready: $(CLIENTS)/requirements-%.lock requirements-build.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv-$*
	$(LOCKED) --requirement requirements-build.lock
	$(LOCKED) --requirement $<
	touch $@

# Without npm there is nothing to make, and the tests say what they skip.
NODE := $(CLIENTS)/node
$(NODE)/node_modules/.ready: $(NODE)/package.json $(NODE)/package-lock.json
	if command -v npm > /dev/null; then cd $(NODE) && npm ci --silent && touch node_modules/.ready; fi

clients: .venv/dev .venv-clients/ready .venv-lm-eval/ready .venv-text-generation/ready $(NODE)/node_modules/.ready
	.venv-clients/bin/python -m pytest --config-file $(CLIENTS)/pytest.ini $(CLIENTS)

# The benchmarks' own solutions, all of them (`make test` judges a spread); and how many empty answers pass.
solutions: .venv/dev
	$(BIN)/python tests/solutions/run.py

floors: .venv/dev
	$(BIN)/python tests/solutions/run.py --floors

# Ray Serve and Ray Data. It is large, so it has an environment of its own, and its tests are not in `make test`.
.venv-ray/ready: BIN = .venv-ray/bin
.venv-ray/ready: requirements-build.lock requirements.lock requirements-dev.lock tests/ray/requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv-ray
	$(LOCKED) --requirement requirements-build.lock
	$(LOCKED) --requirement requirements.lock
	$(INSTALL) --constraint constraints.txt torch
	$(LOCKED) --requirement requirements-dev.lock
	$(LOCKED) --requirement tests/ray/requirements.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
	touch $@

ray: .venv-ray/ready
	.venv-ray/bin/python -m pytest --config-file tests/ray/pytest.ini tests/ray

# Tests and figures of a machine with a GPU, which needs no network: docs/gpu.md. The Python is the machine's own.
PARTS ?=
OUT ?= build/gpu
LIMIT ?= 540
PRETEND ?=
PRETENDED := $(filter-out 0,$(PRETEND))
GPU_PYTHON = PYTHONPATH=benchmarks$${PYTHONPATH:+:$$PYTHONPATH} $(if $(PRETENDED),$(BIN)/python,$(PYTHON))
gpu: $(if $(PRETENDED),.venv/dev)
	$(GPU_PYTHON) -m gpu --parts "$(PARTS)" --out "$(OUT)" --limit "$(LIMIT)" $(if $(PRETENDED),--pretend)

# What such a Python may lack, to be copied there: build/gpu-wheels.
gpu-wheels: .venv/core
	PYTHONPATH=benchmarks $(BIN)/python -m gpu.libraries build/gpu-wheels

# The API reference, from the docstrings: build/api/index.html.
docs: .venv/dev
	$(BIN)/python tools/api_reference.py build/api

fuzz: .venv/dev
	$(BIN)/python tests/fuzz/run.py --number $(N) --seed $(SEED)

mutants: .venv/dev
	$(BIN)/python tests/mutants/run.py

format: .venv/dev
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)
