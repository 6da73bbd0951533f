"""All reports here look at few pixels and few targets of the training."""

import pytest

from tests.scripts.report.reports import few


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        yield
