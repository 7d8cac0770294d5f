"""What `selective_scan` keeps for its adjoint: it changes no bit, is small, and is of one call."""

import copy
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from fastderiv._core.cache import Cache, keep, opened
from fastderiv.ssm import kept_size
from helpers.awkward import layouts, same_bits
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads
from test_ssm import REALS
from test_ssm_vjp import LAYOUTS, TOLERANCE, assert_within, vjp_problem

SHAPES = [(2, 5, 3, 300), (1, 33, 16, 97), (1, 20, 17, 200), (3, 4, 40, 130), (1, 2, 100, 300)]
BOUNDS = [0, 0, 40, 41, 73, 200, 200]
ADJOINTS = ("dout", "dlast_state")
OPTIONAL = ["D", "z", "delta_bias", "initial_state"]


def forward(p, library=fd, **options):
    return library.selective_scan(
        **{k: v for k, v in p.items() if k not in ADJOINTS}, return_cache=True, **options
    )


def back(p, cache=None):
    return fd.selective_scan_vjp(**p, cache=cache)


def identical(ours, theirs):
    """The same bits, but for the sign of a NaN, which is that of either of two NaNs that met."""
    assert [a is None for a in ours] == [a is None for a in theirs]
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    return all(same_bits(*(np.where(np.isnan(a), 0, a) for a in pair)) for pair in pairs) and all(
        np.array_equal(np.isnan(a), np.isnan(b)) for a, b in pairs
    )


def assert_the_cache_changes_no_bit(p):
    *results, cache = forward(p, return_last_state=True)
    plain = {k: v for k, v in p.items() if k not in ADJOINTS}
    assert identical(results, fd.selective_scan(**plain, return_last_state=True))
    assert identical(back(p, cache), back(p))
    return cache


# ---- the same bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(("B", "C"), LAYOUTS)
@pytest.mark.parametrize("softplus", [False, True])
def test_a_cache_changes_no_bit_whatever_shares_coefficients(B, C, dtype, softplus):
    p = vjp_problem(2, 6, 5, 150, dtype, B=B, C=C)
    assert_the_cache_changes_no_bit(p | {"delta_softplus": softplus})


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_cache_changes_no_bit_whatever_the_size(shape, dtype):
    """States are kept before every 32, 64 or 128 steps."""
    assert_the_cache_changes_no_bit(vjp_problem(*shape, dtype))


@pytest.mark.parametrize("without", [*((name,) for name in OPTIONAL), tuple(OPTIONAL)])
def test_a_cache_changes_no_bit_without_an_option(without):
    p = vjp_problem(1, 5, 16, 200, np.float32)
    assert_the_cache_changes_no_bit(p | dict.fromkeys([*without, "dlast_state"]))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("states", [3, 60])
def test_a_cache_changes_no_bit_of_packed_sequences(states, dtype, unbatched):
    p = vjp_problem(1, 5, states, 200, dtype, bounds=BOUNDS, unbatched=unbatched)
    assert_the_cache_changes_no_bit(p)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 140), min_size=1, max_size=6),
    channels=st.integers(1, 40),
    states=st.integers(0, 40),
    B=st.sampled_from(["constant", "time", 1]),
    gated=st.booleans(),
)
def test_any_packing(lengths, channels, states, B, gated):
    bounds = np.cumsum([0, *lengths])
    p = vjp_problem(1, channels, states, int(bounds[-1]), np.float32, bounds=bounds, B=B, C=B)
    assert_the_cache_changes_no_bit(p if gated else p | {"z": None})


@pytest.mark.parametrize(
    "shape", [(0, 3, 4, 70), (2, 0, 4, 70), (2, 3, 0, 70), (2, 3, 4, 0), (1, 1, 1, 1)]
)
def test_empty_axes(shape):
    assert_the_cache_changes_no_bit(vjp_problem(*shape))


@pytest.mark.parametrize("dtype", REALS)
def test_gradients_with_a_cache_equal_reference(dtype):
    p = vjp_problem(1, 7, 4, 100, dtype)
    _, cache = forward(p, reference)
    assert_within(TOLERANCE[dtype], back(p, forward(p)[1]), reference.selective_scan_vjp(**p))
    ours, theirs = reference.selective_scan_vjp(**p, cache=cache), reference.selective_scan_vjp(**p)
    assert identical(ours, theirs)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "z", "initial_state", "dout"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_a_cache_changes_no_bit_of_what_is_not_finite(name, bad):
    """Nor where a state overflows on its way."""
    p = vjp_problem(2, 20, 4, 200, np.float32)
    for place in (0, -1, p[name].size // 2):
        array = p[name].copy()
        array.flat[place] = bad
        with np.errstate(all="ignore"):
            assert_the_cache_changes_no_bit(p | {name: array})
    with np.errstate(all="ignore"):
        assert_the_cache_changes_no_bit(p | {"A": -p["A"] * 3, "z": None})


@pytest.mark.parametrize("dtype", REALS)
def test_thread_count_changes_no_bit(dtype):
    p = vjp_problem(3, 50, 16, 300, dtype)
    expected = back(p)
    for cache in by_threads(lambda: forward(p)[1], 1, 2, 5):
        for found in by_threads(lambda cache=cache: back(p, cache), 1, 3):
            assert identical(found, expected)


def test_cpu_levels_agree():
    assert_levels_agree(
        "import sys; sys.path.insert(0, 'tests')\n"
        "import hashlib, numpy as np, fastderiv as fd\n"
        "from test_ssm_cache import back, forward, vjp_problem\n"
        "for dtype in np.float32, np.float64:\n"
        "    p = vjp_problem(2, 21, 16, 200, dtype)\n"
        "    for a in back(p, forward(p)[1]):\n"
        "        print(hashlib.sha256(a.tobytes()).hexdigest(), float(abs(a).sum()))\n"
    )


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_the_same_numbers_in_any_layout_are_the_same_arguments(name):
    p = vjp_problem(2, 6, 4, 70, B=2, C="time")
    cache, expected = forward(p)[1], back(p)
    for label, array in layouts(p[name]):
        assert identical(back(p | {name: array}, cache), expected), label
        assert identical(back(p, forward(p | {name: array})[1]), expected), label


def test_results_come_in_order_and_out_is_written():
    p = vjp_problem(2, 6, 4, 70)
    out = np.empty_like(p["u"])
    y, last, cache = forward(p, return_last_state=True, out=out)
    assert y is out and last.shape == (2, 6, 4) and identical(back(p, cache), back(p))
    y, cache = forward(p)
    assert same_bits(y, out) and isinstance(cache, Cache)
    with pytest.raises(TypeError, match="return_cache"):
        forward({k: v for k, v in p.items() if k != "z"} | {"return_cache": 1})


def test_a_cache_serves_several_threads_and_any_number_of_times():
    p = vjp_problem(2, 30, 16, 200, np.float32)
    cache, expected, wrong = forward(p)[1], back(p), []

    def use():
        wrong.extend(not identical(back(p, cache), expected) for _ in range(5))

    workers = [threading.Thread(target=use) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == 20 * [False]


# ---- one call ------------------------------------------------------------------------------------


def changes(array):
    """The array changed in one bit, in all signs, by an exchange of two numbers, and to zero."""
    integers = np.uint32 if array.dtype == np.float32 else np.uint64
    for place in (0, -1):
        other = array.copy()
        other.view(integers).flat[place] ^= 1
        yield other
    yield -array
    swapped = array.copy()
    swapped.flat[[0, -1]] = array.flat[[-1, 0]]
    yield swapped
    yield np.zeros_like(array)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps", [10, 150])
@pytest.mark.parametrize(
    "name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"]
)
def test_a_cache_is_refused_with_any_other_argument(name, steps, dtype):
    p = vjp_problem(2, 21, 4, steps, dtype)
    cache = forward(p)[1]
    for other in changes(p[name]):
        with pytest.raises(ValueError, match=f"^cache is of a call with another {name}$"):
            back(p | {name: other}, cache)
    if name in OPTIONAL:
        without = p | {name: None}
        expected = "z" if name == "z" else name
        with pytest.raises(ValueError, match=f"^cache is of a call with another {expected}$"):
            back(without, cache)
        with pytest.raises(ValueError, match=f"^cache is of a call with another {expected}$"):
            back(p, forward(without)[1])


def test_every_bit_of_the_signals_counts():
    rng = np.random.default_rng(0)
    for dtype, integers in (np.float32, np.uint32), (np.float64, np.uint64):
        p = vjp_problem(1, 3, 2, 67, dtype)
        cache = forward(p)[1]
        for name in ("u", "delta", "z"):
            for place in rng.integers(0, p[name].size, 60):
                other = p[name].copy()
                other.view(integers).flat[place] ^= integers(1) << integers(
                    rng.integers(8 * other.itemsize)
                )
                with pytest.raises(ValueError, match=f"another {name}$"), np.errstate(all="ignore"):
                    back(p | {name: other}, cache)


def test_changes_that_might_cancel_do_not():
    """Signs of a few numbers, exchanges in time, between channels and items; small integers."""
    p = vjp_problem(2, 20, 2, 96, np.float32)
    p["u"] = np.round(p["u"] * 4)
    cache = forward(p)[1]
    u = p["u"]
    pairs = [u.copy() for _ in range(24)]
    for k, other in enumerate(pairs):
        other[k % 2, k % 20, [3, 4 + k]] *= -1
    swapped = [u[::-1], u[:, ::-1], u[..., ::-1], np.roll(u, 1, -1), np.roll(u, 32, -1)]
    swapped += [np.roll(u, 16, 1), np.roll(u, 1, 1), u + 1, 2 * u]
    for other in (*pairs, *swapped):
        if not np.array_equal(other, u):
            with pytest.raises(ValueError, match=r"another u$"):
                back(p | {"u": other}, cache)


def test_a_cache_is_refused_with_other_options_and_shapes():
    p = vjp_problem(2, 6, 4, 70)
    cache = forward(p)[1]
    with pytest.raises(ValueError, match=r"^cache is of a call with delta_softplus = True$"):
        back(p | {"delta_softplus": False}, cache)
    message = r"^cache is of a call with \(dtype, batch, D, L, N\) = \(float64, 2, 6, 70, 4\)"
    for shape in ((1, 6, 4, 70), (2, 3, 4, 70), (2, 6, 5, 70), (2, 6, 4, 71)):
        with pytest.raises(ValueError, match=message):
            back(vjp_problem(*shape), cache)
    with pytest.raises(ValueError, match=message):
        back(vjp_problem(2, 6, 4, 70, np.float32), cache)
    grouped = p | {"B": np.stack([p["B"]] * 2, 1)}
    with pytest.raises(ValueError, match=r"another B$"):
        back(grouped, cache)
    one = vjp_problem(1, 6, 4, 70)
    packed = one | {"cu_seqlens": [0, 70]}
    with pytest.raises(ValueError, match=r"^cache is of a call with other cu_seqlens$"):
        back(packed, forward(one)[1])
    two = one | {"initial_state": np.zeros((2, 6, 4)), "dlast_state": None}
    with pytest.raises(ValueError, match=r"^cache is of a call with other cu_seqlens$"):
        back(two | {"cu_seqlens": [0, 30, 70]}, forward(two | {"cu_seqlens": [0, 31, 70]})[1])


def test_arguments_changed_in_place_are_other_arguments():
    p = vjp_problem(1, 6, 4, 70)
    cache = forward(p)[1]
    p["A"] *= 1.001
    with pytest.raises(ValueError, match=r"another A$"):
        back(p, cache)


def test_references_caches_are_of_one_call_too():
    p = vjp_problem(1, 3, 2, 5)
    cache = forward(p, reference)[1]
    for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"):
        with pytest.raises(ValueError, match="cache is of another call"):
            reference.selective_scan_vjp(**p | {name: 2 * p[name]}, cache=cache)
    with pytest.raises(ValueError, match="cache is of another call"):
        reference.selective_scan_vjp(**p | {"delta_softplus": False}, cache=cache)


def test_nobody_reaches_into_a_cache():
    p = vjp_problem(1, 3, 2, 70)
    cache = forward(p)[1]
    assert repr(cache) == "<cache of selective_scan>" and copy.deepcopy(cache) is cache
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(cache)
    with pytest.raises(AttributeError):
        cache.arrays = None
    expected = r"expected what selective_scan\(…, return_cache=True\) returns"
    for wrong in (1, fd.dense(p["A"], p["A"].T, return_cache=True)[1]):
        with pytest.raises(TypeError, match=expected):
            back(p, wrong)


def test_what_a_cache_holds_is_checked_before_it_is_read():
    p = vjp_problem(1, 3, 2, 70)
    about, _, (states,) = opened(forward(p)[1], "selective_scan")
    for forged in (states[:-1], states.astype(np.float32), states[None], states[::-1]):
        with pytest.raises(TypeError, match="a kernel for 64-bit numbers was handed"):
            back(p, keep("selective_scan", about, (), (forged,)))


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", [(1, 512, 16, 1024), (2, 1, 16, 4096), (1, 100, 16, 500)])
def test_a_cache_takes_at_most_15_percent_more(shape, gated):
    p = vjp_problem(*shape, np.float32, B="constant", C="constant")
    p["z"] = p["z"] if gated else None
    out = np.empty_like(p["u"])
    forward(p, out=out)
    tracemalloc.start()
    try:
        cache = forward(p, out=out)[1]
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    signals = [a for a in (p["u"], p["delta"], p["z"], out) if a is not None]
    assert kept < 0.15 * sum(a.nbytes for a in signals) + 4096
    assert cache is not None


@pytest.mark.parametrize("states", [1, 8, 16, 32, 64, 128, 1000])
def test_more_states_are_kept_less_often(states):
    """Up to 64 states the cache stays below 15 %; then blocks of 128 steps are the bound."""
    numbers = kept_size((1, 4096), states, gated=True)
    assert numbers * 128 >= states * 4096
    assert numbers <= max(0.15 * 4 * 4096, states * 4096 / 128)


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_is_answered_at_once(threads):
    long = np.broadcast_to(np.float32(1), (512, 8192))
    coefficient = np.broadcast_to(np.float32(1), (1, 256, 8192))
    p = dict(u=long, delta=long, A=-np.ones((512, 256), np.float32), B=coefficient, C=coefficient)
    before = fd.get_num_threads()
    fd.set_num_threads(threads)
    try:
        assert seconds_until_answered(lambda: forward(p), delay=0.1) < ALLOWED
    finally:
        fd.set_num_threads(before)
