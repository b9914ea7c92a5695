# For Debian 12: Python packages come from what "tools/wheels fetch build/deb" has put into
# build/deb/fetched.

DPKG_EXPORT_BUILDFLAGS = 1
include /usr/share/dpkg/buildflags.mk

# The environment is for this version of Python, whatever python3 may become.
PYTHON := $(shell python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')

%:
	dh $@

# The top-level Makefile is for developers.
override_dh_auto_configure override_dh_auto_build override_dh_auto_test override_dh_auto_clean:

.PHONY: install-all
install-all:
	PYTHON=/usr/bin/$(PYTHON) FETCHED=$(CURDIR)/build/deb/fetched $(INSTALL) install
	# Nobody needs what other packages have for the command line, nor what activates the environment.
	find $(TREE)/usr/lib/csumfix/venv/bin -type f ! -name csumfix ! -name csumfix-rules -delete
	rm -rf $(TREE)/usr/lib/csumfix/venv/include $(TREE)/usr/lib/csumfix/venv/share

# Others have built it, and left no symbols in it.
override_dh_strip:
	dh_strip --exclude=_cffi_backend

override_dh_gencontrol:
	dh_gencontrol -- -Vcsumfix:Python=$(PYTHON)
