# Two commands do everything: `make demo` runs the main job, `make test` passes the tests.
# Both set up a virtual environment first. Needs Python >= 3.11 with venv, git, make and a C compiler.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
EVIDENCE_ARGS ?=
PIP_ARGS ?=
# An index with PyTorch's CPU builds, used where there is no GPU. Without it pip takes the build its registry has.
TORCH_INDEX ?=

.PHONY: demo test lint types pytest gpu evidence setup setup-test setup-evidence clean

demo: setup
	$(BIN)/modelgit run examples/ratatouille.toml $(DEMO_ARGS)

# `make -j 2 test` has mypy run beside the tests.
test: lint types pytest

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: lint
	$(BIN)/mypy

# Compiled first: the tests start thousands of processes, and PYTHONDONTWRITEBYTECODE has each compile all it loads.
pytest: lint
	$(BIN)/python -m compileall -q modelgit
	$(BIN)/pytest -n 2 $(TEST_ARGS)

# On a machine with an NVIDIA card: that CUDA does what the CPU does, then every figure for docs/benchmarks.md, in build/gpu.
gpu: setup-test
	$(BIN)/pytest tests/gpu $(TEST_ARGS)
	mkdir -p build/gpu
	for case in pictures texts small; do for precision in fp32 tf32 bf16; do \
		$(BIN)/python -m benchmarks.train_speed $$case --device cuda --precision $$precision --rounds 12 --steps 50 \
			--trainer --together 8 --out build/gpu/$$case-$$precision.json \
			> build/gpu/$$case-$$precision.md || exit 1; \
		cat build/gpu/$$case-$$precision.md; done; done

# The paper's protocol and claims on real data: build/evidence/evidence.html. EVIDENCE_ARGS="--size paper" takes four to five hours on 2 cores.
evidence: setup-evidence
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.evidence.run $(EVIDENCE_ARGS)

setup: $(VENV)/.demo
setup-test: $(VENV)/.test
setup-evidence: $(VENV)/.evidence

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@if [ -n "$(TORCH_INDEX)" ] && ! command -v nvidia-smi >/dev/null; then \
		$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --index-url "$(TORCH_INDEX)" torch; fi

$(VENV)/.demo: pyproject.toml constraints.txt setup.py $(wildcard modelgit/store/codec/*.c) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --config-settings editable_mode=compat -e '.[demo]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt setup.py $(wildcard modelgit/store/codec/*.c) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --config-settings editable_mode=compat -e '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/.evidence: pyproject.toml constraints.txt setup.py $(wildcard modelgit/store/codec/*.c) | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --config-settings editable_mode=compat -e '.[evidence]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build dist
