"""Files of a model that run without it: what they compute, what is checked, the sampler of the documentation."""

import copy
import json
import re

import numpy as np
import pytest
import torch

import ddbm
from ddbm.bridges.paths import SCHEDULES
from ddbm.config import BridgeConfig, Config, DataConfig, Header, ModelConfig
from ddbm.files import checkpoint
from ddbm.model import BridgeModel, ImageShape
from ddbm.networks.backbones import BACKBONES
from ddbm.networks.convolutions import GroupConv, SharedKernel, TiedConv2d
from ddbm.networks.layers import LAYERS, GroupNorm
from ddbm.settings import to_dict
from ddbm.symmetry.frames import Noise
from ddbm.symmetry.groups import GROUPS
from scripts import export
from tests.ddbm.runs import one_line, refused
from tests.scripts.sampling_runs import ROOT

RGB = ImageShape(3, 3, 8, 8, 0)
GREY = ImageShape(3, 1, 8, 8, 2)  # a source of one channel, and two classes


def make_model(
    schedule="ve", layers="regular", group="C4", images=GREY, levels=(1, 1), backbone="adm", condition="source",
    **bridge,
):  # fmt: skip
    config = Config(
        data=DataConfig(dataset="histology", image_size="8"),
        bridge=BridgeConfig(schedule=schedule, sigma_max=40, cov_xy=0.1, **bridge),
        model=ModelConfig(
            model_channels=8, channel_mult=levels, num_res_blocks=1, num_head_channels=8, attention_resolutions=(4,),
            layers=layers, group=group, backbone=backbone, condition=condition,
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    model = BridgeModel(config, images).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    if backbone == "edm2":
        model.network.gain.data.fill_(2)
    return model


def make_run(folder, **settings):
    model = make_model(**settings)
    header = Header(model.config, model.images, 1, tuple("ab"[: model.images.num_classes]))
    checkpoint.write(checkpoint.path_of(folder, 1), to_dict(header), {"ema": model.network.state_dict()}, {})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def exporting(run, out, *flags):
    return export.main([str(word) for word in (run, out, *flags)])


def table_of(folder):
    return json.loads((folder / "sampler.json").read_text())


def inputs(model, t, seed=1):
    """A state, times, a source and labels, as arrays: noise stronger than the image, which clips the estimate."""
    rng, images = np.random.default_rng(seed), model.images
    x = 2 * rng.standard_normal((len(t), images.target_channels, 8, 8))
    source = rng.uniform(-1, 1, (len(t), images.source_channels, 8, 8))
    label = [rng.integers(0, images.num_classes, len(t))] if images.num_classes else []
    return x.astype(np.float32), np.array(t, float), source.astype(np.float32), *label


def wanted_of(model, x, t, source, *label):
    """The same of the model, in float64 throughout."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        x, t, source, *label = (torch.from_numpy(part) for part in (x, t, source, *label))
        return exact.denoiser(source.double(), *label)(x.double(), t).clamp(-1, 1).numpy()


@pytest.mark.parametrize("schedule", [*SCHEDULES, "ot"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_denoiser_that_is_exported(schedule, layers, backbone):
    """At both ends and within them, at times that float32 does not know, in both types of the network."""
    more = dict(schedule="i2sb", ot=True, condition="none") if schedule == "ot" else dict(schedule=schedule)
    model = make_model(
        layers=layers, group="none" if layers == "plain" else "D4", images=RGB, backbone=backbone, **more
    )
    t_min, T = model.bridge.t_min, model.bridge.T
    given = inputs(model, [t_min, T, (t_min + T) / 2, T - 1e-6])
    wanted = wanted_of(model, *given)
    assert (np.abs(wanted) == 1).any() and (np.abs(wanted) < 1).any()
    for kind, tolerance in ((torch.float32, 1e-5), (torch.float16, 3e-2)):
        denoiser = export.Exported(model, kind)
        with torch.no_grad():
            found = denoiser(*map(torch.from_numpy, given))
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, wanted, atol=tolerance)
        modules = list(denoiser.network.modules())
        assert not any(isinstance(module, SharedKernel) for module in modules)
        assert {module.weight.dtype for module in modules if isinstance(module, torch.nn.Conv2d)} == {kind}
        assert {module.weight.dtype for module in modules if isinstance(module, GroupNorm)} <= {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


D4 = GROUPS["D4"]
SHARED = {
    "tied": lambda: TiedConv2d(3, 5, 3, D4), "wide": lambda: TiedConv2d(48, 64, 3, D4),
    "regular": lambda: GroupConv(16, 8, 3, D4), "pointwise": lambda: GroupConv(8, 24, 1, D4),
    "lift": lambda: GroupConv(3, 16, 3, D4, "lift"), "project": lambda: GroupConv(16, 3, 3, D4, "project"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_kernels_laid_out(name):
    layer = SHARED[name]().double()
    layer.bias.data.normal_()
    laid = export.ordinary(layer).double()
    x = torch.randn(2, laid.in_channels, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(laid(x), layer(x), atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------------------------- files


def test_files_of_a_network_that_keeps_magnitudes_and_does_not_see_the_source(tmp_path):
    """Its layers are ordinary, with normalised kernels, in both types; it takes the source all the same, and the table
    has the noise on it."""
    for name in export.NEEDED:
        pytest.importorskip(name)
    how = dict(schedule="i2sb", ot=True, source_noise=0.4, condition="none", backbone="edm2", levels=(1,))
    run = make_run(tmp_path / "run", **how)
    assert exporting(run, tmp_path / "exported", "--nfe", 1) == 0
    for name, tolerance in (("denoiser.onnx", 1e-5), ("denoiser.pt2", 1e-5), ("denoiser_fp16.onnx", 3e-2)):
        assert_same_denoiser(tmp_path / "exported" / name, ddbm.load(run), tolerance)
    table = table_of(tmp_path / "exported")
    assert (table["draws"], table["times"], table["states"]) == (1, [1.0], [[1.0, 0.4]])


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """An export in float32, in the folder of an earlier one."""
    for name in export.NEEDED:
        pytest.importorskip(name)
    place = tmp_path_factory.mktemp("work") / "exported"
    place.mkdir()
    (place / "denoiser.onnx.data").write_text("of an earlier export")
    assert exporting(run, place, "--precision", "fp32", "--nfe", 7, "--order", 3) == 0
    return place


def reader(path):
    """The denoiser of a file, of arrays."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
        return lambda *given: module(*map(torch.from_numpy, given)).detach().numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    assert ["x", "t", "source", "label"][: len(names)] == names
    assert [each.name for each in session.get_outputs()] == ["estimate"]
    return lambda *given: session.run(None, dict(zip(names, given, strict=True)))[0]


def assert_same_denoiser(path, model, tolerance):
    """For any number of images, each at its own time."""
    denoise, end = reader(path), model.bridge.T
    for times in ([end], [model.bridge.t_min, end - 1e-6, end, end / 2, end / 9]):
        given = inputs(model, times)
        found = denoise(*given)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted_of(model, *given), atol=tolerance)
    assert b"scripts/export" not in path.read_bytes()  # nor any other path of this machine
    return denoise


def test_files_in_float32(folder, run, capsys):
    """Every image has its own label."""
    assert sorted(path.name for path in folder.iterdir()) == ["denoiser.onnx", "denoiser.pt2", "sampler.json"]
    model = ddbm.load(run)
    x, t, source, label = inputs(model, [1.0, 2.0])
    for name in ("denoiser.onnx", "denoiser.pt2"):
        denoise = assert_same_denoiser(folder / name, model, 1e-5)
        others = denoise(x, t, source, 1 - label)
        assert (np.abs(others - denoise(x, t, source, label)).max((1, 2, 3)) > 1e-3).all()


def test_files_in_float16(tmp_path, capsys):
    """The weights are of that type; without classes there is no label."""
    for name in export.NEEDED:
        pytest.importorskip(name)
    small = dict(schedule="vp", layers="tied", group="D4", images=RGB, levels=(1,))
    out = tmp_path / "new" / "exported"
    assert exporting(make_run(tmp_path / "run", **small), out, "--precision", "fp16") == 0
    model, table = ddbm.load(tmp_path / "run"), table_of(out)
    for name, errors in table["files"].items():
        assert_same_denoiser(out / name, model, 2e-2)
        assert all(1e-5 < errors[key] < 1e-2 for key in ("difference", "relative", "equivariance"))
    stored = pytest.importorskip("onnx").load(out / "denoiser_fp16.onnx").graph.initializer
    halves = sum(np.prod(tensor.dims) for tensor in stored if tensor.data_type == 10)  # FLOAT16
    assert halves > 0.9 * sum(parameter.numel() for parameter in model.parameters()) and len(table["times"]) == 20
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step_00000001, dbim: 20 evaluations and 1 noises an image" and lines[-1] == str(out)
    assert lines[1].endswith("equivariance (D4)") and lines[2].startswith("denoiser_fp16.pt2 ") and "e-0" in lines[2]


def test_what_the_json_says(folder, run):
    table, model = table_of(folder), ddbm.load(run)
    assert table["checkpoint"] == "step_00000001" and table["weights"] == "ema" and table["classes"] == ["a", "b"]
    assert table["images"] == to_dict(model.images) and table["bridge"] == to_dict(model.config.bridge)
    assert table["sampler"] == "dbim" and table["settings"] == {"order": 3, "eta": 0.0}
    assert len(table["grid"]) == 8 and table["times"] == table["grid"][:7] and table["grid"][-1] == 0.002
    assert table["draws"] == 1 and list(map(len, table["states"])) == list(range(2, 9))
    assert list(table["files"]) == ["denoiser.pt2", "denoiser.onnx"]
    assert all(0 < error < 1e-5 for errors in table["files"].values() for error in errors.values())


class Recorded(Noise):
    """The noise of a sampling, kept."""

    kept: list = []  # noqa: RUF012

    def __call__(self, like):
        self.kept.append(super().__call__(like).numpy())
        return torch.from_numpy(self.kept[-1])


def test_the_lines_of_the_documentation_sample(folder, run, monkeypatch):
    """They give the samples of the library, from the same noise."""
    text = (ROOT / "docs" / "export.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(ddbm.model, "Noise", Recorded)
    names = {}
    exec(code, names)
    model = ddbm.load(run)
    *_, source, label = inputs(model, [1.0] * 3)
    wanted = ddbm.sample(model, torch.from_numpy(source), nfe=7, order=3, seed=5, label=torch.from_numpy(label))
    found = names["sample"](source, np.stack(Recorded.kept), label=label)
    assert wanted.nfe == len(names["program"]["times"]) == 7 and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.x_0, atol=2e-5)
    assert np.abs(found).max() == 1 and found.std() > 0.1


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture
def pretended(monkeypatch, run):
    """Files are written at once; what they hold is the model, but for what is done to its estimate."""
    model = ddbm.load(run)

    def prepare(change=lambda D, x: D):
        def denoise(x, t, source, label):
            return change(model.denoiser(source, label)(x, t).clamp(-1, 1), x)

        monkeypatch.setattr(export, "opened", lambda path: denoise)
        monkeypatch.setattr(export, "exported", lambda model, precision: precision)
        monkeypatch.setattr(export, "save", lambda graph, path, count: path.write_text(f"{graph} {count}"))

    return prepare


def off(error):
    """The last image of three is off by as much, relative to its norm."""

    def change(D, x):
        D[2:] *= 1 + error * (len(D) == 3)
        return D

    return change


def test_a_file_that_differs_is_not_written(run, tmp_path, pretended):
    pretended()
    assert exporting(run, tmp_path / "out", "--precision", "fp16", "--formats", "onnx", "--grid", "dbim") == 0
    assert table_of(tmp_path / "out")["grid"][1] == 40 - 1e-3
    assert {path.name: path.read_text() for path in (tmp_path / "out").glob("d*")} == {"denoiser_fp16.onnx": "fp16 4"}
    for change, flags, words in (
        (off(2e-4), [], ["denoiser.pt2 differs from the model by 2.0e-04, more than --tolerance 0.0001", "nothing"]),
        (off(2e-2), ["--precision", "fp16"], ["denoiser_fp16.pt2 differs", "by 2.0e-02", "--tolerance_fp16 0.01"]),
        (lambda D, x: D * float("nan"), [], ["differs from the model by nan"]),
        (lambda D, x: D * (float("nan") if len(D) == 1 else 1), [], ["differs from the model by nan"]),
    ):
        pretended(change)
        refused(export.main, [run, tmp_path / "out", *flags], *words)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"denoiser_fp16.onnx", "sampler.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    pretended(off(2e-4))
    assert exporting(run, tmp_path / "out", "--tolerance", 1e-3) == 0


def test_the_error_of_equivariance():
    """Where it decides: for layers that are equivariant, of a file that is close enough to the model."""
    model = make_model()
    ramp = 0.01 * torch.linspace(-1, 1, 8)  # from left to right: a half turn makes the difference 2 ‖ramp‖

    def denoise(*given):
        x, t, source, label = given
        return 0.5 * model.denoiser(source, label)(x, t).sign() + ramp

    size = (0.25 + ramp.square()).mean().sqrt()
    errors = export.compare(denoise, model)
    assert errors.equivariance == pytest.approx((2 * ramp.square().mean().sqrt() / size).item(), rel=0.02)
    close = errors._replace(relative=0.0)
    export.judge("file", close, False, ("tolerance", 1e-4))
    export.judge("file", close, True, ("tolerance", 0.1))
    with one_line("file is not equivariant, with an error of 2.6e-02", "--tolerance 0.0001"):
        export.judge("file", close, True, ("tolerance", 1e-4))
    plain = make_model(layers="plain", group="none", images=RGB)
    errors = export.compare(lambda x, t, source: plain.denoiser(source)(x, t).clamp(-1, 1) - 0.01, plain)
    assert errors.difference == pytest.approx(0.01, rel=1e-3) and errors.equivariance is None


def test_mistakes(run, tmp_path, pretended, monkeypatch):
    pretended()
    out = tmp_path / "out"
    refused(export.main, [run], "out")
    refused(export.main, [tmp_path / "nothing", out], tmp_path / "nothing")
    refused(export.main, [run, out, "--formats", "onxx"], "unknown formats 'onxx'", "did you mean onnx?")
    refused(export.main, [run, out, "--formats", ""], "--formats is empty", "pt2, onnx")
    refused(export.main, [run, out, "--precision", "bf16"], "unknown precision 'bf16'", "fp32, fp16")
    refused(export.main, [run, out, "--sampler", "ode"], "sampler ode", "depend on the image")
    refused(export.main, [run, out, "--sampler", "best"], "unknown sampler 'best'")
    refused(export.main, [run, out, "--eta", 1, "--sampler", "heun"], "--eta means nothing to sampler heun")
    refused(export.main, [run, out, "--order", 4], "--order must be")
    refused(export.main, [run, out, "--weights", "best"], "best")
    (tmp_path / "file").write_text("mine")
    refused(export.main, [run, tmp_path / "file"], "file is a file: name a folder")
    refused(export.main, [run, tmp_path], "holds other files (file)", "name another")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "denoiser.pt2.mine").write_text("")
    refused(export.main, [run, tmp_path / "mine"], "holds other files (denoiser.pt2.mine)")
    with monkeypatch.context() as patch:
        patch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else name)
        refused(export.main, [run, out], "ONNX needs onnxruntime: pip install -e '.[export]'", "--formats pt2")
        assert exporting(run, out, "--formats", "pt2") == 0
    assert (tmp_path / "file").read_text() == "mine" and len(list(out.iterdir())) == 3


def test_a_store(run, server, pretended):
    pretended()
    assert exporting(run, "gs://bucket/models/mine", "--formats", "pt2") == 0
    names = sorted(name.split("models/")[1] for name in server.objects)
    assert names == ["mine/denoiser.pt2", "mine/denoiser_fp16.pt2", "mine/sampler.json"]
