"""`Mamba`, the mixer of the first generation, and `Block` as code for mamba_ssm 1 imports it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastderiv.integrations.torch import selective_scan, selective_state_update

from . import block
from ._recurrent import (
    Recurrent,
    check_input,
    convolve,
    inverse_softplus_of_random_steps,
    negative_exp,
    undecayed,
)


class Mamba(Recurrent):
    """The mixer of Mamba: projection, causal convolution, selective scan with gate, projection.

    Parameters
    ----------
    d_model, d_state, d_conv : int
        Width of inputs and outputs, states a channel, taps of the convolution.
    expand : float
        The scan has ``int(expand * d_model)`` channels.
    dt_rank : int or "auto"
        Rank of the step sizes' projection; "auto" is ``ceil(d_model / 16)``.
    dt_min, dt_max, dt_init, dt_scale, dt_init_floor
        Initial step sizes: their range and lower bound; "random" or "constant" initial weights of
        their projection, and the scale of these.
    conv_bias, bias : bool
        Whether the convolution, and the projections in and out, have a bias.
    use_fast_path : bool
        Has no effect: there is one path.
    layer_idx : int, optional
        Under which key the cache of ``inference_params`` holds this layer's states.
    device, dtype
        Of the parameters.
    bimamba_type : "none", "v1" or "v2"
        As in Vim, a second scan from the end, added to the first: with its own A ("v1"), or with
        its own convolution and projections too ("v2").
    if_divide_out : bool
        Whether "v2" takes the mean of both directions instead of their sum.
    init_layer_scale : float, optional
        The result is multiplied by a parameter ``gamma`` with this initial value.
    if_devide_out, bimamba : bool
        Other forks' names for `if_divide_out`, and for ``bimamba_type="v2"`` (VideoMamba).

    Notes
    -----
    Parameters, their initial values, and the random numbers drawn for them are those of the
    original, so that its checkpoints load.  Without a cache, a layer takes O(batch·L·channels)
    memory.  With one, a call takes up where the last one ended, with any number of tokens.

    Examples
    --------
    >>> import torch
    >>> Mamba(16)(torch.zeros(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    # Instances that the original has pickled lack these.
    bimamba_type = "none"
    if_divide_out = False
    init_layer_scale: float | None = None

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        bimamba_type: str | None = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
        *,
        if_devide_out: bool = False,
        bimamba: bool = False,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.bimamba_type = "v2" if bimamba else (bimamba_type or "none").lower()
        if self.bimamba_type not in ("none", "v1", "v2"):
            raise ValueError(f"bimamba_type is {bimamba_type!r}; expected 'none', 'v1' or 'v2'")
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = channels = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.if_divide_out = if_divide_out or if_devide_out
        self.init_layer_scale = init_layer_scale
        self.activation, self.act = "silu", nn.SiLU()
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model, device=device))

        def new_branch(suffix: str) -> None:
            conv = partial(nn.Conv1d, padding=d_conv - 1, groups=channels, bias=conv_bias)
            setattr(self, f"conv1d{suffix}", conv(channels, channels, d_conv, **factory))
            projected = self.dt_rank + 2 * d_state
            setattr(self, f"x_proj{suffix}", nn.Linear(channels, projected, bias=False, **factory))
            setattr(self, f"dt_proj{suffix}", nn.Linear(self.dt_rank, channels, **factory))

        def new_A_log() -> nn.Parameter:  # float32 whatever the dtype, and so is D
            steps = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
            return undecayed(steps.log().repeat(channels, 1))

        self.in_proj = nn.Linear(d_model, 2 * channels, bias=bias, **factory)
        new_branch("")
        self._reset_step_sizes(dt_init, dt_scale, dt_min, dt_max, dt_init_floor, factory)
        self.A_log = new_A_log()
        self.D = undecayed(torch.ones(channels, device=device))
        if self.bimamba_type != "none":
            self.A_b_log = new_A_log()
        if self.bimamba_type == "v2":
            new_branch("_b")
            self.D_b = undecayed(torch.ones(channels, device=device))
        self.out_proj = nn.Linear(channels, d_model, bias=bias, **factory)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.d_inner, self.d_state)

    def _reset_step_sizes(
        self,
        dt_init: str,
        dt_scale: float,
        dt_min: float,
        dt_max: float,
        dt_init_floor: float,
        factory: dict[str, Any],
    ) -> None:
        bound = dt_scale * self.dt_rank**-0.5
        if dt_init == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        elif dt_init == "random":
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        else:
            raise NotImplementedError(f"dt_init is {dt_init!r}; expected 'constant' or 'random'")
        biases = inverse_softplus_of_random_steps(
            self.d_inner, dt_min, dt_max, dt_init_floor, **factory
        )
        with torch.no_grad():
            self.dt_proj.bias.copy_(biases)
        self.dt_proj.bias._no_reinit = True  # noqa: SLF001 (for `_init_weights` of the models)

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """The mixer on hidden_states (batch, L, d_model); the same shape."""
        if inference_params is None:
            return self._mix(hidden_states)
        states = self._get_states_from_cache(inference_params, len(hidden_states))
        return self._mix(hidden_states, *states, resume=inference_params.seqlen_offset > 0)

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens (batch, 1, d_model) that follow; both states are overwritten."""
        return self._mix(hidden_states, conv_state, ssm_state, resume=True), conv_state, ssm_state

    def _mix(
        self,
        hidden_states: Tensor,
        conv_state: Tensor | None = None,
        ssm_state: Tensor | None = None,
        *,
        resume: bool = False,
    ) -> Tensor:
        check_input("hidden_states", hidden_states, self.d_model)
        # (batch, channels, L), where channels are contiguous
        x, z = self.in_proj(hidden_states).mT.chunk(2, dim=1)
        u = convolve(self.conv1d, x, self.activation, conv_state, resume=resume)
        y = self._scan(u, z, "", self.A_log, self.D, ssm_state, resume)
        if self.bimamba_type != "none":
            if ssm_state is not None:
                raise ValueError(f"bimamba_type {self.bimamba_type!r} cannot decode step by step")
            y = y + self._scan_from_the_end(x, z, u)
            if self.if_divide_out and self.bimamba_type == "v2":
                y = y / 2
        out = self.out_proj(y.mT)
        return out if self.init_layer_scale is None else out * self.gamma

    def _scan(
        self,
        u: Tensor,
        z: Tensor,
        suffix: str,
        A_log: Tensor,
        D: Tensor,
        state: Tensor | None = None,
        resume: bool = False,
    ) -> Tensor:
        x_proj, dt_proj = getattr(self, f"x_proj{suffix}"), getattr(self, f"dt_proj{suffix}")
        dt, B, C = x_proj(u.mT).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt, B, C = linear(dt, dt_proj.weight).mT, B.mT, C.mT
        A, bias = negative_exp(A_log), dt_proj.bias
        if resume and u.shape[-1] == 1:
            one = (t[..., 0] for t in (u, dt, B, C, z))
            x, dt, B, C, z = one
            y = selective_state_update(state, x, dt, A, B, C, D, z, bias, dt_softplus=True)
            return y[..., None]
        y = selective_scan(
            u,
            dt,
            A,
            B,
            C,
            D,
            z,
            bias,
            delta_softplus=True,
            return_last_state=state is not None,
            initial_state=state.clone() if state is not None and resume else None,
        )
        if state is not None:
            y, last_state = y
            state.copy_(last_state)
        return y

    def _scan_from_the_end(self, x: Tensor, z: Tensor, u: Tensor) -> Tensor:
        x, z, u = x.flip(-1), z.flip(-1), u.flip(-1)
        if self.bimamba_type == "v1":
            return self._scan(u, z, "", self.A_b_log, self.D).flip(-1)
        u = convolve(self.conv1d_b, x, self.activation)
        return self._scan(u, z, "_b", self.A_b_log, self.D_b).flip(-1)


class Block(block.Block):
    """`mamba_ssm.modules.block.Block` without an MLP, with the arguments of mamba_ssm 1."""

    def __init__(
        self,
        dim: int,
        mixer_cls: Any,
        norm_cls: Any = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        *,
        mlp_cls: Any = nn.Identity,
    ) -> None:
        super().__init__(dim, mixer_cls, mlp_cls, norm_cls, fused_add_norm, residual_in_fp32)
