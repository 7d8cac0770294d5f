"""Types of `plain.pyx`."""

def plain(target: object, required: tuple[object, ...], optional: tuple[object, ...]) -> bool:
    """Whether a kernel can write to `target` and read the other arrays, all as they are."""

def alike(arrays: tuple[object, ...], required: int) -> bool:
    """Whether the arrays have one dtype, float32 or float64, and a kernel can read them.

    All but the first `required` may be None.
    """

def widest(starts: object) -> int:
    """The largest difference of neighbours in `starts`; -1 where it decreases."""
