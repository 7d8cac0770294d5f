"""``python -m fastderiv bench``: kernels against NumPy, each checked before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np

import fastderiv as fd

from .timing import interleave


@dataclass(frozen=True)
class Case:
    """One kernel at one size, and the same computation in NumPy."""

    kernel: str
    size: str
    unit: str  # what `units` counts
    units: int
    ours: Callable[[], np.ndarray]
    numpy: Callable[[], np.ndarray]
    tolerance: float  # relative to the largest magnitude of NumPy's result


@dataclass(frozen=True)
class Result:
    """How one case went: NumPy's time over ours, the times, the largest relative deviation."""

    kernel: str
    size: str
    ratio: float
    seconds: float
    numpy_seconds: float
    unit: str
    ns_per_unit: float
    error: float
    agrees: bool

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def scan_case(
    batch: int, channels: int, states: int, length: int, dtype: type = np.float32
) -> Case:
    """`selective_scan` with every option on."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    u, delta, z = (draw(batch, channels, length) for _ in range(3))
    A = -np.exp(draw(channels, states) / 2)
    B, C = draw(batch, states, length), draw(batch, states, length)
    arguments = (u, delta - 2, A, B, C, draw(channels), z, draw(channels) / 2, True)
    return Case(
        "selective_scan",
        f"B,D,N,L = {batch},{channels},{states},{length} {np.dtype(dtype).name}",
        "state-step",
        batch * channels * states * length,
        lambda: fd.selective_scan(*arguments),
        lambda: numpy_scan(*arguments),
        2e-5 if dtype is np.float32 else 1e-12,
    )


def numpy_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True) -> np.ndarray:
    """The scan as one writes it with care in NumPy: a loop over L, everything else vectorised.

    It works in the dtype of its inputs.  `fastderiv.reference` computes in float64 throughout: a
    float32 kernel would look better beside it than it is.
    """
    step = np.logaddexp(0, delta + delta_bias[:, None])
    weighted = step * u
    h = np.zeros((*u.shape[:2], A.shape[1]), u.dtype)
    y = np.empty_like(u)
    for l in range(u.shape[-1]):
        decay = step[:, :, l, None] * A
        np.exp(decay, out=decay)
        h *= decay
        h += weighted[:, :, l, None] * B[:, None, :, l]
        y[:, :, l] = np.matmul(h, C[:, :, l, None])[..., 0]
    y += D[:, None] * u
    return y * (z / (1 + np.exp(-z)))


def sums_case(n: int) -> Case:
    """`subset_sums` into memory that exists, as NumPy's doubling is timed too."""
    x = np.random.default_rng(1).standard_normal(n)
    out, theirs = np.empty(2**n), np.empty(2**n)

    return Case(
        "subset_sums",
        f"n = {n} float64",
        "subset",
        2**n,
        lambda: fd.subset_sums(x, out=out),
        lambda: numpy_doubling(x, theirs),
        1e-12,
    )


def numpy_doubling(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The subset sums in place: s[2**i : 2**(i+1)] = s[: 2**i] + x[i]."""
    out[0] = 0
    for i, value in enumerate(x):
        np.add(out[: 1 << i], value, out=out[1 << i : 2 << i])
    return out


def enumeration_case(n: int) -> Case:
    """`subset_logsumexp` by enumeration; NumPy goes block by block to save memory."""
    x = np.random.default_rng(2).standard_normal(n)

    def ours() -> np.ndarray:
        return np.asarray(fd.subset_logsumexp(x, method="enumerate"))

    def theirs() -> np.ndarray:
        return np.asarray(numpy_logsumexp(x))

    return Case(
        "subset_logsumexp", f"n = {n} float64, enumerated", "subset", 2**n, ours, theirs, 1e-12
    )


def numpy_logsumexp(x: np.ndarray, block: int = 14) -> float:
    """All subsets, 2**block at a time to stay in the cache: the fastest way we know in NumPy."""
    low = numpy_doubling(x[:block], np.empty(1 << min(block, x.size), x.dtype))
    high = numpy_doubling(x[block:], np.empty(1 << max(0, x.size - block), x.dtype))
    peak, total, terms = float(low.max() + high.max()), 0.0, np.empty_like(low)
    for shift in high:
        np.add(low, shift - x.dtype.type(peak), out=terms)
        total += float(np.exp(terms, out=terms).sum())
    return peak + np.log(total)


def margin_case(rows: int, sizes: tuple[int, ...]) -> Case:
    """`SigmoidMLP.margin` of a random network."""
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal(shape) for shape in pairwise(sizes)]
    biases = [rng.standard_normal(size) for size in sizes[1:]]
    X = rng.standard_normal((rows, sizes[0]))
    net = fd.SigmoidMLP(weights, biases)
    # in blocks: their temporaries stay in cache, and products this small stay in one thread of the
    # BLAS, whose waiting threads would make NumPy look ten times slower than it is on a busy
    # machine
    block = min(8192, 2**17 // max(W.size for W in weights))

    def layers(y: np.ndarray) -> np.ndarray:
        for W, b in zip(weights[:-1], biases[:-1], strict=True):
            y = 1 / (1 + np.exp(-(y @ W + b)))
        logits = y @ weights[-1] + biases[-1]
        return logits[:, 0] - logits[:, 1]

    def blocked() -> np.ndarray:
        return np.concatenate([layers(X[i : i + block]) for i in range(0, rows, block)])

    return Case(
        "SigmoidMLP.margin",
        f"{'-'.join(map(str, sizes))}, {rows} rows float64",
        "evaluation",
        rows,
        lambda: net.margin(X),
        blocked,
        1e-12,
    )


def cases(quick: bool = False) -> Iterator[Case]:
    """The table's rows, made one by one so that only one case's arrays are alive."""
    if quick:
        yield scan_case(1, 64, 16, 64)
        yield sums_case(14)
        yield enumeration_case(16)
        yield margin_case(4096, (2, 3, 2))
        return
    yield scan_case(1, 16, 4, 8)
    yield scan_case(1, 256, 16, 512)
    yield scan_case(1, 1536, 16, 256)
    yield scan_case(1, 256, 16, 512, np.float64)
    yield sums_case(16)
    yield sums_case(22)
    yield enumeration_case(16)
    yield enumeration_case(22)
    yield margin_case(1, (2, 3, 2))
    yield margin_case(100_000, (2, 3, 2))
    yield margin_case(10_000, (16, 32, 32, 4))


@contextmanager
def threads_set_to(n: int) -> Iterator[None]:
    """`n` threads inside, the old number afterwards."""
    before = fd.get_num_threads()
    fd.set_num_threads(n)
    try:
        yield
    finally:
        fd.set_num_threads(before)


def measure(case: Case, *, rounds: int, round_time: float) -> Result:
    """Check the case, then time both sides in turn."""
    ours, theirs = case.ours(), case.numpy()
    error = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    times = interleave(
        {"ours": case.ours, "numpy": case.numpy}, rounds=rounds, round_time=round_time
    )
    mine, numpys = times["ours"], times["numpy"]
    return Result(
        kernel=case.kernel,
        size=case.size,
        ratio=mine.ratio(numpys),
        seconds=mine.median,
        numpy_seconds=numpys.median,
        unit=case.unit,
        ns_per_unit=mine.median / case.units * 1e9,
        error=error,
        agrees=error <= case.tolerance,
    )


def run(*, quick: bool = False, threads: int = 1) -> list[Result]:
    """Measure every case."""
    rounds, round_time = (3, 0.005) if quick else (5, 0.05)
    with threads_set_to(threads):
        return [measure(case, rounds=rounds, round_time=round_time) for case in cases(quick)]


def duration(seconds: float) -> str:
    """A time with a unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def rows(results: list[Result]) -> list[str]:
    """One line per result: ratio first, time second."""
    lines = []
    for r in results:
        agreement = f"differs by {r.error:.0e}" if r.agrees else f"FAILED: differs by {r.error:.0e}"
        times = f"{duration(r.seconds):>8} instead of {duration(r.numpy_seconds):>8}"
        cost = f"{r.ns_per_unit:8.3g} ns per {r.unit:<10}"
        lines.append(f"{r.ratio:6.1f}x  {times}  {cost}  {r.kernel:<17}  {r.size:<38}  {agreement}")
    return lines


def on_threads(n: int) -> str:
    """How many threads, in words."""
    return "on one thread" if n == 1 else f"on up to {n} threads"


def table(results: list[Result], threads: int) -> str:
    """The whole table as text."""
    level = fd.show_config()["CPU level in use"]
    head = [
        f"fastderiv {fd.__version__}, {level} kernels, {on_threads(threads)} (see --threads N)",
        "How many times faster than NumPy (median of interleaved rounds); times; cost per unit.",
        "",
    ]
    return "\n".join(head + rows(results))
