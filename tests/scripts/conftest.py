"""One model and what it samples, for all tests of sampling."""

import pytest

from tests.scripts.sampling_runs import make_run, sampled


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def expected(model, tmp_path_factory):
    return sampled(model, tmp_path_factory.mktemp("whole"))
