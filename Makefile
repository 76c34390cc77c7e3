# Nothing is needed beforehand but Python 3.11 or newer, make and a network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := build/tools
# Folders of packages that are imported seldom, or little of them: not compiled beforehand.
SELDOM := /(tests?|testing|pip|setuptools|kubernetes|moto|mypyc?|lexers)/|/transformers/models/
# Tests in four processes: many of them wait, or start processes of their own.
PYTEST_ARGS ?= -n 4 --dist worksteal

# Rounds of chaos, five seconds of a processor each: those of `make chaos`, and those of `make test`.
ROUNDS ?= 50
SEED ?= 1
CHAOS_ROUNDS ?= 4

# More options of pip-audit: AUDIT_ARGS='--vulnerability-service osv' asks osv.dev and not the package index.
AUDIT_ARGS ?=

.PHONY: demo test chaos bench lint types contracts requirements images sbom audit clean help

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "bugurt needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# The pip that Python 3.11 brings along takes twice as long for what follows.
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev]'
	@# By all cores, which pip does by one, and without what hardly anybody imports. Some packages ship samples of bad
	@# syntax, so that it may well end with 1.
	$(BIN)/python -m compileall -q -j 0 -x '$(SELDOM)' $(VENV)/lib >/dev/null 2>&1 || true
	touch $(STAMP)

demo: $(STAMP)  ## the whole way on the sample channel: new posts in some minutes
	$(BIN)/bugurt demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

test: lint  ## lint, types, import contracts and tests, CHAOS_ROUNDS=50 rounds of chaos among them
	@# Types and contracts side by side: each of them uses one core.
	$(BIN)/lint-imports & contracts=$$!; $(BIN)/mypy; types=$$?; wait $$contracts && exit $$types
	CHAOS_ROUNDS=$(CHAOS_ROUNDS) $(BIN)/pytest $(PYTEST_ARGS)

chaos: $(STAMP)  ## pipelines under faults and kills: ROUNDS=1000 of them, the first with SEED=1
	$(BIN)/python -m tests.chaos --seed $(SEED) --rounds $(ROUNDS)

bench: $(STAMP)  ## ratios against named peers, measured in the same run
	$(BIN)/python -m benchmarks

requirements: $(STAMP)  ## pin anew what each image needs, after a change of pyproject.toml or constraints.txt
	$(BIN)/python images/requirements.py

images:  ## build the images with docker, podman or buildah (images/README.md)
	images/build $(IMAGES)

$(TOOLS)/.installed:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet 'cyclonedx-bom==7.5.0' 'pip-audit==2.10.1'
	touch $@

sbom: $(STAMP) $(TOOLS)/.installed  ## a bill of materials and a list of licences for each image, in build/sbom
	$(BIN)/python images/sbom.py $(TOOLS)/bin/cyclonedx-py

audit: $(TOOLS)/.installed  ## known vulnerabilities of what the images hold
	failed=; for file in images/*/requirements*.txt; do \
		echo "$$file"; \
		$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip $(AUDIT_ARGS) -r "$$file" || failed="$$failed $$file"; \
	done; test -z "$$failed" || { echo "see above:$$failed" >&2; exit 1; }

clean:  ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
