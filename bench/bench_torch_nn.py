"""LSTM, GridRNN and ReversibleSGD of integrations.torch against PyTorch's own.

    python bench/bench_torch_nn.py [--json] [--rounds N] [--threads 1,2] [--only lstm,grid,sgd]

Ratio first (how many times as long PyTorch takes).  Modules are called as users call them: forward
without gradients, and forward and backward with the gradients of all parameters and of the input.
Everyone has as many threads.
"""

from collections.abc import Callable, Iterator

import torch

from fastderiv._cli.timing import interleave
from fastderiv.integrations.torch import LSTM, GridRNN, ReversibleSGD
from peers.grids import torch_wavefront
from report import Result, compare, limited, options, report

# (T, B, D, H), layers, whether in both directions
LAYERS = (
    ((1, 1, 8, 8), 1, False),
    ((10, 4, 16, 16), 2, True),
    ((1, 1, 512, 512), 2, False),
    ((1, 8, 256, 256), 1, False),
    ((500, 1, 64, 64), 1, False),
    ((100, 8, 128, 128), 1, False),
    ((30, 256, 32, 32), 1, False),
    ((128, 32, 256, 256), 1, False),
    ((100, 32, 128, 256), 2, True),
    ((50, 128, 300, 300), 1, False),
    ((64, 64, 512, 512), 1, False),
    ((50, 64, 512, 1024), 1, False),
)
GRIDS = ((32, 8, 16, 64), (8, 1, 16, 16), (28, 16, 1, 128))  # G1 = G2, batch, D, H
SIZES = {"one matrix": [(1000, 1000)], "100 small ones": [(64, 64), (64,)] * 50}


def suffix(threads: int) -> str:
    return f", {threads} thread{'s' * (threads > 1)}"


def without_gradients(module, x) -> Callable[[], object]:
    @torch.no_grad()
    def call():
        return module(x)

    return call


def with_gradients(module, x) -> Callable[[], list]:
    """The results and all gradients."""
    leaf = x.detach().requires_grad_()

    def call():
        out = module(leaf)
        h = out[0] if isinstance(out, tuple) else out
        adjoint = torch.ones_like(h)
        return [h, *torch.autograd.grad(h, [leaf, *module.parameters()], adjoint)]

    return call


def agree(ours, theirs, name: str) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max(), f"{name} computes another result"


def against(name: str, ours, theirs, x, rounds: int) -> Iterator[Result]:
    agree(with_gradients(ours, x)(), with_gradients(theirs, x)(), name)
    for what, calls in ("forward", without_gradients), ("and backward", with_gradients):
        candidates = {"fastderiv": calls(ours, x), "PyTorch": calls(theirs, x)}
        timings = interleave(candidates, rounds=rounds, rest=0.02)
        yield compare(f"{name} {what}", timings, "fastderiv", "PyTorch", "call", 1)


def lstm_results(rounds: int, threads: int) -> Iterator[Result]:
    for (T, B, D, H), layers, bidirectional in LAYERS:
        theirs = torch.nn.LSTM(D, H, layers, bidirectional=bidirectional)
        ours = LSTM(D, H, layers, bidirectional=bidirectional)
        ours.load_state_dict(theirs.state_dict())
        extent = f"{layers} layer{'s' * (layers > 1)}{', both ways' * bidirectional}"
        name = f"LSTM {(T, B, D, H)}, {extent}{suffix(threads)},"
        yield from against(name, ours, theirs, torch.randn(T, B, D), rounds)


class ByDiagonals(torch.nn.Module):
    """The grid of a `GridRNN` in PyTorch's own operations, for inputs like x."""

    def __init__(self, module: GridRNN, x) -> None:
        super().__init__()
        self.module = module
        problem = [t.numpy(force=True) for t in (x, *module.parameters())]
        self.without_gradients, self.with_gradients = torch_wavefront(problem)

    def forward(self, x):
        call = self.with_gradients if torch.is_grad_enabled() else self.without_gradients
        return call(x, *self.module.parameters())


def grid_results(rounds: int, threads: int) -> Iterator[Result]:
    for G, batch, D, H in GRIDS:
        module = GridRNN(D, H)
        name = f"GridRNN {G}×{G}, B = {batch}, D = {D}, H = {H}{suffix(threads)},"
        x = torch.randn(batch, G, G, D)
        yield from against(name, module, ByDiagonals(module, x), x, rounds)


def sgd_results(rounds: int, threads: int) -> Iterator[Result]:
    for what, shapes in SIZES.items():
        parameters = [torch.nn.Parameter(torch.randn(shape) / 50) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter) / 1000
        reversible = ReversibleSGD(parameters, lr=1e-3, momentum=0.9)
        plain = torch.optim.SGD([p.detach().clone() for p in parameters], lr=1e-3, momentum=0.9)
        for own, given in zip(plain.param_groups[0]["params"], parameters, strict=True):
            own.grad = given.grad

        def there_and_back(optimizer=reversible):
            optimizer.step()
            optimizer.unstep(lambda: None)

        candidates = {
            "step": reversible.step,
            "step and unstep": there_and_back,
            "SGD": plain.step,
        }
        timings = interleave(candidates, rounds=rounds, rest=0.02)
        for name in "step", "step and unstep":
            label = f"ReversibleSGD {name}, {what}{suffix(threads)}"
            yield compare(label, timings, name, "SGD", "call", 1)


SECTIONS = {"lstm": lstm_results, "grid": grid_results, "sgd": sgd_results}


def results(names: list[str], rounds: int, threads: list[int]) -> Iterator[Result]:
    torch.manual_seed(0)
    for name in names:
        for n in threads:
            with limited(n):
                torch.set_num_threads(n)
                yield from SECTIONS[name](rounds, n)


if __name__ == "__main__":
    parser = options(__doc__, rounds=9)
    parser.add_argument(
        "--threads", default="1,2", help="of everyone, separated by commas (default: 1,2)"
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    given = parser.parse_args()
    threads = [int(n) for n in given.threads.split(",")]
    report(results(given.only.split(","), given.rounds, threads), given.json)
