# `make demo`, `make scenarios` and `make test` need nothing but make and Python >= 3.11; each makes its environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
OUT = demo-output
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo scenarios test doctest lint types check bench clean

demo: .venv/.run  ## pretrain, transfer, evaluate, export; DATA=FOLDER for real data
	$(BIN)/python examples/demo.py --out $(OUT) $(if $(DATA),--data $(DATA))

scenarios: OUT = scenarios.html
scenarios: .venv/.run  ## five cases of transfer as one page, OUT=scenarios.html; DATA=FOLDER of data sets for real data
	$(BIN)/python -m jaxrec.scenarios --out $(OUT) $(if $(DATA),--data $(DATA))

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

doctest: .venv/.dev
	$(BIN)/python -m pytest --doctest-modules jaxrec -p no:randomly --ignore=jaxrec/export/_serve.py

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/pyright

bench: .venv/.bench  ## the quick form, 7 to 16 minutes on two cores
	$(BIN)/python benchmarks/engine.py

check: lint types doctest test

clean:
	rm -rf .venv demo-output scenarios.html build dist .pytest_cache .ruff_cache

.venv/.python:
	$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	touch $@

.venv/.run: .venv/.python pyproject.toml
	$(PIP) -e '.[data,export,plot]'
	touch $@

.venv/.dev: .venv/.run
	$(PIP) -e '.[dev]'
	touch $@

.venv/.bench: .venv/.run
	$(PIP) -e '.[bench]'
	touch $@
