"""`Mamba2Simple`: `Mamba2` with fewer options, and initial states that are learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._recurrent import undecayed
from .mamba2 import Mamba2


class Mamba2Simple(Mamba2):
    """`Mamba2` with other defaults, always with a norm after the gate.

    Parameters
    ----------
    learnable_init_states : bool
        Whether the states before the first step are a parameter, ``init_states``, zeros at first.
    activation : "swish" or "silu"
        What follows the convolution.
    d_model, d_state, d_conv, conv_init, expand, headdim, ngroups, A_init_range
        As in `Mamba2`, and so are all others.
    use_mem_eff_path : bool
        As in the original, the norm is over each group of heads if True, and else over all.

    Examples
    --------
    >>> import torch
    >>> Mamba2Simple(16, headdim=8)(torch.zeros(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 128,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        learnable_init_states: bool = False,
        activation: str = "swish",
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            d_model,
            d_state,
            d_conv,
            conv_init=conv_init,
            expand=expand,
            headdim=headdim,
            ngroups=ngroups,
            A_init_range=A_init_range,
            dt_min=dt_min,
            dt_max=dt_max,
            dt_init_floor=dt_init_floor,
            dt_limit=dt_limit,
            bias=bias,
            conv_bias=conv_bias,
            chunk_size=chunk_size,
            use_mem_eff_path=use_mem_eff_path,
            layer_idx=layer_idx,
            device=device,
            dtype=dtype,
        )
        self.activation, self.learnable_init_states = activation, learnable_init_states
        self._set_group_size()
        if learnable_init_states:
            others = dict(self.named_parameters(recurse=False))
            for name in others:
                delattr(self, name)  # optimizers number parameters, and this one comes first
            zeros = torch.zeros(self.state_shape, device=device, dtype=dtype)
            self.init_states = undecayed(zeros)
            for name, parameter in others.items():
                setattr(self, name, parameter)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pickles of the original lack what other mixers may choose."""
        fixed = {"d_ssm": state["d_inner"], "rmsnorm": True, "D_has_hdim": False}
        super().__setstate__(fixed | state)
        self._set_group_size()

    def _set_group_size(self) -> None:
        whole = not self.use_mem_eff_path
        self.norm.group_size = None if whole else self.d_inner // self.ngroups

    def forward(self, u: Tensor, seq_idx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The mixer on u (batch, L, d_model); the same shape."""
        return self._mix(u, seq_idx=seq_idx)

    def _initial_states(self, batch: int) -> Tensor | None:
        if not self.learnable_init_states:
            return None
        return self.init_states.expand(batch, *self.state_shape)
