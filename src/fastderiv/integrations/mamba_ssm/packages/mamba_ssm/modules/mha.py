"""`MHA`: multi-head self-attention with a cache, in PyTorch's own attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from ._recurrent import convolve


class MHA(nn.Module):
    """Multi-head self-attention, with rotary embedding, convolution and a gated MLP if asked for.

    Parameters
    ----------
    embed_dim, num_heads : int
        Width of inputs and outputs, number of heads of queries.
    num_heads_kv : int, optional
        Number of heads of keys and values, a divisor of `num_heads`, which is the default.
    head_dim : int, optional
        ``embed_dim / num_heads`` by default.
    mlp_dim : int
        If positive, a gated MLP runs beside the attention: twice its width, rounded up to a
        multiple of 256.
    qkv_proj_bias, out_proj_bias : bool
        Whether the projections have biases.
    softmax_scale : float, optional
        ``head_dim ** -0.5`` by default.
    causal : bool
        Whether a token sees only itself and those before.
    layer_idx : int, optional
        Under which key the cache of ``inference_params`` holds this layer's keys and values.
    d_conv : int
        Taps of a causal convolution of queries, keys and values; 0: none.
    rotary_emb_dim, rotary_emb_base, rotary_emb_interleaved
        How many features of each head of queries and keys are rotated by their position; the base
        of the frequencies; whether pairs are neighbours, or half of the features apart.
    device, dtype
        Of the parameters.

    Notes
    -----
    With a cache, a call takes up where the last one ended, with any number of tokens, and its
    results are those of one call; in the original without flash_attn, and with `d_conv`, they are
    not.  Where ``inference_params.lengths_per_sample`` is set, a call after the first puts the
    tokens of each batch item behind so many others.

    Examples
    --------
    >>> import torch
    >>> MHA(16, 2, causal=True, rotary_emb_dim=8)(torch.zeros(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        mlp_dim: int = 0,
        qkv_proj_bias: bool = True,
        out_proj_bias: bool = True,
        softmax_scale: float | None = None,
        causal: bool = False,
        layer_idx: int | None = None,
        d_conv: int = 0,
        rotary_emb_dim: int = 0,
        rotary_emb_base: float = 10000.0,
        rotary_emb_interleaved: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.num_heads_kv = num_heads if num_heads_kv is None else num_heads_kv
        self.layer_idx, self.d_conv, self.rotary_emb_dim = layer_idx, d_conv, rotary_emb_dim
        self.softmax_scale, self.causal = softmax_scale, causal
        if num_heads % self.num_heads_kv:
            raise ValueError(f"num_heads_kv is {num_heads_kv}; expected a divisor of {num_heads}")
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}; expected a divisor of {embed_dim}")
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.mlp_dim = -(-mlp_dim // 256) * 256
        if rotary_emb_dim > 0:
            self.rotary_emb = _Rotary(rotary_emb_dim, rotary_emb_base, rotary_emb_interleaved)
        width, qkv = num_heads * self.head_dim, self.head_dim * (num_heads + 2 * self.num_heads_kv)
        self.in_proj = nn.Linear(embed_dim, qkv + self.mlp_dim, bias=qkv_proj_bias, **factory)
        if d_conv > 0:
            self.conv1d = nn.Conv1d(qkv, qkv, d_conv, padding=d_conv - 1, groups=qkv, **factory)
        self.out_proj = nn.Linear(
            width + self.mlp_dim // 2, embed_dim, bias=out_proj_bias, **factory
        )

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Keys and values (batch, max_seqlen, 2, heads, head_dim), and the convolution's state."""
        weight = self.out_proj.weight
        like: dict[str, Any] = {"device": weight.device, "dtype": dtype or weight.dtype}
        kv = torch.zeros(batch_size, max_seqlen, 2, self.num_heads_kv, self.head_dim, **like)
        if not self.d_conv:
            return kv, None
        return kv, torch.zeros(batch_size, self.d_conv, len(self.conv1d.weight), **like).mT

    def forward(self, x: Tensor, inference_params: Any = None) -> Tensor:
        """Attention over x (batch, L, embed_dim) and what the cache holds; the shape of x."""
        positions = torch.arange(x.shape[1], device=x.device)
        kv_cache = conv_state = None
        resume = inference_params is not None and inference_params.seqlen_offset > 0
        if inference_params is not None:
            kv_cache, conv_state = self._get_cache(inference_params, x)
        if resume:
            lengths = inference_params.lengths_per_sample
            offset = inference_params.seqlen_offset if lengths is None else lengths[: len(x), None]
            positions = positions + offset  # (L,) or (batch, L)

        sizes = [self.in_proj.out_features - self.mlp_dim, self.mlp_dim]
        qkv, mlp = self.in_proj(x).split(sizes, dim=-1)
        if self.d_conv:
            qkv = convolve(self.conv1d, qkv.mT, None, conv_state, resume=resume).mT
        q, k, v = (
            qkv.unflatten(-1, (-1, self.head_dim))
            .transpose(1, 2)
            .split([self.num_heads, self.num_heads_kv, self.num_heads_kv], dim=1)
        )  # (batch, heads, L, head_dim)
        if self.rotary_emb_dim:
            q, k = self.rotary_emb(q, positions), self.rotary_emb(k, positions)
        if kv_cache is not None:
            k, v = _remember(kv_cache, k, v, positions)
        y = self._attend(q, k, v, positions).transpose(1, 2).flatten(-2)
        if self.mlp_dim:
            up, gate = mlp.chunk(2, dim=-1)
            y = torch.cat([y, up * silu(gate)], dim=-1)
        return self.out_proj(y)

    def _get_cache(self, inference_params: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        """Keys and values, and the convolution's state, of the batch items in hand."""
        cache = inference_params.key_value_memory_dict
        start = getattr(inference_params, "batch_size_offset", 0)
        end = start + len(x)
        if self.layer_idx is None:
            raise ValueError("layer_idx is None; attention with a cache needs the layer's number")
        if self.layer_idx not in cache:
            cache[self.layer_idx] = self.allocate_inference_cache(
                end, inference_params.max_seqlen, dtype=x.dtype
            )
        return tuple(None if t is None else t[start:end] for t in cache[self.layer_idx])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """q, k, v (batch, heads, steps, head_dim), those of q at these positions of k and v."""
        shared = self.num_heads // self.num_heads_kv
        if shared > 1:
            k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))
        known, scale = torch.arange(k.shape[2], device=q.device), self.softmax_scale
        if self.causal and q.shape[2] == k.shape[2]:
            return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        last = positions if self.causal else positions[..., -1:]
        seen = known <= last[..., None]
        seen = seen[:, None] if positions.ndim == 2 else seen  # the same for every head
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)


def _remember(cache: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Write keys and values at positions into cache; all that it then holds up to there."""
    end = int(positions.max()) + 1 if positions.numel() else 0
    if end > cache.shape[1]:
        raise ValueError(f"the cache has room for {cache.shape[1]} tokens; expected at least {end}")
    items = torch.arange(len(k), device=k.device)[:, None]
    kv = torch.stack([k, v], dim=1).permute(0, 3, 1, 2, 4)
    cache[items, positions] = kv.to(cache.dtype)
    k, v = cache[:, :end].to(k.dtype).permute(2, 0, 3, 1, 4)
    return k, v


class _Rotary(nn.Module):
    """Rotates pairs of the first features by angles proportional to the position."""

    def __init__(self, dim: int, base: float, interleaved: bool) -> None:
        super().__init__()
        self.dim, self.base, self.interleaved = dim, base, interleaved

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (batch, heads, L, head_dim) at positions (L,) or (batch, L)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        pairs = torch.arange(0, self.dim, 2, dtype=dtype, device=x.device)
        angles = positions[..., None] * self.base ** (-pairs / self.dim)
        angles = angles[:, None] if positions.ndim == 2 else angles
        cos, sin = angles.cos(), angles.sin()
        turned, rest = x.split([self.dim, x.shape[-1] - self.dim], dim=-1)
        shape, axis = ((-1, 2), -1) if self.interleaved else ((2, -1), -2)
        first, second = turned.unflatten(-1, shape).unbind(axis)
        turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=axis)
        return torch.cat([turned.flatten(-2).to(x.dtype), rest], dim=-1)
