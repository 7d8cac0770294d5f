"""The operators on PyTorch's tensors against our functions of arrays, and training against PyTorch.

    python bench/bench_torch.py [--json] [--rounds N] [--only calls,training,kept]

Ratio first (how many times as long the peer takes), time second, on one thread.

calls      what an operator adds to the function of arrays that it calls: 1 is nothing
training   forward and backward pass against autograd through PyTorch's operations: for Mamba-2's
           scan the chunks of transformers, where it is installed
kept       forward and backward pass with the states that the forward pass keeps, and without
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for everyone

import math

import torch

import fastderiv as fd
from fastderiv._cli.timing import interleave
from fastderiv.integrations.torch import selective_state_update, ssd_scan
from report import compare, options, peak_memory, report

CALLS, TRAINING, KEPT = NAMES = "calls", "training", "kept"
MAMBA_2 = ("mamba2-130m", 24, 64, 128)  # heads, P, N
MAMBA_1 = ("mamba-130m", 1536, 16)  # channels, N
TINY = 2, 4, 4
OURS, ARRAYS = "on tensors", "on arrays"


def as_arrays(tensors):
    return [t.detach().numpy() if torch.is_tensor(t) else t for t in tensors]


def ssd_problem(batch, steps, heads, width, states, dtype=torch.float32):
    """x, dt, A, B, C, D and dt_bias; step sizes as at the beginning of training."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    bias = torch.expm1(torch.logspace(-3, -1, heads)).log()
    B, C = (normal(batch, steps, 1, states) / math.sqrt(states) for _ in range(2))
    x, dt = normal(batch, steps, heads, width), normal(batch, steps, heads) / 2
    return x, dt, -torch.arange(1.0, heads + 1), B, C, torch.ones(heads), bias


def step_of_mamba_2(heads, width, states):
    """The state, and what a layer passes to a step: one number of a head, expanded."""
    x, dt, A, B, C, skip, bias = ssd_problem(1, 1, heads, width, states)
    expanded = (
        dt[:, 0, :, None].expand(1, heads, width),
        A[:, None, None].expand(heads, width, states),
        skip[:, None].expand(heads, width),
        bias[:, None].expand(heads, width),
    )
    state = torch.zeros(1, heads, width, states)
    dt_, A_, skip_, bias_ = expanded
    wide = state, x[:, 0], dt_, A_, B[:, 0], C[:, 0], skip_, None, bias_, True
    return wide, (state, x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], skip, None, bias, True)


def step_of_mamba_1(channels, states):
    generator = torch.Generator().manual_seed(0)
    state, B, C, A = (
        torch.randn(shape, generator=generator)
        for shape in ((1, channels, states), (1, states), (1, states), (channels, states))
    )
    x, dt, z = torch.randn((3, 1, channels), generator=generator)
    return state, x, dt, -A.abs(), B, C, x[0], z, dt[0], True


def agree(ours, theirs, tolerance=1e-4):
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max(), "the peer computes something else"


def repeated(call, times):
    def run():
        for _ in range(times):
            call()

    return run


def on_tensors_and_arrays(label, tensors, arrays, times, rounds):
    calls = {OURS: repeated(tensors, times), ARRAYS: repeated(arrays, times)}
    with torch.no_grad():
        t = interleave(calls, rounds=rounds)
    return compare(label, t, OURS, ARRAYS, "call", times)


def calls(rounds):
    for name, *sizes in MAMBA_2, ("smallest", *TINY):
        wide, short = step_of_mamba_2(*sizes)
        arrays = as_arrays(short)
        for how, tensors in ("expanded", wide), ("(b, h), (h,)", short):
            yield on_tensors_and_arrays(
                f"step {name}, {how}",
                lambda tensors=tensors: selective_state_update(*tensors),
                lambda arrays=arrays: fd.ssd_state_update(*arrays),
                20,
                rounds,
            )
    for name, *sizes in MAMBA_1, ("smallest", *TINY[:2]):
        tensors = step_of_mamba_1(*sizes)
        arrays = as_arrays(tensors)
        yield on_tensors_and_arrays(
            f"step {name}",
            lambda tensors=tensors: selective_state_update(*tensors),
            lambda arrays=arrays: fd.selective_state_update(*arrays),
            20,
            rounds,
        )
    for name, steps, *sizes in ("smallest", 8, *TINY), (MAMBA_2[0], 512, *MAMBA_2[1:]):
        x, dt, A, B, C, skip, bias = ssd_problem(1, steps, *sizes)
        arrays = as_arrays((x, dt, A, B, C, skip, None, bias, True))
        yield on_tensors_and_arrays(
            f"ssd_scan {name}, L = {steps}",
            lambda p=(x, dt, A, B, C, None, skip, None, bias): ssd_scan(*p, dt_softplus=True),
            lambda arrays=arrays: fd.ssd_scan(*arrays),
            20 if steps < 100 else 1,
            rounds,
        )


def gradients(scan, p):
    """A call of forward and backward pass."""
    values = [t.detach().requires_grad_() for t in p]
    seed = torch.linspace(-1, 1, p[0].numel()).view_as(p[0]).to(p[0].dtype)

    def call():
        return torch.autograd.grad(scan(*values), values, seed)

    return call


def ours(x, dt, A, B, C, D, bias):
    return ssd_scan(x, dt, A, B, C, None, D, dt_bias=bias, dt_softplus=True)


def transformers_chunks():
    """The scan that transformers' Mamba2 takes on a CPU, or None."""
    try:
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
    except ImportError:
        return None
    chunks = getattr(mamba2_chunk_scan, "__wrapped__", mamba2_chunk_scan)
    return lambda x, dt, A, B, C, D, bias: chunks(
        x, dt, A, B, C, 256, D=D, dt_bias=bias, dt_softplus=True
    )


def training(rounds):
    theirs = transformers_chunks()
    if theirs is None:
        return
    for dtype in torch.float32, torch.bfloat16:
        for steps in 512, 2048:
            p = ssd_problem(1, steps, *MAMBA_2[1:], dtype)
            calls = {"fastderiv": gradients(ours, p), "transformers": gradients(theirs, p)}
            if dtype == torch.float32:
                agree(calls["fastderiv"](), calls["transformers"]())
            memory = {name: peak_memory(call) for name, call in calls.items()}
            t = interleave(calls, rounds=rounds, rest=0.05)
            label = f"training {MAMBA_2[0]}, L = {steps}, {str(dtype).removeprefix('torch.')}"
            yield compare(label, t, "fastderiv", "transformers", "step", steps, memory)


def kept(rounds):
    channels, states = MAMBA_1[1:]
    generator = torch.Generator().manual_seed(0)
    u, z = torch.randn((2, 1, channels, 2048), generator=generator)
    delta = torch.randn((1, channels, 2048), generator=generator) / 2
    B, C = torch.randn((2, 1, states, 2048), generator=generator)
    bias = torch.expm1(torch.logspace(-3, -1, channels)).log()
    A = -torch.arange(1.0, states + 1).expand(channels, states)
    mamba_1 = [u, delta, A, B, C, bias * 0 + 1, z, bias, None, None, True]
    x, dt, A2, B2, C2, D2, bias2 = ssd_problem(1, 2048, *MAMBA_2[1:])
    mamba_2 = [x, dt, A2, B2, C2, D2, None, bias2, None, None, None, True, 0.0, math.inf, False]
    for name, label, arguments, dlast in (
        ("selective_scan", MAMBA_1[0], mamba_1, torch.zeros(1, channels, states)),
        ("ssd_scan", MAMBA_2[0], mamba_2, torch.zeros(0)),
    ):
        scan, adjoint = (getattr(torch.ops.fastderiv, name + end) for end in ("", "_vjp"))
        dout = torch.ones_like(arguments[0])

        def step(remember, arguments=arguments, dout=dout, dlast=dlast, scan=scan, adjoint=adjoint):
            _, _, states = scan(*arguments, remember)
            return adjoint(dout, dlast, *arguments, states)

        some = [g for g in step(True) if g.numel()]
        agree(some, [g for g in step(False) if g.numel()])
        calls = {"kept": lambda step=step: step(True), "once more": lambda step=step: step(False)}
        memory = {how: peak_memory(call) for how, call in calls.items()}
        t = interleave(calls, rounds=rounds, rest=0.05)
        title = f"forward and backward, {label}, L = 2048"
        yield compare(title, t, "kept", "once more", "step", 2048, memory)


def results(rounds, only):
    for name, section in zip(NAMES, (calls, training, kept), strict=True):
        if name in only:
            yield from section(rounds)


if __name__ == "__main__":
    parser = options(__doc__, rounds=7)
    parser.add_argument("--only", default=",".join(NAMES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    fd.set_num_threads(1)
    report(results(given.rounds, given.only.split(",")), given.json)
