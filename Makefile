# Every command that people and CI use. `make help` lists them.
PY := .venv/bin/python
# Tests and runs start hundreds of processes; without bytecode each compiles Baton anew, for a quarter of its start.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help setup run test test-fast test-gpu faults lint protos bench clean

help:  ## this list
	@grep -hE '^[a-z-]+%?:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup:  ## make .venv with pinned dependencies (once)
	@scripts/setup.sh

run: setup  ## train SmolLM2-135M on arithmetic, on this machine's CPU, and show its reward rise
	@.venv/bin/baton run deploy/runs/quickstart.yaml

test: setup  ## all tests, on real parts, two files at a time (some forty minutes on 2 cores)
	@$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup  ## the tests that start no model process and kill nothing (under 2 minutes)
	@$(PY) -m pytest -q -m "not slow"

test-gpu: setup  ## the tests that need CUDA
	@$(PY) -m pytest -q -m gpu

faults: setup  ## kill every part of a running stream 50 times, and a trainer that saves 30 times; prints what was lost: nothing
	@BATON_KILLS=$${BATON_KILLS:-50} $(PY) -m pytest -q tests/faults
	@BATON_KILLS=$${BATON_KILLS:-30} $(PY) -m pytest -q tests/integration/test_checkpoint.py -k killed

lint: setup  ## style, contract and import rules
	@.venv/bin/ruff check .
	@.venv/bin/buf lint
	@$(PY) scripts/gen_protos.py --check
	@.venv/bin/lint-imports --no-cache
	@if git rev-parse -q --verify origin/main >/dev/null; then .venv/bin/buf breaking --against '.git#ref=refs/remotes/origin/main'; fi

protos: setup  ## generate sdk/baton/api from protos/
	@$(PY) scripts/gen_protos.py

bench-%: setup  ## one benchmark, for example bench-episode; ends with one JSON line
	@$(PY) benchmarks/$(subst -,_,$*).py

bench: bench-rollout bench-episode bench-buffer bench-static-batches bench-trainer  ## all benchmarks

clean:  ## remove the virtual environment and run outputs
	@rm -rf .venv runs
