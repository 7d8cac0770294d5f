"""A small Mamba trained on text, every gradient by hand: NumPy, and fastderiv's selective scan with
its adjoint.

    python examples/train_mamba.py [--steps N] [--plot FILE]

The sequence is the language reference that ships with every Python (`pydoc_data.topics`), character
by character; its last tenth is held out.  The model is that of Gu and Dao (arXiv:2312.00752) with
two blocks.  Each forward pass is followed by its backward pass, whose steps bear the same numbers.
Bits per character are compared with those of n-gram models of the same text.
"""

import argparse
import math
import os
import time
from pydoc_data.topics import topics

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # such small products only lose by threads: tenfold on a busy machine

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import fastderiv as fd
from fastderiv._cli.output import count, fit_terminal, picture

M, E, N, R = (
    96,
    192,
    16,
    6,
)  # width of the model, channels and states of a block, rank of its step sizes
WINDOW = 4  # of the causal convolution
LAYERS, BATCH, LENGTH, RATE = 2, 8, 256, 8e-3


def T(a):
    """(Bt, L, E) as the scan's (Bt, E, L), and back: a view."""
    return a.swapaxes(-1, -2)


def weight_grad(x, dy):
    """The gradient of W in y = x W, summed over batch and time."""
    return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


# ---- root mean square norm --------------------------------------------------------------------


def rms_norm(x, gain):
    scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * scale * gain, (x, scale, gain)


def rms_norm_vjp(dy, cache):
    x, scale, gain = cache
    unit, dunit = x * scale, dy * gain
    dx = scale * (dunit - unit * (dunit * unit).mean(-1, keepdims=True))
    return dx, (dy * unit).sum((0, 1))


# ---- a Mamba block ----------------------------------------------------------------------------


def block(p, x, carry=None):
    """x (Bt, L, M) -> the same shape, what the backward pass needs, and the carry into the steps
    that follow.
    """
    Bt, L, _ = x.shape
    tail, state = carry or (np.zeros((Bt, WINDOW - 1, E), x.dtype), None)
    n, norm = rms_norm(x, p["gain"])  # 1
    before, z = np.split(n @ p["W_in"], 2, axis=-1)  # 2
    past = np.concatenate([tail, before], axis=1)  # 3
    c = sum(past[:, k : k + L] * p["conv"][k] for k in range(WINDOW)) + p["b_conv"]
    s = 0.5 + 0.5 * np.tanh(0.5 * c)  # 4
    u = c * s
    low, B, C = np.split(u @ p["W_x"], [R, R + N], axis=-1)  # 5
    delta = low @ p["W_dt"]  # 6
    scan = dict(u=T(u), delta=T(delta), A=-np.exp(p["log_A"]), B=T(B), C=T(C), D=p["D"], z=T(z),
                delta_bias=p["b_dt"], delta_softplus=True, initial_state=state)  # fmt: skip
    y, state = fd.selective_scan(**scan, return_last_state=True)  # 7
    out = x + T(y) @ p["W_out"]  # 8
    return out, (n, norm, past, c, s, low, scan, y), (past[:, L:], state)


def block_vjp(p, dout, cache):
    """dx and the gradients of the block's parameters."""
    n, norm, past, c, s, low, scan, y = cache
    L = c.shape[1]
    d = {"W_out": weight_grad(T(y), dout)}  # 8
    g = fd.selective_scan_vjp(p["W_out"] @ T(dout), **scan)  # 7
    d |= {"D": g.dD, "b_dt": g.ddelta_bias, "log_A": g.dA * scan["A"]}
    d["W_dt"] = weight_grad(low, T(g.ddelta))  # 6
    dprojected = np.concatenate([T(g.ddelta) @ p["W_dt"].T, T(g.dB), T(g.dC)], axis=-1)  # 5
    d["W_x"] = weight_grad(c * s, dprojected)
    du = T(g.du) + dprojected @ p["W_x"].T
    dc = du * s * (1 + c * (1 - s))  # 4
    d["conv"] = np.stack([(past[:, k : k + L] * dc).sum((0, 1)) for k in range(WINDOW)])  # 3
    d["b_conv"] = dc.sum((0, 1))
    dpast = np.zeros_like(past)
    for k in range(WINDOW):
        dpast[:, k : k + L] += dc * p["conv"][k]
    dboth = np.concatenate([dpast[:, WINDOW - 1 :], T(g.dz)], axis=-1)  # 2
    d["W_in"] = weight_grad(n, dboth)
    dx, d["gain"] = rms_norm_vjp(dboth @ p["W_in"].T, norm)  # 1
    return dout + dx, d


# ---- the model: embedding, blocks, norm, logits by the embedding again ------------------------


def forward(model, tokens, carries=None):
    """Logits (Bt, L, symbols) of the characters that follow, caches, carries."""
    *blocks, ends = model
    x = ends["embedding"][tokens]  # 1
    caches, carried = [], []
    for k, p in enumerate(blocks):  # 2
        x, cache, carry = block(p, x, carries and carries[k])
        caches.append(cache)
        carried.append(carry)
    n, norm = rms_norm(x, ends["gain"])  # 3
    return n @ ends["embedding"].T, (caches, n, norm), carried  # 4


def loss_and_grads(model, text):
    """Mean bits per character of text (Bt, L + 1), each from those before it, and the gradients in
    the model's structure.
    """
    *blocks, ends = model
    tokens, targets = text[:, :-1], text[:, 1:]
    logits, (caches, n, norm), _ = forward(model, tokens)
    loss, dlogits = bits(logits, targets)
    dembedding = weight_grad(dlogits, n)  # 4
    dx, dgain = rms_norm_vjp(dlogits @ ends["embedding"], norm)  # 3
    grads = []
    for p, cache in zip(reversed(blocks), reversed(caches), strict=True):  # 2
        dx, d = block_vjp(p, dx, cache)
        grads.insert(0, d)
    np.add.at(dembedding, tokens, dx)  # 1
    return loss, [*grads, {"embedding": dembedding, "gain": dgain}]


def bits(logits, targets):
    """Mean cross entropy in bits, and its gradient."""
    logits = logits - logits.max(-1, keepdims=True)
    probability = np.exp(logits)
    total = probability.sum(-1, keepdims=True)
    probability /= total
    chosen = targets[..., None]
    loss = (np.log(total) - np.take_along_axis(logits, chosen, -1)).mean() / math.log(2)
    np.put_along_axis(probability, chosen, np.take_along_axis(probability, chosen, -1) - 1, -1)
    return float(loss), probability / (targets.size * math.log(2))


def initial_model(rng, symbols):
    def normal(*shape):
        return rng.normal(size=shape) / np.sqrt(shape[0])

    def new_block():
        step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), E))  # step sizes to begin with
        return {
            "gain": np.ones(M),
            "W_in": normal(M, 2 * E),
            "conv": normal(WINDOW, E),
            "b_conv": np.zeros(E),
            "W_x": normal(E, R + 2 * N),
            "W_dt": normal(R, E),
            "b_dt": step + np.log(-np.expm1(-step)),
            "log_A": np.log(np.tile(np.arange(1.0, N + 1), (E, 1))),
            "D": np.ones(E),
            "W_out": normal(E, M) / np.sqrt(2 * LAYERS),
        }

    ends = {"embedding": rng.normal(size=(symbols, M)) / 8, "gain": np.ones(M)}
    return cast([*(new_block() for _ in range(LAYERS)), ends], np.float32)


def cast(model, dtype):
    return [{name: a.astype(dtype) for name, a in p.items()} for p in model]


def gradient_error(model, text, rng):
    """Relative error, in float64, of the derivative along a random direction against a central
    difference.
    """
    model = cast(model, np.float64)
    direction = [{name: rng.normal(size=a.shape) for name, a in p.items()} for p in model]

    def moved(t):
        return [
            {name: a + t * v[name] for name, a in p.items()}
            for p, v in zip(model, direction, strict=True)
        ]

    slope = sum(
        (d[name] * v[name]).sum()
        for d, v in zip(loss_and_grads(model, text)[1], direction, strict=True)
        for name in v
    )
    difference = (
        loss_and_grads(moved(1e-6), text)[0] - loss_and_grads(moved(-1e-6), text)[0]
    ) / 2e-6
    return abs(slope / difference - 1)


# ---- training ---------------------------------------------------------------------------------


class Adam:
    def __init__(self, model):
        self.t = 0
        self.moments = [
            {name: (np.zeros_like(a), np.zeros_like(a)) for name, a in p.items()} for p in model
        ]

    def step(self, model, grads, rate):
        self.t += 1
        rate *= math.sqrt(1 - 0.99**self.t) / (1 - 0.9**self.t)
        for p, d, moments in zip(model, grads, self.moments, strict=True):
            for name, (m, v) in moments.items():
                m += 0.1 * (d[name] - m)
                v += 0.01 * (d[name] ** 2 - v)
                p[name] -= rate * m / (np.sqrt(v) + 1e-8)


def train(model, text, steps, rng, report):
    """The loss of every step."""
    adam, losses = Adam(model), []
    for t in range(steps):
        starts = rng.integers(0, len(text) - LENGTH, BATCH)
        loss, grads = loss_and_grads(model, text[starts[:, None] + np.arange(LENGTH + 1)])
        warm, cooled = min(1, (t + 1) / 20), 0.5 + 0.5 * math.cos(math.pi * t / steps)
        adam.step(model, grads, RATE * warm * cooled)
        losses.append(loss)
        report(t + 1, losses)
    return losses


def held_out_bits(model, text, chunk=1024):
    """Bits per character of one long text, read in chunks with the state carried on."""
    total, carries = 0.0, None
    for first in range(0, len(text) - 1, chunk):
        piece = text[None, first : first + chunk + 1]
        logits, _, carries = forward(model, piece[:, :-1], carries)
        total += bits(logits, piece[:, 1:])[0] * (piece.size - 1)
    return total / (len(text) - 1)


def sample(model, prompt, length, rng, temperature=0.6):
    """Characters drawn one by one, each from the carried state alone."""
    drawn = []
    logits, _, carries = forward(model, prompt[None])
    for _ in range(length):
        weight = np.exp((logits[0, -1] - logits[0, -1].max()) / temperature).astype(np.float64)
        drawn.append(rng.choice(len(weight), p=weight / weight.sum()))
        logits, _, carries = forward(model, np.array([drawn[-1:]]), carries)
    return np.array(drawn)


# ---- what it is measured against --------------------------------------------------------------


def ngram_bits(train, test, order, symbols):
    """Bits per character of n-grams for n = 1..order, each backed by the one below (Witten-Bell
    smoothing).
    """
    probability, results = np.full(len(test) - order + 1, 1 / symbols), []
    for n in range(1, order + 1):
        radix = symbols ** np.arange(n)[::-1]
        grams, counts = np.unique(sliding_window_view(train, n) @ radix, return_counts=True)
        contexts, first = np.unique(grams // symbols, return_index=True)
        seen, kinds = np.add.reduceat(counts, first), np.diff(np.append(first, len(grams)))
        asked = sliding_window_view(test, n)[order - n :] @ radix
        count = look_up(asked, grams, counts)
        total, kind = (look_up(asked // symbols, contexts, a) for a in (seen, kinds))
        known = total > 0
        probability[known] = ((count + kind * probability) / np.maximum(1, total + kind))[known]
        results.append(float(-np.log2(probability).mean()))
    return results


def look_up(keys, known, values):
    """The value of each key, 0 where it is not known."""
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, values[at], 0)


def load_text():
    """Training and held-out text as numbers, and the characters they stand for; repeated paragraphs
    only once.
    """
    paragraphs = dict.fromkeys("\n\n".join(topics.values()).split("\n\n"))
    characters, text = np.unique(list("\n\n".join(paragraphs)), return_inverse=True)
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:], characters


def draw(losses, held_out, ngrams, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        np.arange(1, len(losses) + 1),
        losses,
        color="#2f6f9f",
        alpha=0.35,
        linewidth=0.8,
        label="training, each batch",
    )
    axes.plot(*np.transpose(held_out), "o-", color="#1f2933", markersize=3.5, label="held-out text")
    for n in 1, 2, 3, ngrams.index(min(ngrams)) + 1:  # the best of them last
        axes.axhline(ngrams[n - 1], color="#d9822b", linewidth=0.9, linestyle=":")
        axes.annotate(
            f"{n}-gram",
            (len(losses), ngrams[n - 1]),
            (0, 2),
            textcoords="offset points",
            ha="right",
            color="#d9822b",
        )
    axes.set(
        xlabel="step",
        ylabel="bits per character",
        title="A small Mamba learns Python's language reference",
        yscale="log",
        ylim=(1.2, 9),
        yticks=[1.5, 2, 3, 4, 6, 8],
        yticklabels=["1.5", "2", "3", "4", "6", "8"],
    )
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=90)


def main():
    fit_terminal()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=count, default=600, help="training steps (default: %(default)s)"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=picture, help="draw the loss curve (needs matplotlib)"
    )
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    text, rest, characters = load_text()
    model = initial_model(rng, len(characters))
    size = sum(a.size for p in model for a in p.values())
    print(f"{len(text)} characters to learn from, {len(rest)} held out; {size} parameters")
    error = gradient_error(model, text[None, :33], rng)
    print(f"gradients against a central difference: relative error {error:.0e}\n")

    start, held_out = time.perf_counter(), []

    def report(t, losses):
        if t % 50 == 0 or t == options.steps:
            held_out.append((t, held_out_bits(model, rest)))
            print(
                f"step {t:4}  training {np.mean(losses[-50:]):.3f}  "
                f"held out {held_out[-1][1]:.3f} bits per character  "
                f"({time.perf_counter() - start:.0f} s)",
                flush=True,
            )

    losses = train(model, text, options.steps, rng, report)
    ngrams = ngram_bits(text, rest, 6, len(characters))
    others = ", ".join(f"{n}-gram {b:.3f}" for n, b in enumerate(ngrams, 1))
    print(f"\nbits per character, held out: Mamba {held_out[-1][1]:.3f}, {others}")
    print("\nwhat it writes:\n" + "".join(characters[sample(model, text[-200:], 400, rng)]))
    if options.plot:
        draw(losses, held_out, ngrams, options.plot)
        print(f"Wrote {options.plot}")


if __name__ == "__main__":
    main()
