"""What mixers share that carry a state: its place between calls, step sizes, the convolution."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fastderiv.integrations.torch import causal_conv1d, causal_conv1d_update


class Recurrent(nn.Module):
    """A mixer with two states, of its convolution and of its scan.

    Its classes read only attributes that instances of the original have, or have them themselves:
    whole models that a machine with a GPU has pickled can then be loaded.
    """

    conv1d: nn.Conv1d
    layer_idx: int | None

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of the scan's state of one batch item."""
        raise NotImplementedError

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """States of zeros: of the convolution (batch, channels, d_conv), and of the scan."""
        weight = self.conv1d.weight
        like: dict[str, Any] = {"device": weight.device, "dtype": dtype or weight.dtype}
        # the convolution is fastest where the channels are contiguous
        conv_state = torch.zeros(batch_size, weight.shape[2], weight.shape[0], **like)
        return conv_state.mT, torch.zeros(batch_size, *self.state_shape, **like)

    def _get_states_from_cache(
        self, inference_params: Any, batch_size: int, initialize_states: bool = False
    ) -> tuple[Tensor, Tensor]:
        """This layer's states of the batch items in hand; zeros if the cache has none yet."""
        cache = inference_params.key_value_memory_dict
        start = getattr(inference_params, "batch_size_offset", 0)
        if self.layer_idx is None:
            raise ValueError("layer_idx is None; a mixer with a cache needs the layer's number")
        if self.layer_idx not in cache:
            cache[self.layer_idx] = self.allocate_inference_cache(start + batch_size, 0)
        conv_state, scan_state = (s[start : start + batch_size] for s in cache[self.layer_idx])
        if initialize_states:
            conv_state.zero_()
            scan_state.zero_()
        return conv_state, scan_state


def check_input(name: str, x: Tensor, d_model: int) -> None:
    """Refuse an input of a mixer, an argument of this name, that is not (batch, L, d_model)."""
    if x.ndim != 3 or x.shape[-1] != d_model:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; expected (batch, L, d_model) with "
            f"d_model = {d_model}"
        )


def convolve(
    conv: nn.Conv1d,
    x: Tensor,
    activation: str | None,
    state: Tensor | None = None,
    *,
    resume: bool = False,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The causal convolution of x (batch, channels, L), and an activation.

    The newest inputs of each sequence are written to state (batch, channels, d_conv).  With resume,
    it holds those before x too.
    """
    weight = conv.weight[:, 0]
    if resume:
        return causal_conv1d_update(x, state, weight, conv.bias, activation)
    if state is not None:
        width = state.shape[-1]
        if cu_seqlens is None:
            newest = pad(x, (width - x.shape[-1], 0))  # cuts x if it is longer
        else:
            newest = _newest_of_each(x[0], cu_seqlens, width)
        state.copy_(newest)
    return causal_conv1d(x, weight, conv.bias, seq_idx, activation=activation)


def _newest_of_each(x: Tensor, cu_seqlens: Tensor, width: int) -> Tensor:
    """Of x (channels, L), the last width inputs of each packed sequence; zeros before its first."""
    starts, ends = cu_seqlens[:-1, None], cu_seqlens[1:, None]
    steps = ends - torch.arange(width, 0, -1, device=x.device)  # (k, width)
    inside = steps >= starts
    return torch.where(inside[:, None], x[:, steps.clamp(min=0)].movedim(1, 0), 0)


def inverse_softplus_of_random_steps(
    size: int, dt_min: float, dt_max: float, floor: float, **factory: Any
) -> Tensor:
    """Biases whose softplus is log-uniform between dt_min and dt_max, and at least floor."""
    low, high = math.log(dt_min), math.log(dt_max)
    dt = torch.exp(torch.rand(size, **factory) * (high - low) + low).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


def undecayed(values: Tensor) -> nn.Parameter:
    """A parameter that optimizers are to leave without weight decay."""
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # noqa: SLF001 (training code looks for this name)
    return parameter


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def negative_exp(logarithm: Tensor) -> Tensor:
    """−exp(logarithm), at least in float32: in float16 it would overflow."""
    return -torch.exp(at_least_float32(logarithm))
