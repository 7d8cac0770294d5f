"""Names of a model's features: what is refused because its columns have other names."""

from __future__ import annotations

import numpy as np


def check(
    known: tuple[str, ...] | None, name: str, value: object, without: int | None, row: bool
) -> None:
    """A ValueError if the columns of `value` have other names than `known`, or another order.

    `without` is the number of a known name whose column `value` does not have.  With `row`, a
    Series is one sample, and its index bears the names.  As with scikit-learn, everything passes
    that has no names, or if none are known.
    """
    if known is None or type(value) is np.ndarray:
        return
    given, expected = _names_of(value, row), list(known)
    if without is not None:
        del expected[without]
    if given is not None and given != expected:
        raise ValueError(
            f"{name} has other columns than the model was fitted with: "
            f"{_difference(given, expected)}"
        )


def _names_of(value: object, row: bool) -> list[str] | None:
    columns = getattr(value, "columns", None)
    names = getattr(value, "column_names", columns)  # pyarrow's tables have the former
    if names is None and row and hasattr(value, "to_numpy"):
        names = getattr(value, "index", None)
    try:
        names = list(names)  # type: ignore[arg-type]
    except TypeError:
        return None
    return list(map(str, names)) if any(isinstance(n, str) for n in names) else None


def _difference(given: list[str], known: list[str]) -> str:
    """How names differ, in the words of scikit-learn."""
    unseen, missing = ([n for n in a if n not in b] for a, b in ((given, known), (known, given)))
    said = ["The feature names should match those that were passed during fit."]
    if unseen:
        said.append(f"Feature names unseen at fit time: {_few(unseen)}.")
    if missing:
        said.append(f"Feature names seen at fit time, yet now missing: {_few(missing)}.")
    if not (unseen or missing):
        said.append(f"Feature names must be in the same order as they were in fit: {_few(known)}.")
    return " ".join(said)


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + ", …" * (len(names) > 5)
