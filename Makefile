# make demo   install, then a whole fleet on two cores of this machine (needs no GPU)
# make test   install, then the test suite; SLOW=1 adds what takes minutes
# make lint   ruff, mypy --strict, and which module may import which
# make bench  every benchmark, the quick way; FULL=1 for the figures in docs/benchmarks.md
#
# TORCH_INDEX=URL installs torch from that package index (a CUDA or ROCm build, say).
# A torch that $(PYTHON) already has is used.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH := 'torch>=2.9,<=2.13.0'
FITS = import torch; v = torch.__version__.split("+")[0].split("."); assert (2, 9) <= (int(v[0]), int(v[1])) <= (2, 13)
SEES_TORCH = $(shell $(PYTHON) -c '$(FITS)' 2>/dev/null && echo --system-site-packages)

.PHONY: venv dev demo test lint bench clean

venv: $(VENV)/installed
dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(SEES_TORCH) $(VENV)
	$(BIN)/python -c '$(FITS)' 2>/dev/null || $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) --editable '.[hub]' --config-settings editable_mode=compat
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --group dev || $(PIP) --upgrade 'pip>=25.1' && $(PIP) --group dev
	@touch $@

demo: venv
	$(BIN)/python orchestrator.py demo

test: dev
	$(BIN)/python -m pytest -n 2 --dist worksteal
ifdef SLOW
	$(BIN)/python -m pytest -m slow -n 2
endif

lint: dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: dev
	for name in $(basename $(notdir $(filter-out benchmarks/__init__.py benchmarks/_%,$(wildcard benchmarks/*.py)))); do \
		$(BIN)/python -m benchmarks.$$name $(if $(FULL),,--quick) || exit 1; done

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
