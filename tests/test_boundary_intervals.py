"""decision_intervals: where along one input each output is the largest."""

import pickle
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference as ref
from fastderiv.boundary.line import _intervals
from fastderiv.boundary.line._gaps import Ties, filled, merged
from helpers.awkward import layouts, same_bits, snapshot
from helpers.classifiers import trained
from helpers.machines import assert_levels_agree, by_threads
from test_boundary import inputs, network, twin

FIELDS = ("indptr", "lower", "upper", "output", "complete", "proven")


def same(a, b):
    return all(same_bits(getattr(a, name), getattr(b, name)) for name in FIELDS)


def assert_partition(d, m, lo=-np.inf, hi=np.inf):
    """Every row's intervals are not empty, meet, and are the bounds together; neighbours differ."""
    assert len(d) == m == len(d.indptr) - 1
    assert d.indptr[0] == 0
    assert d.indptr[-1] == len(d.lower) == len(d.upper) == len(d.output)
    assert np.all(np.diff(d.indptr) > 0)
    assert np.all(d.lower < d.upper)
    first, last = d.indptr[:-1], d.indptr[1:] - 1
    assert np.all(d.lower[first] == lo)
    assert np.all(d.upper[last] == hi)
    inner = np.setdiff1d(np.arange(len(d.lower)), first)
    assert np.array_equal(d.lower[inner], d.upper[inner - 1])
    assert np.all(d.output[inner] != d.output[inner - 1])


def points_inside(d, others, coordinate, rng, each=3, reach=50.0):
    """Random points of the intervals, 1e-9 of their size off their ends, and their intervals."""
    row = np.repeat(np.arange(len(d)), np.diff(d.indptr))
    ends = [np.nan_to_num(e, posinf=reach, neginf=-reach) for e in (d.lower, d.upper)]
    k = np.repeat(np.flatnonzero(ends[0] < ends[1]), each)
    margin = 1e-9 * np.maximum(1, abs(np.stack(ends))).max(0)[k]
    lo, hi = ends[0][k] + margin, ends[1][k] - margin
    k, lo, hi = k[lo < hi], lo[lo < hi], hi[lo < hi]
    x = rng.uniform(lo, hi)
    return np.insert(others[row[k]], coordinate, x, axis=1), k


def winners(net, X):
    z = net.logits(X)
    return z.argmax(1) if net.n_outputs > 1 else (z[:, 0] > 0).astype(int)


def lead(net, X):
    """By how much the largest logit leads the next."""
    z = np.sort(net.logits(X), axis=1)
    return z[:, -1] - z[:, -2] if net.n_outputs > 1 else abs(z[:, 0])


def assert_true_inside(net, d, others, coordinate, seed=0):
    X, k = points_inside(d, others, coordinate, np.random.default_rng(seed))
    clear = lead(net, X) > 1e-12 * (1 + abs(net.weights[-1]).sum(0).max())
    assert np.array_equal(winners(net, X)[clear], d.output[k][clear])
    return np.count_nonzero(clear)


@pytest.mark.parametrize(
    ("sizes", "coordinate"),
    [
        ((2, 5, 1), 0),
        ((2, 6, 2), 1),
        ((3, 8, 4), -1),
        ((1, 6, 3), 0),
        ((2, 5, 4, 3), 0),
        ((3, 3), 1),
    ],
)
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (-1.5, 2.0), (-np.inf, 0.5)])
def test_equals_reference(sizes, coordinate, bounds):
    net, others = network(sizes, 3, 3.0), inputs(4, sizes[0])[:, : sizes[0] - 1]
    ours = fd.decision_intervals(net, others, coordinate=coordinate, bounds=bounds)
    plain = ref.decision_intervals(twin(net), others, coordinate=coordinate, bounds=bounds)
    assert_partition(ours, 4, *bounds)
    assert ours.complete.all()
    assert np.array_equal(ours.output, plain.output)
    np.testing.assert_allclose(ours.lower, plain.lower, atol=1e-9)
    np.testing.assert_allclose(ours.upper, plain.upper, atol=1e-9)
    assert len(plain[1].lower) == len(ours[1].lower)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    H=st.integers(1, 9),
    K=st.integers(1, 6),
    scale=st.sampled_from([0.3, 3.0, 100.0]),
    n=st.integers(1, 3), bounded=st.booleans(),
)  # fmt: skip
def test_the_largest_output_everywhere_on_random_networks(seed, H, K, scale, n, bounded):
    net, coordinate = network((n, H, 4, K) if seed % 4 == 0 else (n, H, K), seed, scale), seed % n
    others, bounds = inputs(5, n, seed)[:, : n - 1], (-2.0, 3.0) if bounded else (-np.inf, np.inf)
    d = fd.decision_intervals(net, others, coordinate=coordinate, bounds=bounds)
    assert_partition(d, 5, *bounds)
    assert_true_inside(net, d, others, coordinate)


@pytest.mark.parametrize(
    ("name", "coordinate"),
    [("iris", 2), ("iris", 0), ("breast_cancer", 21), ("digits", 20), ("digits", 0)],
)
def test_agrees_with_predict_of_scikit_learn(name, coordinate):
    model, net, X = trained(name)
    others = np.delete(X[:: len(X) // 25], coordinate, axis=1)
    d = fd.decision_intervals(net, others, coordinate=coordinate)
    assert_partition(d, len(others))
    assert d.complete.all()
    points, k = points_inside(d, others, coordinate, np.random.default_rng(1))
    assert np.array_equal(model.predict(points), model.classes_[d.output[k]])
    at = d.lower[np.isfinite(d.lower)]
    row = np.repeat(np.arange(len(d)), np.diff(d.indptr))[np.isfinite(d.lower)]
    p = np.sort(model.predict_proba(np.insert(others[row], coordinate, at, axis=1)), axis=1)
    np.testing.assert_allclose(
        p[:, -1], p[:, -2], rtol=1e-8
    )  # the two largest tie where the decision changes
    assert len(at) > 5 or coordinate == 0


def test_ten_classes_are_quick():
    import time

    net, X = trained("digits")[1:]
    fd.decision_intervals(net, X[:1, 1:])
    begin = time.perf_counter()
    fd.decision_intervals(net, X[:1, 1:])
    assert time.perf_counter() - begin < 0.25  # 45 pairs: about 3 ms


def test_every_tie_of_the_pair_changes_a_decision_between_two():
    for seed in range(20):
        net, others = network((2, 7, 2), seed, 3.0), inputs(30, 1, seed)
        ties = fd.solve_x1(net, others)
        d = fd.decision_intervals(net, others)
        if ties.unique.all():
            assert np.array_equal(np.diff(ties.indptr) + 1, np.diff(d.indptr))
            assert same_bits(np.delete(d.lower, d.indptr[:-1]), ties.x)


def test_a_single_logit_is_class_1_where_it_is_positive():
    net = fd.SigmoidMLP([[[2.0]], [[1.0]]], [[0.0], [-0.5]])
    d = fd.decision_intervals(net, np.zeros((1, 0)))
    assert d.output.tolist() == [0, 1]
    assert d.lower[1] == pytest.approx(0, abs=1e-15)


def test_outputs_that_are_the_same_function_count_as_the_first():
    net = network((2, 6, 3), 1, 2.0)
    columns = [0, 1, 0, 2, 2]
    doubled = fd.SigmoidMLP(
        [net.weights[0], net.weights[1][:, columns]], [net.biases[0], net.biases[1][columns]]
    )
    others = inputs(20, 1)
    single, double = fd.decision_intervals(net, others), fd.decision_intervals(doubled, others)
    assert same_bits(single.lower, double.lower)
    assert same_bits(single.complete, double.complete)
    assert same_bits(single.proven, double.proven)
    assert np.array_equal(np.array([0, 1, 3])[single.output], double.output)
    same_output = fd.SigmoidMLP([net.weights[0], np.ones((6, 3))], [net.biases[0], np.ones(3)])
    d = fd.decision_intervals(same_output, others)
    assert_partition(d, 20)
    assert not d.output.any()
    assert d.complete.all()
    d = fd.decision_intervals(
        fd.SigmoidMLP([net.weights[0], np.zeros((6, 1))], [net.biases[0], [0.0]]), others
    )
    assert not d.output.any()  # a logit of 0 is not positive
    assert d.complete.all()


def test_outputs_nearly_the_same_make_rows_incomplete_only_where_they_lead():
    # logits: σ(x), the same computed by two halves, and a constant that leads for x < 0
    net = fd.SigmoidMLP(
        [[[1.0, 1.0]], [[1.0, 0.5, 0.0], [0.0, 0.5, 0.0]]], [[0.0, 0.0], [0.0, 0.0, 0.5]]
    )
    d = fd.decision_intervals(net, np.zeros((1, 0)))
    assert_partition(d, 1)
    assert d.output[0] == 2
    assert set(d.output.tolist()[1:]) <= {0, 1}
    assert not d.complete[0]
    assert not d.proven[1:].any()
    beaten = fd.SigmoidMLP(net.weights, [net.biases[0], [0.0, 0.0, 2.0]])
    d = fd.decision_intervals(beaten, np.zeros((1, 0)))
    assert d.output.tolist() == [2]
    assert d.complete[0]


def test_three_outputs_that_tie_at_once_are_not_told_apart():
    # logits s, 0, −s with s = σ(x) − 1/2: at 0 all are equal, 0 and 2 change places, 1 never wins
    net = fd.SigmoidMLP([[[1.0]], [[1.0, 0.0, -1.0]]], [[0.0], [-0.5, 0.0, 0.5]])
    d = fd.decision_intervals(net, np.zeros((1, 0)))
    assert d.output.tolist() == [2, 0]
    assert d.lower[1] == pytest.approx(0, abs=1e-12)
    assert not d.complete[0]
    assert d.proven.all()  # on both sides of the place where that is open


def test_a_touching_tie_is_not_complete():
    height = 2 / (1 + np.exp(-1)) - 1
    bump = [[[1.0, 1.0]], [[1.0, 0.0], [-1.0, 0.0]]]
    d = fd.decision_intervals(fd.SigmoidMLP(bump, [[1.0, -1.0], [-height, 0.0]]), np.zeros((1, 0)))
    assert d.output.tolist() == [1]
    assert not d.complete[0]
    assert not d.proven[0]  # the other one may lead there, by nothing that can be told
    for rise, outputs in [(1e-6, [1, 0, 1]), (-1e-6, [1])]:
        d = fd.decision_intervals(
            fd.SigmoidMLP(bump, [[1.0, -1.0], [rise - height, 0.0]]), np.zeros((1, 0))
        )
        assert d.output.tolist() == outputs
        assert d.complete[0]


def test_ties_of_losing_outputs_do_not_matter():
    # outputs 1 and 2 touch at 0, far below output 0
    height = 2 / (1 + np.exp(-1)) - 1
    net = fd.SigmoidMLP(
        [[[1.0, 1.0]], [[0, 1.0, 0.0], [0, -1.0, 0.0]]], [[1.0, -1.0], [9.0, -height, 0.0]]
    )
    d = fd.decision_intervals(net, np.zeros((1, 0)))
    assert d.output.tolist() == [0]
    assert d.complete[0]


# ---- proven winners -----------------------------------------------------------------------------


def exact_logits(net, x):
    """In 80 digits; those of a single logit are 0 and it."""
    with mpmath.workdps(80):
        y = [mpmath.mpf(float(v)) for v in x]
        for k, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            if k:
                y = [1 / (1 + mpmath.exp(-v)) for v in y]
            y = [
                float(c) + mpmath.fsum(float(v) * yi for v, yi in zip(column, y, strict=True))
                for column, c in zip(w.T, b, strict=True)
            ]
        return y if len(y) > 1 else [mpmath.mpf(0), *y]


def assert_proven_is_true(net, d, others, coordinate, rng, each=2):
    """At random points inside of the intervals that are proven; how many there were."""
    X, k = points_inside(d, others, coordinate, rng, each)
    checked = np.flatnonzero(d.proven[k])
    for i in checked:
        z = exact_logits(net, X[i])
        assert z[d.output[k[i]]] == max(z), (X[i], d.output[k[i]], z)
    return len(checked)


def columns_nearly_the_same(seed):
    """Networks whose outputs are nearly the same.

    They are an ulp apart, or small beside what they share, or sums that nearly cancel, or huge.
    """
    rng = np.random.default_rng(seed)
    K, H, n, kind = (
        int(rng.integers(1, 6)),
        int(rng.integers(1, 7)),
        int(rng.integers(1, 4)),
        seed % 5,
    )
    sizes = (n, K) if seed % 17 == 0 else (n, H, 3, K) if seed % 4 == 0 else (n, H, K)
    W = [rng.normal(0, 2, s) for s in pairwise(sizes)]
    B = [rng.normal(0, 2, s) for s in sizes[1:]]
    if kind == 1:
        for a in (W[-1], B[-1]):
            a[...] = a[..., :1]
            a[...] = np.where(
                rng.random(a.shape) < 0.4, np.nextafter(a, rng.choice([-99, 99], a.shape)), a
            )
    elif kind == 2:
        W[-1] = W[-1] * 10.0 ** rng.integers(-9, 0) + 1e8 * rng.normal(size=(len(W[-1]), 1))
    elif kind == 3:
        B[-1] += 10.0 ** rng.integers(5, 16)
    elif kind == 4:
        W[-1] *= 1e300
        B[-1] *= 1e300
    return fd.SigmoidMLP(W, B), rng.normal(size=(3, n - 1)), seed % n, rng


def test_columns_an_ulp_apart():
    W, B = (
        [[[1.1019641188366207]], [[1.0607978400658138, 1.0607978400658136]]],
        [[1.7103942914776449], [0.687749388505445, 0.6877493885054452]],
    )
    net = fd.SigmoidMLP(W, B)
    d = fd.decision_intervals(net, [[]], bounds=(-5, 5))
    assert d.output.tolist() == [1]
    assert d.proven.all()
    assert d.complete.all()
    assert net.logits([[0.0]]).argmax() == 0  # what evaluation says


def test_outputs_that_are_small_beside_what_they_share():
    # outputs 1e8 σ(x) + 1e-9 (σ(y) − ½), 1e8 σ(x), and 1e8 σ(x) − 1: logits do not show the order
    net = fd.SigmoidMLP(
        [[[1.0, 0.0], [0.0, 1.0]], [[1e8, 1e8, 1e8], [1e-9, 0.0, 0.0]]],
        [[0.0, 0.0], [-5e-10, 0.0, -1.0]],
    )
    d = fd.decision_intervals(net, [0.3], coordinate=1)
    assert d.output.tolist() == [1, 0]
    assert abs(d.lower[1]) < 1e-12
    assert d.complete.all()


def test_what_is_proven_is_true_where_evaluation_is_not_to_be_trusted():
    checked = sum(
        assert_proven_is_true(net, fd.decision_intervals(net, x, coordinate=c), x, c, rng)
        for net, x, c, rng in map(columns_nearly_the_same, range(60))
    )
    assert checked > 400


@pytest.mark.slow
def test_what_is_proven_is_true_in_many_networks():
    incomplete = []
    for seed in range(100, 3000):
        net, x, c, rng = columns_nearly_the_same(seed)
        d = fd.decision_intervals(net, x, coordinate=c)
        assert_proven_is_true(net, d, x, c, rng, 1)
        incomplete.append(1 - d.proven.mean())
    assert np.mean(incomplete) < 0.02


def test_a_margin_that_is_zero_everywhere_is_proven_nowhere():
    # σ(x) + σ(−x) − 1 ≡ 0, but no finite number of digits says so
    net = fd.SigmoidMLP([[[1.0, -1.0]], [[1.0, 0.0], [1.0, 0.0]]], [[0.0, 0.0], [-1.0, 0.0]])
    d = fd.decision_intervals(net, [[]])
    assert not d.complete[0]
    assert not d.proven.any()


def test_proof_needs_more_digits_than_floats_have():
    from fastderiv.boundary._digits import Point

    # σ(690) < σ(691): e^(−690) apart after terms of size 1 have cancelled
    net = fd.SigmoidMLP([[[1.0, 1.0]], [[1.0, 0.0], [-1.0, 0.0]]], [[690.0, 691.0], [0.0, 0.0]])
    assert Point(net, np.zeros(1)).leader(0, 1) == -1
    d = fd.decision_intervals(net, [[]], bounds=(-1.0, 1.0))
    assert not d.proven.any()  # solve_x1 cannot exclude a tie


def test_a_proof_of_one_row_is_not_that_of_another():
    net, others = network((2, 9, 4), 2, 3.0), inputs(30, 1)
    d = fd.decision_intervals(net, others)
    assert d.complete.all()
    assert d.proven.all()
    assert same_bits(d.complete, np.array([d[i].proven.all() for i in range(30)]))


def test_the_order_at_a_point_in_digits():
    from fastderiv.boundary._digits import Point

    for seed in range(40):
        net, others, c, rng = columns_nearly_the_same(seed)
        x = np.insert(others[0], c, rng.normal())
        z, point = exact_logits(net, x), Point(net, x)
        for i in range(net.n_outputs):
            for j in range(net.n_outputs):
                order = point.leader(i, j)
                assert order == (z[i] > z[j]) - (z[i] < z[j])
        if net.n_outputs == 1:
            assert point.leader(0, None) == (z[1] > 0) - (z[1] < 0)


def test_a_tie_on_a_bound():
    net = fd.SigmoidMLP([[[2.0]], [[1.0]]], [[0.0], [-0.5]])
    for bounds, output in [((0.0, 4.0), 1), ((-4.0, 0.0), 0)]:
        d = fd.decision_intervals(net, np.zeros((1, 0)), bounds=bounds)
        assert_partition(d, 1, *bounds)
        assert d.output[np.argmax(d.upper - d.lower)] == output
        assert d.upper.max() - d.lower.min() == 4
        assert np.sort(d.upper - d.lower)[:-1].sum() < 1e-12


def test_rows_do_not_depend_on_each_other(monkeypatch):
    net, others = network((2, 9, 4), 2, 3.0), inputs(50, 1)
    whole = fd.decision_intervals(net, others)
    for i in range(50):
        assert same(whole[i], fd.decision_intervals(net, others[i : i + 1]))
    monkeypatch.setattr(_intervals, "_ROWS", 7)
    assert same(fd.decision_intervals(net, others), whole)


def test_rows_are_indexed_like_a_sequence():
    d = fd.decision_intervals(network((2, 9, 4), 2, 3.0), inputs(5, 1))
    assert len(d) == len(list(d)) == 5
    assert same(d[-1], d[4])
    for bad in (5, -6):
        with pytest.raises(IndexError, match=rf"row {bad} is out of range, there being 5 rows"):
            d[bad]
    with pytest.raises(TypeError, match=r"row is 1.0; expected an integer"):
        d[1.0]


def test_no_rows_and_scalars():
    net = network((2, 4, 3))
    d = fd.decision_intervals(net, np.zeros((0, 1)))
    assert_partition(d, 0)
    assert same(fd.decision_intervals(net, 0.5), fd.decision_intervals(net, [[0.5]]))


def test_any_layout_and_threads_give_the_same_bits():
    net, others = network((3, 7, 4), 2, 3.0), inputs(20, 2)
    expected = fd.decision_intervals(net, others, coordinate=1)
    for label, view in layouts(others):
        before = snapshot(view)
        assert same(fd.decision_intervals(net, view, coordinate=1), expected), label
        assert snapshot(view) == before
    assert all(
        same(d, expected)
        for d in by_threads(lambda: fd.decision_intervals(net, others, coordinate=1), 1, 2, 5)
    )


def test_cpu_levels_agree():
    assert_levels_agree("""
import hashlib, numpy as np, fastderiv as fd
rng = np.random.default_rng(0)
weights = [3 * rng.standard_normal((2, 8)), rng.standard_normal((8, 4))]
net = fd.SigmoidMLP(weights, [rng.standard_normal(8), np.zeros(4)])
d = fd.decision_intervals(net, rng.standard_normal(40))
digest = hashlib.sha256(d.lower.tobytes() + d.output.tobytes()).hexdigest()
print(digest, d.lower[np.isfinite(d.lower)].sum())
""")


def test_the_result_pickles():
    d = fd.decision_intervals(network((2, 4, 3)), inputs(3, 1))
    other = pickle.loads(pickle.dumps(d))
    assert type(other) is fd.DecisionIntervals
    assert same(other, d)


@pytest.mark.parametrize(
    ("x_other", "options", "kind", "message"),
    [
        (
            np.zeros((2, 2)),
            {},
            ValueError,
            r"x_other has shape \(2, 2\); expected \(m, n_inputs - 1\) = \(m, 1\)",
        ),
        ([np.nan], {}, ValueError, r"x_other\[0\] is nan"),
        ([True], {}, TypeError, "x_other has dtype bool"),
        ([0.0], {"coordinate": 2}, ValueError, "coordinate is 2"),
        ([0.0], {"bounds": (1, 0)}, ValueError, r"bounds .*1.*0.*; expected lo < hi"),
        ([0.0], {"bounds": (0, np.nan)}, ValueError, r"bounds .*nan.*; expected lo < hi"),
        ([0.0], {"bounds": (0, 1, 2)}, ValueError, r"bounds has"),
    ],
)
def test_errors_are_named(x_other, options, kind, message):
    with pytest.raises(kind, match=message):
        fd.decision_intervals(network((2, 3, 2)), x_other, **options)


def test_the_network_is_checked():
    with pytest.raises(TypeError, match="net is a dict; expected a SigmoidMLP"):
        fd.decision_intervals({}, [0.0])


def test_overlapping_enclosures_are_one_block_and_rows_stay_apart():
    row, lower = np.array([0, 0, 0, 0, 1, 1]), np.array([0.0, 1, 3, 6, 0.5, 0.7])
    upper, pair = np.array([5.0, 2, 4, 7, 0.6, 0.8]), np.zeros((6, 2), int)
    blocks = merged(Ties(row, lower, upper, lower, np.ones(6, bool), pair))
    assert blocks.first.tolist() == [0, 3, 4, 5]
    assert blocks.upper.tolist() == [5, 7, 0.6, 0.8]
    assert blocks.row.tolist() == [0, 0, 1, 1]


def test_gaps_without_an_inside_take_their_neighbours_output_within_the_row():
    winner, row = np.array([9, 1, 9, 2, 9, 9, 3]), np.array([0, 0, 0, 1, 1, 2, 2])
    known = winner != 9
    assert filled(winner, known, row).tolist() == [1, 1, 1, 2, 2, 3, 3]
    assert filled(winner[:1], known[:1], row[:1]).tolist() == [9]  # nothing to go by


def test_a_cut_somewhere_on_a_plateau_is_not_proven():
    net = fd.SigmoidMLP([[[60.0, -60.0]], [[1.0], [-1.0]]], [[-120.0, -60.0], [0.0]])
    one = fd.decision_intervals(net, [[]], bounds=(-2, 3))
    assert not one.complete.any() and not one.proven.any()
