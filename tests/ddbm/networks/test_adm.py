"""Imported networks compute what a plain-PyTorch forward pass of the published layout computes (adm_layout.py)."""

import pytest
import torch

from ddbm.config import BridgeConfig, Config, ModelConfig
from ddbm.model import BridgeModel, ImageShape
from ddbm.networks import adm
from tests.ddbm.networks.adm_layout import Layout, forward, random_state, shapes

LAYOUTS = (Layout(), Layout(width=64, mult=(1, 1, 2), blocks=2, attended=(1,), head=32, classes=5))
SIZE, TIMES = 8, torch.tensor([-3.0, -1500.0])


def empty(layout, layers="plain", group="none", schedule="vp"):
    config = Config(
        bridge=BridgeConfig(schedule=schedule),
        model=ModelConfig(
            model_channels=layout.width,
            channel_mult=layout.mult,
            num_res_blocks=layout.blocks,
            attention_resolutions=tuple(SIZE >> level for level in layout.attended),
            num_head_channels=layout.head,
            layers=layers,
            group=group,
        ),
    )
    return BridgeModel(config, ImageShape(layout.outputs, layout.inputs - layout.outputs, SIZE, SIZE, layout.classes))


def filled(state, layout, order, layers="plain", group="none"):
    """The network with the state dict, in float64 and evaluation mode."""
    model = empty(layout, layers, group).eval()
    weights, misfits = adm.translate(model.network, state, group, order)
    assert not misfits
    model.network.load_state_dict(weights)
    model.network.double()
    return model


def inputs(layout):
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(2, 3, SIZE, SIZE, generator=generator, dtype=torch.float64) for _ in range(2)]
    return *draw, torch.tensor([1, 4]) if layout.classes else None


def distance(a, b):
    return float((a - b).norm() / b.norm())


def doubled(state):
    return {name: value.double() for name, value in state.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", adm.ORDERS)
@pytest.mark.parametrize("axes", [1, 2])
def test_output_of_plain_networks(layout, order, axes):
    """In the order told, whatever the shape says: DBIM takes the trailing axis away and keeps the order."""
    state = random_state(layout, axes=axes)
    assert adm.attention_order(state) == adm.ORDERS[axes - 1]
    x, source, y = inputs(layout)
    with torch.no_grad():
        output = filled(state, layout, order).network(x, TIMES, source, y)
        apart = {o: distance(output, forward(doubled(state), layout, x, TIMES, source, o, y=y)) for o in adm.ORDERS}
    assert apart.pop(order) < 1e-12 and min(apart.values()) > 1e-2  # the orders are not the same function
    state["middle_block.1.qkv.weight"] = torch.zeros([1] * (5 - axes))
    with pytest.raises(ValueError, match="--attention_order"):
        adm.attention_order(state)


@pytest.mark.parametrize("group", adm.TIED)
@pytest.mark.parametrize("tied", ["sum", "copy"])
@pytest.mark.parametrize("layers", ["plain", "tied"])
def test_output_of_tied_networks(group, tied, layers):
    layout, (x, source, _) = LAYOUTS[0], inputs(LAYOUTS[0])
    state = random_state(layout, tied=tied)
    with torch.no_grad():
        output = filled(state, layout, "qkv", layers, group).network(x, TIMES, source)
        expected = forward(doubled(state), layout, x, TIMES, source, "qkv", group)
    assert distance(output, expected) < (1e-12 if tied == "copy" else 2e-6)  # sums are rounded to float32


@pytest.mark.parametrize(("group", "mask", "shape"), [("H", "left_mask", (1, 3)), ("V", "upper_mask", (3, 1))])
def test_stored_masks(group, mask, shape):
    """They count as they are stored: 0 where the layer was initialised with zeros, and then not symmetric."""
    layout, (x, source, _) = LAYOUTS[0], inputs(LAYOUTS[0])
    state = random_state(layout, tied="copy")
    for key in [key for key, value in state.items() if key.endswith(".original") and value.shape[-1] == 3]:
        half = torch.tensor([1.0 - 1e-4, 0, 0]).reshape(1, 1, *shape)  # as after a moving average
        state[key.replace("original", f"0.{mask}")] = half
    model = empty(layout, "tied", group).network
    assert not adm.translate(model, state, group, "qkv")[1]

    zeroed = "out.2.parametrizations.weight.0." + mask
    state = {key: value for key, value in state.items() if not key.endswith(mask)} | {zeroed: torch.zeros_like(half)}
    assert adm.translate(model, state, group, "qkv")[1] == {f"not invariant under group {group}": ["out.2.weight"]}
    with torch.no_grad():
        output = filled(state, layout, "qkv", "plain", group).network(x, TIMES, source)
        assert distance(output, forward(doubled(state), layout, x, TIMES, source, "qkv", group)) < 1e-12
    for other in {"H", "V", "none"} - {group}:
        with pytest.raises(ValueError, match=f"{group}.*, the settings say group {other}: add --group"):
            adm.translate(model, state, other, "qkv")


def test_older_masks_of_quarter_turns():
    """Earlier files of C4 store both masks; they change nothing unless they are zero."""
    layout = LAYOUTS[0]
    network = empty(layout, "tied", "C4").network
    state = random_state(layout, tied="copy")
    expected, _ = adm.translate(network, state, "C4", "qkv")
    layer = "input_blocks.1.0.in_layers.2.parametrizations.weight.0"
    corner, centre = torch.zeros(1, 1, 3, 3), torch.zeros(3, 3)
    corner[..., 0, :2], centre[1, 1] = 1, 1
    stored = {f"{layer}.up_left_mask": corner, f"{layer}.center_elem_mask": centre}
    weights, misfits = adm.translate(network, state | stored, "C4", "qkv")
    assert not misfits and all(torch.equal(weights[name], value) for name, value in expected.items())


def test_what_does_not_fit_is_named():
    layout = LAYOUTS[0]
    network = empty(layout).network
    state = random_state(layout)
    del state["input_blocks.3.1.norm.bias"]
    state["out.2.weight"] = state["out.2.weight"][:, :16]
    state |= {"input_blocks.9.0.in_layers.0.weight": torch.zeros(3), "step": 7}
    assert adm.translate(network, state, "none", "qkv")[1] == {
        "missing in the file": ["input_blocks.3.1.norm.bias"],
        "unknown to the network": ["input_blocks.9.0.in_layers.0.weight", "step"],
        "of another shape": ["out.2.weight [3, 16, 3, 3], expected [3, 32, 3, 3]"],
    }
    _, misfits = adm.translate(empty(layout, "tied", "D4").network, random_state(layout), "D4", "qkv")
    kernels = sorted(name for name, shape in shapes(layout).items() if shape[2:] == (3, 3))
    assert {kind: sorted(names) for kind, names in misfits.items()} == {"not invariant under group D4": kernels}
    for stored in ("sum", "copy"):
        with pytest.raises(ValueError, match="tied to H or V or C4 or D4, the settings say group C2: add --group"):
            adm.translate(network, random_state(layout, tied=stored), "C2", "qkv")
