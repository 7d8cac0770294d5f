"""`BoundaryDisplay`: the decision boundary of a sigmoid network as exact curves, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from .. import SigmoidMLP
from .._core import arrays
from .._core.floats import undisturbed
from ._visible import Pair, Place, visible

try:
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.colors import is_color_like
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle
except ImportError as error:
    raise ImportError(
        "fastderiv.integrations.matplotlib needs matplotlib: pip install 'fastderiv[demo]'",
        name="matplotlib",
    ) from error

__all__ = ["BoundaryDisplay"]

INK = "#1f2933"
# Petroff's ten: told apart by everyone, as in scikit-learn's displays
COLOURS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)


class BoundaryDisplay:
    """Where a network's decision changes in a plane of two inputs: every curve, exact.

    It is used like scikit-learn's displays, and shows no grid of pixels.  Use `from_estimator` or
    `from_network` to make one.  With more than two outputs the curve between each two is shown
    where these are the largest, and ends where a third becomes larger.

    Parameters
    ----------
    network : SigmoidMLP
    bounds : array_like, shape (2, 2)
        The box ((lo, hi), (lo, hi)), in the order of `coordinates`.
    coordinates : pair of int
    at : ndarray, shape (n_inputs,)
        The other inputs.
    curves : mapping from pairs of outputs to lists of ndarray, shape (n, 2)
    undecided : array_like, shape (u, 2, 2)
        Boxes in which curves may be missing, see `BoundaryCurves`.
    class_names : sequence, optional
        One for each output, two for a single logit (negative, positive); by default their numbers.
    xlabel, ylabel : str, optional

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
    lines_ : dict of LineCollection
        By pair of outputs.
    regions_ : dict
        Contour sets by output, empty if regions are not shaded.
    undecided_ : PatchCollection or None
    legend_ : Legend or None

    See Also
    --------
    fastderiv.trace_boundary : The curves as numbers.

    Examples
    --------
    >>> import fastderiv as fd
    >>> from matplotlib.figure import Figure
    >>> from fastderiv.integrations.matplotlib import BoundaryDisplay
    >>> net = fd.SigmoidMLP([[[1.0, 0.0, -1.0], [0.5, 1.0, 0.0]]], [[0.0, 0.0, 0.0]])
    >>> display = BoundaryDisplay.from_network(net, ((-2, 2), (-2, 2)), ax=Figure().subplots())
    >>> {pair: len(curves) for pair, curves in display.curves.items()}   # they meet in one point
    {(0, 1): 1, (0, 2): 1, (1, 2): 1}
    """

    ax_: Axes
    figure_: Any
    lines_: dict[Pair, LineCollection]
    regions_: dict[int, Any]
    undecided_: PatchCollection | None
    legend_: Any

    def __init__(
        self,
        *,
        network: SigmoidMLP,
        bounds: ArrayLike,
        coordinates: Sequence[int],
        at: np.ndarray,
        curves: Mapping[Pair, list[np.ndarray]],
        undecided: ArrayLike,
        class_names: Sequence[Any] | None = None,
        xlabel: str | None = None,
        ylabel: str | None = None,
    ) -> None:
        self.network, self.coordinates, self.at = network, coordinates, at
        self.bounds, self.curves, self.undecided = (
            np.array(bounds, np.float64),
            curves,
            np.array(undecided),
        )
        self.class_names, self.xlabel, self.ylabel = class_names, xlabel, ylabel

    @classmethod
    @undisturbed
    def from_network(
        cls,
        net: SigmoidMLP,
        bounds: ArrayLike | None = None,
        *,
        X: ArrayLike | None = None,
        margin: float = 0.08,
        coordinates: Sequence[int] = (0, 1),
        at: ArrayLike | None = None,
        class_names: Sequence[Any] | None = None,
        tol: float = 1e-10,
        regions: bool = True,
        class_colors: Sequence[Any] | None = None,
        legend: bool = True,
        xlabel: str | None = None,
        ylabel: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Trace a network's decision boundary and draw it.

        Parameters
        ----------
        net : SigmoidMLP
        bounds : pair of pairs (lo, hi), optional
            The box, in the order of `coordinates`.
        X : array_like, shape (m, n_inputs), optional
            Data.  Without `bounds`, the box is what they span, and `margin` of that more on each
            side; without `at`, the other inputs are their means.
        margin : float, optional
        coordinates, at, tol
            As in `trace_boundary`.
        class_names : sequence, optional
        regions, class_colors, legend, xlabel, ylabel, ax, **kwargs
            As in `plot`.

        Returns
        -------
        display : BoundaryDisplay

        Raises
        ------
        TypeError, ValueError
            As `trace_boundary`; if neither `bounds` nor `X` is given; and for options that neither
            this function nor matplotlib knows, before anything is traced.
        """
        if not isinstance(net, SigmoidMLP):
            raise TypeError(f"net is a {type(net).__name__}; expected a SigmoidMLP")
        coordinates = arrays.pair("coordinates", coordinates, net.n_inputs, "inputs")
        names, _ = _names(class_names, net), _palette(class_colors, net)
        _style(kwargs)
        _check_axes(ax)
        data = None if X is None else _data(net, X)
        bounds = None if bounds is None else np.array(arrays.float64("bounds", bounds))
        if bounds is None:
            if data is None:
                raise ValueError("bounds and X are None; expected one of them")
            more = arrays.finite("margin", np.array(arrays.number("margin", margin)))
            bounds = _span(data[:, coordinates], float(more))
        if at is None and (data is not None or net.n_inputs == 2):
            at = np.zeros(2) if data is None else data.mean(axis=0)
        curves, undecided = visible(net, bounds, coordinates, at, tol)
        display = cls(
            network=net,
            bounds=bounds,
            coordinates=coordinates,
            at=np.array(at, np.float64),
            curves=curves,
            undecided=undecided,
            class_names=names,
            xlabel=xlabel,
            ylabel=ylabel,
        )
        return display.plot(
            ax=ax, regions=regions, class_colors=class_colors, legend=legend, **kwargs
        )

    @classmethod
    @undisturbed
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        xlabel: str | None = None,
        ylabel: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Trace and draw the decision boundary of a fitted `sklearn.neural_network.MLPClassifier`.

        Parameters
        ----------
        estimator : MLPClassifier
            With ``activation="logistic"``.  Regions bear the names of `classes_`, axes those of
            `feature_names_in_`.
        X : array_like or DataFrame, shape (m, n_features)
            Data that say where to look, see `from_network`.  A DataFrame's columns have to be those
            that the estimator was fitted with, in their order.
        xlabel, ylabel : str, optional
        **kwargs
            As in `from_network`.

        Returns
        -------
        display : BoundaryDisplay

        Raises
        ------
        TypeError, ValueError
            As `SigmoidMLP.from_sklearn` and `from_network`.
        """
        net = SigmoidMLP.from_sklearn(estimator)
        features = getattr(estimator, "feature_names_in_", getattr(X, "columns", None))
        if features is not None and len(features) == net.n_inputs:
            shown = kwargs.get("coordinates", (0, 1))
            first, second = arrays.pair("coordinates", shown, net.n_inputs, "inputs")
            xlabel = str(features[first]) if xlabel is None else xlabel
            ylabel = str(features[second]) if ylabel is None else ylabel
        kwargs.setdefault("class_names", estimator.classes_)
        return cls.from_network(net, X=X, xlabel=xlabel, ylabel=ylabel, **kwargs)

    @undisturbed
    def plot(
        self,
        ax: Axes | None = None,
        *,
        regions: bool = True,
        class_colors: Sequence[Any] | None = None,
        legend: bool = True,
        xlabel: str | None = None,
        ylabel: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curves, over regions in the colours of the outputs.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            By default those of a new figure.
        regions : bool, optional
            Whether to shade the regions between the curves, as exactly as a grid of 300 × 300
            points allows.
        class_colors : sequence of colours, optional
            One for each output.
        legend : bool, optional
        xlabel, ylabel : str, optional
            Instead of the display's.
        **kwargs
            For the curves, a `matplotlib.collections.LineCollection`: ``linewidths``, ``colors``,
            ``linestyles``, ….

        Returns
        -------
        display : BoundaryDisplay
            Itself.
        """
        _check_axes(ax)
        names, palette = (
            _names(self.class_names, self.network),
            _palette(class_colors, self.network),
        )
        style = _style(kwargs)
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots()
        self.lines_ = {
            pair: LineCollection(curves, **style) for pair, curves in self.curves.items()
        }
        for line in self.lines_.values():
            ax.add_collection(line, autolim=False)
        self.regions_ = self._shade(ax, palette) if regions else {}
        self.undecided_ = _boxes(self.undecided) if len(self.undecided) else None
        if self.undecided_ is not None:
            ax.add_collection(self.undecided_, autolim=False)
        ax.set(xlim=self.bounds[0], ylim=self.bounds[1])
        self._label(ax, xlabel, ylabel)
        self.legend_ = self._legend(ax, names, palette) if legend else None
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _shade(self, ax: Axes, palette: Sequence[Any]) -> dict[int, Any]:
        """For each output that is the largest somewhere, where it is."""
        sides = np.linspace(self.bounds[:, 0], self.bounds[:, 1], 300).T
        grid = np.stack(np.meshgrid(*sides), axis=-1)
        place = Place(self.coordinates, np.asarray(self.at, np.float64))
        logits = _logits(self.network, place.inputs(grid.reshape(-1, 2))).reshape(300, 300, -1)
        shaded = {}
        for k in range(logits.shape[-1]):
            lead = logits[..., k] - np.delete(logits, k, axis=-1).max(axis=-1)
            if lead.max() > 0:
                shaded[k] = ax.contourf(
                    *sides, lead, levels=[0, np.inf], colors=[palette[k]], alpha=0.22, zorder=0
                )
        return shaded

    def _label(self, ax: Axes, xlabel: str | None, ylabel: str | None) -> None:
        for given, own, present, put in (
            (xlabel, self.xlabel, ax.get_xlabel(), ax.set_xlabel),
            (ylabel, self.ylabel, ax.get_ylabel(), ax.set_ylabel),
        ):
            label = own if given is None and not present else given
            if label is not None:
                put(label)

    def _legend(self, ax: Axes, names: Sequence[Any], palette: Sequence[Any]) -> Any:
        handles: list[Any] = [
            Patch(color=palette[k], alpha=0.35, linewidth=0, label=str(names[k]))
            for k in self.regions_
        ]
        shown = [line for pair, line in self.lines_.items() if self.curves[pair]]
        labels = [handle.get_label() for handle in handles]
        if shown:
            handles.append(shown[0])
            labels.append("boundary" if len(names) > 2 else f"{names[0]} | {names[1]}")
        if self.undecided_ is not None:
            handles.append(Patch(facecolor="none", edgecolor="#bd1f01", label="undecided"))
            labels.append("undecided")
        return ax.legend(handles, labels) if handles else None


# ---- arguments ----------------------------------------------------------------------------------


def _logits(net: SigmoidMLP, X: np.ndarray) -> np.ndarray:
    """One column per class: a single logit leads where it is positive."""
    logits = net.logits(X)
    return np.column_stack([np.zeros(len(X)), logits]) if net.n_outputs == 1 else logits


def _data(net: SigmoidMLP, X: ArrayLike) -> np.ndarray:
    """`X` as finite float64 (m, n_inputs) with a row at least, our own."""
    net.logits(X)  # refuses other names of columns, types and shapes
    data = arrays.finite("X", np.array(arrays.float64("X", X)))
    if data.ndim != 2 or data.shape[1] != net.n_inputs or not len(data):
        raise ValueError(
            f"X has shape {data.shape}; expected (m, n_inputs) = (m, {net.n_inputs}), m ≥ 1"
        )
    return data


def _span(points: np.ndarray, margin: float) -> np.ndarray:
    lo, hi = points.min(axis=0), points.max(axis=0)
    more = margin * (hi - lo) + (hi == lo)
    return np.stack([lo - more, hi + more], axis=1)


def _names(given: Sequence[Any] | None, net: SigmoidMLP) -> Sequence[Any]:
    n = max(net.n_outputs, 2)
    names = range(n) if given is None else _listed("class_names", given)
    if len(names) != n:
        raise ValueError(f"class_names has {len(names)} elements; expected one per class = {n}")
    return names


def _palette(given: Sequence[Any] | None, net: SigmoidMLP) -> list[Any]:
    """A colour for each output, repeated where there are fewer."""
    n = max(net.n_outputs, 2)
    colours = list(COLOURS) if given is None else _listed("class_colors", given)
    if not colours:
        raise ValueError(f"class_colors is empty; expected one for each of {n} outputs")
    for k, colour in enumerate(colours):
        if not is_color_like(colour):
            raise ValueError(
                f"class_colors[{k}] is {colour!r}; expected a colour that matplotlib knows"
            )
    return [colours[k % len(colours)] for k in range(n)]


def _listed(name: str, given: Sequence[Any]) -> list[Any]:
    try:
        return list(given)
    except TypeError:
        raise TypeError(
            f"{name} is a {type(given).__name__}; expected a sequence, one for each output"
        ) from None


def _style(given: Mapping[str, Any]) -> dict[str, Any]:
    """How curves are drawn; an error names the option that matplotlib does not take."""
    for name, value in given.items():
        try:
            _try_to_draw(name, value)
        except (AttributeError, TypeError, ValueError) as error:
            if "argument" in str(error):  # an unexpected one, or the segments, which are ours
                raise TypeError(
                    f"{name} is no option of BoundaryDisplay, "
                    "nor of a LineCollection for its curves"
                ) from None
            kind = ValueError if isinstance(error, ValueError) else TypeError
            raise kind(f"{name} is {value!r}, which matplotlib does not take: {error}") from error
    ours = {
        "colors": INK,
        "linewidths": 1.4,
        "capstyle": "round",
        "joinstyle": "round",
        "zorder": 2,
    }
    return ours | dict(given)


def _try_to_draw(name: str, value: Any) -> None:
    """Draw a line and its legend with an option, which matplotlib may only look at then."""
    figure, line = Figure(figsize=(1, 1)), LineCollection([[(0, 0), (1, 1)]], **{name: value})
    figure.add_axes((0, 0, 1, 1)).add_collection(line, autolim=False)
    figure.legend([line], ["line"])
    figure.draw_without_rendering()


def _check_axes(ax: Axes | None) -> None:
    if ax is not None and not isinstance(ax, Axes):
        raise TypeError(f"ax is a {type(ax).__name__}; expected matplotlib Axes")


def _boxes(undecided: np.ndarray) -> PatchCollection:
    """Outlines, which stay visible however small the boxes are."""
    patches = [Rectangle((x0, y0), x1 - x0, y1 - y0) for (x0, x1), (y0, y1) in undecided]
    return PatchCollection(patches, facecolor="none", edgecolor="#bd1f01", linewidth=2, zorder=3)
