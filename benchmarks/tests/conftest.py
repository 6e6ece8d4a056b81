"""The settings of tests/conftest.py hold here too."""

from conftest import pytest_configure

__all__ = ["pytest_configure"]
