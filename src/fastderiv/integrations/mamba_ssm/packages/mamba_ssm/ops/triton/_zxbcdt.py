"""What a mixer of Mamba-2 scans: the parts of zxbcdt, and the convolution of some of them."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from fastderiv.integrations.torch import causal_conv1d


class Sizes(NamedTuple):
    """How wide the parts of zxbcdt are."""

    mlp: int  # M, 0 without an MLP
    heads: int
    width: int  # P
    groups: int
    states: int  # N

    @property
    def channels(self) -> int:
        return self.heads * self.width


class Parts(NamedTuple):
    """What zxbcdt is made of, x, B and C after their convolution."""

    mlp: Tensor
    z: Tensor
    x: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor


def sizes_of(
    zxbcdt: Tensor, conv1d_weight: Tensor, D: Tensor, headdim: int | None, ngroups: int
) -> Sizes:
    heads, width = D.shape[0], D.shape[1] if D.ndim == 2 else headdim
    if width is None:
        raise ValueError(
            f"headdim is None; expected P, which D of shape {tuple(D.shape)} does not say"
        )
    convolved, channels = conv1d_weight.shape[0], heads * width
    states = (convolved - channels) // ngroups // 2
    rest = zxbcdt.shape[-1] - 2 * channels - 2 * ngroups * states - heads
    if heads % ngroups or channels + 2 * ngroups * states != convolved or rest < 0 or rest % 2:
        raise ValueError(
            f"zxbcdt has shape {tuple(zxbcdt.shape)}, conv1d_weight {tuple(conv1d_weight.shape)}; "
            "expected last and first axis to be 2 M + 2 heads P + 2 groups N + heads and "
            f"heads P + 2 groups N, with heads = {heads}, P = {width}, groups = {ngroups}, which "
            "divides heads, any M and any N"
        )
    return Sizes(rest // 2, heads, width, ngroups, states)


def split(
    zxbcdt: Tensor,
    sizes: Sizes,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    *,
    activation: str | None,
    seq_idx: Tensor | None = None,
    convolve: Callable[..., Tensor] = causal_conv1d,
) -> Parts:
    """The parts of zxbcdt, of these sizes."""
    channels, rest = sizes.channels, sizes.groups * sizes.states
    mlp, z, xBC, dt = zxbcdt.split(
        [2 * sizes.mlp, channels, channels + 2 * rest, sizes.heads], dim=-1
    )
    options = {} if seq_idx is None else {"seq_idx": seq_idx}
    xBC = convolve(
        xBC.transpose(1, 2), conv1d_weight, conv1d_bias, activation=activation, **options
    ).transpose(1, 2)
    x, B, C = xBC.split([channels, rest, rest], dim=-1)
    z, x = (t.unflatten(2, (sizes.heads, sizes.width)) for t in (z, x))
    B, C = (t.unflatten(2, (sizes.groups, sizes.states)) for t in (B, C))
    return Parts(mlp, z, x, B, C, dt)
