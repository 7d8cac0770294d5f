"""`lstm`, `lstm_vjp` and `lstm_state_adjoints`: the LSTM layer and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core import caches
from .._core.arrays import as_arrays, check_fits, common, empty, expect, flag, integers
from .._core.cache import Cache, keep, opened
from .._core.dispatch import kernels
from .._core.fpstate import ieee
from .._core.products import contiguous

if TYPE_CHECKING:
    from ._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("nn")
_STATES = ("initial_state[0]", "initial_state[1]", "dlast_state[0]", "dlast_state[1]")
_NAMES = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", *_STATES[:2], "dh", *_STATES[2:])
# the attributes of LSTMCall that hold them
_ATTRIBUTES = (*_NAMES[:5], "h0", "c0", "dh", "dh_n", "dc_n")
_CHECKED_SIZE = 1 << 26  # elements: larger arrays are checked against the memory there is
_OPTIONAL = ("bias_ih", "bias_hh", *_STATES[2:])

State = Sequence[ArrayLike] | NDArray
States = tuple[NDArray, NDArray]  # h and c
Kept = tuple[NDArray, NDArray]  # gates and cells, in the kernels' order


class LSTMGrads(NamedTuple):
    """Gradients with respect to the arguments of `lstm`.

    Each has the shape of its argument; it is None where the argument was None.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> grads = fd.lstm_vjp(np.ones((3, 1)), np.ones((3, 2)), np.ones((4, 2)), np.ones((4, 1)))
    >>> grads._fields
    ('dx', 'dweight_ih', 'dweight_hh', 'dbias_ih', 'dbias_hh', 'dinitial_state')
    >>> grads.dx.shape, grads.dbias_ih is None
    ((3, 2), True)
    """

    dx: NDArray
    dweight_ih: NDArray
    dweight_hh: NDArray
    dbias_ih: NDArray | None
    dbias_hh: NDArray | None
    dinitial_state: tuple[NDArray, NDArray] | None


@overload
def lstm(
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
    return_cache: Literal[False] = False,
) -> tuple[NDArray, States]: ...
@overload
def lstm(
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
    return_cache: Literal[True],
) -> tuple[NDArray, States, Cache]: ...
@overload
def lstm(
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
    return_cache: bool = False,
) -> tuple[NDArray, States] | tuple[NDArray, States, Cache]: ...
def lstm(
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
    return_cache: bool = False,
) -> tuple[NDArray, States] | tuple[NDArray, States, Cache]:
    r"""A long short-term memory layer over whole sequences.

    The gates are i, f, g and o, in this order.  With their pre-activations
    :math:`a = W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}`,

    .. math::
        i, f, o = \sigma(a_i), \sigma(a_f), \sigma(a_o), \quad g = \tanh(a_g), \qquad
        c_t = f \odot c_{t-1} + i \odot g, \quad h_t = o \odot \tanh(c_t).

    Layouts and order are those of ``torch.nn.LSTM``: ``lstm(x, *layer.state_dict().values())`` uses
    the weights of one layer.

    Parameters
    ----------
    x : array_like, shape (T, B, D) or (T, D)
        Input, time first.  If x has no batch axis, the other arrays have none either.
    weight_ih : array_like, shape (4H, D)
    weight_hh : array_like, shape (4H, H)
    bias_ih, bias_hh : array_like, shape (4H,), optional
        Zeros by default.
    initial_state : pair of array_like, shape (B, H), optional
        h and c before the first step; zeros by default.
    lengths : array_like of int, shape (B,), optional
        The number of steps of each sequence, from 0 to T, in any order; T by default.  Behind a
        sequence's end `x` is not read and h is 0; its last state is the state after its last step.
    return_cache : bool, optional
        Whether to return also what `lstm_vjp` needs.  Without a cache it runs the layer once more.

    Returns
    -------
    h : ndarray, shape (T, B, H)
        float32 if every floating argument is, else float64.
    last_state : pair of ndarray, shape (B, H)
        h and c after the last step.
    cache : object
        Only if `return_cache`.  It is opaque and immutable, can be used any number of times with
        the same arguments, and cannot be pickled.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit.  The message names the argument, what was expected and
        what came.

    Notes
    -----
    The layer takes T·B·4H·(D + H) multiply–adds.  Memory beyond inputs and outputs is a copy of the
    weights in the kernels' order; copies of arguments that are not C-contiguous; and for each
    thread scratch of about 1 MiB up to D = H = 1000, and in proportion to them beyond.  A cache
    takes 5·T·B·H numbers, with H rounded up to whole vectors (64 bytes at most), and a checksum of
    the arguments, which is computed at the speed of memory; by the checksum `lstm_vjp` recognises a
    cache of other arguments.

    Up to 12 sequences at a time go through all their steps on one thread, or up to 24 where W_hh
    takes more than 1 MiB.  Sequences never wait for each other, and the bits of the result depend
    neither on the number of threads, nor on strides, nor on the sequences that share the batch.
    Therefore NaN and infinities stay in their sequence.

    References
    ----------
    S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9, 1997;
    docs/derivations.md §4.1 and §4.2.

    Examples
    --------
    With all gates open, c is the sum of tanh(x):

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x = np.array([[0.5], [1.0], [-0.25]])
    >>> h, (h_n, c_n) = fd.lstm(x, [[0], [0], [1], [0]], np.zeros((4, 1)), [40, 40, 0, 40])
    >>> np.allclose(c_n, np.tanh(x).sum())
    True

    Two layers, of which the second goes in both directions.  (With `lengths`, reverse each sequence
    by itself.)

    >>> rng = np.random.default_rng(0)
    >>> def parameters(D, H):
    ...     shapes = (4 * H, D), (4 * H, H), (4 * H,), (4 * H,)
    ...     return [rng.normal(size=shape) / 4 for shape in shapes]
    >>> first, ahead, back = parameters(3, 5), parameters(5, 4), parameters(5, 4)
    >>> h, _ = fd.lstm(rng.normal(size=(7, 2, 3)), *first)
    >>> both = fd.lstm(h, *ahead)[0], fd.lstm(h[::-1], *back)[0][::-1]
    >>> np.concatenate(both, axis=-1).shape
    (7, 2, 8)
    """
    call = LSTMCall((x, weight_ih, weight_hh, bias_ih, bias_hh), initial_state, lengths)
    h = call.over_time("h")
    kept = call.new_kept() if flag("return_cache", return_cache) else None
    last = call.forward(h, kept)
    result = call.squeeze(h), call.state(last)
    return result if kept is None else (*result, call.cache(kept))


def lstm_vjp(
    dh: ArrayLike,
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
    dlast_state: Sequence[ArrayLike | None] | NDArray | None = None,
    cache: Cache | None = None,
) -> LSTMGrads:
    r"""The adjoint of `lstm`: the gradients of a scalar, given those with respect to the results.

    Let :math:`\bar h_t` and :math:`\bar c_t` be the gradients with respect to the state after step
    t, as `lstm_state_adjoints` returns them, and :math:`\bar a_t` the gradient with respect to the
    gates' pre-activations.  Backwards in time,

    .. math::
        \bar h_t = \mathrm{dh}_t + W_{hh}^T \bar a_{t+1}, \qquad
        \bar c_t = \bar h_t \odot o_t \odot (1 - \tanh^2 c_t) + \bar c_{t+1} \odot f_{t+1},

    and every gradient is a product with :math:`\bar a` or a sum of it.

    Parameters
    ----------
    dh : array_like, shape (T, B, H) or (T, H)
        Gradient with respect to h.  Behind a sequence's end it is not read.
    x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths
        As they were passed to `lstm`.
    dlast_state : pair of array_like or None, shape (B, H), optional
        Gradients with respect to the last states h and c; zeros by default.
    cache : object, optional
        What `lstm` returned for the same arguments.  Without it the layer runs once more.

    Returns
    -------
    grads : LSTMGrads
        ``dx``, ``dweight_ih``, ``dweight_hh``, ``dbias_ih``, ``dbias_hh`` and ``dinitial_state``,
        each in the shape of its argument, and None if the argument was None.  Behind a sequence's
        end ``dx`` is 0.  float32 if every floating argument is, else float64.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or the cache is of another call.  The message names the
        argument, what was expected and what came.

    Notes
    -----
    The adjoint takes twice the multiply–adds of `lstm`, and three times as many without a cache.
    Memory beyond inputs and outputs is 6·T·B·H numbers without a cache and 5·T·B·H with one, H
    rounded up to whole vectors; copies of both weights and both their gradients in the kernels'
    order; and for each thread scratch of about 1 MiB up to D = H = 1000, and in proportion to them
    beyond.

    The derivatives of σ are formed from σ(−|a|) and those of tanh from its exponential, so that
    saturated units lose no accuracy.  Sums over steps and sequences are taken in a fixed order: the
    bits of the result depend neither on the number of threads nor on strides.  float64 is within
    1e-12 and float32 within 2e-5 of the exact gradient, relative to its largest magnitude, unless
    the layer itself is conditioned worse: pre-activations in the hundreds magnify rounding, and
    recurrent weights that make gradients explode magnify it from step to step.

    References
    ----------
    docs/derivations.md §4.1 and §4.2.

    Examples
    --------
    Gradients of the last output through two layers:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(6, 3))
    >>> one = rng.normal(size=(16, 3)), rng.normal(size=(16, 4))
    >>> two = rng.normal(size=(16, 4)), rng.normal(size=(16, 4))
    >>> h, _, cache = fd.lstm(x, *one, return_cache=True)
    >>> upper = fd.lstm_vjp(np.zeros((6, 4)), h, *two, dlast_state=(np.ones(4), None))
    >>> lower = fd.lstm_vjp(upper.dx, x, *one, cache=cache)
    >>> lower.dx.shape, lower.dweight_hh.shape
    ((6, 3), (16, 4))
    """
    call = LSTMCall(
        (x, weight_ih, weight_hh, bias_ih, bias_hh), initial_state, lengths, (dh, dlast_state)
    )
    return lstm_adjoint(call, None if cache is None else call.kept(cache))


def lstm_adjoint(call: LSTMCall, kept: Kept | None) -> LSTMGrads:
    """The gradients of a call, whose forward pass runs once more if nothing was `kept` of it."""
    dx, h = empty("dx", call.x.shape, call.dtype), call.over_time("h")
    gates, cells = call.kept(None) if kept is None else kept
    abar = gates if kept is None else call.aligned("the gates' adjoints", gates.size)
    dinitial = call.adjoint((gates, cells), abar=abar, h=h, dx=dx)
    dweight_ih, dweight_hh, dbias = call.weight_sums(abar, h)
    return LSTMGrads(
        call.squeeze(dx),
        dweight_ih,
        dweight_hh,
        None if call.bias_ih is None else dbias,
        None if call.bias_hh is None else dbias.copy(),
        None if call.h0 is None else call.state(dinitial),
    )


def lstm_state_adjoints(
    dh: ArrayLike,
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
    dlast_state: Sequence[ArrayLike | None] | NDArray | None = None,
    cache: Cache | None = None,
) -> tuple[NDArray, NDArray]:
    r"""The adjoints of an LSTM's states: how the gradient travels through time.

    The arguments are those of `lstm_vjp`, and the results are the :math:`\bar h_t` and
    :math:`\bar c_t` of its formulas.

    Parameters
    ----------
    dh, x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths, dlast_state, cache
        As for `lstm_vjp`.

    Returns
    -------
    hbar, cbar : ndarray, shape (T, B, H)
        Gradients with respect to :math:`h_t` and :math:`c_t`, including what comes from all later
        steps; 0 behind a sequence's end.  float32 if every floating argument is, else float64.

    Raises
    ------
    ValueError, TypeError
        As `lstm_vjp`.

    Notes
    -----
    The call takes T·B·4H² multiply–adds with a cache.  Memory beyond inputs and outputs is a copy
    of the weights and scratch as for `lstm_vjp`; without a cache 5·T·B·H numbers more.

    Where f ≈ 1, i ≈ 0 and o ≈ 0 (the *constant-error carousel*) :math:`\bar c_t = \bar c_{t+1}`:
    the gradient neither vanishes nor explodes, however many steps it travels.
    ``examples/lstm_carousel.py`` draws it.

    References
    ----------
    docs/derivations.md §4.1 and §4.3.

    Examples
    --------
    A cell that never forgets, and one that halves its memory in every step:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> bias = np.array([-40, -40, 40, 0, 0, 0, -40, -40])  # i, f, g, o of two cells
    >>> still, W = np.zeros((4, 2)), np.zeros((8, 2))
    >>> dlast = None, np.ones(2)
    >>> _, cbar = fd.lstm_state_adjoints(still, still, W, W, bias, dlast_state=dlast)
    >>> cbar
    array([[1.   , 0.125],
           [1.   , 0.25 ],
           [1.   , 0.5  ],
           [1.   , 1.   ]])
    """
    call = LSTMCall(
        (x, weight_ih, weight_hh, bias_ih, bias_hh), initial_state, lengths, (dh, dlast_state)
    )
    hbar, cbar = call.over_time("hbar"), call.over_time("cbar")
    call.adjoint(call.kept(cache), hbar=hbar, cbar=cbar)
    return call.squeeze(hbar), call.squeeze(cbar)


class LSTMCall:
    """The checked arguments of one call, in one layout and with a batch axis.

    Its methods call the kernels.
    """

    def __init__(
        self,
        arguments: tuple[ArrayLike | None, ...],
        initial_state: Any,
        lengths: ArrayLike | None,
        adjoints: tuple[Any, Any] | tuple[()] = (),  # dh, dlast_state
    ) -> None:
        values = *arguments, *_pair("initial_state", initial_state, "(h0, c0)")
        if adjoints:
            values = *values, adjoints[0], *_pair("dlast_state", adjoints[1], "(dh_n, dc_n)")
        optional = (*_OPTIONAL, *_STATES[:2]) if initial_state is None else _OPTIONAL
        arrays = common(as_arrays(_NAMES[: len(values)], values, optional))
        self.x, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = arrays[:5]
        self.h0, self.c0, self.dh, self.dh_n, self.dc_n = (arrays[5:] + [None] * 3)[:5]
        self.dtype = self.x.dtype
        self._check_shapes()
        self._one_layout()
        self._sort(lengths)

    def _check_shapes(self) -> None:
        if self.x.ndim not in (2, 3):
            raise ValueError(f"x has shape {self.x.shape}; expected (T, B, D) or (T, D)")
        self.batched = self.x.ndim == 3
        self.steps, self.inputs = self.x.shape[0], self.x.shape[-1]
        self.batch = self.x.shape[1] if self.batched else 1
        shape = self.weight_hh.shape
        if len(shape) != 2 or shape[0] != 4 * shape[1]:
            raise ValueError(f"weight_hh has shape {shape}; expected (4H, H)")
        self.hidden = H = shape[1]
        expect("weight_ih", self.weight_ih, (4 * H, self.inputs), "(4H, D)")
        self.state_shape = (self.batch, H) if self.batched else (H,)
        states, meaning = (
            (self.h0, self.c0, self.dh_n, self.dc_n),
            "(B, H)" if self.batched else "(H,)",
        )
        for name, state in zip(_STATES, states, strict=True):
            if state is not None:
                expect(name, state, self.state_shape, meaning)
        for name, bias in ("bias_ih", self.bias_ih), ("bias_hh", self.bias_hh):
            if bias is not None:
                expect(name, bias, (4 * H,), "(4H,)")
        if self.dh is not None:
            expect(
                "dh", self.dh, (*self.x.shape[:-1], H), "(T, B, H)" if self.batched else "(T, H)"
            )

    def _sort(self, given: ArrayLike | None) -> None:
        """Sort the rows by descending length: the rows that still run are then the first ones."""
        if self.batch > _CHECKED_SIZE:
            check_fits("the order of the sequences", 16 * self.batch)
        self.ragged = False
        if given is None:
            self.order, self.lengths = np.arange(self.batch), np.full(self.batch, self.steps)
            return
        lengths = integers("lengths", given)
        expect(
            "lengths",
            lengths,
            (self.batch,) if self.batched else (),
            "(B,)" if self.batched else "()",
        )
        wrong = np.flatnonzero((lengths < 0) | (lengths > self.steps))
        if wrong.size:
            at = f"[{wrong[0]}]" if self.batched else ""
            came = lengths.ravel()[wrong[0]]
            raise ValueError(f"lengths{at} is {came}; expected integers from 0 to T = {self.steps}")
        self.order = np.argsort(-lengths.ravel(), kind="stable")
        self.lengths = lengths.ravel()[self.order]
        self.ragged = bool((lengths < self.steps).any())

    def _one_layout(self) -> None:
        """C-contiguous, x and dh with a batch axis."""
        for name, attribute in zip(_NAMES, _ATTRIBUTES, strict=True):
            array = getattr(self, attribute)
            if array is not None and not array.flags.c_contiguous:
                setattr(self, attribute, contiguous(name, array))
        self.x = self.x.reshape(self.steps, self.batch, self.inputs)
        if self.dh is not None:
            self.dh = self.dh.reshape(self.steps, self.batch, self.hidden)

    @property
    def kernel(self) -> Kernels:
        return _kernels[self.dtype]

    def squeeze(self, a: NDArray) -> NDArray:
        """A result over time, without a batch axis if x has none."""
        return a if self.batched else a[:, 0]

    def state(self, both: NDArray) -> tuple[NDArray, NDArray]:
        """h and c of (2, B, H), each an array of its own."""
        return both[0].reshape(self.state_shape).copy(), both[1].reshape(self.state_shape).copy()

    def over_time(self, name: str) -> NDArray:
        """An array (T, B, H)."""
        return empty(name, (self.steps, self.batch, self.hidden), self.dtype)

    def aligned(self, what: str, size: int) -> NDArray:
        if size > _CHECKED_SIZE:
            check_fits(what, size * self.dtype.itemsize)
        return self.kernel.aligned(size)

    def new_kept(self) -> Kept:
        """Arrays in which a forward pass can keep what the adjoint needs: gates and cells."""
        return kept_in(self.new_memory())

    def new_memory(self) -> NDArray:
        """The memory of both arrays, as one."""
        entries = self.steps * self.batch
        return self.aligned("the cache", kept_size(entries, self.hidden, self.dtype))

    def forward(self, h: NDArray | None, kept: Kept | None) -> NDArray:
        """OUT h and kept, unless None; returns the last states (2, B, H)."""
        bias = empty("the biases", (4 * self.hidden, 1), self.dtype, np.zeros)
        with ieee(), np.errstate(all="ignore"):
            for one in self.bias_ih, self.bias_hh:
                if one is not None:
                    bias[:, 0] += one
        last = empty("the last states", (2, self.batch, self.hidden), self.dtype)
        gates, cells = kept or (None, None)
        self.kernel.lstm(
            self.x,
            self.weight_ih,
            self.weight_hh,
            bias=bias,
            h0=self.h0,
            c0=self.c0,
            order=self.order,
            lengths=self.lengths,
            h=h,
            h_n=last[0],
            c_n=last[1],
            gates=gates,
            cells=cells,
        )
        return last

    def cache(self, kept: Kept) -> Cache:
        return keep(
            "lstm", (self.sizes(), self.ragged, self.order, self.lengths), self.operands(), kept
        )

    def kept(self, cache: Cache | None) -> Kept:
        """Gates and cells from the caller's cache, or without one from another forward pass."""
        if cache is None:
            kept = self.new_kept()
            self.forward(None, kept)
            return kept
        (sizes, ragged, order, lengths), checksums, (gates, cells) = opened(cache, "lstm")
        caches.expect_shape("(dtype, T, B, H)", sizes, self.sizes())
        if ragged != self.ragged or (
            ragged
            and not (np.array_equal(lengths, self.lengths) and np.array_equal(order, self.order))
        ):
            raise ValueError("cache is of a call with other lengths")
        caches.expect_operands(_NAMES[:7], checksums, self.operands())
        return gates, cells

    def sizes(self) -> tuple[Any, ...]:
        return self.dtype, self.steps, self.batch, self.hidden

    def operands(self) -> tuple[NDArray | None, ...]:
        """What the gates are computed from; steps behind a sequence's end are not."""
        x = self.x
        if self.ragged:
            x = x[np.arange(self.steps)[:, None] < self.lengths[np.argsort(self.order)]]
        return x, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.h0, self.c0

    def adjoint(
        self,
        kept: Kept,
        *,
        abar: NDArray | None = None,
        h: NDArray | None = None,
        dx: NDArray | None = None,
        hbar: NDArray | None = None,
        cbar: NDArray | None = None,
    ) -> NDArray:
        """OUT abar, h and dx, or hbar and cbar; returns the initial states' adjoints (2, B, H)."""
        dinitial = empty("dinitial_state", (2, self.batch, self.hidden), self.dtype)
        gates, cells = kept
        self.kernel.lstm_adjoint(
            self.dh,
            self.dh_n,
            self.dc_n,
            weight_ih=self.weight_ih,
            weight_hh=self.weight_hh,
            c0=self.c0,
            order=self.order,
            lengths=self.lengths,
            gates=gates,
            cells=cells,
            abar=abar,
            h=h,
            dx=dx,
            dh0=dinitial[0],
            dc0=dinitial[1],
            hbar=hbar,
            cbar=cbar,
        )
        return dinitial

    def weight_sums(self, abar: NDArray, h: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Σ ā ⊗ x (4H, D), Σ ā ⊗ h[t−1] (4H, H) and Σ ā (4H,)."""
        input_sums, recurrent_sums, sums = self.kernel.lstm_weight_sums(
            abar,
            self.x,
            h,
            h0=self.h0,
            order=self.order,
            lengths=self.lengths,
            hidden=self.hidden,
        )
        return (
            self._unpacked(input_sums, self.inputs),
            self._unpacked(recurrent_sums, self.hidden),
            self._unpacked(sums, 1)[:, 0],
        )

    def _unpacked(self, packed: NDArray, columns: int) -> NDArray:
        """[unit vector][columns][gate][lane] as (4H, columns)."""
        vectors, lanes = self.kernel.lstm_units(self.hidden)
        gates_first = packed.reshape(vectors, columns, 4, lanes).transpose(2, 0, 3, 1)
        rows = gates_first.reshape(4, vectors * lanes, columns)
        return np.ascontiguousarray(rows[:, : self.hidden]).reshape(4 * self.hidden, columns)


def kept_size(entries: int, hidden: int, dtype: np.dtype) -> int:
    """How many numbers a forward pass keeps of so many entries."""
    _, lanes = _kernels[dtype].lstm_units(1)
    return 5 * entries * (-(-hidden // lanes) * lanes)


def kept_in(memory: NDArray) -> Kept:
    """Gates and cells, four parts and one, in memory of `kept_size`."""
    at = memory.size // 5 * 4
    return memory[:at], memory[at:]


def _pair(name: str, value: Any, meaning: str) -> tuple[Any, Any]:
    """The two parts of a state (h, c), or (None, None) for None."""
    if value is None:
        return None, None
    try:
        h, c = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a pair {meaning}") from None
    return h, c
