"""LayerNorm and RMSNorm with a gate, over the last axis or over groups of it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from fastderiv.integrations.torch._tensors import transformed, working

from .layer_norm import check_weights, normalise

LARGE = 2**16  # numbers; for fewer, what computing them again adds to a call is not worth it

__all__ = ["LayerNorm", "RMSNorm", "layernorm_fn", "rms_norm_ref", "rmsnorm_fn"]


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """``norm(x) * silu(z)``, or ``norm(x * silu(z))``.

    Parameters
    ----------
    x : Tensor, shape (..., N)
    weight, bias : Tensor, shape (N,)
        `bias` may be None.
    z : Tensor, shape of `x`, optional
        The gate.
    eps : float, optional
        Added to the variance (or to the mean square).
    group_size : int, optional
        The number of neighbours that are normalised together: a divisor of N, which is the default.
    norm_before_gate : bool, optional
        Whether the gate multiplies the normalised numbers, or those to be normalised.
    is_rms_norm : bool, optional
        RMSNorm: no mean is subtracted.

    Returns
    -------
    y : Tensor, shape and dtype of `x`
        Computed in float32 if `x` has 16 bits.

    Raises
    ------
    ValueError
        A shape that does not fit, or groups that do not divide N.

    Notes
    -----
    A graph keeps the arguments of a large call, in their dtype, and nothing else: the backward pass
    computes the norm again, where PyTorch would keep five arrays of the size of `x`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import layernorm_gated
    >>> x = torch.tensor([[1.0, 3.0, 12.0, 16.0]])
    >>> layernorm_gated.layernorm_fn(x, torch.ones(4), None, eps=0.0, group_size=2)
    tensor([[-1.,  1., -1.,  1.]])
    """
    size = x.shape[-1] if group_size is None else group_size
    _check(x, z, size, weight=weight, bias=bias)
    arguments = x, weight, bias, z, eps, size, norm_before_gate, is_rms_norm
    if _is_computed_again(x, weight, bias, z):
        y: Tensor = checkpoint(
            _gated_norm, *arguments, use_reentrant=False, preserve_rng_state=False
        )
        return y
    return _gated_norm(*arguments)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """`layernorm_fn` with ``is_rms_norm=True``.

    Parameters
    ----------
    x, weight, bias, z : Tensor
    eps : float, optional
    group_size : int, optional
    norm_before_gate : bool, optional
        As in `layernorm_fn`.

    Returns
    -------
    y : Tensor, shape and dtype of `x`

    Raises
    ------
    ValueError
        As `layernorm_fn`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import layernorm_gated
    >>> layernorm_gated.rmsnorm_fn(torch.tensor([[2.0, 2.0]]), torch.ones(2), None, eps=0.0)
    tensor([[1., 1.]])
    """
    return layernorm_fn(
        x,
        weight,
        bias,
        z=z,
        eps=eps,
        group_size=group_size,
        norm_before_gate=norm_before_gate,
        is_rms_norm=True,
    )


class LayerNorm(torch.nn.Module):
    """`layernorm_fn` as a module.

    Parameters
    ----------
    hidden_size : int
        The length of the last axis.
    eps : float, optional
    group_size : int, optional
    norm_before_gate : bool, optional
        As in `layernorm_fn`.
    device, dtype : optional
        Those of the parameters.

    Attributes
    ----------
    weight, bias : Parameter, shape (hidden_size,)
        Ones and zeros at first.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import layernorm_gated
    >>> layernorm_gated.LayerNorm(2, eps=0.0)(torch.tensor([[-2.0, 2.0]])).detach()
    tensor([[-1.,  1.]])
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones, the bias to zeros."""
        torch.nn.init.ones_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """`layernorm_fn` with the module's parameters."""
        return layernorm_fn(
            x,
            self.weight,
            self.bias,
            z=z,
            eps=self.eps,
            group_size=self.group_size,
            norm_before_gate=self.norm_before_gate,
        )


class RMSNorm(torch.nn.Module):
    """`rmsnorm_fn` as a module.

    Parameters
    ----------
    hidden_size : int
        The length of the last axis.
    eps : float, optional
    group_size : int, optional
    norm_before_gate : bool, optional
        As in `layernorm_fn`.
    device, dtype : optional
        Those of the weight.

    Attributes
    ----------
    weight : Parameter, shape (hidden_size,)
        Ones at first.
    bias : None

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import layernorm_gated
    >>> layernorm_gated.RMSNorm(2, eps=0.0)(torch.tensor([[2.0, 2.0]])).detach()
    tensor([[1., 1.]])
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones."""
        torch.nn.init.ones_(self.weight)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """`rmsnorm_fn` with the module's weight."""
        return rmsnorm_fn(
            x,
            self.weight,
            self.bias,
            z=z,
            eps=self.eps,
            group_size=self.group_size,
            norm_before_gate=self.norm_before_gate,
        )


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """`rmsnorm_fn`, written out.

    Parameters
    ----------
    x, weight, bias, z : Tensor
    eps : float, optional
    group_size : int, optional
    norm_before_gate : bool, optional
        As in `layernorm_fn`.
    upcast : bool, optional
        Whether to compute in float32.

    Returns
    -------
    y : Tensor, shape and dtype of `x`

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import layernorm_gated
    >>> layernorm_gated.rms_norm_ref(torch.tensor([[2.0, 2.0]]), torch.ones(2), None, eps=0.0)
    tensor([[1., 1.]])
    """
    dtype, size = x.dtype, group_size or x.shape[-1]
    weight, bias = weight.float(), None if bias is None else bias.float()
    if upcast:
        x, z = x.float(), None if z is None else z.float()
    if z is not None and not norm_before_gate:
        x = x * silu(z)
    groups = x.unflatten(-1, (x.shape[-1] // size, size))
    unit = groups / torch.sqrt(groups.square().mean(dim=-1, keepdim=True) + eps)
    y = unit.flatten(-2) * weight
    y = y if bias is None else y + bias
    return (y if z is None or not norm_before_gate else y * silu(z)).to(dtype)


def _gated_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    size: int,
    norm_before_gate: bool,
    is_rms_norm: bool,
) -> Tensor:
    dtype = working(x, z)
    y, gate = x.to(dtype), None if z is None else silu(z.to(dtype))
    if gate is not None and not norm_before_gate:
        y = y * gate
    if size == x.shape[-1]:
        y = normalise(y, weight, bias, eps, is_rms_norm=is_rms_norm)
    else:
        groups = y.unflatten(-1, (x.shape[-1] // size, size))
        unit = normalise(groups, None, None, eps, is_rms_norm=is_rms_norm).flatten(-2)
        y = unit * weight.to(dtype) if bias is None else unit * weight.to(dtype) + bias.to(dtype)
    return (y if gate is None or not norm_before_gate else y * gate).to(x.dtype)


def _is_computed_again(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the backward pass computes the norm again, so that the graph keeps less.

    Not in compiled code, whose compiler decides what is kept, nor under the transforms of
    ``torch.func``, which do not allow it.
    """
    return (
        x.numel() >= LARGE
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and any(t is not None and t.requires_grad for t in (x, *others))
        and not transformed(x, *others)
    )


def _check(x: Tensor, z: Tensor | None, size: int, **weights: Tensor | None) -> None:
    if z is not None and z.shape != x.shape:
        raise ValueError(f"z has shape {tuple(z.shape)}; expected that of x, {tuple(x.shape)}")
    if size < 1 or x.shape[-1] % size:
        raise ValueError(
            f"group_size is {size}; expected a divisor of {x.shape[-1]}, x's last axis"
        )
    check_weights(x, **weights)
