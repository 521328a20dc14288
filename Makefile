# make demo, make test: nothing else is needed than Python 3.10+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test fuzz benchmarks integration driver-tests versions lint types layers docs wheel check clean

demo: $(VENV)/demo.stamp
	@$(BIN)/python examples/demo.py

test: $(VENV)/test.stamp
	$(BIN)/pytest --ignore=tests/integration --ignore=tests/benchmarks --cov --cov-report=term

# A million commands, of 10,000 shapes; SHAPES=100000 makes ten.
SHAPES ?= 10000
fuzz: $(VENV)/test.stamp
	FUZZ_SHAPES=$(SHAPES) $(BIN)/pytest --timeout 0 tests/test_privacy.py

# That they run; `python benchmarks/commands.py` measures.
benchmarks: $(VENV)/test.stamp
	$(BIN)/pytest tests/benchmarks

integration: $(VENV)/test.stamp
	REQUIRE_SERVERS=1 $(BIN)/pytest tests/integration

# PyMongo's own tests, of the version that is installed, on FerretDB: without and with the instrumentation on.
driver-tests: $(VENV)/test.stamp
	PYTHON=$(BIN)/python scripts/driver-tests

# The tests that need no other server, with older versions of what this works with: tests/versions/NAME.txt.
versions: $(patsubst tests/versions/%.txt,versions-%,$(wildcard tests/versions/*.txt))

versions-%:
	@$(MAKE) --no-print-directory VENV=.venv-$* CONSTRAINTS='-c tests/versions/$*.txt' .venv-$*/versions.stamp
	.venv-$*/bin/pytest -m 'not nx' --ignore=tests/integration --ignore=tests/benchmarks

lint: $(VENV)/check.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/test.stamp $(VENV)/check.stamp
	$(BIN)/mypy

layers: $(VENV)/test.stamp $(VENV)/check.stamp
	$(BIN)/lint-imports

docs: $(VENV)/docs.stamp
	$(BIN)/sphinx-build -n -W --keep-going -q docs docs/_build/html

wheel: $(VENV)/check.stamp
	PYTHON=$(BIN)/python scripts/check-wheel

check: test lint types layers benchmarks integration driver-tests docs wheel versions

$(VENV)/%.stamp: pyproject.toml
	@test -x $(BIN)/python || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")' \
	  && $(PYTHON) -m venv $(VENV) \
	  && $(BIN)/python -m pip install -q 'pip >= 25.1'; }
	@echo "Installing what '$*' needs into $(VENV) ..."
	@$(BIN)/python -m pip install -q -e '.[instruments]' --group $* $(CONSTRAINTS)
	@touch $@

clean:
	rm -rf $(VENV) .venv-* build dist docs/_build .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
