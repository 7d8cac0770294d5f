"""One step of Mamba-2's scan against the memory's speed and transformers' fallback: checks the
results, then times interleaved.

    python bench/bench_ssd_step.py [--json] [--rounds N]

Ratio first (how many times as long the peer takes), time second.  The states of many layers are
visited in turn, as a model does, so that each is out of the caches; "warm" is one state alone.
`np.multiply(state, a, out=state)` reads and writes the same bytes and does nothing else.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # one core for everyone
    os.environ.setdefault(variable, "1")

import numpy as np

import fastderiv as fd
from fastderiv._cli.timing import interleave
from report import compare, options, report

# (name, batch, H, P, N, G), layers
SHAPES = [
    (("mamba2-130m", 1, 24, 64, 128, 1), 96),
    (("mamba2-130m", 8, 24, 64, 128, 1), 24),
    (("mamba2-2.7b", 1, 80, 64, 128, 1), 64),
    (("mamba2-2.7b", 8, 80, 64, 128, 1), 8),
    (("mamba2-130m, warm", 1, 24, 64, 128, 1), 1),
]
TINY = ("smallest", 1, 1, 4, 4, 1)


def arguments(shape, dtype=np.float32):
    """What follows the state: x, dt, A, B, C, D, z, dt_bias."""
    _, batch, heads, width, states, groups = shape
    rng = np.random.default_rng(0)

    def normal(*s):
        return rng.standard_normal(s, np.float32).astype(dtype)

    A = -np.arange(1, heads + 1, dtype=dtype)
    return (
        normal(batch, heads, width),
        normal(batch, heads) - 2,
        A,
        normal(batch, groups, states),
        normal(batch, groups, states),
        normal(heads),
        None,
        normal(heads),
    )


def fallback(shape, p):
    """The step that transformers takes on a CPU, or None."""
    try:
        import torch
        from transformers.models.mamba2.modeling_mamba2 import mamba2_selective_state_update
    except ImportError:
        return None
    torch.set_num_threads(1)
    _, _, heads, width, states, _ = shape
    x, dt, A, B, C, D, _, bias = (None if a is None else torch.from_numpy(a) for a in p)

    def expanded(a):
        return a[..., None].expand(*a.shape, width)

    A = A[:, None, None].expand(heads, width, states)

    @torch.no_grad()
    def step(state):
        return mamba2_selective_state_update(
            torch.from_numpy(state), x, expanded(dt), A, B, C, expanded(D),
            dt_bias=expanded(bias), dt_softplus=True,
        ).numpy()  # fmt: skip

    return step


def each(states, step):
    """A call that takes a step of every layer."""

    def call():
        for state in states:
            step(state)

    return call


def results(rounds):
    for shape, layers in SHAPES:
        name, batch, heads, width, states, _ = shape
        rng = np.random.default_rng(1)
        size = batch, heads, width, states
        memory = [rng.standard_normal(size, np.float32) for _ in range(layers)]
        p, factor = arguments(shape), np.float32(0.999999)

        def ours(state, p=p):
            return fd.ssd_state_update(state, *p, True)

        def multiply(state, factor=factor):
            np.multiply(state, factor, out=state)

        calls = {"fastderiv": each(memory, ours), "np.multiply": each(memory, multiply)}
        theirs = fallback(shape, p)
        if theirs is not None:
            a, b = memory[0].copy(), memory[0].copy()
            assert np.allclose(ours(a), theirs(b), rtol=1e-4, atol=1e-4)
            assert np.allclose(a, b, rtol=1e-4, atol=1e-4)
            calls["transformers"] = each(memory[: max(1, layers // 8)], theirs)
        label = f"step {name} {size}"
        fd.set_num_threads(1)
        t = interleave(calls, rounds=rounds, rest=0.02)
        yield compare(label, t, "fastderiv", "np.multiply", "step", layers)
        if theirs is not None:
            few = {k: each(memory[: max(1, layers // 8)], f)
                   for k, f in (("fastderiv", ours), ("transformers", theirs))}  # fmt: skip
            t = interleave(few, rounds=rounds, rest=0.02)
            yield compare(label, t, "fastderiv", "transformers", "step", max(1, layers // 8))

        def two(memory=memory, ours=ours):
            fd.set_num_threads(2)
            each(memory, ours)()
            fd.set_num_threads(1)

        t = interleave({"2 threads": two, "1 thread": each(memory, ours)}, rounds=rounds, rest=0.02)
        yield compare(label, t, "2 threads", "1 thread", "step", layers)
    p, state = arguments(TINY), np.zeros(TINY[1:5], np.float32)
    t = interleave(
        {
            "fastderiv": lambda: fd.ssd_state_update(state, *p, True),
            "np.multiply": lambda: np.multiply(state, np.float32(0.5), out=state),
        },
        rounds=rounds,
    )
    yield compare("smallest call", t, "fastderiv", "np.multiply", "call", 1)


if __name__ == "__main__":
    given = options(__doc__, rounds=7).parse_args()
    report(results(given.rounds), given.json)
