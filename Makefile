# make help tells what there is. PYTHON and EXTRAS may be set: make test PYTHON=python3.12
PYTHON ?= python3
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)

.DEFAULT_GOAL := help
.PHONY: help install demo test exhaustive lint format bench docs dist sbom clean

help: ## Show this help.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(STAMP) ## Make .venv and install tfdq with pinned dependencies.

# Debian ships Python without ensurepip; virtualenv, installed beside it, then makes the same.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed, $(PYTHON) is older; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		$(PYTHON) -m pip install --quiet --root-user-action=ignore --target .virtualenv virtualenv && \
		PYTHONPATH=.virtualenv $(PYTHON) -m virtualenv --quiet $(VENV); }

$(STAMP): $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable '.[$(EXTRAS)]'
	@rm -f $(VENV)/.installed-* && touch $@

demo: install ## Train, quantize, attack, export and run on real images; prints one table.
	$(BIN)/tfdq demo $(ARGS)

test: install ## Run the whole test suite.
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

exhaustive: install ## Run what `make test` leaves out of the products of topologies, bits and models.
	$(BIN)/python -m pytest -n auto --dist loadfile -m exhaustive $(ARGS)

lint: install ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Rewrite the sources in the project's style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Print what things cost, as ratios measured side by side.
	$(BIN)/python -m benchmarks $(ARGS)

docs: ## Build the documentation as a site, in site/.
	$(MAKE) --no-print-directory install EXTRAS=$(EXTRAS),docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

dist: ## Build and check the wheels and source archives of tfdq and tfdq-edge, in dist/.
	$(MAKE) --no-print-directory install EXTRAS=$(EXTRAS),release
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m build --outdir dist edge
	$(BIN)/python -m twine check --strict dist/*

sbom: ## List all that is installed, with licences, and as CycloneDX in dist/sbom.json.
	$(MAKE) --no-print-directory install EXTRAS=$(EXTRAS),release
	mkdir -p dist
	$(BIN)/python -m cyclonedx_py environment --pyproject pyproject.toml --of JSON \
		-o dist/sbom.json $(BIN)/python
	$(BIN)/python -m piplicenses --from=mixed --order=license

clean: ## Remove what the build and the tests left behind.
	rm -rf $(VENV) .virtualenv build dist site *.egg-info edge/build edge/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
