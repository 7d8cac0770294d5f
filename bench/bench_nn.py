"""The layers against PyTorch and NumPy: checks the results, then times interleaved.

    python bench/bench_nn.py [--json] [--rounds N] [--threads 1,2] [--only lstm]

Ratio first (how many times as long the peer takes), time second.  Peers that are not installed are left out.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's; PyTorch has threads of its own
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a peer's idle threads must not eat the other's core

import numpy as np

import fastderiv as fd
from fastderiv._cli.timing import interleave
from report import compare, options, report

SHAPES = [(128, 32, 256, 256), (512, 1, 64, 64), (64, 64, 512, 512)]  # (T, B, D, H)


def lstm_problem(shape, dtype=np.float32):
    """x, weights and biases as PyTorch initialises them, dh."""
    T, B, D, H = shape
    rng = np.random.default_rng(0)

    def uniform(*s):
        return rng.uniform(-1, 1, s).astype(dtype) / dtype(np.sqrt(H))

    x, dh = (rng.standard_normal(s, np.float32).astype(dtype) for s in ((T, B, D), (T, B, H)))
    return x, (uniform(4 * H, D), uniform(4 * H, H), uniform(4 * H), uniform(4 * H)), dh


def lstm_calls(x, parameters, dh, threads):
    def forward():
        return fd.lstm(x, *parameters)[0]

    def both():
        h, _, cache = fd.lstm(x, *parameters, return_cache=True)
        return h, fd.lstm_vjp(dh, x, *parameters, cache=cache)

    fd.set_num_threads(threads)
    return forward, both


def torch_lstm_calls(x, parameters, dh, threads):
    """torch.nn.LSTM, or None."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    layer = torch.nn.LSTM(x.shape[-1], dh.shape[-1], dtype=torch.from_numpy(x).dtype)
    with torch.no_grad():
        for own, given in zip(layer.parameters(), parameters, strict=True):
            own.copy_(torch.from_numpy(given))
    tx, tdh = torch.from_numpy(x.copy()).requires_grad_(), torch.from_numpy(dh)

    def forward():
        with torch.no_grad():
            return layer(tx)[0].numpy()

    def both():
        tx.grad = None
        layer.zero_grad()
        h = layer(tx)[0]
        h.backward(tdh)
        return h.detach().numpy(), [tx.grad.numpy(), *(p.grad.numpy() for p in layer.parameters())]

    return forward, both


def numpy_lstm(x, parameters):
    """The loop over steps as one writes it: one product for the inputs, one a step."""
    W, U, b1, b2 = parameters
    H = U.shape[1]
    z = x @ W.T + (b1 + b2)
    h = c = np.zeros((*x.shape[1:-1], H), x.dtype)
    out = []
    for zt in z:
        a = zt + h @ U.T
        i, f, o = (1 / (1 + np.exp(-a[..., k * H : (k + 1) * H])) for k in (0, 1, 3))
        c = f * c + i * np.tanh(a[..., 2 * H : 3 * H])
        h = o * np.tanh(c)
        out.append(h)
    return np.array(out)


def check(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - b).max() < tolerance * np.abs(b).max(), np.abs(a - b).max() / np.abs(b).max()


def lstm_results(rounds, threads=(1, 2)):
    for shape in SHAPES:
        for dtype in (np.float32,) if shape != SHAPES[0] else (np.float32, np.float64):
            x, parameters, dh = lstm_problem(shape, dtype)
            for n in threads:
                yield from lstm_at(shape, x, parameters, dh, n, rounds)


def lstm_at(shape, x, parameters, dh, threads, rounds):
    """fastderiv against PyTorch with as many threads, and on one thread against the NumPy loop."""
    label = f"{shape} {x.dtype}, {threads} thread{'s' * (threads > 1)}"
    ours, torch = lstm_calls(x, parameters, dh, threads), torch_lstm_calls(x, parameters, dh, threads)
    tolerance = 1e-5 if x.dtype == np.float32 else 1e-10
    check([ours[0]()], [numpy_lstm(x, parameters)], tolerance)
    forward, both = {"ours": ours[0]}, {"ours": ours[1]}
    if threads == 1:
        forward["numpy"] = lambda: numpy_lstm(x, parameters)
    if torch:
        h, grads = torch[1]()
        check([ours[0](), *ours[1]()[1][:5]], [h, *grads], tolerance)
        forward, both = {**forward, "torch": torch[0]}, {**both, "torch": torch[1]}
    timings = interleave(forward, rounds=rounds, rest=0.002)
    for peer in sorted(forward.keys() - {"ours"}, reverse=True):
        yield compare(f"lstm {label}", timings, "ours", peer, "step", shape[0])
    if torch:
        yield compare(f"lstm and lstm_vjp {label}", interleave(both, rounds=rounds, rest=0.002), "ours", "torch", "step", shape[0])


BENCHES = {"lstm": lstm_results}


def main():
    parser = options(__doc__, rounds=9)
    parser.add_argument("--threads", default="1,2", help="numbers of threads to compare with (default: 1,2)")
    parser.add_argument("--only", default=",".join(BENCHES), help=f"which layers (default: {','.join(BENCHES)})")
    chosen = parser.parse_args()
    threads = tuple(int(n) for n in chosen.threads.split(","))
    report((r for name in chosen.only.split(",") for r in BENCHES[name](chosen.rounds, threads)), chosen.json)


if __name__ == "__main__":
    main()
