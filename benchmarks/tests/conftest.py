"""The settings of tests/conftest.py hold here too; what --quick trains is as short as the default run's tests."""

import os

import conftest
import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.markexpr.startswith("tpu"):
        os.environ.setdefault("XLA_FLAGS", conftest.COMPILE_FAST)
    conftest.pytest_configure(config)
