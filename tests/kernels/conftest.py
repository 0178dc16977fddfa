"""`pytest -m interpreter` runs the Triton kernels on the CPU: the switch must be set before triton is imported."""

import os

import pytest

from longvid.kernels.backend import forget_warnings


def pytest_configure(config):
    expression = config.getoption("markexpr", "") or ""
    if "interpreter" in expression and "not interpreter" not in expression:
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def fresh_warnings():
    forget_warnings()
