"""Mixers in the manner of MambaVision (no last state, no gate) and MambaIR (four ways as groups).

Together they learn to take noise off smooth images.
"""

import argparse
import math

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref
from torch import nn
from torch.nn import functional as F


class MambaVisionMixer(nn.Module):
    def __init__(self, d_model, d_state=8, d_conv=3):
        super().__init__()
        half = d_model // 2
        self.dt_rank, self.d_state = math.ceil(d_model / 16), d_state
        self.in_proj = nn.Linear(d_model, d_model, bias=False)
        self.x_proj = nn.Linear(half, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, half)
        nn.init.constant_(self.dt_proj.bias, -4.0)
        steps = torch.arange(1, d_state + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(steps.log().repeat(half, 1))
        self.A_log._no_weight_decay = True
        self.D = nn.Parameter(torch.ones(half))
        self.conv1d_x = nn.Conv1d(half, half, d_conv, groups=half, bias=False)
        self.conv1d_z = nn.Conv1d(half, half, d_conv, groups=half, bias=False)
        self.out_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(self, hidden_states):
        b, length, _ = hidden_states.shape
        x, z = self.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
        x = F.silu(F.conv1d(x, self.conv1d_x.weight, padding="same", groups=x.shape[1]))
        z = F.silu(F.conv1d(z, self.conv1d_z.weight, padding="same", groups=z.shape[1]))
        dbl = self.x_proj(x.transpose(1, 2).reshape(b * length, -1))
        dt, B, C = torch.split(dbl, [self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan_fn(
            x,
            self.dt_proj(dt).reshape(b, length, -1).transpose(1, 2),
            -torch.exp(self.A_log.float()),
            B.reshape(b, length, -1).transpose(1, 2).contiguous(),
            C.reshape(b, length, -1).transpose(1, 2).contiguous(),
            self.D.float(),
            z=None,
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
            return_last_state=None,
        )
        return self.out_proj(torch.cat([y, z], dim=1).transpose(1, 2))


class FourWays(nn.Module):
    """The channels of the four directions lie one behind the other, B and C have four groups."""

    def __init__(self, d_model, d_state=4):
        super().__init__()
        self.selective_scan = selective_scan_fn
        self.dt_rank, self.d_state = max(1, d_model // 16), d_state
        width = self.dt_rank + 2 * d_state
        self.x_proj_weight = nn.Parameter(torch.randn(4, width, d_model) * d_model**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.randn(4, d_model, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.full((4, d_model), -3.0))
        steps = torch.arange(1, d_state + 1, dtype=torch.float32)
        self.A_logs = nn.Parameter(steps.log().repeat(4 * d_model, 1))
        self.Ds = nn.Parameter(torch.ones(4 * d_model))
        self.out_norm = nn.LayerNorm(d_model)

    def scan_arguments(self, x):
        b, d, h, w = x.shape
        two = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
        xs = torch.cat([two, torch.flip(two, dims=[-1])], dim=1)
        dbl = torch.einsum("b k d l, k c d -> b k c l", xs, self.x_proj_weight)
        dts, Bs, Cs = torch.split(dbl, [self.dt_rank, self.d_state, self.d_state], dim=2)
        dts = torch.einsum("b k r l, k d r -> b k d l", dts, self.dt_projs_weight)
        A, bias = -torch.exp(self.A_logs.float()), self.dt_projs_bias.float().view(-1)
        xs, dts = (t.float().reshape(b, 4 * d, h * w) for t in (xs, dts))
        return (xs, dts, A, Bs, Cs, self.Ds), {"delta_bias": bias, "delta_softplus": True}

    def forward(self, x):
        b, d, h, w = x.shape
        args, options = self.scan_arguments(x)
        y = self.selective_scan(*args, z=None, return_last_state=False, **options)
        y = y.view(b, 4, d, h * w)
        back = torch.flip(y[:, 2:], dims=[-1])
        turned = (y[:, 1] + back[:, 1]).view(b, d, w, h).transpose(2, 3).reshape(b, d, h * w)
        out = (y[:, 0] + back[:, 0] + turned).transpose(1, 2)
        return self.out_norm(out).transpose(1, 2).view(b, d, h, w)


class Restorer(nn.Module):
    def __init__(self, dim=16):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, dim, 3, padding=1), nn.Conv2d(dim, 1, 3, padding=1)
        self.ways, self.mixer = FourWays(dim), MambaVisionMixer(dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, noisy):
        x = self.first(noisy)
        x = x + self.ways(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.mixer(self.norm(tokens))
        return noisy + self.last(tokens.transpose(1, 2).reshape(x.shape))


def pairs(count, size, device):
    coarse = torch.randn(count, 1, 3, 3, device=device)
    clean = F.interpolate(coarse, size=(size, size), mode="bicubic")
    return clean, clean + 0.5 * torch.randn_like(clean)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Restorer().to(options.device)
    args, named = model.ways.scan_arguments(torch.randn(2, 16, 5, 6, device=options.device))
    error = selective_scan_fn(*args, **named) - selective_scan_ref(*args, **named)
    assert error.abs().max() < 1e-4, error.abs().max()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(options.steps):
        clean, noisy = pairs(8, 12, options.device)
        loss = F.mse_loss(model(noisy), clean)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    print(f"squared error {losses[0]:.3f} -> {losses[-1]:.3f}; of the noise 0.250")
    assert losses[-1] < 0.7 * 0.25


if __name__ == "__main__":
    main()
