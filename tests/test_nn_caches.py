"""Caches belong to one call, cannot be changed, and have checksums that tell arguments apart."""

import copy
import gc
import itertools
import pickle

import numpy as np
import pytest

import fastderiv as fd
from fastderiv import reference
from fastderiv._core.cache import Cache, checksums, keep
from helpers.awkward import layouts, same_bits
from helpers.layers import flat
from helpers.machines import by_threads

RNG = np.random.default_rng(0)
DENSE = {"X": RNG.normal(size=(6, 4)), "W": RNG.normal(size=(4, 3)), "b": RNG.normal(size=3)}
LSTM = {
    "x": RNG.normal(size=(5, 3, 4)),
    "weight_ih": RNG.normal(size=(20, 4)),
    "weight_hh": RNG.normal(size=(20, 5)) / 2,
    "bias_ih": RNG.normal(size=20),
    "bias_hh": RNG.normal(size=20),
    "initial_state[0]": RNG.normal(size=(3, 5)),
    "initial_state[1]": RNG.normal(size=(3, 5)),
}
DY, DH = RNG.normal(size=(6, 3)), RNG.normal(size=(5, 3, 5))


def dense(room, cache, *, activation="tanh", X, W, b):
    return room.dense_vjp(DY, X, W, b, activation=activation, cache=cache)


def dense_cache(room, a, activation="tanh"):
    return room.dense(a["X"], a["W"], a["b"], activation=activation, return_cache=True)[1]


def split(a):
    first = a["initial_state[0]"], a["initial_state[1]"]
    return [a[k] for k in list(LSTM)[:5]], None if first[0] is None else first


def lstm(room, cache, lengths=None, function="lstm_vjp", **a):
    arguments, first = split(a)
    return getattr(room, function)(
        DH, *arguments, initial_state=first, lengths=lengths, cache=cache
    )


def lstm_cache(room, a, lengths=None):
    arguments, first = split(a)
    return room.lstm(*arguments, initial_state=first, lengths=lengths, return_cache=True)[2]


def changes(array):
    """The array changed in one bit, in all signs, by an exchange of rows, and in its ends."""
    last = array.copy()
    last.view(np.uint64).flat[-1] ^= 1
    yield last
    yield -array
    yield array[::-1].copy()
    swapped = array.copy()
    swapped.flat[[0, -1]] = array.flat[[-1, 0]]
    yield swapped
    yield np.zeros_like(array)


@pytest.mark.parametrize("activation", [None, "tanh", "relu", (np.sin, np.cos)])
@pytest.mark.parametrize("name", DENSE)
def test_a_dense_cache_is_refused_with_any_other_argument(name, activation):
    cache = dense_cache(fd, DENSE, activation)
    for other in changes(DENSE[name]):
        with pytest.raises(ValueError, match=f"^cache is of a call with another {name}$"):
            dense(fd, cache, activation=activation, **{**DENSE, name: other})
    if name == "b":
        with pytest.raises(ValueError, match=r"^cache is of a call with another b$"):
            dense(fd, cache, activation=activation, **{**DENSE, "b": None})


@pytest.mark.parametrize("function", ["lstm_vjp", "lstm_state_adjoints"])
@pytest.mark.parametrize("name", LSTM)
def test_an_lstm_cache_is_refused_with_any_other_argument(name, function):
    cache = lstm_cache(fd, LSTM)
    for other in changes(LSTM[name]):
        with pytest.raises(
            ValueError,
            match=f"^cache is of a call with another {name}$".replace("[", r"\[").replace(
                "]", r"\]"
            ),
        ):
            lstm(fd, cache, function=function, **{**LSTM, name: other})
    without = {
        **LSTM,
        **(
            {name: None}
            if name.startswith("bias")
            else {"initial_state[0]": None, "initial_state[1]": None}
        ),
    }
    if name[:4] in ("bias", "init"):
        with pytest.raises(ValueError, match=r"^cache is of a call with another "):
            lstm(fd, cache, function=function, **without)


def test_arguments_changed_in_place_are_other_arguments():
    """The weights are updated between the layer and its adjoint, as training loops may do."""
    a = {k: v.copy() for k, v in DENSE.items()}
    cache = dense_cache(fd, a)
    a["W"] -= 1e-3
    with pytest.raises(ValueError, match="cache is of a call with another W"):
        dense(fd, cache, **a)


def test_references_caches_are_of_one_call_too():
    for name, array in DENSE.items():
        with pytest.raises(ValueError, match="cache is of another call"):
            dense(reference, dense_cache(reference, DENSE), **{**DENSE, name: 2 * array})
    for name, array in LSTM.items():
        with pytest.raises(ValueError, match="cache is of another call"):
            lstm(reference, lstm_cache(reference, LSTM), **{**LSTM, name: 2 * array})
    with pytest.raises(ValueError, match="cache is of another call"):
        lstm(reference, lstm_cache(reference, LSTM), lengths=[1, 2, 3], **LSTM)


def test_the_same_numbers_in_any_layout_are_the_same_arguments():
    expected = dense(fd, None, **DENSE)
    cache = dense_cache(fd, DENSE)
    for name, given in DENSE.items():
        for label, array in layouts(given):
            assert all(map(same_bits, dense(fd, cache, **{**DENSE, name: array}), expected)), label
    expected, cache = flat(lstm(fd, None, **LSTM)), lstm_cache(fd, LSTM)
    for name, given in LSTM.items():
        for label, array in layouts(given):
            assert all(map(same_bits, flat(lstm(fd, cache, **{**LSTM, name: array})), expected)), (
                label
            )


def test_what_lies_behind_a_sequences_end_belongs_to_no_call():
    """What lies behind a sequence's end is never read, so that it may differ or be NaN."""
    lengths, x = [2, 5, 3], LSTM["x"].copy()
    cache = lstm_cache(fd, LSTM, lengths)
    expected = flat(lstm(fd, None, lengths, **LSTM))
    x[2:, 0], x[3:, 2] = np.nan, 7
    assert all(map(same_bits, flat(lstm(fd, cache, lengths, **{**LSTM, "x": x})), expected))
    x[1, 0, 0] += 1
    with pytest.raises(ValueError, match="cache is of a call with another x"):
        lstm(fd, cache, lengths, **{**LSTM, "x": x})
    with pytest.raises(ValueError, match="cache is of a call with other lengths"):
        lstm(fd, cache, [2, 4, 3], **LSTM)
    with pytest.raises(ValueError, match="cache is of a call with other lengths"):
        lstm(fd, cache, [5, 2, 3], **LSTM)


def test_nobody_reaches_into_a_cache():
    cache = lstm_cache(fd, LSTM)
    kind = type(cache)
    assert (
        kind is Cache
        and gc.get_referents(cache) == []
        and not hasattr(cache, "__dict__")
        and repr(cache) == "<cache of lstm>"
    )
    assert copy.copy(cache) is cache and copy.deepcopy({"a": cache})["a"] is cache
    for attribute in "gates", "cells", "arrays", "call", "checksums", "function", "anything":
        for attempt in (setattr, object.__setattr__):
            with pytest.raises(AttributeError):
                attempt(cache, attribute, None)
        assert not hasattr(cache, attribute)
    for attempt in (
        lambda: pickle.dumps(cache),
        kind,
        lambda: kind("lstm", (), (), ()),
        lambda: type("Own", (kind,), {}),
        lambda: setattr(kind, "gates", 1),
        lambda: setattr(cache, "__class__", object),
    ):
        with pytest.raises(TypeError):
            attempt()
    with pytest.raises(
        TypeError, match=r"cache is one of None; expected what lstm\(…, return_cache=True\) returns"
    ):
        lstm(fd, kind.__new__(kind), **LSTM)
    with pytest.raises(
        TypeError,
        match=r"cache is one of dense; expected what lstm\(…, return_cache=True\) returns",
    ):
        lstm(fd, dense_cache(fd, DENSE), **LSTM)
    with pytest.raises(
        TypeError,
        match=r"cache is one of lstm; expected what dense\(…, return_cache=True\) returns",
    ):
        dense(fd, cache, **DENSE)


def test_what_a_cache_holds_is_compared_to_the_call_before_it_is_read():
    """This holds even for a cache of which every number is forged."""
    arguments, first = split(LSTM)
    sizes = np.dtype(np.float64), 5, 3, 5
    ends = np.arange(3), np.full(3, 5)
    operands = (*arguments, *first)
    for gates, cells in (
        (np.zeros(8), np.zeros(8)),
        (np.zeros((2, 8)), None),
        (np.zeros(480, np.float32), np.zeros(120, np.float32)),
    ):
        with pytest.raises(ValueError, match="arrays of the wrong type, rank or size"):
            lstm(fd, keep("lstm", (sizes, False, *ends), operands, (gates, cells)), **LSTM)
    forged = keep(
        "dense", ((np.dtype(np.float64), 6, 4, 3), 2), tuple(DENSE.values()), (np.zeros((2, 3)),)
    )
    with pytest.raises(ValueError, match="arrays of the wrong type, rank or size"):
        dense(fd, forged, **DENSE)


# ---- checksums -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, 7, 8, 9, 63, 64, 65, 1000, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 5]
)
def test_every_bit_counts(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    (whole,) = checksums((data,))
    assert checksums((data.copy(),)) == (whole,) and 0 <= whole < 2**64
    assert checksums((np.concatenate([data, [0]]).astype(np.uint8),)) != (whole,)
    for at in {0, size // 3, size // 2, max(0, size - 9), size - 1} if size else ():
        for bit in range(8):
            data[at] ^= 1 << bit
            assert checksums((data,)) != (whole,)
            data[at] ^= 1 << bit


def test_changes_that_might_cancel_do_not():
    """Every structured change gives another checksum.

    The changes are the signs of all numbers and of two that meet in one sum, equal changes of two
    such numbers, exchanges and permutations.
    """
    base = np.random.default_rng(0).normal(size=4096)
    seen = set(
        checksums(
            (
                base,
                -base,
                base[::-1].copy(),
                np.roll(base, 1),
                np.roll(base, 8),
                np.zeros(4096),
                -np.zeros(4096),
            )
        )
    )
    for step in range(1, 200):
        for change in (-1.0, 2.0):
            other = base.copy()
            other[[5, 5 + step]] *= change
            seen.update(checksums((other,)))
        other[[5, 5 + step]] = base[[5 + step, 5]]
        seen.update(checksums((other,)))
    zeros = [np.zeros(n) for n in range(300)]
    seen.update(checksums(tuple(zeros[1:])))
    assert len(seen) == 7 + 3 * 199 + 299


def test_small_integers_have_checksums_of_their_own():
    """As float32, they differ only in a few bits, at the same places of every word."""
    some = np.array(list(itertools.product(range(-2, 3), repeat=4)), np.float32)
    assert len(set(checksums(tuple(some)))) == len(some)


def test_changes_of_two_bits_do_not_cancel():
    for word in (np.float64, np.uint64):
        base = (
            np.random.default_rng(0).normal(size=8).view(word)
            if word is np.float64
            else np.zeros(8, word)
        )
        seen, bits = [], 64 * 4
        for i, j in itertools.combinations(range(bits), 2):
            other = base.copy().view(np.uint64)
            for k in (i, j):
                other[k // 64] ^= np.uint64(1 << k % 64)
            seen += checksums((other,))
        assert len(set(seen)) == bits * (bits - 1) // 2


def test_checksums_do_not_depend_on_threads_and_take_contiguous_arrays():
    data = np.random.default_rng(1).normal(size=2**20)
    assert len(set(by_threads(lambda: checksums((data, None))[0], 1, 2, 5))) == 1
    assert checksums((None, data))[0] is None
    with pytest.raises(ValueError, match="contiguous"):
        checksums((data[::2],))
