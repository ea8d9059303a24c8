# `make demo` and `make test` do everything on a fresh machine with Rust and Go.
SHELL := /bin/bash
.PHONY: demo test check bench install setup setup-test setup-bench
# Where `make install` puts the binary and the shells' completions; DESTDIR goes in front, for packages.
PREFIX ?= /usr/local

# What the build needs: a C compiler.
setup:
	@scripts/setup.sh build

# What the tests need beside that: clients that others wrote.
setup-test:
	@scripts/setup.sh test

# What the benchmarks need beside that: the peers.
setup-bench:
	@scripts/setup.sh bench

install: setup
	cargo build --release --package gantry
	@scripts/install.sh "$(DESTDIR)$(PREFIX)"

demo: setup
	cargo build --release --package gantry
	cargo xtask demo

check: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- --deny warnings
	cargo xtask tidy

test: setup-test
	cargo build --release --package gantry
	cargo test --workspace
	cargo xtask accept --short

bench: setup-bench
	cargo build --release --package gantry
	cargo xtask bench --write
