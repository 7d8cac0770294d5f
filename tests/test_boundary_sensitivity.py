"""tie_sensitivity: implicit derivatives of a tie with respect to every parameter."""

import pickle

import numpy as np
import pytest

import fastderiv as fd
from fastderiv import reference as ref
from helpers.awkward import layouts, same_bits, snapshot
from helpers.classifiers import trained
from test_boundary import network, twin


def tied(net, x, coordinate=0, outputs=(0, 1)):
    """x moved along one input to its nearest tie there."""
    value = fd.counterfactuals(net, x, features=[coordinate], outputs=outputs).value[0]
    x = np.array(x, float)
    x[coordinate] = value
    return x


def centred(sizes, seed=0, outputs=(0, 1)):
    """A network with a tie at 0 = f(origin), so that there is one to begin with."""
    net = network(sizes, seed, 2.0)
    biases = [b.copy() for b in net.biases]
    biases[-1][outputs[0]] -= net.margin(np.zeros((1, sizes[0])), outputs)[0]
    return fd.SigmoidMLP(net.weights, biases)


CASES = [
    ((2, 3, 2), 0, (0, 1)),
    ((4, 9, 1), 2, (0, 1)),
    ((3, 6, 5, 4), -1, (3, 1)),
    ((5, 7, 1, 6, 2), 1, (1, 0)),
    ((3, 2), 0, (0, 1)),
]


@pytest.mark.parametrize(("sizes", "coordinate", "outputs"), CASES)
def test_equals_reference_in_every_entry(sizes, coordinate, outputs):
    pair = outputs if sizes[-1] > 1 else (0, 1)
    net = centred(sizes, outputs=pair)
    x = np.zeros(sizes[0])
    ours = fd.tie_sensitivity(net, x, coordinate=coordinate, outputs=outputs)
    plain = ref.tie_sensitivity(twin(net), x, coordinate=coordinate, outputs=outputs)
    for a, b in zip(
        (*ours.weights, *ours.biases, ours.inputs),
        (*plain.weights, *plain.biases, plain.inputs),
        strict=True,
    ):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13 * abs(b).max())
    assert [w.shape for w in ours.weights] == [w.shape for w in net.weights]
    assert [b.shape for b in ours.biases] == [b.shape for b in net.biases]


@pytest.mark.parametrize("sizes", [(2, 3, 2), (4, 12, 3)])
def test_the_tie_moves_as_said_when_parameters_do(sizes):
    net, rng, t = centred(sizes, 1), np.random.default_rng(3), 1e-5
    x = np.zeros(sizes[0])
    s = fd.tie_sensitivity(net, x)
    dw, db = ([rng.standard_normal(a.shape) for a in part] for part in (net.weights, net.biases))
    dx = rng.standard_normal(sizes[0] - 1)
    said = sum(
        (a * b).sum()
        for a, b in zip((*s.weights, *s.biases, s.inputs), (*dw, *db, dx), strict=True)
    )
    moved = []
    for sign in (-1, 1):
        other = fd.SigmoidMLP(
            [w + sign * t * d for w, d in zip(net.weights, dw, strict=True)],
            [b + sign * t * d for b, d in zip(net.biases, db, strict=True)],
        )
        moved.append(
            fd.counterfactuals(other, np.insert(sign * t * dx, 0, 0), features=[0]).value[0]
        )
    assert abs((moved[1] - moved[0]) / (2 * t) - said) < 1e-6 * (1 + abs(said))


def test_the_parameters_of_the_two_outputs_have_opposite_signs_and_others_none():
    s = fd.tie_sensitivity(centred((3, 5, 4), outputs=(2, 0)), np.zeros(3), outputs=(2, 0))
    assert same_bits(s.weights[-1][:, 2], -s.weights[-1][:, 0])
    assert s.biases[-1][2] == -s.biases[-1][0] != 0
    assert not s.weights[-1][:, [1, 3]].any()
    assert not s.biases[-1][[1, 3]].any()


def test_gradients_agree_with_torch():
    torch = pytest.importorskip("torch")
    net = centred((3, 8, 5, 2))
    weights, biases = (
        [torch.tensor(a, requires_grad=True) for a in part] for part in (net.weights, net.biases)
    )
    y = x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
        y = (torch.sigmoid(y) if k else y) @ w + b
    (y[0] - y[1]).backward()
    s, slope = fd.tie_sensitivity(net, np.zeros(3), coordinate=1), x.grad[1]
    for a, b in zip((*s.weights, *s.biases), (*weights, *biases), strict=True):
        np.testing.assert_allclose(a, -(b.grad / slope).numpy(), rtol=1e-12, atol=1e-15)


def test_saturated_units_keep_their_relative_accuracy():
    # f = σ(x1 − 60) − σ(−60) with another unit's weight: σ' is 1e-26, and 1 − σ would be 0
    net = fd.SigmoidMLP([[[1.0, 0.0], [0.0, 1.0]], [[1.0], [-1.0]]], [[60.0, 60.0], [0.0]])
    assert fd.tie_sensitivity(net, [3.0, 3.0]).inputs == pytest.approx([1.0], rel=1e-14)


def test_real_data_with_every_kind_of_output():
    for name in ("iris", "breast_cancer", "digits"):
        net, X = trained(name)[1:]
        change = fd.counterfactuals(net, X[0]).change
        j = int(np.nanargmin(abs(change)))
        x = tied(net, X[0], j)
        s = fd.tie_sensitivity(net, x, coordinate=j)
        gradient = net.margin_gradient(x[None])[0]
        np.testing.assert_allclose(
            s.inputs, -np.delete(gradient, j) / gradient[j], rtol=1e-9, atol=1e-12
        )


def test_any_layout_of_x_gives_the_same_bits_and_is_left_alone():
    net = centred((4, 6, 2))
    expected = fd.tie_sensitivity(net, np.zeros(4))
    for label, x in layouts(np.zeros(4)):
        before = snapshot(x)
        result = fd.tie_sensitivity(net, x)
        assert snapshot(x) == before
        for a, b in zip(
            (*result.weights, *result.biases, result.inputs),
            (*expected.weights, *expected.biases, expected.inputs),
            strict=True,
        ):
            assert same_bits(a, b), label


def test_the_result_pickles():
    s = fd.tie_sensitivity(centred((2, 3, 2)), [0, 0])
    other = pickle.loads(pickle.dumps(s))
    assert type(other) is fd.TieSensitivity
    assert same_bits(other.weights[0], s.weights[0])


@pytest.mark.parametrize(
    ("x", "options", "kind", "message"),
    [
        (
            [0.1, 0.0],
            {},
            ValueError,
            r"^x is no tie: the margin is .* about 0.1\d* from the boundary; .* within 1e-06",
        ),
        ([0.0], {}, ValueError, r"x has shape \(1,\); expected \(n_inputs,\) = \(2,\)"),
        ([np.nan, 0.0], {}, ValueError, r"x\[0\] is nan"),
        ([True, False], {}, TypeError, "x has dtype bool"),
        ([0.0, 0.0], {"coordinate": 2}, ValueError, "coordinate is 2"),
        ([0.0, 0.0], {"outputs": (0, 0)}, ValueError, "two different outputs"),
        (
            [0.0, 0.0],
            {"coordinate": 1},
            ValueError,
            "x is a tie at which the margin does not change with input 1",
        ),
    ],
)
def test_errors_are_named(x, options, kind, message):
    net = fd.SigmoidMLP([[[1.0], [0.0]], [[2.0, 1.0]]], [[0.0], [0.0, 0.5]])  # a tie where x1 = 0
    with pytest.raises(kind, match=message):
        fd.tie_sensitivity(net, x, **options)


def test_a_point_without_a_gradient_is_no_tie():
    net = fd.SigmoidMLP([[[0.0]], [[1.0]]], [[0.0], [2.0]])
    with pytest.raises(ValueError, match="where the margin's gradient is zero"):
        fd.tie_sensitivity(net, [0.0])
    with pytest.raises(TypeError, match="net is a str"):
        fd.tie_sensitivity("net", [0.0])
