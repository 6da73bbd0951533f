"""Splits by patient or slide: whole groups are held out, and none lies in two splits."""

import re
import shlex
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets import open_data
from datasets.layouts import Pair
from datasets.splits import held_out_of
from ddbm.config import DataConfig

CASES = {"(slide[0-9]+)": 1, "^[^_]+": 1, "^(a)?(slide[0-9]+)_x": 1}


def named(*names):
    return [Pair(name, None, None, "") for name in sorted(names)]


def split(pairs, notices=None, **settings):
    options = DataConfig("mine", **settings)
    return [held_out_of(pairs, part, "root", options, [] if notices is None else notices) for part in ("train", "val")]


@pytest.mark.parametrize("pattern", CASES)
def test_every_tenth_group_is_held_out_whole(pattern):
    pairs = named(*(f"slide{i:02}_x{j}" for i in range(25) for j in range(3)))
    train, val = split(pairs, notices := [], group_by=pattern)
    assert sorted(pair.name for pair in val) == [f"slide{i:02}_x{j}" for i in (9, 19) for j in range(3)]
    assert sorted([*train, *val]) == pairs
    assert notices[0] == "no val or test folder, 6 of the pairs (those of 2 of 25 groups) are held out as both"


def test_of_few_groups_the_last_is_held_out():
    _, val = split(named("p1/a", "p1/b", "p2/a", "p3/a", "p3/b"), group_by="^p[0-9]")
    assert [pair.name for pair in val] == ["p3/a", "p3/b"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99)), min_size=2, unique=True))
def test_no_group_is_torn_and_no_pair_is_lost(numbers):
    pairs = named(*(f"p{patient}_{number}" for patient, number in numbers))
    if len({patient for patient, _ in numbers}) < 2:
        with pytest.raises(ValueError, match=r"found 1 group \(p\d+\) by --group_by, expected at least 2"):
            split(pairs, group_by="p[0-9]+")
        return
    train, val = split(pairs, group_by="p[0-9]+")
    patients = [{pair.name.split("_")[0] for pair in part} for part in (train, val)]
    assert all(patients) and not patients[0] & patients[1]
    assert sorted([*train, *val]) == pairs and all(a <= b for part in (train, val) for a, b in pairwise(part))


def test_names_that_look_like_patches_are_said_with_the_remedy():
    pairs = named(*(f"slide{i:02}_x{j}" for i in range(5) for j in range(7)))
    split(pairs, notices := [])
    found = re.search(r"what is of one slide or patient belongs into one split \((--group_by .*) keeps", notices[1])
    assert "others are named 'slide01...' too" in notices[1]  # as the tenth pair
    flag, pattern = shlex.split(found[1])
    train, val = split(pairs, notices := [], **{flag[2:]: pattern})
    assert not any("others are named" in notice for notice in notices)
    assert {pair.name[:7] for pair in val} == {"slide04"} and len(train) == 28


def test_patches_that_are_named_by_row_and_column():
    """As datasets.prepare names them: what is advised keeps all of a slide together, not a row of it."""
    pairs = named(*(f"patient {i} slide {j}_y{y:05}_x{x:05}" for i in range(4) for j in range(2) for y in (0, 64)
                    for x in (0, 64)))  # fmt: skip
    split(pairs, notices := [])
    flag, pattern = shlex.split(re.search(r"\((--group_by .*) keeps", notices[1])[1])
    train, val = split(pairs, notices := [], **{flag[2:]: pattern})
    assert {pair.name.split("_y")[0] for pair in val} == {"patient 3 slide 1"} and len(val) == 4 and len(train) == 28


def test_a_group_in_two_folders_is_refused(make, tmp_path):
    for part, names in (("train", ("p1_a", "p2_a")), ("test", ("p3_a", "p2_b"))):
        for name in names:
            for side in ("source", "target"):
                make.write(tmp_path / part / side / f"{name}.png", make.noise())
    assert len(open_data("mine", "train", data_dir=str(tmp_path), group_by="p[0-9]")) == 2
    expected = "'p2_b' and 'p2_a' of train are both of 'p2' by --group_by: move all of it into one split"
    for part in ("val", "test"):
        with pytest.raises(ValueError, match=expected):
            open_data("mine", part, data_dir=str(tmp_path), group_by="p[0-9]")
        assert len(open_data("mine", part, data_dir=str(tmp_path), group_by="p[0-9]_[ab]")) == 2


def test_mistakes():
    with pytest.raises(ValueError, match=r"--group_by 'q\[0-9\]' finds nothing in 'p1'; expected a match in every"):
        split(named("p1", "p2"), group_by="q[0-9]")
    with pytest.raises(ValueError, match=r"--group_by '\(' is no regular expression: missing \)"):
        DataConfig("mine", group_by="(")
