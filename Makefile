# SPDX-License-Identifier: Apache-2.0
#
# `make help` names every target; each says behind `##` what it does.
#
# Everything that is built lies below build/. The package is installed into a
# venv of its own, not as editable: the tests run what a user would get.

PYTHON ?= python3
BUILD := build
VENV := $(BUILD)/venv
BIN := $(VENV)/bin

PACKAGE_FILES := $(shell find ingestd -type f -not -name '*.pyc' -not -name '*.so')
DATA_FILES := $(wildcard config/* systemd/*)
C_FILES := $(shell find ingestd/core -name '*.c')
CLANG_FORMAT_FILES := $(C_FILES) $(shell find ingestd/core -name '*.h') \
	$(shell find tests bench -name '*.[ch]' -not -path 'tests/vm/nic/*') # those are in the kernel's style

# `ingestd` of the source tree has no compiled core and must not hide the
# installed one: no directory is put before site-packages.
export PYTHONSAFEPATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-check build compilers wheel run test check check-python check-c check-tree format pytest
.PHONY: test-unit test-one asan soak vm-and-soak clean

help: ## lists every target
	@awk -f scripts/make_help.awk $(MAKEFILE_LIST)

setup: ## installs the Debian packages that a build needs, or prints the command
	@PYTHON=$(PYTHON) scripts/setup-debian.sh

setup-check: ## does the same for checks and tests
	@PYTHON=$(PYTHON) scripts/setup-debian.sh check

# The venv: made anew when the dependencies change, not whenever pyproject.toml does.
$(BUILD)/requirements.txt: pyproject.toml scripts/requirements.py
	@mkdir -p $(BUILD)
	@$(PYTHON) scripts/requirements.py pyproject.toml test check bench > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

$(BUILD)/venv.stamp: $(BUILD)/requirements.txt
	rm -rf $(VENV) $(BUILD)/meson $@
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --prefer-binary -r $(BUILD)/requirements.txt
	touch $@

# The package: built and installed anew, incrementally, when any of its files changes.
$(BUILD)/package.stamp: $(BUILD)/venv.stamp meson.build README.md LICENSE $(PACKAGE_FILES) $(DATA_FILES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install -qq --no-build-isolation --no-deps \
		--force-reinstall --config-settings=build-dir=$(BUILD)/meson \
		--config-settings=setup-args=-Dwerror=true .
	touch $@

build: setup ## builds ingestd and installs it into build/venv
	@$(MAKE) -q --no-print-directory $(BUILD)/package.stamp || \
		$(MAKE) --no-print-directory $(BUILD)/package.stamp

compilers: ## compiles the core with every gcc and clang found, warnings as errors
	@scripts/compilers.sh

wheel: build ## makes a wheel below build/wheel that installs without a compiler
	@$(BIN)/python scripts/build_wheel.py $(BUILD)/wheel

run: build ## sends a file through ingestd and reads it back (FILE=path, KEEP=1)
	@$(BIN)/python scripts/run_demo.py $(if $(FILE),--file "$(FILE)") $(if $(KEEP),--keep)

test: setup-check build ## runs `make check` and every test, with `make vm` and two minutes of `make soak`
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory -j2 -Oline pytest vm-and-soak # neither keeps two CPUs busy

pytest: setup-check build ## runs every test except the soak and the virtual machines (PYTEST_ARGS=...)
	@$(BIN)/pytest --ignore=tests/soak $(PYTEST_ARGS)

test-unit: setup-check build ## runs tests/unit, in a few minutes (PYTEST_ARGS=...)
	@$(BIN)/pytest -q tests/unit $(PYTEST_ARGS)

test-one: setup-check build ## runs one test, file or folder: T=tests/unit/test_sizes.py
	$(if $(T),,$(error test-one needs T=..., such as T=tests/unit/test_sizes.py))
	@$(BIN)/pytest "$(T)" $(PYTEST_ARGS)

asan: setup-check build ## runs the C tests of the core under AddressSanitizer and UBSan
	@$(BIN)/pytest -q tests/core/test_c_core.py $(PYTEST_ARGS)

# Beside the other tests, behind the virtual machine: both together take less time than those.
vm-and-soak: vm ## runs `make vm`, then two minutes of `make soak`
	@SOAK_S=120 $(MAKE) --no-print-directory soak

soak: build ## runs twenty minutes of random flows, kills and full stores (SOAK_S=seconds)
	@SOAK_S=$${SOAK_S:-1200} $(BIN)/pytest -s tests/soak

check: setup-check build ## runs formatters, linters, type checkers and the house rules
	@$(MAKE) --no-print-directory check-python check-c check-tree

check-python: ## runs the part of `make check` for Python
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=tests $(BIN)/mypy tests/vm/vmlab $(wildcard tests/vm/*.py tests/vm/guest/*.py)
	MYPYPATH=tests:tests/vm:tests/fresh $(BIN)/mypy $(wildcard tests/fresh/*.py)
	MYPYPATH=tests $(BIN)/mypy -p soak

check-c: ## runs the part of `make check` for C
	$(BIN)/clang-format --dry-run -Werror $(CLANG_FORMAT_FILES)
	$(BIN)/cppcheck --quiet --std=c11 --language=c --error-exitcode=1 --inline-suppr \
		--enable=warning,performance,portability --suppress=missingIncludeSystem \
		--suppress=normalCheckLevelMaxBranches -D__BYTE_ORDER__=1234 \
		-D__ORDER_LITTLE_ENDIAN__=1234 -I ingestd/core $(C_FILES)

format: setup-check build ## formats the sources as `make check` requires
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CLANG_FORMAT_FILES)

check-tree: ## tests the house rules: sizes, layers, names, files
	$(BIN)/pytest -q tests/unit/test_tidy.py tests/unit/test_tidy_names.py tests/unit/test_tidy_words.py \
		tests/unit/test_rooms.py tests/unit/test_core_rooms.py tests/unit/test_newcomers.py tests/unit/test_decisions.py

clean: ## removes build outputs; keeps var/ (the demo's store)
	rm -rf $(BUILD) .ruff_cache .mypy_cache .pytest_cache

include bench/bench.mk
include tests/fault/faults.mk
include tests/fresh/fresh.mk
include tests/sim/sim.mk
include tests/vm/vm.mk
