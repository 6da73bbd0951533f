"""Every sampler as its paper or its authors' code states it: NumPy in float64, nothing of ddbm.bridges.

`D(x, t)` estimates x_0 and `z()` draws noise; x, x_T: arrays; ts: decreasing times. Derivatives are by a complex step.
"""

import itertools

import numpy as np
from scipy.integrate import RK45, quad
from scipy.optimize import brentq


def Schedule(s, m=np):
    """The path that the settings name; m: numpy, where t may be complex, or mpmath."""
    own = {"linear": Linear, "i2sb": OT if s.ot else I2SB}.get(s.schedule, DDBM)
    return (type("Noisy", (NoisyEnd, own), {}) if s.source_noise else own)(s, m)


class DDBM:
    """Zhou et al. 2023 (DDBM), Table 1 and Eq. 7-8."""

    ot = False

    def __init__(self, s, m):
        self.ve, self.beta_d, self.beta_min, self.m = s.schedule.startswith("ve"), s.beta_d, s.beta_min, m
        self.T, self.t_min = (s.sigma_max, s.sigma_min) if self.ve else (1.0, 1e-4)
        self.beta_max, self.gamma_max, self.noise = s.beta_max, s.gamma_max, s.source_noise
        self.straight = s.schedule == "linear" and not s.source_noise
        self.i2sb = s.schedule == "i2sb" and not s.source_noise and not s.ot

    def grid(self, sampler, own, order):
        """The name of a sampler's grid; own: under VP."""
        if self.straight:
            return "uniform" if sampler in ("heun", "euler_maruyama") else "log_snr"
        if self.i2sb and sampler == "dbim" and order != 1:
            return "log_snr"
        return "karras" if self.ve else own

    def B(self, t):
        return t * t * self.beta_d / 2 + t * self.beta_min

    def alpha(self, t):
        return 0 * t + 1 if self.ve else self.m.exp(-self.B(t) / 2)

    def rho(self, t):
        return t if self.ve else self.m.sqrt(self.m.exp(self.B(t)) - 1)

    def f(self, t):
        return 0 * t if self.ve else -(t * self.beta_d + self.beta_min) / 2

    def g2(self, t):
        return 2 * t if self.ve else t * self.beta_d + self.beta_min

    def share(self, t):
        return self.rho(t) ** 2 / self.rho(self.T + 0 * t) ** 2

    def a(self, t):
        return self.alpha(t) / self.alpha(self.T + 0 * t) * self.share(t)

    def b(self, t):
        return self.alpha(t) * (1 - self.share(t))

    def c2(self, t):
        return self.alpha(t) ** 2 * self.rho(t) ** 2 * (1 - self.share(t))

    def c(self, t):
        return self.m.sqrt(self.c2(t))

    def kept2(self, t):
        """The square of what x - a x_T - b D is proportional to along the flow."""
        return self.c2(t)

    def kept(self, t):
        return self.m.sqrt(self.kept2(t))

    def lam(self, t):
        return self.m.log(self.b(t) / self.kept(t))

    def mu(self, lam):
        """log(1/rho) where log(b/c) is lam."""
        return np.log(np.exp(2 * lam) + 1 / self.rho(self.T) ** 2) / 2

    def time(self, mu):
        """t where log(1/rho) is mu."""
        rho2 = np.exp(-2 * mu)
        return np.sqrt(rho2) if self.ve else np.roots([self.beta_d / 2, self.beta_min, -np.log(1 + rho2)]).max()


class Brownian(DDBM):
    """f = 0; rho(t) is the standard deviation of the forward process."""

    def alpha(self, t):
        return 0 * t + 1

    def f(self, t):
        return 0 * t

    def time(self, mu):
        return brentq(lambda t: self.rho(t) ** 2 - np.exp(-2 * mu), 0, 1, xtol=1e-15, rtol=1e-15)


class Linear(Brownian):
    """Zhang et al. 2024 (ECSI): beta_t = t, alpha_t = 1 - t, gamma_t; g² = 2 (gamma gamma' - alpha'/alpha gamma²)."""

    def a(self, t):
        return t

    def b(self, t):
        return 1 - t

    def c2(self, t):
        return (2 * self.gamma_max) ** 2 * t * (1 - t)

    def g2(self, t):
        return 2 * (self.gamma_max**2 * 2 * (1 - 2 * t) + 4 * self.gamma_max**2 * t)

    def rho(self, t):
        return 2 * self.gamma_max * self.m.sqrt(t)


class I2SB(Brownian):
    """Liu et al. 2023: the product of Gaussians around both ends, Eq. 11; beta as in `make_beta_schedule`, mirrored."""

    def root(self, t):
        low, high = self.m.sqrt(self.beta_min + 0 * t), self.m.sqrt(self.beta_max + 0 * t)
        return low + (high - low) * t

    def half(self, t):
        return (self.root(t) ** 3 - self.root(0 * t) ** 3) / (3 * (self.root(0 * t + 1) - self.root(0 * t)))

    def forward2(self, t):
        first = (t.real < 0.5) * 1
        return first * self.half(t) + (1 - first) * (2 * self.half(0 * t + 0.5) - self.half(1 - t))

    def backward2(self, t):
        first = (t.real < 0.5) * 1
        return (1 - first) * self.half(1 - t) + first * (2 * self.half(0 * t + 0.5) - self.half(t))

    def rho(self, t):
        return self.m.sqrt(self.forward2(t))

    def a(self, t):
        return self.forward2(t) / (self.forward2(t) + self.backward2(t))

    def b(self, t):
        return self.backward2(t) / (self.forward2(t) + self.backward2(t))

    def c2(self, t):
        return self.forward2(t) * self.backward2(t) / (self.forward2(t) + self.backward2(t))

    def g2(self, t):
        first = (t.real < 0.5) * 1
        return self.root(first * t + (1 - first) * (1 - t)) ** 2


class NoisyEnd:
    """The noise on x_T joins that of the path; a mixin."""

    def c2(self, t):
        return super().c2(t) + (self.noise * self.a(t)) ** 2

    def kept2(self, t):
        return self.c2(t)

    def mu(self, lam):
        if np.ndim(lam):
            return np.array([self.mu(v) for v in lam])
        return -np.log(self.rho(brentq(lambda t: self.lam(t) - lam, 1e-9, 1 - 1e-9, xtol=1e-15, rtol=1e-15)))


class OT(I2SB):
    """The same without noise."""

    ot = True

    def c2(self, t):
        return 0 * t

    def kept2(self, t):
        return self.a(t) ** 2

    def g2(self, t):
        return 0 * t

    def mu(self, lam):
        return np.log((np.exp(lam) + 1) / self.rho(self.T) ** 2) / 2


def slope(f, t):
    return f(t + 1e-30j).imag / 1e-30


def karras(s, start, n):
    """Karras et al. 2022, Eq. 5, rho = 7."""
    step = (s.t_min ** (1 / 7) - start ** (1 / 7)) / max(n - 1, 1)
    return [start, *((start ** (1 / 7) + i * step) ** 7 for i in range(1, n))]


def uniform(s, start, n):
    return [start + i / max(n - 1, 1) * (s.t_min - start) for i in range(n)]


def log_snr(s, start, n):
    first = s.lam(min(start, s.T - 1e-4))
    lams = [first + i / max(n - 1, 1) * (s.lam(s.t_min) - first) for i in range(n)]
    return [start, *(s.time(s.mu(lam)) for lam in lams[1:])]


def published_dbim(s, start, n):
    """get_sigmas_uniform(steps, t_min, t_max - 1e-3) after the evaluation at t_max; of two times, the ends."""
    return [start, *uniform(s, start - 1e-3, n - 1)] if n > 2 else uniform(s, start, n)


def drift(s, x, x_T, D, t, w, churn):
    """DDBM, Theorem 1: of the ODE at churn 0 and the SDE at 1; the pull towards x_T is scaled by w.

    Without noise I2SB's ODE; with noise on x_T what keeps the law of a x_T + b x_0 + c z, whatever its g.
    """
    if s.ot:
        return I2SB.g2(s, t) / s.rho(t) ** 2 * (x - D)
    if s.noise:
        d_a, d_b, d_c2 = (slope(f, t) if s.m is np else s.m.diff(f, t) for f in (s.a, s.b, s.c2))
        return d_a * x_T + d_b * D + (d_c2 + churn * s.g2(t)) / (2 * s.c2(t)) * (x - s.a(t) * x_T - s.b(t) * D)
    score = -(x - s.a(t) * x_T - s.b(t) * D) / s.c2(t)
    pull = (s.alpha(t) / s.alpha(s.T + 0 * t) * x_T - x) / (s.alpha(t) ** 2 * (s.rho(s.T + 0 * t) ** 2 - s.rho(t) ** 2))
    return s.f(t) * x - s.g2(t) * ((1 + churn) / 2 * score - w * pull)


def begin(s, x_T, z):
    return x_T + s.noise * z() if s.noise else x_T


def heun(s, D, x_T, z, ts, churn, guidance):
    """DDBM, Algorithm 1."""
    x = begin(s, x_T, z)
    for t, u in itertools.pairwise([*ts, 0]):
        if churn:
            v = t + churn * (u - t)
            d = drift(s, x, x_T, D(x, t), t, guidance, 1)
            x, t = x + (v - t) * d + np.sqrt((t - v) * s.g2(t)) * z(), v
        d = drift(s, x, x_T, D(x, t), t, guidance, 0)
        if u:
            y = x + (u - t) * d
            d = (d + drift(s, y, x_T, D(y, u), u, guidance, 0)) / 2
        x = x + (u - t) * d
    return x


def euler_maruyama(s, D, x_T, z, ts, guidance):
    x = begin(s, x_T, z)
    for t, u in itertools.pairwise(ts):
        x = x + (u - t) * drift(s, x, x_T, D(x, t), t, guidance, 1) + np.sqrt((t - u) * s.g2(t)) * z()
    return x - ts[-1] * drift(s, x, x_T, D(x, ts[-1]), ts[-1], guidance, 0)


def boot(s, D, x_T, z, u):
    noise = z()
    d = D(begin(s, x_T, lambda: noise), s.T)
    return s.a(u) * x_T + s.b(u) * d + s.c(u) * noise, d


def dbim(s, D, x_T, z, ts, order, eta):
    """Zheng et al. 2025, Algorithms 1 and 2, as in `sample_dbim` and `sample_dbim_high_order`."""
    x, _ = boot(s, D, x_T, z, ts[1])
    past, last = [], len(ts) - 3
    for i, (r, t) in enumerate(itertools.pairwise(ts[1:])):
        d, kept = D(x, r), s.kept(t) / s.kept(r)
        h, used = s.lam(t) - s.lam(r), 1 if i in (0, last) else min(order, i + 1)
        if order == 1:
            omega = eta * s.alpha(t) * s.rho(t) * np.sqrt(1 - s.rho(t) ** 2 / s.rho(r) ** 2)
            if s.ot or s.noise:  # the same share of the noise that there is
                omega *= s.c(t) / (s.alpha(t) * s.rho(t) * np.sqrt(1 - s.share(t)))
            kept = np.sqrt(s.kept2(t) - omega**2) / s.kept(r)
            x = kept * x + (s.b(t) - kept * s.b(r)) * d + (s.a(t) - kept * s.a(r)) * x_T
            x = x + omega * z() if eta and i < last else x
        else:
            first = second = 0
            if used > 1:
                h1 = s.lam(r) - s.lam(past[-1][0])
                first = (d - past[-1][1]) / h1
            if used > 2:
                h2 = s.lam(past[-1][0]) - s.lam(past[-2][0])
                before = (past[-1][1] - past[-2][1]) / h2
                first, second = (first * (2 * h1 + h2) - before * h1) / (h1 + h2), 2 * (first - before) / (h1 + h2)
            e = np.exp(-h)
            integral = (1 - e) * d + (e + h - 1) * first + (h**2 / 2 - h + 1 - e) * second
            x = kept * x + (s.a(t) - kept * s.a(r)) * x_T + s.b(t) * integral
        past.append((r, d))
    return x


def dbmsolver(s, D, x_T, z, ts, order):
    """Venugopal et al. 2026: D linear in log(1/rho) within a step; its integral by quadrature."""

    def step(x, t, u, d, rate):
        lam, end = s.lam(t), s.lam(u)
        moment = quad(lambda v: np.exp(v) * (s.mu(v) - s.mu(lam)), lam, end, epsabs=0, epsrel=1e-12)[0]
        y = (x - s.a(t) * x_T) / s.kept(t) + (np.exp(end) - np.exp(lam)) * d + moment * rate
        return s.a(u) * x_T + s.kept(u) * y

    x, _ = boot(s, D, x_T, z, ts[1])
    for i, (t, u) in enumerate(itertools.pairwise(ts[1:])):
        d, rate = D(x, t), 0
        if order == 2 and i < len(ts) - 3:
            half = np.log(s.rho(t) / s.rho(u)) / 2
            m = s.time(half - np.log(s.rho(t)))
            rate = (D(step(x, t, m, d, 0), m) - d) / half
        x = step(x, t, u, d, rate)
    return x


def ecsi(s, D, x_T, z, ts, churn):
    """Zhang et al. 2024, Algorithm 1: ε = churn (c c' - b'/b c²), 0 in the last two steps; at T the noise ẑ is 0."""
    x, every = begin(s, x_T, z), [*ts, 0]
    for i, (t, u) in enumerate(itertools.pairwise(every)):
        d, c2 = D(x, t), slope(s.kept2, t) / 2
        epsilon = churn * s.g2(t) / 2 if i < len(every) - 3 else 0
        if not s.ot and not s.noise and epsilon:
            epsilon = churn * (c2 - slope(s.b, t) * s.alpha(t) * s.rho(t) ** 2)
        noise = 0 if t == s.T and not s.noise else (c2 + epsilon) / s.kept2(t) * (x - s.a(t) * x_T - s.b(t) * d)
        x = x + (u - t) * (slope(s.b, t) * d + slope(s.a, t) * x_T + noise)
        x = x + np.sqrt(2 * epsilon * (t - u)) * z() if churn and i < len(every) - 3 else x
    return x


def i2sb(s, D, x_T, z, ts):
    """Liu et al. 2023, Algorithm 2: p_posterior from time to time, without noise in the last step, or in all."""
    x = x_T
    for i, (n, before) in enumerate(itertools.pairwise(ts)):
        std, std_before = s.rho(n), s.rho(before)
        delta2 = std**2 - std_before**2
        mean = delta2 / std**2 * D(x, n) + std_before**2 / std**2 * x
        x = mean + (0 if s.ot or i == len(ts) - 2 else std_before * np.sqrt(delta2) / std) * z()
    return x


def ode(s, D, x_T, z, ts, rtol):
    """dy/dλ = e^λ D by Dormand and Prince's pair, for one image; an evaluation of `D` at every stage."""
    x, _ = boot(s, D, x_T, z, ts[0])
    lam, last, step = s.lam(ts[0]), s.lam(ts[-1]), 0.05
    y = (x - s.a(ts[0]) * x_T) / s.kept(ts[0])

    def state(y, lam):
        t = s.time(s.mu(lam))
        return s.a(t) * x_T + s.kept(t) * y, t

    def f(y, lam):
        return np.exp(lam) * D(*state(y, lam))

    K = [f(y, lam)]
    while lam < last:
        step = min(step, last - lam, 1)
        for node, row in zip(RK45.C[1:], RK45.A[1:], strict=True):
            K.append(f(y + step * sum(w * k for w, k in zip(row, K, strict=False)), lam + node * step))
        new = y + step * sum(w * k for w, k in zip(RK45.B, K, strict=True))
        K.append(f(new, lam + step))
        at, t = state(new, lam + step)
        error = s.kept(t) * step * sum(w * k for w, k in zip(RK45.E, K, strict=True))
        size = np.sqrt(np.mean((error / (rtol * (1 + np.abs(at)))) ** 2))
        if size <= 1:
            y, lam, K = new, last if step == last - lam else lam + step, K[-1:]
        K, step = K[:1], step * np.clip(0.9 * size**-0.2, 0.2, 5)
    return s.a(ts[-1]) * x_T + s.kept(ts[-1]) * y
