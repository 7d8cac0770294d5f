"""What `SigmoidMLP.from_sklearn` takes from a fitted MLPClassifier, and which models it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np

# What scikit-learn's `predict` consists of: if one of these is replaced, the model predicts by
# something else than the network.
_PREDICTION = ("predict", "predict_proba", "predict_log_proba", "_predict", "_forward_pass_fast")


def parameters_of(model: Any) -> tuple[list, list, tuple[str, ...] | None]:
    """Weights, biases and feature names of a fitted MLPClassifier that predicts by them."""
    _check_kind(model)
    if model.activation != "logistic":
        raise ValueError(f"model has activation {model.activation!r}; expected 'logistic'")
    if not hasattr(model, "coefs_"):
        raise ValueError(f"model is not fitted: this {type(model).__name__} has no coefs_")
    weights, biases = list(model.coefs_), list(model.intercepts_)
    _check_outputs(model, weights)
    return weights, biases, _names(model)


def _check_kind(model: Any) -> None:
    kind = type(model)
    base = next((c for c in kind.__mro__ if _is_sklearns(c)), None)
    if base is None:
        raise TypeError(f"model is a {kind.__name__}; expected an MLPClassifier{_hint(model)}")
    for name in _PREDICTION:
        if name in vars(model) or getattr(kind, name, None) is not getattr(base, name, None):
            raise ValueError(
                f"model is a {kind.__name__} with its own {name}; expected scikit-learn's, "
                "which the network would otherwise contradict"
            )


def _is_sklearns(kind: type) -> bool:
    return kind.__name__ == "MLPClassifier" and kind.__module__.startswith(
        "sklearn.neural_network."
    )


def _hint(model: Any) -> str:
    """Where in a model around the classifier the classifier is."""
    if hasattr(model, "steps"):
        return ", such as its last step, whose inputs are what the steps before make of the data"
    if hasattr(model, "best_estimator_"):
        return ", such as its best_estimator_"
    return ""


def _check_outputs(model: Any, weights: list) -> None:
    """A ValueError unless `predict` takes the largest output, or the sign of a single one."""
    classes, outputs, last = model.classes_, model.n_outputs_, model.out_activation_
    if outputs > 1 and last == "logistic":
        raise ValueError(
            f"model is a multi-label classifier of {outputs} labels, each with a threshold of its "
            "own (out_activation_ is 'logistic'); expected one class per sample"
        )
    if len(classes) < 2:
        raise ValueError(
            f"model was fitted with one class only, {np.asarray(classes).tolist()}; "
            "expected two or more"
        )
    expected = (1, "logistic") if len(classes) == 2 else (len(classes), "softmax")
    if (outputs, last) != expected:
        raise ValueError(
            f"model has n_outputs_ {outputs} and out_activation_ {last!r} for {len(classes)} "
            f"classes_; expected {expected[0]} and {expected[1]!r}"
        )
    if model.n_layers_ != len(weights) + 1:
        raise ValueError(
            f"model has n_layers_ {model.n_layers_}; "
            f"expected one more than coefs_ = {len(weights) + 1}"
        )
    if weights[-1].shape[1] != outputs:
        raise ValueError(
            f"model's last coefs_ has shape {weights[-1].shape}; "
            f"expected (n_hidden, n_outputs_ = {outputs})"
        )


def _names(model: Any) -> tuple[str, ...] | None:
    names = getattr(model, "feature_names_in_", None)
    return None if names is None else tuple(map(str, names))
