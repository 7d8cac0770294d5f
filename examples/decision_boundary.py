"""Where a classifier's decision flips, exactly: breast cancer and handwritten digits.

    python examples/decision_boundary.py [--plot FILE]

Both networks are trained here, by scikit-learn, on data that come with it.

1. Breast cancer: two measurements of a biopsy, a network with one hidden layer, and its boundary,
   the curve on which it calls a tumour benign as readily as malignant.  For some patients the
   nearest point of that curve is shown: the least change of both measurements, in standard
   deviations, that turns the verdict.
2. Digits: a network of 64 pixels.  A plane through three images is folded into its first layer, and
   every curve on which two digits tie is traced in it: what the network sees on the way from one
   image to another.
"""

import argparse

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import fastderiv as fd
from fastderiv._cli.output import fit_terminal, picture

MEASUREMENTS = "worst radius", "worst concave points"
DIGITS = 4, 7, 9  # whose images span the plane


# ---- networks -----------------------------------------------------------------------------------


def classifier(hidden, alpha):
    return MLPClassifier(
        hidden, activation="logistic", solver="lbfgs", alpha=alpha, max_iter=2000, random_state=0
    )


def in_units_of(net, mean, scale):
    """The network for inputs that are not standardised: its first layer takes (x − mean)/scale."""
    (first, *weights), (shift, *biases) = net.weights, net.biases
    first = first / scale[:, None]
    return fd.SigmoidMLP([first, *weights], [shift - mean @ first, *biases])


def in_plane(net, origin, directions):
    """The network of two numbers s, t, for inputs origin + s·directions[0] + t·directions[1]."""
    (first, *weights), (shift, *biases) = net.weights, net.biases
    return fd.SigmoidMLP([directions @ first, *weights], [shift + origin @ first, *biases])


# ---- breast cancer ------------------------------------------------------------------------------


def nearest_on(curves, point, scale):
    """The nearest point of the curves' chords, and how far it is, in units of `scale`."""
    best, distance = None, np.inf
    for curve in curves.points:
        a, d = curve[:-1] / scale, np.diff(curve, axis=0) / scale
        t = np.clip(((point / scale - a) * d).sum(1) / (d * d).sum(1), 0, 1)
        foot = a + t[:, None] * d
        far = np.hypot(*(foot - point / scale).T)
        if far.min() < distance:
            best, distance = foot[far.argmin()] * scale, far.min()
    return best, distance


def cancer():
    """X, y, the network in the units of X, its boundary and accuracy, standard deviations, box."""
    data = load_breast_cancer()
    X = data.data[:, [list(data.feature_names).index(name) for name in MEASUREMENTS]]
    train, test, y_train, y_test = train_test_split(
        X, data.target, random_state=0, stratify=data.target
    )
    mean, scale = train.mean(axis=0), train.std(axis=0)
    model = classifier((8,), alpha=0.03).fit((train - mean) / scale, y_train)
    net = in_units_of(fd.SigmoidMLP.from_sklearn(model), mean, scale)
    lo, hi = X.min(axis=0), X.max(axis=0)
    bounds = np.stack([lo - 0.05 * (hi - lo), hi + 0.05 * (hi - lo)], axis=1)
    right = np.mean((net.margin(test) > 0) == y_test)
    return X, data.target, net, fd.trace_boundary(net, bounds), right, scale, bounds


def flips(X, y, net, curves, scale, count=3):
    """(x, nearest tie, distance) of some patients of each class who are classified rightly."""
    found = []
    for kind in (0, 1):
        rows = X[(y == kind) & ((net.margin(X) > 0) == kind)]
        every = sorted(((x, *nearest_on(curves, x, scale)) for x in rows), key=lambda f: f[2])
        found += every[:: max(len(every) // (2 * count), 1)][1 : count + 1]
    return found


# ---- digits -------------------------------------------------------------------------------------


def digits():
    """The network, its accuracy, and three held-out images that it is sure of."""
    X, y = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(X / 16, y, random_state=0, stratify=y)
    model = classifier((24,), alpha=0.3).fit(train, y_train)
    sure = model.predict_proba(test)
    images = [test[np.argmax(np.where(y_test == k, sure[:, k], 0))] for k in DIGITS]
    return fd.SigmoidMLP.from_sklearn(model), model.score(test, y_test), images


def plane_through(images):
    """The centre of three points, two orthonormal directions, and the points' coordinates."""
    origin = np.mean(images, axis=0)
    u = images[1] - images[0]
    u = u / np.linalg.norm(u)
    v = images[2] - images[0] - ((images[2] - images[0]) @ u) * u
    directions = np.stack([u, v / np.linalg.norm(v)])
    return origin, directions, (np.array(images) - origin) @ directions.T


# ---- pictures -----------------------------------------------------------------------------------


def draw_cancer(axes, X, y, net, bounds, nearest):
    from fastderiv.integrations.matplotlib import COLOURS, BoundaryDisplay

    BoundaryDisplay.from_network(
        net,
        bounds,
        class_names=("malignant", "benign"),
        ax=axes,
        class_colors=(COLOURS[1], COLOURS[0]),
    )
    for kind, colour in ((0, COLOURS[1]), (1, COLOURS[0])):
        axes.scatter(
            *X[y == kind].T, s=14, color=colour, edgecolor="white", linewidth=0.4, zorder=1.5
        )
    for x, tie, _ in nearest:
        axes.annotate(
            "",
            tie,
            x,
            zorder=4,
            arrowprops={"arrowstyle": "->", "color": "#1f2933", "shrinkA": 0, "shrinkB": 0},
        )
    axes.set(
        xlabel=f"{MEASUREMENTS[0]} [mm]",
        ylabel=MEASUREMENTS[1],
        title="Breast cancer: the least change that flips the verdict",
    )


def draw_digits(axes, net, images, places, bounds):
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    from fastderiv.integrations.matplotlib import BoundaryDisplay

    BoundaryDisplay.from_network(net, bounds, ax=axes).legend_.set_loc("lower left")
    for image, place in zip(images, places, strict=True):
        picture = OffsetImage(image.reshape(8, 8), zoom=3.2, cmap="gray_r")
        axes.add_artist(
            AnnotationBbox(picture, place, pad=0.15, bboxprops={"edgecolor": "#7b8794"})
        )
    axes.set(
        aspect="equal",
        title="Digits: the plane of three images, and what is seen in it",
        xticks=[],
        yticks=[],
    )


def draw(file, parts):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "axes.titlesize": 10}):
        figure = Figure(figsize=(11, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_cancer(left, *parts[0])
        draw_digits(right, *parts[1])
        figure.savefig(file, dpi=90)


def main():
    fit_terminal()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=picture, help="draw both boundaries (needs matplotlib)"
    )
    options = parser.parse_args()

    X, y, net, curves, right, scale, box = cancer()
    print(
        f"breast cancer by {' and '.join(MEASUREMENTS)}: "
        f"{100 * right:.1f} % of the held-out patients called rightly"
    )
    print(
        f"  {len(curves.points)} curve(s), {sum(map(len, curves.points))} points, "
        f"certified: {curves.certified}"
    )
    nearest = flips(X, y, net, curves, scale)
    for x, tie, distance in nearest:
        verdict = "benign" if net.margin(x[None])[0] > 0 else "malignant"
        change = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in zip(x, tie, strict=True))
        print(f"  {verdict:<9} flips within {distance:.2f} standard deviations: {change}")

    seen, accuracy, images = digits()
    origin, directions, places = plane_through(images)
    flat = in_plane(seen, origin, directions)
    reach = 1.5 * np.abs(places).max()
    bounds = ((-reach, reach), (-reach, reach))
    print(
        f"digits: {100 * accuracy:.1f} % of the held-out images; "
        f"the plane of the digits {', '.join(map(str, DIGITS))}"
    )
    curves = [fd.trace_boundary(flat, bounds, outputs=(i, j)) for i in range(10) for j in range(i)]
    number, certified = sum(len(c.points) for c in curves), all(c.certified for c in curves)
    print(f"  {number} curves on which two of the ten logits tie, certified: {certified}")
    if options.plot:
        draw(options.plot, ((X, y, net, box, nearest), (flat, images, places, bounds)))
        print(f"Wrote {options.plot}")


if __name__ == "__main__":
    main()
