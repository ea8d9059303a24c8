# `make demo` and `make test` do everything on a fresh machine with Rust and Go.
SHELL := /bin/bash
.PHONY: demo test check bench setup setup-test

# What the build needs: a C compiler.
setup:
	@scripts/setup.sh build

# What the tests need beside that: clients that others wrote, and the peers of the benchmarks.
setup-test:
	@scripts/setup.sh test

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

bench: setup-test
	cargo build --release --package gantry
	cargo xtask bench
