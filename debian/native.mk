# For Debian 13 and later: Python packages are Debian's.

%:
	dh $@ --with python3 --buildsystem=pybuild

.PHONY: install-all
install-all:
	dh_auto_install
	PYTHONPATH=$$(echo $(TREE)/usr/lib/python3*/dist-packages) PYTHON=/usr/bin/python3 $(INSTALL) files
