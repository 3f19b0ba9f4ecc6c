# make demo | test | test-gpu | test-emulated | sanitize | soak | dist | bench | bench-quick | bench-gpu | docs-pictures |
# peers | lint | format | clean; each sets up what it needs (.venv, the extension). The GPU's say what is missing where
# there is none.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The interpreter that has the other runtimes for bench; `make peers` makes this one.
PEERS_VENV := .venv-peers
PEERS_PYTHON ?= $(or $(wildcard $(PEERS_VENV)/bin/python),$(RUN))
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
CLANG_FORMATTED = $(shell git ls-files csrc tests examples | grep -E '\.(h|cpp|inl|cu|cuh)$$')

.PHONY: demo test test-gpu test-emulated sanitize sanitize-address sanitize-thread soak dist peers bench bench-quick \
  bench-gpu docs-pictures lint format clean build

demo: build
	$(RUN) -m examples.digits

test: build
	$(RUN) -m pytest -n auto --dist worksteal $(PYTEST_OPTIONS)

test-gpu: build
	$(RUN) -m tests.on_gpu

# The AVX-512 kernels on any machine with AVX2: built for it beside the ordinary extension, and put through the tests that
# go through instruction sets.
EMULATED := build/emulated
EMULATED_ONLY ?= avx512 and not naive-avx512
EMULATED_TESTS := $(addprefix tests/test_,batch_norm.py bfloat16_pairs.py conv_algorithms.py k_max.py pool_algorithms.py \
  pool_invariance.py winograd.py)
test-emulated: build
	CONVEXT_EMULATE_AVX512=1 $(RUN) setup.py --quiet build --build-lib $(EMULATED) --build-temp $(EMULATED)-temp
	PYTHONPATH=$(EMULATED) $(VENV)/bin/pytest --import-mode=append -n auto --dist worksteal -k "$(EMULATED_ONLY)" \
	  $(EMULATED_TESTS)

# The AVX2 kernels, and all above them, for the sanitizers: tests of algorithms (which are about kernels), of memory and of
# threads. The emulated AVX-512 ones take the compiler minutes a file there: SANITIZED_KERNELS=CONVEXT_EMULATE_AVX512=1
# SANITIZED_ONLY="not baseline and not avx2 and not memory". Neither Python nor torch is instrumented: leaks are
# tests/soak.py's, and what the thread sanitizer would say of torch is in tests/thread_sanitizer.txt. The sanitizers'
# libraries must be the first ones loaded, and their reports must not end in what pytest has captured. A thread may hold
# more locks of Python's and torch's than GCC's detector of deadlocks has room for.
SANITIZED_TESTS := $(EMULATED_TESTS) $(addprefix tests/test_,autograd.py chains.py errors_operators.py fused.py more_pools.py \
  nodes.py packed_weights.py pool_kernels.py threads.py soak.py)
THREADED_TESTS := $(addprefix tests/test_,threads.py soak.py packed_weights.py pool_invariance.py chains.py)
SANITIZED_PYTEST := $(VENV)/bin/pytest --import-mode=append -n 0 -q -p no:faulthandler --capture=sys
libraries = $(foreach library,$(1) stdc++,$(shell $(CXX) -print-file-name=lib$(library).so))
SANITIZED_KERNELS ?= CONVEXT_ONLY_ISA=avx2
SANITIZED_ONLY ?= not memory
SANITIZED_BUILD = CONVEXT_CUDA=0 $(SANITIZED_KERNELS) CONVEXT_SANITIZE=$(1) $(RUN) setup.py --quiet build \
  --build-lib build/sanitize-$(1) --build-temp build/sanitize-$(1)-temp

sanitize: sanitize-address sanitize-thread

sanitize-address: build
	$(call SANITIZED_BUILD,address)
	LD_PRELOAD="$(call libraries,asan ubsan)" PYTHONPATH=build/sanitize-address \
	  ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(SANITIZED_PYTEST) -k "$(SANITIZED_ONLY)" $(SANITIZED_TESTS)

sanitize-thread: build
	$(call SANITIZED_BUILD,thread)
	LD_PRELOAD="$(call libraries,tsan)" PYTHONPATH=build/sanitize-thread \
	  TSAN_OPTIONS=suppressions=tests/thread_sanitizer.txt:ignore_noninstrumented_modules=1:detect_deadlocks=0:exitcode=66 \
	  setarch -R $(SANITIZED_PYTEST) -k "$(SANITIZED_ONLY)" $(THREADED_TESTS)

soak: build
	$(RUN) -m tests.soak --calls 100000

dist: build
	$(RUN) -m build --no-isolation

peers: $(PEERS_VENV)/ready

bench: build
	$(RUN) -m benchmarks.run --peers-python $(PEERS_PYTHON)
	$(RUN) -m benchmarks.models
	$(RUN) -m benchmarks.inference --peers-python $(PEERS_PYTHON)
	$(RUN) -m benchmarks.pools
	$(RUN) -m benchmarks.compiled
	$(RUN) -m benchmarks.sweep
	$(RUN) -m benchmarks.report

bench-quick: build
	$(RUN) -m benchmarks.run --quick --peers-python $(PEERS_PYTHON)

bench-gpu: build
	$(RUN) -m benchmarks.gpu
	$(RUN) -m benchmarks.report --gpu

docs-pictures: build
	$(RUN) -m docs.pictures

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

$(PEERS_VENV)/ready: requirements-peers.txt
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	@touch $@

clean:
	rm -rf build dist outputs *.egg-info convext/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
