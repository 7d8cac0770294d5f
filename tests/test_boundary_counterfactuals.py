"""counterfactuals: the nearest tie along each single input."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from awkward import layouts, same_bits, snapshot
from classifiers import trained
from fastderiv import reference as ref
from fastderiv.boundary._counterfactuals import _in_cluster
from machines import assert_levels_agree, by_threads
from test_boundary import five_roots, inputs, network, twin
from test_boundary_sensitivity import centred


def test_equals_reference():
    found = 0
    for seed in range(4):
        net, x = centred((3, 6, 3) if seed else (3, 5, 4, 3), seed, (2, 1)), inputs(1, 3, seed)[0]
        ours, plain = (module.counterfactuals(n, x, outputs=(2, 1)) for module, n in ((fd, net), (ref, twin(net))))
        np.testing.assert_allclose(ours.value, plain.value, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(ours.change, ours.value - x, rtol=0, atol=0)
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
    for x1, nearest in [(-9, -4.394449), (-1.2, -1.999171), (-0.9, 0.0), (1.2, 1.999188), (3.5, 4.394449)]:
        r = fd.counterfactuals(five_roots(), [x1, 0.0], features=[0])
        assert r.value[0] == pytest.approx(nearest, abs=1e-6)


def test_features_choose_order_and_repeat():
    net, x = network((4, 9, 2), 2, 2.0), inputs(1, 4)[0]
    everything = fd.counterfactuals(net, x)
    some = fd.counterfactuals(net, x, features=[-1, 0, 0, 2])
    assert same_bits(some.value, everything.value[[3, 0, 0, 2]])
    assert fd.counterfactuals(net, x, features=[]).value.shape == (0,)
    assert same_bits(fd.counterfactuals(net, x, features=np.array([2])).value, everything.value[[2]])


def test_bounds_for_all_and_for_each():
    net = fd.SigmoidMLP([[[1.0], [-2.0]], [[1.0]]], [[0.0], [-0.5]])  # a tie where x1 = 2 x2
    assert np.array_equal(np.isnan(fd.counterfactuals(net, [3.0, 1.0], bounds=(2.5, 9)).value), [True, True])
    r = fd.counterfactuals(net, [3.0, 1.0], bounds=[(2.5, 9), (0, 1.5)])
    assert np.isnan(r.value[0])
    assert r.value[1] == pytest.approx(1.5, abs=1e-12)  # a tie on a bound belongs to it
    r = fd.counterfactuals(net, [3.0, 1.0], features=[1], bounds=[(1.2, np.inf)])  # without the sample
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
    assert _in_cluster(rising, x, 0, outputs, -3.0, 2.0, 3.0) == pytest.approx([-0.25])  # however wide
    assert _in_cluster(rising, x, 0, outputs, 1.0, 2.0, 3.0) == []
    # σ(t + 1) − σ(t − 1) less its maximum, and 1e-16 off it
    touching = fd.SigmoidMLP([[[1.0, 1.0]], [[1.0], [-1.0]]], [[1.0, -1.0], [1e-16 - (2 / (1 + np.exp(-1)) - 1)]])
    assert touching.margin([[0.0]])[0] != 0
    assert 0.0 in _in_cluster(touching, x, 0, outputs, -1e-8, 0.0, 1e-8)
    # a tail in which it goes to zero is wide
    tail = fd.SigmoidMLP([[[1.0]], [[1.0]]], [[0.0], [0.0]])
    assert _in_cluster(tail, x, 0, outputs, -300.0, -40.0, -36.0) == []


@pytest.mark.parametrize("far", [34.0, 36.0])
def test_ties_of_saturated_units_are_found_near_and_not_at_the_end_of_float64(far):
    # σ(x1) + σ(x2) = 1 where x1 = −x2: beyond 31 rounding covers it, and a cluster reaches to ∞
    net = fd.SigmoidMLP([np.eye(2), [[1.0], [1.0]]], [[0.0, 0.0], [-1.0]])
    assert fd.counterfactuals(net, [0.5, far], features=[0]).value[0] == pytest.approx(-far, abs=0.5)
    assert fd.counterfactuals(net, [0.5, -far], features=[0]).value[0] == pytest.approx(far, abs=1.0)
    # and where the margin is zero to the last bit on half of the line, the value nearest to the sample
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
net = fd.SigmoidMLP([3 * rng.standard_normal((3, 8)), rng.standard_normal((8, 2))], [rng.standard_normal(8), [0.0, 0.0]])
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
        ([0.0], {}, ValueError, r"x has shape \(1,\); expected \(n_inputs,\) or \(m, n_inputs\) = \(m, 2\)"),
        ([np.inf, 0.0], {}, ValueError, r"x\[0\] is inf"),
        (["a", "b"], {}, TypeError, "x has dtype"),
        ([0, 0], {"features": [2]}, ValueError, r"features\[0\] is 2; expected an integer from -2 to 1, there being 2 inputs"),
        ([0, 0], {"features": [0.0]}, TypeError, r"features\[0\] is 0.0; expected an integer"),
        ([0, 0], {"features": 0}, TypeError, "features is a int; expected a sequence"),
        ([0, 0], {"bounds": (1, 1)}, ValueError, r"bounds has the pair \[1.0, 1.0\] .* expected lo < hi"),
        ([0, 0], {"bounds": (np.nan, 1)}, ValueError, "bounds has the pair"),
        ([0, 0], {"bounds": [(0, 1)] * 3}, ValueError, r"bounds has shape \(3, 2\); expected .* \(2, 2\)"),
        ([0, 0], {"outputs": (0, 9)}, ValueError, r"outputs\[1\] is 9"),
    ],
)
def test_errors_are_named(x, options, kind, message):
    with pytest.raises(kind, match=message):
        fd.counterfactuals(network((2, 3, 2)), x, **options)


def test_the_network_is_checked():
    with pytest.raises(TypeError, match="net is a int; expected a SigmoidMLP"):
        fd.counterfactuals(3, [0.0])
