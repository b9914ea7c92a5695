# csumfix: every task of a developer or operator; `make help` lists them.

PYTHON ?= python3
PREFIX ?= /usr/local
VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
SOAK_SECONDS ?= 600
# For the tests that start a systemd of their own.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo env PYTHONDONTWRITEBYTECODE=1)

# What installing and the service need.
INSTALL_PACKAGES := gcc libc6-dev make python3-dev python3-venv libnetfilter-queue-dev \
	libnfnetlink-dev iptables

# What building and the lab need.
PACKAGES := $(INSTALL_PACKAGES) \
	iproute2 util-linux ethtool nftables tcpdump dnsmasq-base bind9-dnsutils iputils-ping
# What tests and lint need on top.
DEV_PACKAGES := $(PACKAGES) clang libclang-rt-dev llvm clang-format shellcheck conntrack iperf3 \
	busybox git faketime ipset ipvsadm systemd tshark
PROMETHEUS := build/prometheus

# What building the image from nothing and running it needs on top of those.
IMAGE_PACKAGES := $(DEV_PACKAGES) buildah crun mmdebstrap debian-archive-keyring

# What booting other kernels needs on top of those.
KERNEL_PACKAGES := $(DEV_PACKAGES) qemu-system-x86 kmod wireguard-tools debian-archive-keyring
BUSYBOX := build/busybox-static

# What measuring needs on top of building.
BENCH_PACKAGES := $(PACKAGES) iperf3 sockperf
CORE_PACKAGES := $(BENCH_PACKAGES) libdpdk-dev pkg-config valgrind

SOURCES := pyproject.toml setup.py iptables/csumfix-rules csumfix/core/build.py \
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

$(DEV): $(BUILT) pyproject.toml Makefile
	@tools/install-packages $(DEV_PACKAGES)
	@tools/unpack-package prometheus $(PROMETHEUS)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

$(BENCH): $(BUILT) pyproject.toml
	@tools/install-packages $(BENCH_PACKAGES)
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

# Packagers who give a DESTDIR know what they build with.
.PHONY: install
install: ## Install the service (PREFIX=/usr/local, DESTDIR for packagers); starts nothing
	@$(if $(DESTDIR),,tools/install-packages $(INSTALL_PACKAGES))
	@PYTHON=$(PYTHON) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) tools/install-service install

.PHONY: uninstall
uninstall: ## Stop the service and remove what install has put anywhere
	@PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) tools/install-service uninstall

.PHONY: demo
demo: build ## See a kernel bug eat DNS over VXLAN, and csumfix cure it
	@$(BIN)/python -m csumfix_lab.demo

.PHONY: test
test: $(DEV) ## Run every test: C under sanitizers, units, and the lab
	$(MAKE) -C csrc check
	$(MAKE) -C tests/fuzz smoke
	$(BIN)/pytest -n auto tests/unit
	$(BIN)/pytest tests/lab
	$(AS_ROOT) $(BIN)/pytest -p no:cacheprovider tests/install

.PHONY: test-unit
test-unit: $(DEV) ## Run the tests that need no namespaces
	$(MAKE) -C csrc check
	$(BIN)/pytest -n auto tests/unit

.PHONY: test-image
test-image: $(DEV) ## Build the container image from nothing and run it in the lab
	@tools/install-packages $(IMAGE_PACKAGES)
	$(BIN)/pytest tests/image

.PHONY: test-kernels
test-kernels: $(DEV) ## Boot Debian's kernels 6.1 and 6.12 without KVM, and run what needs their modules
	@tools/install-packages $(KERNEL_PACKAGES)
	@tools/unpack-package busybox-static $(BUSYBOX)
	$(BIN)/python -m tests.kernels

.PHONY: fuzz
fuzz: $(DEV) ## Fuzz the C core, each target FUZZ_SECONDS (3600)
	$(MAKE) -C tests/fuzz run

.PHONY: fuzz-smoke
fuzz-smoke: $(DEV) ## The same for a minute
	$(MAKE) -C tests/fuzz smoke

.PHONY: fuzz-coverage
fuzz-coverage: $(DEV) ## Lines of csrc/ reached by `make fuzz` and by the C tests
	$(MAKE) -C tests/fuzz coverage

.PHONY: soak
soak: $(DEV) ## Run the service at full rate for SOAK_SECONDS (600); does anything leak or grow?
	$(MAKE) -C csrc check  # with LeakSanitizer
	$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS)

.PHONY: lint
lint: $(DEV) ## Check style, types and compiler warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	shellcheck iptables/csumfix-rules tools/install-packages tools/install-service \
		tools/unpack-package tools/fetch-kernel tests/kernels/init .ci/run deploy/container/iptables-host
	$(MAKE) -C csrc lint
	$(MAKE) -C tests/fuzz lint

.PHONY: format
format: $(DEV) ## Lay out the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	clang-format -i csrc/*.[ch] tests/csrc/*.[ch] tests/fuzz/*.[ch]

.PHONY: bench
bench: $(BENCH) ## Measure what every cure costs, in some 22 minutes
	$(BIN)/python -m bench

.PHONY: bench-quick
bench-quick: $(BENCH) ## The same roughly, in two minutes
	$(BIN)/python -m bench --quick

.PHONY: bench-core
bench-core: $(BENCH) ## Measure the checksum core alone, beside DPDK, numpy and scapy
	@tools/install-packages $(CORE_PACKAGES)
	$(BIN)/python -m bench.core

# BUILDER may be podman or docker, too; BASE names another base image; IMAGE names the result.
BUILDER ?= buildah
IMAGE ?= csumfix:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
.PHONY: image
image: ## Build the container image
	$(BUILDER) build --file Containerfile --tag $(IMAGE) $(if $(BASE),--build-arg BASE=$(BASE)) \
		--build-arg REVISION=$$(git rev-parse HEAD) $(BUILD_FLAGS) .

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf $(VENV) build *.egg-info csumfix/core/_core*.so csumfix/core/_core.c
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
