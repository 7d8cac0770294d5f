"""A script that calls every public function on tiny input and prints a line of JSON for each.

The lines hold the results' bytes, so that a caller can compare CPU levels bit for bit.
"""

import json
import pickle

import numpy as np

import fastderiv as fd

x = np.linspace(-2.0, 1.5, 8)
u = np.outer([1.0, -0.5, 0.25], x)  # (D, L)
A = -np.arange(1.0, 6.0) * np.ones((3, 1))  # (D, N)
B = np.cos(np.arange(40.0)).reshape(1, 5, 8)  # (G, N, L)
net = fd.SigmoidMLP(
    [
        np.array([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0]]),
        np.array([[2.0, -1.0], [1.0, 1.5], [-3.0, 0.5]]),
    ],
    [np.array([0.1, -0.2, 0.3]), np.array([0.2, -0.1])],
)
X = np.stack([x, x[::-1]], 1)
W = np.cos(np.arange(9.0)).reshape(3, 3) / 2
layer = fd.S6(np.cos(np.arange(9.0)).reshape(3, 3), np.zeros(3), A, B[0, :, :3], B[0, :, 3:6])


def update():
    state = np.zeros((1, 3, 5))
    y = fd.selective_state_update(
        state, u[None, :, 0], u[None, :, 1], A, B[:, :, 0], B[:, :, 1], dt_softplus=True
    )
    return y, state


def ssd_arguments(dtype=np.float64):
    """x (L, H, P), dt (L, H), A, B and C (L, G, N) of Mamba-2's scan."""
    B = np.cos(np.arange(120.0)).reshape(12, 1, 10)
    x = np.sin(np.arange(96.0)).reshape(12, 2, 4)
    return [a.astype(dtype) for a in (x, x[..., 0] - 1, np.array([-0.5, -3.0]), B, B[::-1])]


def ssd_update(dtype=np.float64):
    x, dt, A, B, C = ssd_arguments(dtype)
    state = np.ones((2, 4, 10), dtype)
    D = np.array([0.5, 2.0], dtype)
    y = fd.ssd_state_update(state, x[0], dt[0], A, B[0], C[0], D, x[1], D, dt_softplus=True)
    return y, state


def ssd_summary(dtype=np.float64):
    return fd.ssd_chunk_summary(*ssd_arguments(dtype)[:4], dt_softplus=True)


def gradients(dtype=np.float64):
    dout, z, state, D = (a.astype(dtype) for a in (u[::-1], u, A, x[:3]))
    rest = dict(D=D, z=z, delta_bias=D, delta_softplus=True, initial_state=state, dlast_state=state)
    return fd.selective_scan_vjp(dout, *(a.astype(dtype) for a in (u, u, A, B, B)), **rest)


def ssd_gradients(dtype=np.float64):
    signal = np.cos(np.arange(900.0)).reshape(150, 2, 3).astype(dtype)
    state = np.cos(np.arange(18.0)).reshape(2, 3, 3).astype(dtype)
    A = -1 - signal[0, :, 0] ** 2
    of_time = signal[::-1], signal, signal[..., 0], A, signal[:, :1], signal[:, 1:]
    options = dict(D=A, z=signal, dt_bias=A, dt_softplus=True, dt_limit=(0.01, 2))
    return fd.ssd_scan_vjp(*of_time, **options, initial_state=state, dlast_state=state)


def convolution(dtype=np.float64):
    """With bias, activation and state; then the gradients."""
    last = dict(initial_state=W.astype(dtype))
    taps = np.cos(np.arange(12.0)).reshape(3, 4).astype(dtype)
    rest = u.astype(dtype), taps, x[:3].astype(dtype), "silu"
    results = fd.causal_conv1d(*rest, return_last_state=True, **last)
    return results, fd.causal_conv1d_vjp(u[::-1].astype(dtype), *rest, dlast_state=W, **last)


def convolution_steps():
    state = np.zeros((3, 3))
    return fd.causal_conv1d_update(u, state, W, x[:3], "silu"), state


def mamba2(dtype=np.float64):
    x3 = np.cos(np.arange(60.0)).reshape(5, 4, 3)
    p = x3, x3[..., 0], -np.arange(1.0, 5), x3[:, :2], x3[::-1, :2]
    p = tuple(a.astype(dtype) for a in p)
    y, h = fd.ssd_scan(*p, dt_softplus=True, return_last_state=True)
    return y, h, fd.ssd_scan(*p, D=p[2], z=p[0], dt_softplus=True, initial_state=h)


def linear_gradients(dtype=np.float64):
    dout, b, a, state = (s.astype(dtype) for s in (u[::-1], u, x[:3], x[3:6]))
    return fd.linear_scan_vjp(dout, a, b, initial_state=state, dlast_state=state)


def dense_gradients(dtype=np.float64):
    return fd.dense_vjp(
        *(a.astype(dtype) for a in (np.cos(np.outer(x, x[:5])), X, A[:2], x[:5])), activation="gelu"
    )


def grid_gradients(dtype=np.float64):
    return fd.grid_rnn_vjp(
        *(a.astype(dtype) for a in (u.reshape(2, 4, 3), B.reshape(2, 4, 5), A, W, W, x[:3]))
    )


def root():
    grid = np.linspace(-9, 9, 181)
    margin = net.margin(np.column_stack([grid, np.full(181, 0.3)]))
    cell = np.flatnonzero(margin[1:] * margin[:-1] < 0)[:1]
    return fd.find_x1(net, np.array([0.3]), (grid[cell], grid[cell + 1]))


def crossings(c):
    return c.indptr, c.x, c.lower, c.upper, c.unique, c.complete, c[3]


def curves():
    return fd.trace_boundary(net, ((-3, 3), (-3, 3)))


def exponential_sum():
    sums = fd.ExponentialSum.from_network(net)
    return (
        sums.coefficients,
        sums.frequencies(0),
        *sums.log_evaluate(np.outer(x, [1.0, 2.0, -1.0])),
        sums.root_bound(0),
    )


def tie():
    """The net with another bias, so that it ties at 0.3, 0.2."""
    x = np.array([0.3, 0.2])
    bias = net.biases[1] - [net.margin(x[None])[0], 0]
    return fd.SigmoidMLP(net.weights, [net.biases[0], bias]), x


def intervals():
    d = fd.decision_intervals(net, x, bounds=(-5.0, 5.0))
    return d.indptr, d.lower, d.upper, d.output, d.complete


def momentum():
    theta, p = x.copy(), np.zeros(8)
    fd.momentum_step(theta, p, x, alpha=0.1, beta=0.9)
    return theta, p


def momentum_back():
    theta, p = momentum()
    fd.momentum_unstep(theta, p, np.sin, alpha=0.1, beta=0.9)
    return theta, p


def reversible():
    momentum = fd.ReversibleMomentum(x, alpha=0.1, beta=0.9)
    for _ in range(120):
        momentum.step(np.round(momentum.theta, 3))
    momentum = pickle.loads(pickle.dumps(momentum))
    momentum.unstep(lambda theta: np.round(theta, 3))
    return momentum.theta, momentum.p, momentum.information_bits


def hypergradients():
    return fd.hypergradient(
        np.square, np.square, lambda theta, v: 2 * theta * v, x[4:], n_steps=9, alpha=0.1, beta=0.9
    )


def cells(dtype=np.float64):
    """Arguments of an LSTM with five units, states and all."""
    weights = B[0, :, :3].repeat(4, axis=0), np.tile(A[:1], (20, 1)) / 9
    return [a.astype(dtype) for a in (u.T[:, None], *weights, np.sin(np.arange(20.0)))], (
        A[:1].astype(dtype),
        A[:1].astype(dtype) / 3,
    )


def recurrent(name, dtype=np.float64):
    arguments, state = cells(dtype)
    adjoints = [np.ones((8, 1, 5), dtype)] if name != "lstm" else []
    rest = dict(dlast_state=state) if adjoints else {}
    results = getattr(fd, name)(*adjoints, *arguments, initial_state=state, lengths=[6], **rest)
    return [
        r
        for result in results
        if result is not None
        for r in (result if isinstance(result, tuple) else [result])
    ]


CALLS = {
    "selective_scan": lambda: (
        *fd.selective_scan(u, u, A, B, B, delta_softplus=True, return_last_state=True),
        fd.selective_scan(
            *(a.astype(np.float32) for a in (u, u, A, B, B)),
            z=u.astype(np.float32),
            delta_softplus=True,
        ),
    ),
    "selective_scan_vjp": lambda: (*gradients(), *gradients(np.float32)),
    "SelectiveScanGrads": lambda: pickle.loads(pickle.dumps(gradients())),
    "selective_state_update": update,
    "ssd_scan_vjp": lambda: (*ssd_gradients(), *ssd_gradients(np.float32)),
    "SSDScanGrads": lambda: pickle.loads(pickle.dumps(ssd_gradients())),
    "causal_conv1d": lambda: (*convolution()[0], *convolution(np.float32)[0]),
    "causal_conv1d_vjp": lambda: (*convolution()[1], *convolution(np.float32)[1]),
    "causal_conv1d_update": convolution_steps,
    "CausalConv1dGrads": lambda: pickle.loads(pickle.dumps(convolution()[1])),
    "ssd_scan": lambda: (*mamba2(), *mamba2(np.float32)),
    "chunk_summary": lambda: fd.chunk_summary(u, u, A, B, delta_softplus=True),
    "combine_summaries": lambda: fd.combine_summaries((A, A), (A, u[:, :5])),
    "ChunkSummary": lambda: pickle.loads(pickle.dumps(fd.ChunkSummary(A, A))),
    "scan_attention": lambda: [
        fd.scan_attention(u, A, B, B, delta_softplus=True),
        fd.scan_attention(u, A, B, A, rows=[-1, 3]),
    ],
    "ssd_state_update": lambda: (*ssd_update(), *ssd_update(np.float32)),
    "ssd_attention": lambda: [
        fd.ssd_attention(*ssd_arguments(dtype)[1:], dt_softplus=True, dt_limit=(0.1, 2.0))
        for dtype in (np.float64, np.float32)
    ],
    "ssd_chunk_summary": lambda: (*ssd_summary(), *ssd_summary(np.float32)),
    "SSDChunkSummary": lambda: pickle.loads(pickle.dumps(ssd_summary())),
    "transition_product": lambda: [
        fd.transition_product(u, A, method=method) for method in ("closed", "subsets")
    ],
    "linear_scan": lambda: [
        *fd.linear_scan(A, u[:, :5], axis=0, return_last_state=True),
        fd.linear_scan(0.7, u.astype(np.float32), reverse=True),
        fd.linear_scan(x[:3], np.tile(u, 9), initial_state=x[3:6]),
    ],
    "linear_scan_vjp": lambda: [*linear_gradients(), *linear_gradients(np.float32)],
    "LinearScanGrads": lambda: pickle.loads(pickle.dumps(linear_gradients())),
    "S6": lambda: [
        *layer(u.T, return_last_state=True),
        layer.step_sizes(u.T),
        layer.attention(u.T),
        *(layer.transition_product(u.T, 1, 5, method) for method in ("closed", "subsets")),
    ],
    "S6Grads": lambda: layer.vjp(u.T, u.T, np.zeros((3, 5))),
    "lstm": lambda: recurrent("lstm") + recurrent("lstm", np.float32),
    "lstm_vjp": lambda: recurrent("lstm_vjp") + recurrent("lstm_vjp", np.float32),
    "lstm_state_adjoints": lambda: (
        recurrent("lstm_state_adjoints") + recurrent("lstm_state_adjoints", np.float32)
    ),
    "LSTMGrads": lambda: [
        pickle.loads(pickle.dumps(fd.lstm_vjp(np.ones((8, 1, 5)), *cells()[0]))).dx
    ],
    "subset_sums": lambda: [fd.subset_sums(x), fd.subset_sums(x.astype(np.float32))],
    "iter_subset_sums": lambda: [sums for _, sums in fd.iter_subset_sums(x, block=64)],
    "subset_logsumexp": lambda: [
        fd.subset_logsumexp(x, method=method) for method in ("closed", "enumerate")
    ],
    "SigmoidMLP": lambda: [net.logits(X), net.forward(X), net.margin(X), net.margin_gradient(X)],
    "ExponentialSum": exponential_sum,
    "solve_x1": lambda: crossings(fd.solve_x1(net, x)),
    "Crossings": lambda: crossings(pickle.loads(pickle.dumps(fd.solve_x1(net, x, bounds=(-1, 2))))),
    "find_x1": lambda: [root().x],
    "counterfactuals": lambda: fd.counterfactuals(tie()[0], [0.5, 0.3])[:2],
    "Counterfactuals": lambda: pickle.loads(pickle.dumps(fd.counterfactuals(tie()[0], [0.5, 0.3])))[
        :2
    ],
    "decision_intervals": intervals,
    "DecisionIntervals": lambda: [
        pickle.loads(pickle.dumps(fd.decision_intervals(net, x))).complete
    ],
    "follow_boundary": lambda: [
        fd.follow_boundary(*tie(), 2.0)[-1],
        fd.follow_boundary(*tie(), -1.0, step=0.25),
    ],
    "nearest_tie": lambda: fd.nearest_tie(tie()[0], [1.0, 1.0])[:2],
    "NearestTie": lambda: pickle.loads(pickle.dumps(fd.nearest_tie(tie()[0], [1.0, 1.0])))[:2],
    "tie_sensitivity": lambda: [a for part in fd.tie_sensitivity(*tie())[:2] for a in part],
    "TieSensitivity": lambda: [pickle.loads(pickle.dumps(fd.tie_sensitivity(*tie()))).inputs],
    "RootResults": lambda: [pickle.loads(pickle.dumps(root())).x],
    "trace_boundary": lambda: curves().points,
    "BoundaryCurves": lambda: [
        *pickle.loads(pickle.dumps(curves())).points,
        curves().closed,
        curves().undecided,
    ],
    "momentum_step": momentum,
    "momentum_unstep": momentum_back,
    "momentum_jacobian": lambda: [fd.momentum_jacobian(A[:, :3], alpha=0.1, beta=0.9)],
    "ReversibleMomentum": reversible,
    "hypergradient": hypergradients,
    "Hypergradients": lambda: pickle.loads(pickle.dumps(hypergradients())),
    "dense": lambda: [
        fd.dense(X, A[:2], x[:5], activation=name)
        for name in ("sigmoid", "tanh", "relu", "softplus", "silu", "gelu", None)
    ],
    "dense_vjp": lambda: [*dense_gradients(), *dense_gradients(np.float32)],
    "DenseGrads": lambda: pickle.loads(pickle.dumps(dense_gradients())),
    "grid_rnn": lambda: [
        fd.grid_rnn(B.reshape(2, 4, 5), A, W, W, x[:3], activation=name)
        for name in ("tanh", "gelu")
    ],
    "grid_rnn_vjp": lambda: [*grid_gradients(), *grid_gradients(np.float32)],
    "GridRNNGrads": lambda: pickle.loads(pickle.dumps(grid_gradients())),
    "set_num_threads": lambda: fd.set_num_threads(1) or (),
    "get_num_threads": lambda: [fd.get_num_threads()],
    "show_config": lambda: [len(fd.show_config())],
}


if __name__ == "__main__":
    assert CALLS.keys() == set(fd.__all__), CALLS.keys() ^ set(fd.__all__)
    for name, call in CALLS.items():
        results = [np.asarray(r) for r in call()]
        assert all(np.isfinite(r).all() for r in results), name
        print(
            json.dumps(
                {
                    "name": name,
                    "results": [
                        {"dtype": str(r.dtype), "bytes": r.tobytes().hex()} for r in results
                    ],
                }
            )
        )
