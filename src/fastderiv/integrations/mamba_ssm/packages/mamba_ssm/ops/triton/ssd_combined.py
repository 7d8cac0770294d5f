"""Mamba-2's scan (SSD), alone and with all that surrounds it in the mixer.

How data flows in a mixer: zxbcdt → causal convolution of x, B and C → scan → gate and RMSNorm →
output projection.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastderiv.integrations.torch import ssd_scan
from fastderiv.integrations.torch._tensors import working

from .._signals import convolve_ref
from ..selective_scan_interface import selective_scan_fn
from ._zxbcdt import sizes_of, split
from .k_activations import swiglu
from .layernorm_gated import rms_norm_ref, rmsnorm_fn

__all__ = [
    "MambaChunkScanCombinedFn",
    "MambaSplitConv1dScanCombinedFn",
    "mamba_chunk_scan",
    "mamba_chunk_scan_combined",
    "mamba_conv1d_scan_ref",
    "mamba_split_conv1d_scan_combined",
    "mamba_split_conv1d_scan_ref",
    "ssd_chunk_scan_combined_ref",
    "ssd_selective_scan",
]

_NO_LIMIT = (0.0, math.inf)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Any:
    """Mamba-2's scan, differentiable.

    Parameters
    ----------
    x : Tensor, shape (batch, L, heads, P)
    dt : Tensor, shape (batch, L, heads)
    A : Tensor, shape (heads,)
    B, C : Tensor, shape (batch, L, groups, N)
    chunk_size : int
        Has no effect: how a sequence is divided is no matter of the result.
    D : Tensor, shape (heads,) or (heads, P), optional
    z : Tensor, shape of `x`, optional
        Gate: the result is multiplied by silu(z).
    dt_bias : Tensor, shape (heads,), optional
    initial_states : Tensor, shape (batch, heads, P, N), optional
        With `seq_idx` they belong to sequence 0.
    seq_idx : Tensor of integers, shape (batch, L), optional
        Which sequence a step belongs to: the state restarts where the number changes.
    cu_seqlens : Tensor of integers, shape (k + 1,), optional
        Boundaries of k sequences, with batch 1; ignored unless `return_varlen_states`.
    dt_softplus : bool, optional
        Whether softplus is applied to ``dt + dt_bias``.
    dt_limit : pair of float, optional
        The least and the largest step size.
    return_final_states, return_varlen_states : bool, optional
    state_dtype : torch.dtype, optional
        That of the returned states.

    Returns
    -------
    out : Tensor, shape and dtype of `x`
    final_states : Tensor, shape (batch, heads, P, N)
        After the last step of every row; float32 (float64 where a tensor is) by default.  Only if
        `return_final_states`.
    varlen_states : Tensor, shape (k, heads, P, N)
        After the last step of each sequence of `cu_seqlens`, in the dtype of `C` by default.  Only
        if `return_varlen_states`.

    Raises
    ------
    ValueError, TypeError
        As `fastderiv.integrations.torch.ssd_scan`.

    Notes
    -----
    Time and memory are said there.  With `return_varlen_states` the state restarts at
    `cu_seqlens` too, whether or not `seq_idx` says so, and the states have gradients; in mamba_ssm
    neither is the case.

    Examples
    --------
    >>> import math, torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import ssd_combined
    >>> x = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    >>> one, A = torch.ones(1, 3, 1, 1), torch.tensor([-math.log(2)])
    >>> y = ssd_combined.mamba_chunk_scan_combined(x, torch.ones(1, 3, 1), A, one, one, 256)
    >>> y.flatten()
    tensor([1.0000, 0.5000, 0.2500])
    """
    found = ssd_scan(
        x,
        dt,
        A,
        B,
        C,
        chunk_size=chunk_size,
        D=D,
        z=z,
        dt_bias=dt_bias,
        initial_states=initial_states,
        seq_idx=seq_idx,
        cu_seqlens=cu_seqlens if return_varlen_states else None,
        dt_softplus=dt_softplus,
        dt_limit=dt_limit,
        return_final_states=return_final_states,
        return_varlen_states=return_varlen_states,
        state_dtype=state_dtype,
    )
    if return_varlen_states and state_dtype is None:
        *others, varlen_states = found
        return (*others, varlen_states.to(C.dtype))
    return found


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """`mamba_chunk_scan_combined` without its other options.

    Parameters
    ----------
    x, dt, A, B, C : Tensor
    chunk_size : int
    D, z, dt_bias : Tensor, optional
    dt_softplus : bool, optional
        As in `mamba_chunk_scan_combined`.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Raises
    ------
    ValueError, TypeError
        As `mamba_chunk_scan_combined`.

    Examples
    --------
    >>> import math, torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import ssd_combined
    >>> one, A = torch.ones(1, 3, 1, 1), torch.tensor([-math.log(2)])
    >>> ssd_combined.mamba_chunk_scan(one, torch.ones(1, 3, 1), A, one, one, 256).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    out: Tensor = mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=D, z=z, dt_bias=dt_bias, dt_softplus=dt_softplus
    )
    return out


def ssd_chunk_scan_combined_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """`mamba_chunk_scan` in PyTorch's operations, step by step.

    Parameters
    ----------
    x, dt, A, B, C : Tensor
    chunk_size : int
        Has no effect.
    D, z, dt_bias : Tensor, optional
    dt_softplus : bool, optional
        As in `mamba_chunk_scan_combined`.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Notes
    -----
    A derivative takes O(batch·L·heads·P·N) memory.

    Examples
    --------
    >>> import math, torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import ssd_combined
    >>> one, A = torch.ones(1, 3, 1, 1), torch.tensor([-math.log(2)])
    >>> dt = torch.ones(1, 3, 1)
    >>> ssd_combined.ssd_chunk_scan_combined_ref(one, dt, A, one, one, 256).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    dtype = working(x, dt, A, B, C)
    u, step = x.to(dtype), dt.to(dtype)
    step = step if dt_bias is None else step + dt_bias.to(dtype)
    step = F.softplus(step) if dt_softplus else step
    B, C = (t.to(dtype).repeat_interleave(x.shape[2] // t.shape[2], dim=2) for t in (B, C))
    h, ys = u.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1]), []
    for i in range(x.shape[1]):
        decay = torch.exp(step[:, i] * A.to(dtype))[..., None, None]
        h = decay * h + (step[:, i, :, None] * u[:, i])[..., None] * B[:, i, :, None]
        ys.append((h * C[:, i, :, None]).sum(-1))
    out = torch.stack(ys, dim=1) if ys else u * 1
    if D is not None:
        out = out + (D if D.ndim == 2 else D[:, None]).to(dtype) * u
    return (out if z is None else out * F.silu(z.to(dtype))).to(x.dtype)


def ssd_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> Tensor:
    """Mamba-2's scan as a selective scan of all channels of all heads.

    Parameters
    ----------
    x, z : Tensor, shape (batch, L, heads, P)
        `z` is optional.
    dt : Tensor, shape (batch, L, heads) or (batch, L, heads, P)
    A : Tensor, shape (heads,) or (heads P, N)
    B, C : Tensor, shape (batch, L, groups, N)
    D, dt_bias : Tensor, shape (heads,) or (heads, P), optional
    dt_softplus : bool, optional
    dt_limit : pair of float, optional
        As in `mamba_chunk_scan_combined`.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Raises
    ------
    ValueError, TypeError
        As `selective_scan_fn`.

    Examples
    --------
    >>> import math, torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import ssd_combined
    >>> one, A = torch.ones(1, 3, 1, 1), torch.tensor([-math.log(2)])
    >>> ssd_combined.ssd_selective_scan(one, torch.ones(1, 3, 1), A, one, one).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    heads, width = x.shape[2:]
    states = B.shape[-1]

    def in_channels(t: Tensor) -> Tensor:
        """(batch, L, heads) or (batch, L, heads, P) -> (batch, heads P, L)."""
        t = t if t.ndim == 4 else t[..., None].expand(-1, -1, -1, width)
        return t.flatten(2).transpose(1, 2)

    def of_channels(t: Tensor | None) -> Tensor | None:
        """(heads,) or (heads, P) -> (heads P,)."""
        return t if t is None else t.flatten() if t.ndim == 2 else t.repeat_interleave(width)

    delta, bias = in_channels(dt), of_channels(dt_bias)
    if tuple(dt_limit) != _NO_LIMIT:
        delta = delta if bias is None else delta + bias[:, None]
        delta = F.softplus(delta) if dt_softplus else delta
        delta = delta.clamp(*dt_limit).to(x.dtype)
        bias, dt_softplus = None, False
    if A.ndim == 1:
        A = A.repeat_interleave(width)[:, None].expand(-1, states)
    out: Tensor = selective_scan_fn(
        in_channels(x),
        delta,
        A,
        B.permute(0, 2, 3, 1),
        C.permute(0, 2, 3, 1),
        D=of_channels(D),
        z=None if z is None else in_channels(z),
        delta_bias=bias,
        delta_softplus=dt_softplus,
    )
    return out.transpose(1, 2).unflatten(2, (heads, width))


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Any:
    """The mixer of Mamba-2 from its input projection's result to its output, differentiable.

    Parameters
    ----------
    zxbcdt : Tensor, shape (batch, L, 2 M + 2 heads P + 2 groups N + heads)
        The two halves of an MLP of width M (often 0), gate, x, B, C and step sizes, side by side.
    conv1d_weight : Tensor, shape (heads P + 2 groups N, width)
    conv1d_bias : Tensor, shape (heads P + 2 groups N,)
        May be None.
    dt_bias, A : Tensor, shape (heads,)
    D : Tensor, shape (heads,) or (heads, P)
    chunk_size : int
        Has no effect.
    initial_states, seq_idx, dt_limit, return_final_states, state_dtype : optional
        As in `mamba_chunk_scan_combined`.  With `seq_idx` no sequence's convolution sees another.
    activation : None, "silu" or "swish", optional
        That of the convolution.
    rmsnorm_weight : Tensor, shape (heads P,), optional
        Whether to normalise, in groups.
    rmsnorm_eps : float, optional
    outproj_weight : Tensor, shape (features, M + heads P), optional
        The output projection, if any.
    outproj_bias : Tensor, shape (features,), optional
    headdim : int, optional
        P, which `D` of shape (heads,) does not say.
    ngroups : int, optional
    norm_before_gate : bool, optional
        As in `layernorm_gated.rmsnorm_fn`.

    Returns
    -------
    out : Tensor, shape (batch, L, M + heads P), or (batch, L, features) if projected
    final_states : Tensor, shape (batch, heads, P, N)
        Only if `return_final_states`.

    Raises
    ------
    ValueError, TypeError
        A shape that does not fit, or another `activation`.

    Notes
    -----
    The step sizes have softplus applied.  Under autocast the projection is computed in its dtype.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import ssd_combined
    >>> one = torch.ones(2)  # of heads
    >>> ssd_combined.mamba_split_conv1d_scan_combined(
    ...     torch.zeros(1, 3, 2 * 2 * 4 + 2 * 16 + 2),
    ...     torch.ones(2 * 4 + 2 * 16, 4), None, one, -one, one, 256, headdim=4,
    ... ).shape
    torch.Size([1, 3, 8])
    """
    sizes = sizes_of(zxbcdt, conv1d_weight, D, headdim, ngroups)
    parts = split(zxbcdt, sizes, conv1d_weight, conv1d_bias, seq_idx=seq_idx, activation=activation)
    found = mamba_chunk_scan_combined(
        parts.x,
        parts.dt,
        A,
        parts.B,
        parts.C,
        chunk_size,
        D=D,
        z=parts.z if rmsnorm_weight is None else None,
        dt_bias=dt_bias,
        initial_states=initial_states,
        seq_idx=seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=return_final_states,
        state_dtype=state_dtype,
    )
    out, *final_states = found if return_final_states else (found,)
    out = out.flatten(2)
    if rmsnorm_weight is not None:
        out = rmsnorm_fn(
            out,
            rmsnorm_weight,
            None,
            z=parts.z.flatten(2),
            eps=rmsnorm_eps,
            group_size=sizes.channels // ngroups,
            norm_before_gate=norm_before_gate,
        )
    if sizes.mlp:
        out = torch.cat([swiglu(parts.mlp), out], dim=-1)
    out = _project(out, outproj_weight, outproj_bias)
    return (out, *final_states) if return_final_states else out


def mamba_split_conv1d_scan_ref(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """`mamba_split_conv1d_scan_combined` by PyTorch's operations and a selective scan.

    Parameters
    ----------
    zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D : Tensor
    chunk_size : int
    dt_limit : pair of float, optional
    activation : None, "silu" or "swish", optional
    rmsnorm_weight, outproj_weight, outproj_bias : Tensor, optional
    rmsnorm_eps : float, optional
    headdim, ngroups : int, optional
    norm_before_gate : bool, optional
        As in `mamba_split_conv1d_scan_combined`.

    Returns
    -------
    out : Tensor
        As of `mamba_split_conv1d_scan_combined`.

    Notes
    -----
    The norm is in groups as there; mamba_ssm's reference takes all channels as one group.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import ssd_combined
    >>> one = torch.ones(2)  # of heads
    >>> ssd_combined.mamba_split_conv1d_scan_ref(
    ...     torch.zeros(1, 3, 2 * 2 * 4 + 2 * 16 + 2),
    ...     torch.ones(2 * 4 + 2 * 16, 4), None, one, -one, one, 256, headdim=4,
    ... ).shape
    torch.Size([1, 3, 8])
    """
    sizes = sizes_of(zxbcdt, conv1d_weight, D, headdim, ngroups)
    parts = split(
        zxbcdt, sizes, conv1d_weight, conv1d_bias, activation=activation, convolve=convolve_ref
    )
    z = parts.z if rmsnorm_weight is None else None
    out = ssd_selective_scan(
        parts.x, parts.dt, A, parts.B, parts.C, D, z, dt_bias, dt_softplus=True, dt_limit=dt_limit
    ).flatten(2)
    if rmsnorm_weight is not None:
        gate, size = parts.z.flatten(2), sizes.channels // ngroups
        out = rms_norm_ref(
            out, rmsnorm_weight, None, gate, rmsnorm_eps, size, norm_before_gate=norm_before_gate
        )
    if sizes.mlp:
        first, second = parts.mlp.chunk(2, dim=-1)
        out = torch.cat([F.silu(first) * second, out], dim=-1)
    return _project(out, outproj_weight, outproj_bias)


def mamba_conv1d_scan_ref(
    xBC: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str | None = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
) -> Tensor:
    """Causal convolution and scan of Mamba-2 by PyTorch's operations and a selective scan.

    Parameters
    ----------
    xBC : Tensor, shape (batch, L, heads P + 2 groups N)
    conv1d_weight : Tensor, shape (heads P + 2 groups N, width)
    conv1d_bias : Tensor, shape (heads P + 2 groups N,)
        May be None.
    dt : Tensor, shape (batch, L, heads) or (batch, L, heads, P)
    A : Tensor, shape (heads,)
    chunk_size : int
        Has no effect.
    D, dt_bias : Tensor, shape (heads,) or (heads, P), optional
    z : Tensor, shape (batch, L, heads P), optional
    dt_softplus : bool, optional
    dt_limit : pair of float, optional
    activation : None, "silu" or "swish", optional
    headdim : int, optional
        P, if neither `z` nor `D` says it.
    ngroups : int, optional

    Returns
    -------
    out : Tensor, shape (batch, L, heads P)

    Raises
    ------
    ValueError
        P is not known.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import ssd_combined
    >>> ssd_combined.mamba_conv1d_scan_ref(
    ...     torch.zeros(1, 3, 8 + 32), torch.ones(8 + 32, 4), None, torch.ones(1, 3, 2),
    ...     -torch.ones(2), 256, headdim=4,
    ... ).shape
    torch.Size([1, 3, 8])
    """
    heads = dt.shape[2]
    if z is not None:
        headdim = z.shape[-1] // heads
    elif D is not None and D.ndim == 2:
        headdim = D.shape[1]
    if headdim is None:
        raise ValueError("headdim is None; expected P, which neither z nor D says")
    convolved = convolve_ref(xBC.transpose(1, 2), conv1d_weight, conv1d_bias, activation=activation)
    channels = heads * headdim
    rest = (convolved.shape[1] - channels) // 2
    x, B, C = convolved.transpose(1, 2).split([channels, rest, rest], dim=-1)
    x = x.unflatten(2, (heads, headdim))
    z = None if z is None else z.unflatten(2, (heads, headdim))
    B, C = (t.unflatten(2, (ngroups, -1)) for t in (B, C))
    return ssd_selective_scan(
        x, dt.to(x.dtype), A, B, C, D, z, dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit
    ).flatten(2)


class MambaChunkScanCombinedFn:
    """What mamba_ssm calls its autograd function: ``MambaChunkScanCombinedFn.apply``."""

    apply = staticmethod(mamba_chunk_scan_combined)


class MambaSplitConv1dScanCombinedFn:
    """What mamba_ssm calls its autograd function: ``MambaSplitConv1dScanCombinedFn.apply``."""

    apply = staticmethod(mamba_split_conv1d_scan_combined)


def _project(out: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The output projection, if there is one."""
    if weight is None and bias is not None:
        raise ValueError("outproj_bias is given without outproj_weight; expected both or neither")
    return out if weight is None else F.linear(out, weight, bias)
