"""The layers against their own products, NumPy and PyTorch: checks, then times interleaved.

    python bench/bench_nn.py [--json] [--rounds N] [--threads 1,2] [--only dense,grid,lstm]
    python bench/bench_nn.py --products


Ratio first (how many times as long the peer takes).  With --products, only the product that LSTM,
grid RNN and chunks of scans share is measured, as a fraction of the peak of fused multiply-adds
(gemm_peak.c; needs a C compiler).  Everyone has as many threads, PyTorch
included, and NumPy's BLAS where threadpoolctl is installed.
"""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import fastderiv as fd
from fastderiv._cli.timing import interleave
from peers import grids
from peers.recurrent import numpy_lstm, torch_lstm_calls
from report import Result, compare, limited, options, peak_memory, report

try:
    import torch
except ImportError:
    torch = None


def suffix(threads: int) -> str:
    return f", {threads} thread{'s' * (threads > 1)}"


def agree(ours, theirs, name, tolerance):
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert np.abs(a - b).max() < tolerance * np.abs(b).max(), (
            f"{name} computes another result {k}"
        )


# ---- dense ---------------------------------------------------------------------------------------


def dense_peers(X, W, b, dY):
    """Our calls by name, with σ; the others' by name, each with the name of its counterpart."""
    products = [np.empty_like(X) for _ in range(3)]

    def forward():
        return fd.dense(X, W, b, activation="sigmoid")

    def both():
        return forward(), *fd.dense_vjp(dY, X, W, b, activation="sigmoid")

    def both_cached():
        Y, cache = fd.dense(X, W, b, activation="sigmoid", return_cache=True)
        return Y, *fd.dense_vjp(dY, X, W, b, activation="sigmoid", cache=cache)

    def one_product():
        np.matmul(X, W, out=products[0])

    def three_products():
        return X @ W, dY @ W.T, X.T @ dY

    def three_in_place():
        one_product()
        np.matmul(dY, W.T, out=products[1])
        np.matmul(X.T, dY, out=products[2])

    def four_in_place():
        one_product()
        three_in_place()

    def numpy_layer():
        Y = 1 / (1 + np.exp(-(X @ W + b)))
        dN = dY * Y * (1 - Y)
        return Y, dN @ W.T, X.T @ dN, dN.sum(0)

    ours = {"dense": forward, "dense + vjp, cache": both_cached, "dense + vjp, no cache": both}
    peers = {
        "1 product, in place": ("dense", one_product),
        "3 products": ("dense + vjp, cache", three_products),
        "3 products, in place": ("dense + vjp, cache", three_in_place),
        "4 products, in place": ("dense + vjp, no cache", four_in_place),
        "NumPy, Y kept": ("dense + vjp, cache", numpy_layer),
    }
    if torch:
        leaves = [torch.from_numpy(a).requires_grad_() for a in (X, W, b)]
        adjoint = torch.from_numpy(dY)

        def pytorch():
            Y = torch.sigmoid(torch.addmm(leaves[2], leaves[0], leaves[1]))
            return Y.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(Y, leaves, adjoint))

        peers["PyTorch, Y kept"] = ("dense + vjp, cache", pytorch)
    return ours, peers


def dense_results(rounds: int, threads: int) -> Iterator[Result]:
    """With a cache, a layer is compared with its three products; without one, with four.

    "In place" means that the products go to memory that exists; `dense` and `dense_vjp` return new
    arrays.
    """
    n = 1024
    for dtype in np.float32, np.float64:
        rng = np.random.default_rng(0)
        X, W, dY = (rng.normal(size=(n, n)).astype(dtype) for _ in range(3))
        ours, peers = dense_peers(X, W / 32, rng.normal(size=n).astype(dtype), dY)
        agree(
            ours["dense + vjp, cache"](),
            ours["dense + vjp, no cache"](),
            "the layer with a cache",
            1e-30,
        )
        for name, (counterpart, peer) in peers.items():
            if name.endswith("kept"):
                agree(ours[counterpart](), peer(), name, 1e-4 if dtype == np.float32 else 1e-12)
        label = f"({n}, {n}, {n}) sigmoid {np.dtype(dtype)}{suffix(threads)}"
        t = interleave(
            ours | {name: peer for name, (_, peer) in peers.items()}, rounds=rounds, rest=0.02
        )
        for name, (counterpart, _) in peers.items():
            yield compare(f"{counterpart} {label}", t, counterpart, name, "call", 1)


# ---- grid RNN ------------------------------------------------------------------------------------


def grid_problem(G, batch, D, H, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, dh = (
        rng.normal(size=(batch, G, G, D)).astype(dtype),
        rng.normal(size=(batch, G, G, H)).astype(dtype),
    )
    W_in, W_west, W_north, b = (
        rng.normal(size=s) / np.sqrt(3 * s[-1]) for s in ((H, D), (H, H), (H, H), (H,))
    )
    return (x, *(a.astype(dtype) for a in (W_in, W_west, W_north, b))), dh


def grid_results(rounds: int, threads: int) -> Iterator[Result]:
    for G, batch, D, H in (64, 32, 16, 64), (8, 1, 16, 16), (28, 16, 1, 128):
        p, dh = grid_problem(G, batch, D, H)
        label, cells = (
            f"{G}×{G}, B = {batch}, D = {D}, H = {H}, float32{suffix(threads)}",
            G * G * batch,
        )

        def forward(p=p):
            return fd.grid_rnn(*p)

        def both(p=p, dh=dh):
            return fd.grid_rnn(*p), *fd.grid_rnn_vjp(dh, *p)

        peers = {"NumPy, cell by cell": grids.numpy_forward(p)}
        both_peers = {
            "NumPy, cell by cell": grids.numpy_gradient(p, dh),
            "NumPy, weights by sample": grids.numpy_gradient_by_sample(p, dh),
        }
        if torch:
            peers["PyTorch, by diagonals"] = grids.torch_forward(p)
            both_peers["PyTorch, by diagonals"] = grids.torch_gradient(p, dh)
        for what, ours, theirs in ("grid", forward, peers), ("grid + vjp", both, both_peers):
            for name, peer in theirs.items():
                few = max(3, rounds // 3) if name.startswith("NumPy") else rounds
                results = [f() if ours is both else [f()] for f in (ours, peer)]
                agree(*results, name, 1e-3 if ours is both else 1e-4)
                t = interleave({"fastderiv": ours, name: peer}, rounds=few, rest=0.02)
                memory = {"fastderiv": peak_memory(ours), name: peak_memory(peer)}
                yield compare(f"{what} {label}", t, "fastderiv", name, "cell", cells, memory)


# ---- LSTM ----------------------------------------------------------------------------------------

SEQUENCES = [(128, 32, 256, 256), (512, 1, 64, 64), (64, 64, 512, 512)]  # (T, B, D, H)


def lstm_problem(shape, dtype=np.float32):
    """x, weights and biases as PyTorch initialises them, dh."""
    T, B, D, H = shape
    rng = np.random.default_rng(0)

    def uniform(*s):
        return rng.uniform(-1, 1, s).astype(dtype) / dtype(np.sqrt(H))

    x, dh = (rng.standard_normal(s, np.float32).astype(dtype) for s in ((T, B, D), (T, B, H)))
    return x, (uniform(4 * H, D), uniform(4 * H, H), uniform(4 * H), uniform(4 * H)), dh


def lstm_calls(x, parameters, dh):
    def forward():
        return fd.lstm(x, *parameters)[0]

    def both():
        h, _, cache = fd.lstm(x, *parameters, return_cache=True)
        return h, fd.lstm_vjp(dh, x, *parameters, cache=cache)

    return forward, both


def lstm_results(rounds, threads):
    for shape in SEQUENCES:
        for dtype in (np.float32,) if shape != SEQUENCES[0] else (np.float32, np.float64):
            yield from lstm_at(shape, *lstm_problem(shape, dtype), threads, rounds)


def lstm_at(shape, x, parameters, dh, threads, rounds):
    """fastderiv and PyTorch with as many threads; on one thread, the NumPy loop, too."""
    label = f"{shape} {x.dtype}{suffix(threads)}"
    ours, theirs = lstm_calls(x, parameters, dh), torch_lstm_calls(x, parameters, dh)
    tolerance = 1e-5 if x.dtype == np.float32 else 1e-10
    agree([ours[0]()], [numpy_lstm(x, parameters)], "NumPy", tolerance)
    forward, both = {"fastderiv": ours[0]}, {"fastderiv": ours[1]}
    if threads == 1:
        forward["NumPy loop"] = lambda: numpy_lstm(x, parameters)
    if theirs:
        h, grads = theirs[1]()
        agree([ours[0](), *ours[1]()[1][:5]], [h, *grads], "PyTorch", tolerance)
        forward, both = {**forward, "PyTorch": theirs[0]}, {**both, "PyTorch": theirs[1]}
    timings = interleave(forward, rounds=rounds, rest=0.02)
    for peer in sorted(forward.keys() - {"fastderiv"}, reverse=True):
        yield compare(f"lstm {label}", timings, "fastderiv", peer, "step", shape[0])
    if theirs:
        yield compare(
            f"lstm and lstm_vjp {label}",
            interleave(both, rounds=rounds, rest=0.02),
            "fastderiv",
            "PyTorch",
            "step",
            shape[0],
        )


# ---- the product alone ---------------------------------------------------------------------------


def print_products() -> None:
    """What gemm_peak.c prints, for both reals at every x86-64 level that this CPU has."""
    here = Path(__file__).resolve().parent
    for level in "x86-64-v4", "x86-64-v3":
        for real in "float32", "float64":
            flags = [
                f"-march={level}",
                "-DSIMD_FMA",
                *(["-DSIMD_F64"] if real == "float64" else []),
            ]
            with tempfile.TemporaryDirectory() as folder:
                program = Path(folder) / "gemm_peak"
                command = [*shlex.split(os.environ.get("CC", "cc")), "-O2", "-fno-math-errno"]
                command += ["-ffp-contract=off", *flags, f"-I{here.parent / 'src/fastderiv/_core'}"]
                subprocess.run([*command, here / "gemm_peak.c", "-o", program], check=True)
                run = subprocess.run([program], check=False, capture_output=True, text=True)
            print(f"{level}, {real}: fraction of the peak, the peak in 10⁹ a second")
            print(run.stdout or "this CPU does not have the level")


SECTIONS = {"dense": dense_results, "grid": grid_results, "lstm": lstm_results}


def results(names: list[str], rounds: int, threads: list[int]) -> Iterator[Result]:
    for name in names:
        for n in threads:
            with limited(n):
                if torch:
                    torch.set_num_threads(n)
                yield from SECTIONS[name](rounds, n)


if __name__ == "__main__":
    parser = options(__doc__, rounds=9)
    parser.add_argument(
        "--threads", default="1,2", help="of everyone, separated by commas (default: 1,2)"
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--products", action="store_true", help="only the product alone")
    given = parser.parse_args()
    if given.products:
        print_products()
    else:
        threads = [int(n) for n in given.threads.split(",")]
        report(results(given.only.split(","), given.rounds, threads), given.json)
