# csumfix: tasks of developers and operators; `make help` lists them.

PYTHON ?= python3
PREFIX ?= /usr/local
VENV := .venv
BIN := $(VENV)/bin
BUILT := $(VENV)/.built
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
SOAK_SECONDS ?= 600
# For tests that start their own systemd.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo env PYTHONDONTWRITEBYTECODE=1)

# Reports an old Python before anything is installed. A missing one is installed.
NOT_OLD = ! command -v $(PYTHON) >/dev/null || \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is too old: csumfix needs 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }

# Packages for installing and running the service.
INSTALL_PACKAGES := gcc libc6-dev make python3-dev python3-venv libnetfilter-queue-dev \
	libnfnetlink-dev iptables

# Packages for building and the lab.
PACKAGES := $(INSTALL_PACKAGES) \
	iproute2 util-linux mount ethtool nftables tcpdump dnsmasq-base bind9-dnsutils iputils-ping
# These, and those for tests and lint.
DEV_PACKAGES := $(PACKAGES) clang libclang-rt-dev llvm clang-format shellcheck conntrack iperf3 \
	busybox git faketime ipset ipvsadm systemd tshark scdoc mandoc groff-base
# promtool is part of prometheus up to Debian 12, and a package of its own from 13.
PROMETHEUS := build/prometheus

# These, and those for building the image from scratch and running it.
IMAGE_PACKAGES := $(DEV_PACKAGES) buildah crun mmdebstrap debian-archive-keyring

# These, and those for booting other kernels.
KERNEL_PACKAGES := $(DEV_PACKAGES) qemu-system-x86 kmod wireguard-tools debian-archive-keyring
BUSYBOX := build/busybox-static

# docker-cli is part of docker.io up to Debian 12.
DOCKER := build/docker

# Packages for making other Debian roots.
ROOT_PACKAGES := git mmdebstrap debian-archive-keyring $(if $(filter 0,$(shell id -u)),,uidmap)

# Packages for testing the C core for other machines, under qemu-user.
EMULATED := aarch64 s390x
EMULATED_PACKAGES = make qemu-user gcc-$(MACHINE)-linux-gnu libc6-dev-$(MACHINE:aarch64=arm64)-cross

# Packages for the benchmark.
BENCH_PACKAGES := $(PACKAGES) iperf3 sockperf
CORE_PACKAGES := $(BENCH_PACKAGES) libdpdk-dev pkg-config valgrind

# Knows dependency groups.
PIP := 'pip>=25.1'
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

SOURCES := pyproject.toml setup.py iptables/csumfix-rules csumfix/core/build.py \
	$(wildcard csrc/*.c csrc/*.h)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

.PHONY: build
build: $(BUILT) ## Build .venv/bin/csumfix, installing Debian packages if needed

$(BUILT): $(SOURCES)
	@$(NOT_OLD)
	@tools/install-packages $(PACKAGES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	@$(BIN)/python -c 'import csumfix.core'  # fails if C has constants that Python does not know
	@touch $@

$(DEV): $(BUILT) pyproject.toml Makefile
	@tools/install-packages $(DEV_PACKAGES)
	@tools/unpack-package $(PROMETHEUS) prometheus promtool
	$(BIN)/pip install --quiet --upgrade $(PIP)
	$(BIN)/pip install --quiet --group dev
	@touch $@

$(BENCH): $(BUILT) pyproject.toml
	@tools/install-packages $(BENCH_PACKAGES)
	$(BIN)/pip install --quiet --upgrade $(PIP)
	$(BIN)/pip install --quiet --group bench
	@touch $@

# With DESTDIR, a packager has installed the build dependencies.
.PHONY: install
install: ## Install the service (PREFIX, DESTDIR); starts nothing
	@$(NOT_OLD)
	@$(if $(DESTDIR),,tools/install-packages $(INSTALL_PACKAGES))
	@PYTHON=$(PYTHON) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) tools/install-service install

.PHONY: uninstall
uninstall: ## Stop the service and remove all that install has put anywhere
	@PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) tools/install-service uninstall

.PHONY: demo
demo: build ## See a kernel bug lose DNS over VXLAN, and csumfix cure it
	@$(BIN)/python -m csumfix_lab.demo

.PHONY: test
test: $(DEV) ## Run every test: C under sanitizers, units, and the lab
	$(MAKE) -C csrc check
	$(MAKE) -C tests/fuzz smoke
	$(BIN)/pytest -n auto tests/unit
	$(BIN)/pytest -n auto -m 'not alone' tests/lab
	$(BIN)/pytest -m alone tests/lab
	$(AS_ROOT) $(BIN)/pytest -p no:cacheprovider tests/install

.PHONY: test-unit
test-unit: $(DEV) ## Run the tests that need no namespaces
	$(MAKE) -C csrc check
	$(BIN)/pytest -n auto tests/unit

# In the unpacked sdist, with packages that pip may not choose newer.
LOWEST := build/lowest
.PHONY: test-lowest
test-lowest: $(DEV) ## Run the unit tests with the lowest versions that are declared
	rm -rf $(LOWEST)
	$(BIN)/python -m build --sdist --outdir $(LOWEST) .
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --output-file $(LOWEST)/lowest.txt \
		pyproject.toml
	tar -C $(LOWEST) -xf $(LOWEST)/csumfix-$(VERSION).tar.gz
	PIP_CONSTRAINT=$(CURDIR)/$(LOWEST)/lowest.txt \
		$(MAKE) -C $(LOWEST)/csumfix-$(VERSION) test-unit
	rm -rf $(LOWEST)

.PHONY: test-image
test-image: $(DEV) ## Build the container image from scratch and run it in the lab
	@tools/install-packages $(IMAGE_PACKAGES)
	$(BIN)/pytest tests/image

.PHONY: test-docker
test-docker: $(DEV) ## Cure a Docker Swarm of two nodes of the lab
	@tools/unpack-package $(DOCKER) docker.io docker-cli containerd runc
	@tools/unpack-package $(BUSYBOX) busybox-static
	$(AS_ROOT) $(BIN)/pytest -p no:cacheprovider tests/docker

# SELECT chooses some of the tests, as pytest's -k does.
.PHONY: test-kernels
test-kernels: $(DEV) ## Run what needs modules on Debian's kernels 6.1 and 6.12
	@tools/install-packages $(KERNEL_PACKAGES)
	@tools/unpack-package $(BUSYBOX) busybox-static
	$(BIN)/python -m tests.kernels $(if $(SELECT),--select '$(SELECT)')

# They test what is committed.
.PHONY: test-debian12
test-debian12: ## Run demo and test-unit in a fresh Debian 12 root
	@tools/install-packages $(ROOT_PACKAGES)
	@tools/fresh-root bookworm 'make demo test-unit'

.PHONY: test-debian13
test-debian13: ## The same in a fresh Debian 13 root
	@tools/install-packages $(ROOT_PACKAGES)
	@tools/fresh-root trixie 'make demo test-unit'

# AddressSanitizer does not work under qemu-user. UndefinedBehaviorSanitizer traps instead of printing:
# its library would make test_drain.c expect AddressSanitizer's.
.PHONY: $(EMULATED:%=test-%)
test-aarch64: ## Run the C tests of the core on an emulated 64-bit ARM
test-s390x: ## The same on IBM Z, whose byte order is big-endian
$(EMULATED:%=test-%): MACHINE = $(@:test-%=%)
$(EMULATED:%=test-%):
	@tools/install-packages $(EMULATED_PACKAGES)
	$(MAKE) -C csrc run OUT=../build/$(MACHINE) CC=$(MACHINE)-linux-gnu-gcc \
		RUN='env EMULATED=1 qemu-$(MACHINE) -L /usr/$(MACHINE)-linux-gnu' \
		SANITIZE='-fsanitize=undefined -fsanitize-undefined-trap-on-error'

# What is explained in debian/README.source.
LINTIAN := lintian --fail-on error,warning --allow-root \
	--suppress-tags bogus-mail-host,bogus-mail-host-in-debian-changelog
.PHONY: test-deb test-deb-bookworm test-deb-trixie
test-deb: test-deb-bookworm test-deb-trixie ## The package in fresh roots: build, lint, cure, purge
test-deb-bookworm test-deb-trixie: test-deb-%:
	@tools/install-packages $(ROOT_PACKAGES)
	rm -rf build/test-deb-$*
	@tools/fresh-root $* 'tools/install-packages lintian; make deb; $(LINTIAN) build/deb/*.changes; \
		cp build/deb/csumfix_*.deb /root/exchange' build/test-deb-$*
	@tools/fresh-root $* 'tests/deb/installed /root/exchange/*.deb' build/test-deb-$*

.PHONY: fuzz
fuzz: $(DEV) ## Fuzz the C core, FUZZ_SECONDS (3600) per target
	$(MAKE) -C tests/fuzz run

.PHONY: fuzz-smoke
fuzz-smoke: $(DEV) ## Fuzz the C core for a minute
	$(MAKE) -C tests/fuzz smoke

.PHONY: fuzz-coverage
fuzz-coverage: $(DEV) ## Lines of csrc/ reached by `make fuzz` and by the C tests
	$(MAKE) -C tests/fuzz coverage

.PHONY: soak
soak: $(DEV) ## Check for leaks at full rate for SOAK_SECONDS (600)
	$(MAKE) -C csrc check  # with LeakSanitizer
	$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS)

.PHONY: lint
lint: $(DEV) ## Check style, types and compiler warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	shellcheck iptables/csumfix-rules debian/csumfix.p* tests/deb/installed tests/kernels/init \
		tools/build-deb tools/fetch-kernel tools/fresh-root tools/install-packages \
		tools/install-service tools/unpack-package tools/wheels .ci/run \
		deploy/container/iptables-host
	$(MAKE) -C csrc lint
	$(MAKE) -C tests/fuzz lint

.PHONY: format
format: $(DEV) ## Format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	clang-format -i csrc/*.[ch] tests/csrc/*.[ch] tests/fuzz/*.[ch]

.PHONY: manual
manual: $(DEV) ## Write man pages, sample settings and tables of docs/
	$(BIN)/python -m manual

# For every Python from 3.11 on and every machine. What builds is as constrained as what runs:
# netfilterqueue comes as source, for which setuptools, wheel and cython are necessary.
CONSTRAIN := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --custom-compile-command 'make constraints'
BUILD_REQUIRES := import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
.PHONY: constraints
constraints: $(DEV) ## Renew the versions and hashes of what is installed
	$(CONSTRAIN) pyproject.toml --output-file constraints/service.txt
	{ $(BIN)/python -c '$(BUILD_REQUIRES)'; echo wheel cython | tr ' ' '\n'; } | \
		$(CONSTRAIN) --constraint constraints/service.txt - --output-file constraints/build.txt

.PHONY: bench
bench: $(BENCH) ## Measure what every cure costs, in about 22 minutes
	$(BIN)/python -m bench

.PHONY: bench-quick
bench-quick: $(BENCH) ## Measure the main loads, in two minutes
	$(BIN)/python -m bench --quick

.PHONY: bench-core
bench-core: $(BENCH) ## Measure the checksum core against DPDK, numpy and scapy
	@tools/install-packages $(CORE_PACKAGES)
	$(BIN)/python -m bench.core

# BUILDER is buildah, podman or docker; BASE names another base image; IMAGE names the result.
BUILDER ?= buildah
IMAGE ?= csumfix:$(VERSION)
.PHONY: image
image: ## Build the container image
	@command -v $(firstword $(BUILDER)) >/dev/null || { echo "$(firstword $(BUILDER)) is not" \
		"installed: run 'apt-get install buildah', or make image BUILDER=podman (or docker)" >&2; exit 3; }
	$(BUILDER) build --file Containerfile --tag $(IMAGE) $(if $(BASE),--build-arg BASE=$(BASE)) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) $(BUILD_FLAGS) .

.PHONY: deb
deb: ## Build a package for this Debian (12 or 13) in build/deb
	@tools/build-deb build/deb

# auditwheel names the oldest glibc whose symbols suffice.
WHEELS ?= build/wheels
.PHONY: wheel
wheel: $(DEV) ## Build sdist and wheel (abi3, manylinux) in build/wheels
	rm -rf $(WHEELS)
	$(BIN)/python -m build --outdir $(WHEELS)/built .
	PATH=$(CURDIR)/$(BIN):$$PATH auditwheel repair --wheel-dir $(WHEELS) $(WHEELS)/built/*.whl
	mv $(WHEELS)/built/*.tar.gz $(WHEELS)
	rm -r $(WHEELS)/built

.PHONY: clean
clean: ## Remove all build results
	rm -rf $(VENV) build *.egg-info csumfix/core/_core*.so csumfix/core/_core.c
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
