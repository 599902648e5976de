# What the targets need is installed by testbed/install; Rust itself is not.
CARGO ?= cargo
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
PLATFORMS ?= linux/$(if $(filter aarch64-%,$(HOST)),arm64,amd64)
DENY = $(or $(shell command -v cargo-deny),$(HOME)/.cache/harpoon-testbed/tools/bin/cargo-deny)

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' Makefile | expand -t 15

build: ## the release program, static, as target/harpoon
	testbed/install build
	cp "$$(image/compile)" target/harpoon

image: ## the container image and what is published beside it, in target/image; for both: PLATFORMS=linux/amd64,linux/arm64
	testbed/install image $(if $(filter x86_64-%,$(HOST)),$(if $(findstring arm64,$(PLATFORMS)),arm64))
	image/release $(PLATFORMS)

release-check: image ## whether that could be released: limits, checksums, versions, generated files, chart and workflows
	testbed/install
	image/check
	.ci/release-check

test: ## all tests, on real daemons that are started for them
	testbed/install
	testbed/run $(CARGO) test --locked
	testbed/generations $(CARGO) test --locked --test it

e2e: ## only the tests on a whole cluster, and what harpoon gains a pod there
	testbed/install
	testbed/run $(CARGO) test --locked --test it e2e -- --nocapture

crio: ## the tests of runtimes on the CRI-O that is on the PATH; it is not in Debian
	@command -v crio >/dev/null && command -v conmon >/dev/null || { echo "make crio: crio or conmon is missing: install CRI-O from https://cri-o.io" >&2; exit 1; }
	testbed/install
	testbed/run $(CARGO) test --locked --test it on_crio:: -- --ignored

lint: ## formatting, clippy, documentation, shell scripts, licences and duplicates
	testbed/install lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps
	for script in $$(grep -rlI '^#!/bin/bash' testbed image demo fuzz .ci 2>/dev/null) testbed/*.sh testbed/daemon/*; do bash -n "$$script" || exit 1; done
	$(DENY) --locked check --hide-inclusion-graph licenses bans sources

generate: ## the files in deploy/ that harpoon manifests prints, and the tables of docs/settings.md
	HARPOON_GENERATE=1 testbed/run $(CARGO) test --locked --test it generated

bench: ## measures all that docs/benchmarks.md tells, and writes it; ONLY=NAME for one part, RUNS=N (5)
	testbed/install test bench
	$(CARGO) build --locked --release
	HARPOON_BIN=$(CURDIR)/target/$(HOST)/release/harpoon testbed/run $(CARGO) bench --locked --profile dev --bench bench -- $(ONLY) $(addprefix --runs ,$(RUNS))

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

.PHONY: help build image release-check test e2e crio lint generate bench soak fuzz demo clean
