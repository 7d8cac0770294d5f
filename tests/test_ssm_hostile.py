"""What no caller means, and some pass: sizes no memory holds, foreign arrays, results on top of
themselves, arrays that change meanwhile; for every function of the rooms `ssm` and `subsets`.
"""

import threading

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastderiv as fd
from fastderiv._core import arrays
from fastderiv._core.dispatch import kernels
from fastderiv.ssm import _sequences
from helpers.awkward import layouts, same_bits, snapshot

RNG = np.random.default_rng(11)


def normal(*shape):
    return RNG.normal(size=shape)


def full(value, *shape):
    """An array of one number, of any size that NumPy can address."""
    return np.broadcast_to(value, shape)


# ---- every function, and every array argument of it -------------------------------------------

U, DELTA, Z, DOUT, H0 = (*(normal(1, 4, 6) for _ in "udzo"), normal(2, 4, 3))
A, B, C, D, BIAS = -np.exp(normal(4, 3)), normal(1, 3, 6), normal(1, 2, 3, 6), normal(4), normal(4)
SCAN = dict(u=U, delta=DELTA, A=A, B=B, C=C, D=D, z=Z, delta_bias=BIAS, initial_state=H0,
            cu_seqlens=np.array([0, 2, 6]))  # fmt: skip
STEP = dict(x=normal(2, 4), dt=normal(2, 4), A=A, B=normal(2, 3), C=normal(2, 2, 3), D=D,
            z=normal(2, 4), dt_bias=BIAS)  # fmt: skip
HEADS, GROUPS = normal(1, 6, 4, 3), normal(1, 6, 2, 5)
SSD = dict(x=HEADS, dt=normal(1, 6, 4), A=D, B=GROUPS, C=GROUPS, D=normal(4, 3), z=HEADS,
           dt_bias=BIAS, initial_state=normal(2, 4, 3, 5),
           cu_seqlens=np.array([0, 2, 6]))  # fmt: skip
SQUARE, STATES = normal(4, 4), normal(3, 4)
LAYER = fd.S6(SQUARE, D, A, STATES, STATES)
X, X0 = normal(5, 4), normal(4, 3)


def scan(**arguments):
    return fd.selective_scan(**arguments, return_last_state=True)


def mamba2(**arguments):
    return fd.ssd_scan(**arguments, return_last_state=True)


def update(state, **arguments):
    out = fd.selective_state_update(state, **arguments)
    return out, np.array(np.asarray(state))


def combine(P1, q1, P2, q2):
    return fd.combine_summaries((P1, q1), (P2, q2))


def layer_of(**weights):
    return fd.S6(**weights)(X)


CALLS = {
    "selective_scan": (scan, SCAN),
    "selective_scan_vjp": (fd.selective_scan_vjp, dict(dout=DOUT, **SCAN, dlast_state=H0)),
    "selective_state_update": (update, STEP),
    "ssd_scan": (mamba2, SSD),
    "chunk_summary": (fd.chunk_summary, dict(u=U, delta=DELTA, A=A, B=B, delta_bias=BIAS)),
    "combine_summaries": (combine, dict(P1=X, q1=X, P2=X, q2=X)),
    "scan_attention": (
        fd.scan_attention,
        dict(delta=DELTA, A=A, B=B, C=C, delta_bias=BIAS, rows=np.array([1, -1])),
    ),
    "transition_product": (fd.transition_product, dict(preactivation=DELTA, A=A)),
    "S6": (layer_of, dict(W_delta=SQUARE, b_delta=D, A=A, W_B=STATES, W_C=STATES)),
    "S6.__call__": (LAYER, dict(x=X, initial_state=X0)),
    "S6.vjp": (LAYER.vjp, dict(dy=X, x=X, initial_state=X0, dlast_state=X0)),
    "S6.step_sizes": (LAYER.step_sizes, dict(x=X)),
    "S6.attention": (LAYER.attention, dict(x=X)),
    "S6.transition_product": (lambda x: LAYER.transition_product(x, 1, 4), dict(x=X)),
    "subset_sums": (fd.subset_sums, dict(x=X)),
    "iter_subset_sums": (lambda x: list(fd.iter_subset_sums(x)), dict(x=D)),
    "subset_logsumexp": (fd.subset_logsumexp, dict(x=X)),
    "subset_logsumexp enumerated": (
        lambda x: fd.subset_logsumexp(x, method="enumerate"),
        dict(x=X),
    ),
}
ARGUMENTS = [(name, argument) for name, (_, given) in CALLS.items() for argument in given]


def called(name, **changed):
    call, given = CALLS[name]
    if name == "selective_state_update":
        changed = {"state": H0.copy(), **changed}
    return flat(call(**{**given, **changed}))


def flat(result):
    if isinstance(result, (tuple, list)):
        return [leaf for item in result for leaf in flat(item)]
    return [result]


def assert_same(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert type(a) is type(b)
        assert a is None or same_bits(a, b)


KEPT = {"__class__", "__new__", "__init__", "__getattribute__", "__setattr__", "__doc__",
        "__array_finalize__"}  # fmt: skip


def refused(name):
    def never(*_, **__):
        raise AssertionError(f"{name} of a subclass was called")

    return property(never)


Hostile = type(
    "Hostile", (np.ndarray,), {name: refused(name) for name in dir(np.ndarray) if name not in KEPT}
)


class Own(np.ndarray):
    """Answers every question about parts of it with something else."""

    def __getitem__(self, _):
        return np.zeros(1)

    def reshape(self, *_, **__):
        return np.zeros(1)

    swapaxes = transpose = astype = copy = view = reshape


def hostile(array):
    return np.ndarray.__new__(Hostile, array.shape, array.dtype, array, 0, array.strides)


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_subclasses_are_taken_as_the_arrays_they_are(name, argument):
    expected, given = called(name), CALLS[name][1][argument]
    for other in (hostile(given.copy()), given.view(Own), *as_matrix(given)):
        assert_same(called(name, **{argument: other}), expected)


def as_matrix(array):
    return [array.view(np.matrix)] if array.ndim == 2 else []


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_masked_arrays_are_refused(name, argument):
    shown = {"P1": "first", "q1": "first", "P2": "second", "q2": "second"}.get(argument, argument)
    masked = np.ma.masked_array(CALLS[name][1][argument], mask=False)
    with pytest.raises(TypeError, match=f"^{shown} is a masked array, whose mask would be ignored"):
        called(name, **{argument: masked})


def test_a_pair_that_is_one_masked_array_is_refused():
    pair = np.ma.masked_array(np.ones((2, 3)), mask=False)
    with pytest.raises(TypeError, match=r"^second is a masked array"):
        fd.combine_summaries(np.ones((2, 3)), pair)


@pytest.mark.parametrize("out", [hostile, lambda a: a.view(Own)])
def test_out_and_state_of_a_subclass_are_written_as_arrays(out):
    y = fd.selective_scan(**SCAN)
    given = out(np.empty_like(y))
    assert fd.selective_scan(**SCAN, out=given) is given and same_bits(np.asarray(given), y)
    sums = fd.subset_sums(X)
    given = out(np.empty_like(sums))
    assert fd.subset_sums(X, out=given) is given and same_bits(np.asarray(given), sums)
    expected = called("selective_state_update")
    assert_same(called("selective_state_update", state=out(H0.copy())), expected)
    unbatched = fd.selective_scan(
        **{**SCAN, "u": U[0], "delta": DELTA[0], "B": B, "C": C[0], "z": Z[0]}
    )
    given = out(
        np.empty_like(unbatched)
    )  # the batch axis that kernels want is added to a base view
    fd.selective_scan(
        **{**SCAN, "u": U[0], "delta": DELTA[0], "B": B, "C": C[0], "z": Z[0]}, out=given
    )
    assert same_bits(np.asarray(given), unbatched)


def test_masked_out_and_state_are_refused():
    with pytest.raises(TypeError, match=r"^out is a masked array"):
        fd.selective_scan(**SCAN, out=np.ma.zeros((1, 4, 6)))
    with pytest.raises(TypeError, match=r"^out is a masked array"):
        fd.subset_sums(D, out=np.ma.zeros(16))
    with pytest.raises(TypeError, match=r"^state is a masked array"):
        fd.selective_state_update(np.ma.array(H0), **STEP)


SELF = [(24, 6, 0), (0, 0, 1), (1, 1, 3), (0, 2, 1), (0, -1, 3)]  # strides in elements


@pytest.mark.parametrize("strides", SELF)
def test_results_on_top_of_themselves_are_refused(strides):
    memory = np.zeros(64)

    def view(*shape):
        return as_strided(memory[32:], shape, [8 * s for s in strides[-len(shape) :]])

    with pytest.raises(ValueError, match=r"^out shares memory with itself"):
        fd.selective_scan(**SCAN, out=view(1, 4, 6))
    with pytest.raises(ValueError, match=r"^out shares memory with itself"):
        fd.subset_sums(normal(4, 3), out=view(4, 8))
    x, b = normal(1, 4), normal(1, 6)
    with pytest.raises(ValueError, match=r"^state shares memory with itself"):
        fd.selective_state_update(view(1, 4, 6), x, x, normal(4, 6), b, b)
    assert not memory.any()


def test_results_whose_axes_interleave_are_written():
    memory = np.zeros(64)
    out = as_strided(memory, (1, 4, 6), (0, 8, 32))  # element (i, j) lies at i + 4 j
    assert fd.selective_scan(**SCAN, out=out) is out
    assert same_bits(np.ascontiguousarray(out), fd.selective_scan(**SCAN))


class Raises:
    def __init__(self, error):
        self.error = error

    def __array__(self, *_, **__):
        raise self.error


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_errors_name_the_argument(name, argument):
    shown = {"P1": "first", "q1": "first", "P2": "second", "q2": "second"}.get(argument, argument)
    ragged = [[1.0], [2.0, 3.0]]
    for bad in (
        "text",
        ["a", "b"],
        b"bytes",
        object(),
        {1: 2},
        {1.0},
        ragged,
        [None],
        1j,
        np.zeros(3, "M8[s]"),
        Raises(RuntimeError("no")),
        Raises(KeyError("no")),
        Raises(TypeError("two\nlines")),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^{shown}\b") as raised:
            called(name, **{argument: bad})
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_errors_of_tensors_name_the_argument(name, argument):
    torch = pytest.importorskip("torch")
    given = torch.from_numpy(CALLS[name][1][argument])
    assert_same(called(name, **{argument: given}), called(name))
    if given.dtype.is_floating_point:
        shown = {"P1": "first", "q1": "first", "P2": "second", "q2": "second"}.get(
            argument, argument
        )
        for bad in (
            torch.nn.Parameter(given),
            given.to(torch.bfloat16),
            given.to_sparse(),
            given.to("meta"),
        ):
            with pytest.raises((TypeError, ValueError), match=rf"^{shown}\b"):
                called(name, **{argument: bad})


def test_out_and_state_that_are_no_arrays():
    for bad in ("text", [0.0], None, object(), 3.0):
        if bad is not None:
            with pytest.raises(TypeError, match=r"^out is a \w+; expected a NumPy array"):
                fd.selective_scan(**SCAN, out=bad)
        with pytest.raises(TypeError, match=r"^state is a \w+; expected a NumPy array"):
            fd.selective_state_update(bad, **STEP)


# ---- integers ---------------------------------------------------------------------------------

KINDS = [np.int8, np.int16, np.int64, np.uint8, np.uint64, ">i4"]


@pytest.mark.parametrize("dtype", KINDS)
def test_integers_in_every_layout(dtype):
    bounds, rows = np.array([0, 2, 2, 5, 6], dtype), np.array([1, 3, 5, 0], dtype)
    state = normal(4, 4, 3)
    arguments = {**SCAN, "initial_state": state, "cu_seqlens": bounds.tolist()}
    expected = [scan(**arguments), fd.selective_scan_vjp(DOUT, **arguments, dlast_state=state)]
    attention = fd.scan_attention(DELTA, A, B, C, rows=rows.tolist())
    for _, view in layouts(bounds):
        arguments["cu_seqlens"] = view
        got = [scan(**arguments), fd.selective_scan_vjp(DOUT, **arguments, dlast_state=state)]
        assert_same(flat(got), flat(expected))
    for _, view in layouts(rows):
        assert same_bits(fd.scan_attention(DELTA, A, B, C, rows=view), attention)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
def test_integers_are_private(dtype, piece, monkeypatch):
    monkeypatch.setattr(arrays, "_PIECE", piece)
    given = np.arange(24, dtype=dtype).reshape(2, 3, 4)[::-1, :, ::2]
    own = arrays.integers("rows", given)
    assert same_bits(own, given.astype(np.intp)) and own.flags.c_contiguous and own.flags.owndata
    before = snapshot(given)
    own[...] = -1
    assert snapshot(given) == before


def test_boundaries_that_another_thread_changes_meanwhile():
    """The kernel's are those that were checked: no result is torn, and no memory is touched."""
    u, A = full(1.0, 1, 200_000), -np.ones((1, 2))
    bounds = np.arange(0, 200_001, 100_000)
    expected = fd.selective_scan(u, u, A, A, A, cu_seqlens=bounds)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            bounds[1] = 10**12
            bounds[1] = 100_000

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(20):
            try:
                assert same_bits(fd.selective_scan(u, u, A, A, A, cu_seqlens=bounds), expected)
            except ValueError as error:
                assert "non-decreasing" in str(error)
    finally:
        stop.set()
        thread.join()


def test_boundaries_are_checked_across_pieces(monkeypatch):
    bounds, state = np.array([0, 1, 1, 3, 3, 6]), normal(5, 4, 3)
    arguments = {**SCAN, "initial_state": state, "cu_seqlens": bounds}
    expected = fd.selective_scan_vjp(DOUT, **arguments)
    for look in 1, 2, 3:
        monkeypatch.setattr(_sequences, "_LOOK", look)
        assert_same(list(fd.selective_scan_vjp(DOUT, **arguments)), list(expected))
        for bad in ([0, 1, 3, 2, 6], [0, 3, 2, 6], [0, 6, 5], [1, 6], [0, 5], [0, -1, 6]):
            with pytest.raises(ValueError, match=r"cu_seqlens is .*non-decreasing"):
                fd.selective_scan(**{**arguments, "initial_state": None, "cu_seqlens": bad})


# ---- sizes ------------------------------------------------------------------------------------

ONE, NONE = np.ones((1, 2)), np.ones((1, 4))
LINE = fd.S6(*(np.ones(shape) for shape in ((1, 1), (1,), (1, 2), (2, 1), (2, 1))))


def states(N, function, varying=False):
    """A call with N states, of a vector of channels through a few steps."""
    a, b = full(-1.0, 1, N), full(1.0, 1, N, 4) if varying else full(1.0, 1, N)
    return lambda: function(NONE, NONE, a, b, b)


def attention(u, delta, A, B, C):
    return fd.scan_attention(delta, A, B, C)


def summary(u, delta, A, B, C):
    return fd.chunk_summary(u, delta, A, B)


def gradient(u, *rest):
    return fd.selective_scan_vjp(u, u, *rest)


def packed(k, function=fd.selective_scan, dtype=np.int64):
    empty, bounds = np.zeros((1, 0)), full(dtype(0), k)
    return lambda: function(empty, empty, ONE, ONE, ONE, cu_seqlens=bounds)


def long(L, function):
    u = full(1.0, 1, L)
    return lambda: function(u, u, -ONE, ONE, ONE)


def wide(D, N, L, function, **options):
    u, a = full(1.0, D, L), full(-1.0, D, N)
    return lambda: function(u, u, a, a, a, **options)


def step(D, N):
    state, x, b = np.empty((D, N)), full(1.0, D), full(1.0, N)
    return lambda: fd.selective_state_update(state, x, x, full(1.0, D, N), b, b)


LARGE = {
    **{
        f"{f.__name__} N = 2**{n} {v}": states(2**n, f, v)
        for n in (50, 56, 58, 59)
        for v in (False, True)
        for f in (fd.selective_scan, gradient, attention, summary)
        if not (v and n > 57)
    },
    "float32": lambda: fd.selective_scan(
        *(a.astype(np.float32) for a in (NONE, NONE)), *[full(np.float32(-1), 1, 2**60)] * 3
    ),
    "float32 gradient": lambda: gradient(
        *(a.astype(np.float32) for a in (NONE, NONE)), *[full(np.float32(-1), 1, 2**60)] * 3
    ),
    **{f"{f.__name__} L": long(2**59, f) for f in (fd.selective_scan, gradient, attention)},
    "attention rows": lambda: fd.scan_attention(NONE, -ONE, ONE, ONE, rows=full(1, 2**59)),
    "attention small rows": lambda: fd.scan_attention(
        NONE, -ONE, ONE, ONE, rows=full(np.int8(1), 2**62)
    ),
    "attention no channels": lambda: fd.scan_attention(full(1.0, 0, 2**58), *[full(1.0, 0, 2)] * 3),
    "sequences": packed(2**60 - 1),
    "sequences gradient": packed(
        2**60 - 1, gradient_packed := lambda u, *rest, **k: fd.selective_scan_vjp(u, u, *rest, **k)
    ),
    "small sequences": packed(2**62, dtype=np.int8),
    "empty sequences of many channels": wide(
        2**58, 0, 0, fd.selective_scan, return_last_state=True, cu_seqlens=full(0, 100)
    ),
    "channels": wide(2**58, 2, 1, fd.selective_scan),
    "channels without steps": wide(2**58, 2, 0, fd.selective_scan, return_last_state=True),
    "channels gradient": wide(2**58, 2, 0, gradient),
    "channels without states gradient": wide(2**58, 0, 0, gradient),
    "channels summary": wide(2**57, 0, 4, summary),
    "channels without steps summary": wide(2**58, 1, 0, summary),
    "step of no states": step(2**59, 0),
    "product of states": lambda: fd.transition_product(ONE, full(-1.0, 1, 2**59)),
    "product of channels": lambda: fd.transition_product(full(1.0, 2**58, 2), full(-1.0, 2**58, 1)),
    "product of items": lambda: fd.transition_product(
        full(1.0, 2**58, 1, 1), ONE, method="subsets"
    ),
    "combined": lambda: fd.combine_summaries(*[[full(1.0, 2**59)] * 2] * 2),
    "combined integers": lambda: fd.combine_summaries(*[[full(np.int8(1), 2**61)] * 2] * 2),
    "layer": lambda: LINE(full(1.0, 2**58, 1)),
    "layer's attention": lambda: LINE.attention(np.ones((2**19, 1))),
    "layer's weights": lambda: fd.S6(
        np.ones((1, 1)), np.ones(1), full(1.0, 1, 2**58), *[full(1.0, 2**58, 1)] * 2
    ),
    "sums": lambda: fd.subset_sums(full(1.0, 2**57, 3)),
    "sums of none": lambda: fd.subset_sums(full(1.0, 2**59, 0)),
    "logsumexp": lambda: fd.subset_logsumexp(full(1.0, 2**57, 3)),
    "logsumexp of long rows": lambda: fd.subset_logsumexp(full(1.0, 2**20, 2**39)),
    "logsumexp of none": lambda: fd.subset_logsumexp(full(1.0, 2**59, 0)),
    "logsumexp enumerated": lambda: fd.subset_logsumexp(full(1.0, 2**58, 2), method="enumerate"),
    "blocks": lambda: fd.iter_subset_sums(np.ones(62), block=2**80),
}


@pytest.mark.parametrize("name", LARGE)
def test_sizes_that_no_memory_holds(name):
    with pytest.raises(MemoryError, match=r"would take \d+ bytes|cannot represent the shape"):
        LARGE[name]()


def test_nothing_beside_an_enormous_axis():
    assert wide(2**58, 0, 0, fd.selective_scan)().shape == (2**58, 0)
    assert wide(2**58, 2, 0, fd.selective_scan)().shape == (2**58, 0)
    assert fd.selective_scan(*[full(1.0, 2**58, 1, 0)] * 2, *[ONE] * 3).shape == (2**58, 1, 0)
    assert step(0, 2**58)().shape == (0,)
    assert fd.subset_sums(full(1.0, 0, 2**50, 2)).shape == (0, 2**50, 4)
    for method in "closed", "enumerate":
        assert fd.subset_logsumexp(full(1.0, 0, 2**58, 2), method=method).shape == (0, 2**58)
    assert fd.subset_logsumexp(full(1.0, 0, 2**58)).shape == (0,)


def test_results_larger_than_the_memory_are_not_promised(monkeypatch):
    monkeypatch.setattr(arrays, "_LARGE", 100)
    monkeypatch.setattr(arrays, "_fits", lambda nbytes: nbytes <= 1000)
    u = np.ones((4, 32))
    for call in (lambda: fd.selective_scan(u, u, *[-np.ones((4, 1))] * 3),
                 lambda: fd.selective_scan_vjp(u, u, u, *[-np.ones((4, 1))] * 3),
                 lambda: fd.subset_sums(np.ones(7)), lambda: fd.combine_summaries((u, u), (u, u)),
                 lambda: fd.transition_product(u, -np.ones((4, 32)))):  # fmt: skip
        with pytest.raises(MemoryError, match=r"would take \d+ bytes, more than this machine has"):
            call()


# ---- kernels refuse what Python should not hand them ------------------------------------------

KERNELS = list(kernels("ssm").values())


def wrong(array):
    """The same array in ways that a kernel cannot take."""
    yield array[None]
    yield array[..., 0]
    yield array.astype(np.float16 if array.dtype.kind == "f" else np.int32)
    yield array.astype(array.dtype.newbyteorder())
    yield dict(layouts(array))["misaligned"]
    if array.dtype.kind == "f":
        yield array.astype(np.float32 if array.dtype == np.float64 else np.float64)
        yield array[..., :-1]
        yield array.astype(np.int64)


def doors(kernel):
    real = next(real for real, other in kernels("ssm").items() if other is kernel)

    def of(*shape):
        return np.zeros(shape, real)

    u, A, B, C, D, h = of(2, 4, 6), of(4, 3), of(2, 1, 3, 6), of(2, 2, 3, 6), of(4), of(2, 4, 3)
    inputs = dict(
        u=u, delta=u, A=A, B=B, C=C, D=D, z=u, delta_bias=D, delta_softplus=False, initial_state=h,
        cu_seqlens=None, states=None, span=0, checks=None,
    )  # fmt: skip
    one = inputs | dict(
        u=u[:1], delta=u[:1], B=B[:1], C=C[:1], z=u[:1], cu_seqlens=np.array([0, 2, 6])
    )
    yield kernel.scan, inputs | dict(last_state=h, out=u)
    yield kernel.scan, one | dict(last_state=h, out=u[:1])
    grads = dict(dlast_state=h, du=u, ddelta=u, dz=u, dinitial_state=h, dB=B, dC=C)
    yield kernel.adjoint, dict(dout=u, longest=6) | inputs | grads
    grads |= dict(du=u[:1], ddelta=u[:1], dz=u[:1], dB=B[:1], dC=C[:1])
    yield kernel.adjoint, dict(dout=u[:1], longest=4) | one | grads
    x, b, g = of(2, 4), of(2, 3), of(2, 2, 3)
    rest = dict(A=A, D=D, dt_bias=D, dt_softplus=False)
    yield kernel.step, rest | dict(state=h, x=x, dt=x, B=b, C=g, z=x, out=x.copy())
    rest |= dict(state=h[0], x=x[0], dt=x[0], B=b[0], C=g[0], z=x[0], out=x[0].copy())
    yield kernel.step, rest
    yield kernel.step_sum, dict(delta=u, delta_bias=D, delta_softplus=False, total=of(2, 4))
    inputs = dict(delta=u, A=A, B=B, C=C, delta_bias=D, delta_softplus=False)
    yield kernel.attention, inputs | dict(rows=np.array([1, 5]), out=of(2, 4, 2, 6))
    subsets = kernels("subsets")[real]
    y, partial = of(2, 3, 5), np.zeros((6, 1))
    yield subsets.sums, [y, of(2, 3, 32), 0, False]
    yield subsets.closed, [y, partial]
    yield subsets.enumerate_rows, [y, of(2, 3)]
    for curve in "exp", "sigmoid", "silu", "softplus", "tanh", "tanh_grad":
        yield kernels("_core")[real].elementwise, [u, u.copy(), curve]


def call_door(function, arguments):
    return function(**arguments) if isinstance(arguments, dict) else function(*arguments)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_refuse_what_does_not_fit(kernel):
    for function, arguments in doors(kernel):
        call_door(function, arguments)
        named = isinstance(arguments, dict)
        for key, argument in list(arguments.items() if named else enumerate(arguments)):
            if not isinstance(argument, np.ndarray):
                continue
            for other in wrong(argument):
                alike = other.dtype == argument.dtype and other.flags.aligned
                if alike and free(function.__name__, key, other.size == argument.size):
                    continue
                bad = arguments.copy()
                bad[key] = other
                with pytest.raises(TypeError, match="handed"):
                    call_door(function, bad)


def free(function, key, same_size):
    """Whether a kernel takes this argument in another shape.

    It does where there is nothing that the argument must agree with.
    """
    if function in {"elementwise", "closed"}:
        return same_size or (function == "closed" and key == 0)
    return (function, key, same_size) in {
        ("step", "B", True),  # (N,) is (1, N)
        ("step_sum", "delta", False),  # of any number of steps
        ("enumerate_rows", 0, False),
    }


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_refuse_gradients_that_are_not_contiguous(kernel):
    arguments = next(a for function, a in doors(kernel) if function.__name__ == "adjoint")
    for name in "dB", "dC":
        with pytest.raises(TypeError, match="handed"):
            kernel.adjoint(**arguments | {name: np.asfortranarray(arguments[name])})


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_refuse_a_cache_that_does_not_fit(kernel):
    real = next(real for real, other in kernels("ssm").items() if other is kernel)
    u, A, ones = np.zeros((2, 4, 70), real), np.zeros((4, 3), real), np.zeros(2 * 4 * 2 * 3, real)
    inputs = dict(
        u=u, delta=u, A=A, B=A, C=A, D=None, z=None, delta_bias=None, delta_softplus=False,
        initial_state=None, cu_seqlens=None, states=ones, span=32, checks=np.zeros(3, np.uint64),
    )  # fmt: skip
    scan = inputs | dict(last_state=None, out=u.copy())
    grads = dict(dlast_state=None, du=u, ddelta=u, dz=None, dinitial_state=None, dB=None, dC=None)
    for function, arguments in (
        (kernel.scan, scan),
        (kernel.adjoint, dict(dout=u, longest=70) | inputs | grads),
    ):
        function(**arguments)
        function(**arguments | dict(states=ones[:24], span=64))
        bad = [dict(span=span) for span in (-32, 0, 16, 64, 96, 256)]
        bad += [dict(states=a) for a in wrong(ones) if a.ndim] + [dict(states=ones[::-1])]
        bad += [dict(checks=a) for a in wrong(inputs["checks"]) if a.ndim]
        bad += [dict(checks=np.zeros(2, np.uint64)), dict(checks=np.zeros(6, np.uint64)[::2])]
        for change in bad:
            with pytest.raises(TypeError, match="handed"):
                function(**arguments | change)
