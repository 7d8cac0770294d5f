"""A training step of the Mamba layer of a 130M model in PyTorch, forward and backward: with the
states that the scan keeps for its adjoint, and without; checks the gradients, then times
interleaved.

    python bench/bench_torch_training.py [--json] [--rounds N] [--steps L] [--only scan,layer]

Ratio first (how many times as long it takes without the states, or with float32 copies), then ns a
state-step on one thread, then the peak of the memory that a step takes, and what autograd holds of
it between forward and backward, parameters not counted.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for everyone

import torch
from torch import nn
from torch.nn.functional import linear

import fastderiv as fd
from fastderiv._cli.timing import interleave
from fastderiv.integrations.torch import causal_conv1d, selective_scan
from report import Result, options, peak_memory, report

WIDTH, CHANNELS, STATES, RANK, TAPS = 768, 1536, 16, 48, 4
KEPT, RUN_TWICE, WIDE = "states kept", "states computed again", "float32 copies"


def with_states(*arguments):
    return selective_scan(*arguments, True)


def without_states(*arguments):
    """The same operator, told to remember nothing."""
    return torch.ops.fastderiv.selective_scan.default(*arguments, None, None, True, False)[0]


def of_float32_copies(*arguments):
    return with_states(*(t.float() for t in arguments)).to(arguments[0].dtype)


SCANS = {KEPT: with_states, RUN_TWICE: without_states, WIDE: of_float32_copies}


class Layer(nn.Module):
    """The block of A. Gu and T. Dao, "Mamba", figure 3, with a scan of one's choice."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(WIDTH, 2 * CHANNELS, bias=False)
        self.weight = nn.Parameter(torch.randn(CHANNELS, TAPS) / 2)
        self.bias = nn.Parameter(torch.randn(CHANNELS) / 2)
        self.select = nn.Linear(CHANNELS, RANK + 2 * STATES, bias=False)
        self.rates = nn.Linear(RANK, CHANNELS)
        self.A_log = nn.Parameter(torch.arange(1.0, STATES + 1).log().repeat(CHANNELS, 1))
        self.D = nn.Parameter(torch.ones(CHANNELS))
        self.out = nn.Linear(CHANNELS, WIDTH, bias=False)

    def forward(self, x, scan):
        u, z = self.into(x).transpose(1, 2).chunk(2, dim=1)
        u = causal_conv1d(u, self.weight, self.bias, activation="silu")
        rank, B, C = self.select(u.transpose(1, 2)).split([RANK, STATES, STATES], dim=-1)
        delta = linear(rank, self.rates.weight).transpose(1, 2)
        B, C, A = B.transpose(1, 2), C.transpose(1, 2), -self.A_log.float().exp()
        y = scan(u, delta, A, B, C, self.D, z, self.rates.bias)
        return self.out(y.transpose(1, 2))


def training_step_of_layer(steps, dtype):
    """For each scan, a call that returns the gradient of the layer's input."""
    torch.manual_seed(0)
    layer, x = Layer().to(dtype), torch.randn(1, steps, WIDTH).to(dtype).requires_grad_()

    def step(scan):
        layer.zero_grad()
        (gradient,) = torch.autograd.grad(layer(x, scan).float().square().mean(), x)
        return gradient

    return step, list(layer.parameters())


def training_step_of_scan(steps, dtype):
    """The same of the scan alone, of tensors that lie as a layer's do."""
    torch.manual_seed(0)

    def signal(channels):
        return torch.randn(1, steps, channels).to(dtype).transpose(1, 2).requires_grad_()

    u, delta, z = (signal(CHANNELS) for _ in range(3))
    B, C = (signal(STATES) for _ in range(2))
    A = -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1).requires_grad_()
    D, bias = (torch.randn(CHANNELS).to(dtype).requires_grad_() for _ in range(2))
    variables = [u, delta, A, B, C, D, z, bias]
    dout = torch.randn(1, steps, CHANNELS).to(dtype).transpose(1, 2)

    def step(scan):
        return torch.autograd.grad(scan(*variables), variables, dout)[0]

    return step, []


MEASURED = {"scan": training_step_of_scan, "layer": training_step_of_layer}


def held(call, parameters):
    """MiB of the tensors that autograd keeps for the backward pass, each memory once."""
    own = {p.data_ptr() for p in parameters}
    sizes = {}

    def keep(t):
        if t.data_ptr() not in own:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        call()
    return sum(sizes.values()) / 2**20


def measure(name, steps, dtype, rounds):
    step, parameters = MEASURED[name](steps, dtype)
    scans = [KEPT, RUN_TWICE] + [WIDE] * (dtype != torch.float32)
    calls = {kind: lambda scan=SCANS[kind]: step(scan) for kind in scans}
    expected = calls[KEPT]()
    for call in calls.values():
        assert (call() - expected).abs().max() <= 0.02 * expected.abs().max()
    t = interleave(calls, rounds=rounds)
    autograd = {kind: held(call, parameters) for kind, call in calls.items()}
    peak = {kind: peak_memory(call) for kind, call in calls.items()}
    work = CHANNELS * STATES * steps
    kind = str(dtype).removeprefix("torch.")
    for peer in scans[1:]:
        yield Result(
            f"{name}, {kind}, holds {autograd[KEPT]:.0f} MiB",
            f"{peer}, holds {autograd[peer]:.0f} MiB",
            t[KEPT].ratio(t[peer]),
            "state-step",
            t[KEPT].best / work * 1e9,
            t[peer].best / work * 1e9,
            peak[KEPT],
            peak[peer],
        )


def results(only, steps, rounds):
    fd.set_num_threads(1)
    torch.set_num_threads(1)
    for name in only:
        for dtype in (torch.float32, torch.bfloat16):
            yield from measure(name, steps, dtype, rounds)


if __name__ == "__main__":
    parser = options(__doc__, rounds=7)
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--only", default="scan,layer", help="which (default: %(default)s)")
    given = parser.parse_args()
    report(results(given.only.split(","), given.steps, given.rounds), given.json)
