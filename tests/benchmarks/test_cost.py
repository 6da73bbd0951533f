"""The benchmark of costs runs to its end for every subject, at sizes at which its numbers mean nothing."""

import pytest

from benchmarks import cost

TINY = (
    "--image_size 16 --model_channels 8 --channel_mult 1,2 --num_head_channels 8 --attention_resolutions , "
    "--batch_size 2 --total_steps 40 --save_interval 10 --log_interval 5 --ema_interval 2 --device cpu"
)
CASES = {
    "layers": ["plain", "tied", "regular"],
    "loader": ["steps", "loader, 0 workers", "loader, 1 workers", "loader, 2 workers"],
    "sampling": ["naive loop", "one at a time", "sample"],
    "loop": ["bare", "loop"],
}


@pytest.mark.parametrize("subject", cost.SUBJECTS)
def test_a_row_for_every_case(subject, capsys):
    memory = ["--memory", "true"] if subject == "loop" else []
    assert cost.main([subject, "--rounds", "2", "--count", "4", "--flags", TINY, *memory]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    assert all(row["case"].startswith(name) for row, name in zip(rows, CASES[subject], strict=True))
    assert all(float(row["s"]) > 0 and float(row["from"]) <= float(row["to"]) for row in rows)
    assert float(rows[0]["/ first"]) == 1 and all(float(row["MiB"]) > 100 for row in rows if memory)


def test_seconds_of_cases_that_take_turns(monkeypatch):
    order, clock = [], iter([0, 9, 10, 18, 20, 21, 30, 32, 40, 43, 50, 54])  # the first round is not counted
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    times = cost.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == list("ababab") and {name: [*row] for name, row in times.items()} == {"a": [1, 3], "b": [2, 4]}


def test_mistakes():
    for argv, words in ([["layer"], "did you mean layers"], [["layers", "--preset", "my_vp"], "names no size"]):
        with pytest.raises(ValueError, match=words):
            cost.main(argv)
