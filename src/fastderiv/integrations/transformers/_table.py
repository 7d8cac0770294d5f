"""Which models of transformers have functions that fastderiv computes: one row for each."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A model of transformers and what is replaced in its module."""

    model: str
    """The module is ``transformers.models.MODEL.modeling_MODEL``."""
    functions: tuple[str, ...]
    """In transformers 5: the names of functions of the module, see `_functions`."""
    mixers: tuple[str, ...] = ()
    """In transformers 4.5x: the names of classes of the module, see `_mixers`."""
    packs: bool = False
    """Whether all layers of the model tell sequences apart by ``seq_idx`` and position ids."""

    @property
    def module(self) -> str:
        return f"transformers.models.{self.model}.modeling_{self.model}"


class Replacement(NamedTuple):
    """An attribute of a module or of a class that gets another value."""

    owner: ModuleType | type
    name: str
    new: Any


_CONVOLUTION = ("causal_conv1d_fn", "causal_conv1d_update")
_SCAN = (*_CONVOLUTION, "mamba_selective_scan", "mamba_selective_state_update")
_MAMBA = (*_SCAN, "mamba_inner_fn")
_MAMBA2 = (
    *_CONVOLUTION,
    "mamba2_chunk_scan",
    "mamba2_selective_state_update",
    "mamba2_split_conv1d_scan_combined",
)

TABLE = (
    Row("mamba", _MAMBA, ("MambaMixer",)),
    Row("falcon_mamba", _MAMBA, ("FalconMambaMixer",)),
    Row("jamba", _MAMBA, ("JambaMambaMixer",)),
    Row("zamba", _SCAN, ("ZambaMambaMixer",)),
    Row("mamba2", _MAMBA2, ("Mamba2Mixer",), packs=True),
    Row("bamba", _MAMBA2, ("BambaMixer",), packs=True),
    Row("falcon_h1", _MAMBA2, ("FalconH1Mixer",), packs=True),
    Row("granitemoehybrid", _MAMBA2, ("GraniteMoeHybridMambaLayer",), packs=True),
    Row("nemotron_h", _MAMBA2, packs=True),
    Row("zamba2", _MAMBA2, ("Zamba2MambaMixer",), packs=True),
    Row("lfm2", _CONVOLUTION, ("Lfm2ShortConv",), packs=True),
    Row("lfm2_moe", _CONVOLUTION, ("Lfm2MoeShortConv",), packs=True),
    Row("lfm3", _CONVOLUTION, packs=True),
    Row("qwen3_next", _CONVOLUTION, ("Qwen3NextGatedDeltaNet",)),
    Row("qwen3_5", _CONVOLUTION),
    Row("qwen3_5_moe", _CONVOLUTION),
    Row("qwen4_exp", _CONVOLUTION),
    Row("olmo_hybrid", _CONVOLUTION),
    Row("lara_mini", _CONVOLUTION),
    Row("kimi_linear", _CONVOLUTION),
    Row("bailing_hybrid", _CONVOLUTION),
    Row("glm5_next", _CONVOLUTION),
    Row("inkling", _CONVOLUTION, packs=True),
    Row("inkling2", _CONVOLUTION, packs=True),
    Row("inkling2_loop", _CONVOLUTION, packs=True),
)

LEFT_ALONE = {
    "torch_chunk_gated_delta_rule": "fastderiv has no gated delta rule",
    "torch_recurrent_gated_delta_rule": "fastderiv has no gated delta rule",
    "chunk_kimi_delta_attention": "fastderiv has no Kimi delta attention",
    "recurrent_kimi_delta_attention": "fastderiv has no Kimi delta attention",
}
"""Kernel functions of these and other models that are not replaced, and why."""
