"""Networks of one hidden layer, and rows of their other input, that are hard for certificates, in
kinds.
"""

import numpy as np

import fastderiv as fd

KINDS = (
    "random", "prescribed roots", "near-doubles", "scales", "large offsets",
    "nearly equal columns", "equal columns", "tails",
)  # fmt: skip


def _network(a, w, s, d, c):
    """Units of two inputs: Σ d σ(a t + w x + s) + c as the difference of two outputs."""
    d, rest = np.asarray(d, float), np.zeros(len(d))
    weights = [np.array([a, w], float), np.column_stack([d, rest])]
    return fd.SigmoidMLP(weights, [np.asarray(s, float), [c, 0.0]])


def _sigma(z):
    return 0.5 + 0.5 * np.tanh(0.5 * z)


def adversary(kind, seed, rows):
    """(network, x_other (rows, 1)); the first of x_other is 0, where what is prescribed happens."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    H = int(rng.choice([2, 3, 3, 4, 5, 6]))
    a, s, d = rng.normal(0, 2, H), rng.normal(0, 3, H), rng.normal(0, 1, H)
    w, c, x = rng.normal(0, 1, H), rng.normal(0, 0.5), np.append(0.0, rng.normal(0, 1, rows - 1))
    if kind == "random":
        a *= rng.choice([0.3, 1, 30])
    elif kind == "prescribed roots":
        roots = rng.uniform(-3, 3, H) * (1 if rng.random() < 0.7 else 0.1)
        d = np.linalg.lstsq(_sigma(np.outer(roots, a) + s), np.full(H, -c), rcond=None)[0]
        x[1:] *= 10.0 ** rng.uniform(-12, 0, rows - 1)
    elif kind == "near-doubles":
        top, height = rng.uniform(-2, 2), rng.choice([-1, 1]) * 10.0 ** rng.uniform(-17, -6)
        y = _sigma(a * top + s)
        d[0] = -(a[1:] * d[1:]) @ (y * (1 - y))[1:] / (a[0] * y[0] * (1 - y[0]))
        c = height - d @ y
        x[1:] *= 10.0 ** rng.uniform(-16, -3, rows - 1)
    elif kind == "scales":
        a *= 10.0 ** rng.choice([rng.uniform(-300, 300, H), np.full(H, rng.uniform(-300, 300))])
        alike = np.full(H, rng.uniform(-300, 300))
        d *= 10.0 ** rng.choice([rng.uniform(-300, 300, H), alike, np.zeros(H)])
        c = rng.choice([0.0, -0.5 * d[0], -0.5 * d.sum()])
    elif kind == "large offsets":
        far = 10.0 ** rng.choice([rng.uniform(8, 17), 15, 300 * rng.random()])
        t = rng.choice([-1, 1]) * far + rng.normal(0, 3, H) * max(1.0, np.spacing(far))
        s = -a * t
        if rng.random() < 0.5:
            c = -(d[a > 0].sum() if rng.random() < 0.5 else d[a < 0].sum())
        x[1:] *= 10.0 ** rng.uniform(-8, 2, rows - 1)
    elif kind == "nearly equal columns":
        k, by = rng.integers(1, H), 1 + rng.choice([-1, 1]) * 10.0 ** rng.uniform(-16, -1)
        a[k], s[k], w[k] = a[0] * by, s[0] * rng.choice([1, by]), w[0]
        d[k] = -d[0] * rng.choice([1, by])
        d[[0, k]] *= 10.0 ** rng.uniform(0, 6)
    elif kind == "equal columns":
        for k in range(1, H):
            if rng.random() < 0.6:
                sign = rng.choice([-1, 1])
                a[k], s[k], w[k] = sign * a[0], sign * s[0], sign * w[0]
                d[k] = rng.choice([d[0], -d[0], d[k], np.nextafter(-d[0], 1)])
        c = rng.choice([0.0, c, -d.sum()])
    else:  # tails: a limit of 0, or next to it
        d = np.round(d * 64) / 64
        c = -(d[a > 0].sum() if rng.random() < 0.5 else d[a < 0].sum())
        c += rng.choice([0, 0, 1e-18, -1e-25])
        s *= 10.0 ** rng.uniform(0, 3)
        if rng.random() < 0.5:
            a[:2] = np.sort(abs(a[:2])).min() * np.array([1, 1 + 10.0 ** rng.uniform(-12, 0)])
    return _network(a, w, s, d, float(c)), x[:, None]
