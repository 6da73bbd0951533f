"""The page of scripts.demo: its mistakes without Gradio, the rest in a real headless browser."""

import base64
import io
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

import ddbm
from ddbm.config import BridgeConfig, Config, DataConfig, ModelConfig, TrainConfig
from ddbm.files import checkpoint
from ddbm.model import BridgeModel, Header, ImageShape
from ddbm.settings import to_dict
from scripts import demo, studio
from scripts.studio import TURNS, Choice, Stopped, Studio, picture, turned_input
from tests.scripts.sampling_runs import environment

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars"
FLAGS += " --remote-debugging-pipe --disable-background-networking --disable-component-update --disable-sync"
NOISE = ["Method not implemented."]  # Gradio's own, at the end of every upload
PATIENCE = 60  # seconds; a machine may be busy
SEEN = "[...document.querySelectorAll('#shown figure')]"
SEEN += ".map(f => [f.querySelector('b').textContent, f.querySelector('img').src])"


class Browser:
    """A page in Chromium, driven by the DevTools protocol through pipes; keeps what it asks for and complains of."""

    def __init__(self, folder, address, width=1280, height=900):
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        words = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder}", "about:blank"]
        command = f"exec {shlex.join(words)} 3<&{theirs_in} 4>&{theirs_out}"
        pipes = (theirs_in, theirs_out)
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=pipes, stderr=subprocess.DEVNULL)
        for pipe in pipes:
            os.close(pipe)
        self.ours_in, self.ours_out, self.buffer, self.number, self.session = ours_in, ours_out, b"", 0, None
        self.requests, self.complaints = [], []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self(f"{domain}.enable")
        self.resize(width, height)
        self("Page.navigate", url=address)

    def __call__(self, method, **params):
        """Calls a method and waits for its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.ours_out, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            pass
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def read(self):
        """The next message; an event is kept."""
        while b"\0" not in self.buffer:
            assert select.select([self.ours_in], [], [], PATIENCE)[0], "the browser is silent"
            self.buffer += os.read(self.ours_in, 1 << 20)
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        kind, params = message.get("method"), message.get("params", {})
        if kind == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append([each.get("value", each.get("description")) for each in params["args"]])
        elif kind == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"])
        return message

    def js(self, expression):
        """The value of an expression."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression):
        """The value of an expression, once it is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self.js(expression)):
            assert time.monotonic() < end, f"{expression}: {self.js('document.body.innerText')}, {self.complaints}"
            time.sleep(0.05)
        return found

    def click(self, text):
        self.wait(f"[...document.querySelectorAll('button')].some(b => b.innerText.trim() == {text!r})")
        self.js(f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() == {text!r}).click()")

    def upload(self, path):
        self.wait("!!document.querySelector('#drop input[type=file]')")
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector="#drop input[type=file]")["nodeId"]
        self("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def resize(self, width, height):
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path):
        data = self("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def pictures(self, wanted):
        """The pictures of the page by their titles, uint8, once one is there that is wanted."""
        self.wait(f"{SEEN}.some(([title]) => title == {wanted!r})")
        return {title: decoded(source) for title, source in self.js(SEEN)}

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        os.close(self.ours_in)
        os.close(self.ours_out)


def decoded(source):
    """A picture from its data URI."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def studio_of(layers="plain", group="none", size=(16, 16), augment="none", classes=0):
    """A model of random weights, and the header of its checkpoint."""
    sizes = dict(model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=8)
    config = Config(
        data=DataConfig(image_size="{}x{}".format(*size)),
        bridge=BridgeConfig(schedule="vp"),
        model=ModelConfig(layers=layers, group=group, attention_resolutions=(8,), **sizes),
        train=TrainConfig(augment=augment),
    )
    images = ImageShape(3, 3, *size, classes)
    torch.manual_seed(0)
    model = BridgeModel(config, images).eval()
    weights = {name: value + 0.05 * torch.randn_like(value) for name, value in model.network.state_dict().items()}
    model.network.load_state_dict(weights)
    return Studio(model, Header(config, images, 1))


def saved(folder, made):
    """The model as a run."""
    weights = {"ema": made.model.network.state_dict()}
    checkpoint.write(checkpoint.path_of(folder, 1), to_dict(made.header), weights, {})
    return folder


def image_of(folder, name="my image.png", size=(20, 24)):
    """A file of random pixels, with a blank in its name, and its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name, pixels


CHOICE = Choice("both", 2, "dbim", 4, 0, "none", "D4", None)
LEFT, MIRROR = (0, 1), (1, 0)


@pytest.mark.parametrize(
    ("settings", "turns", "group"),
    [
        (dict(layers="tied", group="D4"), list(TURNS), "D4"),
        (dict(layers="regular", group="C4"), ["Quarter turn left", "Half turn"], "C4"),
        (dict(layers="tied", group="H"), ["Mirror left–right"], "H"),
        (dict(layers="tied", group="V"), ["Mirror top–bottom"], "V"),
        (dict(), list(TURNS), "D4"),
        (dict(group="H"), list(TURNS), "H"),
        (dict(augment="C4"), list(TURNS), "C4"),
        (dict(size=(16, 32)), ["Half turn", "Mirror left–right", "Mirror top–bottom"], "D2"),
    ],
)  # fmt: skip
def test_turns(settings, turns, group):
    made = studio_of(**settings)
    assert (list(made.turns), made.groups[0]) == (turns, group)
    assert (len(made.groups) == 1) == made.symmetric


@pytest.mark.parametrize("g", [LEFT, MIRROR])
@pytest.mark.parametrize(
    ("layers", "symmetrize", "group", "exact"),
    [
        ("tied", "none", "D4", True),
        ("plain", "none", "D4", False),
        ("plain", "none", "none", False),
        ("plain", "canonical", "D4", True),
        ("plain", "average", "D4", True),
        ("plain", "canonical", "V", False),
    ],
)
def test_difference(layers, symmetrize, group, exact, g, tmp_path):
    """It is small just where the page says that the answer turns."""
    made = studio_of(layers, "D4" if layers == "tied" else "none")
    given = made.read(image_of(tmp_path)[0], "x")
    choice = CHOICE._replace(symmetrize=symmetrize, group=group, answer="sample", nfe=16)
    base, turned = (made.translate(turned_input(given, h), choice) for h in ((0, 0), g))
    text = made.difference(turned, base, g)
    (relative, levels) = (float(number) for number in re.findall("<strong>(.*?)</strong>", text))
    assert (relative < 1e-4) == (levels < 0.1) == exact == ("turns with the input" in text) == ("Plain" not in text)
    assert ("noise does not" in text) == (group in ("none", "V"))


def test_translate(tmp_path):
    """Answers are those of ddbm.translate; mask and target turn along; it stops when it is told to."""
    made = studio_of(classes=2)
    path, pixels = image_of(tmp_path)
    given, choice = made.read(path, path.name), CHOICE._replace(label=1)
    result = made.translate(given, choice)
    found = ddbm.translate(made.model, pixels, answer="both", draws=2, nfe=4, group="D4", label=1)
    for image, expected in ((result.sample, found.sample), (result.mean, found.mean)):
        assert np.array_equal(picture(image), expected)
    assert np.allclose(np.moveaxis(result.spread, 0, -1), found.spread) and result.nfe == found.nfe
    assert made.translate(given, choice._replace(answer="sample", draws=8)).spread is None
    mask = np.arange(480).reshape(1, 20, 24) % 7 > 0
    turned = turned_input(given._replace(mask=mask, target=given.image), LEFT)
    assert turned.image.shape == (3, 24, 20) and np.array_equal(turned.mask, np.rot90(mask, 1, (1, 2)))
    assert np.array_equal(turned.target, turned.image) and turned_input(turned, LEFT).image.shape == (3, 20, 24)
    with pytest.raises(Stopped):
        made.translate(given, choice, lambda share: made.stopping.set())


def test_mistakes(tmp_path, monkeypatch, capsys):
    """Every one is a line that names the file, not the place to which it was uploaded."""
    made = studio_of()
    path, pixels = image_of(tmp_path)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    (tmp_path / "text.png").write_text("hello")
    monkeypatch.setattr(studio, "LIMIT", 400)
    mistakes = {"grey.png": "more pixels", "text.png": "cannot be read", path.name: "scripts.translate"}
    for name, text in mistakes.items():
        with pytest.raises(ValueError, match=text) as caught:
            made.read(tmp_path / name, name)
        assert name in str(caught.value) and str(tmp_path) not in str(caught.value)
    with pytest.raises(ValueError, match="holds no image that the model takes"):
        made.examples(str(tmp_path))
    with pytest.raises(ValueError, match="is no folder"):
        made.examples(str(path))
    monkeypatch.setattr(studio, "LIMIT", 480)
    assert [each.name for each in made.examples(str(tmp_path))] == ["my image"]
    assert "grey: has 1 channels" in capsys.readouterr().out
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[demo\]'"):
        demo.main(["model"])


def test_examples(monkeypatch, tmp_path, capsys):
    """Held-out pairs, the larger first; without the data there are none, which is said."""
    monkeypatch.delenv("DATA_DIR", raising=False)
    made = studio_of()
    found = made.examples("")
    assert [each.image.shape[1] for each in found] == [64] * 4 + [16] * 4
    assert all(each.target.shape == each.image.shape for each in found)
    made.header = replace(made.header, config=replace(made.header.config, data=DataConfig("pairs", "gone")))
    assert made.examples("") == [] and "no examples" in capsys.readouterr().out


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a page, the model that it shows, and the folder of the server's temporary files."""
    home = tmp_path_factory.mktemp("demo")
    made = studio_of("tied", "D4")
    (home / "temporary").mkdir()
    command = [sys.executable, "-m", "scripts.demo", str(saved(home / "run", made)), "--port", "0", "--device", "cpu"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=home,
            env=environment(TMPDIR=str(home / "temporary")),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    address = next((found[1] for line in server.stdout if (found := re.match(r"open (http://\S+)", line))), None)
    assert address, (home / "log").read_text()
    yield address, made.model, home
    server.send_signal(signal.SIGINT)
    assert server.wait(PATIENCE) == 130
    server.stdout.close()
    assert not list((home / "temporary").glob("ddbm_demo_*"))  # with what was uploaded
    assert "Traceback" not in (home / "log").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.skipif(find_spec("gradio") is None, reason="Gradio is not installed")
def test_page(served, tmp_path):
    address, model, _ = served
    assert address.startswith("http://127.0.0.1:")
    path, pixels = image_of(tmp_path, size=(16, 20))
    (tmp_path / "text.png").write_text("hello")
    expected = ddbm.translate(model, pixels, answer="both", draws=4)
    browser = Browser(tmp_path / "user", address)
    try:
        browser.upload(tmp_path / "text.png")
        browser.wait("document.body.innerText.includes('text.png: cannot be read')")
        browser.upload(path)
        assert np.array_equal(browser.pictures("Source")["Source"], pixels)
        assert "my image.png, 16×20" in browser.js("document.body.innerText")
        browser.click("Translate")
        found = browser.pictures("Spread")
        assert list(found) == ["Source", "Sample", "Mean", "Spread"]
        assert np.array_equal(found["Sample"], expected.sample) and np.array_equal(found["Mean"], expected.mean)
        assert f"{expected.spread.mean():.2%}" in browser.js("document.body.innerText")
        links = browser.wait("[...document.querySelectorAll('#files a')].map(a => a.href)")
        with urllib.request.urlopen(next(link for link in links if "_mean" in link)) as file:
            assert np.array_equal(np.array(Image.open(file)), expected.mean)

        browser.click("Quarter turn left")
        found = browser.pictures("Turned source")
        assert np.array_equal(found["Turned source"], np.rot90(pixels))
        assert np.array_equal(found["The answer, turned"], np.rot90(expected.sample))
        assert np.abs(found["Its answer"].astype(int) - np.rot90(expected.sample)).max() <= 1
        assert np.abs(found["Difference"].astype(int) - 127.5).max() <= 1
        text = browser.js("document.querySelector('#shown').innerText")
        assert float(re.search(r"= (\S+),", text)[1]) < 1e-5 and "turns with the input" in text
        browser.click("Quarter turn left")
        browser.wait("document.querySelector('#shown').innerText.includes('turned by 180°')")
        for width in (400, 1280):
            browser.resize(width, 900)
            assert browser.js("document.documentElement.scrollWidth") == width

        outside = [url for url in browser.requests if not url.startswith((address, "data:", "blob:", "about:"))]
        assert outside == [] and [each for each in browser.complaints if each != NOISE] == []
    finally:
        browser.close()
