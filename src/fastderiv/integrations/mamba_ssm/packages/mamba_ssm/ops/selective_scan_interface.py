"""`selective_scan_fn`, `mamba_inner_fn` and their kin: Mamba's scan, and what surrounds it.

How data flows in a mixer: xz → causal convolution of x → its projections to Δ, B and C → selective
scan, gated by z → output projection.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastderiv.integrations.torch import selective_scan
from fastderiv.integrations.torch._tensors import working

from ._signals import Signals, convolve_ref, project
from .triton.layer_norm import normalise

__all__ = [
    "MambaInnerFn",
    "SelectiveScanFn",
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "rms_norm_forward",
    "selective_scan_fn",
    "selective_scan_ref",
]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """The selective scan of Mamba, differentiable.

    Parameters
    ----------
    u, delta : Tensor, shape (batch, D, L)
        Input and step sizes.
    A : Tensor, shape (D, N)
        Real or complex.
    B, C : Tensor, shape (D, N), (batch, N, L) or (batch, G, N, L)
        Where `A` is complex, those of the last two shapes are real, (…, N, 2L), with real and
        imaginary part of a number side by side; of the first shape they are complex.
    D : Tensor, shape (D,), optional
    z : Tensor, shape of `u`, optional
        Gate: the result is multiplied by silu(z).
    delta_bias : Tensor, shape (D,), optional
    delta_softplus : bool, optional
        Whether softplus is applied to ``delta + delta_bias``.
    return_last_state : bool, optional
        Whether to return the state after the last step too.

    Returns
    -------
    out : Tensor, shape and dtype of `u`
    last_state : Tensor, shape (batch, D, N)
        float32, or float64 where a tensor is; complex where `A` is.  Only if `return_last_state`.

    Raises
    ------
    ValueError, TypeError
        As `fastderiv.integrations.torch.selective_scan`.

    Notes
    -----
    With a real `A` this is `fastderiv.integrations.torch.selective_scan`; time and memory are said
    there.  With a complex one it is `selective_scan_ref`: PyTorch's operations, step by step.
    The last state may be part of a loss; mamba_ssm drops its gradient.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops import (
    ...     selective_scan_interface as interface,
    ... )
    >>> u, one = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.ones(1, 1)
    >>> interface.selective_scan_fn(u, torch.ones(1, 1, 3), -one, one, one)
    tensor([[[1.0000, 0.3679, 0.1353]]])
    """
    is_complex = isinstance(A, Tensor) and A.is_complex()
    scan: Callable[..., Any] = selective_scan_ref if is_complex else selective_scan
    return scan(
        u,
        delta,
        A,
        B,
        C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        delta_softplus=bool(delta_softplus),
        return_last_state=bool(return_last_state),
    )


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """`selective_scan_fn` in PyTorch's operations, step by step.

    Parameters
    ----------
    u, delta, A, B, C, D, z, delta_bias : Tensor
    delta_softplus, return_last_state : bool, optional
        As in `selective_scan_fn`.

    Returns
    -------
    Tensor or tuple of Tensor
        As `selective_scan_fn`.

    Notes
    -----
    A derivative takes O(batch·D·L·N) memory.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops import (
    ...     selective_scan_interface as interface,
    ... )
    >>> u, one = torch.tensor([[[1.0, 0.0, 0.0]]]), torch.ones(1, 1)
    >>> interface.selective_scan_ref(u, torch.ones(1, 1, 3), -one, one, one)
    tensor([[[1.0000, 0.3679, 0.1353]]])
    """
    dtype = working(u, delta, A.real, B.real, C.real)
    x, dt = u.to(dtype), delta.to(dtype)
    dt = dt if delta_bias is None else dt + delta_bias.to(dtype)[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    A = A.to(dtype.to_complex()) if A.is_complex() else A.to(dtype)
    B, C = (_in_time(t, A, u.shape) for t in (B, C))
    h, ys = A.new_zeros(u.shape[0], *A.shape), []
    for i in range(u.shape[2]):
        step = dt[..., i, None]
        h = torch.exp(step * A) * h + step * x[..., i, None] * B[..., i]
        y = (h * C[..., i]).sum(-1)
        ys.append(2 * y.real if y.is_complex() else y)
    out = torch.stack(ys, dim=2) if ys else x * 1
    out = out if D is None else out + x * D.to(dtype)[:, None]
    out = (out if z is None else out * F.silu(z.to(dtype))).to(u.dtype)
    return (out, h) if return_last_state else out


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """The mixer of Mamba from its input projection's result to its output, differentiable.

    Parameters
    ----------
    xz : Tensor, shape (batch, 2 D, L)
        Input of the convolution, and gate.
    conv1d_weight : Tensor, shape (D, 1, width)
    conv1d_bias : Tensor, shape (D,)
        May be None.
    x_proj_weight : Tensor, shape (rank + 2 N, D)
        Projects to the low-rank step size, to B and to C (2 N each where `A` is complex).
    delta_proj_weight : Tensor, shape (D, rank)
    out_proj_weight : Tensor, shape (features, D)
    out_proj_bias : Tensor, shape (features,)
        May be None.
    A : Tensor, shape (D, N)
    B, C : Tensor, optional
        As in `selective_scan_fn`; the projections of the convolution's result if not given.
    D, delta_bias : Tensor, shape (D,), optional
    B_proj_bias, C_proj_bias : Tensor, shape (N,), optional
        Added to the projections.
    delta_softplus : bool, optional
    checkpoint_lvl : {0, 1}, optional
        Accepted for mamba_ssm's sake; it changes nothing.
    b_rms_weight, c_rms_weight : Tensor, shape (N,), optional
    dt_rms_weight : Tensor, shape (D,), optional
        RMSNorm of B, of C and of the projected step size.
    b_c_dt_rms_eps : float, optional
        Their epsilon.

    Returns
    -------
    out : Tensor, shape (batch, L, features)

    Raises
    ------
    ValueError, TypeError
        As `selective_scan_fn`; another `checkpoint_lvl`; RMSNorm of a B or C without time.

    Notes
    -----
    Unlike in mamba_ssm, the weights of the norms have gradients.  Under autocast the projections
    are computed in its dtype.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops import (
    ...     selective_scan_interface as interface,
    ... )
    >>> one = torch.ones(1, 1)
    >>> xz = torch.ones(1, 2, 3)
    >>> interface.mamba_inner_fn(
    ...     xz, one[None], None, torch.ones(3, 1), one, one, None, -one
    ... ).shape
    torch.Size([1, 3, 1])
    """
    _check_level(checkpoint_lvl)
    signals = project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A,
        B, C, B_proj_bias, C_proj_bias
    )  # fmt: skip
    signals = signals.normalised(b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps)
    y = signals.scan(selective_scan_fn, A, D, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """`mamba_inner_fn` without its output projection, as Vim and its kin have it.

    Parameters
    ----------
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A : Tensor
    B, C, D, delta_bias, B_proj_bias, C_proj_bias : Tensor, optional
    delta_softplus : bool, optional
    checkpoint_lvl : {0, 1}, optional
        As in `mamba_inner_fn`.

    Returns
    -------
    out : Tensor, shape (batch, D, L)

    Raises
    ------
    ValueError, TypeError
        As `mamba_inner_fn`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops import (
    ...     selective_scan_interface as interface,
    ... )
    >>> one = torch.ones(1, 1)
    >>> xz = torch.ones(1, 2, 3)
    >>> interface.mamba_inner_fn_no_out_proj(
    ...     xz, one[None], None, torch.ones(3, 1), one, -one
    ... ).shape
    torch.Size([1, 1, 3])
    """
    _check_level(checkpoint_lvl)
    signals = project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A,
        B, C, B_proj_bias, C_proj_bias
    )  # fmt: skip
    return signals.scan(selective_scan_fn, A, D, delta_bias, delta_softplus)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """`mamba_inner_fn` with two scans, forward and backward in time, as Vim (v1) has it.

    Parameters
    ----------
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight : Tensor
    out_proj_weight, out_proj_bias, A : Tensor
        As in `mamba_inner_fn`.
    A_b : Tensor, shape of `A`
        That of the backward scan, which shares all else.
    B, C, D, delta_bias, B_proj_bias, C_proj_bias : Tensor, optional
    delta_softplus : bool, optional
    checkpoint_lvl : {0, 1}, optional
        As in `mamba_inner_fn`.

    Returns
    -------
    out : Tensor, shape (batch, L, features)
        The projected sum of both scans.

    Raises
    ------
    ValueError, TypeError
        As `mamba_inner_fn`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops import (
    ...     selective_scan_interface as interface,
    ... )
    >>> one = torch.ones(1, 1)
    >>> xz = torch.ones(1, 2, 3)
    >>> interface.bimamba_inner_fn(
    ...     xz, one[None], None, torch.ones(3, 1), one, one, None, -one, -one
    ... ).shape
    torch.Size([1, 3, 1])
    """
    _check_level(checkpoint_lvl)
    signals = project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A,
        B, C, B_proj_bias, C_proj_bias
    )  # fmt: skip
    y = _both_ways(signals, selective_scan_fn, A, A_b, D, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` in PyTorch's operations.

    Parameters
    ----------
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight : Tensor
    out_proj_weight, out_proj_bias, A : Tensor
    B, C, D, delta_bias, B_proj_bias, C_proj_bias : Tensor, optional
    delta_softplus : bool, optional
        As in `mamba_inner_fn`.

    Returns
    -------
    out : Tensor, shape (batch, L, features)

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops import (
    ...     selective_scan_interface as interface,
    ... )
    >>> one = torch.ones(1, 1)
    >>> xz = torch.ones(1, 2, 3)
    >>> interface.mamba_inner_ref(
    ...     xz, one[None], None, torch.ones(3, 1), one, one, None, -one
    ... ).shape
    torch.Size([1, 3, 1])
    """
    signals = project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A,
        B, C, B_proj_bias, C_proj_bias, convolve=convolve_ref
    )  # fmt: skip
    y = signals.scan(selective_scan_ref, A, D, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`bimamba_inner_fn` in PyTorch's operations.

    Parameters
    ----------
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight : Tensor
    out_proj_weight, out_proj_bias, A, A_b : Tensor
    B, C, D, delta_bias, B_proj_bias, C_proj_bias : Tensor, optional
    delta_softplus : bool, optional
        As in `bimamba_inner_fn`.

    Returns
    -------
    out : Tensor, shape (batch, L, features)

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops import (
    ...     selective_scan_interface as interface,
    ... )
    >>> one = torch.ones(1, 1)
    >>> xz = torch.ones(1, 2, 3)
    >>> interface.bimamba_inner_ref(
    ...     xz, one[None], None, torch.ones(3, 1), one, one, None, -one, -one
    ... ).shape
    torch.Size([1, 3, 1])
    """
    signals = project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A,
        B, C, B_proj_bias, C_proj_bias, convolve=convolve_ref
    )  # fmt: skip
    y = _both_ways(signals, selective_scan_ref, A, A_b, D, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


def rms_norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-6,
    is_rms_norm: bool = True,
) -> Tensor:
    """RMSNorm, or LayerNorm, over the last axis, computed in float32 if `x` has 16 bits.

    Parameters
    ----------
    x : Tensor, shape (..., N)
    weight, bias : Tensor, shape (N,)
        `bias` may be None.
    eps : float, optional
    is_rms_norm : bool, optional

    Returns
    -------
    y : Tensor, shape and dtype of `x`

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops import (
    ...     selective_scan_interface as interface,
    ... )
    >>> interface.rms_norm_forward(torch.tensor([[2.0, 2.0]]), torch.ones(2), None, eps=0.0)
    tensor([[1., 1.]])
    """
    y = normalise(x.to(working(x)), weight, bias, eps, is_rms_norm=is_rms_norm)
    return y.to(x.dtype)


class SelectiveScanFn:
    """What mamba_ssm calls its autograd function: ``SelectiveScanFn.apply``."""

    apply = staticmethod(selective_scan_fn)


class MambaInnerFn:
    """What mamba_ssm calls its autograd function: ``MambaInnerFn.apply``."""

    apply = staticmethod(mamba_inner_fn)


def _check_level(checkpoint_lvl: int) -> None:
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"checkpoint_lvl is {checkpoint_lvl}; expected 0 or 1")


def _both_ways(
    signals: Signals,
    scan: Callable[..., Tensor],
    A: Tensor,
    A_b: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """The sum of a scan forward and one backward in time, whose A is `A_b`."""
    y = signals.scan(scan, A, D, delta_bias, delta_softplus)
    back = signals.flipped().scan(scan, A_b, D, delta_bias, delta_softplus)
    return y + back.flip(-1)


def _in_time(t: Tensor, A: Tensor, shape: torch.Size) -> Tensor:
    """B or C in the dtype of A as (batch or 1, D or 1, N, L)."""
    if t.ndim == 2:
        return t.to(A.dtype)[None, :, :, None].expand(-1, -1, -1, shape[2])
    t = t.to(A.real.dtype)
    t = torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) if A.is_complex() else t
    return t[:, None] if t.ndim == 3 else t.repeat_interleave(shape[1] // t.shape[1], dim=1)
