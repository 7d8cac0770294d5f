"""`enable`, `disable`, `enabled`: Mamba models of transformers use fastderiv on the CPU.

How it works: the mixers of Mamba, Falcon-Mamba, Jamba and Zamba look up their functions among the
globals of their modules, ``mamba_selective_scan`` for training and prefill, and
``mamba_selective_state_update`` for a token decoded from the cache.  These two are replaced.  So is
``causal_conv1d_fn``, which would cost most after them, by a call of PyTorch that copies less.
Projections, cache and generation remain those of transformers.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from .torch import selective_scan, selective_state_update
from .torch._tensors import DTYPES, transformed

try:
    import transformers
    from transformers.activations import ACT2FN
except ImportError as error:
    raise ImportError(
        "fastderiv.integrations.transformers needs transformers, which fastderiv does not depend "
        "on: pip install transformers",
        name="transformers",
    ) from error

import torch
from torch import Tensor
from torch.nn.functional import conv2d

__all__ = ["disable", "enable", "enabled"]

_MODELS = ("mamba", "falcon_mamba", "jamba", "zamba")

_lock = threading.Lock()  # guards all of this
_wanted = False  # whether enable() was called last
_blocks = 0  # of enabled(), entered and not yet left
_originals: dict[tuple[ModuleType, str], Callable[..., Any]] = {}
_said: set[str] = set()


def enable() -> None:
    """Let Mamba, Falcon-Mamba, Jamba and Zamba models on the CPU use fastderiv for their scans.

    This affects models built before and after, in the whole process.  It covers training, prefill
    and cached decoding, in float32, float64, bfloat16 and float16 (the latter two are computed in
    float32), also under ``torch.compile``.  Enabling twice has no further effect.

    Some scans cannot be computed here: on another device, in forward mode, by the transforms of
    ``torch.func``, or under ``torch.export`` and ``torch.jit.trace``.  They are left to
    transformers, with a RuntimeWarning that names the reason, once per reason.  Second derivatives
    are computed here, see `fastderiv.integrations.torch.selective_scan`.

    Notes
    -----
    The results are those of transformers up to the rounding of the working precision, also in one
    case where transformers departs from the mathematics: several tokens at once, on a cache that
    already holds a state, are scanned from a state of zeros.

    A layer of L tokens needs O(batch·D·L·N) memory in transformers' own implementation, and
    O(batch·D·L) with fastderiv.

    Examples
    --------
    >>> import torch
    >>> from transformers import MambaConfig, MambaForCausalLM
    >>> from fastderiv.integrations import transformers as fast
    >>> config = MambaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1)
    >>> model = MambaForCausalLM(config).eval()
    >>> tokens = torch.arange(10)[None]
    >>> expected = model(tokens).logits
    >>> fast.enable()
    >>> torch.allclose(model(tokens).logits, expected, atol=1e-5)
    True
    >>> fast.disable()
    """
    _switch(wanted=True)


def disable() -> None:
    """Undo `enable`: put transformers' functions back, unless a block of `enabled` still runs.

    Examples
    --------
    >>> from fastderiv.integrations import transformers as fast
    >>> fast.disable()
    """
    _switch(wanted=False)


@contextmanager
def enabled() -> Iterator[None]:
    """`enable` for the duration of a ``with`` block, in the whole process.

    Blocks may be nested, and may overlap.

    Examples
    --------
    >>> from fastderiv.integrations import transformers as fast
    >>> with fast.enabled():
    ...     pass  # model.generate(…)
    """
    try:
        _switch(blocks=1)
        yield
    finally:
        _switch(blocks=-1)


def _switch(*, wanted: bool | None = None, blocks: int = 0) -> None:
    global _wanted, _blocks  # noqa: PLW0603 (what is replaced is global too)
    with _lock:
        _wanted = _wanted if wanted is None else wanted
        _blocks += blocks
        if not (_wanted or _blocks):
            _restore()
        elif not _originals:
            _replace()


def _replace() -> None:
    for model in _MODELS:
        path = f"transformers.models.{model}.modeling_{model}"
        for name, ours in _OURS.items():
            try:
                module = import_module(path)
                original = getattr(module, name)
            except (ImportError, AttributeError):
                _say(f"version {transformers.__version__} has no {path}.{name}")
                continue
            _originals[module, name] = original
            setattr(module, name, _instead_of(original, ours))


def _restore() -> None:
    while _originals:
        (module, name), original = _originals.popitem()
        setattr(module, name, original)


def _scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    use_mambapy: bool = False,
    use_associative_scan: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    return selective_scan(
        hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
    )


def _step(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
) -> Tensor:
    return selective_state_update(state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus)


def _convolve(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """The same convolution in two dimensions.

    PyTorch takes adjacent channels as they are there; in one dimension it would transpose them.
    """
    length, taps = hidden_states.shape[-1], weight.shape[-1]
    rows = hidden_states.to(weight.dtype)[:, :, None]
    out = conv2d(rows, weight[:, None, None], bias, padding=(0, taps - 1), groups=len(weight))[
        :, :, 0, :length
    ]
    return (out if activation is None else ACT2FN[activation](out)).to(hidden_states.dtype)


_OURS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolve,
    "mamba_selective_scan": _scan,
    "mamba_selective_state_update": _step,
}


def _instead_of(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    known = frozenset(inspect.signature(ours).parameters)

    @functools.wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        given = {name: value for name, value in kwargs.items() if value is not None}
        obstacle = _obstacle(known, args, given)
        if obstacle is None:
            return ours(*args, **given)
        _say(obstacle)
        return original(*args, **kwargs)

    return either


def _obstacle(known: frozenset[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why this call is not for fastderiv."""
    if getattr(torch.compiler, "is_exporting", bool)():  # since PyTorch 2.7
        return "an exported model is to run without fastderiv"
    if torch.jit.is_tracing():
        return "a traced model is to run without fastderiv"
    for name in kwargs:
        if name not in known:
            return f"the argument {name} is unknown here"
    values = (*args, *kwargs.values())
    tensors = [value for value in values if isinstance(value, Tensor)]
    if transformed(*tensors):
        return "forward mode and the transforms of torch.func look into the scan"
    for value in values:
        reason = _foreign(value)
        if reason is not None:
            return reason
    return None


def _foreign(value: Any) -> str | None:
    """Why this argument is not for fastderiv."""
    if not isinstance(value, Tensor):
        if value is None or isinstance(value, (bool, int, str)):
            return None
        return f"an argument is a {type(value).__name__}"  # of another tool that traces the call
    if not value.is_cpu:
        return f"a tensor is on {value.device.type}, not on cpu"
    if value.dtype not in DTYPES:
        return f"a tensor has dtype {value.dtype}"
    if value.is_nested or value.layout != torch.strided:
        return "a tensor is not dense"
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a tensor is a {type(value).__name__}, which has operations of its own"
    return None


def _say(reason: str) -> None:
    # Dynamo cannot trace a warning
    if reason not in _said and not torch.compiler.is_dynamo_compiling():
        _said.add(reason)
        warnings.warn(
            f"fastderiv leaves this to transformers: {reason}", RuntimeWarning, stacklevel=2
        )
