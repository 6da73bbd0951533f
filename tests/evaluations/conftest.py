"""Fixed random weights in place of the real ones, which tests must not download."""

import warnings

import numpy as np
import pytest
import torch

INCEPTION = "weights-inception-2015-12-05.pth"  # names without a hash: weights of one's own
ALEXNET = "alexnet-owt.pth"
VGG16 = "vgg16.pth"


@pytest.fixture(scope="session")
def pairs():
    """Reference and sample, uint8 [4, 40, 36, 3]: smooth images, and the same with noise and a shift."""
    random = np.random.default_rng(0)
    reference = random.integers(0, 200, (4, 10, 9, 3)).repeat(4, axis=1).repeat(4, axis=2)
    sample = reference + random.normal(8, 20, reference.shape)
    return reference.astype(np.uint8), np.clip(sample, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def squares():
    """Reference [40, 16, 16, 3] and sample [30, 16, 16, 3], uint8: smooth, brighter at the top."""
    random = np.random.default_rng(1)
    ramp = np.linspace(80, 0, 16)[:, None, None]
    sets = []
    for count, shift in ((40, 0), (30, 20)):
        smooth = random.integers(0, 150, (count, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
        sets.append((smooth + ramp + shift).astype(np.uint8))
    return sets[0], sets[1]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Folder with random weights of InceptionV3, AlexNet and VGG16, scaled so that the features keep their size."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity
    from torchvision.models import alexnet, vgg

    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        inception = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
        for module in inception.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        torch.save(inception.state_dict(), folder / INCEPTION)
        state = alexnet(weights=None).state_dict()
        torch.save({key: value for key, value in state.items() if "features" in key}, folder / ALEXNET)
        layers = vgg.make_layers(vgg.cfgs["D"])
        torch.save({f"features.{key}": value for key, value in layers.state_dict().items()}, folder / VGG16)
    return folder


@pytest.fixture(autouse=True)
def no_weights_elsewhere(tmp_path, monkeypatch):
    """An empty cache, no environment variable, no network."""

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DDBM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DDBM_WEIGHTS", raising=False)
    monkeypatch.delenv("DDBM_DEBUG", raising=False)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
