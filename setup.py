"""The distribution; its metadata is in pyproject.toml."""

from setuptools import setup

setup()
