"""Learning rate and momentum of a logistic regression, tuned by their own gradients.

    python examples/tune_hyperparameters.py [--rounds N] [--plot FILE]

Breast tumours are told benign or malignant by 30 measurements of their cells (scikit-learn's copy
of the Wisconsin data): 100 tumours to learn from, 200 to tune by, 269 to judge by.  The inner
training is 100 steps of gradient descent with momentum, from zero.  Its rates α and β are as good
as the loss that they lead to on the 200 tumours is small.  `hypergradient` computes the slopes of
that loss by undoing the training bit for bit; an outer descent on log α and logit β, with momentum
too, follows them.
"""

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads make such small products slower

import numpy as np

import fastderiv as fd
from fastderiv._cli.output import count, fit_terminal, picture

STEPS = 100  # of the inner training
START = 0.001, 0.8  # α, β
OUTER = {"alpha": 10.0, "beta": 0.5}  # the rates of the outer descent
STEEPEST = 0.03  # slopes by (log α, logit β) are cut to this length


def sigma(x):
    return 0.5 + 0.5 * np.tanh(0.5 * x)


class Regression:
    """The mean logistic loss of theta (bias, weights), and its first and second derivatives."""

    def __init__(self, X, y):
        self.X, self.y = np.column_stack([np.ones(len(X)), X]), y

    def loss(self, theta):
        z = self.X @ theta
        return float((np.logaddexp(0, z) - self.y * z).mean())

    def grad(self, theta):
        return self.X.T @ (sigma(self.X @ theta) - self.y) / len(self.y)

    def hvp(self, theta, v):
        s = sigma(self.X @ theta)
        return self.X.T @ (s * (1 - s) * (self.X @ v)) / len(self.y)

    def accuracy(self, theta):
        return float(((self.X @ theta > 0) == self.y).mean())


def load():
    """Three regressions: to learn from, to tune by, to judge by; the first one standardises all."""
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    rows = np.split(np.random.default_rng(0).permutation(len(X)), [100, 300])
    X = (X - X[rows[0]].mean(0)) / X[rows[0]].std(0)
    return tuple(Regression(X[r], y[r].astype(float)) for r in rows)


def trained(train, alpha, beta):
    theta, p = np.zeros((2, train.X.shape[1]))
    for _ in range(STEPS):
        fd.momentum_step(theta, p, train.grad(theta), alpha=alpha, beta=beta)
    return theta


def rates(u):
    """α, β of u = (log α, logit β)."""
    return float(np.exp(u[0])), float(sigma(u[1]))


def slopes(train, tune, u):
    """The loss on `tune` after training with the rates of u, and its gradient by u."""
    alpha, beta = rates(u)
    d = fd.hypergradient(
        tune.grad,
        train.grad,
        train.hvp,
        np.zeros(train.X.shape[1]),
        n_steps=STEPS,
        alpha=alpha,
        beta=beta,
    )
    return tune.loss(trained(train, alpha, beta)), np.array(
        [d.dalpha * alpha, d.dbeta * beta * (1 - beta)]
    )


def descend(train, tune, rounds, report):
    """Gradient descent on u from START: a list of (u, loss)."""
    u, path = np.array([np.log(START[0]), np.log(START[1] / (1 - START[1]))]), []
    p = np.zeros(2)
    for k in range(rounds):
        loss, d = slopes(train, tune, u)
        path.append((u.copy(), loss))
        report(k, *rates(u), loss)
        fd.momentum_step(u, p, d * min(1, STEEPEST / np.hypot(*d)), **OUTER)
    return path


def gradient_error(train, tune, u):
    """The relative difference between the slopes and central differences."""
    _, exact = slopes(train, tune, u)
    found = [
        (tune.loss(trained(train, *rates(u + e))) - tune.loss(trained(train, *rates(u - e)))) / 2e-5
        for e in 1e-5 * np.eye(2)
    ]
    return float(abs(found - exact).max() / abs(exact).max())


def draw(train, tune, path, file, cells=41):
    from matplotlib.figure import Figure

    u = np.array([at for at, _ in path])
    a, b = (
        np.linspace(low, high, cells)
        for low, high in ((-7.5, u[:, 0].max() + 2), (0, max(5.0, u[:, 1].max() + 1)))
    )
    losses = np.array([[tune.loss(trained(train, *rates((x, y)))) for x in a] for y in b])
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    shown = left.contourf(np.exp(a), b, np.minimum(losses, 0.4), 20, cmap="Blues")
    figure.colorbar(shown, ax=left, label="loss on the tumours to tune by")
    left.plot(np.exp(u[:, 0]), u[:, 1], "o-", color="#d9822b", markersize=3, linewidth=1)
    ticks = np.array([0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
    left.set(xscale="log", xlabel="learning rate α", ylabel="decay β")
    left.set(yticks=np.log(ticks / (1 - ticks)), yticklabels=[f"{t:g}" for t in ticks])
    left.set(xlim=np.exp(a[[0, -1]]), ylim=b[[0, -1]], title="Downhill by hypergradients")
    right.plot([loss for _, loss in path], "o-", color="#2f6f9f", markersize=3, linewidth=1)
    right.set(xlabel="outer step", ylabel="loss", title=f"{STEPS} steps of training each", ylim=0)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=90)


def main():
    fit_terminal()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=count, default=20, help="outer steps (default: %(default)s)"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=picture, help="draw the descent (needs matplotlib)"
    )
    options = parser.parse_args()

    train, tune, judge = load()
    error = gradient_error(train, tune, np.log([0.05, 3.0]))  # β = 3/4, which is not rounded
    print(f"slopes by log α and logit β against central differences: relative error {error:.0e}\n")

    def report(k, alpha, beta, loss):
        if k % 5 == 0 or k == options.rounds - 1:
            print(f"outer step {k:3}  α = {alpha:.4f}  β = {beta:.4f}  loss {loss:.4f}")

    path = descend(train, tune, options.rounds, report)
    for label, u in ("before", path[0][0]), ("after", path[-1][0]):
        theta = trained(train, *rates(u))
        print(
            f"{label:>6} tuning, on tumours never looked at: "
            f"loss {judge.loss(theta):.4f}, accuracy {judge.accuracy(theta):.1%}"
        )
    if options.plot:
        draw(train, tune, path, options.plot)
        print(f"Wrote {options.plot}")


if __name__ == "__main__":
    main()
