import dataclasses
import json

import pytest

from ddbm.config import Config, DataConfig, Header, ImageShape, ModelConfig, SampleConfig, TrainConfig
from ddbm.settings import differences, from_dict, from_flags, sections, to_dict, values
from tests.ddbm.runs import one_line

TABLES = {"group": ["none", "C4"], "layers": ["plain", "tied"]}


def test_flags_json_and_back():
    argv = ["--dataset", "mine", "--channel_mult", "1,2,5", "--lr", "3e-4", "--batch_size", "8", "--batch_size", "6"]
    config, _ = from_flags(Config, argv)
    assert config.data.dataset == "mine" and config.model.channel_mult == (1, 2, 5)
    assert config.train.lr == 3e-4 and config.train.batch_size == 6  # the last flag wins
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


def test_no_flag_stands_for_two_settings():
    for cls in (Config, SampleConfig):
        names = [f.name for section in sections(cls()) for f in dataclasses.fields(section)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--grup", "C4"], ["--grup", "--group"]),
        (["--group", "C5"], ["C5", "none, C4"]),
        (["--layers", "tide"], ["tide", "did you mean tied"]),
        (["--lr", "fast"], ["--lr", "float", "fast"]),
        (["--lr"], ["--lr", "argument"]),
        (["--channel_mult", "1,x"], ["--channel_mult", "1,x"]),
        (["--batch_size", "0"], ["--batch_size", "above 0"]),
        (["--seed", "9" * 400], ["--seed", "below 9223372036854775808"]),
        (["--dropout", "1.5"], ["--dropout", "below 1"]),
        (["--sigma_max", "inf"], ["--sigma_max", "finite"]),
        (["--sigma_min", "90"], ["--sigma_min", "--sigma_max"]),
        (["--cov_xy", "-0.3"], ["--cov_xy", "0.25"]),
        (["--tf32", "yes"], ["--tf32", "true or false", "yes"]),
        (["--ema_rate", "0.9,x"], ["--ema_rate", "list of float"]),
        (["--ema_rate", ","], ["--ema_rate", "at least one"]),
        (["--ema_sigma_rel", "0.05,0.5"], ["--ema_sigma_rel must be below 0.288", "found 0.5"]),
        (["--fit", "shrink"], ["fit", "resize, crop, stretch"]),
        (["stray"], ["stray"]),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_mistakes_are_one_line(argv, words):
    with one_line(*words):
        from_flags(Config, argv, tables=TABLES)


def test_extra_arguments():
    _, extra = from_flags(SampleConfig, ["run", "--restart"], {"path": "", "--resume": ""}, {"--restart": "anew"})
    assert (extra.path, extra.restart, extra.resume) == ("run", True, "")


@pytest.mark.parametrize(
    ("values", "word"), [({**to_dict(ModelConfig()), "num_res_blocks": True}, "num_res_blocks"), ([], "table")]
)
def test_json_with_unknown_keys_or_types_is_refused(values, word):
    with pytest.raises(ValueError, match=word):
        from_dict(ModelConfig, values)


def test_json_that_lacks_what_has_no_default_is_refused():
    for lost in ({"images"}, {"images", "step"}):
        header = {"config": {}, "images": to_dict(ImageShape(3, 3, 8, 8, 0)), "step": 1, "layout": "suffix"}
        with pytest.raises(ValueError, match=f"^here is damaged: it lacks {', '.join(sorted(lost))}$"):
            from_dict(Header, {name: value for name, value in header.items() if name not in lost}, "here")


def test_a_setting_an_older_version_did_not_know_takes_its_default():
    values = to_dict(ModelConfig(model_channels=7))
    del values["group"]
    assert from_dict(ModelConfig, values) == ModelConfig(model_channels=7)
    assert from_dict(TrainConfig, to_dict(TrainConfig()) | {"channels_last": True}) == TrainConfig()  # one it had
    with pytest.raises(ValueError, match="channels_last"):
        from_dict(ModelConfig, {"channels_last": True})


def test_differences_are_named():
    other = dataclasses.replace(Config(), data=DataConfig(image_size="64"))
    assert differences(values(Config()), values(other)) == ["image_size: native -> 64"]


def test_what_a_run_must_keep():
    """Data but for its place, bridge, network and what is averaged; of a sampling what changes its images."""
    train, data, sampling = (values(c, deciding=True) for c in (TrainConfig(), DataConfig(), SampleConfig()))
    assert train.keys() == {"regularization_weight", "loss_weighting", "ema_rate", "ema_sigma_rel", "ema_interval"}
    assert "data_dir" not in data and {"image_size", "fit", "source_white"} <= data.keys()
    assert {"sampler", "nfe", "seed", "churn", "weights", "precision", "split"} <= sampling.keys()
    assert not {"batch_size", "num_samples", "out_dir", "workers", "device"} & sampling.keys()
