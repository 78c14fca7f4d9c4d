# make run    install once, then materialize the whole graph
# make install  what make run installs, and no more
# make ui     open Dagster and MLflow on that state
# make test   every promise, at small size
# make proof  full sizes, many kills, a browser (apt-get install chromium); writes proof-report.xml
#             make proof PART=first_use: only tests with that in the name of their file or their own (pytest -k)
# make screenshots  pictures of the UI for the README (apt-get install chromium), of the state that make run left
# make package  dist/: the wheel, and environment.tar.gz, which Spark can hand to the workers of a cluster
# make docs   write docs/reference from the code
# make bench  scoring against mlflow.pyfunc.spark_udf, Delta tables against Parquet, ai_query against its servers
# make bench-startup  small commands against the imports and the Spark session that they can't do without
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Followed by -run, -test or -proof, a group of pyproject.toml: an empty file that is newer than what it was installed from.
INSTALLED := $(VENV)/.installed
# The groups that a group includes.
INCLUDED_BY_test := $(INSTALLED)-run
INCLUDED_BY_proof := $(INSTALLED)-run $(INSTALLED)-test
# Python compiles a library when it is first imported. Where it may not keep the result, every process compiles it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run install ui test proof screenshots package docs bench bench-startup lint clean

run: $(INSTALLED)-run
	@$(BIN)/batch-assets run

install: $(INSTALLED)-run

ui: $(INSTALLED)-run
	@$(BIN)/batch-assets ui

test: $(INSTALLED)-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

proof: $(INSTALLED)-proof
	$(BIN)/python -m pytest -m proof $(if $(PART),-k "$(PART)") --junitxml proof-report.xml -s

screenshots: $(INSTALLED)-proof
	@$(BIN)/python -m tools.screenshots

package:
	rm -rf dist && mkdir dist
	$(PYTHON) -m venv dist/environment
	dist/environment/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build
	tools/install.sh dist/environment/bin/python dist/*.whl --extra connect --extra openvino
	tar --create --file dist/environment.tar.gz --use-compress-program 'gzip -1' --exclude __pycache__ --exclude './bin/uv*' --directory dist/environment .
	rm -rf dist/environment
	@ls -lh dist

bench: $(INSTALLED)-test
	@$(BIN)/python -m tools.bench_scoring
	@$(BIN)/python -m tools.bench_lake
	@$(BIN)/python -m tools.bench_ai_query

bench-startup: $(INSTALLED)-test
	@$(BIN)/python -m tools.bench_startup

docs: $(INSTALLED)-run
	$(BIN)/python -m tools.reference_pages

lint: $(INSTALLED)-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "batch_assets needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.13")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED)-java: tools/java.sh | $(BIN)/python
	@tools/java.sh $(VENV)/java
	@touch $@

$(INSTALLED)-%: uv.lock pyproject.toml tools/install.sh | $(BIN)/python $(INSTALLED)-java
	tools/install.sh $(BIN)/python --editable=. --group $*
	@# In the background: it takes a minute, and Spark starts without it, too.
	@nice -n 19 $(BIN)/python -m batch_assets.resources.class_archive >$(VENV)/class_archive.log 2>&1 &
	@touch $(INCLUDED_BY_$*) $@

clean:
	rm -rf $(VENV) .batch_assets
