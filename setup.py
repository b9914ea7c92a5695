"""Tells setuptools about the cffi extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=["csumfix/core/build.py:ffi"],
    # The extension keeps to the stable ABI, so one wheel is for every Python from 3.11 on.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
