"""What tests of several packages share."""

import pytest


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that every gs:// and az:// path leads to (tests/ddbm/files/stores.py)."""
    from tests.ddbm.files.stores import serving

    with serving(monkeypatch) as store:
        yield store
