"""`Mamba2`, the mixer of the second generation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from fastderiv.integrations.torch import selective_state_update, ssd_scan

from ..distributed.distributed_utils import one_process
from ..ops.triton.layernorm_gated import RMSNorm
from ._recurrent import (
    Recurrent,
    at_least_float32,
    check_input,
    convolve,
    inverse_softplus_of_random_steps,
    negative_exp,
    undecayed,
)

try:  # for from_pretrained, save_pretrained and push_to_hub of a single mixer
    from huggingface_hub import PyTorchModelHubMixin as _Hub
except ImportError:

    class _Hub:  # type: ignore[no-redef]
        pass


_UNLIMITED = (0.0, float("inf"))


class Mamba2(Recurrent, _Hub):
    """The mixer of Mamba-2: projection, causal convolution, SSD scan, gated norm, projection.

    Parameters
    ----------
    d_model, d_state, d_conv : int
        Width of inputs and outputs, states a channel, taps of the convolution.
    conv_init : float, optional
        Initial weights of the convolution are uniform between ``-conv_init`` and ``conv_init``.
    expand, headdim, ngroups : int
        The scan has ``expand * d_model`` channels in heads of `headdim`; `ngroups` groups of heads
        share B and C.
    d_ssm : int, optional
        Of these channels, the scan has only so many, and a gated MLP has the others.
    A_init_range : (float, float)
        Initial values of -A are uniform there.
    D_has_hdim : bool
        Whether D has a value a channel, instead of one a head.
    rmsnorm, norm_before_gate : bool
        Whether the result passes a norm, and whether it is gated after that.
    dt_min, dt_max, dt_init_floor, dt_limit
        Range and lower bound of the initial step sizes; limits that all step sizes are clamped to.
    bias, conv_bias : bool
        Whether the projections in and out, and the convolution, have a bias.
    chunk_size, use_mem_eff_path
        Have no effect on results: the scan chooses its chunks, and there is one path.
    layer_idx : int, optional
        Under which key the cache of ``inference_params`` holds this layer's states.
    process_group, sequence_parallel
        For several processes, which are not supported: `process_group` must be None.
    device, dtype
        Of the parameters.

    Notes
    -----
    Parameters, their initial values, and the random numbers drawn for them are those of the
    original, so that its checkpoints load.  With a cache, a call takes up where the last one ended,
    with any number of tokens; its results are those of one call, with `D_has_hdim` and `dt_limit`
    too, which the original's steps do not take.

    Examples
    --------
    >>> import torch
    >>> Mamba2(16, headdim=8)(torch.zeros(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        one_process(process_group)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.conv_init, self.headdim, self.ngroups = conv_init, headdim, ngroups
        self.process_group, self.sequence_parallel = process_group, sequence_parallel
        self.world_size, self.local_rank = 1, 0
        self.d_inner = int(expand * d_model)
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        if self.d_ssm % headdim:
            raise ValueError(f"headdim is {headdim}; expected a divisor of {self.d_ssm} channels")
        self.nheads = self.d_ssm // headdim
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate = D_has_hdim, rmsnorm, norm_before_gate
        self.dt_limit, self.chunk_size = (dt_limit[0], dt_limit[1]), chunk_size
        self.use_mem_eff_path, self.layer_idx = use_mem_eff_path, layer_idx
        self.activation, self.act = "silu", nn.SiLU()

        coefficients = 2 * ngroups * d_state
        projected = 2 * self.d_inner + coefficients + self.nheads
        self.in_proj = nn.Linear(d_model, projected, bias=bias, **factory)
        convolved = self.d_ssm + coefficients
        self.conv1d = nn.Conv1d(
            convolved, convolved, d_conv, padding=d_conv - 1, groups=convolved, bias=conv_bias,
            **factory,
        )  # fmt: skip
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.dt_bias = undecayed(
            inverse_softplus_of_random_steps(self.nheads, dt_min, dt_max, dt_init_floor, **factory)
        )
        low, high = A_init_range
        if not 0 < low <= high:
            raise ValueError(f"A_init_range is {A_init_range}; expected 0 < low <= high")
        A = torch.empty(self.nheads, dtype=torch.float32, device=device).uniform_(low, high)
        self.A_log = undecayed(A.log().to(dtype=dtype))
        skipped = self.d_ssm if D_has_hdim else self.nheads
        self.D = undecayed(torch.ones(skipped, device=device))
        if rmsnorm:
            self.norm = RMSNorm(
                self.d_ssm,
                eps=1e-5,
                norm_before_gate=norm_before_gate,
                group_size=self.d_ssm // ngroups,
                **factory,
            )
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return (self.nheads, self.headdim, self.d_state)

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: Any = None,
    ) -> Tensor:
        """The mixer on u (batch, L, d_model); the same shape.

        Parameters
        ----------
        u : Tensor, shape (batch, L, d_model) or (batch * seqlen, d_model)
            The second only if `seqlen` is given.
        seqlen : int, optional
            L, if `u` has batch and time in one axis.
        seq_idx : Tensor of int, shape (batch, L), optional
            Which sequence a step is of: states do not pass from one sequence to the next.
        cu_seqlens : Tensor of int, shape (k + 1,), optional
            Boundaries of k sequences packed along L with batch 1.  `inference_params` then get the
            states of all of them.
        inference_params : InferenceParams, optional
            Where the states are kept between calls.

        Returns
        -------
        Tensor, shape of `u`
        """
        x = u if seqlen is None else u.unflatten(0, (-1, seqlen))
        if cu_seqlens is not None and seq_idx is None:
            seq_idx = _sequence_of_each_step(cu_seqlens, x.shape[1])
        if inference_params is None:
            out = self._mix(x, seq_idx=seq_idx)
        else:
            resume = inference_params.seqlen_offset > 0
            items = len(x) if cu_seqlens is None or resume else len(cu_seqlens) - 1
            states = self._get_states_from_cache(inference_params, items)
            if resume:
                seq_idx = cu_seqlens = None
            out = self._mix(x, *states, resume=resume, seq_idx=seq_idx, cu_seqlens=cu_seqlens)
        return out if seqlen is None else out.flatten(0, 1)

    def step(
        self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens (batch, 1, d_model) that follow; both states are overwritten."""
        return self._mix(hidden_states, conv_state, ssm_state, resume=True), conv_state, ssm_state

    def _initial_states(self, batch: int) -> Tensor | None:
        """The states (batch, heads, headdim, d_state) before the first token; None: zeros."""
        return None

    def _mix(
        self,
        u: Tensor,
        conv_state: Tensor | None = None,
        ssm_state: Tensor | None = None,
        *,
        resume: bool = False,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """(batch, L, d_model) to the same shape; states are overwritten, and come first if resume.

        What cu_seqlens says stands in seq_idx too; it is given for the states of each sequence.
        """
        check_input("u", u, self.d_model)
        d_mlp, d_ssm = self.d_inner - self.d_ssm, self.d_ssm
        coefficients = self.ngroups * self.d_state
        sizes = [d_mlp, d_mlp, d_ssm, d_ssm + 2 * coefficients, self.nheads]
        gate, up, z, xBC, dt = self.in_proj(u).split(sizes, dim=-1)
        xBC = convolve(
            self.conv1d,
            xBC.mT,
            self.activation,
            conv_state,
            resume=resume,
            seq_idx=seq_idx,
            cu_seqlens=cu_seqlens,
        ).mT
        x, B, C = xBC.split([d_ssm, coefficients, coefficients], dim=-1)
        x = x.unflatten(-1, (self.nheads, self.headdim))
        B, C = (t.unflatten(-1, (self.ngroups, self.d_state)) for t in (B, C))
        by_head = None if self.rmsnorm else z.unflatten(-1, (self.nheads, self.headdim))
        if resume and u.shape[1] == 1:
            y = self._step(x[:, 0], dt[:, 0], B[:, 0], C[:, 0], by_head, ssm_state)
        else:
            packed = (seq_idx, cu_seqlens)
            y = self._scan(x, dt, B, C, by_head, ssm_state, resume, packed)
        y = y.flatten(-2)
        if self.rmsnorm:
            y = self.norm(y, z)
        if d_mlp:
            y = torch.cat([silu(gate) * up, y], dim=-1)
        return self.out_proj(y)

    def _scan(
        self,
        x: Tensor,
        dt: Tensor,
        B: Tensor,
        C: Tensor,
        z: Tensor | None,
        state: Tensor | None,
        resume: bool,
        packed: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        seq_idx, cu_seqlens = packed
        initial = self._initial_states(len(x))
        if state is not None and resume:
            initial = state.clone()
        y = ssd_scan(
            x,
            dt,
            negative_exp(self.A_log),
            B,
            C,
            self.chunk_size,
            D=self._D(),
            z=z,
            dt_bias=self.dt_bias,
            initial_states=initial,
            seq_idx=seq_idx,
            cu_seqlens=cu_seqlens,
            dt_softplus=True,
            dt_limit=self.dt_limit,
            return_final_states=state is not None and cu_seqlens is None,
            return_varlen_states=state is not None and cu_seqlens is not None,
        )
        if state is not None:
            y, last = y
            state.copy_(last)
        return y

    def _step(
        self, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, z: Tensor | None, state: Tensor
    ) -> Tensor:
        """One token; x (batch, heads, headdim), to (batch, 1, heads, headdim)."""
        dt_bias, unlimited = self.dt_bias, self.dt_limit == _UNLIMITED
        if not unlimited:
            dt, dt_bias = softplus(at_least_float32(dt) + dt_bias).clamp(*self.dt_limit), None
        heads = (self.nheads, self.headdim)
        A = negative_exp(self.A_log)[:, None, None].expand(self.state_shape)
        D = self._D()
        y = selective_state_update(
            state,
            x,
            dt[..., None].expand(x.shape),
            A,
            B,
            C,
            D if self.D_has_hdim else D[:, None].expand(heads),
            None if z is None else z[:, 0],
            None if dt_bias is None else dt_bias[:, None].expand(heads),
            dt_softplus=unlimited,
        )
        return y[:, None]

    def _D(self) -> Tensor:
        return self.D.unflatten(0, (self.nheads, self.headdim)) if self.D_has_hdim else self.D


def _sequence_of_each_step(cu_seqlens: Tensor, length: int) -> Tensor:
    """seq_idx (1, length) of packed sequences."""
    steps = torch.arange(length, device=cu_seqlens.device)
    return torch.bucketize(steps, cu_seqlens[1:].long(), right=True)[None].int()
