"""How far a gradient travels back through an LSTM: the constant-error carousel.

    python examples/lstm_carousel.py [--steps N] [--plot FILE]

A random layer reads noise, and a loss depends on its last state alone.  `lstm_state_adjoints` gives
the loss's gradient with respect to h and c at every step; their norms show what becomes of it on
the way back, for four settings of the gates' biases and the size of the recurrent weights.  In the
carousel (f ≈ 1, i ≈ 0, o ≈ 0) that of c stays what it is, however long the way.
"""

import argparse

import numpy as np

import fastderiv as fd
from fastderiv._cli.output import count, fit_terminal, picture

INPUTS, HIDDEN, BATCH = 16, 64, 8
REGIMES = {  # biases of i, f, g, o; size of the recurrent weights
    "carousel: f ≈ 1, i ≈ 0, o ≈ 0": ((-12, 12, 0, -12), 1.0),
    "forget gates biased by 4": ((0, 4, 0, 0), 1.0),
    "no biases": ((0, 0, 0, 0), 1.0),
    "no biases, recurrent weights × 8": ((0, 0, 0, 0), 8.0),
}


def adjoint_norms(steps, biases, size, seed=0):
    """Norms (steps,) of the gradients of h and of c, relative to the last step's gradient of c."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, BATCH, INPUTS))
    weight_ih = rng.normal(size=(4 * HIDDEN, INPUTS)) / np.sqrt(INPUTS)
    weight_hh = rng.normal(size=(4 * HIDDEN, HIDDEN)) / np.sqrt(HIDDEN) * size
    dlast = rng.normal(size=(2, BATCH, HIDDEN))
    hbar, cbar = fd.lstm_state_adjoints(
        np.zeros((steps, BATCH, HIDDEN)),
        x,
        weight_ih,
        weight_hh,
        np.repeat(np.array(biases, float), HIDDEN),
        dlast_state=dlast,
    )
    norms = (np.sqrt((a**2).sum(axis=(1, 2))) for a in (hbar, cbar))
    return tuple(n / np.sqrt((dlast[1] ** 2).sum()) for n in norms)


def draw(curves, path):
    from matplotlib.figure import Figure

    colors = "#2f6f9f", "#4c9a6a", "#7b8794", "#d9822b"
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for which, (axes, symbol) in enumerate(zip(panels, "hc", strict=True)):
        for (label, norms), color in zip(curves.items(), colors, strict=True):
            axes.plot(
                np.arange(len(norms[which]))[::-1],
                norms[which],
                color=color,
                label=label,
                linewidth=1.6,
            )
        axes.set(yscale="log", ylim=(1e-12, 1e12), xlabel="steps back from the loss")
        axes.set_title(rf"$\|\bar {symbol}_t\|$", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("norm of the gradient, relative")
    panels[1].legend(frameon=False, loc="lower right", fontsize=8.5)
    figure.savefig(path, dpi=150)


def main():
    fit_terminal()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=count, default=300, help="length of the sequence (default: 300)"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=picture, help="draw the norms (needs matplotlib)"
    )
    options = parser.parse_args()
    curves = {name: adjoint_norms(options.steps, *regime) for name, regime in REGIMES.items()}
    back = [k for k in (1, 10, 100, 299) if k < options.steps]
    print(f"{'steps back':<34}" + "".join(f"{k:>12}" for k in back))
    for name, (hbar, cbar) in curves.items():
        for symbol, norms in ("h̄", hbar), ("c̄", cbar):
            print(f"{name:<30}  {symbol} " + "".join(f"{norms[-1 - k]:>12.2e}" for k in back))
    if options.plot:
        draw(curves, options.plot)
        print(f"Wrote {options.plot}")


if __name__ == "__main__":
    main()
