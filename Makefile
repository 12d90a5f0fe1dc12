# Everything here needs python3 (3.11 or newer), make and a package index; the environment is built in .venv on first use.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
BENCH := .venv/.bench-installed

.DEFAULT_GOAL := help
.PHONY: help demo up test lint format validate chaos chaos-short chaos-long test-engine bench bench-core bench-http bench-live bench-recovery bench-soak bench-policies clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "warmpath needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev
	$(BIN)/python -c 'import events.blocks, router.core, sim.engine; events.blocks.load_kernels(); router.core.warm_up()'  # compile once
	@touch $@

demo: $(STAMP) ## four fake workers, real NATS, a real OpenAI client: warm against prediction and round-robin
	$(BIN)/python -m launch.demo

up: $(STAMP) ## the same stack, left serving on http://127.0.0.1:8000
	$(BIN)/python -m launch.up

test: $(STAMP) ## the test suite (no GPU, no engine)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

chaos: $(STAMP) ## random faults on real processes, all true again after each; FAULTS=60 SEED=1
	$(BIN)/python -m tests.chaos --faults $(or $(FAULTS),60) --seed $(or $(SEED),1) --json .chaos.json

chaos-short: $(STAMP) ## the same in less than a minute
	$(BIN)/python -m tests.chaos --faults 10 --burst 5000 --settle 15

chaos-long: $(STAMP) ## the same for an hour
	$(BIN)/python -m tests.chaos --seconds 3600 --seed $(or $(SEED),1) --json .chaos.json

validate: $(STAMP) ## RECORDINGS=DIR TRACES=DIR: the simulator against recorded fleets of real engines
	$(BIN)/python -m sim validate $(wildcard $(RECORDINGS)/*/) --traces $(TRACES) --json benchmarks/results/validate.json

test-engine: $(STAMP) ## the same truths against a real SGLang on the CPU (3 GB, installed once into the cache)
	$(BIN)/python tests/engine/install.py
	$(BIN)/python -m pytest tests/engine -m engine --timeout 600

lint: $(STAMP) ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite to the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BENCH): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group bench
	@touch $@

bench: bench-core bench-http ## all figures against the rivals' own packages

bench-core: $(BENCH) ## index, hashes, decision, events, tokens; TRACE=FILE adds the trace row
	$(BIN)/python -m benchmarks.core $(if $(TRACE),--trace $(TRACE)) --json benchmarks/results/core.json
	$(BIN)/python -m benchmarks.decision --json benchmarks/results/decision.json
	$(BIN)/python -m benchmarks.events --json benchmarks/results/events.json
	$(BIN)/python -m benchmarks.tokens --json benchmarks/results/tokens.json

bench-http: $(BENCH) ## bytes, against sglang-router, smg and vllm-router; needs cc and wrk
	$(BIN)/python -m benchmarks.http --json benchmarks/results/http.json

bench-soak: $(STAMP) ## 2 million unique prompts through mirror and index: memory stays flat (minutes)
	$(BIN)/python -m benchmarks.soak --json benchmarks/results/soak.json

bench-recovery: $(STAMP) ## a router that starts, in step with 2 million blocks: from the broker's history, from the adapters
	$(BIN)/python -m benchmarks.recovery --json benchmarks/results/recovery.json

bench-replay: $(BENCH) ## TRACE=FILE: a Mooncake trace through our simulator and Dynamo's
	$(BIN)/python -m benchmarks.replay $(TRACE) --json benchmarks/results/replay.json

bench-policies: $(STAMP) ## TRACES="FILE…": policies over rates, fleets, profiles, events, seeds (hours; goes on where it stopped)
	$(BIN)/python -m benchmarks.policies run $(TRACES) --rates x1 x2 x4 70% 90% 110% --workers 4 8 16 64 \
	  --events immediate lag predicted --seeds 3 --grid -o benchmarks/results/policies.jsonl
	$(BIN)/python -m benchmarks.policies summary benchmarks/results/policies.jsonl --json benchmarks/results/policies.json

bench-live: $(STAMP) ## TRACE=FILE: a slice of a Mooncake trace through the whole live stack
	$(BIN)/python -m benchmarks.live $(TRACE)

clean: ## remove the environment and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
