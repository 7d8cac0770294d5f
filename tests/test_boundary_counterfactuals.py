"""counterfactuals: the nearest tie along each single input."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference as ref
from fastderiv.boundary._leads import leads_of
from fastderiv.boundary._network import kept
from fastderiv.boundary.line import _counterfactuals
from fastderiv.boundary.line._clusters import ties_in_cluster
from helpers.awkward import layouts, same_bits, snapshot
from helpers.classifiers import trained
from helpers.floating_point import AVAILABLE, STATES, in_state, word
from helpers.machines import assert_levels_agree, by_threads
from test_boundary import five_roots, inputs, network, twin
from test_boundary_sensitivity import centred


def test_equals_reference():
    found = 0
    for seed in range(4):
        net, x = centred((3, 6, 3) if seed else (3, 5, 4, 3), seed, (2, 1)), inputs(1, 3, seed)[0]
        ours, plain = (
            module.counterfactuals(n, x, outputs=(2, 1))
            for module, n in ((fd, net), (ref, twin(net)))
        )
        np.testing.assert_allclose(ours.value, plain.value, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(ours.change, ours.value - x, rtol=0, atol=0)
        for field in ("status", "output", "decisive"):
            assert np.array_equal(getattr(ours, field), getattr(plain, field)), field
        found += np.isfinite(ours.value).sum()
    assert found > 4


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), H=st.integers(1, 8), scale=st.sampled_from([0.5, 3.0, 30.0]))
def test_no_tie_is_nearer_on_a_grid(seed, H, scale):
    net, x = network((2, H, 2), seed, scale), inputs(1, 2, seed)[0]
    for j, change in enumerate(fd.counterfactuals(net, x).change):
        reach = min(abs(change), 20.0) if np.isfinite(change) else 20.0
        X = np.repeat(x[None], 4001, axis=0)
        X[:, j] += np.linspace(-reach, reach, 4001) * (1 - 1e-9)
        f = net.margin(X)
        clear = f[abs(f) > 1e-9 * (1 + abs(net.weights[-1]).sum())]
        assert np.all(clear > 0) or np.all(clear < 0)
        if np.isfinite(change):
            X[0] = x
            X[0, j] += change
            assert abs(net.margin(X[:1])[0]) < 1e-9 * (1 + abs(net.weights[-1]).sum() * scale)


def test_the_nearest_of_five():
    for x1, nearest in [
        (-9, -4.394449),
        (-1.2, -1.999171),
        (-0.9, 0.0),
        (1.2, 1.999188),
        (3.5, 4.394449),
    ]:
        r = fd.counterfactuals(five_roots(), [x1, 0.0], features=[0])
        assert r.value[0] == pytest.approx(nearest, abs=1e-6)


def test_features_choose_order_and_repeat():
    net, x = network((4, 9, 2), 2, 2.0), inputs(1, 4)[0]
    everything = fd.counterfactuals(net, x)
    some = fd.counterfactuals(net, x, features=[-1, 0, 0, 2])
    assert same_bits(some.value, everything.value[[3, 0, 0, 2]])
    assert fd.counterfactuals(net, x, features=[]).value.shape == (0,)
    assert same_bits(
        fd.counterfactuals(net, x, features=np.array([2])).value, everything.value[[2]]
    )


def test_bounds_for_all_and_for_each():
    net = fd.SigmoidMLP([[[1.0], [-2.0]], [[1.0]]], [[0.0], [-0.5]])  # a tie where x1 = 2 x2
    assert np.array_equal(
        np.isnan(fd.counterfactuals(net, [3.0, 1.0], bounds=(2.5, 9)).value), [True, True]
    )
    r = fd.counterfactuals(net, [3.0, 1.0], bounds=[(2.5, 9), (0, 1.5)])
    assert np.isnan(r.value[0])
    assert r.value[1] == pytest.approx(1.5, abs=1e-12)  # a tie on a bound belongs to it
    r = fd.counterfactuals(
        net, [3.0, 1.0], features=[1], bounds=[(1.2, np.inf)]
    )  # without the sample
    assert r.change[0] == pytest.approx(0.5, abs=1e-12)


def test_what_only_goes_to_zero_in_a_tail_is_no_tie():
    net = fd.SigmoidMLP([[[1.0]], [[1.0]]], [[0.0], [0.0]])  # σ(x1)
    for bounds in [(-np.inf, np.inf), (-300, 5)]:
        assert np.isnan(fd.counterfactuals(net, [0.0], bounds=bounds).value[0])


def test_where_the_margin_touches_zero_or_is_zero_is_a_tie():
    # σ(x) σ(−x) has its maximum at 0: d (σ(x+1) − σ(x−1)) touches Δc there
    height = 2 / (1 + np.exp(-1)) - 1
    net = fd.SigmoidMLP([[[1.0, 1.0]], [[1.0], [-1.0]]], [[1.0, -1.0], [-height]])
    assert fd.counterfactuals(net, [3.0]).value[0] == pytest.approx(0, abs=1e-6)
    zero = fd.SigmoidMLP([[[1.0, 1.0]], [[1.0], [-1.0]]], [[1.0, 1.0], [0.0]])
    assert fd.counterfactuals(zero, [3.0]).change[0] == 0


def test_clusters_count_where_the_margin_changes_its_sign_or_touches_zero():
    x, outputs = np.array([9.0]), (0, 1)
    rising = fd.SigmoidMLP([[[1.0]], [[1.0]]], [[0.25], [-0.5]])
    ties = ties_in_cluster(rising, x, 0, outputs, -3.0, 2.0, 3.0)
    assert ties == pytest.approx([-0.25])  # however wide
    assert ties_in_cluster(rising, x, 0, outputs, 1.0, 2.0, 3.0) == []
    # σ(t + 1) − σ(t − 1) less its maximum, and 1e-16 off it
    touching = fd.SigmoidMLP(
        [[[1.0, 1.0]], [[1.0], [-1.0]]], [[1.0, -1.0], [1e-16 - (2 / (1 + np.exp(-1)) - 1)]]
    )
    assert touching.margin([[0.0]])[0] != 0
    assert 0.0 in ties_in_cluster(touching, x, 0, outputs, -1e-8, 0.0, 1e-8)
    # a tail in which it goes to zero is wide
    tail = fd.SigmoidMLP([[[1.0]], [[1.0]]], [[0.0], [0.0]])
    assert ties_in_cluster(tail, x, 0, outputs, -300.0, -40.0, -36.0) == []


@pytest.mark.parametrize("far", [34.0, 36.0])
def test_ties_of_saturated_units_are_found_near_and_not_at_the_end_of_float64(far):
    # σ(x1) + σ(x2) = 1 where x1 = −x2: beyond 31 rounding covers it, and a cluster reaches to ∞
    net = fd.SigmoidMLP([np.eye(2), [[1.0], [1.0]]], [[0.0, 0.0], [-1.0]])
    assert fd.counterfactuals(net, [0.5, far], features=[0]).value[0] == pytest.approx(
        -far, abs=0.5
    )
    assert fd.counterfactuals(net, [0.5, -far], features=[0]).value[0] == pytest.approx(
        far, abs=1.0
    )
    # where the margin is zero to the last bit on half of the line, the value nearest to the sample
    value = fd.counterfactuals(net, [0.5, 400.0], features=[0]).value[0]
    assert net.margin([[value, 400.0]])[0] == 0
    assert -80 < value < -36


def test_a_tie_itself_needs_no_change():
    net = network((3, 8, 2), 4, 2.0)
    x = inputs(1, 3)[0]
    j = int(np.nanargmin(abs(fd.counterfactuals(net, x).change)))
    x[j] = fd.counterfactuals(net, x).value[j]
    assert np.nanmax(abs(fd.counterfactuals(net, x).change)[j]) < 1e-11


@pytest.mark.parametrize("name", ["iris", "breast_cancer", "digits"])
def test_every_tie_is_a_change_of_the_probabilities_of_scikit_learn(name):
    model, net, X = trained(name)
    compared = 0
    for x in X[:: len(X) // 6]:
        value, change = fd.counterfactuals(net, x, outputs=(0, 1))[:2]
        for j in np.flatnonzero(np.isfinite(change)):
            beside = np.repeat(x[None], 3, axis=0)
            beside[:, j] = value[j] + np.array([0, -1, 1]) * 1e-6 * max(1, abs(value[j]))
            p = model.predict_proba(beside)
            lead = np.log(p[:, 1]) - np.log(p[:, 0])
            assert abs(lead[0]) < 1e-8
            assert lead[1] * lead[2] < 0 or abs(lead).max() < 1e-9  # which is flat, as in the tails
            compared += 1
    assert compared > 10


# ---- where the prediction changes ---------------------------------------------------------------


def test_any_equals_reference():
    found = 0
    for seed in range(4):
        net, X = centred((3, 6, 4) if seed else (3, 5, 4, 3), seed, (2, 1)), inputs(3, 3, seed)
        ours, plain = (module.counterfactuals(n, X) for module, n in ((fd, net), (ref, twin(net))))
        np.testing.assert_allclose(ours.value, plain.value, rtol=1e-9, atol=1e-10)
        for field in ("status", "output", "decisive"):
            assert np.array_equal(getattr(ours, field), getattr(plain, field)), field
        found += np.isfinite(ours.value).sum()
    assert found > 4


@pytest.mark.parametrize("name", ["iris", "breast_cancer", "digits"])
def test_predictions_of_scikit_learn_change_at_every_value_and_at_none_nearer(name):
    model, net, X = trained(name)
    X = X[:: len(X) // 8]
    found = fd.counterfactuals(net, X)
    finite = np.isfinite(found.value)
    assert finite.any() and (found.status[finite] == "unique").all()
    assert found.decisive[finite].all() and found.certified.all()
    part = np.append(np.linspace(0, 1 - 1e-7, 50), 1 + 1e-7)
    for i, j in np.argwhere(finite)[:: max(1, finite.sum() // 100)]:
        way = np.repeat(X[i][None], len(part), axis=0)
        way[:, j] += part * found.change[i, j]
        p = model.predict(way)
        assert (p[:-1] == p[0]).all()
        assert p[-1] == model.classes_[found.output[i, j]] != p[0]


@pytest.mark.parametrize("name", ["iris", "digits"])
def test_a_pair_that_ties_under_a_third_output_is_not_decisive(name):
    """On the state before: 157 of 591 values of iris said nothing of it."""
    _, net, X = trained(name)
    found = fd.counterfactuals(net, X[:: len(X) // 20], outputs=(0, 1))
    i, j = np.nonzero(np.isfinite(found.value))
    at = X[:: len(X) // 20][i]
    at[np.arange(len(i)), j] = found.value[i, j]
    z = net.logits(at)
    third = np.delete(z, (0, 1), axis=1).max(axis=1) > z[:, 0]
    assert np.array_equal(found.decisive[i, j], ~third)
    assert third.any() and not third.all() if name == "iris" else third.any()
    assert found.certified[i, j].all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), K=st.integers(3, 5), scale=st.sampled_from([0.5, 3.0, 30.0]))
def test_no_change_of_the_prediction_is_nearer_on_a_grid(seed, K, scale):
    net, x = network((2, 5, K), seed, scale), inputs(1, 2, seed)[0]
    found = fd.counterfactuals(net, x)
    for j in range(2):
        reach = min(abs(found.change[j]), 20.0) if np.isfinite(found.change[j]) else 20.0
        X = np.repeat(x[None], 2001, axis=0)
        X[:, j] += np.linspace(-reach, reach, 2001) * (1 - 1e-9)
        top = np.sort(net.logits(X), axis=1)[:, -2:]
        clear = top[:, 1] - top[:, 0] > 1e-9 * (1 + abs(net.weights[-1]).sum())
        assert len(np.unique(net.logits(X[clear]).argmax(axis=1))) <= 1
        if np.isfinite(found.value[j]):
            assert found.decisive[j] and found.output[j] != net.logits(x[None])[0].argmax()


def test_outputs_that_are_the_same_function_count_as_the_first():
    net = fd.SigmoidMLP([[[1.0, 1.0, -1.0]]], [[0.0, 0.0, 0.0]])  # logits x, x and −x
    found = fd.counterfactuals(net, [[2.0], [-3.0]])
    assert found.change.round(9).T.tolist() == [[-2.0, 3.0]] and found.certified.all()
    assert found.output.T.tolist() == [[2, 0]]
    alike = fd.SigmoidMLP([[[1.0, 1.0]]], [[0.0, 0.0]])
    three = fd.SigmoidMLP([[[1.0] * 3]], [[0.5] * 3])
    assert np.isfinite(
        fd.counterfactuals(alike, [2.0]).value[0]
    )  # of two outputs they are the pair, which ties everywhere
    found = fd.counterfactuals(three, [2.0])
    assert found.status.tolist() == ["none"] and found.certified.all()


def test_outside_its_bounds_what_leads_at_the_bound_counts():
    net = fd.SigmoidMLP([[[1.0, 0.0, -1.0]]], [[0.0, 1.0, 0.0]])  # x leads above 1, −x below −1
    found = fd.counterfactuals(net, [5.0], bounds=(-9, 0))
    assert (
        found.value == pytest.approx([-1])
        and found.output.tolist() == [2]
        and found.certified.all()
    )
    found = fd.counterfactuals(net, [5.0], bounds=(-0.5, 0.5))
    assert (
        found.status.tolist() == ["none"]
        and found.output.tolist() == [-1]
        and found.certified.all()
    )


def test_a_single_output_has_two_classes():
    net = fd.SigmoidMLP([[[1.0]]], [[-1.0]])
    for outputs in ("any", (0, 1), (1, 0), (-1, 0)):
        found = fd.counterfactuals(net, [[0.0], [3.0]], outputs=outputs)
        assert found.value.ravel() == pytest.approx([1, 1])
        assert found.output.ravel().tolist() == [1, 0] and found.decisive.all()


# ---- certificates -------------------------------------------------------------------------------


def test_enclosures_and_status_are_those_of_solve_x1():
    net, x = network((3, 9, 2), 2, 3.0), inputs(1, 3)[0]
    found = fd.counterfactuals(net, x)
    for j in range(3):
        ties = fd.solve_x1(net, np.delete(x, j)[None], coordinate=j)
        if not len(ties.x):
            assert (
                found.status[j] == "none"
                and np.isnan([found.lower[j], found.upper[j], found.value[j]]).all()
            )
            continue
        k = abs(ties.x - x[j]).argmin()
        assert (found.value[j], found.lower[j], found.upper[j]) == (
            ties.x[k],
            ties.lower[k],
            ties.upper[k],
        )
        assert found.status[j] == ties.status[k]
    assert found.certified.tolist() == (found.status != "cluster").tolist()


def listed(monkeypatch, net, x, *ties):
    """`counterfactuals` where solve_x1 lists these (x, lower, upper, unique)."""
    x1, lower, upper, unique = (np.array(field) for field in zip(*ties, strict=True))
    crossings = fd.Crossings(np.array([0, len(ties)]), x1, lower, upper, unique, np.array([True]))
    monkeypatch.setattr(_counterfactuals, "solve_x1", lambda *_, **__: crossings)
    return [field.tolist()[0] for field in fd.counterfactuals(net, [x])]


def test_clusters_that_are_further_than_a_tie_are_not_evaluated(monkeypatch):
    # forty plateaus of σ(200 (x − k)) − σ(200 (x − k − ½)) on which rounding hides the margin
    k = np.arange(40)
    b = np.concatenate([-200.0 * k, -200.0 * (k + 0.5)])
    d = np.concatenate([np.ones(40), -np.ones(40)])
    net = fd.SigmoidMLP([np.full((1, 80), 200.0), d[:, None]], [b, [0.0]])
    ties, asked = fd.solve_x1(net, [[]]), []
    assert (~ties.unique).sum() > 30
    look = _counterfactuals.nearest_in_cluster
    monkeypatch.setattr(
        _counterfactuals, "nearest_in_cluster", lambda *a: asked.append(a) or look(*a)
    )
    found = fd.counterfactuals(net, [20.2])
    assert len(asked) <= 4
    nearest = [
        look(net, np.array([20.2]), 0, (0, 1), *ends)
        for ends in zip(ties.lower, ties.x, ties.upper, strict=True)
    ]
    assert found.value[0] == min(nearest, key=lambda t: np.nan_to_num(abs(t - 20.2), nan=np.inf))


def test_a_cluster_where_no_tie_seems_to_be_is_not_none(monkeypatch):
    """The margin goes to zero in a tail: NaN was said to mean that no tie exists."""
    net = fd.SigmoidMLP([[[1.0]], [[1.0]]], [[0.0], [0.0]])  # σ(x)
    value, _, lower, upper, status, output, decisive, certified = listed(
        monkeypatch, net, 3.0, (-40.0, -300.0, -36.0, False)
    )
    assert np.isnan(value) and (lower, upper, status, output) == (-300.0, -36.0, "cluster", -1)
    assert not decisive and not certified


def test_a_cluster_nearer_than_a_tie_is_the_enclosure(monkeypatch):
    net = fd.SigmoidMLP([[[1.0]], [[1.0]]], [[0.0], [-0.5]])  # a tie at 0
    for tie in ((0.0, -1e-12, 1e-12, True),):
        value, _, lower, upper, status, output, decisive, certified = listed(
            monkeypatch, net, -30.0, (-40.0, -300.0, -36.0, False), tie
        )
        assert (value, lower, upper, status, output) == (0.0, -300.0, -36.0, "cluster", 1)
        assert decisive and not certified
        value, _, lower, upper, status, _, _, certified = listed(
            monkeypatch, net, -10.0, (-40.0, -300.0, -36.0, False), tie
        )
        assert (value, lower, upper, status, certified) == (0.0, -1e-12, 1e-12, "unique", True)


def test_certificates_fall_where_leads_are_within_rounding():
    net = fd.SigmoidMLP([[[1.0, 0.0, -1.0]]], [[0.0, 1.0, 0.0]])  # logits x, 1 and −x
    found = fd.counterfactuals(
        net, [1.0]
    )  # a tie: which of two is predicted is a matter of rounding
    assert abs(found.change[0]) < 1e-12 and not found.certified.any()
    # columns an ulp apart, however, are told apart by their difference
    w = 1.0607978400658138
    last = [[w, np.nextafter(w, 0), -w], [0.0, 0.0, 1.0]]
    net = fd.SigmoidMLP([[[1.0, -1.0]], last], [[0.0, 0.0], [0.0, 0.0, 0.2]])
    found = fd.counterfactuals(net, [2.0])
    assert found.certified[0] and found.output[0] == 2


@pytest.mark.parametrize("sizes", [(3, 4), (2, 7, 3), (3, 6, 5, 4)])
def test_leads_are_right_within_their_bound_for_all_inputs_within_reach(sizes):
    from mpmath import mp, mpf

    net, X = network(sizes, 3, 5.0), inputs(6, sizes[0])
    rng = np.random.default_rng(0)
    for size in (0.0, 1e-12, 1e-3):
        reach = size * rng.random(X.shape)
        ahead, doubt = leads_of(net, 1).at(X, reach)
        other = X + reach * rng.choice([-1, 1], X.shape)
        with mp.workdps(40):
            for r, x in enumerate(other.tolist()):
                y = [mpf(v) for v in x]
                for k, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
                    y = [1 / (1 + mp.exp(-v)) for v in y] if k else y
                    y = [
                        mpf(c) + sum(mpf(a) * v for a, v in zip(col, y, strict=True))
                        for col, c in zip(w.T.tolist(), b.tolist(), strict=True)
                    ]
                for c in range(sizes[-1]):
                    assert abs(mpf(float(ahead[r, c])) - (y[1] - y[c])) <= doubt[r, c] * (1 + 1e-9)
        assert (doubt < (1e-11 + 300 * size) * abs(net.weights[-1]).sum() * 30).all()


# ---- many samples, states, copies ---------------------------------------------------------------


@pytest.mark.parametrize("outputs", ["any", (2, 0)])
def test_many_samples_are_each_as_on_its_own(outputs, monkeypatch):
    net, X = network((3, 8, 3), 5, 2.0), inputs(11, 3)
    options = {"outputs": outputs, "features": [2, 0], "bounds": [(-3, 1), (0, np.inf)]}
    together = fd.counterfactuals(net, X, **options)
    assert all(field.shape == (11, 2) for field in together)
    for i, x in enumerate(X):
        assert all(
            map(same_bits, fd.counterfactuals(net, x, **options), (field[i] for field in together))
        )
    monkeypatch.setattr(_counterfactuals, "_BLOCK", 24)
    monkeypatch.setattr(_counterfactuals, "_KEPT", 0)
    assert all(map(same_bits, fd.counterfactuals(net, X, **options), together))
    none = fd.counterfactuals(net, X[:0], **options)
    assert all(
        field.shape == (0, 2) and field.dtype == whole.dtype
        for field, whole in zip(none, together, strict=True)
    )
    assert fd.counterfactuals(net, X, features=[]).status.shape == (11, 0)


def test_what_is_packed_for_many_outputs_does_not_stay_without_bound(monkeypatch):
    net = network((3, 8, 3), 5, 2.0)
    monkeypatch.setattr(_counterfactuals, "_KEPT", 0)
    fd.counterfactuals(net, inputs(2, 3))
    assert not kept(net).margins


@pytest.mark.skipif(not AVAILABLE, reason="needs glibc's fenv on x86-64 or AArch64")
@pytest.mark.parametrize("state", STATES)
def test_same_bits_in_any_floating_point_state(state):
    net, X = network((3, 8, 3), 5, 2.0), inputs(4, 3)

    def call():
        ours = fd.SigmoidMLP(net.weights, net.biases)  # packed anew
        tiny = fd.SigmoidMLP([[[1.0, 2.0]], [[1e308], [-1e308]]], [[0.0, 0.0], [1e-322]])
        found = (
            fd.counterfactuals(ours, X),
            fd.counterfactuals(ours, X, outputs=(0, 2)),
            fd.counterfactuals(tiny, [1440.0]),
        )
        return [field for one in found for field in one]

    expected = call()
    with in_state(state), np.errstate(all="raise"):
        before = word()
        results = call()
        assert word() == before and np.geterr()["under"] == "raise"
    assert all(map(same_bits, results, expected))


def test_arguments_are_private_copies():
    net, x, box = network((2, 6, 2), 3, 2.0), np.array([0.3, 0.4]), np.array([(-9.0, 9.0)])

    class Index:
        def __index__(self):
            x[:], box[:] = np.nan, np.nan
            return 0

    expected = fd.counterfactuals(net, x.copy(), features=[0], bounds=box.copy())
    try:
        found = fd.counterfactuals(net, x, features=[Index()], bounds=box)
    except ValueError as error:
        assert "bounds" in str(error)  # which were looked at afterwards, and refused
    else:
        assert all(map(same_bits, found, expected))


def test_any_layout_threads_and_levels_give_the_same_bits():
    net, x = network((5, 9, 2), 1, 2.0), inputs(1, 5)[0]
    expected = fd.counterfactuals(net, x)
    for label, view in layouts(x):
        before = snapshot(view)
        assert same_bits(fd.counterfactuals(net, view).value, expected.value), label
        assert snapshot(view) == before
    results = by_threads(lambda: fd.counterfactuals(net, x).value, 1, 2, 5)
    assert all(same_bits(r, expected.value) for r in results)


def test_cpu_levels_agree():
    assert_levels_agree("""
import hashlib, numpy as np, fastderiv as fd
rng = np.random.default_rng(0)
weights = [3 * rng.standard_normal((3, 8)), rng.standard_normal((8, 2))]
net = fd.SigmoidMLP(weights, [rng.standard_normal(8), [0.0, 0.0]])
value = np.nan_to_num(fd.counterfactuals(net, [0.5, -0.3, 0.2]).value)
print(hashlib.sha256(value.tobytes()).hexdigest(), value.sum())
""")


def test_the_result_pickles():
    r = fd.counterfactuals(network((2, 3, 2)), [0, 0])
    other = pickle.loads(pickle.dumps(r))
    assert type(other) is fd.Counterfactuals
    assert same_bits(other.value, r.value)


@pytest.mark.parametrize(
    ("x", "options", "kind", "message"),
    [
        (
            [0.0],
            {},
            ValueError,
            r"x has shape \(1,\); expected \(n_inputs,\) or \(m, n_inputs\) = \(m, 2\)",
        ),
        ([np.inf, 0.0], {}, ValueError, r"x\[0\] is inf"),
        (["a", "b"], {}, TypeError, "x has dtype"),
        (
            [0, 0],
            {"features": [2]},
            ValueError,
            r"features\[0\] is 2; expected an integer from -2 to 1, there being 2 inputs",
        ),
        ([0, 0], {"features": [0.0]}, TypeError, r"features\[0\] is 0.0; expected an integer"),
        ([0, 0], {"features": 0}, TypeError, "features is a int; expected a sequence"),
        (
            [0, 0],
            {"bounds": (1, 1)},
            ValueError,
            r"bounds has the pair \[1.0, 1.0\] .* expected lo < hi",
        ),
        ([0, 0], {"bounds": (np.nan, 1)}, ValueError, "bounds has the pair"),
        (
            [0, 0],
            {"bounds": [(0, 1)] * 3},
            ValueError,
            r"bounds has shape \(3, 2\); expected .* \(2, 2\)",
        ),
        ([0, 0], {"outputs": (0, 9)}, ValueError, r"outputs\[1\] is 9"),
        (
            [0, 0],
            {"outputs": "all"},
            ValueError,
            "outputs is 'all'; expected 'any' or a pair of int",
        ),
        ([0, 0], {"outputs": None}, TypeError, "outputs is None; expected 'any' or a pair of int"),
        (np.zeros((1, 1, 2)), {}, ValueError, r"x has shape \(1, 1, 2\); expected"),
        ([[0, 0], [0, np.nan]], {}, ValueError, r"x\[1, 1\] is nan"),
        ([0, 0], {"features": [True]}, TypeError, r"features\[0\] is True; expected an integer"),
        ([0, 0], {"features": "a"}, TypeError, r"features\[0\] is 'a'; expected an integer"),
        (
            [0, 0],
            {"features": np.ma.masked_array([0, 1], [0, 1])},
            TypeError,
            "features is a masked array",
        ),
        (np.ma.masked_array([0.0, 1.0], [0, 1]), {}, TypeError, "x is a masked array"),
    ],
)
def test_errors_are_named(x, options, kind, message):
    with pytest.raises(kind, match=message):
        fd.counterfactuals(network((2, 3, 2)), x, **options)


def test_the_network_is_checked():
    with pytest.raises(TypeError, match="net is a int; expected a SigmoidMLP"):
        fd.counterfactuals(3, [0.0])


def test_at_a_tie_of_floats_nobody_is_proven_to_lead():
    net = fd.SigmoidMLP([[[1.3, 0.4]], [[0.7], [-1.3]]], [[-1.2, 0], [0.4]])
    assert not fd.counterfactuals(
        net, [-1.8652493618155055]
    ).certified.any()  # exactly the margin is -3.4e-17 there
    assert fd.counterfactuals(net, [-1.5]).certified.all()
