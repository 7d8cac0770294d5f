"""SigmoidMLP and scikit-learn's models, DataFrames, and parameters that are no arrays."""

import copy
import pickle
import warnings

import numpy as np
import pytest

import fastderiv as fd
from helpers.awkward import same_bits
from helpers.floating_point import AVAILABLE, STATES, in_state, word
from test_boundary import inputs, network

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 2))
BINARY = (X[:, 0] > 0).astype(int)


def classifier(**options):
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        (4,), **{"activation": "logistic", "max_iter": 20, "random_state": 0, **options}
    )


def fitted(model, y=BINARY, data=X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(data, y)


# ---- models that look alike ---------------------------------------------------------------------


def test_several_labels_per_sample_are_no_network_whose_largest_output_wins():
    pytest.importorskip("sklearn")
    for labels in (2, 3):
        model = fitted(
            classifier(),
            np.column_stack([X[:, 0] > 0, X[:, 1] > 0.3, X.sum(1) > 0])[:, :labels].astype(int),
        )
        with pytest.raises(
            ValueError, match=f"model is a multi-label classifier of {labels} labels"
        ):
            fd.SigmoidMLP.from_sklearn(model)


def test_one_class_is_refused():
    pytest.importorskip("sklearn")
    with pytest.raises(
        ValueError, match=r"model was fitted with one class only, \[3\]; expected two or more"
    ):
        fd.SigmoidMLP.from_sklearn(fitted(classifier(), np.full(80, 3)))


def test_replaced_methods_are_refused():
    from sklearn.neural_network import MLPClassifier

    class Careful(MLPClassifier):
        def predict(self, X):
            return np.where(self.predict_proba(X)[:, 1] > 0.9, 1, 0)

    class Scaled(MLPClassifier):
        def _forward_pass_fast(self, X, check_input=True):
            return super()._forward_pass_fast(X / 2, check_input)

    class Named(MLPClassifier):
        """Which predicts as scikit-learn does."""

    options = {"activation": "logistic", "max_iter": 20}
    for kind, name in ((Careful, "predict"), (Scaled, "_forward_pass_fast")):
        with pytest.raises(
            ValueError,
            match=f"model is a {kind.__name__} with its own {name}; expected scikit-learn's",
        ):
            fd.SigmoidMLP.from_sklearn(fitted(kind((4,), **options)))
    assert fd.SigmoidMLP.from_sklearn(fitted(Named((4,), **options))).n_outputs == 1
    model = fitted(classifier())
    model.predict_proba = lambda X: 1
    with pytest.raises(ValueError, match="with its own predict_proba"):
        fd.SigmoidMLP.from_sklearn(model)


def test_models_around_a_classifier_are_named():
    pytest.importorskip("sklearn")
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import GridSearchCV
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for model, message in (
        (
            make_pipeline(StandardScaler(), classifier()),
            "model is a Pipeline; expected an MLPClassifier, such as its last step",
        ),
        (
            GridSearchCV(classifier(), {"alpha": [1e-4]}, cv=2),
            "GridSearchCV; expected an MLPClassifier, such as its best_estimator_",
        ),
        (
            CalibratedClassifierCV(classifier(), cv=2),
            "model is a CalibratedClassifierCV; expected an MLPClassifier",
        ),
        (
            OneVsRestClassifier(classifier()),
            "model is a OneVsRestClassifier; expected an MLPClassifier",
        ),
        (
            MLPRegressor(hidden_layer_sizes=(4,), activation="logistic", max_iter=5),
            "model is a MLPRegressor; expected",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            fd.SigmoidMLP.from_sklearn(fitted(model))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "out_activation_",
            "softmax",
            "n_outputs_ 1 and out_activation_ 'softmax' for 2 classes_; expected 1 and 'logistic'",
        ),
        ("n_outputs_", 3, "a multi-label classifier of 3 labels"),
        ("n_layers_", 5, "model has n_layers_ 5; expected one more than coefs_ = 3"),
        ("classes_", np.arange(3), "for 3 classes_; expected 3 and 'softmax'"),
        (
            "feature_names_in_",
            np.array(["a"], object),
            "feature_names_in_ has 1 names; expected one per input = 2",
        ),
        ("activation", "tanh", "model has activation 'tanh'; expected 'logistic'"),
    ],
)
def test_everything_that_predict_uses_is_looked_at(name, value, message):
    pytest.importorskip("sklearn")
    model = fitted(classifier())
    setattr(model, name, value)
    with pytest.raises(ValueError, match=message):
        fd.SigmoidMLP.from_sklearn(model)


# ---- names of columns ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames():
    """A classifier fitted on columns with names, and columns beside them."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("sklearn")
    frame = pandas.DataFrame(X, columns=["length", "width"])
    model = fitted(classifier(max_iter=300), data=frame)
    return model, fd.SigmoidMLP.from_sklearn(model), frame


CALLS = {
    "logits": lambda net, frame: net.logits(frame),
    "forward": lambda net, frame: net.forward(frame),
    "margin": lambda net, frame: net.margin(frame),
    "margin_gradient": lambda net, frame: net.margin_gradient(frame),
    "counterfactuals": lambda net, frame: fd.counterfactuals(net, frame).value,
    "counterfactuals of a row": lambda net, frame: fd.counterfactuals(net, frame.iloc[0]).value,
    "nearest_tie": lambda net, frame: fd.nearest_tie(net, frame.iloc[0]).x,
}


@pytest.mark.parametrize("name", CALLS)
def test_names_decide_and_others_are_refused_as_scikit_learn_does(name, frames):
    model, net, frame = frames
    call, bare = CALLS[name], frame.set_axis([0, 1], axis=1)
    expected = call(fd.SigmoidMLP(net.weights, net.biases), frame)
    assert same_bits(call(net, frame), expected) and same_bits(call(net, bare), expected)
    for other, message in (
        (
            frame[["width", "length"]],
            "must be in the same order as they were in fit: 'length', 'width'",
        ),
        (
            frame.rename(columns={"width": "depth"}),
            "unseen at fit time: 'depth'.*yet now missing: 'width'",
        ),
        (frame.assign(depth=1.0), "unseen at fit time: 'depth'"),
        (frame[["length"]], "yet now missing: 'width'"),
    ):
        with pytest.raises(
            ValueError,
            match="^[Xx] has other columns .* should match those that were passed during fit.*"
            + message,
        ):
            call(net, other)
        with pytest.raises(
            ValueError, match="feature names should match those that were passed during fit"
        ):
            model.predict(other)


def test_copies_and_pickles_know_the_names(frames):
    _, net, frame = frames
    for other in (pickle.loads(pickle.dumps(net)), copy.copy(net), copy.deepcopy(net)):
        assert other == net and hash(other) == hash(net)
        with pytest.raises(ValueError, match="same order"):
            other.logits(frame[["width", "length"]])
    plain = fd.SigmoidMLP(net.weights, net.biases)
    assert plain == net and hash(plain) == hash(net)
    assert plain.logits(frame[["width", "length"]]).shape == (80, 1)
    assert plain.__reduce__()[0] is fd.SigmoidMLP  # as before there were names


def typed():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b"])
    yield "nullable floats", frame.astype("Float64")
    yield "nullable integers", (9 * frame).round().astype("Int64")
    yield "nullable booleans", frame.assign(b=(frame["b"] > 0).astype("boolean"))
    yield "bool beside float", frame.assign(b=frame["b"] > 0)
    yield "float16", frame.astype("float16")
    yield (
        "float32 beside int8",
        frame.assign(a=frame["a"].astype("float32"), b=(9 * frame["b"]).astype("int8")),
    )
    yield "object", frame.astype(object)
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return
    yield "Arrow floats", frame.astype("float64[pyarrow]")
    yield "Arrow integers", (9 * frame).round().astype("int64[pyarrow]")
    yield "Arrow booleans", frame.assign(b=(frame["b"] > 0).astype("bool[pyarrow]"))


def test_columns_of_every_type_are_taken_as_scikit_learn_takes_them():
    pytest.importorskip("sklearn")
    for label, frame in typed():
        model = fitted(classifier(), data=frame)
        net, plain = fd.SigmoidMLP.from_sklearn(model), frame.to_numpy(np.float64)
        np.testing.assert_allclose(
            net.forward(frame)[:, 0], model.predict_proba(frame)[:, 1], rtol=1e-5, err_msg=label
        )
        for call in (
            net.margin,
            lambda a, net=net: fd.counterfactuals(net, a).change,
            lambda a: fd.dense(a, np.eye(2)),
        ):
            assert same_bits(call(frame), call(plain)), label
        assert same_bits(fd.solve_x1(net, frame["b"]).x, fd.solve_x1(net, plain[:, 1]).x), label
        scan = -np.ones((80, 1)), np.ones((80, 1)), np.ones((80, 1))
        assert same_bits(
            fd.selective_scan(frame, frame, *scan), fd.selective_scan(plain, plain, *scan)
        ), label


def test_missing_values_are_nan(frames):
    _, net, frame = frames
    for other in (frame.mask(frame > 2), frame.astype("Float64").mask(frame > 2)):
        with pytest.raises(ValueError, match=r"x\[\d+, 1\] is nan; expected finite numbers"):
            fd.counterfactuals(net, other)
        assert np.isnan(net.margin(other)).sum() == 1


# ---- parameters that nobody changes -------------------------------------------------------------


def test_parameters_cannot_be_made_writeable():
    """An array that owns its data lets its owner set the flag again.

    Packed kernels would then disagree with it.
    """
    net = network((2, 3, 2))
    for array in (*net.weights, *net.biases):
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        while isinstance(array.base, np.ndarray):
            array = array.base
            assert not array.flags.writeable
    for array in pickle.loads(pickle.dumps(net)).weights:
        assert not array.flags.writeable and array.flags.aligned and array.flags.c_contiguous


def test_hostile_parameters():
    w, b = np.ones((2, 1)), np.zeros(1)

    class Lying(list):
        def __len__(self):
            return 7

        def __getitem__(self, k):
            return np.full((5, 5), np.nan)

    class Own(np.ndarray):
        def __getitem__(self, k):
            return np.zeros(1)

        def tobytes(self):
            return b""

    expected = fd.SigmoidMLP([w], [b])
    assert fd.SigmoidMLP(Lying([w]), Lying([b])) == expected
    assert fd.SigmoidMLP([w.view(Own)], [b.view(Own)]) == expected
    assert type(fd.SigmoidMLP([w.view(Own)], [b]).weights[0]) is np.ndarray
    assert fd.SigmoidMLP((a for a in [w.view(np.matrix)]), [b]) == expected
    for weights, biases, name in (
        ([np.ma.masked_array(w, w > 0)], [b], r"weights\[0\]"),
        ([w], [np.ma.masked_array(b)], r"biases\[0\]"),
        (np.ma.masked_array(w[None], w[None] > 0), b[None], "weights"),
    ):
        with pytest.raises(TypeError, match=f"{name} is a masked array"):
            fd.SigmoidMLP(weights, biases)


@pytest.mark.parametrize("state", [("a", "b", "c"), ("a",), 3])
def test_foreign_states_of_pickles_are_checked(state):
    from fastderiv.boundary._network import _named

    with pytest.raises((TypeError, ValueError)):
        _named(fd.SigmoidMLP, [np.ones((2, 1))], [np.zeros(1)], state)


def test_outputs_of_a_single_logit_are_looked_at():
    """Anything passed, and was ignored."""
    net = network((2, 4, 1), 1)
    calls = (
        lambda o: net.margin([[0.0, 0.0]], o),
        lambda o: net.margin_gradient([[0.0, 0.0]], o),
        lambda o: fd.solve_x1(net, [0.0], outputs=o),
        lambda o: fd.find_x1(net, [0.0], (-1, 1), outputs=o),
        lambda o: fd.ExponentialSum.from_network(net, o),
        lambda o: fd.trace_boundary(net, ((-1, 1), (-1, 1)), outputs=o),
        lambda o: fd.tie_sensitivity(net, [0.0, 0.0], outputs=o),
        lambda o: fd.follow_boundary(net, [0.0, 0.0], 1.0, outputs=o),
        lambda o: fd.counterfactuals(net, [0.0, 0.0], outputs=o),
        lambda o: fd.nearest_tie(net, [0.0, 0.0], outputs=o),
    )
    for call in calls:
        for outputs, message in (
            ((5, 7), r"outputs\[0\] is 5; expected an integer from -2 to 1, there being 2 classes"),
            ((0, 0), "expected two different classes"),
            ("nonsense", "outputs is 'nonsense'; expected .*a pair of integers"),
            ((0, 1, 2), "expected .*a pair of integers"),
        ):
            with pytest.raises(ValueError, match=message):
                call(outputs)
        with pytest.raises(TypeError, match=r"outputs is None; expected .*a pair of integers"):
            call(None)
    assert same_bits(net.margin([[1.0, 2.0]], (1, 0)), net.logits([[1.0, 2.0]])[0])


@pytest.mark.skipif(not AVAILABLE, reason="needs glibc's fenv on x86-64 or AArch64")
@pytest.mark.parametrize("state", STATES)
def test_same_bits_in_any_floating_point_state(state):
    weights = [RNG.normal(size=(3, 6)), RNG.normal(size=(6, 2))]
    biases = [np.array([1e-310, -3e-320, 0.0, 1.0, -0.0, 2.0]), np.array([2**62 + 1, 7])]
    rows = np.vstack([inputs(5, 3), [[1e-310, 0.0, -1e-315]]])
    narrow = rows.astype(np.float32)

    def call():
        net = fd.SigmoidMLP(weights, biases)
        results = [
            net.logits(rows),
            net.forward(narrow),
            net.margin(rows),
            net.margin_gradient(rows),
        ]
        return [
            *results,
            *net.weights,
            *net.biases,
            np.array([hash(net)]),
            np.array([net == fd.SigmoidMLP(weights, [biases[0] * 0, biases[1]])]),
        ]

    expected = call()
    with in_state(state), np.errstate(all="raise"):
        before = word()
        results = call()
        assert word() == before
    assert all(map(same_bits, results, expected))
    assert not expected[-1][0]
