"""Landmarks of ANHIR, and what they make of a section."""

import numpy as np
import pytest
from PIL import Image

from datasets.prepare.anhir import Warp, has_word, matched, read_landmarks
from tests.datasets.prepare import raws


@pytest.fixture
def raw(tmp_path):
    return raws.anhir(tmp_path).rename(tmp_path / "raw")


def pixels(path):
    with Image.open(path) as stored:
        return np.asarray(stored)


@pytest.mark.parametrize("warp", ["spline", "affine"])
def test_the_warped_source_is_the_target(raw, prepare, warp):
    """The section is a picture linear in x and y under an affine map: both warps and bilinear sampling are exact."""
    manifest, out, said = prepare("anhir", "--image_size", 16, "--warp", warp, "--tissue", 0.6)
    assert said.endswith("anhir i2sb --image_size 32\n")
    found = sorted(out.rglob("target/*.png"))
    places = {path.stem.split("les1_")[-1] for path in found}
    # others: a third of glass or more on the right, a hole of it in the source, a middle below the landmarks
    assert places == {"y00000_x00000", "y00000_x00016", "y00016_x00000"}
    for path in found:
        source = pixels(path.parents[1] / "source" / path.name)
        assert np.abs(source.astype(int) - pixels(path)).max() <= 1
    assert len({name.split("/")[0] for names in manifest["splits"].values() for name in names}) == 4
    assert manifest["about"][next(iter(manifest["about"]))] == {"landmarks": 9}


def test_a_spline_passes_through_all_landmarks():
    """And is, between them, that of Bookstein 1989: U(r) = r² log r and an affine part."""
    rng = np.random.default_rng(0)
    target, source = rng.uniform(0, 50, (2, 7, 2))
    warp = Warp(target, source, "spline")
    assert np.abs(warp.map(target) - source).max() < 1e-8
    r = np.linalg.norm(target[:, None] - target[None], axis=-1)
    kernel = np.where(r > 0, r**2 * np.log(np.where(r > 0, r, 1)), 0)
    affine = np.c_[np.ones(7), target]
    system = np.block([[kernel, affine], [affine.T, np.zeros((3, 3))]])
    weights = np.linalg.solve(system, np.r_[source, np.zeros((3, 2))])
    point = np.array([[20.0, 31.0]])
    r = np.linalg.norm(point - target, axis=-1)
    expected = (r**2 * np.log(r)) @ weights[:7] + np.r_[1, point[0]] @ weights[7:]
    assert np.abs(warp.map(point) - expected).max() < 1e-6


def test_an_affine_map_is_of_least_squares():
    rng = np.random.default_rng(1)
    target, source = rng.uniform(0, 50, (2, 6, 2))
    residual = Warp(target, source, "affine").map(target) - source
    assert np.abs(np.c_[np.ones(6), target].T @ residual).max() < 1e-8  # normal equations
    assert np.abs(residual).max() > 0.1


def test_inside_and_outside():
    square = np.array([[0, 0], [0, 20], [20, 0], [20, 20.0]])
    warp = Warp(square, square + 4, "affine")
    assert warp.inside((10, 10)) and not warp.inside((10, 21))
    image = np.arange(24 * 24, dtype=np.uint16).reshape(24, 24, 1).astype(np.uint8)
    assert (warp.patch(image, (0, 0), 20) == image[4:, 4:]).all()
    deep = np.arange(24 * 24, dtype=np.uint16).reshape(24, 24, 1) * 100
    assert (warp.patch(deep, (0, 0), 20) == deep[4:, 4:]).all()  # also of 16 bits
    assert warp.patch(image, (1, 0), 20) is None and warp.patch(image, (0, 1), 20) is None


def test_words():
    assert has_word("29-041-Izd2-w35-He-les1", "HE") and has_word("HE", "he") and has_word("s2_33-HE_A4926", "HE")
    assert not has_word("the-heart", "HE") and not has_word("HER2", "HE")


def test_landmarks_match_by_number(tmp_path):
    raws.landmarks(tmp_path / "a.csv", [(1, 2), (3, 4), (5, 6)])
    (tmp_path / "b.csv").write_text(",X,Y\n0,10,20\n2,50,60\n7,0,0\n")
    (tmp_path / "c.csv").write_text("X,Y\n10,20\n30,40\n")
    assert matched((tmp_path / "a.csv", tmp_path / "b.csv"), 2).tolist() == [[[2, 1], [6, 5]], [[20, 10], [60, 50]]]
    assert list(read_landmarks(tmp_path / "c.csv").values()) == [(10, 20), (30, 40)]
    (tmp_path / "d.csv").write_text("X,Y\n1,2\n3,4\n")  # without numbers line by line
    assert matched((tmp_path / "c.csv", tmp_path / "d.csv"), 2)[1].tolist() == [[2, 1], [4, 3]]
    with pytest.raises(ValueError, match=r"share 2 landmarks, expected 3 or more; remove the pair"):
        matched((tmp_path / "a.csv", tmp_path / "b.csv"), 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "begins with .*expected columns X and Y"), ("a,b\n1,2\n", "expected columns X and Y"),
        (",X,Y\n0,1,2\n1,x,2\n", r"line 3 is \['1', 'x', '2'\], expected a number"), (",X,Y\n0,1\n", "line 2 is"),
    ],
)  # fmt: skip
def test_damaged_landmarks(tmp_path, text, said):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_landmarks(tmp_path / "a.csv")


def test_mistakes(raw, prepare):
    with pytest.raises(ValueError, match="no images in folders TISSUE/scale-5pc; set --scale"):
        prepare("anhir", "--scale", "scale-5pc")
    with pytest.raises(ValueError, match="no set holds both 'HE' and 'CD31'; set --source_stain"):
        prepare("anhir", "--target_stain", "CD31")
    with pytest.raises(
        ValueError, match=r"png: its name has both 'HE' and 'He'; set --source_stain and --target_stain"
    ):
        prepare("anhir", "--target_stain", "He")
    with pytest.raises(ValueError, match="40x40 pixels, smaller than --image_size 64"):
        prepare("anhir", "--image_size", 64, out="large")
    path = next(raw.rglob("*He*.csv"))
    kept = path.read_text()
    for point, said in (((20, 63), "20, 63"), ((-3, 20), "-3, 20")):
        raws.landmarks(path, [(1, 1), point, (39, 20), (20, 61)])  # the last is off by less than a few pixels
        where = rf"csv: the landmark {said} \(X, Y\) lies outside its image of 60x60 pixels"
        with pytest.raises(ValueError, match=where):
            prepare("anhir", "--image_size", 16, out="outside")
    path.write_text(kept)
    for points in ([(i, 2 * i) for i in range(9)], [(1, 1)] * 9):
        for other in path.parent.glob("*.csv"):
            raws.landmarks(other, points)
        with pytest.raises(
            ValueError, match="landmarks lie on a line or at one place, which makes no map; correct them, or remove"
        ):
            prepare("anhir", "--image_size", 16, out="line")
    for path in raw.rglob("*.csv"):
        path.unlink()
    with pytest.raises(ValueError, match=r"none of 4 pairs has landmarks .lung-lesion_0: 29.*extract their archive"):
        prepare("anhir", out="alone")


def test_pairs_without_landmarks_are_left_out_and_counted(raw, prepare):
    for path in raw.rglob("lung-lesion_2/*/*-proSPC-*.csv"):
        path.unlink()
    manifest, _, said = prepare("anhir", "--image_size", 16)
    he, spc = (f"29-041-Izd2-w35-{stain}-2-les1.png" for stain in ("He", "proSPC"))
    assert manifest["left_out"] == [f"lung-lesion_2: {he} and {spc}, no landmarks of {spc}"]
    assert said.startswith("note: 1 left out (manifest.json has all), such as lung-lesion_2: 29")
    assert {name.split("/")[0][-1] for names in manifest["splits"].values() for name in names} == {"0", "1", "3"}


def test_landmarks_on_a_line_make_no_map(raw, prepare):
    for path in raw.rglob("*.csv"):
        raws.landmarks(path, [(1, 1), (20, 20), (30, 30), (38, 38)])
    for warp in ("spline", "affine"):
        with pytest.raises(ValueError, match=r"csv: its landmarks lie on a line or at one place, which makes no map"):
            prepare("anhir", "--warp", warp, "--image_size", 16, out=warp)


def test_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\ufeffX,Y\n1,2\n\n3,4\n\n", encoding="utf-8")
    assert list(read_landmarks(path).values()) == [(1, 2), (3, 4)]


def test_sixteen_bits_stay():
    image = np.full((9, 9, 1), 40_000, np.uint16)
    points = np.array([[0, 0], [0, 8], [8, 0], [8, 8.0]])
    found = Warp(points, points, "affine").patch(image, (2, 2), 4)
    assert found.dtype == np.uint16 and (found == 40_000).all()
