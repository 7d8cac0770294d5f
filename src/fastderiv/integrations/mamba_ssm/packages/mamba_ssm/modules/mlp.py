"""`GatedMLP`: two layers, with a gate between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu


class GatedMLP(nn.Module):
    """``fc2(y * activation(gate))``, where y and gate are the halves of ``fc1(x)``.

    Parameters
    ----------
    in_features, hidden_features, out_features : int
        Widths.  By default, `hidden_features` is 8/3 of `in_features`; it is rounded up to a
        multiple of `multiple_of`.  `out_features` is `in_features` by default.
    activation : callable
        Applied to the gate.
    bias : bool
        Whether the layers have biases.
    multiple_of : int
        See `hidden_features`.
    device, dtype
        Of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        activation: Callable[[Tensor], Tensor] = silu,
        bias: bool = False,
        multiple_of: int = 128,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        wanted = int(8 * in_features / 3) if hidden_features is None else hidden_features
        hidden = -(-wanted // multiple_of) * multiple_of
        self.activation = activation
        self.fc1 = nn.Linear(in_features, 2 * hidden, **factory)
        self.fc2 = nn.Linear(
            hidden, in_features if out_features is None else out_features, **factory
        )

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(y * self.activation(gate))
