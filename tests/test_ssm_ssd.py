"""Mamba-2's scan: against the reference, against itself in pieces, and at the edges."""

import numpy as np

TOLERANCE = {np.float32: 3e-6, np.float64: 1e-12}
REALS = [np.float32, np.float64]
SIGNALS = ("x", "dt", "B", "C", "z")  # what has a time axis


def ssd_problem(
    batch,
    steps,
    heads,
    width,
    states,
    dtype=np.float64,
    *,
    groups=1,
    D="head",
    seed=0,
    unbatched=False,
    segments=None,
):
    """Arguments of `ssd_scan` with every option on.

    D is of the kind "head" (H,), "channel" (H, P) or None; `segments` is the number of initial
    states if sequences are packed.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    p = dict(
        x=normal(batch, steps, heads, width),
        dt=normal(batch, steps, heads) - dtype(1),
        A=-np.exp(normal(heads)),
        B=normal(batch, steps, groups, states),
        C=normal(batch, steps, groups, states),
        D=None if D is None else normal(heads, width) if D == "channel" else normal(heads),
        z=normal(batch, steps, heads, width),
        dt_bias=normal(heads),
        dt_softplus=True,
        dt_limit=(0.01, 3.0),
        initial_state=normal(batch if segments is None else segments, heads, width, states),
    )
    if unbatched:
        for name in (*SIGNALS, "initial_state"):
            if name != "initial_state" or segments is None:
                p[name] = p[name][0]
    return p
