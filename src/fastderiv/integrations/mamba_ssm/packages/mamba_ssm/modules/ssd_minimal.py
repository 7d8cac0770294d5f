"""`ssd_minimal_discrete`: Mamba-2's scan in plain PyTorch, to read and to compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def segsum(x: Tensor) -> Tensor:
    """Sums over x[..., j + 1 : i + 1] for all i >= j, at [..., i, j]; -inf for i < j.

    Examples
    --------
    >>> segsum(torch.tensor([1.0, 2.0, 4.0]))
    tensor([[0., -inf, -inf],
            [2., 0., -inf],
            [6., 4., 0.]])
    """
    steps = x.shape[-1]
    later = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril(-1)
    sums = torch.where(later, x[..., None], 0).cumsum(-2)  # no differences, which would cancel
    return sums.masked_fill(later.T, -torch.inf)


def ssd_minimal_discrete(
    X: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    block_len: int,
    initial_states: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The scan h = exp(A) h + X ⊗ B, Y = h C by matrix products over blocks of steps.

    Parameters
    ----------
    X : Tensor, shape (batch, L, heads, P)
        Inputs, multiplied by the step sizes already.
    A : Tensor, shape (batch, L, heads)
        Logarithms of the decays.
    B, C : Tensor, shape (batch, L, heads, N)
    block_len : int
        Steps in a block; it affects rounding only.
    initial_states : Tensor, shape (batch, heads, P, N) or (batch, 1, heads, P, N), optional
        States before the first step; zeros by default.

    Returns
    -------
    Y : Tensor, shape of `X`
    final_state : Tensor, shape (batch, heads, P, N)

    Examples
    --------
    >>> one = torch.ones(1, 3, 1, 1)
    >>> ssd_minimal_discrete(one, 0 * one[..., 0], one, one, 2)[0].flatten()
    tensor([1., 2., 3.])
    """
    batch, _, heads, P = X.shape
    if initial_states is None:
        state = X.new_zeros(batch, heads, P, B.shape[-1])
    else:
        state = initial_states.reshape(batch, heads, P, B.shape[-1])
    outputs = []
    for x, a, b, c in zip(*(t.split(block_len, dim=1) for t in (X, A, B, C)), strict=True):
        a = a.mT  # (batch, heads, steps)
        decay, since_start = segsum(a).exp(), a.cumsum(-1).exp()
        within = torch.einsum("bihn,bjhn,bhij,bjhp->bihp", c, b, decay, x)
        outputs.append(within + torch.einsum("bihn,bhi,bhpn->bihp", c, since_start, state))
        added = torch.einsum("bhj,bjhp,bjhn->bhpn", decay[:, :, -1], x, b)
        state = since_start[:, :, -1, None, None] * state + added
    return torch.cat(outputs, dim=1), state
