# The everyday commands. `make help` lists them.
#
# ARGS passes further arguments on: make run ARGS="--port 8080", make bench ARGS=overhead, make test ARGS="-p mlxd-ring".

ARGS ?=
CARGO ?= cargo
PROGRAMS = --bin mlxd --bin mlxd-worker --bin mlxctl

.DEFAULT_GOAL := help
.PHONY: help setup build run demo bench test chaos lint check-macos clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## make this checkout ready to build (every command below does it first)
	@scripts/setup

build: setup ## build the three programs in release
	@$(CARGO) build --release $(PROGRAMS)

run: build ## serve with the built-in model on 127.0.0.1:11440 until Ctrl-C
	@$(CARGO) run --quiet --release --bin mlxd -- serve --welcome $(ARGS)

demo: build ## start, ask one question, show the streamed answer, stop
	@$(CARGO) run --quiet --release --bin mlxd -- demo $(ARGS)

bench: build ## a benchmark table: overhead, or the one that ARGS picks
	@$(CARGO) run --quiet --release --bin mlxd -- bench $(or $(ARGS),overhead)

test: setup ## every test
	@scripts/test $(ARGS)

chaos: setup ## faults at random under load, every answer checked (ARGS="--minutes 5 --seed 1")
	@$(CARGO) build --release --quiet --package mlxd --package mlxd-worker --package mlxd-testkit --bins
	@$(CARGO) run --quiet --release --package mlxd-testkit --bin mlxd-chaos -- $(ARGS)

lint: setup ## formatting, clippy, house rules, licences
	@scripts/lint

check-macos: setup ## type-check everything for Apple Silicon
	@scripts/check-macos

clean: ## remove what was built; what setup fetched stays (.deps, .venv)
	@$(CARGO) clean
