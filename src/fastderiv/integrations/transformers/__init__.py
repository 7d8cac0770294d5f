"""`enable`, `disable`, `enabled`: models of transformers use fastderiv on the CPU.

How it works: the mixers of these models look up their functions among the globals of their modules,
``mamba_selective_scan`` for training and prefill, ``mamba_selective_state_update`` for a token
decoded from the cache, ``causal_conv1d_fn``, ….  Those are replaced that the table in `_table.py`
names, by functions of `_functions.py`, which call `fastderiv.integrations.torch`.  In transformers
4.5x, methods of the mixers are replaced, by those of `_mixers.py`.  Projections, cache and
generation remain those of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .. import torch as _torch  # noqa: F401 (says plainly if PyTorch is missing)

try:
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        "fastderiv.integrations.transformers needs transformers, which fastderiv does not depend "
        "on: pip install transformers",
        name="transformers",
    ) from error

from ._switch import switch

__all__ = ["disable", "enable", "enabled"]


def enable() -> None:
    """Let models of transformers on the CPU use fastderiv for scans and causal convolutions.

    These are Mamba, Falcon-Mamba, Jamba, Zamba; Mamba-2, Bamba, Falcon-H1, Granite-MoE-hybrid,
    Nemotron-H, Zamba2; and for their convolutions LFM2, Qwen3-Next, Kimi-Linear and all others that
    have one (their gated delta rule is left as it is).  This affects models built before and after,
    in the whole process.  It covers training, prefill and cached decoding, in float32, float64,
    bfloat16 and float16 (the latter two are computed in float32), also under ``torch.compile``.
    Enabling twice has no further effect.

    Where ``mamba_ssm`` or ``causal_conv1d`` is installed, transformers calls them for tensors on
    any device, and they refuse those on the CPU.  These are computed here, others by them.

    Some calls are left to transformers, with a RuntimeWarning that names the reason, once per
    reason: on another device, in forward mode, by the transforms of ``torch.func``, or under
    ``torch.export`` and ``torch.jit.trace``.  Second derivatives are computed here, see
    `fastderiv.integrations.torch.selective_scan`.

    Versions from 5.16 on have functions that are replaced; those from 4.50 to 5.3 have layers with
    methods that are replaced.  Other versions keep what they have, with a RuntimeWarning that names
    what was not found.

    Notes
    -----
    The results are those of transformers up to the rounding of the working precision, also in one
    case where transformers departs from the mathematics: in Mamba-1 and its hybrids, several tokens
    at once on a cache that already holds a state are scanned from a state of zeros.  They are not
    those of mistakes in transformers 4.5x that its code for GPUs does not have: Zamba2 adds up the
    states of chunks wrongly, and decoding after a prompt of fewer tokens than a convolution has
    taps forgets one.

    Sequences packed into one row (``DataCollatorWithFlattening(return_seq_idx=True)``) are kept
    apart on the CPU too, which transformers alone refuses to do: in Mamba-2 and its hybrids, LFM2,
    LFM3 and Inkling; with transformers 4.5x in Bamba and Granite-MoE-hybrid only.  Pass
    ``use_cache=False``: with a cache, their attention does not look at the position ids.  Zamba and
    models with a delta rule refuse them as before, because transformers hands ``seq_idx`` to their
    convolutions only.  Some models never hand it on, with or without fastderiv: Mamba,
    Falcon-Mamba, Jamba, and Mamba-2 with a head
    (``Mamba2ForCausalLM``; its ``backbone`` does).

    A layer of L tokens needs O(batch·D·L·N) memory in transformers' own implementation of Mamba-1,
    and O(batch·D·L) with fastderiv.

    Examples
    --------
    >>> import torch
    >>> from transformers import MambaConfig, MambaForCausalLM
    >>> from fastderiv.integrations import transformers as fast
    >>> config = MambaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1)
    >>> model = MambaForCausalLM(config).eval()
    >>> tokens = torch.arange(10)[None]
    >>> expected = model(tokens).logits
    >>> fast.enable()
    >>> torch.allclose(model(tokens).logits, expected, atol=1e-5)
    True
    >>> fast.disable()
    """
    switch(wanted=True)


def disable() -> None:
    """Undo `enable`: put transformers' functions back, unless a block of `enabled` still runs.

    Examples
    --------
    >>> from fastderiv.integrations import transformers as fast
    >>> fast.disable()
    """
    switch(wanted=False)


@contextmanager
def enabled() -> Iterator[None]:
    """`enable` for the duration of a ``with`` block, in the whole process.

    Blocks may be nested, and may overlap.

    Examples
    --------
    >>> from fastderiv.integrations import transformers as fast
    >>> with fast.enabled():
    ...     pass  # model.generate(…)
    """
    try:
        switch(blocks=1)
        yield
    finally:
        switch(blocks=-1)
