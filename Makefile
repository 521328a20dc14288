# `make demo` and `make test` need only Python 3.10 or newer and make. CONTRIBUTING.md describes all targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test pythons fuzz chaos benchmarks integration driver-tests versions lint types layers docs pictures wheel audit check clean

demo: $(VENV)/demo.stamp
	@$(BIN)/python examples/demo.py

# Excludes the tests that need other programs or take long.
QUICK := --ignore=tests/integration --ignore=tests/benchmarks --ignore=tests/chaos

test: $(VENV)/test.stamp
	$(BIN)/pytest -n auto --dist worksteal $(QUICK) --cov --cov-report=term

# Runs `make test` with each installed Python, in separate environments. With REQUIRE_PYTHONS=1, a missing Python is an
# error.
PYTHONS ?= 3.10 3.11 3.12 3.13 3.14 3.15
UNPACKED := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/opentelemetry-mongo-events/pythons/bin
pythons: $(PYTHONS:%=test-%)

# The program may be a shim of pyenv, which runs only the versions that are selected in the environment.
test-%:
	@python=$$(PATH="$$PATH:$(UNPACKED)" PYENV_VERSION=$* python$* -c 'import sys; print(sys.executable)' 2> /dev/null) \
	  || { echo "Python $* is not installed: skipped"; exit $(if $(REQUIRE_PYTHONS),1,0); } \
	  && $(MAKE) test PYTHON="$$python" VENV=.venv-$*

# A million commands, with 10,000 shapes. SHAPES=100000 makes it ten million.
SHAPES ?= 10000
fuzz: $(VENV)/test.stamp
	FUZZ_SHAPES=$(SHAPES) $(BIN)/pytest --timeout 0 tests/test_privacy.py

CHAOS := tests/integration/test_chaos_on_real_servers.py

# Failures under load, in rounds, for SECONDS of each kind. SEED is the seed of the first round.
SECONDS ?= 60
SEED ?= $(shell date +%s)
chaos: $(VENV)/test.stamp
	CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) $(BIN)/pytest --timeout 0 -v tests/chaos $(CHAOS)

# Checks only that the benchmarks run. To measure, use `python benchmarks/commands.py`.
benchmarks: $(VENV)/test.stamp
	$(BIN)/pytest tests/benchmarks

integration: $(VENV)/test.stamp
	REQUIRE_SERVERS=1 $(BIN)/pytest tests/integration --ignore=$(CHAOS)

# Runs the newest PyMongo's own tests on FerretDB, without and with the instrumentation.
driver-tests: $(VENV)/nox.stamp
	$(BIN)/nox --session 'driver_tests(pymongo-newest)'

# Runs the tests with older dependencies: a diagonal through the grid of noxfile.py. For the whole grid, run
# .venv/bin/nox.
versions: $(VENV)/nox.stamp
	$(BIN)/nox --tags diagonal

lint: $(VENV)/check.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/test.stamp $(VENV)/check.stamp
	$(BIN)/mypy

layers: $(VENV)/test.stamp $(VENV)/check.stamp
	$(BIN)/lint-imports

docs: $(VENV)/docs.stamp
	$(BIN)/sphinx-build -n -W --keep-going -q docs docs/_build/html

# Creates the pictures of the README and the docs from real runs. Needs Chromium, pngquant, the servers, and JAEGER_UI,
# the directory of the built Jaeger UI. ONLY=demo, traces or dashboard creates only a part.
pictures: $(VENV)/pictures.stamp
	@$(BIN)/python -m pictures $(ONLY)

wheel: $(VENV)/check.stamp
	PYTHON=$(BIN)/python scripts/check-wheel

# Reports known vulnerabilities of the installed dependencies. It needs pypi.org, so it isn't part of `check`. Without
# --strict, packages that can't be found there would be skipped silently.
audit: $(VENV)/audit.stamp
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/audited.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(VENV)/audited.txt

check: test pythons lint types layers benchmarks integration driver-tests docs wheel versions

$(VENV)/%.stamp: pyproject.toml
	@test -x $(BIN)/python || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")' \
	  && $(PYTHON) -m venv $(VENV) \
	  && $(BIN)/python -m pip install -q 'pip >= 25.1'; }
	@echo "Installing the dependency group '$*' into $(VENV) ..."
	@$(BIN)/python -m pip install -q -e '.[instruments]' --group $*
	@touch $@

clean:
	rm -rf $(VENV) .venv-3.* .nox build dist docs/_build .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
