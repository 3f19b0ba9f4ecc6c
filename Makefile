# make demo | test | bench | bench-quick | lint | format | clean; each sets up what it needs (.venv, the extension).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
CLANG_FORMATTED = $(shell git ls-files csrc tests | grep -E '\.(h|cpp|inl|cu|cuh)$$')

.PHONY: demo test test-gpu bench bench-quick lint format clean build

demo: build
	$(RUN) -m examples.digits

test: build
	$(RUN) -m pytest -n auto --dist worksteal

test-gpu: build
	$(RUN) -m pytest -m gpu

bench: build
	$(RUN) -m benchmarks.run
	$(RUN) -m benchmarks.report

bench-quick: build
	$(RUN) -m benchmarks.run --quick

lint: $(VENV)/ready
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CLANG_FORMATTED)

format: $(VENV)/ready
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(CLANG_FORMATTED)

build: build/built

build/built: $(SOURCES) setup.py pyproject.toml $(VENV)/ready
	$(RUN) setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/ready: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf build dist outputs *.egg-info convext/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
