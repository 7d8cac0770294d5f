"""What the fuzzer calls: for every public name, how a call is drawn and how it is made."""

import copy
import itertools
import json
import math
import pickle
import random
import re

import numpy as np

import fuzz_arguments as fa

INTS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
ACTIVATIONS = (None, "sigmoid", "tanh", "relu", "softplus", "silu", "gelu")
METHODS = ("brentq", "brenth", "ridder", "bisect", "toms748", "newton", "secant", "chandrupatla")


def _least(dtype):
    return 0 if dtype[0] == "u" else -(2 ** (8 * int(dtype[1]) - 1))


class Draw:
    """Random choices for one case; `benign`: finite data, `lawful`: the call must succeed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.kind = self.random.choice(
            fa.BENIGN[:3] * 4 + fa.BENIGN + ("extreme", "some extreme", "huge", "tiny")
        )
        self.precision = self.random.choice(("f4", "f8", "f8", "mixed"))
        self.benign, self.lawful = self.kind in fa.BENIGN, True

    def chance(self, p):
        return self.random.random() < p

    def choice(self, options):
        return self.random.choice(options)

    def size(self, least=0):
        few = (0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 9)
        n = self.choice(few if self.chance(0.85) else (15, 16, 17, 31, 33, 64, 65, 70))
        return max(n, least)

    def sizes(self, count, least=0):
        return [self.size(least) for _ in range(count)]

    def layout(self, ndim, wild=0.5):
        """Where and how an array lies in memory."""
        recipe = {}
        if self.chance(1 - wild):
            return recipe
        if self.chance(0.5):
            recipe["order"] = self.random.sample(range(ndim), ndim)
        if self.chance(0.5):
            recipe["steps"] = [self.choice((1, 1, 2, -1, -2, 3)) for _ in range(ndim)]
        recipe["offset"] = self.choice((0, 0, 0, 1, 4, 8))
        recipe["swapped"], recipe["readonly"] = self.chance(0.1), self.chance(0.15)
        recipe["as"] = self.choice(
            (None, None, None, None, "list", "hostile", "matrix", "array-like")
        )
        return recipe

    def dtype(self):
        if self.chance(0.03):
            return self.choice(INTS)
        return self.choice(("f4", "f8")) if self.precision == "mixed" else self.precision

    def array(self, *shape, kind=None, dtype=None):
        recipe = {
            "shape": list(shape),
            "values": kind or self.kind,
            "seed": self.random.randrange(10**6),
            "dtype": dtype or self.dtype(),
        }
        recipe |= self.layout(len(shape))
        if recipe.get("as") == "list" and (recipe["dtype"] == "f4" or 0 in shape):
            del recipe["as"]  # a list is float64, and an empty one has no shape
        if recipe.get("as") == "matrix" and recipe["dtype"][0] in "iu":
            del recipe["as"]
        return recipe

    def maybe(self, *shape, p=0.5, **options):
        return self.array(*shape, **options) if self.chance(p) else None

    def updated(self, *shape, dtype=None):
        """An argument that the call updates in place."""
        recipe = self.array(*shape, dtype=dtype or self.choice(("f4", "f8")))
        if recipe.get("as") not in (None, "matrix", "hostile"):
            del recipe["as"]
        recipe["readonly"] = False
        return recipe | {"updated": True}

    def out(self, inputs, *shape):
        """None, an array to write to, or one that overlaps an input, which is refused."""
        if self.chance(0.6):
            return None
        if self.chance(0.15):
            self.lawful = False
            return {
                "alias": self.choice(inputs),
                "how": self.choice(("whole", "reversed", "expanded")),
            }
        self.lawful = (
            self.lawful and self.precision != "mixed"
        )  # whose working dtype is not known here
        return self.updated(*shape, dtype={"mixed": "f8"}.get(self.precision, self.precision)) | {
            "swapped": False
        }

    def integers(self, numbers, shape=None):
        """Integers in any dtype that holds them, and in any layout."""
        fits = [d for d in INTS if all(_least(d) <= n < 2 ** (8 * int(d[1]) - 1) for n in numbers)]
        recipe = {"shape": shape or [len(numbers)], "values": numbers, "dtype": self.choice(fits)}
        recipe |= self.layout(1, wild=0.8)
        return recipe

    def pair(self, numbers):
        """Two integers as a sequence or an array."""
        recipe = self.integers(numbers)
        if recipe.get("as") != "list":
            recipe["as"] = None
        return recipe

    def cuts(self, length, parts):
        return [0, *sorted(self.random.randrange(length + 1) for _ in range(parts - 1)), length]

    def number(self):
        return self.choice(
            (
                0.1,
                0.9,
                1.0,
                0.0,
                -0.5,
                1e-3,
                2,
                {"scalar": 0.5, "dtype": "f4"},
                {"scalar": 0.25, "dtype": "f8"},
            )
        )

    def callback(self):
        if self.chance(0.7):
            return {"callback": self.choice(fa.GENTLE)}
        self.lawful = False
        return {"callback": self.choice(fa.ROUGH)}

    def progress(self):
        if self.chance(0.02):
            self.lawful = False
            return {"callback": "raise"}
        return {"callback": "sin"} if self.chance(0.2) else None

    def activation(self):
        if self.chance(0.7):
            return self.choice(ACTIVATIONS)
        return {"tuple": [self.callback(), self.callback()]}

    def network(self, n_in=None, n_out=None):
        hidden = [self.choice((1, 2, 3, 4, 6)) for _ in range(self.choice((1, 1, 1, 2)))]
        kind = self.kind if self.benign or self.kind in ("huge", "tiny") else "normal"
        return {
            "net": [n_in or self.choice((1, 2, 2, 3)), *hidden, n_out or self.choice((1, 2, 2, 3))],
            "values": kind,
            "seed": self.random.randrange(10**6),
            "scale": self.choice((1.0, 3.0, 30.0)),
        }

    def bounds(self):
        return self.choice(
            (
                [-4.0, 4.0],
                [-50, 50],
                {"tuple": [-float("inf"), float("inf")]},
                [0.0, 1e-3],
                [-1e300, 1e300],
            )
        )

    def vast(self, recipe, axis):
        """The argument and its axis so large that no machine holds what is made of it."""
        recipe["shape"] = [*recipe["shape"]]
        recipe["shape"][axis] = 2 ** self.choice((40, 46, 58)) // math.prod(
            n for k, n in enumerate(recipe["shape"]) if k != axis
        )
        recipe["vast"], self.lawful = True, False


# ---- selective scans -----------------------------------------------------------------------------


def scan_parts(d):
    Bt, D, L, N = *d.sizes(2), d.size() if d.chance(0.9) else 300, d.size()
    batched = d.chance(0.7)
    lead = [Bt] if batched else []

    def coefficient():
        G = d.choice([g for g in range(1, D + 1) if D % g == 0] or [1])
        kinds = [[D, N], [*lead, G, N, L]] + ([[Bt, N, L]] if batched else [])
        return d.array(*d.choice(kinds))

    if N and d.chance(0.004) and D and L and (Bt or not batched):
        N = 2 ** d.choice((40, 46, 58)) // max(D * L, 1)
    parts = {
        "u": d.array(*lead, D, L),
        "delta": d.array(*lead, D, L),
        "A": d.array(D, N, kind="negative" if d.benign else None),
        "B": coefficient(),
        "C": coefficient(),
    }
    if N > 1000:
        for name in ("A", "B", "C"):
            parts[name] = {"shape": parts[name]["shape"], "dtype": "f8", "vast": True}
        d.lawful = False
    return parts, lead, D, L, N


def packed(d, case, lead, D, L, N):
    """Several sequences in one, or an initial state of each row of the batch."""
    first = None
    if lead == [1] and d.chance(0.6):
        k = d.choice((1, 2, 3, 5))
        case["cu_seqlens"], first = d.integers(d.cuts(L, k)), [k, D, N]
    elif d.chance(0.4):
        first = [*lead, D, N]
    if first and N < 1000 and d.chance(0.7):
        case["initial_state"] = d.array(*first)
    return first


def selective_scan(d):
    case, lead, D, L, N = scan_parts(d)
    packed(d, case, lead, D, L, N)
    case |= {
        "D": d.maybe(D),
        "z": d.maybe(*lead, D, L),
        "delta_bias": d.maybe(D),
        "delta_softplus": d.chance(0.7),
        "return_last_state": d.chance(0.4),
        "out": d.out(["u", "delta", "A"], *lead, D, L),
    }
    return case


def selective_scan_vjp(d):
    case, lead, D, L, N = scan_parts(d)
    states = packed(d, case, lead, D, L, N) or [*lead, D, N]
    case |= {
        "dout": d.array(*lead, D, L),
        "D": d.maybe(D),
        "z": d.maybe(*lead, D, L),
        "delta_bias": d.maybe(D),
        "delta_softplus": d.chance(0.7),
    }
    if N < 1000:
        case["dlast_state"] = d.maybe(*states)
        if d.chance(0.3):
            case["cached"] = d.choice((True, True, "other"))
            d.lawful = d.lawful and case["cached"] is True
    return case


def ssd_parts(d):
    Bt, L, H, P, N = *d.sizes(1), d.size() if d.chance(0.9) else 300, *d.sizes(3)
    lead = [Bt] if d.chance(0.7) else []
    G = d.choice([g for g in range(1, H + 1) if H % g == 0] or [1])
    parts = {
        "x": d.array(*lead, L, H, P),
        "dt": d.array(*lead, L, H),
        "A": d.array(H, kind="negative" if d.benign else None),
        "B": d.array(*lead, L, G, N),
        "C": d.array(*lead, L, G, N),
        "D": d.maybe(*d.choice(([H], [H, P]))),
        "z": d.maybe(*lead, L, H, P),
        "dt_bias": d.maybe(H),
        "dt_softplus": d.chance(0.7),
    }
    return parts, lead, L, H, P, N


def ssd_scan(d):
    case, lead, L, H, P, N = ssd_parts(d)
    first = None
    if lead == [1] and d.chance(0.6):
        k = d.choice((1, 2, 3, 5))
        case["cu_seqlens"], first = d.integers(d.cuts(L, k)), [k, H, P, N]
    elif d.chance(0.4):
        first = [*lead, H, P, N]
    if first and d.chance(0.7):
        case["initial_state"] = d.array(*first)
    return case | {
        "return_last_state": d.chance(0.4),
        "out": d.out(["x", "dt", "A"], *lead, L, H, P),
    }


def ssd_scan_vjp(d):
    case, lead, L, H, P, N = ssd_parts(d)
    case = {"dout": d.array(*lead, L, H, P)} | case
    if d.chance(0.3):
        case["dt_limit"] = [0.001, 2.0]
    states = [*lead, H, P, N]
    if lead == [1] and d.chance(0.6):
        k = d.choice((1, 2, 3, 5))
        case["cu_seqlens"], states = d.integers(d.cuts(L, k)), [k, H, P, N]
    if d.chance(0.5):
        case["initial_state"] = d.array(*states)
    case["dlast_state"] = d.maybe(*states)
    return case


def selective_state_update(d):
    Bt, D, N = d.sizes(3)
    G = d.choice([g for g in range(1, D + 1) if D % g == 0] or [1])
    case = {
        "state": d.updated(Bt, D, N),
        "x": d.array(Bt, D),
        "dt": d.array(Bt, D),
        "A": d.array(D, N, kind="negative" if d.benign else None),
    }
    for name in ("B", "C"):
        case[name] = d.array(*d.choice(([Bt, N], [Bt, G, N])))
    case |= {
        "D": d.maybe(D),
        "z": d.maybe(Bt, D),
        "dt_bias": d.maybe(D),
        "dt_softplus": d.chance(0.7),
    }
    if d.chance(0.05):
        case["x"], d.lawful = {"alias": "state", "how": "whole"}, False
    return case


def chunk_summary(d):
    case, _lead, D, _L, _N = scan_parts(d)
    del case["C"]
    return case | {"delta_bias": d.maybe(D), "delta_softplus": d.chance(0.7)}


def combine_summaries(d):
    shape = d.sizes(d.choice((2, 3)))
    return {name: {"tuple": [d.array(*shape), d.array(*shape)]} for name in ("first", "second")}


def scan_attention(d):
    case, _lead, D, L, _N = scan_parts(d)
    del case["u"]
    if L and d.chance(0.6):
        case["rows"] = d.integers([d.random.randrange(-L, L) for _ in range(d.size(1))])
    return case | {"delta_bias": d.maybe(D), "delta_softplus": d.chance(0.7)}


# ---- Mamba-2's scan -----------------------------------------------------------------------------


def ssd_signals(d):
    """dt, A, B and C of Mamba-2's scan, and their sizes: lead, L, H, N."""
    lead, (L, H, N) = d.sizes(d.choice((0, 1))), d.sizes(3)
    G = d.choice([g for g in range(1, H + 1) if H % g == 0] or [1])
    case = {
        "dt": d.array(*lead, L, H),
        "A": d.array(H, kind="negative" if d.benign else None),
        "B": d.array(*lead, L, G, N),
        "C": d.array(*lead, L, G, N),
        "dt_bias": d.maybe(H),
        "dt_softplus": d.chance(0.7),
    }
    return case, lead, L, H, N


def ssd_state_update(d):
    Bt, H, P, N = d.sizes(4)
    G = d.choice([g for g in range(1, H + 1) if H % g == 0] or [1])
    case = {
        "state": d.updated(Bt, H, P, N),
        "x": d.array(Bt, H, P),
        "dt": d.array(Bt, H),
        "A": d.array(H, kind="negative" if d.benign else None),
    }
    for name in ("B", "C"):
        case[name] = d.array(*d.choice(([Bt, N], [Bt, 1, N])) if G == 1 else [Bt, G, N])
    case |= {
        "D": d.maybe(*d.choice(([H], [H, P]))),
        "z": d.maybe(Bt, H, P),
        "dt_bias": d.maybe(H),
        "dt_softplus": d.chance(0.7),
    }
    if d.chance(0.05):
        case["x"], d.lawful = {"alias": "state", "how": "whole"}, False
    return case


def ssd_attention(d):
    case, _lead, L, _H, _N = ssd_signals(d)
    if L and d.chance(0.6):
        case["rows"] = d.integers([d.random.randrange(-L, L) for _ in range(d.size(1))])
    return case


def ssd_chunk_summary(d):
    case, lead, L, H, _N = ssd_signals(d)
    del case["C"]
    return case | {"x": d.array(*lead, L, H, d.size())}


def linear_parts(d):
    shape = d.sizes(d.choice((1, 1, 2, 2, 3, 4)))
    axis = d.random.randrange(-len(shape), len(shape))
    state = [n for k, n in enumerate(shape) if k != axis % len(shape)]
    case = {
        "a": d.array(*d.choice(([], state, shape))),
        "b": d.array(*shape),
        "axis": axis,
        "reverse": d.chance(0.4),
        "initial_state": d.maybe(*state),
    }
    if d.chance(0.03):
        case["axis"], d.lawful = d.choice((len(shape), -len(shape) - 1, 10**20, 0.5, None)), False
    return case, shape, state


def linear_scan(d):
    case, shape, _state = linear_parts(d)
    return case | {"return_last_state": d.chance(0.4), "out": d.out(["a", "b"], *shape)}


def linear_scan_vjp(d):
    case, shape, state = linear_parts(d)
    return case | {"dout": d.array(*shape), "dlast_state": d.maybe(*state)}


def transition_product(d):
    lead, D, L, N = d.sizes(d.choice((0, 0, 1))), d.size(), d.size(), d.size()
    method = d.choice(("closed", "subsets"))
    L = min(L, 8) if method == "subsets" else L
    A = d.array(D, N, kind="negative" if d.benign else None)
    return {"preactivation": d.array(*lead, D, L), "A": A, "method": method}


def s6(d):
    E, N, L, Bt = d.size(1), d.size(1), d.size(), d.size()
    lead = [Bt] if d.chance(0.5) else []
    x = [*lead, L, E]
    case = {
        "W_delta": d.array(E, E),
        "b_delta": d.array(E),
        "A": d.array(E, N, kind="negative" if d.benign else None),
        "W_B": d.array(N, E),
        "W_C": d.array(N, E),
        "x": d.array(*x),
        "method": d.choice(("__call__", "vjp", "step_sizes", "transition_product", "attention")),
    }
    if case["method"] in ("__call__", "vjp"):
        case["initial_state"] = d.maybe(*lead, E, N)
    if case["method"] == "vjp":
        case |= {"dy": d.array(*x), "dlast_state": d.maybe(*lead, E, N)}
    if case["method"] == "transition_product":
        case |= {"start": d.choice((None, 0, 1, -2)), "stop": d.choice((None, 2, -1, L))}
    return case


# ---- causal convolutions -------------------------------------------------------------------------


def convolution_parts(d):
    Bt, D, L, K = *d.sizes(2), d.size() if d.chance(0.9) else 300, d.size(1)
    lead = [Bt] if d.chance(0.7) else []
    case = {"x": d.array(*lead, D, L), "weight": d.array(D, K), "bias": d.maybe(D)}
    case["activation"] = d.choice((None, "silu", "swish"))
    if d.chance(0.02):
        case["activation"], d.lawful = d.choice(("relu", 1, "")), False
    states = packed(d, case, lead, D, L, K - 1)
    return case, lead, D, L, states or [*lead, D, K - 1]


def causal_conv1d(d):
    case, lead, D, L, _ = convolution_parts(d)
    case["return_last_state"] = d.chance(0.4)
    return case | {"out": d.out(["x", "weight"], *lead, D, L)}


def causal_conv1d_vjp(d):
    case, lead, D, L, states = convolution_parts(d)
    return case | {"dout": d.array(*lead, D, L), "dlast_state": d.maybe(*states)}


def causal_conv1d_update(d):
    Bt, D, W, S = d.sizes(4)
    K = d.random.randrange(1, W + 2)
    lead = [Bt] if d.chance(0.7) else []
    case = {
        "x": d.array(*lead, D, *([S] if d.chance(0.5) else [])),
        "state": d.updated(*lead, D, W),
        "weight": d.array(D, K),
        "bias": d.maybe(D),
        "activation": d.choice((None, "silu", "swish")),
    }
    if d.chance(0.05):
        case["x"], d.lawful = {"alias": "state", "how": "whole"}, False
    return case


# ---- layers --------------------------------------------------------------------------------------


def dense(d):
    m, i, j = d.sizes(3)
    return {
        "X": d.array(m, i),
        "W": d.array(i, j),
        "b": d.maybe(j),
        "activation": d.activation(),
        "out": d.out(["X", "W"], m, j),
    }


def dense_vjp(d):
    m, i, j = d.sizes(3)
    case = {
        "dY": d.array(m, j),
        "X": d.array(m, i),
        "W": d.array(i, j),
        "b": d.maybe(j),
        "activation": d.activation(),
    }
    if d.chance(0.3):
        case["cached"] = d.choice((True, True, "other"))
        d.lawful = d.lawful and case["cached"] is True
    return case


def lstm(d):
    T, B, D, H = d.size(), d.size(), d.size(), d.size(1)
    lead = [B] if d.chance(0.75) else []
    case = {
        "x": d.array(T, *lead, D),
        "weight_ih": d.array(4 * H, D),
        "weight_hh": d.array(4 * H, H, kind="small" if d.benign else None),
        "bias_ih": d.maybe(4 * H),
        "bias_hh": d.maybe(4 * H),
    }
    if d.chance(0.4):
        case["initial_state"] = {"tuple": [d.array(*lead, H), d.array(*lead, H)]}
    if lead and d.chance(0.4):
        case["lengths"] = d.integers([d.random.randrange(T + 1) for _ in range(B)])
    return case


def lstm_vjp(d):
    case = lstm(d)
    H, lead = case["weight_hh"]["shape"][1], case["x"]["shape"][1:-1]
    case["dh"] = d.array(case["x"]["shape"][0], *lead, H)
    if d.chance(0.4):
        case["dlast_state"] = {"tuple": [d.maybe(*lead, H), d.maybe(*lead, H)]}
    if d.chance(0.3):
        case["cached"] = d.choice((True, True, "other"))
        d.lawful = d.lawful and case["cached"] is True
    return case


def grid_rnn(d):
    G1, G2, D, H = *d.sizes(3), d.size(1)
    lead, kind = [d.size()] if d.chance(0.4) else [], "small" if d.benign else None  # no chaos
    return {
        "x": d.array(*lead, min(G1, 9), min(G2, 9), D),
        "W_in": d.array(H, D),
        "W_west": d.array(H, H, kind=kind),
        "W_north": d.array(H, H, kind=kind),
        "b": d.maybe(H),
        "activation": d.activation(),
    }


def grid_rnn_vjp(d):
    case = grid_rnn(d)
    return case | {"dh": d.array(*case["x"]["shape"][:-1], case["W_in"]["shape"][0])}


# ---- subsets -------------------------------------------------------------------------------------


def subset_sums(d):
    shape = [*d.sizes(d.choice((0, 0, 1))), d.choice((0, 1, 2, 3, 5, 7, 9))]
    if d.chance(0.01):
        shape, d.lawful = [d.choice((40, 60, 63, 70))], False
    return {"x": d.array(*shape), "out": d.out(["x"], *shape[:-1], 2 ** min(shape[-1], 9))}


def iter_subset_sums(d):
    return {
        "x": d.array(d.choice((0, 1, 3, 6, 9))),
        "block": d.choice((1, 3, 64, 65536, 2**62)),
        "progress": d.progress(),
    }


def subset_logsumexp(d):
    shape = [*d.sizes(d.choice((0, 0, 1))), d.choice((0, 1, 2, 3, 5, 7, 9))]
    return {
        "x": d.array(*shape),
        "method": d.choice(("closed", "enumerate")),
        "progress": d.progress(),
    }


# ---- boundaries ----------------------------------------------------------------------------------


def sigmoid_mlp(d):
    widths = [d.choice((1, 2, 3, 7, 17)) for _ in range(d.choice((2, 3, 3, 4)))]
    case = {"method": d.choice(("logits", "forward", "margin", "margin_gradient"))}
    for k, (i, j) in enumerate(itertools.pairwise(widths)):
        case[f"weights{k}"], case[f"biases{k}"] = d.array(i, j), d.array(j)
    case["X"] = d.array(d.size(), widths[0])
    d.lawful = d.lawful and d.benign
    if case["method"].startswith("margin"):
        case["outputs"] = d.choice(([0, 1], {"tuple": [1, 0]}, [0, -1]))
        d.lawful = d.lawful and widths[-1] > 1
    return case


def exponential_sum(d):
    net = d.network()
    net["net"] = [net["net"][0], net["net"][1], net["net"][-1]]
    d.lawful = (
        d.lawful and net["net"][-1] > 1 and net["values"] not in ("zero", "equal", "tiny")
    )  # whose sum is 0
    return {"net": net, "coordinate": 0, "B": d.array(d.size(), net["net"][1])}


def rows(d, case, coordinate=True):
    """x_other and what goes with it."""
    n_in = case["net"]["net"][0]
    d.lawful = d.lawful and d.benign
    case["x_other"] = (
        d.array(d.size(), n_in - 1) if d.chance(0.8) or n_in != 2 else d.array(d.size())
    )
    if coordinate:
        case["coordinate"] = d.random.randrange(-n_in, n_in)
    return case


def outputs(d, case):
    many = case["net"]["net"][-1]
    if many == 1:
        return case  # what it means for a single output changes with the version: left out
    return case | {
        "outputs": d.choice(({"tuple": [0, 1]}, [1, 0], d.pair([0, many - 1]), {"tuple": [-1, 0]}))
    }


def solve_x1(d):
    case = rows(d, outputs(d, {"net": d.network(), "bounds": d.bounds(), "progress": d.progress()}))
    return case | ({"xtol": d.choice((1e-3, 1e-9, 1e-14))} if d.chance(0.3) else {})


def find_x1(d):
    case = rows(d, outputs(d, {"net": d.network(), "method": d.choice(METHODS)}))
    d.lawful = False  # most brackets hold no change of sign
    return case | {
        "bracket": d.choice(([-4.0, 4.0], {"tuple": [-1e6, 1e6]}, [-1, 2], [0.0, float("inf")]))
    }


def decision_intervals(d):
    return rows(d, {"net": d.network(), "bounds": d.bounds()})


def one_point(d, net, name="x"):
    d.lawful = d.lawful and d.benign
    return {"net": net, name: d.array(net["net"][0])}


def counterfactuals(d):
    net = d.network()
    case = outputs(d, one_point(d, net))
    if d.chance(0.4):
        case["features"] = d.integers(
            [d.random.randrange(-net["net"][0], net["net"][0]) for _ in range(d.choice((1, 2, 3)))]
        )
    return case | ({"bounds": d.bounds()} if d.chance(0.5) else {})


def nearest_tie(d):
    return outputs(d, one_point(d, d.network()))


def tie_sensitivity(d):
    d.lawful = False  # a point drawn at random is no tie
    return outputs(d, one_point(d, d.network()))


def trace_boundary(d):
    net = d.network(n_in=d.choice((2, 2, 3)))
    case = outputs(
        d,
        {
            "net": net,
            "bounds": d.choice(
                ([[-3, 3], [-2.0, 2.0]], [[0, 1], [0, 1e-3]], {"tuple": [[-9, 9], [-9, 9]]})
            ),
        },
    )
    if net["net"][0] > 2 or d.chance(0.3):
        case["at"] = d.array(net["net"][0])
        d.lawful = d.lawful and d.benign
    case["coordinates"] = d.choice(({"tuple": [0, 1]}, [1, 0], d.pair([1, 0])))
    return case


def follow_boundary(d):
    d.lawful = False
    net = d.network(n_in=2)
    return outputs(d, one_point(d, net, "start")) | {
        "length": d.choice((0.5, -0.5, 0.0, 3, float("nan"), float("inf")))
    }


# ---- momentum ------------------------------------------------------------------------------------


def momentum_step(d):
    shape, dtype = d.sizes(d.choice((0, 1, 2, 3))), d.choice(("f4", "f8"))
    case = {
        "theta": d.updated(*shape, dtype=dtype),
        "p": d.updated(*shape, dtype=dtype),
        "grad": d.array(*shape),
    }
    if d.chance(0.1):
        case[d.choice(("p", "grad"))], d.lawful = (
            {"alias": "theta", "how": d.choice(("whole", "expanded"))},
            False,
        )
    return case | {"alpha": d.number(), "beta": d.number()}


def momentum_unstep(d):
    case = momentum_step(d)
    del case["grad"]
    d.lawful = d.lawful and case["beta"] != 0
    return case | {"grad_fn": d.callback()}


def momentum_jacobian(d):
    n = d.size()
    return {"hessian": d.array(n, n), "alpha": d.number(), "beta": d.number()}


def reversible_momentum(d):
    shape = d.sizes(d.choice((0, 1, 2)))
    case = {
        "theta": d.array(*shape),
        "alpha": 0.1,
        "beta": d.choice((0.9, 0.5, 0.999, 1e-5, 2.0)),
        "grads": d.choice((0, 1, 3, 20)),
        "grad_fn": d.callback(),
        "tamper": d.choice(
            (None, None, None, "short", "fortran", "dtype", "count", "shape", "stack", "junk")
        ),
    }
    d.lawful = False
    return case


def hypergradient(d):
    d.lawful = False
    return {
        "loss_grad": d.callback(),
        "train_grad": d.callback(),
        "train_hvp": d.callback(),
        "theta": d.array(*d.sizes(d.choice((0, 1)))),
        "n_steps": d.choice((0, 1, 3, {"scalar": 2, "dtype": "u1"})),
        "alpha": 0.1,
        "beta": d.choice((0.9, 0.5)),
    }


# ---- the rest ------------------------------------------------------------------------------------


def set_num_threads(d):
    d.lawful = False
    return {
        "n": d.choice(
            (
                1,
                2,
                3,
                300,
                0,
                -1,
                2**31,
                2**40,
                2**70,
                1.0,
                True,
                "2",
                {"scalar": 2, "dtype": "u8"},
                None,
            )
        )
    }


def get_num_threads(d):
    return {}  # nothing to be wrong about


def indexed(d):
    """A result that is a sequence, indexed, copied and pickled."""
    case = rows(d, {"net": d.network(), "bounds": [-4.0, 4.0]})
    d.lawful = False
    return case | {
        "row": d.choice(
            (0, -1, 1, 10**6, -(10**6), 0.5, None, True, 2**70, {"scalar": 0, "dtype": "u1"})
        )
    }


CALLS = {
    "selective_scan": selective_scan,
    "selective_scan_vjp": selective_scan_vjp,
    "selective_state_update": selective_state_update,
    "ssd_scan_vjp": ssd_scan_vjp,
    "causal_conv1d": causal_conv1d,
    "causal_conv1d_vjp": causal_conv1d_vjp,
    "causal_conv1d_update": causal_conv1d_update,
    "ssd_scan": ssd_scan,
    "chunk_summary": chunk_summary,
    "combine_summaries": combine_summaries,
    "scan_attention": scan_attention,
    "ssd_state_update": ssd_state_update,
    "ssd_attention": ssd_attention,
    "ssd_chunk_summary": ssd_chunk_summary,
    "transition_product": transition_product,
    "linear_scan": linear_scan,
    "linear_scan_vjp": linear_scan_vjp,
    "S6": s6,
    "dense": dense,
    "dense_vjp": dense_vjp,
    "lstm": lstm,
    "lstm_vjp": lstm_vjp,
    "lstm_state_adjoints": lstm_vjp,
    "grid_rnn": grid_rnn,
    "grid_rnn_vjp": grid_rnn_vjp,
    "subset_sums": subset_sums,
    "iter_subset_sums": iter_subset_sums,
    "subset_logsumexp": subset_logsumexp,
    "SigmoidMLP": sigmoid_mlp,
    "ExponentialSum": exponential_sum,
    "solve_x1": solve_x1,
    "find_x1": find_x1,
    "decision_intervals": decision_intervals,
    "counterfactuals": counterfactuals,
    "nearest_tie": nearest_tie,
    "tie_sensitivity": tie_sensitivity,
    "trace_boundary": trace_boundary,
    "follow_boundary": follow_boundary,
    "momentum_step": momentum_step,
    "momentum_unstep": momentum_unstep,
    "momentum_jacobian": momentum_jacobian,
    "ReversibleMomentum": reversible_momentum,
    "hypergradient": hypergradient,
    "set_num_threads": set_num_threads,
    "get_num_threads": get_num_threads,
    "show_config": get_num_threads,
    "Crossings": indexed,
    "DecisionIntervals": indexed,
}

# result types that their functions' cases make, and pickle
MADE = {
    "SelectiveScanGrads": "selective_scan_vjp",
    "SSDScanGrads": "ssd_scan_vjp",
    "CausalConv1dGrads": "causal_conv1d_vjp",
    "ChunkSummary": "chunk_summary",
    "SSDChunkSummary": "ssd_chunk_summary",
    "LinearScanGrads": "linear_scan_vjp",
    "S6Grads": "S6",
    "LSTMGrads": "lstm_vjp",
    "DenseGrads": "dense_vjp",
    "GridRNNGrads": "grid_rnn_vjp",
    "RootResults": "find_x1",
    "BoundaryCurves": "trace_boundary",
    "Counterfactuals": "counterfactuals",
    "NearestTie": "nearest_tie",
    "TieSensitivity": "tie_sensitivity",
    "Hypergradients": "hypergradient",
}

SLOW = {
    "trace_boundary",
    "follow_boundary",
    "nearest_tie",
    "decision_intervals",
    "counterfactuals",
    "DecisionIntervals",
    "find_x1",
}


# ---- how the calls are made ----------------------------------------------------------------------


def call(library, name, arguments):
    """The results of the call, updated arguments included."""
    made = HOW.get(name)
    if made:
        return made(library, name, dict(arguments))
    result = getattr(library, name)(**arguments)
    if name == "iter_subset_sums":
        result = [sums for _, sums in result]
    updated = [
        arguments[a]
        for a in ("theta", "p", "state")
        if a in arguments and name.startswith(("momentum_", "selective_state"))
    ]
    return result, updated


FORWARD = {"dense_vjp": ("dense", "X"), "selective_scan_vjp": ("selective_scan", "u")}


def with_cache(library, name, a):
    """An adjoint, with the cache of its own forward call or of another one's."""
    cached = a.pop("cached", None)
    if cached and library.__name__ == "fastderiv":
        forward = {k: v for k, v in a.items() if k not in ("dY", "dh", "dout", "dlast_state")}
        function, key = FORWARD.get(name, ("lstm", "x"))
        if cached == "other" and name == "selective_scan_vjp":
            forward["delta_softplus"] = forward["delta_softplus"] is not True
        elif cached == "other" and isinstance(forward[key], np.ndarray):
            x = np.asarray(forward[key])
            forward[key] = np.concatenate([x, x[:1]])
        a["cache"] = getattr(library, function)(**forward, return_cache=True)[-1]
    return getattr(library, name)(**a)


def s6_method(library, name, a):
    method = a.pop("method")
    layer = library.S6(*(a.pop(k) for k in ("W_delta", "b_delta", "A", "W_B", "W_C")))
    return getattr(layer, method)(**a)


def mlp_method(library, name, a):
    weights = [v for k, v in a.items() if k.startswith("weights")]
    biases = [v for k, v in a.items() if k.startswith("biases")]
    net = library.SigmoidMLP(weights, biases)
    return getattr(net, a["method"])(a["X"], *([a["outputs"]] if "outputs" in a else []))


def sum_method(library, name, a):
    terms = library.ExponentialSum(a["net"])
    return (
        terms.coefficients,
        terms.frequencies(a["coordinate"]),
        terms.root_bound(a["coordinate"]),
        terms.log_evaluate(a["B"]),
    )


def there_and_back(library, name, a):
    """Steps of `ReversibleMomentum` and back, perhaps with a state that was tampered with."""
    momentum = library.ReversibleMomentum(a["theta"], alpha=a["alpha"], beta=a["beta"])
    first = momentum.theta
    gradient = fa.callback("sin")
    for _ in range(a["grads"]):
        momentum.step(gradient(momentum.theta))
    if a["tamper"]:
        tampered(momentum, a["tamper"]).step(gradient(first))
    momentum = pickle.loads(pickle.dumps(copy.deepcopy(momentum)))
    for _ in range(a["grads"]):
        momentum.unstep(a["grad_fn"] if _ else gradient)
    return momentum.theta, momentum.p


def tampered(momentum, how):
    """A copy of `momentum` made from a state in which one array is not what it should be."""
    state = list(momentum.__getstate__())
    arrays = [i for i, part in enumerate(state) if hasattr(part, "dtype")]
    if how == "short":
        state[arrays[0]] = (
            state[arrays[0]][:, :-8] if state[arrays[0]].size else state[arrays[0]][:1]
        )
    elif how == "fortran":
        state[arrays[0]] = state[arrays[0]].copy(order="F")
    elif how == "dtype":
        state[arrays[0]] = state[arrays[0]].astype("f4")
    elif how == "count":
        state[arrays[-1]] = state[arrays[-1]] + 1000
    elif how == "stack":
        state[-1] = [*state[-1], state[arrays[0]][0, :1].astype("u2")]
    elif how == "shape":
        state[3] = (7, 7)
    else:
        state[-1] = 3
    other = type(momentum).__new__(type(momentum))
    other.__setstate__(tuple(state))
    return other


def threads(library, name, a):
    before = library.get_num_threads()
    try:
        library.set_num_threads(a["n"])
        library.subset_sums([[1.0] * 12] * 64)
    finally:
        library.set_num_threads(before)


def one_row(library, name, a):
    row = a.pop("row")
    result = library.solve_x1(**a) if name == "Crossings" else library.decision_intervals(**a)
    return pickle.loads(pickle.dumps(result))[row]


HOW = {
    "dense_vjp": with_cache,
    "selective_scan_vjp": with_cache,
    "lstm_vjp": with_cache,
    "lstm_state_adjoints": with_cache,
    "S6": s6_method,
    "SigmoidMLP": mlp_method,
    "ExponentialSum": sum_method,
    "ReversibleMomentum": there_and_back,
    "set_num_threads": threads,
    "Crossings": one_row,
    "DecisionIntervals": one_row,
}


# ---- cases ---------------------------------------------------------------------------------------


def draw(name, seed):
    """One case: which function, its recipes, the thread's state, whether it must succeed."""
    d = Draw(f"{name} {seed}")
    recipes = CALLS[name](d)
    if recipes.get("out") and re.search(r'"dtype": "[iu]', json.dumps(recipes)):
        d.lawful = False  # integers are float64, and so is what out must be
    if recipes and d.chance(0.3):
        spoil(d, recipes, name)
    state = {
        "errors": d.choice((None, None, None, "raise", "warn")),
        "rounding": d.choice((None,) * 7 + ("up", "down", "zero")),
        "flush": d.chance(0.1),
        "threads": d.choice((1, 2, 2, 3)),
    }
    if (
        "callback" in str(recipes) or name == "ReversibleMomentum"
    ):  # which compute in the caller's state
        state |= {"rounding": None, "flush": False}
    if recipes.get("cached") and (
        d.precision == "mixed" or re.search(r'"dtype": "[iu]', json.dumps(recipes))
    ):
        d.lawful = False  # the adjoint may bring another working dtype
    return {
        "function": name,
        "arguments": recipes,
        "state": state,
        "lawful": d.lawful,
        "benign": d.benign,
    }


OURS = {
    "method",
    "tamper",
    "cached",
    "grads",
}  # what says how the call is made, and is no argument of it


SUMS = {
    "transition_product",
    "chunk_summary",
    "ssd_chunk_summary",
    "subset_logsumexp",
}  # whose results are small whatever the length: a vast one takes hours, no memory


def spoil(d, recipes, function):
    """Make one argument something else."""
    name, d.lawful = d.choice(sorted(recipes.keys() - OURS or recipes)), False
    recipe = recipes[name]
    arrays = isinstance(recipe, dict) and {"shape", "values"} <= recipe.keys()
    how = (
        d.choice(("junk", "shape", "ndim", "masked", "list", "integers", "vast"))
        if arrays
        else "junk"
    )
    if how == "shape" and recipe["shape"] and not isinstance(recipe["values"], list):
        axis = d.random.randrange(len(recipe["shape"]))
        recipe["shape"][axis] = max(0, recipe["shape"][axis] + d.choice((-1, 1, 3)))
    elif how == "ndim" and not isinstance(recipe["values"], list):
        recipe["shape"] = d.choice(
            (
                recipe["shape"] + [1],
                [1] + recipe["shape"],
                recipe["shape"][1:],
                recipe["shape"][:-1],
            )
        )
        recipe.pop("order", None), recipe.pop("steps", None)
    elif how in ("masked", "list"):
        recipe["as"] = how
    elif how == "integers" and isinstance(recipe["values"], list) and recipe["values"]:
        recipe["dtype"] = d.choice(("i8", "f8", "i2"))
        recipe["values"][d.random.randrange(len(recipe["values"]))] = d.choice(
            (-1, -1000, 10**4, 70)
        )
    elif (
        how == "vast"
        and function not in SUMS
        and d.chance(0.2)
        and 0 not in recipe["shape"]
        and recipe["shape"]
    ):
        d.vast(recipe, d.random.randrange(len(recipe["shape"])))
    else:
        kind = d.choice(sorted(fa.JUNK))
        recipes[name] = {
            "junk": "int" if (name, kind) == ("n_steps", "huge int") else kind
        }  # so many steps take so long
