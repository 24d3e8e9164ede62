# Two commands for a newcomer: `make demo` and `make test`. Both install what is missing (cargo, apt, pip, npm).

TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
# An image holds nothing but the binary, so the binary holds its C library. Named by target, so that build scripts and
# procedural macros, which run here, are linked as always.
export CARGO_BUILD_TARGET := $(TRIPLE)
export CARGO_TARGET_$(shell echo $(TRIPLE) | tr a-z- A-Z_)_RUSTFLAGS := -C target-feature=+crt-static

# While one thing compiles, another is fetched. Those who compile have their own number of jobs.
MAKEFLAGS += --jobs=2
unexport MAKEFLAGS

POLYINIT := target/$(TRIPLE)/release/polyinit
# The same program, optimised across crates.
DIST := target/$(TRIPLE)/dist/polyinit
IMAGES := target/images
PACKAGES := target/packages

.PHONY: help build dist demo test tests lint bench bench-wasm bench-node bench-proxy setup guests vm images clean

help:
	@echo "make demo    boot a microVM and send one event each to Python, Node, Go, Rust and a message handler"
	@echo "make test    run everything, microVM included"
	@echo "make bench   measure; TODAY=init1.py measures the guest of that file beside it"
	@echo "make bench-node  measure Node programs beside node:http and Fastify"
	@echo "make bench-proxy measure executables directly, and behind polyinit and nginx"
	@echo "make bench-wasm  measure the WebAssembly engine beside wasmtime serve"
	@echo "make build   build $(POLYINIT), statically linked"
	@echo "make dist    build $(DIST), the one to ship: faster by a fifth, after a quarter of an hour"
	@echo "make lint    cargo fmt and cargo clippy"

build: setup
	cargo build --release

dist: setup
	cargo build --profile dist --bin polyinit

# One after another, as `vm` and `guests` are: apt has one lock.
setup:
	tests/host/setup
	runtimes/setup

guests: setup vm
	wasm-examples/build
	tests/host/get-programs
	tests/host/get-pythons

vm: setup
	tests/host/get-vm

images: build
	mkdir -p $(IMAGES) $(PACKAGES)
	$(POLYINIT) image build runtimes/wasm -o $(IMAGES)/wasm.squashfs
	$(POLYINIT) image build runtimes/minimal -o $(IMAGES)/minimal.squashfs --cache $(PACKAGES)
	$(POLYINIT) image build runtimes/python -o $(IMAGES)/python.squashfs --cache $(PACKAGES)
	$(POLYINIT) image build runtimes/debian-12 -o $(IMAGES)/debian-12.squashfs -o $(IMAGES)/debian-12.oci --cache $(PACKAGES)

DEMO := bench/demo $(POLYINIT) $(IMAGES)/debian-12.squashfs target/guests/polyglot

demo: images guests vm
	$(DEMO)

# Compiled beside the images, which need one processor.
tests: build
	cargo test --release --no-run

test: images guests vm tests
	cargo fmt --check
	$(DEMO)
	cargo test --release

lint:
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings

bench: dist guests
	bench/run $(DIST) $(if $(TODAY),--today $(TODAY))

bench-node: dist guests
	bench/node $(DIST)

bench-proxy: dist guests
	bench/proxy $(DIST)

bench-wasm: dist guests
	bench/wasm $(DIST)

clean:
	cargo clean
