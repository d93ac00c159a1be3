# Everything runs in .venv, which the first target makes by itself. Another interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.installed

.PHONY: demo test slow-test lint docs

demo: $(READY)
	$(VENV)/bin/lods text-to-3d "a red mug" --config views-gaussians-lods-lora

test: $(READY)
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal  # neighbours stay together: they share fixtures and compiled steps

slow-test: $(READY)
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(VENV)/bin/python -m pytest -n 2 -m slow  # as users compile

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "The documentation: site/index.html"

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "lods_jax needs Python 3.11 to 3.13; $(PYTHON) says: $$($(PYTHON) -V 2>&1). Pass PYTHON=python3.12, say." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: python3-venv)." >&2; \
	  exit 1; }
	@echo "Installing into $(VENV): a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
