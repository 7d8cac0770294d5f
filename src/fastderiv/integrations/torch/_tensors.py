"""What functions of tensors need: checks, a working dtype, and the same memory as arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor
from torch.autograd import forward_ad

from ..._core.arrays import flag

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
_OPTIONAL = ("D", "z", "delta_bias", "dt_bias", "bias", "initial_state", "initial_states")


def as_flag(name: str, value: object) -> bool:
    return value if isinstance(value, bool) else flag(name, value)


def check(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None and name in _OPTIONAL:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; expected a tensor")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; expected one of {', '.join(map(str, DTYPES))}"
            )
        _check_place(name, tensor)


def check_integers(**tensors: Tensor | None) -> None:
    """An error unless each is None or a CPU tensor of integers."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise TypeError(f"{name} is a {kind}; expected a tensor of integers")
        if tensor.dtype not in _INTEGERS:
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected integers")
        _check_place(name, tensor)


def _check_place(name: str, tensor: Tensor) -> None:
    if not tensor.is_cpu:
        raise ValueError(f"{name} is on {tensor.device}; expected a CPU tensor")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise ValueError(
            f"{name} is {'nested' if tensor.is_nested else tensor.layout}; expected a dense tensor"
        )


def transformed(*tensors: Tensor | None) -> bool:
    """Whether ``torch.func`` or forward mode is active, which cannot see into the operators."""
    return in_functorch() or _any_tangent(tensors)


def _any_tangent(tensors: Sequence[Tensor | None]) -> bool:
    if getattr(forward_ad, "_current_level", 0) < 0:  # nearly always: not in forward mode
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def in_functorch() -> bool:
    return bool(torch._C._are_functorch_transforms_active())  # noqa: SLF001 (no public name tells)


def hidden(t: Tensor) -> bool:
    """Whether ``torch.compile`` or ``torch.vmap`` hides the numbers of a tensor."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.is_functorch_wrapped_tensor(t)  # noqa: SLF001 (no public name tells)


def numbers(name: str, t: Tensor | None) -> Any:
    """The numbers of a tensor as a list; None for None."""
    if t is None:
        return None
    if hidden(t) and not torch.compiler.is_compiling():
        raise NotImplementedError(f"{name} is a batch of torch.vmap; expected one for all of it")
    return t.tolist()


def exporting() -> bool:
    is_exporting = getattr(torch.compiler, "is_exporting", None)  # PyTorch 2.7
    return is_exporting is not None and is_exporting()


def working(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in."""
    return (
        torch.float64
        if any(t is not None and t.dtype == torch.float64 for t in tensors)
        else torch.float32
    )


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


def arrays(*tensors: Tensor | None) -> list[Any]:
    """The same memory as NumPy arrays."""
    return [None if t is None else t.numpy(force=True) for t in tensors]


def refuse_tangents(*tensors: Tensor | None) -> None:
    """A NotImplementedError for tensors with tangents.

    PyTorch would drop them silently where a compiled or traced call reaches an operator.
    """
    if _any_tangent(tensors):
        raise NotImplementedError(
            "forward-mode derivatives of fastderiv's operators need a call "
            "that is not compiled or traced"
        )


def shape_of(t: Tensor | None) -> Any:
    """An array of a tensor's shape that must not be read; None for None."""
    return None if t is None else without_memory(t.shape, [0] * t.ndim)


def without_memory(shape: torch.Size, strides: Sequence[int]) -> np.ndarray:
    """An array of this shape and these strides, in elements, that must not be read."""
    return as_strided(np.zeros((), np.float32), tuple(shape), [4 * step for step in strides])
