"""Audio codes token by token, in the manner of Zonos: blocks of mamba_ssm, a cache, codebooks.

Decoding with the cache gives the logits of the whole sequence.
"""

import argparse

import torch
from mamba_ssm.models.mixer_seq_simple import create_block
from mamba_ssm.ops.triton.layer_norm import layer_norm_fn
from mamba_ssm.utils.generation import InferenceParams
from torch import nn


class MambaSSMBackbone(nn.Module):
    def __init__(self, d_model, n_layer, ssm_cfg, attn_layer_idx=(), attn_cfg=None, mlp=0):
        super().__init__()
        self.layers = nn.ModuleList(
            create_block(
                d_model=d_model,
                d_intermediate=mlp if i in attn_layer_idx else 0,
                ssm_cfg=ssm_cfg,
                layer_idx=i,
                attn_layer_idx=list(attn_layer_idx),
                attn_cfg=attn_cfg,
                norm_epsilon=1e-5,
                residual_in_fp32=True,
                fused_add_norm=True,
                rms_norm=False,
            )
            for i in range(n_layer)
        )
        self.norm_f = nn.LayerNorm(d_model, eps=1e-5)

    def allocate_inference_cache(self, batch_size, max_seqlen, dtype=torch.bfloat16):
        return {
            i: layer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype)
            for i, layer in enumerate(self.layers)
        }

    def forward(self, hidden_states, inference_params=None):
        residual = None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual, inference_params)
        return layer_norm_fn(
            hidden_states,
            self.norm_f.weight,
            self.norm_f.bias,
            residual,
            eps=self.norm_f.eps,
            residual_in_fp32=True,
        )


class Speaker(nn.Module):
    def __init__(self, codebooks=3, codes=16, d_model=32, **options):
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(codes, d_model) for _ in range(codebooks))
        self.backbone = MambaSSMBackbone(d_model, **options)
        self.heads = nn.ModuleList(nn.Linear(d_model, codes, bias=False) for _ in range(codebooks))

    def forward(self, codes, inference_params=None):
        """Logits (b, codebooks, l, codes) of what follows the codes (b, codebooks, l)."""
        parts = [embed(codes[:, i]) for i, embed in enumerate(self.embeddings)]
        hidden = self.backbone(torch.stack(parts).sum(0), inference_params)
        return torch.stack([head(hidden) for head in self.heads], 1)

    @torch.inference_mode()
    def speak(self, prefix, length):
        batch, _, start = prefix.shape
        dtype = next(self.parameters()).dtype
        cache = self.backbone.allocate_inference_cache(batch, start + length, dtype)
        params = InferenceParams(start + length, batch, key_value_memory_dict=cache)
        codes, logits = prefix, [self(prefix, params)]
        params.seqlen_offset += start
        for _ in range(length - 1):
            codes = torch.cat([codes, logits[-1][:, :, -1:].argmax(-1)], -1)
            logits.append(self(codes[:, :, -1:], params))
            params.seqlen_offset += 1
        return codes, torch.cat(logits, 2)


def check(name, device, **options):
    torch.manual_seed(0)
    model = Speaker(**options).to(device).eval()
    prefix = torch.randint(16, (2, 3, 5), device=device)
    codes, logits = model.speak(prefix, 12)
    with torch.no_grad():
        whole = model(codes)
    error = ((logits - whole).abs().max() / whole.abs().max()).item()
    print(f"{name}: decoding differs from the whole sequence by {error:.0e}")
    assert logits.shape == whole.shape and error < 1e-4


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    mamba2 = {"layer": "Mamba2", "d_state": 16, "headdim": 16, "expand": 2}
    attention = {"causal": True, "num_heads": 4, "num_heads_kv": 2, "head_dim": 8}
    attention |= {"qkv_proj_bias": False, "out_proj_bias": False}
    check("Mamba", device, n_layer=2, ssm_cfg={"layer": "Mamba1", "d_state": 8})
    check("Mamba-2", device, n_layer=2, ssm_cfg=mamba2)
    hybrid = {"attn_layer_idx": (1,), "attn_cfg": attention, "mlp": 48}
    check("hybrid", device, n_layer=3, ssm_cfg=mamba2, **hybrid)


if __name__ == "__main__":
    main()
