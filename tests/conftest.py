"""What tests of several packages share."""

import hypothesis
import pytest

hypothesis.settings.register_profile("suite", deadline=None, database=None, derandomize=True)  # on any machine
hypothesis.settings.load_profile("suite")


@pytest.fixture
def server(monkeypatch, tmp_path_factory):
    """A server on this machine that every gs:// and az:// address leads to (tests/ddbm/files/stores.py)."""
    from tests.ddbm.files.stores import serving

    with serving(monkeypatch, tmp_path_factory.mktemp("stores")) as store:
        yield store
