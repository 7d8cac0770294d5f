"""Scans in other directions, for free: bidirectional, and the four ways through an image.

    python examples/directions.py [--size N] [--plot FILE]

`selective_scan` runs along its last axis, from the start to the end.  Other directions need no
other function: a reversed view of a sequence is scanned backwards, and an image whose rows and
columns are exchanged is scanned column by column.  Models of images do both (Vision Mamba two ways,
VMamba's SS2D four), and copy the image for each direction.  Here the scan reads every view where it
lies, and writes its result through a view of the same kind.

The script scans a random image, whose channels lie last as vision models keep them, compares with
scans of copies bit by bit, and prints how much memory the calls took beyond their results.
"""

import argparse
import tracemalloc

import numpy as np

import fastderiv as fd
from fastderiv._cli.output import count, fit_terminal, picture

CHANNELS, STATES = 32, 8
NAMES = "rows", "rows, backwards", "columns", "columns, backwards"


def bidirectional(u, delta, A, B, C):
    """The sum of a scan from the start and one from the end; u, delta (batch, D, L)."""
    y = fd.selective_scan(u, delta, A, B, C, delta_softplus=True)
    back = fd.selective_scan(u[..., ::-1], delta[..., ::-1], A, B, C, delta_softplus=True)
    y += back[..., ::-1]
    return y


def directions(image):
    """Four views (lines, channels, steps) of an image (height, width, channels), without a copy.

    Row after row the pixels are one line in memory.  Column after column they are not, but each
    column is one, and a scan goes from line to line with its state.
    """
    height, width, channels = image.shape
    rows = image.reshape(1, height * width, channels).transpose(0, 2, 1)
    columns = image.transpose(1, 2, 0)
    return rows, rows[:, :, ::-1], columns, columns[::-1, :, ::-1]


def scan_lines(u, delta, A, B, C, out):
    """OUT out: the scan along all lines, one after the other."""
    state = None
    for line in range(len(u)):
        _, state = fd.selective_scan(
            u[line], delta[line], A, B[line, None], C[line, None], delta_softplus=True,
            return_last_state=True, initial_state=state, out=out[line],
        )  # fmt: skip


def four_ways(u, delta, A, B, C):
    """The four scans of an image, each (height, width, D): VMamba's SS2D before the sum.

    u, delta (height, width, D); A (4, D, N); B, C (height, width, N).
    """
    y = np.empty((4, *u.shape), u.dtype)
    views = zip(*map(directions, (u, delta, B, C)), strict=True)
    for way, (u_, delta_, B_, C_) in enumerate(views):
        scan_lines(u_, delta_, A[way], B_, C_, directions(y[way])[way])
    return y


def random_image(size, seed=0):
    """u, delta, A, B, C of `four_ways`."""
    rng = np.random.default_rng(seed)
    u, delta = rng.normal(size=(2, size, size, CHANNELS)).astype(np.float32)
    B, C = rng.normal(size=(2, size, size, STATES)).astype(np.float32)
    A = -rng.uniform(0.1, 1, size=(4, CHANNELS, STATES)).astype(np.float32)
    return u, delta - 2, A, B, C


def copied(u, delta, A, B, C, way):
    """One of the four scans as other libraries have it: of copies with all pixels in one axis."""
    lines = [np.hstack(directions(image)[way])[None] for image in (u, delta, B, C)]
    flat = np.empty_like(lines[0])
    scan_lines(lines[0], lines[1], A[way], lines[2], lines[3], flat)
    y = np.empty_like(u)
    view = directions(y)[way]
    view[...] = flat.reshape(flat.shape[1], *view.shape[::2]).transpose(1, 0, 2)
    return y


def peak(call):
    """What a call returns, and the bytes that NumPy allocated in it at its peak."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def draw(size, path):
    """What each direction makes of a single bright pixel."""
    from matplotlib.figure import Figure

    u, delta, A, B, C = random_image(size)
    u[...], delta[...], B[...], C[...], A[...] = 0, 0, 1, 1, -0.2
    u[size // 3, size // 2] = 1
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    for axes, y, name in zip(
        figure.subplots(1, 4), four_ways(u, delta, A, B, C), NAMES, strict=True
    ):
        axes.imshow(np.sqrt(y[..., 0]), cmap="viridis")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_axis_off()
    figure.savefig(path, dpi=150)


def main():
    fit_terminal()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", type=count, default=64, help="pixels on a side of the image (default: 64)"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=picture, help="draw a pixel's traces (needs matplotlib)"
    )
    options = parser.parse_args()
    image = random_image(options.size)
    y, taken = peak(lambda: four_ways(*image))
    for way, name in enumerate(NAMES):
        same = np.array_equal(y[way], copied(*image, way))
        print(f"{name:<20} {'the bits of a scan of copies' if same else 'another result'}")
    print(f"Four scans took {(taken - y.nbytes) / 1024:.0f} KiB beyond their results, "
          f"which have {y.nbytes / 1024:.0f}.")  # fmt: skip
    if options.plot:
        draw(options.size, options.plot)
        print(f"Wrote {options.plot}")


if __name__ == "__main__":
    main()
