"""What a mixer of Mamba scans: the convolution of its input, and the projections of that."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastderiv.integrations.torch import causal_conv1d
from fastderiv.integrations.torch._tensors import working

from .triton.layer_norm import normalise


class Signals(NamedTuple):
    """What is scanned: input, step sizes, coefficients and gate."""

    u: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor

    def scan(
        self,
        function: Callable[..., Tensor],
        A: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> Tensor:
        """The scan by this function, `selective_scan_fn` or its reference."""
        return function(
            self.u,
            self.delta,
            A,
            self.B,
            self.C,
            D=D,
            z=self.z,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
        )

    def flipped(self) -> "Signals":
        """The same in reverse time; coefficients (D, N) have none."""
        return Signals(*(t if t.ndim == 2 else t.flip(-1) for t in self))

    def normalised(
        self,
        b_weight: Tensor | None,
        c_weight: Tensor | None,
        dt_weight: Tensor | None,
        eps: float,
    ) -> "Signals":
        return self._replace(
            B=_normalised("B", self.B, b_weight, eps),
            C=_normalised("C", self.C, c_weight, eps),
            delta=_normalised("delta", self.delta, dt_weight, eps),
        )


def project(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    *,
    convolve: Callable[..., Tensor] = causal_conv1d,
) -> Signals:
    """Convolution and projections; time stays the last axis, as the scan reads it."""
    _check("conv1d_weight", conv1d_weight, "(D, 1, width)", [None, 1, None])
    channels = len(conv1d_weight)
    _check("xz", xz, f"(batch, 2 D, L) with D = {channels}", [None, 2 * channels, None])
    for name, t in {"delta_proj_weight": delta_proj_weight, "A": A}.items():
        _check(name, t, f"two axes, the first of length D = {channels}", [channels, None])
    rank, states = delta_proj_weight.shape[1], A.shape[1] * (2 if A.is_complex() else 1)
    rows = rank + 2 * states
    if len(x_proj_weight) != rows:  # those of a B or C that is given are not needed
        rows = rank + states * ((B is None) + (C is None))
    expected = f"({rows}, {channels}), for step sizes of rank {rank}, and B and C if not given"
    _check("x_proj_weight", x_proj_weight, expected, [rows, channels])
    x, z = xz.chunk(2, dim=1)
    u = convolve(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    projected = torch.matmul(x_proj_weight, u)  # (batch, rank + …, L)
    delta = torch.matmul(delta_proj_weight, projected[:, :rank])
    if B is None:
        B = _coefficient(projected[:, rank : rank + states], B_proj_bias, A)
    if C is None:
        C = _coefficient(projected[:, -states:], C_proj_bias, A)
    return Signals(u, delta, B, C, z)


def _check(name: str, t: Tensor, expected: str, shape: list[int | None]) -> None:
    """Refuse a tensor of another shape; None stands for any length."""
    if t.ndim != len(shape) or any(
        n is not None and n != m for n, m in zip(shape, t.shape, strict=True)
    ):
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {expected}")


def _coefficient(rows: Tensor, bias: Tensor | None, A: Tensor) -> Tensor:
    """B or C from its rows of the projection; real and imaginary parts are put side by side."""
    rows = rows if bias is None else rows + bias.to(rows.dtype)[:, None]
    return rows.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2) if A.is_complex() else rows


def _normalised(name: str, t: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the axis before time."""
    if weight is None:
        return t
    if t.ndim == 2:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}; expected an axis of time, as its norm has a weight"
        )
    rows = t.transpose(-1, -2).to(working(t))
    unit = normalise(rows, weight, None, eps, is_rms_norm=True)
    return unit.transpose(-1, -2).to(t.dtype)


def convolve_ref(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    """The causal convolution in PyTorch's operations; for `ssd_combined` too."""
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"activation is {activation!r}; expected None, 'silu' or 'swish'")
    width = weight.shape[1]
    out = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=len(weight))
    out = out[..., : x.shape[-1]]
    return out if activation is None else F.silu(out)
