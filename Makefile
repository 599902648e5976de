# What the targets need is installed by testbed/install; Rust itself is not.
CARGO ?= cargo
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
DENY = $(or $(shell command -v cargo-deny),$(HOME)/.cache/harpoon-testbed/tools/bin/cargo-deny)

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

build: ## the release program, static, as target/harpoon
	testbed/install build
	$(CARGO) build --locked --release
	cp target/$(HOST)/release/harpoon target/harpoon

test: ## all tests, on real daemons that are started for them
	testbed/install
	testbed/run $(CARGO) test --locked

lint: ## formatting, clippy, documentation, shell scripts, licences and duplicates
	testbed/install lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps
	for script in $$(grep -rlI '^#!/bin/bash' testbed demo fuzz .ci 2>/dev/null) testbed/lib.sh testbed/daemon/*; do bash -n "$$script" || exit 1; done
	$(DENY) --locked check --hide-inclusion-graph licenses bans sources

soak: ## 2,000 runs with random faults on one containerd; SOAK=N for as many
	testbed/install
	SOAK=$(or $(SOAK),2000) testbed/run $(CARGO) test --locked --test it soak -- --nocapture

fuzz: ## every fuzzer for TIME=60 seconds, on libFuzzer
	testbed/install build
	fuzz/run $(or $(TIME),60)

demo: ## a tour on a private containerd, registry and API server
	testbed/install
	$(CARGO) build --locked
	./demo/run target/$(HOST)/debug/harpoon

clean: ## what cargo built
	$(CARGO) clean

.PHONY: help build test lint soak fuzz demo clean
