"""What every public name must honour."""

import inspect
import types

import numpy as np
import pytest

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import snapshot

CONFIGURATION = {"get_num_threads", "set_num_threads", "show_config"}
PUBLIC = [name for name in fd.__all__ if name not in CONFIGURATION]


def test_all_is_exactly_the_public_interface():
    names = {
        name
        for name, value in vars(fd).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert names == set(fd.__all__) and len(fd.__all__) == len(set(fd.__all__))
    assert set(reference.__all__) == set(PUBLIC)


def signature(function):
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def methods(cls):
    return {
        name: getattr(cls, name)
        for name, value in vars(cls).items()
        if not name.startswith("_") and callable(getattr(cls, name, None))
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_reference_has_the_same_signature(name):
    ours, theirs = getattr(fd, name), getattr(reference, name)
    if hasattr(ours, "_fields"):
        assert ours._fields == theirs._fields
        return
    assert signature(ours) == signature(theirs)
    if inspect.isclass(ours):
        assert methods(ours).keys() == methods(theirs).keys()
        for method in methods(ours):
            assert signature(getattr(ours, method)) == signature(getattr(theirs, method)), method


@pytest.mark.parametrize("name", fd.__all__)
def test_documented_annotated_and_at_home(name):
    thing = getattr(fd, name)
    assert thing.__doc__ and ">>>" in thing.__doc__, "a docstring with an example"
    assert thing.__module__.startswith("fastderiv.")
    if inspect.isfunction(thing):
        hints = thing.__annotations__
        assert set(inspect.signature(thing).parameters) | {"return"} <= set(hints), (
            "every parameter and the result annotated"
        )


def flat(results):
    """Arrays of a tuple of arrays and tuples."""
    return tuple(a for r in results for a in (r if isinstance(r, tuple) else [r]))


CALLS = {
    "selective_scan": lambda f, a: f(
        a((2, 3, 4)),
        a((2, 3, 4)),
        a((3, 2)),
        a((2, 2, 4)),
        a((3, 2)),
        a((3,)),
        a((2, 3, 4)),
        a((3,)),
        True,
    ),
    "selective_scan_vjp": lambda f, a: f(
        a((2, 3, 4)),
        a((2, 3, 4)),
        a((2, 3, 4)),
        a((3, 2)),
        a((2, 2, 4)),
        a((3, 2)),
        a((3,)),
        a((2, 3, 4)),
        a((3,)),
        True,
        initial_state=a((2, 3, 2)),
        dlast_state=a((2, 3, 2)),
    ),
    "selective_state_update": lambda f, a: f(
        np.zeros((2, 3, 2)), a((2, 3)), a((2, 3)), a((3, 2)), a((2, 2)), a((2, 1, 2))
    ),
    "ssd_scan_vjp": lambda f, a: f(
        a((2, 4, 2, 3)),
        a((2, 4, 2, 3)),
        a((2, 4, 2)),
        a((2,)),
        a((2, 4, 1, 5)),
        a((2, 4, 1, 5)),
        a((2, 3)),
        a((2, 4, 2, 3)),
        a((2,)),
        True,
        initial_state=a((2, 2, 3, 5)),
        dlast_state=a((2, 2, 3, 5)),
    ),
    "causal_conv1d": lambda f, a: f(
        a((2, 3, 4)),
        a((3, 4)),
        a((3,)),
        "silu",
        initial_state=a((2, 3, 3)),
        return_last_state=True,
    ),
    "causal_conv1d_vjp": lambda f, a: f(
        a((2, 3, 4)),
        a((2, 3, 4)),
        a((3, 4)),
        a((3,)),
        "silu",
        initial_state=a((2, 3, 3)),
        dlast_state=a((2, 3, 3)),
    ),
    "causal_conv1d_update": lambda f, a: f(
        a((2, 3)), np.zeros((2, 3, 4)), a((3, 4)), a((3,)), "silu"
    ),
    "chunk_summary": lambda f, a: f(
        a((2, 3, 4)), a((2, 3, 4)), a((3, 2)), a((2, 2, 4)), a((3,)), True
    ),
    "combine_summaries": lambda f, a: f((a((3, 2)), a((3, 2))), (a((3, 2)), a((3, 2)))),
    "scan_attention": lambda f, a: f(
        a((2, 3, 4)), a((3, 2)), a((2, 2, 4)), a((2, 3, 2, 4)), a((3,)), True, rows=[1, -1]
    ),
    "ssd_state_update": lambda f, a: f(
        np.zeros((2, 4, 3, 5)), a((2, 4, 3)), a((2, 4)), a((4,)), a((2, 2, 5)), a((2, 2, 5))
    ),
    "ssd_attention": lambda f, a: f(
        a((2, 6, 4)), a((4,)), a((2, 6, 2, 5)), a((2, 6, 2, 5)), a((4,)), True, rows=[1, -1]
    ),
    "ssd_chunk_summary": lambda f, a: f(
        a((2, 6, 4, 3)), a((2, 6, 4)), a((4,)), a((2, 6, 2, 5)), a((4,)), True
    ),
    "transition_product": lambda f, a: f(a((3, 4)), a((3, 2))),
    "linear_scan": lambda f, a: f(
        a((3, 4)), a((3, 4)), axis=0, initial_state=a((4,)), return_last_state=True
    ),
    "linear_scan_vjp": lambda f, a: f(
        a((3, 4)), a((3,)), a((3, 4)), initial_state=a((3,)), dlast_state=a((3,))
    ),
    "S6": lambda f, a: f(a((3, 3)), a((3,)), a((3, 2)), a((2, 3)), a((2, 3)))(
        a((2, 4, 3)), a((2, 3, 2))
    ),
    "ssd_scan": lambda f, a: f(
        a((2, 5, 4, 3)),
        a((2, 5, 4)),
        a((4,)),
        a((2, 5, 2, 6)),
        a((2, 5, 2, 6)),
        a((4, 3)),
        a((2, 5, 4, 3)),
        a((4,)),
        True,
        (0.0, 1.0),
        True,
        initial_state=a((2, 4, 3, 6)),
    ),
    "solve_x1": lambda f, a: f(odd_network(), a((5,))).x,
    "lstm": lambda f, a: flat(
        f(
            a((4, 2, 3)),
            a((8, 3)),
            a((8, 2)),
            a((8,)),
            a((8,)),
            initial_state=(a((2, 2)), a((2, 2))),
            lengths=[3, 4],
        )
    ),
    "lstm_vjp": lambda f, a: flat(
        f(
            a((4, 2, 2)),
            a((4, 2, 3)),
            a((8, 3)),
            a((8, 2)),
            a((8,)),
            a((8,)),
            initial_state=(a((2, 2)), a((2, 2))),
            lengths=[3, 4],
            dlast_state=(a((2, 2)), a((2, 2))),
        )
    ),
    "lstm_state_adjoints": lambda f, a: f(
        a((4, 2, 2)),
        a((4, 2, 3)),
        a((8, 3)),
        a((8, 2)),
        a((8,)),
        dlast_state=(a((2, 2)), a((2, 2))),
    ),
    "dense": lambda f, a: f(a((4, 3)), a((3, 2)), a((2,)), activation="sigmoid"),
    "dense_vjp": lambda f, a: f(a((4, 2)), a((4, 3)), a((3, 2)), a((2,)), activation="sigmoid"),
    "grid_rnn": lambda f, a: f(a((2, 3, 4, 5)), a((6, 5)), a((6, 6)), a((6, 6)), a((6,))),
    "grid_rnn_vjp": lambda f, a: f(
        a((2, 3, 4, 6)), a((2, 3, 4, 5)), a((6, 5)), a((6, 6)), a((6, 6)), a((6,))
    ),
    "find_x1": lambda f, a: f(odd_network(), a((5,)), (-50, 50)).x,
    "trace_boundary": lambda f, a: f(
        odd_network(), np.sort(a((2, 2))) + np.array([-1, 1]), at=a((2,))
    ).points[0],
    "counterfactuals": lambda f, a: f(odd_network(), a((2,)), features=[0])[:4],
    "decision_intervals": lambda f, a: f(odd_network(), a((5,))).lower,
    "nearest_tie": lambda f, a: f(odd_network(), a((2,))).x,
    "momentum_jacobian": lambda f, a: f(a((3, 3)), alpha=0.5, beta=0.75),
    "momentum_step": lambda f, a: stepped(f, a((2, 3))),
    "ReversibleMomentum": lambda f, a: moved(f(a((2, 3)), alpha=0.5, beta=0.75), a((2, 3))),
    "subset_sums": lambda f, a: f(a((2, 5))),
    "iter_subset_sums": lambda f, a: list(f(a((5,)))),
    "subset_logsumexp": lambda f, a: f(a((2, 5))),
}


def odd_network():
    """A margin that rises from −1 to 1 along its first input."""
    return fd.SigmoidMLP(
        [[[1.0, 2.0], [0.5, -0.5]], [[1.0, 0.0], [1.0, 0.0]]], [[0.0, 0.0], [-1.0, 0.0]]
    )


def stepped(step, grad):
    theta, p = np.zeros((2, 2, 3))
    step(theta, p, grad, alpha=0.5, beta=0.75)
    return theta.copy(), p.copy()


def moved(momentum, grad):
    momentum.step(grad)
    return momentum.theta, momentum.p


def given_arrays():
    """A source of arrays of a shape, and all that it gave out."""
    rng, given = np.random.default_rng(3), []

    def array(shape):
        given.append(rng.normal(size=shape))
        return given[-1]

    return array, given


@pytest.mark.parametrize("name", CALLS)
def test_inputs_are_never_modified_and_results_are_new(name):
    array, given = given_arrays()
    CALLS[name](getattr(fd, name), array)
    array, frozen = given_arrays()  # the same values again, read-only

    def read_only(shape):
        a = array(shape)
        a.flags.writeable = False
        return a

    before = snapshot(*given)
    result = CALLS[name](getattr(fd, name), read_only)
    assert snapshot(*frozen) == before
    for r in result if isinstance(result, tuple) else [result]:
        if isinstance(r, np.ndarray):
            assert r.flags.writeable and not any(np.shares_memory(r, a) for a in frozen)


@pytest.mark.parametrize("name", CALLS)
def test_integers_count_as_float64(name):
    result = CALLS[name](getattr(fd, name), lambda shape: np.ones(shape, np.int32))
    expected = CALLS[name](getattr(fd, name), np.ones)
    if name == "iter_subset_sums":
        result, expected = result[0][1], expected[0][1]
    for r, e in (
        zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
    ):
        assert r.dtype == np.float64 and np.array_equal(r, e)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [bool, complex, np.float16, object])
def test_other_dtypes_are_type_errors_that_name_the_argument(name, dtype):
    with pytest.raises(
        TypeError, match=r"^\w+ has dtype \w+; expected float32, float64 or integers$"
    ):
        CALLS[name](getattr(fd, name), lambda shape: np.ones(shape, dtype))


@pytest.mark.parametrize("name", fd.__all__)
def test_help_opens_with_a_signature_that_people_read(name):
    """Annotations are shown as they are written (`ArrayLike`), not as NumPy spells them out."""
    thing = getattr(fd, name)
    signatures = [inspect.signature(thing)] if callable(thing) else []
    if inspect.isclass(thing):
        signatures += [inspect.signature(method) for method in methods(thing).values()]
    for one in signatures:
        assert len(str(one)) < 600 and "typing" not in str(one), one
