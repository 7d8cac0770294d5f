"""A program that uses the whole library passes a type checker in its strictest mode."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastderiv as fd

# a `type: ignore` that is not needed is an error too: those lines hold the result's type against
# becoming Any
PROGRAM = """
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

import fastderiv as fd
from fastderiv import reference
from fastderiv.data import load_iris_pair, load_network, load_sunspots

Floats = NDArray[np.float64]

# ssm
u: Floats = np.ones((3, 8))
A: Floats = -np.ones((3, 2))
h: Floats = np.zeros((3, 2))
y: Floats = fd.selective_scan(u, u, A, A, A)
print(
    fd.selective_scan(
        u, u.tolist(), A, A, A, z=u, delta_softplus=True, return_last_state=False, out=y
    ).shape
)
print(
    fd.selective_scan(
        u,
        u,
        A,
        A,
        A,
        np.ones(3),
        None,
        [1, 2, 3],
        True,
        False,
        initial_state=[h],
        cu_seqlens=[0, 8],
    ).T
)
y, h = fd.selective_scan(u, u, A, A, A, return_last_state=True)
y, h = fd.selective_scan(u, u, A, A, A, None, None, None, True, True, initial_state=h)
print(y.shape, h.shape)
flag = bool(y.any())
result = fd.selective_scan(u, u, A, A, A, return_last_state=flag)
print(result[0].shape if isinstance(result, tuple) else result.shape)
not_an_array: int = fd.selective_scan(u, u, A, A, A)  # type: ignore[assignment]
alone: Floats = fd.selective_scan(u, u, A, A, A, return_last_state=True)  # type: ignore[assignment]
grads: fd.SelectiveScanGrads = fd.selective_scan_vjp(
    y, u, u, A, A, A, np.ones(3), delta_softplus=True, initial_state=h, dlast_state=[[1, 2]] * 3
)
grads = fd.selective_scan_vjp(
    u, u, u.tolist(), A, A, A, None, u, [1, 2, 3], True, cu_seqlens=[0, 8]
)
du, ddelta, dA, *_ = grads
print(grads.du.shape, grads.dB.T, None if grads.dD is None else grads.dD.shape)
heads = np.ones((8, 2, 3))
of_ssd: fd.SSDScanGrads = fd.ssd_scan_vjp(
    heads, heads, heads[..., 0].tolist(), [-1, -2], heads, heads, dt_limit=(0, 1), dlast_state=None
)
print(of_ssd.dx.shape, None if of_ssd.dz is None else of_ssd.dz.shape)
print(fd.selective_state_update(h, u[:, 0], u[:, 1], A, [1, 2], [1.0, 2.0], dt_softplus=True).shape)
print(
    fd.transition_product(u, A).shape,
    fd.transition_product([[0.5, 1]], [[-1]], method="subsets").mean(),
)
fd.transition_product(u, A, method="sum")  # type: ignore[arg-type]
heads, groups = np.ones((8, 4, 3)), np.ones((8, 2, 5))
two: Floats = fd.ssd_scan(heads, heads[..., 0], [-1] * 4, groups, groups, dt_limit=(0, 1))
two, h = fd.ssd_scan(
    heads, heads[..., 0], [-1] * 4, groups, groups, z=two, return_last_state=True
)
two, remembered = fd.ssd_scan(
    heads, heads[..., 0], [-1] * 4, groups, groups, initial_state=h, return_cache=True
)
print(two.shape, h.shape, remembered)
of_ssd = fd.ssd_scan_vjp(
    heads, heads, heads[..., 0], [-1] * 4, groups, groups, initial_state=h, cache=remembered
)
y, remembered = fd.selective_scan(u, u, A, A, A, return_cache=True)
y, h, remembered = fd.selective_scan(u, u, A, A, A, return_last_state=True, return_cache=True)
print(fd.selective_scan_vjp(y, u, u, A, A, A, cache=remembered).du.shape)
taps: Floats = fd.causal_conv1d(u, [[1, 2], [3, 4], [5, 6]], [0, 0, 0], "silu")
taps, h = fd.causal_conv1d(u, np.ones((3, 4)), return_last_state=True, initial_state=None)
of_taps: fd.CausalConv1dGrads = fd.causal_conv1d_vjp(u, taps, np.ones((3, 4)), dlast_state=h)
print(of_taps.dx.shape, None if of_taps.dbias is None else of_taps.dbias.T)
print(fd.causal_conv1d_update(u[:, 0], h, np.ones((3, 4)), [1, 2, 3], activation="silu").shape)
line: Floats = fd.linear_scan(0.5, u, axis=0, reverse=True)
line, h = fd.linear_scan([1, 2, 3], u, return_last_state=True, initial_state=[0, 0, 0])
of_line: fd.LinearScanGrads = fd.linear_scan_vjp(u, u, u.tolist(), dlast_state=h)
print(line.shape, of_line.da.shape, of_line.db.T)
summary: fd.ChunkSummary = fd.chunk_summary(u, u, A, A, delta_softplus=True)
summary = fd.combine_summaries(
    fd.combine_summaries(summary, (A, A)), (A.tolist(), np.ones((3, 2), int))
)
P, h = summary
print(
    P.shape,
    summary.q.mean(),
    fd.scan_attention(u, A, A, A).shape,
    fd.scan_attention(u, A, A, A, None, True, rows=[0, -1]).T,
)
heads, steps = np.ones((8, 3, 2)), np.ones((8, 3))
group, rates, memory = np.ones((8, 1, 4)), [-1, -2, -3.0], np.zeros((3, 2, 4))
print(
    fd.ssd_state_update(memory, heads[0], steps[0], rates, group[0], [[1, 2, 3, 4]]).shape,
    fd.ssd_attention(steps, rates, group, group, None, True, (0, 9.0), rows=[-1]).T,
)
of_heads: fd.SSDChunkSummary = fd.ssd_chunk_summary(heads, steps, rates, group, dt_softplus=True)
of_heads = fd.combine_summaries(of_heads, of_heads)
print(of_heads.P.shape, of_heads.q.mean())
layer = fd.S6(-np.eye(3), np.zeros(3), A, [[1, 2, 3], [4, 5, 6]], W_C=np.ones((2, 3)))
print(
    layer(u.T).shape,
    layer(u.T, h).shape,
    layer(u.T.tolist(), initial_state=[[0, 0]] * 3, return_last_state=False).shape,
)
y, h = layer(u.T, h, True)
y, h = layer(u.T, return_last_state=True)
result = layer(u.T, return_last_state=flag)
print(
    layer.step_sizes(u.T).shape,
    layer.attention(u.T).shape,
    layer.transition_product(u.T, 2, None, method="subsets").shape,
)
s6_grads: fd.S6Grads = layer.vjp(y, u.T, h, dlast_state=h)
print(s6_grads.dx.shape, layer.A.dtype, layer.W_delta is layer.W_B, s6_grads.dinitial_state is None)

# nn
gates: Floats = np.ones((8, 3))
out, (h_n, c_n) = fd.lstm(
    u.T, gates, np.ones((8, 2)), [0] * 8, initial_state=([0, 1], np.zeros(2)), lengths=4
)
out, (h_n, c_n), cache = fd.lstm(u.T, gates, np.ones((8, 2)), return_cache=True)
lstm_grads: fd.LSTMGrads = fd.lstm_vjp(
    out, u.T, gates, np.ones((8, 2)), dlast_state=(h_n, None), cache=cache
)
hbar, cbar = fd.lstm_state_adjoints(out, u.T, gates, np.ones((8, 2)), cache=cache)
print(lstm_grads.dx.shape, lstm_grads.dbias_ih is None, hbar.shape, cbar.T)
not_an_array = fd.lstm(u.T, gates, np.ones((8, 2)))  # type: ignore[assignment]

# subsets
x = [0.5, -1.0, 2.0]
print(fd.subset_sums(x).shape, fd.subset_sums(np.array(x), out=np.empty(8)).dtype)
blocks: Iterator[tuple[int, Floats]] = fd.iter_subset_sums(
    x, block=np.int64(4), progress=lambda done, total: None
)
for first, sums in blocks:
    print(first + 1, sums.shape)
print(
    fd.subset_logsumexp(u).shape, fd.subset_logsumexp(x, method="enumerate", progress=print) + 1.0
)
fd.subset_logsumexp(x, method="sum")  # type: ignore[arg-type]

# boundary
net = fd.SigmoidMLP([[[1.0, -1.0], [0.5, 0.5]], np.ones((2, 2))], ([0, 0], [0.0, 0.5]))
data = load_network()
net = fd.SigmoidMLP(data.weights, list(data.biases))
net = fd.SigmoidMLP(weights=net.weights, biases=net.biases)
print(net.weights[0].shape, net.n_inputs + net.n_outputs, len(net.hidden_widths))
X = load_iris_pair().X
print(
    net.logits(X).shape,
    net.forward(X.tolist()).shape,
    net.margin(X, [1, 0]).shape,
    net.margin_gradient(X, (1, 0)).shape,
)
roots: fd.RootResults = fd.find_x1(net, [1.5, 1.6], [4.5, 6.0])
crossings: fd.Crossings = fd.solve_x1(
    net, [1.5, 1.6], coordinate=-2, outputs=[0, 1], bounds=(0, np.inf), xtol=1e-9, progress=print
)
row: Floats = crossings[0]
print(
    len(crossings),
    crossings.unique.all(),
    crossings.status.tolist(),
    crossings.root_bound,
    row.shape,
)
roots = fd.find_x1(
    net,
    1.5,
    (np.array([4.5]), 6),
    coordinate=0,
    outputs=[0, 1],
    method="bisect",
    xtol=1e-9,
    maxiter=50,
)
print(roots.x.shape, roots.converged.all(), roots.iterations.max() + roots.function_calls.sum())
curves: fd.BoundaryCurves = fd.trace_boundary(net, ((0, 7), [0, 3]), outputs=[1, 0])
curves = fd.trace_boundary(
    net, np.array([[0.0, 7.0], [0.0, 3.0]]), coordinates=[1, 0], at=X[0], tol=1e-8
)
print(
    [len(p) + p.shape[1] for p in curves.points],
    curves.closed.all(),
    not curves.certified,
    curves.undecided.shape,
)
flips: fd.Counterfactuals = fd.counterfactuals(
    net, [4.5, 1.5], features=[0, -1], outputs=[1, 0], bounds=[(0, 9), (0, 3)]
)
print(flips.value.shape, fd.counterfactuals(net, X[0]).change.mean())
nearest: fd.NearestTie = fd.nearest_tie(net, X[0].tolist(), bounds=[(0, 9), (0, 3)])
print(nearest.x.shape, nearest.distance + nearest.margin + nearest.residual, nearest.converged)
way: Floats = fd.follow_boundary(
    net, nearest.x, 0.5, coordinates=(1, 0), step=0.1, stop_when_closed=True
)
moves: fd.TieSensitivity = fd.tie_sensitivity(net, way[-1], coordinate=1)
print(moves.weights[0].shape, moves.biases[-1].shape, moves.inputs.T)
decisions: fd.DecisionIntervals = fd.decision_intervals(
    net, [1.5, 1.6], coordinate=-1, bounds=(0, 9)
)
print(
    len(decisions),
    decisions[0].lower,
    decisions.upper.max(),
    decisions.output.sum(),
    decisions.complete.all(),
)
terms = fd.ExponentialSum.from_network(net, outputs=[0, 1])
terms = fd.ExponentialSum(net)
sign, logabs = terms.log_evaluate(np.zeros((5, 3)))
print(
    terms.coefficients.shape,
    terms.frequencies(0).shape,
    terms.root_bound(1) + 1,
    sign.shape,
    logabs.shape,
)

# optim
theta, momentum = np.ones((2, 3)), np.zeros((2, 3), np.float32)
fd.momentum_step(theta, theta * 0, theta.tolist(), alpha=0.1, beta=0.9)
fd.momentum_unstep(momentum, momentum * 0, np.sin, alpha=1, beta=np.float64(0.5))
jacobian: Floats = fd.momentum_jacobian([[1, 0], [0, 2]], alpha=0.1, beta=0.9)
reversible = fd.ReversibleMomentum(theta, alpha=0.1, beta=0.9)
reversible.step([[1, 2, 3], [4, 5, 6]])
reversible.unstep(lambda theta: [[1, 2, 3], [4, 5, 6]])
print(
    jacobian.shape,
    reversible.theta.shape,
    reversible.p.T,
    reversible.information_bits + reversible.steps,
    reversible.alpha * reversible.beta,
)
hyper: fd.Hypergradients = fd.hypergradient(
    np.cos,
    np.sin,
    lambda theta, v: np.cos(theta) * v,
    [0.5],
    n_steps=np.int64(3),
    alpha=0.1,
    beta=0.9,
)
print(hyper.dtheta.shape, hyper.dp.T, hyper.dalpha + hyper.dbeta)
# nn
W = np.ones((3, 2))
print(
    fd.dense(u.T, W).shape,
    fd.dense([[1, 2]], [[1], [2]], [3], activation="relu", out=np.empty((1, 1))).T,
)
dense_grads: fd.DenseGrads = fd.dense_vjp(
    np.ones((8, 2)), u.T, W, np.zeros(2), activation=(np.sin, np.cos)
)
Y, kept = fd.dense(u.T, W, activation="tanh", return_cache=True)
dense_grads = fd.dense_vjp(Y, u.T, W, activation="tanh", cache=kept)
kept = fd.dense(u.T, W, return_cache=False)  # type: ignore[assignment]
print(
    dense_grads.dX.shape, dense_grads.dW.T, None if dense_grads.db is None else dense_grads.db.shape
)
fd.dense(u.T, W, activation=np.sin)  # type: ignore[call-overload]

states: Floats = fd.grid_rnn(
    np.ones((4, 5, 3)), W.T, np.eye(2), [[1, 0], [0, 1]], activation="relu"
)
grid_grads: fd.GridRNNGrads = fd.grid_rnn_vjp(
    states, np.ones((4, 5, 3)), W.T, np.eye(2), np.eye(2), [1.0, 2.0], activation=(np.sin, np.cos)
)
print(
    grid_grads.dx.shape,
    grid_grads.dW_in.T,
    grid_grads.dW_west.shape,
    grid_grads.dW_north.shape,
    grid_grads.db is None,
)

# configuration and the rest
fd.set_num_threads(np.int64(fd.get_num_threads()))
print(fd.show_config()["threads"], sorted(fd.show_config()), fd.__version__.split("."))
year, number = load_sunspots()
print(year.shape, number.shape)
print(
    reference.subset_sums(x).shape,
    reference.selective_state_update(h, u[:, 0], u[:, 1], A, A[0], A[0]).shape,
)
print(reference.selective_scan_vjp(u, u, u, A, A, A).dA.shape, reference.SelectiveScanGrads._fields)
print(reference.find_x1(reference.SigmoidMLP(data.weights, data.biases), [1.5], [4.5, 6.0]).x.shape)
"""


def test_a_program_that_uses_everything_passes_mypy_strict(tmp_path):
    pytest.importorskip("mypy")
    unused = [name for name in fd.__all__ if f"fd.{name}" not in PROGRAM]
    assert not unused
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    home = Path(fd.__file__).parents[1]
    # mypy finds an installed package itself; silent: of the package only the types count here
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--follow-imports=silent",
        "program.py",
    ]
    environment = os.environ | {
        "MYPYPATH": "" if home.name in ("site-packages", "dist-packages") else str(home)
    }
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_program_runs():
    code = "\n".join(line for line in PROGRAM.splitlines() if "# type: ignore" not in line)
    threads = fd.get_num_threads()
    exec(compile(code, "program.py", "exec"), {"__name__": "program"})  # noqa: S102 (it is above)
    assert fd.get_num_threads() == threads
