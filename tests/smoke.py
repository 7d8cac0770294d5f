"""Every public function on tiny input, as a script for an installed package: prints one line of JSON per function.

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
net = fd.SigmoidMLP([np.array([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0]]), np.array([[2.0, -1.0], [1.0, 1.5], [-3.0, 0.5]])],
                    [np.array([0.1, -0.2, 0.3]), np.array([0.2, -0.1])])  # fmt: skip
X = np.stack([x, x[::-1]], 1)
W = np.cos(np.arange(9.0)).reshape(3, 3) / 2
layer = fd.S6(np.cos(np.arange(9.0)).reshape(3, 3), np.zeros(3), A, B[0, :, :3], B[0, :, 3:6])


def update():
    state = np.zeros((1, 3, 5))
    y = fd.selective_state_update(state, u[None, :, 0], u[None, :, 1], A, B[:, :, 0], B[:, :, 1], dt_softplus=True)
    return y, state


def gradients(dtype=np.float64):
    dout, z, state, D = (a.astype(dtype) for a in (u[::-1], u, A, x[:3]))
    rest = dict(D=D, z=z, delta_bias=D, delta_softplus=True, initial_state=state, dlast_state=state)
    return fd.selective_scan_vjp(dout, *(a.astype(dtype) for a in (u, u, A, B, B)), **rest)


def dense_gradients(dtype=np.float64):
    return fd.dense_vjp(*(a.astype(dtype) for a in (np.cos(np.outer(x, x[:5])), X, A[:2], x[:5])), activation="gelu")


def grid_gradients(dtype=np.float64):
    return fd.grid_rnn_vjp(*(a.astype(dtype) for a in (u.reshape(2, 4, 3), B.reshape(2, 4, 5), A, W, W, x[:3])))


def root():
    grid = np.linspace(-9, 9, 181)
    margin = net.margin(np.column_stack([grid, np.full(181, 0.3)]))
    cell = np.flatnonzero(margin[1:] * margin[:-1] < 0)[:1]
    return fd.find_x1(net, np.array([0.3]), (grid[cell], grid[cell + 1]))


def exponential_sum():
    sums = fd.ExponentialSum.from_network(net)
    return sums.coefficients, sums.frequencies(0), *sums.log_evaluate(np.outer(x, [1.0, 2.0, -1.0])), sums.root_bound(0)


CALLS = {
    "selective_scan": lambda: (
        *fd.selective_scan(u, u, A, B, B, delta_softplus=True, return_last_state=True),
        fd.selective_scan(
            *(a.astype(np.float32) for a in (u, u, A, B, B)), z=u.astype(np.float32), delta_softplus=True
        ),
    ),
    "selective_scan_vjp": lambda: (*gradients(), *gradients(np.float32)),
    "SelectiveScanGrads": lambda: pickle.loads(pickle.dumps(gradients())),
    "selective_state_update": update,
    "chunk_summary": lambda: fd.chunk_summary(u, u, A, B, delta_softplus=True),
    "combine_summaries": lambda: fd.combine_summaries((A, A), (A, u[:, :5])),
    "ChunkSummary": lambda: pickle.loads(pickle.dumps(fd.ChunkSummary(A, A))),
    "scan_attention": lambda: [fd.scan_attention(u, A, B, B, delta_softplus=True), fd.scan_attention(u, A, B, A, rows=[-1, 3])],
    "transition_product": lambda: [fd.transition_product(u, A, method=method) for method in ("closed", "subsets")],
    "S6": lambda: [
        *layer(u.T, return_last_state=True), layer.step_sizes(u.T), layer.attention(u.T),
        *(layer.transition_product(u.T, 1, 5, method) for method in ("closed", "subsets")),
    ],
    "S6Grads": lambda: layer.vjp(u.T, u.T, np.zeros((3, 5))),
    "subset_sums": lambda: [fd.subset_sums(x), fd.subset_sums(x.astype(np.float32))],
    "iter_subset_sums": lambda: [sums for _, sums in fd.iter_subset_sums(x, block=64)],
    "subset_logsumexp": lambda: [fd.subset_logsumexp(x, method=method) for method in ("closed", "enumerate")],
    "SigmoidMLP": lambda: [net.logits(X), net.forward(X), net.margin(X), net.margin_gradient(X)],
    "ExponentialSum": exponential_sum,
    "find_x1": lambda: [root().x],
    "RootResults": lambda: [pickle.loads(pickle.dumps(root())).x],
    "dense": lambda: [fd.dense(X, A[:2], x[:5], activation=name) for name in ("sigmoid", "tanh", "relu", "softplus", "silu", "gelu", None)],
    "dense_vjp": lambda: [*dense_gradients(), *dense_gradients(np.float32)],
    "DenseGrads": lambda: pickle.loads(pickle.dumps(dense_gradients())),
    "grid_rnn": lambda: [fd.grid_rnn(B.reshape(2, 4, 5), A, W, W, x[:3], activation=name) for name in ("tanh", "gelu")],
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
                {"name": name, "results": [{"dtype": str(r.dtype), "bytes": r.tobytes().hex()} for r in results]}
            )
        )
