"""``python -m fastderiv --plot FILE``: the tie line over the data, the scan over the sunspots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fastderiv as fd

from .demo import Demo, Scan

INK, GREY, BLUE, ORANGE = "#1f2933", "#7b8794", "#2f6f9f", "#d9822b"
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "legend.frameon": False,
}


def draw_ties(axes: Axes, demo: Demo) -> None:
    """Regions in which each output is the larger, the line between them, and the plants."""
    assert demo.ties is not None
    net = fd.SigmoidMLP(demo.network.weights, demo.network.biases)
    length, width = np.linspace(2.6, 7.1, 401), np.linspace(0.85, 2.65, 361)
    grid = np.stack(np.meshgrid(length, width), -1)
    margin = net.margin(grid.reshape(-1, 2)).reshape(grid.shape[:2])
    axes.contourf(length, width, margin, [-np.inf, 0, np.inf], colors=[ORANGE, BLUE], alpha=0.13)
    axes.contour(length, width, margin, [0], colors=INK, linewidths=1.6)
    # every fifth row, or the dots would hide the line
    shown = np.isin(demo.ties.x2, np.unique(demo.ties.x2)[::5])
    axes.plot(
        demo.ties.x1[shown],
        demo.ties.x2[shown],
        "o",
        color="white",
        mec=INK,
        mew=1.1,
        ms=4.5,
        label="ties solved for $x_1$",
        zorder=4,
    )
    for k, colour in enumerate((BLUE, ORANGE)):
        points, times = np.unique(demo.iris.X[demo.iris.species == k], axis=0, return_counts=True)
        name = f"Iris {demo.iris.names[k]}"
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=14 + 16 * times,
            color=colour,
            edgecolor="white",
            linewidth=0.7,
            label=name,
            zorder=3,
        )
    axes.set(
        title="Where a sigmoid network ties: $z_1 = z_2$",
        xlabel=f"{demo.network.inputs[0]} $x_1$ [{demo.network.units[0]}]",
        ylabel=f"{demo.network.inputs[1]} $x_2$ [{demo.network.units[1]}]",
        xlim=length[[0, -1]],
        ylim=width[[0, -1]],
    )
    handles: list[Any] = axes.legend(loc="lower right", handletextpad=0.3).legend_handles
    for handle in handles[1:]:  # one size for both species, however often their first points occur
        handle.set_sizes([36])


def draw_sunspots(axes: Axes, demo: Demo) -> None:
    """The sequence that goes into the scan."""
    year, number = demo.sunspots
    axes.fill_between(year, number, color=ORANGE, alpha=0.25, linewidth=0)
    axes.plot(year, number, color=ORANGE, linewidth=1.1)
    axes.set(
        title="A selective scan over three centuries of sunspots",
        ylabel="sunspot number",
        xlim=(year[0], year[-1]),
        ylim=(0, None),
    )
    axes.tick_params(labelbottom=False)


def draw_scan(axes: Axes, demo: Demo, scan: Scan) -> None:
    """Every channel's output, longest memory on top, each on its own scale."""
    year = demo.sunspots.year
    # on the scale of signed square roots: the outputs are cubic in the sequence, and would show
    # nothing but its maxima
    y = np.sign(scan.y) * np.sqrt(np.abs(scan.y))
    y /= np.quantile(np.abs(y), 0.97, axis=0)
    extent = (year[0] - 0.5, year[-1] + 0.5, scan.y.shape[1] + 0.5, 0.5)
    axes.imshow(
        y.T, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest", extent=extent
    )
    axes.set(xlabel="year", ylabel="channel of the output", yticks=[1, 16, 32, 48, 64])
    for at, va, memory in ((1, "top", "long memory"), (0, "bottom", "short memory")):
        axes.text(
            1.012, at, memory, transform=axes.transAxes, rotation=90, va=va, color=GREY, fontsize=8
        )
    axes.text(
        1,
        -0.2,
        "red: positive, blue: negative",
        transform=axes.transAxes,
        ha="right",
        va="top",
        color=GREY,
        fontsize=8,
    )


def draw(demo: Demo, path: Path) -> None:
    """Write the figure to `path`; its suffix chooses the format."""
    assert demo.scan is not None
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        ((left, right),) = figure.subfigures(
            1, 2, squeeze=False, width_ratios=(1, 1.15), wspace=0.04
        )
        draw_ties(left.subplots(), demo)
        upper, lower = right.subplots(2, 1, sharex=True, height_ratios=(1, 1.5))
        draw_sunspots(upper, demo)
        draw_scan(lower, demo, demo.scan)
        figure.savefig(path, dpi=130)
