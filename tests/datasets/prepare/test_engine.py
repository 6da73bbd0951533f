"""Twice the same bytes, killed and gone on, by processes; and what is refused."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.prepare import engine, journal
from datasets.prepare.__main__ import main
from datasets.prepare.recipe import Split, completed, grouping, parts_of, rng_of
from datasets.prepare.table import RECIPES
from tests.datasets.prepare.raws import image, photographs, saved


@pytest.fixture
def raw(tmp_path, make):
    for part, count in (("train", 4), ("val", 2)):
        for i in range(count):
            make.write(tmp_path / f"raw/{part}/{i}.png", make.noise(8, 16, seed=i))
    return tmp_path / "raw"


def test_twice_and_by_processes_gives_the_same_bytes(raw, prepare, bytes_below):
    found = [prepare("edges2handbags", "--image_size", 4, "--workers", n, out=f"out{n}")[1] for n in (0, 2)]
    assert bytes_below(found[0]) == bytes_below(found[1]) != {}
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("torn", [False, True])
def test_killed_goes_on(raw, prepare, monkeypatch, bytes_below, torn):
    whole = bytes_below(prepare("edges2handbags", out="whole")[1])
    done = []

    def dying(name, settings, job, work=engine.work):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job.name)
        return work(name, settings, job)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engine, "work", dying)
        prepare("edges2handbags")
    journal = raw.parent / "out/.prepared.jsonl"
    assert not (raw.parent / "out/manifest.json").exists()
    half = raw.parent / "out/train/.9.png.1.new"  # what a killed process leaves
    half.write_bytes(b"x")
    if torn:
        journal.write_bytes(journal.read_bytes()[:-5])
    seen = []
    monkeypatch.setattr(engine, "work", lambda n, s, job, work=engine.work: [seen.append(job.name), work(n, s, job)][1])
    assert bytes_below(prepare("edges2handbags")[1]) == whole
    assert len(seen) == (4 if torn else 3) and set(seen) | set(done) == {
        f"{p}/{i}.png" for p, n in (("train", 4), ("val", 2)) for i in range(n)
    }
    assert not half.exists()
    prepare("edges2handbags")
    assert len(seen) == (4 if torn else 3)  # finished: nothing is done again


def test_the_contact_sheet_shows_pairs_as_they_are(tmp_path, prepare):
    for n, level in enumerate((77, 200, 30)):
        saved(tmp_path / f"raw/{n}.png", Image.new("RGB", (96, 96), (level, 10, 255)))
    _, out, _ = prepare("degrade", "--degrade", "mask_center:1", "--val", 0, "--test", 0)
    sheet = np.asarray(Image.open(out / "contact_sheet.png"))
    assert sheet.shape == (110, 6 * 196, 3)
    for n, level in enumerate((77, 200)):  # the third is held out
        source, target = (sheet[14:, 196 * n + side : 196 * n + side + 96] for side in (0, 96))
        assert (source == 128).all() and (target == (level, 10, 255)).all()
    assert (sheet[:14, :150] < 128).any() and (sheet[14:, 2 * 196 :] == 255).all()


def test_shares_leave_something_to_train_on(raw, prepare):
    with pytest.raises(ValueError, match=r"--val 0.6 and --test 0.4 leave nothing to train on: give less than 1"):
        prepare("degrade", "--val", 0.6, "--test", 0.4)


@pytest.mark.parametrize("archive", [False, True])
def test_a_finished_folder_is_of_the_files_there_are(tmp_path, prepare, archive):
    raw = photographs(tmp_path).rename(tmp_path / "raw")
    place = raw

    def stored():
        nonlocal place
        if archive:
            place = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", raw))

    stored()
    prepare("degrade", source=place.name)
    prepare("degrade", source=place.name)
    path = sorted(raw.rglob("*.png"))[1]
    content = path.read_bytes()
    for change in (lambda: saved(path, image(12, 16, 99)), path.unlink):
        change()
        stored()
        named = "packed.zip" if archive else path.relative_to(raw).as_posix()
        with pytest.raises(ValueError, match=rf"is finished, but 1 raw file.s. changed since.*such as {named}: choose"):
            prepare("degrade", source=place.name)
    path.write_bytes(content)
    saved(raw / "more.png", image(12, 16, 99))
    stored()
    with pytest.raises(ValueError, match="packed.zip" if archive else "such as more.png"):
        prepare("degrade", source=place.name)


@pytest.mark.parametrize("archive", [False, True])
def test_what_was_begun_goes_on_with_the_same_files_alone(tmp_path, prepare, monkeypatch, archive):
    """A file that was only touched is the same, as its digest says; other bytes are refused, and nothing is mixed."""
    raw = photographs(tmp_path).rename(tmp_path / "raw")
    place = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", raw)) if archive else raw
    count = iter(range(9))

    def dying(name, settings, job, work=engine.work):
        if next(count) == 2:
            raise KeyboardInterrupt
        return work(name, settings, job)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engine, "work", dying)
        prepare("degrade", source=place.name)
    done = json.loads((tmp_path / "out/.prepared.jsonl").read_text().splitlines()[1])
    file = place if archive else raw / next(iter(done["sources"]))
    content = file.read_bytes()
    saved(file, image(12, 16, 99)) if not archive else file.write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match=rf"is begun, but 1 raw file.s. changed since.*such as \S*{file.name}: choose"):
        prepare("degrade", source=place.name)
    file.write_bytes(content)
    manifest, _, _ = prepare("degrade", source=place.name)
    read = []
    monkeypatch.setattr(journal, "sha256", lambda path, own=journal.sha256: [read.append(path), own(path)][1])
    assert prepare("degrade", source=place.name)[0] == manifest and read == [file]  # the others were not touched


def test_what_is_noted_is_on_the_disk(raw, prepare, monkeypatch):
    """The disk is waited for before a line of the journal, and that is at most SYNC seconds behind."""
    journal, noted = raw.parent / "out/.prepared.jsonl", []
    monkeypatch.setattr("os.sync", lambda: noted.append(len(journal.read_text().splitlines())))
    monkeypatch.setattr(engine, "SYNC", -1)
    prepare("edges2handbags")
    assert noted == [1, 2, 3, 4, 5, 6, 7] and len(journal.read_text().splitlines()) == 7


def test_other_settings_and_other_things_are_refused(raw, prepare, make):
    _, out, _ = prepare("edges2handbags")
    with pytest.raises(ValueError, match=r"prepared with other settings .image_size: 0 -> 4.: use those"):
        prepare("edges2handbags", "--image_size", 4)
    with pytest.raises(ValueError, match="name: edges2handbags -> facades"):
        prepare("facades")
    (out / ".prepared.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"prepared.jsonl is damaged"):
        prepare("edges2handbags")
    make.write(raw.parent / "own/photo.png", make.noise())
    with pytest.raises(ValueError, match=r"holds something else already, such as photo.png: choose another --out"):
        prepare("edges2handbags", out="own")


def test_mistakes(raw, prepare):
    with pytest.raises(ValueError, match=r"raw/new and --source .* lie in each other"):
        prepare("edges2handbags", out="raw/new")
    with pytest.raises(ValueError, match="nothing does not exist: name the raw files"):
        prepare("edges2handbags", source="nothing")
    with pytest.raises(ValueError, match="--source, the raw files, and --out"):
        main(["edges2handbags", "--out", "x"])
    with pytest.raises(ValueError, match=r"unknown data set 'edges2handbag': known are .*did you mean edges2handbags"):
        main(["edges2handbag"])
    (raw / "train/loop").symlink_to(raw)
    with pytest.raises(ValueError, match="train/loop: a link leads back"):
        prepare("edges2handbags")
    (raw / "train/loop").unlink()
    (raw / "train/0.jpg").write_bytes((raw / "train/0.png").read_bytes())
    with pytest.raises(ValueError, match=r"differs from 0.\w+ only in its extension"):
        prepare("edges2handbags")


def test_without_training_pairs(raw, prepare):
    for path in (raw / "train").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="raw: the raw files hold val alone; add those of train, or give that"):
        prepare("edges2handbags")


def test_a_process_that_is_killed(monkeypatch):
    with pytest.raises(ValueError, match="a process was killed, perhaps for its memory: give fewer --workers"):
        list(engine.results(os._exit, iter([1]), 1))


def test_manifest_knows_no_time_and_no_place(raw, prepare):
    text = json.dumps(prepare("edges2handbags")[0])
    assert str(raw.parent) not in text and "workers" not in text


def test_help(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in RECIPES)
    assert "\n  back " in said
    for name, recipe in RECIPES.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        said = capsys.readouterr().out
        assert recipe.about in said and "--seed" in said
        assert any(word in recipe.about for word in ("From ", "from ")), "says where the files come from"


@given(
    st.sets(st.text("abc0", min_size=1), min_size=6, max_size=40),
    st.floats(0, 0.4),
    st.floats(0, 0.4),
    st.integers(0, 9),
)
def test_parts_of_groups(names, val, test, seed):
    settings = Split(val=val, test=test, seed=seed)
    parts = parts_of(names, settings, "slides")
    assert parts == parts_of(sorted(names, reverse=True), settings, "slides")
    assert set(parts) == names and "train" in parts.values()
    for part, share in (("val", val), ("test", test)):
        count = sum(found == part for found in parts.values())
        assert abs(count - share * len(names)) <= (0.5 if share * len(names) >= 0.5 else 1) and (count > 0) == (
            share > 0
        )


def test_parts_too_few_and_other_seeds():
    with pytest.raises(ValueError, match=r"2 patients cannot be split into test, val and train.*--val 0 --test 0"):
        parts_of("ab", Split(source="x"), "patients")
    assert parts_of("ab", Split(val=0, test=0), "patients") == {"a": "train", "b": "train"}
    names = [str(i) for i in range(40)]
    assert parts_of(names, Split(), "n") != parts_of(names, Split(seed=1), "n")


def test_parts_of_the_owners():
    settings = Split(val=0.25, test=0.5)
    group = grouping(r"^(p\d+)_")
    known = {f"p{i}_{k}": "train" for i in range(8) for k in range(3)} | {"p9_0": "test"}
    parts = completed(known, settings, "patients", group)
    assert parts["p9_0"] == "test" and sum(part == "val" for part in parts.values()) == 6
    assert all(len({parts[f"p{i}_{k}"] for k in range(3)}) == 1 for i in range(8))
    assert completed(known | {"p7_0": "val"}, settings, "patients", group) == known | {"p7_0": "val"}
    assert completed(known, Split(val=0), "patients") == known
    torn = completed(dict.fromkeys(known, ""), settings, "patients", group)
    assert all(len({torn[f"p{i}_{k}"] for k in range(3)}) == 1 for i in range(8)) and set(torn.values()) == {
        "train",
        "val",
        "test",
    }
    with pytest.raises(ValueError, match="a lies in no folder train, val or test, others do"):
        completed({"a": "", "b": "train"}, settings, "images")


def test_grouping():
    assert grouping("")("a/b") == "a/b" and grouping(r"\d+")("x12y") == "12" and grouping("x(.)")("xy") == "y"
    assert grouping("(z)?x")("xy") == "x"  # a bracket that takes no part
    with pytest.raises(ValueError, match=r"--group_by '.' is no regular expression"):
        grouping("(")
    with pytest.raises(ValueError, match="'q' does not match 'a'; correct it"):
        grouping("q")("a")


def test_draws_belong_to_names():
    draws = [rng_of(Split(seed=seed), name).random() for seed in (0, 1) for name in ("a", "b", "ab")]
    assert len(set(draws)) == 6 and draws[0] == rng_of(Split(), "a").random()


@pytest.mark.parametrize("flags", [("degrade",), ("bci", "--image_size", 0)])
def test_a_file_less_tears_no_split(tmp_path, prepare, make, flags):
    folders = ("HE", "IHC") if flags[0] == "bci" else (".",)
    for folder in folders:
        for i in range(12):
            make.write(tmp_path / f"raw/{folder}/{i:02}.png", make.noise(8, 8, seed=i))
        (tmp_path / f"raw/{folder}/08.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"08.png: cannot be read .*; replace or remove the file"):
        prepare(*flags)
    for folder in folders:
        (tmp_path / f"raw/{folder}/08.png").unlink()
    with pytest.raises(ValueError, match=r"out: .*0\d was prepared as (train|val|test), which it is not any more"):
        prepare(*flags)
    manifest, _, _ = prepare(*flags, out="anew")
    assert sum(manifest["pairs"].values()) == 11
