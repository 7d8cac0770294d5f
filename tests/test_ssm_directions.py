"""Scans through reversed and permuted views: no copy is made, and the bits are those of copies."""

import tracemalloc

import numpy as np
import pytest

import fastderiv as fd
from helpers.awkward import same_bits
from test_examples import example


@pytest.fixture(scope="module")
def ways():
    return example("directions")


def test_directions_are_views_of_one_image(ways):
    image = np.arange(4 * 6 * 3.0).reshape(4, 6, 3)
    views = ways.directions(image)
    assert all(np.shares_memory(view, image) for view in views)
    sequences = [np.hstack(view)[0] for view in views]  # of the first channel
    first = image[..., 0]
    for sequence, pixels in zip(sequences, (first, first, first.T, first.T), strict=True):
        order = 1 if sequence is sequences[0] or sequence is sequences[2] else -1
        assert np.array_equal(sequence, pixels.reshape(-1)[::order])


def test_four_ways_have_the_bits_of_scans_of_copies(ways):
    image = ways.random_image(19)
    y = ways.four_ways(*image)
    for way in range(4):
        assert same_bits(np.ascontiguousarray(y[way]), ways.copied(*image, way))


def test_bidirectional_has_the_bits_of_scans_of_copies(ways):
    rng = np.random.default_rng(0)
    u, delta = rng.normal(size=(2, 2, 5, 40))
    A, B, C = -rng.uniform(size=(5, 4)), *rng.normal(size=(2, 2, 4, 40))
    y = ways.bidirectional(u, delta, A, np.ones((5, 4)), np.ones((5, 4)))
    forth, back = (
        fd.selective_scan(
            u[..., ::way].copy(), delta[..., ::way].copy(), A, np.ones((5, 4)), np.ones((5, 4)),
            delta_softplus=True,
        )
        for way in (1, -1)
    )  # fmt: skip
    assert same_bits(y, forth + back[..., ::-1])
    # B and C that vary in time are reversed with it
    backwards = [a[..., ::-1] for a in (u, delta, B, C)]
    one = fd.selective_scan(*backwards[:2], A, *backwards[2:], delta_softplus=True)
    copies = [a.copy() for a in backwards]
    assert same_bits(one, fd.selective_scan(*copies[:2], A, *copies[2:], delta_softplus=True))


@pytest.mark.parametrize("way", range(4))
def test_no_direction_makes_a_copy(ways, way):
    """Each array has 1 MiB or more, and a call allocates no tenth of that."""
    size = 96
    u, delta, A, B, C = ways.random_image(size)
    out = np.empty_like(u)
    views = [ways.directions(image)[way] for image in (u, delta, B, C, out)]
    ways.scan_lines(*views[:2], A[way], *views[2:])  # what is allocated once
    tracemalloc.start()
    try:
        ways.scan_lines(*views[:2], A[way], *views[2:])
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert u.nbytes > 1 << 20 and taken < u.nbytes / 10


def test_a_copy_would_be_seen():
    u = np.ones((32, 9216), np.float32)[:, ::-1]
    tracemalloc.start()
    try:
        u.copy()
        assert tracemalloc.get_traced_memory()[1] >= u.nbytes
    finally:
        tracemalloc.stop()


def test_gradients_of_views_are_views_of_gradients():
    rng = np.random.default_rng(1)
    u, delta, dout = rng.normal(size=(3, 5, 40))
    rest = -rng.uniform(size=(5, 4)), np.ones((5, 4)), np.ones((5, 4))
    views = fd.selective_scan_vjp(dout[:, ::-1], u[:, ::-1], delta[:, ::-1], *rest)
    copies = fd.selective_scan_vjp(*(a[:, ::-1].copy() for a in (dout, u, delta)), *rest)
    for a, b in zip(views, copies, strict=True):
        assert a is b is None or same_bits(a, b)
