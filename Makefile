# testbed/install installs what the targets need, except Rust.
CARGO ?= cargo
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
PLATFORMS ?= linux/$(if $(filter aarch64-%,$(HOST)),arm64,amd64)
SCRIPTS = testbed image demo bench .ci fuzz/run
TOOLS = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/harpoon-testbed/tools/bin
DENY = $(or $(shell command -v cargo-deny),$(TOOLS)/cargo-deny)
MDBOOK = $(or $(shell command -v mdbook),$(TOOLS)/mdbook)

help: ## List the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 15

build: ## Build the static release binary, target/harpoon
	testbed/install build
	cp "$$(image/compile)" target/harpoon

image: ## Build the container image, SBOM and checksums in target/image; PLATFORMS=linux/amd64,linux/arm64 for both
	testbed/install image $(if $(filter x86_64-%,$(HOST)),$(if $(findstring arm64,$(PLATFORMS)),arm64))
	image/release $(PLATFORMS)

release-check: image ## Check what would be released: size limits, checksums, versions, generated files, chart, workflows
	testbed/install
	image/check
	.ci/release-check

test: ## Run all tests on real daemons, which are started and stopped
	testbed/install
	testbed/run $(CARGO) test --locked
	testbed/generations $(CARGO) test --locked --test it

e2e: ## Run the tests on a whole cluster of one node, and measure how much sooner pods start; STEP=TEXT,TEXT, RUNS=N (3), SEALED=N (16)
	testbed/install
	STEP="$(STEP)" RUNS=$(or $(RUNS),3) $(addprefix SEALED=,$(SEALED)) RUST_TEST_THREADS=1 testbed/run $(CARGO) test --locked --test it e2e -- --nocapture

crio: ## Run the runtime tests on CRI-O; requires crio and conmon on the PATH
	@command -v crio >/dev/null && command -v conmon >/dev/null || { echo "make crio: crio or conmon is missing: install CRI-O from https://cri-o.io" >&2; exit 1; }
	testbed/install
	testbed/run $(CARGO) test --locked --test it on_crio:: -- --ignored

lint: ## Check formatting, clippy, docs, shell scripts, licences, duplicate crates and advisories
	testbed/install lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps
	shellcheck -x -S warning $$(grep -rlI '^#!/bin/bash' $(SCRIPTS)) testbed/*.sh testbed/daemon/*
	$(DENY) --locked check --hide-inclusion-graph licenses bans sources
	.ci/advisories $(DENY)

metrics: ## Measure the shape of the code (lines, circles, test names); DIRS="PATH..." for other trees
	@.ci/metrics $(DIRS)

generate: ## Regenerate docs/api.md, docs/settings.md, docs/benchmarks.md, the pictures, deploy/ and the chart's README
	testbed/install
	HARPOON_GENERATE=1 testbed/run $(CARGO) test --locked --test it -- settings:: deploy::generated pictures::

docs: ## Build the docs site with mdBook, in target/docs
	testbed/install docs
	MDBOOK_BUILD__CREATE_MISSING=false $(MDBOOK) build docs

bench: ## Measure, and write bench/results, docs/benchmarks.md and its pictures (2 hours); ONLY=NAME for one part, RUNS=N (5), NODES="100 1000 5000" for scale
	testbed/install test bench
	$(CARGO) build --locked --release
	NODES="$(NODES)" bench/run target/$(HOST)/release/harpoon "$(ONLY)" $(RUNS)

soak: ## Run harpoon 2,000 times with random faults on one containerd; SOAK=N
	testbed/install
	SOAK=$(or $(SOAK),2000) testbed/run $(CARGO) test --locked --test it soak -- --nocapture

chaos: ## Change a cluster of three nodes at random for ten minutes while its parts fail; SEED=N, CHANGES=N (200), MINUTES=N (10)
	testbed/install
	$(addprefix SEED=,$(SEED)) CHANGES=$(or $(CHANGES),200) MINUTES=$(or $(MINUTES),10) testbed/run $(CARGO) test --locked --test it state_equals_plan_after_chaos -- --nocapture

fuzz: ## Run every fuzzer for 60 seconds on libFuzzer; TIME=N
	testbed/install build
	fuzz/run $(or $(TIME),60)

demo: ## Show plan, run and continuous mode on a private containerd, registry and API server (5 minutes the first time)
	@echo "make demo: installs packages, builds kube-apiserver and harpoon, then starts a private containerd, registry and API server."
	@echo "           About 5 minutes the first time, seconds later. Everything is stopped and removed at the end."
	testbed/install demo
	$(CARGO) build --locked
	./demo/run target/$(HOST)/debug/harpoon

recording: ## Record make demo as demo/demo.cast, and draw docs/img/demo.svg from it
	testbed/install demo recording
	$(CARGO) build --locked
	demo/record target/$(HOST)/debug/harpoon
	HARPOON_GENERATE=1 $(CARGO) test --locked --test it -- pictures::

clean: ## Remove what cargo built
	$(CARGO) clean

.PHONY: help build image release-check test e2e crio lint metrics generate docs bench soak chaos fuzz demo recording clean
