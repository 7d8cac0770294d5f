"""Small calls of every function of the rooms nn and optim, by name: their arrays, and the call."""

import numpy as np

import fastderiv as fd

RATES = {"alpha": 0.1, "beta": 0.9}


def rough(theta):
    """A gradient that overflows nowhere."""
    return np.sin(3 * theta) + theta / 8


def flat(results):
    """Arrays of arrays, tuples, numbers and None."""
    if results is None:
        return []
    return (
        [a for r in results for a in flat(r)]
        if isinstance(results, tuple)
        else [np.asarray(results)]
    )


def _lstm(function, a, *before):
    rest = {"initial_state": (a["initial_state[0]"], a["initial_state[1]"])}
    if "dlast_state[0]" in a:
        rest["dlast_state"] = a["dlast_state[0]"], a["dlast_state[1]"]
    return function(
        *before, a["x"], a["weight_ih"], a["weight_hh"], a["bias_ih"], a["bias_hh"], **rest
    )


def _grid(function, a, *before, activation="tanh"):
    return function(
        *before, a["x"], a["W_in"], a["W_west"], a["W_north"], a["b"], activation=activation
    )


def _dense(activation):
    return lambda a: fd.dense(a["X"], a["W"], a["b"], activation=activation)


def _dense_vjp(activation):
    return lambda a: fd.dense_vjp(a["dY"], a["X"], a["W"], a["b"], activation=activation)


def _cached_dense(a):
    _, cache = fd.dense(a["X"], a["W"], a["b"], activation="gelu", return_cache=True)
    return fd.dense_vjp(a["dY"], a["X"], a["W"], a["b"], activation="gelu", cache=cache)


def _cached_lstm(a):
    cache = _lstm(
        lambda *args, **rest: fd.lstm(*args, return_cache=True, **rest),
        {k: v for k, v in a.items() if "dlast" not in k},
    )[2]
    return _lstm(lambda *args, **rest: fd.lstm_vjp(*args, cache=cache, **rest), a, a["dh"])


def _stepped(a):
    fd.momentum_step(a["theta"], a["p"], a["grad"], **RATES)
    return a["theta"], a["p"]


def _unstepped(a):
    fd.momentum_unstep(a["theta"], a["p"], lambda theta: a["grad_fn(theta)"], **RATES)
    return a["theta"], a["p"]


def _there_and_back(a):
    momentum = fd.ReversibleMomentum(a["theta"], **RATES)
    for _ in range(120):  # beyond a spill
        momentum.step(rough(momentum.theta))
    momentum.step(a["grad"])
    far = momentum.theta, momentum.p, float(momentum.information_bits)
    momentum.unstep(lambda theta: a["grad"])
    for _ in range(120):
        momentum.unstep(rough)
    return *far, momentum.theta, momentum.p, float(momentum.information_bits)


def _hypergradient(a):
    def curved(theta):
        return theta * a["train_grad(theta)"] / 64

    callbacks = rough, curved, lambda theta, v: curved(v)
    return fd.hypergradient(*callbacks, a["theta"], n_steps=12, **RATES)


PAIR = (lambda x: np.sin(x), lambda x: np.cos(x))
NAMES = (None, "sigmoid", "tanh", "relu", "softplus", "silu", "gelu")
BASE = {"X": (6, 4), "W": (4, 3), "b": (3,)}
DENSE_BACK = {**BASE, "dY": (6, 3)}
LSTM = {
    "x": (5, 3, 4),
    "weight_ih": (20, 4),
    "weight_hh": (20, 5),
    "bias_ih": (20,),
    "bias_hh": (20,),
    "initial_state[0]": (3, 5),
    "initial_state[1]": (3, 5),
}
BACK = {**LSTM, "dh": (5, 3, 5), "dlast_state[0]": (3, 5), "dlast_state[1]": (3, 5)}
GRID = {"x": (2, 3, 4, 3), "W_in": (5, 3), "W_west": (5, 5), "W_north": (5, 5), "b": (5,)}
GRID_BACK = {**GRID, "dh": (2, 3, 4, 5)}
STATE = {"theta": (3, 4), "p": (3, 4)}

# name -> shapes of the arrays by argument, and the call
CALLS = {
    **{f"dense, {name}": (BASE, _dense(name)) for name in NAMES},
    **{f"dense_vjp, {name}": (DENSE_BACK, _dense_vjp(name)) for name in NAMES},
    "dense, pair": (BASE, _dense(PAIR)),
    "dense_vjp, pair": (DENSE_BACK, _dense_vjp(PAIR)),
    "dense_vjp, cache": (DENSE_BACK, _cached_dense),
    "lstm": (LSTM, lambda a: _lstm(fd.lstm, a)),
    "lstm_vjp": (BACK, lambda a: _lstm(fd.lstm_vjp, a, a["dh"])),
    "lstm_vjp, cache": (BACK, _cached_lstm),
    "lstm_state_adjoints": (BACK, lambda a: _lstm(fd.lstm_state_adjoints, a, a["dh"])),
    "grid_rnn": (GRID, lambda a: _grid(fd.grid_rnn, a)),
    "grid_rnn, pair": (GRID, lambda a: _grid(fd.grid_rnn, a, activation=PAIR)),
    "grid_rnn_vjp": (GRID_BACK, lambda a: _grid(fd.grid_rnn_vjp, a, a["dh"])),
    "grid_rnn_vjp, pair": (
        GRID_BACK,
        lambda a: _grid(fd.grid_rnn_vjp, a, a["dh"], activation=PAIR),
    ),
    "momentum_step": ({**STATE, "grad": (3, 4)}, _stepped),
    "momentum_unstep": ({**STATE, "grad_fn(theta)": (3, 4)}, _unstepped),
    "momentum_jacobian": (
        {"hessian": (4, 4)},
        lambda a: fd.momentum_jacobian(a["hessian"], alpha=0.1, beta=-0.9),
    ),
    "ReversibleMomentum": ({"theta": (3, 4), "grad": (3, 4)}, _there_and_back),
    "hypergradient": ({"theta": (3, 4), "train_grad(theta)": (3, 4)}, _hypergradient),
}
IN_PLACE = {"momentum_step": ("theta", "p"), "momentum_unstep": ("theta", "p")}


def arrays(name, dtype=np.float64, scale=1.0, seed=0):
    """The arguments of a call: numbers of order `scale`, some of them subnormal or zero."""
    rng = np.random.default_rng(seed)
    made = {}
    for argument, shape in CALLS[name][0].items():
        a = scale * rng.normal(size=shape)
        a.flat[::7] = 0.37 * np.finfo(dtype).smallest_subnormal * 1000
        a.flat[3::11] = -0.0
        made[argument] = a.astype(dtype)
    return made


def call(name, arguments):
    """The arrays that the call returns or has updated."""
    return flat(CALLS[name][1](arguments))
