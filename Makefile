# make demo: set up and run the main job on real input. make test: the whole gate, as CI runs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check golden clean

demo: $(VENV)/.installed
	$(BIN)/flatlm demo

test check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2

golden: $(VENV)/.installed-dev
	FLATLM_WRITE_GOLDEN=1 $(BIN)/pytest tests/convert/test_golden.py tests/quantize/test_recipes.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# PyTorch first: its CPU build, which a plain requirement of other packages would not choose.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo_out build dist *.egg-info
