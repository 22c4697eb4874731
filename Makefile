PYTHON ?= python3.11
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: check test lint bench mutants docs site clean

check: $(READY)  ## build every twin, run the five stages, print the report
	$(BIN)/align check --all

test: $(READY)  ## the test suite
	$(BIN)/pytest -n 2 --dist worksteal

lint: $(READY)  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## what is timed: prints ratios measured side by side
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

mutants: $(READY)  ## plant every fault on every twin, count what is found, and write the tables of docs/mutants.md
	$(BIN)/python -m mutants.matrix --write

docs: $(READY)  ## check that every command and link in the documentation is true
	$(BIN)/pytest -q tests/docs

site: $(READY)  ## the documentation as a site, in build/site; a broken link fails (and --quiet would let it pass)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	touch $@

clean:
	rm -rf $(VENV)
