"""Every metric of pairs is of what lies inside the masks alone: by the cut images, by scikit-image, and by hand."""

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from evaluations.evaluator import evaluate
from evaluations.images import Images, as_images, load_images
from evaluations.metrics import METRICS

PIXELS = ["mse", "mae", "psnr", "ssim", "dice", "accuracy", "mask_precision", "mask_recall"]
RECTANGLE = (slice(None), slice(7, 31), slice(4, 23))


def pairs(count=3, size=(40, 36), channels=2, seed=0):
    random = np.random.default_rng(seed)
    reference = np.where(random.random((count, *size, channels)) < 0.4, 255, 0).astype(np.uint8)
    return reference, random.integers(0, 256, reference.shape, dtype=np.uint8)


def masked(shape, part):
    mask = np.zeros((*shape[:3], 1), bool)
    mask[part] = True
    return mask


def scored(reference, sample, mask, names, **more):
    return evaluate(as_images(reference, "reference", mask), sample, names, batch_size=2, **more)


def test_a_rectangle_is_the_image_cut_to_it():
    reference, sample = pairs()
    found = scored(reference, sample, masked(reference.shape, RECTANGLE), PIXELS)
    cut = evaluate(reference[RECTANGLE], sample[RECTANGLE], PIXELS)["metrics"]
    for name in PIXELS:
        assert found["metrics"][name]["per_image"] == pytest.approx(cut[name]["per_image"], rel=1e-9), name
    assert found["notes"] == ["3 pair(s) are measured inside their masks alone"]


def test_ms_ssim_of_a_rectangle_on_the_grid_of_all_scales():
    reference, sample = pairs(1, (208, 224), 1)
    part = (slice(None), slice(16, 192), slice(32, 208))
    found = scored(reference, sample, masked(reference.shape, part), ["ms_ssim"])["metrics"]["ms_ssim"]
    cut = evaluate(reference[part], sample[part], ["ms_ssim"])["metrics"]["ms_ssim"]
    assert found["per_image"] == pytest.approx(cut["per_image"], rel=1e-9)


def test_a_disc_by_numpy_and_skimage():
    reference, sample = pairs(channels=1)
    rows, columns = np.indices((40, 36))
    disc = (rows - 19) ** 2 + (columns - 15) ** 2 < 14**2
    mask = np.broadcast_to(disc[None, ..., None], (3, 40, 36, 1))
    found = scored(reference, sample, mask, PIXELS)["metrics"]
    windows = np.lib.stride_tricks.sliding_window_view(disc, (11, 11)).all((2, 3))
    for n, (x, y) in enumerate(zip(reference[..., 0] / 255, sample[..., 0] / 255, strict=True)):
        error = (x - y)[disc]
        assert found["mse"]["per_image"][n] == pytest.approx((error**2).mean())
        assert found["mae"]["per_image"][n] == pytest.approx(np.abs(error).mean())
        assert found["psnr"]["per_image"][n] == pytest.approx(-10 * np.log10((error**2).mean()))
        window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, full = structural_similarity(x, y, data_range=1, full=True, **window)
        assert found["ssim"]["per_image"][n] == pytest.approx(full[5:-5, 5:-5][windows].mean(), abs=1e-4)
        assert found["accuracy"]["per_image"][n] == pytest.approx(((y > 0.5) == (x > 0.5))[disc].mean())


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.paired])
def test_no_pixel_outside_counts(name, weights):
    reference, sample = pairs(2, (200, 200), 1)
    mask = masked(reference.shape, (slice(None), slice(3, 198), slice(1, 196)))
    other = [np.where(mask, images, 77) for images in (reference, sample)]
    first = scored(reference, sample, mask, [name], weights=weights)["metrics"][name]["per_image"]
    assert first == scored(*other, mask, [name], weights=weights)["metrics"][name]["per_image"]
    assert np.isfinite(first).all()


def test_lpips_is_of_the_share_that_is_inside(weights):
    """A pair whose grey outside is part of both images differs by as much, spread over the whole of them."""
    reference, sample = pairs(2, channels=3)
    mask = masked(reference.shape, (slice(None), slice(0, 20)))
    grey = [np.where(mask, images, np.uint8(128)) for images in (reference, sample)]
    whole = evaluate(*grey, ["lpips"], weights)["metrics"]["lpips"]["per_image"]
    found = scored(reference, sample, mask, ["lpips"], weights=weights)["metrics"]["lpips"]["per_image"]
    assert found == pytest.approx([2 * value for value in whole])


def test_pairs_with_nothing_inside_are_left_out_and_said():
    reference, sample = pairs()
    mask = masked(reference.shape, RECTANGLE)
    mask[1] = False
    mask[2], mask[2, :10] = False, True  # too little for a window
    found = scored(reference, sample, mask, PIXELS)
    for name in PIXELS:
        each = np.array(found["metrics"][name]["per_image"])
        hidden = [1, 2] if name == "ssim" else [1]
        assert np.flatnonzero(np.isnan(each)).tolist() == hidden, name
        kept = np.delete(each, hidden)
        assert found["metrics"][name]["mean"] == found["metrics"][name]["compared"] == pytest.approx(kept.mean())
    assert "ssim: 2 pair(s) have too little inside their masks and are left out" in found["notes"]
    none = scored(reference, sample, np.zeros_like(mask), ["psnr"])["metrics"]["psnr"]
    assert np.isnan([none["mean"], none["compared"]]).all() and none["interval"] is None


def test_masks_of_both_sides_and_the_levels_inside():
    """What is hidden in either is not measured; the grey outside does not make a mask (0 and 255) none."""
    reference, sample = pairs(channels=1)
    one, other = masked(reference.shape, RECTANGLE), masked(reference.shape, (slice(None), slice(0, 20)))
    reference = np.where(one, reference, np.uint8(128))
    found = evaluate(as_images(reference, "reference", one), as_images(sample, "sample", other), ["mse", "dice"])
    both = (slice(None), slice(7, 20), slice(4, 23))
    cut = evaluate(reference[both], sample[both], ["mse", "dice"])["metrics"]
    for name in cut:
        assert found["metrics"][name]["per_image"] == pytest.approx(cut[name]["per_image"])
    with pytest.raises(ValueError, match="the reference is no mask: it holds the value 128"):
        evaluate(reference, sample, ["dice"])


def test_a_folder_has_the_masks_of_its_alpha(tmp_path):
    """Also where it is paired by other names, and where files without alpha lie among the others."""
    reference, sample = pairs(3, (16, 16), 3)
    seen = np.ones((3, 16, 16, 1), bool)
    seen[0, :5], seen[2, :, 11:] = False, False
    for side, images, prefix in (("ref", reference, "real_"), ("sample", sample, "fake_")):
        (tmp_path / side).mkdir()
        for n, image in enumerate(images):
            file = tmp_path / side / f"{prefix}{n}.png"
            alpha = np.where(seen[n], 255, 0).astype(np.uint8)
            Image.fromarray(image if side == "sample" or n == 1 else np.concatenate([image, alpha], -1)).save(file)
    one, other = (load_images(tmp_path / side) for side in ("ref", "sample"))
    assert isinstance(one, Images) and one.mask and other.mask is None
    assert np.array_equal(np.concatenate(list(one.mask(2))), seen)
    found = evaluate(one, other, ["mse"])["metrics"]["mse"]["per_image"]
    expected = scored(reference, sample, seen, ["mse"])["metrics"]["mse"]["per_image"]
    assert found == pytest.approx(expected)


def test_a_folder_whose_first_picture_is_opaque(tmp_path):
    """All of whose files have the same head: every one may have a mask."""
    reference, sample = pairs(3, (16, 16), 3)
    seen = np.ones((3, 16, 16, 1), bool)
    seen[1, :5], seen[2, :, 11:] = False, False
    for side, images in (("ref", reference), ("sample", sample)):
        (tmp_path / side).mkdir()
        for n, image in enumerate(images):
            rgba = np.concatenate([image, np.where(seen[n], 255, 0).astype(np.uint8)], -1)
            Image.fromarray(image if side == "sample" else rgba).save(tmp_path / side / f"{n}.png")
    one, other = (load_images(tmp_path / side) for side in ("ref", "sample"))
    found = evaluate(one, other, ["mse"])["metrics"]["mse"]["per_image"]
    assert found == pytest.approx(scored(reference, sample, seen, ["mse"])["metrics"]["mse"]["per_image"])
