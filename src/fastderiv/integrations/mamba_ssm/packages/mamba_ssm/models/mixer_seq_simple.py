"""`MambaLMHeadModel`, `MixerModel`, `create_block`: language models of any mixers."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..modules.block import Block, add_and_norm
from ..modules.mamba2 import Mamba2
from ..modules.mamba_simple import Mamba
from ..modules.mha import MHA
from ..modules.mlp import GatedMLP
from ..ops.triton.layer_norm import RMSNorm
from ..utils.generation import GenerationMixin
from ..utils.hf import CONFIG_NAME, WEIGHTS_NAME, load_config_hf, load_state_dict_hf
from .config_mamba import MambaConfig

_SSM_LAYERS = {"Mamba1": Mamba, "Mamba2": Mamba2}

CausalLMOutput = namedtuple("CausalLMOutput", ["logits"])


def create_block(
    d_model: int,
    d_intermediate: int,
    ssm_cfg: dict[str, Any] | None = None,
    attn_layer_idx: list[int] | None = None,
    attn_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """Block number `layer_idx` of a model.

    Parameters
    ----------
    d_model, d_intermediate : int
        Width, and width of the MLP; 0: no MLP.
    ssm_cfg, attn_cfg : dict, optional
        Arguments of `Mamba` or `Mamba2`, by ``ssm_cfg["layer"]``, and of `MHA`.
    attn_layer_idx : list of int, optional
        Numbers of the blocks that have `MHA`.
    norm_epsilon, rms_norm
        Of the norms, which are ``RMSNorm`` or ``LayerNorm``.
    residual_in_fp32, fused_add_norm : bool
        See `Block`.
    layer_idx : int, optional
        The number of the block, under which its states are kept.
    device, dtype
        Of the parameters.
    """
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    mixer: Any
    if layer_idx in (attn_layer_idx or ()):
        mixer, options = MHA, dict(attn_cfg or {})
    else:
        options = dict(ssm_cfg or {})
        name = options.pop("layer", "Mamba1")
        if name not in _SSM_LAYERS:
            raise ValueError(f"ssm_cfg['layer'] is {name!r}; expected one of {[*_SSM_LAYERS]}")
        mixer = _SSM_LAYERS[name]
    mlp: Any = nn.Identity
    if d_intermediate:
        mlp = partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **factory)
    block = Block(
        d_model,
        partial(mixer, layer_idx=layer_idx, **options, **factory),
        mlp,
        norm_cls=partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **factory),
        fused_add_norm=fused_add_norm,
        residual_in_fp32=residual_in_fp32,
    )
    block.layer_idx = layer_idx
    return block


def _init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """Initial values of a module's own parameters, for ``Module.apply``.

    Layers that end in the residual are scaled down by the square root of their number.
    """
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    bias = module.bias if isinstance(module, nn.Linear) else None
    if bias is not None and not getattr(bias, "_no_reinit", False):
        nn.init.zeros_(bias)
    if not rescale_prenorm_residual:
        return
    for name, weight in module.named_parameters():
        if name in ("out_proj.weight", "fc2.weight"):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # anew: this may run twice
            with torch.no_grad():
                weight /= math.sqrt(n_residuals_per_layer * n_layer)


class MixerModel(nn.Module):
    """Embedding, blocks, norm.

    Parameters
    ----------
    d_model, n_layer, d_intermediate, vocab_size : int
        Width, number of blocks, width of their MLPs (0: none), number of tokens.
    ssm_cfg, attn_layer_idx, attn_cfg, norm_epsilon, rms_norm, fused_add_norm, residual_in_fp32
        As in `create_block`.
    initializer_cfg : dict, optional
        Arguments of `_init_weights`.
    device, dtype
        Of the parameters.
    """

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int,
        vocab_size: int,
        ssm_cfg: dict[str, Any] | None = None,
        attn_layer_idx: list[int] | None = None,
        attn_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **factory)
        new_block = partial(
            create_block,
            d_model,
            d_intermediate,
            ssm_cfg,
            attn_layer_idx,
            attn_cfg,
            norm_epsilon=norm_epsilon,
            rms_norm=rms_norm,
            residual_in_fp32=residual_in_fp32,
            fused_add_norm=fused_add_norm,
            **factory,
        )
        self.layers = nn.ModuleList([new_block(layer_idx=i) for i in range(n_layer)])
        norm = RMSNorm if rms_norm else nn.LayerNorm
        self.norm_f = norm(d_model, eps=norm_epsilon, **factory)
        initial = partial(
            _init_weights,
            n_layer=n_layer,
            n_residuals_per_layer=2 if d_intermediate else 1,
            **(initializer_cfg or {}),
        )
        self.apply(initial)

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """What the layers keep between calls, by their numbers."""
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)
            for i, layer in enumerate(self.layers)
        }

    def forward(
        self, input_ids: Tensor, inference_params: Any = None, **mixer_kwargs: Any
    ) -> Tensor:
        """Hidden states (batch, L, d_model) of tokens (batch, L)."""
        x, residual = self.embedding(input_ids), None
        for layer in self.layers:
            x, residual = layer(x, residual, inference_params=inference_params, **mixer_kwargs)
        how = (self.fused_add_norm, self.residual_in_fp32)
        return add_and_norm(x, residual, self.norm_f, *how)[0]


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """A language model: `MixerModel`, and logits of the token that follows each.

    Parameters
    ----------
    config : MambaConfig
    initializer_cfg : dict, optional
        Arguments of `_init_weights`.
    device, dtype
        Of the parameters.

    Examples
    --------
    >>> import torch
    >>> config = MambaConfig(d_model=16, n_layer=1, vocab_size=10)
    >>> model = MambaLMHeadModel(config)
    >>> tokens = torch.arange(3)[None]
    >>> model(tokens).logits.shape  # 10 tokens are padded to a multiple of 8
    torch.Size([1, 3, 16])
    >>> model.generate(tokens, max_length=5, vocab_size=10).shape
    torch.Size([1, 5])
    """

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: dict[str, Any] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config, factory = config, {"device": device, "dtype": dtype}
        multiple = config.pad_vocab_size_multiple
        vocab_size = -(-config.vocab_size // multiple) * multiple
        self.backbone = MixerModel(
            config.d_model,
            config.n_layer,
            config.d_intermediate,
            vocab_size,
            ssm_cfg=config.ssm_cfg,
            attn_layer_idx=config.attn_layer_idx,
            attn_cfg=config.attn_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            **factory,
        )
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False, **factory)
        # as in the original, initial values are drawn once more, with one residual a layer
        self.apply(partial(_init_weights, n_layer=config.n_layer, **(initializer_cfg or {})))
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the embedding's weight that of the logits too, if the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """What the layers keep between calls, by their numbers."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
        **mixer_kwargs: Any,
    ) -> CausalLMOutput:
        """Logits (batch, L, tokens) of what follows each of the tokens (batch, L).

        With num_last_tokens, those of the last ones only; position_ids have no effect.
        """
        x = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        return CausalLMOutput(self.lm_head(x[:, -num_last_tokens:]))  # -0 is 0: all

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> MambaLMHeadModel:
        """The model in a folder, or of that name on the Hugging Face hub."""
        config = MambaConfig(**load_config_hf(pretrained_model_name))
        model = cls(config, device=device, dtype=dtype, **kwargs)
        weights = load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype)
        model.load_state_dict(weights)
        return model

    def save_pretrained(self, save_directory: str) -> None:
        """Write weights and configuration into a folder, for `from_pretrained`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / WEIGHTS_NAME)
        (folder / CONFIG_NAME).write_text(json.dumps(vars(self.config), indent=4), "utf-8")
