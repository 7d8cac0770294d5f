"""A bidirectional model of DNA in the manner of Caduceus: tied weights, both strands.

Strands swapped, the model says the same; and it learns to fill masked letters of a repeat.
"""

import argparse
from functools import partial

import torch
from mamba_ssm.modules.block import Block
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn, rms_norm_fn
from torch import nn
from torch.nn import functional as F

A, C, G, T, MASK = range(5)
COMPLEMENT = torch.tensor([T, G, C, A, MASK])


class BiMambaWrapper(nn.Module):
    """Two Mambas, one of them backwards, that share their projections."""

    def __init__(
        self, d_model, bidirectional_strategy="add", bidirectional_weight_tie=True, **kwargs
    ):
        super().__init__()
        self.strategy = bidirectional_strategy
        self.mamba_fwd = Mamba(d_model=d_model, **kwargs)
        self.mamba_rev = Mamba(d_model=d_model, **kwargs)
        if bidirectional_weight_tie:
            self.mamba_rev.in_proj.weight = self.mamba_fwd.in_proj.weight
            self.mamba_rev.in_proj.bias = self.mamba_fwd.in_proj.bias
            self.mamba_rev.out_proj.weight = self.mamba_fwd.out_proj.weight
            self.mamba_rev.out_proj.bias = self.mamba_fwd.out_proj.bias

    def forward(self, hidden_states, inference_params=None):
        out = self.mamba_fwd(hidden_states, inference_params=inference_params)
        back = self.mamba_rev(hidden_states.flip(dims=(1,))).flip(dims=(1,))
        return out + back if self.strategy == "add" else out * back


class RCPSWrapper(nn.Module):
    """Runs a module on one strand, and on the reverse complement of the other."""

    def __init__(self, submodule):
        super().__init__()
        self.submodule = submodule

    def forward(self, x, **kwargs):
        first, second = x.chunk(2, dim=-1)
        second = self.submodule(second.flip(dims=(-2, -1)), **kwargs).flip(dims=(-2, -1))
        return torch.cat([self.submodule(first, **kwargs), second], dim=-1)


def create_block(d_model, layer_idx, device=None, dtype=None, **ssm_cfg):
    factory_kwargs = {"device": device, "dtype": dtype}
    mixer_cls = partial(BiMambaWrapper, layer_idx=layer_idx, **ssm_cfg, **factory_kwargs)
    norm_cls = partial(RMSNorm, eps=1e-5, **factory_kwargs)
    block = Block(
        d_model,
        mixer_cls,
        nn.Identity,
        norm_cls=norm_cls,
        fused_add_norm=True,
        residual_in_fp32=True,
    )
    block.layer_idx = layer_idx
    return block


class DNAModel(nn.Module):
    def __init__(self, d_model=32, n_layer=2, device=None, **ssm_cfg):
        super().__init__()
        self.embedding = nn.Embedding(5, d_model, device=device)
        blocks = (create_block(d_model, i, device, **ssm_cfg) for i in range(n_layer))
        self.layers = nn.ModuleList(blocks)
        self.norm_f = RMSNorm(d_model, eps=1e-5, device=device)
        self.lm_head = nn.Linear(d_model, 5, bias=False, device=device)

    def forward(self, ids):
        hidden_states, residual = self.embedding(ids), None
        for layer in self.layers:
            hidden_states, residual = layer(hidden_states, residual)
        fused = rms_norm_fn if isinstance(self.norm_f, RMSNorm) else layer_norm_fn
        hidden_states = fused(
            hidden_states,
            self.norm_f.weight,
            self.norm_f.bias,
            eps=self.norm_f.eps,
            residual=residual,
            prenorm=False,
            residual_in_fp32=True,
        )
        return self.lm_head(hidden_states)


def check_both_strands(device):
    """The reverse complement of the input gives that of the output."""
    mixer = RCPSWrapper(BiMambaWrapper(16, d_state=8).to(device))
    x = torch.randn(2, 20, 32, device=device)
    with torch.no_grad():
        error = mixer(x.flip(dims=(-2, -1))).flip(dims=(-2, -1)) - mixer(x)
    assert error.abs().max() < 1e-5, error.abs().max()


def batch(count, length, device):
    """Repeats of a random word of six letters, some of them masked."""
    words = torch.randint(0, 4, (count, 6), device=device)
    ids = words.repeat(1, -(-length // 6))[:, :length]
    masked = torch.rand(ids.shape, device=device) < 0.15
    return ids.masked_fill(masked, MASK), torch.where(masked, ids, -100)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.manual_seed(0)
    check_both_strands(options.device)
    model = DNAModel(device=options.device, d_state=8)
    shared = [layer.mixer for layer in model.layers]
    assert all(m.mamba_fwd.in_proj.weight is m.mamba_rev.in_proj.weight for m in shared)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    losses = []
    for _ in range(options.steps):
        ids, labels = batch(16, 36, options.device)
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    ids, labels = batch(64, 36, options.device)
    with torch.no_grad():
        guesses = model(ids).argmax(-1)
    right = (guesses == labels)[labels >= 0].float().mean().item()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; {right:.0%} of masked letters are right")
    assert losses[-1] < losses[0] / 2 and right > 0.5


if __name__ == "__main__":
    main()
