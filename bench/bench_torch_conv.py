"""The causal convolution on PyTorch's tensors, and its steps, against transformers' functions:
checks the results, then times interleaved.

    python bench/bench_torch_conv.py [--json] [--rounds N] [--only forward,training,step]

Ratio first (how many times as long the peer takes), time second, on one thread.  Signals are
channels-last views of a projection, as the models have them.  transformers' functions are those
that it uses without the package causal_conv1d.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for everyone

import torch
from transformers.models.mamba.modeling_mamba import causal_conv1d_fn as their_convolution
from transformers.models.mamba.modeling_mamba import causal_conv1d_update as their_step

import fastderiv as fd
from fastderiv._cli.timing import interleave
from fastderiv.integrations.torch import causal_conv1d, causal_conv1d_update
from report import compare, options, report

CHANNELS, TAPS = 1536, 4
DTYPES = (torch.float32, torch.bfloat16)
OURS, THEIRS, NUMPY = "fastderiv", "transformers", "fastderiv on NumPy arrays"


def problem(batch, steps, dtype):
    torch.manual_seed(0)
    xz = torch.randn(batch, steps, 2 * CHANNELS).to(dtype)
    weight, bias = torch.randn(CHANNELS, TAPS) / 2, torch.randn(CHANNELS) / 2
    return xz[..., :CHANNELS].transpose(1, 2), weight.to(dtype), bias.to(dtype)


def agree(ours, theirs):
    tolerance = 1e-5 if ours.dtype == torch.float32 else 2e-2
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def label(kind, batch, steps, dtype):
    return f"{kind} ({batch}, {CHANNELS}, {steps}), {str(dtype).removeprefix('torch.')}"


def forward(batch, steps, dtype, rounds):
    x, weight, bias = problem(batch, steps, dtype)
    calls = {
        OURS: lambda: causal_conv1d(x, weight, bias, activation="silu"),
        THEIRS: lambda: their_convolution(x, weight, bias, "silu"),
    }
    agree(calls[OURS](), calls[THEIRS]())
    t = interleave(calls, rounds=rounds)
    yield compare(label("forward", batch, steps, dtype), t, OURS, THEIRS, "element", x.numel())


def training(batch, steps, dtype, rounds):
    x, weight, bias = variables = problem(batch, steps, dtype)
    for t in variables:
        t.requires_grad_()
    dout = torch.randn_like(x)
    calls = {
        OURS: lambda: torch.autograd.grad(
            causal_conv1d(x, weight, bias, activation="silu"), variables, dout
        ),
        THEIRS: lambda: torch.autograd.grad(
            their_convolution(x, weight, bias, "silu"), variables, dout
        ),
    }
    agree(calls[OURS]()[0], calls[THEIRS]()[0])
    t = interleave(calls, rounds=rounds)
    name = label("forward + backward", batch, steps, dtype)
    yield compare(name, t, OURS, THEIRS, "element", x.numel())


def step(batch, dtype, rounds):
    x, weight, bias = problem(batch, 1, dtype)
    states = [torch.zeros(batch, CHANNELS, TAPS, dtype=dtype) for _ in range(2)]
    given = [t.float().numpy() for t in (x, states[0], weight, bias)]
    calls = {
        OURS: lambda: causal_conv1d_update(x, states[0], weight, bias, "silu"),
        THEIRS: lambda: their_step(x, states[1], weight, bias, "silu"),
        NUMPY: lambda: fd.causal_conv1d_update(*given, "silu"),
    }
    agree(calls[OURS](), calls[THEIRS]())
    t = interleave(calls, rounds=rounds)
    for peer in THEIRS, NUMPY:
        yield compare(label("step", batch, 1, dtype), t, OURS, peer, "call", 1)


def results(rounds, only):
    fd.set_num_threads(1)
    torch.set_num_threads(1)
    for dtype in DTYPES:
        if "forward" in only:
            with torch.no_grad():
                yield from forward(1, 2048, dtype, rounds)
        if "training" in only:
            yield from training(1, 2048, dtype, rounds)
        if "step" in only:
            with torch.no_grad():
                for batch in (1, 8):
                    yield from step(batch, dtype, rounds)


if __name__ == "__main__":
    parser = options(__doc__, rounds=9)
    parser.add_argument(
        "--only", default="forward,training,step", help="which of them (default: %(default)s)"
    )
    given = parser.parse_args()
    report(results(given.rounds, given.only.split(",")), given.json)
