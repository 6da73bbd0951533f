"""The bridge against the formulas of docs/maths.md in 60 digits, and against Gaussian pairs in closed form."""

import dataclasses

import mpmath as mp
import pytest
import torch

from ddbm.bridges.bridge import Bridge
from ddbm.bridges.paths import SCHEDULES
from ddbm.config import BridgeConfig
from tests.ddbm.bridges.gaussian import SETTINGS, pair

mp.mp.dps = 60
BOTH = pytest.mark.parametrize("name", ["ve", "vp"])
BRIDGES = {
    "ve": BridgeConfig(schedule="ve", cov_xy=0.1),
    "ve_diode": BridgeConfig(schedule="ve", sigma_max=20, sigma_min=0.0005),
    "vp": BridgeConfig(schedule="vp", cov_xy=0.1),
}
ALL = pytest.mark.parametrize("settings", BRIDGES.values(), ids=BRIDGES)


def exact(settings: BridgeConfig, t: float) -> dict[str, mp.mpf]:
    """All scalars of the bridge at t from their definitions, and derivatives by numerical differentiation."""
    ve = settings.schedule == "ve"
    beta_d, beta_min = mp.mpf(settings.beta_d), mp.mpf(settings.beta_min)

    def alpha(u):
        return mp.mpf(1) if ve else mp.exp(-beta_d * u**2 / 4 - beta_min * u / 2)

    def rho2(u):
        return u**2 if ve else mp.exp(beta_d * u**2 / 2 + beta_min * u) - 1

    t, T = mp.mpf(t), mp.mpf(settings.sigma_max if ve else 1)
    k = rho2(t) / rho2(T)
    a, b, c = alpha(t) / alpha(T) * k, alpha(t) * (1 - k), alpha(t) * mp.sqrt(rho2(t) * (1 - k))
    var, cov = mp.mpf(settings.sigma_data) ** 2, mp.mpf(settings.cov_xy)
    A = a**2 * var + b**2 * var + 2 * a * b * cov + c**2
    c_in = 1 / mp.sqrt(A)
    c_out = mp.sqrt(a**2 * (var * var - cov**2) + var * c**2) * c_in
    f = mp.diff(lambda u: mp.log(alpha(u)), t)
    g2 = mp.diff(lambda u: alpha(u) ** 2 * rho2(u), t) - 2 * f * alpha(t) ** 2 * rho2(t)
    return {
        "alpha": alpha(t), "rho2": rho2(t), "gap": rho2(T) - rho2(t), "f": f, "g2": g2, "a": a, "b": b, "c": c,
        "c_skip": (b * var + a * cov) / A, "c_out": c_out, "c_in": c_in, "c_noise": 250 * mp.log(t),
        "weight": 1 / c_out**2, "alpha_T": alpha(T), "rho2_T": rho2(T),
    }  # fmt: skip


def times(bridge: Bridge) -> list[float]:
    """Times over the whole range, crowded at both ends, the ends included."""
    lo, hi = bridge.t_min, bridge.T
    inside = [lo + (hi - lo) * u for u in (1e-9, 1e-6, 1e-3, 0.1, 0.37, 0.5, 0.9, 0.999, 1 - 1e-6, 1 - 1e-9)]
    return [lo, *inside, hi]


@ALL
def test_every_scalar_to_ten_digits(settings):
    bridge = Bridge(settings)
    for t in times(bridge):
        u = torch.tensor(t, dtype=torch.float64)
        s = bridge.path
        found = {"alpha": s.alpha(u), "rho2": s.rho2(u), "gap": s.rho2_to_end(u), "f": s.d_log_alpha(u)}
        found |= {"g2": s.diffusion2(u)}
        found |= bridge.coefficients(u)._asdict() | bridge.precondition(u)._asdict()
        for key, wanted in ((k, v) for k, v in exact(settings, t).items() if k in found):
            error = abs(mp.mpf(found[key].item()) - wanted)
            assert error <= 1e-10 * abs(wanted), f"{key} at t = {t}: {found[key].item()} instead of {wanted}"


@ALL
def test_ends_are_exact(settings):
    bridge = Bridge(settings)
    a, b, c = bridge.coefficients(bridge.time(bridge.T))
    assert (a.item(), b.item(), c.item()) == (1, 0, 0)
    assert all(torch.isfinite(v) for v in bridge.precondition(bridge.time(bridge.T)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_simple_is_the_same_bridge_without_preconditioning(name):
    simple, plain = (Bridge(BridgeConfig(schedule=n)) for n in (name, name.removesuffix("_simple")))
    t = torch.tensor([0.01, 0.5, 0.9], dtype=torch.float64)
    assert all(torch.equal(u, v) for u, v in zip(simple.coefficients(t), plain.coefficients(t), strict=True))
    skip, out, scale_in, noise, weight = simple.precondition(t)
    if name.endswith("_simple"):
        assert skip.eq(0).all() and out.eq(1).all() and scale_in.eq(1).all() and weight.eq(1).all()
    else:
        assert not skip.eq(0).any()
    assert torch.equal(noise, 250 * torch.log(t))


@ALL
@pytest.mark.parametrize("guidance", [1.0, 0.5, 1.7])
def test_drifts_are_the_formulas_of_the_paper(settings, guidance):
    """f x - g² ((1 + churn)/2 s - w h), flow at churn 0, reverse SDE at 1, term by term in 60 digits."""
    bridge = Bridge(settings)
    x, x_T, D = 0.3, -0.8, 0.6
    for t in times(bridge)[:-1]:
        e = exact(settings, t)
        s = -(mp.mpf(x) - e["a"] * mp.mpf(x_T) - e["b"] * mp.mpf(D)) / e["c"] ** 2
        h = (e["alpha"] / e["alpha_T"] * mp.mpf(x_T) - mp.mpf(x)) / (e["alpha"] ** 2 * e["gap"])
        w, u = mp.mpf(guidance), torch.tensor(t, dtype=torch.float64)
        images = [torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (x, x_T, D)]
        for churn in (0.0, 0.25, 1.0):
            wanted = e["f"] * x - e["g2"] * ((1 + mp.mpf(churn)) / 2 * s - w * h)
            found = bridge.drift(images[0], u, images[1], images[2], guidance, churn).item()
            size = abs(e["g2"] * s) + abs(e["g2"] * h) + abs(wanted)
            assert abs(found - wanted) <= 1e-10 * size, f"t = {t}: {found} instead of {wanted}"


@BOTH
def test_preconditioning_gives_unit_variances(name):
    """Input and target of the network have variance 1 and are what a least-squares fit leaves (DDBM, Appendix A)."""
    p = pair(name)
    for t in times(p.bridge):
        u = torch.tensor(t, dtype=torch.float64)
        a, b, c = p.bridge.coefficients(u)
        c_skip, c_out, c_in, _, weight = p.bridge.precondition(u)
        var_t = (a**2 + b**2) * p.variance + 2 * a * b * p.covariance + c**2
        cov_t = b * p.variance + a * p.covariance  # of x_t and x_0
        torch.testing.assert_close(c_in**2 * var_t, torch.ones_like(u), rtol=1e-12, atol=0)
        left = p.variance - 2 * c_skip * cov_t + c_skip**2 * var_t  # Var(x_0 - c_skip x_t)
        torch.testing.assert_close(left / c_out**2, torch.ones_like(u), rtol=1e-6, atol=0)
        torch.testing.assert_close(c_skip * var_t, cov_t, rtol=1e-12, atol=0)
        torch.testing.assert_close(weight * c_out**2, torch.ones_like(u), rtol=1e-12, atol=0)


def loss(bridge, network, x_0, x_T, t, noise, mask=None):
    x_t = bridge.state(x_0, x_T, t, noise, mask)
    return bridge.precondition(t).error(bridge.denoise(network, x_t, t), x_0, mask)


@BOTH
def test_the_exact_denoiser_is_the_minimum_of_the_loss(name):
    p = pair(name)
    generator = torch.Generator().manual_seed(1)
    n = 200_000
    x_0, x_T = p.draw(n, generator)
    noise = torch.randn(x_0.shape, dtype=torch.float64, generator=generator)
    for u in (0.05, 0.5, 0.95):
        t = torch.full((n,), p.bridge.t_min + u * (p.bridge.T - p.bridge.t_min), dtype=torch.float64)
        skip, out, scale_in, _, weight = p.bridge.precondition(t)
        b, c = p.bridge.coefficients(t)[1:]

        def network(bias, slope, p=p, t=t, skip=skip, out=out, scale_in=scale_in):
            def F(x_in, c_noise):
                x = x_in / scale_in.reshape(-1, 1, 1, 1)
                D = p.denoise(x, t, x_T) * (1 + slope) + bias
                return (D - skip.reshape(-1, 1, 1, 1) * x) / out.reshape(-1, 1, 1, 1)

            return F

        losses = loss(p.bridge, network(0, 0), x_0, x_T, t, noise)
        v = p.residual_variance
        wanted = weight[0] * v * c[0] ** 2 / (b[0] ** 2 * v + c[0] ** 2)  # weight · Var(x_0 | x_t, x_T)
        assert abs(losses.mean() - wanted) < 4 * losses.std() / n**0.5
        for bias, slope in ((0.05, 0), (-0.05, 0), (0, 0.1), (0, -0.1)):
            worse = loss(p.bridge, network(bias, slope), x_0, x_T, t, noise)
            assert worse.mean() > losses.mean()


def test_the_mask_bounds_the_loss_and_the_noise():
    bridge = pair("ve").bridge
    x_0, x_T, noise = torch.randn(3, 2, 3, 4, 4)
    t = torch.tensor([0.5, 2.0], dtype=torch.float64)
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[:, :, 1:3] = True
    seen = []

    def network(x, c_noise):
        seen.append(x)
        return x * 0.3

    inside = loss(bridge, network, x_0, x_T, t, noise, mask)
    changed = torch.where(mask, noise, noise + 100)
    assert torch.equal(inside, loss(bridge, network, x_0, x_T, t, changed, mask))
    assert torch.equal(seen[0], seen[1])
    rows = [v[:, :, 1:3] for v in (x_0, x_T, noise)]
    torch.testing.assert_close(inside, loss(bridge, network, rows[0], rows[1], t, rows[2]))


def test_scalars_stay_exact_with_float32_images():
    bridge = Bridge(dataclasses.replace(SETTINGS["vp"]))
    x, x_T, D = torch.randn(3, 2, 3, 4, 4)
    near_end = bridge.time(1 - 1e-9)
    assert torch.isfinite(bridge.drift(x_T, near_end, x_T, D)).all()
    assert bridge.drift(x, near_end, x_T, D).dtype == torch.float32
    assert torch.isfinite(bridge.drift(x_T, bridge.time(1.0), x_T, D)).all()
