"""`MambaConfig`: the sizes and options of a language model."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class MambaConfig:
    """What `MambaLMHeadModel` is built from.

    Parameters
    ----------
    d_model, n_layer, vocab_size : int
        Width, number of blocks, number of tokens.
    d_intermediate : int
        Width of the MLP in each block; 0: no MLP.
    ssm_cfg, attn_cfg : dict
        Arguments of the mixers; ``ssm_cfg["layer"]`` is "Mamba1" (the default) or "Mamba2".
    attn_layer_idx : list of int
        Numbers of the blocks whose mixer is `MHA`.
    rms_norm, residual_in_fp32, fused_add_norm : bool
        See `create_block`.
    pad_vocab_size_multiple : int
        The number of tokens is rounded up to a multiple of it.
    tie_embeddings : bool
        Whether logits are made by the embedding.
    """

    d_model: int = 2560
    d_intermediate: int = 0
    n_layer: int = 64
    vocab_size: int = 50277
    ssm_cfg: dict[str, Any] = field(default_factory=dict)
    attn_layer_idx: list[int] = field(default_factory=list)
    attn_cfg: dict[str, Any] = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 8
    tie_embeddings: bool = True
