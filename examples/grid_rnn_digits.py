"""A grid RNN that reads handwritten digits, trained in NumPy with fastderiv's gradients.

    python examples/grid_rnn_digits.py [--epochs N] [--plot FILE]

scikit-learn's digits: 1797 real scans of 8×8 pixels.  A grid RNN sweeps each image from its
north-western corner; another sweeps it from the south-eastern one; the states of the two last
cells, which have seen every pixel, go through a dense layer to ten scores.  Every gradient is from
`grid_rnn_vjp` and `dense_vjp`; backward steps bear the numbers of the forward ones.
"""

import argparse
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads make products this small slower

import numpy as np
from sklearn.datasets import load_digits

import fastderiv as fd
from fastderiv._cli.output import count, fit_terminal, picture

H, BATCH, RATE = 32, 64, 4e-3
CELLS = "W_in", "W_west", "W_north", "b"


def load(seed=0):
    """(images, labels) to train on, and a quarter to test on; images (n, 8, 8, 1) in [−1, 1]."""
    digits = load_digits()
    images, labels = (digits.images / 8 - 1).astype(np.float32)[..., None], digits.target
    order = np.random.default_rng(seed).permutation(len(labels))
    test, train = np.split(order, [len(order) // 4])
    return (images[train], labels[train]), (images[test], labels[test])


def initial_model(rng, dtype=np.float32):
    def normal(*shape, scale):
        return (scale * rng.normal(size=shape)).astype(dtype)

    model = {"W_out": normal(2 * H, 10, scale=0.1), "b_out": np.zeros(10, dtype)}
    for sweep in "se", "nw":  # towards the south-east, towards the north-west
        half = np.eye(H, dtype=dtype) / 2  # both neighbours' states, passed on
        model |= {f"W_in_{sweep}": normal(H, 1, scale=1), f"b_{sweep}": np.zeros(H, dtype)}
        model |= {
            f"W_{side}_{sweep}": half + normal(H, H, scale=0.05) for side in ("west", "north")
        }
    return model


def cell(model, sweep):
    return [model[f"{name}_{sweep}"] for name in CELLS]


def scores(model, images):
    """The scores (n, 10), and what the backward pass needs."""
    flipped = images[:, ::-1, ::-1]  # 1
    sweeps = (images, "se"), (flipped, "nw")
    last = [fd.grid_rnn(x, *cell(model, s))[:, -1, -1] for x, s in sweeps]  # 2
    both = np.concatenate(last, axis=1)  # 3
    return fd.dense(both, model["W_out"], model["b_out"]), (flipped, both)  # 4


def loss_and_grads(model, images, labels):
    """The mean cross-entropy, and its gradient for every parameter."""
    z, (flipped, both) = scores(model, images)
    n = len(labels)
    z = z - z.max(1, keepdims=True)  # 5: softmax
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    loss = -np.log(p[np.arange(n), labels]).mean()  # 6
    dz = p.copy()
    dz[np.arange(n), labels] -= 1  # 6, 5
    dboth, dW, db = fd.dense_vjp(dz / n, both, model["W_out"], model["b_out"])  # 4
    d = {"W_out": dW, "b_out": db}
    dlasts = np.split(dboth, 2, axis=1)  # 3
    for x, sweep, dlast in zip((images, flipped), ("se", "nw"), dlasts, strict=True):
        dh = np.zeros((*x.shape[:3], H), x.dtype)
        dh[:, -1, -1] = dlast
        grads = fd.grid_rnn_vjp(dh, x, *cell(model, sweep))  # 2
        d |= {f"{name}_{sweep}": g for name, g in zip(CELLS, grads[1:], strict=True)}
    return loss, d


class Adam:
    def __init__(self, model):
        self.t = 0
        self.m, self.v = ({k: np.zeros_like(p) for k, p in model.items()} for _ in range(2))

    def step(self, model, grads, rate):
        self.t += 1
        norm = np.sqrt(sum(float((g * g).sum()) for g in grads.values()))
        clip = min(1.0, 1.0 / (norm + 1e-12))
        for k, g in grads.items():
            g = g * np.asarray(clip, g.dtype)
            self.m[k] += 0.1 * (g - self.m[k])
            self.v[k] += 0.01 * (g * g - self.v[k])
            ahead = self.m[k] / (1 - 0.9**self.t)
            model[k] -= rate * ahead / (np.sqrt(self.v[k] / (1 - 0.99**self.t)) + 1e-8)


def accuracy(model, images, labels):
    return float((scores(model, images)[0].argmax(1) == labels).mean())


def train(model, train_set, test_set, epochs, rng, report=lambda *_: None):
    """Trains `model` in place; returns every step's loss and every epoch's test accuracy."""
    images, labels = train_set
    adam, losses, accuracies = Adam(model), [], []
    steps = epochs * (len(labels) // BATCH)
    for epoch in range(epochs):
        order = rng.permutation(len(labels))
        for first in range(0, len(labels) - BATCH + 1, BATCH):
            pick = order[first : first + BATCH]
            loss, grads = loss_and_grads(model, images[pick], labels[pick])
            adam.step(model, grads, RATE * (1 + np.cos(np.pi * len(losses) / steps)) / 2)
            losses.append(float(loss))
        accuracies.append(accuracy(model, *test_set))
        report(epoch + 1, losses[-1], accuracies[-1])
    return losses, accuracies


def plot(losses, accuracies, model, test_set, file):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.4), layout="constrained", width_ratios=[1, 1, 1.1]
    )
    per = len(losses) // len(accuracies)
    smooth = np.convolve(losses, np.ones(per) / per, "valid")
    left.semilogy(np.arange(len(losses)) / per, losses, color="0.8", lw=0.6)
    left.semilogy((np.arange(len(smooth)) + per) / per, smooth, color="C0")
    left.set(xlabel="epoch", ylabel="cross-entropy", title="Loss: a batch, and an epoch's mean")
    middle.plot(np.arange(1, len(accuracies) + 1), 100 * np.array(accuracies), color="C1")
    middle.set(xlabel="epoch", ylabel="per cent", ylim=(max(0, 100 * min(accuracies) - 5), 101),
               title=f"Test accuracy: {100 * accuracies[-1]:.1f} % at the end")  # fmt: skip
    middle.grid(alpha=0.3)
    images, labels = test_set
    guesses = scores(model, images)[0].argmax(1)
    wrong = np.flatnonzero(guesses != labels)[:8]
    shown = np.concatenate([wrong, np.flatnonzero(guesses == labels)[: 16 - len(wrong)]])
    tiles = np.full((4 * 11, 4 * 9), np.nan)
    for k, t in enumerate(shown):
        r, c = divmod(k, 4)
        tiles[r * 11 : r * 11 + 8, c * 9 : c * 9 + 8] = images[t, ..., 0]
        right.text(
            c * 9 + 3.5,
            r * 11 + 9.6,
            str(guesses[t]) if k >= len(wrong) else f"{guesses[t]}, is {labels[t]}",
            ha="center",
            va="center",
            fontsize=8,
            color="C3" if k < len(wrong) else "0.2",
        )
    right.imshow(tiles, cmap="gray_r")
    right.set(title="What it reads (red: and what it is)")
    right.axis("off")
    fig.savefig(file, dpi=110)


def main():
    fit_terminal()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=count, default=40)
    parser.add_argument(
        "--plot", metavar="FILE", type=picture, help="draw loss, accuracy and what was read"
    )
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    train_set, test_set = load()
    model = initial_model(rng)
    start = time.perf_counter()

    def report(epoch, loss, accurate):
        if epoch == 1 or epoch % 5 == 0:
            seconds = f"{time.perf_counter() - start:.0f} s"
            print(
                f"epoch {epoch:3d}: loss {loss:.4f}, test accuracy {accurate:6.2%}, {seconds}",
                flush=True,
            )

    losses, accuracies = train(model, train_set, test_set, given.epochs, rng, report)
    if given.plot:
        plot(losses, accuracies, model, test_set, given.plot)
        print(f"Wrote {given.plot}")


if __name__ == "__main__":
    main()
