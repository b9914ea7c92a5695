# csumfix: every task of a developer or operator; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench

# What building and the lab need.
PACKAGES := gcc libc6-dev make python3-dev python3-venv libnetfilter-queue-dev libnfnetlink-dev \
	iptables iproute2 util-linux ethtool tcpdump dnsmasq-base bind9-dnsutils iputils-ping
# What tests and lint need on top.
DEV_PACKAGES := $(PACKAGES) clang clang-format shellcheck conntrack iperf3 busybox git tshark

# What measuring needs on top of building.
BENCH_PACKAGES := $(PACKAGES) iperf3 sockperf
CORE_PACKAGES := $(BENCH_PACKAGES) libdpdk-dev pkg-config valgrind

SOURCES := pyproject.toml setup.py iptables/csumfix-rules csumfix/_build_core.py \
	$(wildcard csrc/*.c csrc/*.h)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

.PHONY: build
build: $(BUILT) ## Build .venv/bin/csumfix, installing Debian packages if needed

$(BUILT): $(SOURCES)
	@tools/install-packages $(PACKAGES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is too old: csumfix needs 3.11: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(DEV): $(BUILT) pyproject.toml
	@tools/install-packages $(DEV_PACKAGES)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

$(BENCH): $(BUILT) pyproject.toml
	@tools/install-packages $(BENCH_PACKAGES)
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

.PHONY: demo
demo: build ## See a kernel bug eat DNS over VXLAN, and csumfix cure it
	@$(BIN)/python -m csumfix.lab.demo

.PHONY: test
test: $(DEV) ## Run every test: C under sanitizers, units, and the lab
	$(MAKE) -C csrc check
	$(BIN)/pytest

.PHONY: test-unit
test-unit: $(DEV) ## Run the tests that need no namespaces
	$(MAKE) -C csrc check
	$(BIN)/pytest tests/unit

.PHONY: lint
lint: $(DEV) ## Check style, types and compiler warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	shellcheck iptables/csumfix-rules tools/install-packages .ci/run
	$(MAKE) -C csrc lint

.PHONY: format
format: $(DEV) ## Lay out the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	clang-format -i csrc/*.[ch] tests/csrc/*.[ch]

.PHONY: bench
bench: $(BENCH) ## Measure what every cure costs, in some 25 minutes
	$(BIN)/python -m bench

.PHONY: bench-quick
bench-quick: $(BENCH) ## The same roughly, in three minutes
	$(BIN)/python -m bench --quick

.PHONY: bench-core
bench-core: $(BENCH) ## Measure the checksum core alone, beside DPDK, numpy and scapy
	@tools/install-packages $(CORE_PACKAGES)
	$(BIN)/python -m bench.core

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf $(VENV) build *.egg-info csumfix/_core*.so csumfix/_core.c
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
