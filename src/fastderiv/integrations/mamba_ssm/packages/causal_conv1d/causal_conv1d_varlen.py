"""The last inputs of sequences of several lengths, which their convolutions go on with."""

import torch
from torch import Tensor

__all__ = ["causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"]


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last inputs of each of the packed sequences.

    Parameters
    ----------
    x : Tensor, shape (total, D)
        The sequences, end to end.
    cu_seqlens : Tensor of integers, shape (batch + 1,)
        Boundaries of the sequences, from 0 to total, non-decreasing.
    state_len : int
        How many inputs of each are wanted.

    Returns
    -------
    states : Tensor, shape (batch, D, state_len), dtype of `x`
        The newest input last; zeros in front if the sequence is shorter.  Channels are contiguous
        in memory.

    Notes
    -----
    Differentiable, which the original is not.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.causal_conv1d import (
    ...     causal_conv1d_varlen as varlen,
    ... )
    >>> x, boundaries = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 3])
    >>> varlen.causal_conv1d_varlen_states(x, boundaries, 2)
    tensor([[[0., 1.]],
    <BLANKLINE>
            [[2., 3.]]])
    """
    starts, ends = (t.long()[:, None] for t in (cu_seqlens[:-1], cu_seqlens[1:]))
    places = ends + torch.arange(-state_len, 0)  # (batch, state_len)
    inside = places >= starts
    if not len(x):
        return x.new_zeros(len(starts), state_len, x.shape[1]).transpose(1, 2)
    states = x[places.clamp(min=0)].masked_fill(~inside[..., None], 0)
    return states.transpose(1, 2)


def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """`causal_conv1d_varlen_states`, sequence by sequence.

    Parameters
    ----------
    x, cu_seqlens : Tensor
    state_len : int
        As in `causal_conv1d_varlen_states`.

    Returns
    -------
    states : Tensor, shape (batch, D, state_len), dtype of `x`

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.causal_conv1d import (
    ...     causal_conv1d_varlen as varlen,
    ... )
    >>> x, boundaries = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 3])
    >>> varlen.causal_conv1d_varlen_states_ref(x, boundaries, 1).flatten()
    tensor([1., 3.])
    """
    bounds = cu_seqlens.tolist()
    states = x.new_zeros(len(bounds) - 1, state_len, x.shape[1])
    for state, start, end in zip(states, bounds[:-1], bounds[1:], strict=True):
        count = min(state_len, end - start)
        state[state_len - count :] = x[end - count : end]
    return states.transpose(1, 2)
