"""Runs for tests of the report, small enough to be sampled and certified in seconds, and a reader of its pages."""

import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from scripts import sample, translate
from scripts.report import scores, unseen
from scripts.report.__main__ import main
from tests.scripts.sampling_runs import make_run

PAIRS = 6
FLAGS = ["--group", "H", "--device", "cpu"]  # two elements: half the work of any other group


def few(patch):
    """A linear map from few pixels, and few targets of the training that are looked at."""
    patch.setattr(scores, "FIT_PIXELS", 10_000)
    patch.setattr(unseen, "TARGETS", 50)


def sampled(run, *flags, count=PAIRS):
    """Samples a run; returns the folder's name."""
    known = {path.parent for path in run.glob("samples/*/sampling.json")}
    words = [run, "--split", "val", "--num_samples", count, *flags]
    assert sample.main([str(word) for word in words]) == 0
    (new,) = {path.parent for path in run.glob("samples/*/sampling.json")} - known
    return new.name


def translated(run):
    """RUN/picture, its translation in RUN/translated with mean and spread, and that of two pictures in RUN/other."""
    (run / "picture").mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (("source.png", (40, 56, 3)), ("target.tif", (40, 56, 3)), ("big.png", (20, 1500, 3))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(run / "picture" / name)
    for out, names, flags in (
        ("translated", ["source.png"], ["--answer", "both", "--draws", 2]),
        ("other", ["source.png", "big.png"], []),
    ):
        words = [run, *(run / "picture" / name for name in names), "--out", run / out, *flags]
        assert translate.main([str(word) for word in (*words, "--nfe", 2, "--device", "cpu")]) == 0


def logged_run(folder, **settings):
    """A run of `make_run`, with a log."""
    run = make_run(folder, **settings)
    records = [{"step": 10 * i, "loss": 1 / i, "lr": 1e-4} for i in range(1, 9)]
    records += [{"step": 40, "val_loss": 0.5}, {"step": 80, "val_loss": 0.25, "eval_psnr": 12.5}]
    records.append({"step": 90, "loss": None})
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, records)))
    return run


def reported(*words, flags=FLAGS):
    """The page; without words for the file it is beside the run."""
    out = words[words.index("--out") + 1] if "--out" in words else words[0] / "report.html"
    assert main([str(word) for word in (*words, *flags)]) == 0
    return Page(out)


class Page(HTMLParser):
    """What a page holds; its tags must be well nested.

    tables: by name the rows, lists of (text, small text, whether bold); tags: (name, attributes) of each; text: all.
    """

    def __init__(self, path):
        super().__init__()
        self.tables, self.captions, self.tags, self.text = {}, [], [], ""
        self.name, self.open = "", []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "div" and attributes.get("class") == "scroll":
            self.name = attributes["aria-label"]
        elif tag == "tr":
            self.tables.setdefault(self.name, []).append([])
        elif tag in ("td", "th"):
            self.tables[self.name][-1].append(["", "", False])
        elif tag == "figcaption":
            self.captions.append("")
        self.open += [] if tag in ("meta", "img", "wbr") else [tag]
        if tag == "strong":
            self.tables[self.name][-1][-1][2] = True

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[self.name][-1][-1]["small" in self.open] += data
        elif "figcaption" in self.open:
            self.captions[-1] += data

    @property
    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]

    @property
    def charts(self):
        """What the drawings show, in words."""
        return [attributes["aria-label"] for _, attributes in self.tags if attributes.get("role") == "img"]
