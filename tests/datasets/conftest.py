"""The helpers of `make.py` as a fixture: the tests are no package that could be imported from."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make():
    spec = importlib.util.spec_from_file_location("datasets_tests_make", Path(__file__).with_name("make.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
