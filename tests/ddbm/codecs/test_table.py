"""What a setting --codec means."""

import pytest

from ddbm.codecs import CODECS, Pixels, open_codec
from ddbm.codecs.symmetric import Symmetric
from ddbm.codecs.table import kind_of
from ddbm.config import ImageShape
from tests.ddbm.codecs.small import autoencoder
from tests.ddbm.codecs.test_symmetric import written
from tests.ddbm.runs import one_line


def test_pixels_is_a_codec():
    assert set(CODECS) == {"pixels", "symmetric", "kl"}
    assert isinstance(open_codec("pixels", ImageShape(2, 7, 3, 5, 0)), Pixels)


def test_a_run_a_checkpoint_and_a_folder_of_them_are_codecs_of_our_own(tmp_path):
    path = written(autoencoder("tied"), tmp_path)
    for place in (tmp_path, path, path.parent):
        assert kind_of(str(place)) == "symmetric"
        codec = open_codec(str(place), ImageShape(1, 3, 8, 8, 0))
        assert isinstance(codec, Symmetric) and not codec.training
        assert not any(p.requires_grad for p in codec.parameters())
    with one_line("8x6 cannot be cut"):
        open_codec(str(tmp_path), ImageShape(3, 3, 8, 6, 0))
    (path / "ema.safetensors").write_bytes(b"")
    with one_line("is damaged"):
        open_codec(str(path))


@pytest.mark.parametrize(("text", "kind"), [("gs://bucket/run", "symmetric"), ("some/model", "kl"), ("pixel", "kl")])
def test_kinds_by_name(text, kind):
    assert kind_of(text) == kind
