"""Tiny runs for tests."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ddbm.config import BridgeConfig, Config, DataConfig, ModelConfig, TrainConfig
from ddbm.files import checkpoint
from ddbm.model import BridgeModel, ImageShape
from ddbm.symmetry.pairs import Batch
from ddbm.training.objectives import objective_of
from ddbm.training.trainer import Trainer

SHAPE = ImageShape(1, 1, 8, 8, 0)
DEVICE = torch.device("cpu")


def batches(start=0):
    for step in itertools.count(start):
        rng = np.random.default_rng(step)
        target, source = torch.from_numpy(rng.uniform(-1, 1, (2, 4, 1, 8, 8)).astype(np.float32))
        yield Batch(target, source, torch.arange(4), None, None)


def trainer(dropout=0.2, model=None, bridge=None, **settings):
    config = Config(
        data=DataConfig(dataset="test"),
        bridge=BridgeConfig(**(bridge or dict(schedule="vp"))),
        model=ModelConfig(
            **dict(model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=8, dropout=dropout)
            | dict(layers="tied", group="D4") | (model or {}),
        ),
        train=TrainConfig(
            **(dict(total_steps=12, batch_size=4, lr=1e-3, lr_warmup_steps=5, log_interval=2) | settings)
        ),
    )  # fmt: skip
    torch.manual_seed(0)
    model = BridgeModel(config, SHAPE)
    return Trainer(config, model, objective_of(config.train, model), DEVICE)


def save(t, run):
    with checkpoint.Writer() as writer:
        t.save(run, writer)


def validation():
    return itertools.islice(batches(1000), 2)


def contents(path):
    """Every tensor and value of a checkpoint."""
    files = {p.stem: checkpoint.read_weights(path, p.stem) for p in path.glob("*.safetensors")}
    return files, checkpoint.read_state(path), checkpoint.read_header(path)


def assert_same(a, b):
    """All tensors and values of nested tables and lists, to the last bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), [b[key] for key in a]
    if isinstance(a, (list, tuple)):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@contextmanager
def one_line(*words, kind=ValueError):
    """What is done within ends in one line that has all these words."""
    with pytest.raises(kind) as error:
        yield
    message = str(error.value)
    assert "\n" not in message and all(str(word) in message for word in words), message


def refused(main, argv, *words):
    """A mistake on the command line."""
    with one_line(*words, kind=(ValueError, OSError)):
        main([str(a) for a in argv])


def poison(batch):
    return batch._replace(target=batch.target * float("nan"))


class Looks:
    """Stands for looks at samples: what gives scores and a picture; the higher score is the better one."""

    def __init__(self, score, between=lambda between: None):
        self.score, self.between = score, between

    def __call__(self, model, between):
        self.between(between)
        assert not model.network.training
        return {"eval_psnr": self.score()}, np.zeros((4, 4, 3), np.uint8)

    def better(self, new, old):
        return old is None or new > old
