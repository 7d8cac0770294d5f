"""Four-way cross scan over the compiled extension, in the manner of VMamba.

A tiny classifier learns to tell along which of four directions an image's waves run.
"""

import argparse
import math

import selective_scan_cuda_oflex
import torch
from torch import nn
from torch.nn import functional as F


class SelectiveScanOflex(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus=True, oflex=True):
        ctx.delta_softplus = delta_softplus
        out, x, *_ = selective_scan_cuda_oflex.fwd(
            u, delta, A, B, C, D, delta_bias, delta_softplus, 1, oflex
        )
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, x)
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, dout):
        u, delta, A, B, C, D, delta_bias, x = ctx.saved_tensors
        dout = dout if dout.stride(-1) == 1 else dout.contiguous()
        du, ddelta, dA, dB, dC, dD, ddelta_bias, *_ = selective_scan_cuda_oflex.bwd(
            u, delta, A, B, C, D, delta_bias, dout, x, ctx.delta_softplus, 1
        )
        return du, ddelta, dA, dB, dC, dD, ddelta_bias, None, None


def cross_scan(x):
    """(b, d, h, w) -> (b, 4, d, h·w): by rows, by columns, and both backwards."""
    rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
    ways = torch.stack([rows, columns], 1)
    return torch.cat([ways, ways.flip(-1)], 1)


def cross_merge(ys, h, w):
    """The sum of the four, back in the order of rows."""
    ways = ys[:, :2] + ys[:, 2:].flip(-1)
    b, _, d, _ = ways.shape
    return ways[:, 0] + ways[:, 1].reshape(b, d, w, h).transpose(2, 3).flatten(2)


class SS2D(nn.Module):
    def __init__(self, d_model, d_state=1, ssm_ratio=2.0, dt_rank="auto", k_group=4):
        super().__init__()
        d_inner = int(ssm_ratio * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.d_state, self.d_inner = d_state, d_inner
        self.in_proj = nn.Linear(d_model, d_inner, bias=False)
        self.conv2d = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner)
        width = self.dt_rank + 2 * d_state
        self.x_proj_weight = nn.Parameter(torch.randn(k_group, width, d_inner) * d_inner**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.randn(k_group, d_inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.full((k_group, d_inner), -3.0))
        steps = torch.arange(1, d_state + 1, dtype=torch.float32)
        self.A_logs = nn.Parameter(steps.log().repeat(k_group * d_inner, 1))
        self.Ds = nn.Parameter(torch.ones(k_group * d_inner))
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)

    def forward(self, x):
        b, h, w, _ = x.shape
        x = F.silu(self.conv2d(self.in_proj(x).permute(0, 3, 1, 2)))
        xs = cross_scan(x)
        dbl = torch.einsum("b k d l, k c d -> b k c l", xs, self.x_proj_weight.to(xs.dtype))
        dts, Bs, Cs = torch.split(dbl, [self.dt_rank, self.d_state, self.d_state], dim=2)
        dts = torch.einsum("b k r l, k d r -> b k d l", dts, self.dt_projs_weight.to(xs.dtype))
        ys = SelectiveScanOflex.apply(
            xs.reshape(b, -1, h * w),
            dts.reshape(b, -1, h * w),
            -torch.exp(self.A_logs.float()),
            Bs.contiguous(),
            Cs.contiguous(),
            self.Ds.float(),
            self.dt_projs_bias.reshape(-1).float(),
            True,
            True,
        )
        assert ys.dtype == torch.float32  # what "oflex" stands for
        y = cross_merge(ys.reshape(b, 4, -1, h * w), h, w).transpose(1, 2).reshape(b, h, w, -1)
        return self.out_proj(self.out_norm(y).to(x.dtype))


class VSSBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.op = nn.LayerNorm(dim), SS2D(dim)

    def forward(self, x):
        return x + self.op(self.norm(x))


class Classifier(nn.Module):
    def __init__(self, dim=16, depth=2, classes=4):
        super().__init__()
        self.patch_embed = nn.Conv2d(1, dim, 2, stride=2)
        self.layers = nn.Sequential(*(VSSBlock(dim) for _ in range(depth)))
        self.head = nn.Linear(dim, classes)

    def forward(self, images):
        x = self.layers(self.patch_embed(images).permute(0, 2, 3, 1))
        return self.head(x.mean((1, 2)))


def waves(count, size, device):
    """Plane waves of random phase, and which way they run."""
    labels = torch.randint(0, 4, (count,), device=device)
    angle = labels[:, None, None] * (math.pi / 4)
    grid = torch.arange(size, device=device, dtype=torch.float32)
    position = angle.cos() * grid[:, None] + angle.sin() * grid[None]
    phase = 2 * math.pi * torch.rand(count, 1, 1, device=device)
    return torch.sin(1.2 * position + phase)[:, None], labels


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=25)
    device = torch.device(parser.parse_args().device)
    torch.manual_seed(0)
    model = Classifier().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(parser.parse_args().steps):
        images, labels = waves(32, 16, device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        images, labels = waves(128, 16, device)
        accuracy = (model(images).argmax(-1) == labels).float().mean().item()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, accuracy {accuracy:.2f}")
    assert losses[-1] < losses[0] / 2 and accuracy > 0.7


if __name__ == "__main__":
    main()
