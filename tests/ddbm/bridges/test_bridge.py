"""The bridge against the formulas of DDBM in 60 digits, and what is done with them to images."""

import mpmath as mp
import numpy as np
import pytest
import torch

from ddbm.bridges.bridge import Bridge
from ddbm.bridges.paths import SCHEDULES
from ddbm.bridges.preconditioning import mean_inside
from ddbm.config import BridgeConfig
from tests.ddbm.bridges.papers import Schedule, drift
from tests.ddbm.runs import one_line

mp.mp.dps = 60
OTHER = dict(sigma_data=0.6, cov_xy=0.1)
BRIDGES = {
    "ve": BridgeConfig(schedule="ve", **OTHER),
    "ve_diode": BridgeConfig(schedule="ve_simple", sigma_max=20, sigma_min=0.0005),
    "vp": BridgeConfig(schedule="vp", **OTHER),
    "vp_other": BridgeConfig(schedule="vp_simple", beta_d=1.4, beta_min=0.3),
    "linear": BridgeConfig(schedule="linear", gamma_max=0.4, source_noise=0.3, **OTHER),
    "vp_noisy": BridgeConfig(schedule="vp", source_noise=1.3),
    "i2sb": BridgeConfig(schedule="i2sb"),
    "i2sb_other": BridgeConfig(schedule="i2sb", beta_min=0.9, beta_max=0.2, source_noise=0.3),
    "i2sb_ot": BridgeConfig(schedule="i2sb", ot=True),
}
ALL = pytest.mark.parametrize("settings", BRIDGES.values(), ids=BRIDGES)


def times(bridge):
    """Times over the whole range, crowded at both ends, the ends included."""
    lo, hi = bridge.t_min, bridge.T
    inside = [lo + (hi - lo) * u for u in (1e-9, 1e-6, 1e-3, 0.1, 0.37, 0.5, 0.9, 0.999, 1 - 1e-6, 1 - 1e-9)]
    return [lo, *inside, hi]


def scalings(settings, a, b, c2, t, m=np):
    """c_skip, c_out, c_in, c_noise, weight (DDBM, Appendix A; Eq. 10-12)."""
    if settings.schedule.endswith("_simple"):
        return 0 * t, 0 * t + 1, 0 * t + 1, 250 * m.log(t), 0 * t + 1
    if settings.schedule == "i2sb":  # Liu et al. 2023, Eq. 12, at the label of the published code
        rho = Schedule(settings, m).rho(t)
        return 0 * t + 1, -rho, 0 * t + 1, 1000 * t, 1 / rho**2
    var, cov = settings.sigma_data**2, settings.cov_xy
    A = a**2 * var + b**2 * var + 2 * a * b * cov + c2
    c_out = m.sqrt((a**2 * (var**2 - cov**2) + var * c2) / A)
    return (b * var + a * cov) / A, c_out, 1 / m.sqrt(A), 250 * m.log(t), 1 / c_out**2


def close(found, wanted, size=None, digits=1e-10):
    assert abs(mp.mpf(found.item()) - wanted) <= digits * abs(wanted if size is None else size), (found, wanted)


@ALL
def test_every_scalar_and_drift_to_ten_digits(settings):
    """Schedule, coefficients, their derivatives and scalings from t_min to T; drifts at any guidance and churn."""
    bridge, s = Bridge(settings), Schedule(settings, mp)
    path, (x, x_T, D) = bridge.path, (mp.mpf(v) for v in (0.3, -0.8, 0.6))
    images = [torch.full((1, 1, 1, 1), float(v), dtype=torch.float64) for v in (x, x_T, D)]
    for t in times(bridge):
        u, v = bridge.time(t), mp.mpf(t)
        end, noise = t == bridge.T, settings.source_noise
        c2 = noise**2 if end else abs(s.c2(v))
        close(path.alpha(u), s.alpha(v))
        close(path.rho2(u), s.rho(v) ** 2)
        close(path.rho2_to_end(u), s.rho(mp.mpf(s.T)) ** 2 - s.rho(v) ** 2)
        close(path.d_log_alpha(u), s.f(v))
        close(path.diffusion2(u), s.g2(v))
        close(path.d_rho2(u), mp.diff(lambda t: s.rho(t) ** 2, v))
        close(path.inverse_rho2(path.rho2(u)), v)
        for found, wanted in zip(bridge.coefficients(u), (s.a(v), s.b(v), mp.sqrt(c2)), strict=True):
            close(found, wanted)
        for found, wanted in zip(bridge.precondition(u), scalings(settings, s.a(v), s.b(v), c2, v, mp), strict=True):
            close(found, wanted)
        for churn in (0.0, 0.25, 1.0):
            d_a, d_b, rate = path.derivatives(u, churn)
            close(d_a, mp.diff(s.a, v))
            close(d_b, mp.diff(s.b, v))
            if end and not noise and not settings.ot:
                assert rate == 0
                continue
            parts = [change / (2 * s.kept2(v)) for change in (mp.diff(s.kept2, v), churn * s.g2(v))]
            close(path.kept(u), s.kept(v))
            close(rate, sum(parts), max(map(abs, parts)))
            for w in (1.0,) if noise else (1.0, 0.5, 1.7):
                wanted = drift(s, x, x_T, D, v, mp.mpf(w), mp.mpf(churn))
                gap = 1 if noise or end else s.alpha(v) ** 2 * (s.rho(mp.mpf(s.T)) ** 2 - s.rho(v) ** 2)
                size = abs(wanted) + s.g2(v) * (1 / s.kept2(v) + 1 / gap)
                if not end or w == 1:
                    close(bridge.drift(images[0], u, *images[1:], w, churn), wanted, size)
        if not end:
            close(path.log_snr(u), s.lam(v), max(1, abs(s.lam(v))))
            close(path.time_of(path.log_snr(u)), v, digits=1e-9)
    assert tuple(v.item() for v in bridge.coefficients(bridge.time(bridge.T))) == (1, 0, settings.source_noise)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("source_noise", [0.0, 0.5])
def test_states_estimates_and_errors_by_value(schedule, source_noise):
    """Of a batch with times of its own and of one time for all, with and without a mask."""
    source_noise = source_noise * (not schedule.startswith("ve"))
    settings = BridgeConfig(schedule=schedule, source_noise=source_noise, **OTHER)
    bridge, s = Bridge(settings), Schedule(settings)
    x_0, x_T, noise = torch.randn(3, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).numpy()
    mask = np.zeros((2, 1, 4, 4), bool)
    mask[0, :, 1:3], mask[1, :, 0] = True, True
    inputs = [torch.from_numpy(v) for v in (x_0, x_T)]
    for t in (torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)):
        u = np.broadcast_to(t.numpy(), 2).reshape(2, 1, 1, 1)
        skip, out, scale_in, c_noise, weight = scalings(settings, s.a(u), s.b(u), s.c2(u), u)
        for inside in (None, mask):
            state = s.a(u) * x_T + s.b(u) * x_0 + s.c(u) * (noise if inside is None else noise * inside)
            x = bridge.state(*inputs, t, torch.from_numpy(noise), None if inside is None else torch.from_numpy(inside))
            D = bridge.denoise(lambda y, c: (torch.sin(y) + c.reshape(2, 1, 1, 1) / 100).half(), x, t)
            output = (np.sin(scale_in * state) + c_noise / 100).astype(np.float16)
            estimate = skip * state + out * output
            found = bridge.precondition(t).error(D, inputs[0], None if inside is None else torch.from_numpy(inside))
            chosen = [
                (estimate - x_0)[i][:, inside[i, 0]] if inside is not None else (estimate - x_0)[i] for i in (0, 1)
            ]
            error = np.broadcast_to(weight.ravel(), 2) * [np.mean(v**2) for v in chosen]
            assert x.dtype == D.dtype == torch.float32
            np.testing.assert_allclose(x, state, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(D, estimate, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(found, error, rtol=1e-3)
    assert torch.isfinite(bridge.drift(inputs[1], bridge.time(bridge.T * (1 - 1e-9)), *inputs[::-1], 1.0, 0.0)).all()


def test_what_is_no_bridge():
    with one_line("--gamma_max must be above 0", "found 0.0"):
        BridgeConfig(schedule="linear", gamma_max=0.0)
    with one_line("--gamma_max must be above 0", "found -0.1"):
        BridgeConfig(schedule="linear", gamma_max=-0.1)
    with one_line("--beta_max must be above 0"):
        BridgeConfig(schedule="i2sb", beta_max=0.0)
    with one_line("--source_noise must be 0 or more", "-1"):
        BridgeConfig(schedule="linear", source_noise=-1.0)
    with one_line("--ot is a variant of schedule i2sb", "found linear"):
        BridgeConfig(schedule="linear", ot=True)
    with one_line("unknown schedule 'linaer'", "did you mean linear?"):
        Bridge(BridgeConfig(schedule="linaer"))
    for schedule in ("ve", "ve_simple"):
        with one_line("--source_noise 0.5 is lost in the noise of", schedule, "up to 40", "linear, i2sb or vp"):
            Bridge(BridgeConfig(schedule=schedule, source_noise=0.5))
    for schedule, T in (("linear", 1), ("i2sb", 1), ("ve", 80)):
        bridge = Bridge(BridgeConfig(schedule=schedule))
        assert [bridge.time(t).item() for t in (0, T)] == [0, T]
        for t in (-1e-9, T * (1 + 1e-9), float("nan")):
            with one_line(f"lie in [0, {T}]", t):
                bridge.time(t)


def test_the_mean_of_a_large_image_fits_half_precision():
    values, mask = torch.full((2, 3, 256, 256), 0.5).half(), torch.ones(2, 1, 256, 256, dtype=torch.bool)
    mask[1] = False
    assert mean_inside(values, mask).tolist() == [0.5, 0] and mean_inside(values, None).tolist() == [0.5, 0.5]
    assert mean_inside(values.double(), mask).dtype == torch.float64
