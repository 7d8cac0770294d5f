"""A small U-Net with Mamba layers in the manner of U-Mamba: it learns to segment discs."""

import argparse

import torch
from mamba_ssm import Mamba
from torch import nn
from torch.nn import functional as F


class MambaLayer(nn.Module):
    def __init__(self, dim, d_state=16, d_conv=4, expand=2):
        super().__init__()
        self.dim, self.norm = dim, nn.LayerNorm(dim)
        self.mamba = Mamba(d_model=dim, d_state=d_state, d_conv=d_conv, expand=expand)

    @torch.autocast(device_type="cuda", enabled=False)
    def forward(self, x):
        if x.dtype in (torch.float16, torch.bfloat16):
            x = x.type(torch.float32)
        batch, channels = x.shape[:2]
        assert channels == self.dim
        tokens = x.reshape(batch, channels, x.shape[2:].numel()).transpose(-1, -2)
        mixed = self.mamba(self.norm(tokens))
        return mixed.transpose(-1, -2).reshape(x.shape)


class Stage(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm, self.mamba = nn.InstanceNorm2d(outputs, affine=True), MambaLayer(outputs)

    def forward(self, x):
        x = F.leaky_relu(self.norm(self.conv(x)), 0.01)
        return x + self.mamba(x)


class UMamba(nn.Module):
    def __init__(self, widths=(8, 16, 32)):
        super().__init__()
        sizes = zip((1, *widths), widths, (1, 2, 2), strict=False)
        self.encoder = nn.ModuleList(Stage(a, b, stride) for a, b, stride in sizes)
        up = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in up)
        self.decoder = nn.ModuleList(nn.Conv2d(2 * b, b, 3, padding=1) for _, b in up)
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x):
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for up, conv in zip(self.ups, self.decoder, strict=True):
            x = F.leaky_relu(conv(torch.cat([up(x), skips.pop()], 1)), 0.01)
        return self.head(x)


def discs(count, size, device):
    grid = torch.linspace(-1, 1, size, device=device)
    centre = 1.2 * torch.rand(count, 2, 1, 1, device=device) - 0.6
    radius = 0.2 + 0.3 * torch.rand(count, 1, 1, device=device)
    distance = (grid[:, None] - centre[:, 0]).square() + (grid[None] - centre[:, 1]).square()
    mask = distance < radius.square()
    return (mask + 0.4 * torch.randn(mask.shape, device=device))[:, None], mask.long()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=25)
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = UMamba().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.99, nesterov=True)
    losses = []
    for _ in range(options.steps):
        images, masks = discs(4, 16, device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = F.cross_entropy(model(images).float(), masks)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 12)
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        images, masks = discs(16, 16, device)
        found = model(images).argmax(1)
        dice = (2 * (found * masks).sum() / (found.sum() + masks.sum())).item()
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, Dice {dice:.2f}")
    assert losses[-1] < losses[0] / 2 and dice > 0.7


if __name__ == "__main__":
    main()
