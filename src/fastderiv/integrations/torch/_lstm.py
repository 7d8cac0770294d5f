"""`LSTM`, a stand-in for ``torch.nn.LSTM`` on the CPU: the module, and the operator of a layer."""

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import dropout, linear
from torch.nn.utils.rnn import PackedSequence

from fastderiv.nn import LSTMCall, kept_in, kept_size, lstm_adjoint

from ..._core.products import contiguous
from ._operators import Arrays, Constants, Operator, Tensors
from ._tensors import DTYPES, cast, working

_NUMPY: dict[torch.dtype, np.dtype] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
State = tuple[Tensor | None, Tensor | None]


class LSTM(torch.nn.LSTM):
    """A stand-in for ``torch.nn.LSTM`` that computes on the CPU by `fastderiv.lstm`.

    Arguments of the constructor and of the call, parameters, ``state_dict``, shapes, what is
    refused and the numbers that dropout draws are those of ``torch.nn.LSTM``.

    Parameters
    ----------
    *args, **kwargs
        As ``torch.nn.LSTM``: input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
        dropout=0.0, bidirectional=False, proj_size=0, device=None, dtype=None.

    Notes
    -----
    The computation is in float64 if the tensors are, else in float32.  Results have the dtype of
    the input, within ``torch.autocast`` that of autocast.  If a gradient may be asked for, every
    layer and direction keeps its input, in the dtype that it has, and five numbers of every hidden
    unit and step in the dtype of the computation.  A packed sequence is laid out as (T, B, D)
    within a call.  The threads are fastderiv's: see `fastderiv.set_num_threads`.

    These are left to ``torch.nn.LSTM``, and a RuntimeWarning says so, once for each reason:
    projections (proj_size > 0), tensors that are not on the CPU or have another dtype or layout,
    and what ``torch.export`` and ``torch.jit`` make, which then needs no fastderiv.

    Second derivatives, forward mode and the transforms of ``torch.func`` (`grad`, `vmap`, …) are
    computed by PyTorch's own operations, step by step: right, but not fast.

    ``torch.compile`` breaks its graph at every ``torch.nn.LSTM``, and so at this one, unless
    ``torch._dynamo.config.allow_rnn`` is True; then the module is a part of the graph, also with
    ``fullgraph=True``.

    See Also
    --------
    fastderiv.lstm, fastderiv.lstm_vjp : the same on NumPy arrays, one layer and direction.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.torch import LSTM
    >>> theirs = torch.nn.LSTM(3, 5, num_layers=2, bidirectional=True)
    >>> ours = LSTM(3, 5, num_layers=2, bidirectional=True)
    >>> ours.load_state_dict(theirs.state_dict())
    <All keys matched successfully>
    >>> x = torch.randn(7, 2, 3)
    >>> torch.allclose(ours(x)[0], theirs(x)[0], atol=1e-6)
    True

    An instance holds nothing else than a ``torch.nn.LSTM``, so that those of a model can become
    ours in place:

    >>> model = torch.nn.Sequential(torch.nn.LSTM(3, 5))
    >>> for module in model.modules():
    ...     if type(module) is torch.nn.LSTM:
    ...         module.__class__ = LSTM
    """

    def forward(self, input: Any, hx: Any = None) -> Any:  # type: ignore[override]  # noqa: A002
        if torch.compiler.is_compiling() or "torch._dynamo" not in sys.modules:
            return self._forward(input, hx)
        # torch.compile has broken its graph here: it would compile every function that we call
        return _uncompiled()(self, input, hx)

    def _forward(self, input: Any, hx: Any) -> Any:  # noqa: A002
        weights = [[getattr(self, name) for name in names] for names in self._all_weights]
        reason = self._unfit(input, hx, weights)
        if reason is not None:
            _say(reason)
            return super().forward(input, hx)
        if isinstance(input, PackedSequence):
            return self._of_packed(input, hx, weights)
        if input.dim() not in (2, 3):
            raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if input.dim() == 3:
            x = input.transpose(0, 1) if self.batch_first else input
            out, (h_n, c_n) = self._layers(x, None, self._states(hx, 3, x.shape[1]), weights)
            return (out.transpose(0, 1) if self.batch_first else out), (h_n, c_n)
        states = self._states(hx, 2, 1)
        out, (h_n, c_n) = self._layers(input.unsqueeze(1), None, states, weights)
        return out.squeeze(1), (h_n.squeeze(1), c_n.squeeze(1))

    def _of_packed(self, given: PackedSequence, hx: Any, weights: list[list[Tensor]]) -> Any:
        data, batch_sizes, order, inverse = given
        batch = int(batch_sizes[0])
        states = self._states(self._reordered(hx, order), 3, batch)
        if states is None:  # the operator learns from them how many sequences there are
            zeros = data.new_zeros(len(weights), batch, self.hidden_size)
            states = zeros, zeros
        out, last = self._layers(data, batch_sizes, states, weights)
        return PackedSequence(out, batch_sizes, order, inverse), self._reordered(last, inverse)

    @staticmethod
    def _reordered(hx: Any, order: Tensor | None) -> Any:
        """The states of the sequences in another order."""
        return hx if hx is None or order is None else tuple(t.index_select(1, order) for t in hx)

    def _states(self, hx: Any, dim: int, batch: int) -> tuple[Tensor, Tensor] | None:
        """The initial states (layers · directions, batch, H), or None for zeros."""
        if hx is None:
            return None
        h, c = hx
        if h.dim() != dim or c.dim() != dim:
            raise RuntimeError(
                f"For {'batched' if dim == 3 else 'unbatched'} input, hx and cx should "
                f"be {dim}-D but got ({h.dim()}-D, {c.dim()}-D) tensors"
            )
        h, c = (h, c) if dim == 3 else (h.unsqueeze(1), c.unsqueeze(1))
        directions = 2 if self.bidirectional else 1
        expected = (self.num_layers * directions, batch, self.hidden_size)
        self.check_hidden_size(h, expected, "Expected hidden[0] size {}, got {}")
        self.check_hidden_size(c, expected, "Expected hidden[1] size {}, got {}")
        return h, c

    def _layers(
        self,
        x: Tensor,
        batch_sizes: Tensor | None,
        states: tuple[Tensor, Tensor] | None,
        weights: list[list[Tensor]],
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """All layers of x (T, B, D), or of packed x (N, D): the last one's h, and all last states.

        The caller has checked `states`.
        """
        if x.shape[0] == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        dtype = self._check_input(x, states, weights[0][0])
        directions = 2 if self.bidirectional else 1
        lasts = []
        for layer in range(self.num_layers):
            outs = []
            for direction in range(directions):
                k = layer * directions + direction
                initial = (None, None) if states is None else (states[0][k], states[1][k])
                out, last = _layer(x, weights[k], initial, batch_sizes, direction == 1)
                outs += cast(dtype, out)
                lasts += cast(dtype, last)
            x = torch.cat(outs, -1) if directions == 2 else outs[0]
            if self.dropout > 0 and self.training and layer < self.num_layers - 1:
                x = dropout(x, self.dropout)
        if len(lasts) == 1:  # without a copy
            return x, (lasts[0][:1], lasts[0][1:])
        last = torch.stack(lasts, 1)
        return x, (last[0], last[1])

    def _check_input(self, x: Tensor, states: Any, weight: Tensor) -> torch.dtype:
        """The results' dtype; an error if widths or dtypes do not fit."""
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                f"got {x.shape[-1]}"
            )
        if torch.is_autocast_enabled("cpu"):
            return x.dtype if x.dtype == torch.float64 else torch.get_autocast_dtype("cpu")
        if x.dtype != weight.dtype:
            raise ValueError(
                f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype})"
            )
        for name, state in zip(("hx[0]", "hx[1]"), states or (), strict=False):
            if state.dtype != x.dtype:
                raise ValueError(f"{name} has dtype {state.dtype}; expected the input's, {x.dtype}")
        return x.dtype

    def _unfit(self, given: Any, hx: Any, weights: list[list[Tensor]]) -> str | None:
        """Why the call is left to PyTorch, if it is."""
        if self.proj_size > 0:
            return "has projections (proj_size > 0)"
        if torch.jit.is_tracing() or _exporting():
            return "is traced or exported"
        data = given.data if isinstance(given, PackedSequence) else given
        for tensor in (data, *(hx or ()), *(weight for layer in weights for weight in layer)):
            if not tensor.is_cpu:
                return f"has tensors on {tensor.device.type}"
            if tensor.dtype not in DTYPES:
                return f"has tensors of dtype {tensor.dtype}"
            if tensor.layout != torch.strided or tensor.is_nested:
                return "has tensors that are not dense"
        return None

    def __prepare_scriptable__(self) -> torch.nn.LSTM:
        """What ``torch.jit.script`` compiles: a ``torch.nn.LSTM`` with the same parameters."""
        _say("is scripted")
        plain = torch.nn.LSTM.__new__(torch.nn.LSTM)
        plain.__setstate__(self.__getstate__())
        return plain


@cache
def _uncompiled() -> Callable[[LSTM, Any, Any], Any]:
    """`LSTM._forward` out of the sight of ``torch.compile``, whose import takes seconds."""
    return torch.compiler.disable(LSTM._forward)  # noqa: SLF001 (of this file's own class)


_said: set[str] = set()


def _say(reason: str) -> None:
    if reason not in _said:
        _said.add(reason)
        warnings.warn(
            f"fastderiv's LSTM {reason}; torch.nn.LSTM computes it", RuntimeWarning, stacklevel=3
        )


def _exporting() -> bool:
    is_exporting = getattr(torch.compiler, "is_exporting", None)  # PyTorch 2.7
    return is_exporting is not None and is_exporting()


def _layer(
    x: Tensor, weights: list[Tensor], initial: State, batch_sizes: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """h and the last states (2, B, H) of one layer in one direction."""
    biases = weights[2:] or (None, None)
    return _lstm((x, *weights[:2], *biases, *initial), (batch_sizes, reverse))


class _Order(NamedTuple):
    """How the numbers of a layer's steps lie, and in which order it takes them.

    They lie as (T, B, ·), or packed as (N, ·): all sequences that have a first step, then all that
    have a second one, …, the longest sequence first.
    """

    sizes: NDArray[np.int64] | None  # (T,): how many sequences have each step, if packed
    reverse: bool

    def lengths(self) -> NDArray[np.int64] | None:
        if self.sizes is None:
            return None
        return (np.arange(self.sizes[0]) < self.sizes[:, None]).sum(0)

    def apart(self, a: NDArray) -> NDArray:
        """As (T, B, ·), from the first step taken to the last; nothing behind a sequence's end."""
        if self.sizes is None:
            return a[::-1] if self.reverse else a
        T, B = len(self.sizes), int(self.sizes[0])
        laid_out = np.empty((T * B, a.shape[1]), a.dtype)
        laid_out[self._places()] = a
        return laid_out.reshape(T, B, -1)

    def together(self, a: NDArray) -> NDArray:
        """The inverse of `apart`, in memory of its own that has no gaps."""
        if self.sizes is None:
            return contiguous("a result in the order of time", a[::-1]) if self.reverse else a
        return a.reshape(-1, a.shape[2])[self._places()]

    def _places(self) -> NDArray[np.intp]:
        """Where each packed entry lies in (T · B, ·)."""
        assert self.sizes is not None
        sequence_by_step = np.arange(self.sizes[0]) < self.sizes[:, None]
        t, b = np.nonzero(sequence_by_step)
        if self.reverse:
            t = sequence_by_step.sum(0)[b] - 1 - t
        return t * self.sizes[0] + b


class _Layer(Operator):
    name = "lstm"
    variables = (
        "Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
        "Tensor? h0, Tensor? c0"
    )
    constants = "Tensor? batch_sizes, bool reverse"

    def compute(
        self, variables: Arrays, constants: Constants, remember: bool
    ) -> tuple[NDArray, NDArray, NDArray | None]:
        order = _Order(*constants)
        call = _call(variables, order)
        h, memory = call.over_time("h"), call.new_memory() if remember else None
        last = call.forward(h, None if memory is None else kept_in(memory))
        return order.together(h), last, memory

    def adjoint(
        self,
        dout: NDArray,
        dlast_state: NDArray,
        variables: Arrays,
        constants: Constants,
        kept: NDArray | None,
    ) -> Sequence[NDArray | None]:
        order = _Order(*constants)
        call = _call(variables, order, (order.apart(dout), dlast_state))
        # without the checksums of `return_cache`: autograd watches the arguments
        dx, *of_weights, dinitial = lstm_adjoint(call, None if kept is None else kept_in(kept))
        return order.together(dx), *of_weights, *(dinitial or (None, None))

    def shapes(
        self, variables: Tensors, constants: Constants, remember: bool
    ) -> tuple[Sequence[Any], Sequence[Any], int]:
        x, _, weight_hh, _, _, h0, _ = variables
        sizes, _ = constants
        H = weight_hh.shape[1]
        steps, batch = x.shape[:2] if sizes is None else (sizes.shape[0], h0.shape[0])
        kept = kept_size(steps * batch, H, _NUMPY[working(*variables)])
        return (*x.shape[:-1], H), (2, batch, H), kept

    def in_steps(self, variables: Tensors, constants: Constants) -> tuple[Tensor, Tensor]:
        x, weight_ih, weight_hh, bias_ih, bias_hh, h, c = variables
        sizes, reverse = constants
        counts = [x.shape[1]] * x.shape[0] if sizes is None else sizes.tolist()
        if h is None:
            h, c = (x.new_zeros(counts[0], weight_hh.shape[1]) for _ in range(2))
        with torch.autocast("cpu", enabled=False):
            inputs = linear(x, weight_ih, bias_ih)
            steps = inputs.unbind(0) if sizes is None else inputs.split(counts)
            hs = list(steps)
            for t in reversed(range(len(steps))) if reverse else range(len(steps)):
                n = counts[t]  # the sequences that have this step are the first ones
                a = steps[t] + linear(h[:n], weight_hh, bias_hh)
                i, f, g, o = a.chunk(4, -1)
                new = torch.sigmoid(f) * c[:n] + torch.sigmoid(i) * torch.tanh(g)
                hs[t] = torch.sigmoid(o) * torch.tanh(new)
                h, c = torch.cat((hs[t], h[n:])), torch.cat((new, c[n:]))
            out = torch.stack(hs) if sizes is None else torch.cat(hs)
        return out, torch.stack((h, c))


def _call(variables: Arrays, order: _Order, adjoints: Any = ()) -> LSTMCall:
    x, *weights, h0, c0 = variables
    initial_state = None if h0 is None else (h0, c0)
    return LSTMCall((order.apart(x), *weights), initial_state, order.lengths(), adjoints)


_lstm = _Layer()
