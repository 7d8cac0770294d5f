"""The layers against their own products, NumPy and PyTorch: checks, then times interleaved.

    python bench/bench_nn.py [--json] [--rounds N] [--threads N] [--only dense,grid]

Ratio first (how many times as long the peer takes).  One number of threads for everyone, BLAS and PyTorch included.
"""

import os
import sys

THREADS = sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv[:-1] else "1"
for variable in "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS":
    os.environ[variable] = THREADS

from collections.abc import Iterator

import numpy as np

import fastderiv as fd
from fastderiv._cli.timing import interleave
from peers import grids
from report import Result, compare, options, peak_memory, report

try:
    import torch

    torch.set_num_threads(int(THREADS))
except ImportError:
    torch = None

SUFFIX = f", {THREADS} thread{'s' * (THREADS != '1')}"


def agree(ours, theirs, name, tolerance):
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert np.abs(a - b).max() < tolerance * np.abs(b).max(), f"{name} computes another result {k}"


# ---- dense ---------------------------------------------------------------------------------------------------------------


def dense_peers(X, W, b, dY):
    """What computes the layer with σ there and back, and parts of it: functions of no arguments, by name."""
    products = [np.empty_like(X) for _ in range(3)]

    def forward():
        return fd.dense(X, W, b, activation="sigmoid")

    def both():
        return forward(), *fd.dense_vjp(dY, X, W, b, activation="sigmoid")

    def one_product():
        np.matmul(X, W, out=products[0])

    def three_products():
        one_product()
        np.matmul(dY, W.T, out=products[1])
        np.matmul(X.T, dY, out=products[2])

    def four_products():
        one_product()
        three_products()

    def numpy_layer():
        Y = 1 / (1 + np.exp(-(X @ W + b)))
        dN = dY * Y * (1 - Y)
        return Y, dN @ W.T, X.T @ dN, dN.sum(0)

    peers = {"3 products": three_products, "4 products": four_products, "NumPy, Y kept": numpy_layer}
    if torch:
        leaves = [torch.from_numpy(a).requires_grad_() for a in (X, W, b)]
        adjoint = torch.from_numpy(dY)

        def pytorch():
            Y = torch.sigmoid(torch.addmm(leaves[2], leaves[0], leaves[1]))
            return Y.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(Y, leaves, adjoint))

        peers["PyTorch, Y kept"] = pytorch
    return forward, one_product, both, peers


def dense_results(rounds: int) -> Iterator[Result]:
    """Against the products alone: the three of a layer that keeps its result, and the four that there are as nothing is kept."""
    n = 1024
    for dtype in np.float32, np.float64:
        rng = np.random.default_rng(0)
        X, W, dY = (rng.normal(size=(n, n)).astype(dtype) for _ in range(3))
        forward, one_product, both, peers = dense_peers(X, W / 32, rng.normal(size=n).astype(dtype), dY)
        for name, peer in peers.items():
            if name.endswith("kept"):
                agree(both(), peer(), name, 1e-4 if dtype == np.float32 else 1e-12)
        label = f"({n}, {n}, {n}) sigmoid {np.dtype(dtype)}{SUFFIX}"
        t = interleave({"fastderiv": forward, "1 product": one_product}, rounds=rounds)
        yield compare(f"dense {label}", t, "fastderiv", "1 product", "call", 1)
        t = interleave({"fastderiv": both, **peers}, rounds=rounds)
        for peer in peers:
            yield compare(f"dense + vjp {label}", t, "fastderiv", peer, "call", 1)


# ---- grid RNN --------------------------------------------------------------------------------------------------------------


def grid_problem(G, batch, D, H, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, dh = rng.normal(size=(batch, G, G, D)).astype(dtype), rng.normal(size=(batch, G, G, H)).astype(dtype)
    W_in, W_west, W_north, b = (rng.normal(size=s) / np.sqrt(3 * s[-1]) for s in ((H, D), (H, H), (H, H), (H,)))
    return (x, *(a.astype(dtype) for a in (W_in, W_west, W_north, b))), dh


def grid_results(rounds: int) -> Iterator[Result]:
    for G, batch, D, H in (64, 32, 16, 64), (8, 1, 16, 16), (28, 16, 1, 128):
        p, dh = grid_problem(G, batch, D, H)
        label, cells = f"{G}×{G}, B = {batch}, D = {D}, H = {H}, float32{SUFFIX}", G * G * batch

        def forward(p=p):
            return fd.grid_rnn(*p)

        def both(p=p, dh=dh):
            return fd.grid_rnn(*p), *fd.grid_rnn_vjp(dh, *p)

        peers = {"NumPy, cell by cell": (grids.numpy_forward(p), grids.numpy_gradient(p, dh))}
        if torch:
            peers["PyTorch, by diagonals"] = grids.torch_forward(p), grids.torch_gradient(p, dh)
        for name, (theirs, theirs_both) in peers.items():
            few = max(3, rounds // 3) if name.startswith("NumPy") else rounds
            agree([forward()], [theirs()], name, 1e-4)
            t = interleave({"fastderiv": forward, name: theirs}, rounds=few, rest=0.02)
            memory = {"fastderiv": peak_memory(forward), name: peak_memory(theirs)}
            yield compare(f"grid {label}", t, "fastderiv", name, "cell", cells, memory)
            agree(both(), theirs_both(), name, 1e-3)
            t = interleave({"fastderiv": both, name: theirs_both}, rounds=few, rest=0.02)
            memory = {"fastderiv": peak_memory(both), name: peak_memory(theirs_both)}
            yield compare(f"grid + vjp {label}", t, "fastderiv", name, "cell", cells, memory)


SECTIONS = {"dense": dense_results, "grid": grid_results}


def results(names: list[str], rounds: int) -> Iterator[Result]:
    fd.set_num_threads(int(THREADS))
    for name in names:
        yield from SECTIONS[name](rounds)


if __name__ == "__main__":
    parser = options(__doc__, rounds=9)
    parser.add_argument("--threads", type=int, default=1, help="of everyone (default: 1)")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    given = parser.parse_args()
    report(results(given.only.split(","), given.rounds), given.json)
