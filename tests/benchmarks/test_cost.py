"""The benchmark of costs runs to its end for every subject, at sizes at which its numbers mean nothing."""

import pytest
import torch

from benchmarks import cost

TINY = (
    "--image_size 16 --model_channels 8 --channel_mult 1,2 --num_head_channels 8 --attention_resolutions , "
    "--batch_size 2 --total_steps 40 --save_interval 10 --log_interval 5 --ema_interval 2 --device cpu"
)
CASES = {
    "network": 2 * ["plain", "tied", "regular"],
    "loader": ["steps", "loader, 0 workers", "loader, 1 workers", "loader, 2 workers"],
    "sampling": ["the network alone", "sample", "one at a time", "naive loop"],
    "loop": ["bare", "loop"],
}


def tables(printed):
    """The rows of every table that was printed, by their column."""
    found = []
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[:1] == ["case"]:
            found.append((cells, []))
        elif cells and set(cells[0]) != {"-"}:
            found[-1][1].append(dict(zip(found[-1][0], cells, strict=True)))
    return [rows for _, rows in found]


@pytest.mark.parametrize("subject", cost.SUBJECTS)
def test_a_row_for_every_case(subject, capsys, monkeypatch):
    memory = ["--memory", "true"] if subject == "loop" else []
    monkeypatch.setattr(cost, "SIZES", {"tiny": ""})
    monkeypatch.setattr(cost, "SIZE", {"cpu": 64})
    assert cost.main([subject, "--rounds", "2", "--count", "4", "--flags", TINY, *memory]) == 0
    found = tables(capsys.readouterr().out)
    rows = [row for table in found for row in table]
    assert [row["case"] for row in rows] == CASES[subject] and len(found) == (2 if subject == "network" else 1)
    assert all(float(row["s"]) > 0 and float(row["from"]) <= float(row["to"]) for row in rows)
    assert all(float(table[0]["/ first"]) == 1 for table in found) and all(
        float(row["MiB"]) > 100 for row in rows if memory
    )
    assert all(row.get("share", "–").endswith("%") == (row["case"] == "plain") for row in rows)


PEER = """
import torch.nn.functional as F
from torch import nn
from .parts import Scale
class UNetModel(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        assert settings["attention_resolutions"] == [2] and settings["channel_mult"] == (1, 2), settings
        self.scale, self.conv = Scale(), nn.Conv2d(6, 3, 1)
    def forward(self, x, timesteps, xT=None, y=None):
        q = x.flatten(2).transpose(1, 2)
        h = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(x.shape)
        return self.conv(torch_cat([h, xT])) * self.scale.value + 0 * timesteps[:, None, None, None]
def torch_cat(x):
    import torch
    return torch.cat(x, 1)
"""


def test_a_peer_s_network_beside_ours(capsys, monkeypatch, tmp_path):
    """It comes first, once with queries, keys and values that lie dense, and is not mistaken for our package."""
    (tmp_path / "ddbm").mkdir()
    for name, text in {
        "__init__": "", "unet": PEER,
        "parts": "import torch\nclass Scale(torch.nn.Module):\n    value = 2.0\n",
    }.items():  # fmt: skip
        (tmp_path / "ddbm" / f"{name}.py").write_text(text)
    dense, attend = [], cost.F.scaled_dot_product_attention
    monkeypatch.setattr(cost.F, "scaled_dot_product_attention", lambda *x: dense.append(x[0].stride(-1)) or attend(*x))
    flags = TINY.replace("resolutions ,", "resolutions 8")
    argv = ["--preset", "histology_vp", "--rounds", "1", "--profile", "true", "--peer", str(tmp_path), "--flags", flags]
    assert cost.main(argv) == 0
    printed, _, profiles = capsys.readouterr().out.partition("Self CPU %")
    assert profiles.count("Self CPU time total") == 10 and "aten::convolution" in profiles
    for table in tables(printed):
        assert [row["case"] for row in table] == ["peer, dense attention", "peer", "plain", "tied", "regular"]
        assert float(table[0]["/ first"]) == 1
    assert set(dense) == {1, 256}


def test_floating_point_operations():
    """Products as 2 m n k, convolutions as k² of them a pixel; attention multiplies N x N twice."""
    x, conv, q = torch.randn(2, 4, 8, 6), torch.nn.Conv2d(4, 5, 3, padding=1), torch.randn(2, 3, 7, 4)
    assert cost.flops_of(lambda: torch.randn(3, 4) @ torch.randn(4, 5)) == 2 * 3 * 4 * 5
    assert cost.flops_of(lambda: conv(x)) == 2 * 2 * 48 * 4 * 5 * 9
    attention = cost.F.scaled_dot_product_attention
    assert cost.flops_of(lambda: attention(q, q, q)) == 2 * 2 * 2 * 3 * 7 * 7 * 4


def test_seconds_of_cases_that_take_turns(monkeypatch):
    order, clock = [], iter([0, 9, 10, 18, 20, 21, 30, 32, 40, 43, 50, 54])  # the first round is not counted
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    times = cost.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == list("ababab") and {name: [*row] for name, row in times.items()} == {"a": [1, 3], "b": [2, 4]}


def test_mistakes():
    for argv, words in (
        [["lop"], "did you mean loop"],
        [["--preset", "my_vp"], "names no size"],
        [["--peer", "/none"], "no ddbm/unet.py"],
    ):
        with pytest.raises(ValueError, match=words):
            cost.main(argv)
