"""BoundaryDisplay: its curves are all those on which two outputs tie and lead, with labels."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from scipy.spatial import cKDTree

import fastderiv as fd
from helpers.awkward import same_bits
from helpers.floating_point import AVAILABLE, STATES, in_state, word
from test_boundary_estimators import classifier, fitted, typed

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from fastderiv.integrations.matplotlib import BoundaryDisplay

BOX = ((-2.0, 2.0), (-1.5, 2.5))


def network(outputs, seed=0, inputs=2, hidden=6):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(0, 2, (inputs, hidden)), rng.normal(0, 3, (hidden, outputs))]
    net = fd.SigmoidMLP(weights, [rng.normal(0, 1, hidden), np.zeros(outputs)])
    return fd.SigmoidMLP(
        weights, [net.biases[0], -net.logits(rng.normal(0, 1, (50, inputs))).mean(axis=0)]
    )


def shown(net, bounds=BOX, **options):
    return BoundaryDisplay.from_network(net, bounds, ax=Figure().subplots(), **options)


def test_two_outputs_show_exactly_what_is_traced():
    net = network(2)
    display, curves = shown(net), fd.trace_boundary(net, BOX)
    drawn = display.lines_[0, 1].get_segments()
    assert len(drawn) == len(curves.points) > 0
    assert all(map(np.array_equal, drawn, curves.points))
    assert display.lines_[0, 1] in display.ax_.collections and display.figure_ is display.ax_.figure
    assert (
        display.ax_.get_xlim() == BOX[0]
        and display.ax_.get_ylim() == BOX[1]
        and display.undecided_ is None
    )


@pytest.mark.parametrize("seed", range(4))
def test_curves_of_many_outputs_lead_end_at_triple_points_and_are_all(seed):
    net = network(6, seed)
    display = shown(net)
    assert set(display.curves) == set(combinations(range(6), 2))
    for (i, j), parts in display.curves.items():
        for part in parts:
            z = net.logits(part)
            assert np.abs(z[:, i] - z[:, j]).max() < 1e-8
            assert (z[:, i] >= np.delete(z, (i, j), axis=1).max(axis=1) - 1e-8).all()
            if np.array_equal(part[0], part[-1]):
                continue
            for end in part[[0, -1]]:
                top = np.sort(net.logits(end[None])[0])
                assert (end == np.transpose(BOX)).any() or top[-1] - top[-3] < 1e-9
    sides = [np.linspace(*side, 160) for side in BOX]
    grid = np.stack(np.meshgrid(*sides), axis=-1)
    best = net.logits(grid.reshape(-1, 2)).argmax(axis=1).reshape(160, 160)
    seen = 0
    for a, b, p, q in (
        (best[1:], best[:-1], grid[1:], grid[:-1]),
        (best[:, 1:], best[:, :-1], grid[:, 1:], grid[:, :-1]),
    ):
        change = a != b
        for i, j, middle in zip(a[change], b[change], ((p + q) / 2)[change], strict=True):
            parts = display.curves[min(i, j), max(i, j)]
            near = min((cKDTree(part).query(middle)[0] for part in parts), default=np.inf)
            others = best[
                tuple(
                    slice(max(k - 2, 0), k + 3)
                    for k in np.argwhere((p + q)[..., 0] == 2 * middle[0])[0]
                )
            ]
            assert (
                near < 0.1 or len(np.unique(others)) > 2
            )  # of a region smaller than the grid's cells
            seen += 1
    assert seen > 100
    assert set(display.regions_) >= set(np.unique(best))


def test_closed_curve_that_a_third_region_cuts_is_one_piece_less():
    """A disc of output 1 in output 0, with a half plane of output 2 over both."""
    ring = [[4.0, -4, 0, 0, 4.0], [0, 0, 4, -4, 0.0]]
    last = np.array([[0.0, 1, 0]] * 4 + [[0.0, 0, 30]])
    net = fd.SigmoidMLP([ring, last], [[4.0, 4, 4, 4, -2], [0, -3.5, -15.0]])
    display = shown(net, ((-2, 2), (-2, 2)))
    assert [len(display.curves[pair]) for pair in ((0, 1), (0, 2), (1, 2))] == [1, 2, 1]
    arc = display.curves[0, 1][0]
    z = net.logits(arc[[0, -1]])
    assert np.ptp(z, axis=1).max() < 1e-9 and arc[:, 0].max() < 0.6 and arc[:, 0].min() < -0.9


def test_single_logit_has_two_classes():
    net = network(1)
    display = shown(net, class_names=("no", "yes"))
    assert list(display.curves) == [(0, 1)] and set(display.regions_) == {0, 1}
    assert [t.get_text() for t in display.legend_.get_texts()] == ["no", "yes", "no | yes"]


def test_estimator_gives_names_labels_and_box():
    neural_network = pytest.importorskip("sklearn.neural_network")
    datasets = pytest.importorskip("sklearn.datasets")
    X, y = datasets.load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    model = neural_network.MLPClassifier(
        (5,), activation="logistic", solver="lbfgs", max_iter=80, random_state=1, tol=1e-2
    )
    model.fit(X, names[y])
    model.feature_names_in_ = np.array(
        ["sepal length", "sepal width", "petal length", "petal width"]
    )
    display = BoundaryDisplay.from_estimator(model, X, coordinates=(2, 3), ax=Figure().subplots())
    ax = display.ax_
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("petal length", "petal width")
    assert {t.get_text() for t in display.legend_.get_texts()} <= {*names, "boundary"}
    lo, hi = X[:, 2].min(), X[:, 2].max()
    assert np.allclose(ax.get_xlim(), (lo - 0.08 * (hi - lo), hi + 0.08 * (hi - lo)))
    del model.feature_names_in_  # or it asks for a DataFrame
    parts = [part for parts in display.curves.values() for part in parts]
    inputs = np.tile(X.mean(axis=0), (len(parts[0]), 1))
    inputs[:, [2, 3]] = parts[0]
    top = np.sort(model.predict_proba(inputs), axis=1)
    assert np.abs(top[:, -1] - top[:, -2]).max() < 1e-9


def test_undecided_boxes_are_shown():
    saddle = fd.SigmoidMLP(
        [[[3.0, -3, 0, 0], [0, 0, 3, -3]], [[1.0], [1], [-1], [-1]]], [[2.0, 2, 2, 2], [0.0]]
    )
    display = shown(saddle)
    assert display.undecided_ in display.ax_.collections
    assert (
        len(display.undecided_.get_paths())
        == len(display.undecided)
        == len(fd.trace_boundary(saddle, BOX).undecided)
    )
    assert "undecided" in [t.get_text() for t in display.legend_.get_texts()]


@pytest.mark.parametrize("third,seen", [(-50.0, True), (50.0, False)])
def test_undecided_boxes_where_a_third_output_leads_are_of_no_interest(third, seen):
    last = [[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]
    display = shown(
        fd.SigmoidMLP([[[3.0, -3, 0, 0], [0, 0, 3, -3]], last], [[2.0, 2, 2, 2], [0.0, 0, third]])
    )
    assert (
        (len(display.undecided) > 0)
        == seen
        == (display.undecided_ is not None)
        == (len(display.curves[0, 1]) > 0)
    )


def test_options_reach_what_they_name():
    display = shown(
        network(3),
        regions=False,
        legend=False,
        linewidths=3.5,
        colors="red",
        xlabel="u",
        ylabel="v",
    )
    line = next(iter(display.lines_.values()))
    assert line.get_linewidth()[0] == 3.5 and np.array_equal(line.get_edgecolor()[0], (1, 0, 0, 1))
    assert display.regions_ == {} and display.legend_ is None and display.ax_.get_xlabel() == "u"
    again = display.plot(ax=Figure().subplots(), ylabel="other")
    assert again is display and display.ax_.get_ylabel() == "other" and display.regions_


def test_axes_of_a_new_figure_and_labels_that_are_there_stay():
    display = BoundaryDisplay.from_network(network(2), BOX, xlabel="mine")
    try:
        assert display.figure_.number in plt.get_fignums() and display.ax_.get_xlabel() == "mine"
        assert display.plot(ax=display.ax_).ax_.get_xlabel() == "mine"
    finally:
        plt.close(display.figure_)


@pytest.mark.parametrize(
    "kind,arguments,message",
    [
        (TypeError, {"net": 1}, "net is a int; expected a SigmoidMLP"),
        (ValueError, {"bounds": None}, "bounds and X are None; expected one of them"),
        (
            ValueError,
            {"bounds": None, "X": np.zeros((3, 4))},
            r"X has shape \(3, 4\); expected \(m, n_inputs\) = \(m, 2\)",
        ),
        (
            ValueError,
            {"class_names": ["a"]},
            "class_names has 1 elements; expected one per class = 3",
        ),
        (
            ValueError,
            {"bounds": ((0, 0), (0, 1))},
            r"bounds\[0\] is \(0.0, 0.0\); expected lo < hi",
        ),
        (ValueError, {"net": network(3, inputs=4)}, "at is None"),
        (
            TypeError,
            {"bounds": None, "X": np.eye(2), "coordinates": 1},
            "coordinates is 1; expected a pair of integers",
        ),
        (
            ValueError,
            {"bounds": None, "X": np.eye(2), "coordinates": (0, 5)},
            r"coordinates\[1\] is 5; expected an integer",
        ),
        (
            ValueError,
            {"class_colors": []},
            "class_colors is empty; expected one for each of 3 outputs",
        ),
        (
            ValueError,
            {"class_colors": ["red", "no"]},
            r"class_colors\[1\] is 'no'; expected a colour",
        ),
        (TypeError, {"class_colors": 3}, "class_colors is a int; expected a sequence"),
        (TypeError, {"class_names": 3}, "class_names is a int; expected a sequence"),
        (TypeError, {"ax": 3}, "ax is a int; expected matplotlib Axes"),
        (
            ValueError,
            {"bounds": None, "X": np.eye(2), "margin": np.nan},
            "margin is nan; expected finite numbers",
        ),
        (TypeError, {"bounds": "ab"}, "bounds has dtype"),
        (TypeError, {"at": "ab"}, "at has dtype"),
        (TypeError, {"X": np.ma.masked_array(np.eye(2))}, "X is a masked array"),
    ],
)
def test_errors_name_the_argument(kind, arguments, message):
    arguments = {"net": network(3), "bounds": BOX, "ax": Figure().subplots()} | arguments
    with pytest.raises(kind, match=message):
        BoundaryDisplay.from_network(arguments.pop("net"), arguments.pop("bounds"), **arguments)


@pytest.mark.parametrize(
    "kind,options,message",
    [
        (
            TypeError,
            {"linewidht": 3},
            "^linewidht is no option of BoundaryDisplay, nor of a LineCollection",
        ),
        (TypeError, {"segments": []}, "^segments is no option of BoundaryDisplay"),
        (
            ValueError,
            {"colors": "nocolour"},
            "^colors is 'nocolour', which matplotlib does not take",
        ),
        (
            ValueError,
            {"linestyles": "zigzag"},
            "^linestyles is 'zigzag', which matplotlib does not take",
        ),
        (ValueError, {"linewidths": "x"}, "^linewidths is 'x', which matplotlib does not take"),
        (TypeError, {"zorder": "x"}, "^zorder is 'x', which matplotlib does not take"),
    ],
)
def test_options_that_matplotlib_does_not_take_are_named_before_anything_is_traced(
    kind, options, message, monkeypatch
):
    display = shown(network(2))
    monkeypatch.setattr(
        "fastderiv.integrations._visible.trace_boundary", lambda *_, **__: pytest.fail("traced")
    )
    with pytest.raises(kind, match=message):
        shown(network(2), **options)
    with pytest.raises(kind, match=message):
        display.plot(ax=Figure().subplots(), **options)


def test_columns_in_another_order_are_refused():
    """They were shown under each other's names."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("sklearn")
    frame = pandas.DataFrame(
        np.random.default_rng(0).normal(size=(60, 2)) * (1, 100), columns=["length", "width"]
    )
    model = fitted(classifier(), frame["length"] > 0, frame)
    display = BoundaryDisplay.from_estimator(model, frame, ax=Figure().subplots())
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("length", "width")
    for other in (frame[["width", "length"]], frame.rename(columns={"width": "depth"})):
        with pytest.raises(ValueError, match="X has other columns than the model was fitted with"):
            BoundaryDisplay.from_estimator(model, other, ax=Figure().subplots())
        with pytest.raises(ValueError, match="X has other columns than the model was fitted with"):
            BoundaryDisplay.from_network(
                fd.SigmoidMLP.from_sklearn(model), X=other, ax=Figure().subplots()
            )
    without = fitted(classifier(), frame["length"] > 0, frame.to_numpy())
    display = BoundaryDisplay.from_estimator(without, frame, ax=Figure().subplots())
    assert display.ax_.get_xlabel() == "length"  # nobody knows better


def test_columns_of_every_type_are_shown():
    pytest.importorskip("sklearn")
    for label, frame in typed():
        plain = frame.to_numpy(np.float64)
        model = fitted(classifier(), plain[:, 0] > 0, frame)
        display = BoundaryDisplay.from_estimator(model, frame, ax=Figure().subplots())
        net = fd.SigmoidMLP(display.network.weights, display.network.biases)
        same = BoundaryDisplay.from_network(net, X=plain, ax=Figure().subplots())
        assert same_bits(display.bounds, same.bounds), label
        assert all(map(same_bits, display.curves[0, 1], same.curves[0, 1])), label
        with pytest.raises(ValueError, match=r"X\[3, 1\] is nan; expected finite numbers"):
            BoundaryDisplay.from_estimator(
                model,
                frame.astype(object).mask(np.arange(160).reshape(80, 2) == 7),
                ax=Figure().subplots(),
            )


def test_models_that_look_alike_are_refused():
    pytest.importorskip("sklearn")
    X = np.random.default_rng(0).normal(size=(60, 2))
    for labels, message in (
        (np.zeros(60), "one class only"),
        (np.stack([X[:, 0] > 0, X[:, 1] > 0], 1), "multi-label"),
    ):
        with pytest.raises(ValueError, match=message):
            BoundaryDisplay.from_estimator(fitted(classifier(), labels.astype(int), X), X)


@pytest.mark.skipif(not AVAILABLE, reason="needs glibc's fenv on x86-64 or AArch64")
@pytest.mark.parametrize("state", STATES)
def test_same_curves_in_any_floating_point_state(state):
    net, X = network(3), np.random.default_rng(1).normal(size=(20, 2))

    def call():
        display = BoundaryDisplay.from_network(net, X=X, ax=Figure().subplots())
        return [
            display.bounds,
            display.at,
            *(part for parts in display.curves.values() for part in parts),
        ]

    expected = call()
    with in_state(state), np.errstate(all="raise"):
        before = word()
        results = call()
        assert word() == before
    assert len(results) == len(expected) and all(map(same_bits, results, expected))


def test_without_matplotlib_the_error_says_what_to_install():
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import fastderiv\nimport fastderiv.integrations.matplotlib"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "needs matplotlib: pip install 'fastderiv[demo]'" in done.stderr
