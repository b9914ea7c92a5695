"""Tells setuptools about the cffi extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["csumfix/core/build.py:ffi"])
