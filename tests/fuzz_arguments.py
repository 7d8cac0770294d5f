"""Hostile arguments from recipes in plain JSON, which can be printed, stored and replayed."""

import itertools

import numpy as np

import fastderiv as fd

PAD = 64  # bytes around every array, to see stray writes; 0xFF, which reads as NaN or −1


class FuzzError(Exception):
    """What callbacks raise; it must come out as it went in."""


# ---- values --------------------------------------------------------------------------------------

EXTREME = [
    np.nan,
    np.inf,
    -np.inf,
    0.0,
    -0.0,
    5e-324,
    -1e-310,
    2.3e-308,
    1e308,
    -1.7e308,
    1e-38,
    1e38,
    1e15,
    -745.2,
    709.8,
    88.8,
]


def values(kind, seed, shape, dtype):
    """An array of `kind`: benign ("normal", "small", "negative") or not ("extreme", "some extreme",
    "huge", "tiny").
    """
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.standard_normal(shape))
    if kind == "small":
        x *= 1e-3
    elif kind == "negative":
        x = -np.abs(x)
    elif kind == "huge":
        x *= 1e300
    elif kind == "tiny":
        x *= 1e-310
    elif kind == "extreme":
        x = rng.choice(EXTREME, shape)
    elif kind == "some extreme":
        x = np.where(rng.random(shape) < 0.1, rng.choice(EXTREME, shape), x)
    elif kind == "zero":
        x *= 0
    elif kind == "equal":
        x = np.full(shape, x.flat[0] if x.size else 0.0)
    if np.dtype(dtype).kind in "iu":
        return np.asarray(
            np.rint(np.clip(np.nan_to_num(np.abs(x) if dtype[0] == "u" else x), -9, 9)), dtype
        )
    with np.errstate(all="ignore"):
        return np.asarray(x, dtype)


BENIGN = ("normal", "small", "negative", "zero", "equal")


# ---- memory --------------------------------------------------------------------------------------


class Memory:
    """One array in memory of its own with bytes around it that nobody may write to."""

    def __init__(self, recipe, array):
        shape, dtype = array.shape, array.dtype
        if recipe.get("swapped"):
            dtype = dtype.newbyteorder()
        order = recipe.get("order") or list(range(array.ndim))
        steps = recipe.get("steps") or [1] * array.ndim
        strides, reach, offset = [0] * array.ndim, dtype.itemsize, PAD + recipe.get("offset", 0)
        for axis in reversed(order):
            strides[axis] = reach * steps[axis]
            if steps[axis] < 0:
                offset += reach * -steps[axis] * max(shape[axis] - 1, 0)
            reach *= abs(steps[axis]) * max(shape[axis], 1)
        self.raw = np.full(reach + 2 * PAD + 8, 0xFF, np.uint8)
        self.view = np.ndarray(shape, dtype, self.raw, offset, strides)
        self.view[...] = array
        self.may_change = False
        self.before = self.raw.copy()
        self.start = self.view.copy()
        if recipe.get("readonly"):
            self.view.flags.writeable = False

    def stray_writes(self):
        """Whether bytes have changed that must not."""
        after = self.raw.copy()
        if self.may_change:
            offset = (
                self.view.__array_interface__["data"][0] - self.raw.__array_interface__["data"][0]
            )
            view = np.ndarray(self.view.shape, self.view.dtype, after, offset, self.view.strides)
            view[...] = self.start
        return not np.array_equal(after, self.before)

    def changed(self):
        return not np.array_equal(self.raw, self.before)


class Hostile(np.ndarray):
    """A subclass all of whose methods lie."""

    def __getitem__(self, key):
        return np.zeros(1)

    def __array_wrap__(self, *args, **kwargs):
        raise FuzzError("__array_wrap__")

    def __array_ufunc__(self, *args, **kwargs):
        raise FuzzError("__array_ufunc__")

    def __array_function__(self, *args, **kwargs):
        raise FuzzError("__array_function__")

    def __repr__(self):
        return "Hostile"

    def lie(self, *args, **kwargs):
        return np.zeros(1).view(Hostile)

    reshape = ravel = copy = astype = transpose = squeeze = swapaxes = flatten = min = max = any = (
        all
    ) = sum = lie

    def tolist(self):
        return []

    size = property(lambda self: 10**6)
    nbytes = property(lambda self: 0)
    T = property(lie)


class ArrayLike:
    """Not an array, but asked for one it gives it."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.array, Exception):
            raise self.array
        return np.array(self.array, dtype)


def dressed(view, kind):
    """`view` as what a user may pass instead of an ndarray."""
    if kind == "list":
        return view.tolist()
    if kind == "matrix":
        return view.view(np.matrix) if view.ndim == 2 else view.view(np.recarray)
    if kind == "hostile":
        return view.view(Hostile)
    if kind == "masked":
        return np.ma.MaskedArray(view, mask=np.zeros(view.shape, bool))
    if kind == "array-like":
        return ArrayLike(view)
    return view


JUNK = {
    "object": object,
    "string": lambda: "abc",
    "none": lambda: None,
    "nan": lambda: float("nan"),
    "dict": dict,
    "generator": lambda: (i for i in range(3)),
    "bytes": lambda: b"12345678",
    "true": lambda: True,
    "ragged": lambda: [[1.0, 2.0], [3.0]],
    "complex": lambda: np.ones((2, 3), complex),
    "bool": lambda: np.ones(3, bool),
    "half": lambda: np.ones((2, 3), np.float16),
    "longdouble": lambda: np.ones(4, np.longdouble),
    "huge int": lambda: 2**63,
    "objects": lambda: np.array([1.0, None]),
    "dates": lambda: np.zeros(3, "M8[s]"),
    "record": lambda: np.zeros(3, "f8,i4"),
    "raises": lambda: ArrayLike(RuntimeError("no array")),
    "minus one": lambda: -1,
    "empty": list,
    "float": lambda: 0.5,
    "inf": lambda: float("inf"),
    "uint64": lambda: np.full(3, 2**64 - 1, np.uint64),
    "0-d": lambda: np.array(2.0),
    "huge": lambda: 1e300,
    "subclass": lambda: np.ones((2, 3)).view(Hostile),
    "set": lambda: {1, 2},
    "int": lambda: 3,
    "masked": lambda: np.ma.masked_array(np.ones(3), [0, 1, 0]),
    "nested": lambda: [np.ma.masked_array([1.0], [True])],
    "expanded": lambda: np.broadcast_to(np.float64(1.0), (2, 3)),
    "vast": lambda: np.broadcast_to(np.float64(1.0), (2**58,)),
}


# ---- callbacks -----------------------------------------------------------------------------------


def callback(kind):
    """A function of arrays or numbers that behaves as `kind` says; benign ones return about sin."""

    def benign(x, *rest):
        with np.errstate(all="ignore"):
            return np.sin(x) * (rest[0] if rest else 1.0)

    def behave(x, *rest):
        if kind == "raise":
            raise FuzzError("raised")
        if kind == "mutate":
            result = benign(x, *rest)
            for a in (x, *rest):
                if isinstance(a, np.ndarray) and a.flags.writeable:
                    a[...] = np.nan
            return result
        if kind == "reenter":
            fd.selective_scan(
                np.ones((70, 90)),
                np.ones((70, 90)),
                -np.ones((70, 4)),
                np.ones((70, 4)),
                np.ones((70, 4)),
            )
            fd.subset_sums(np.ones(3))
            fd.dense(np.ones((2, 2)), np.ones((2, 2)), activation=(np.sin, np.cos))
        if kind == "state":
            np.seterr(**np.geterr())
        if kind == "shape":
            return np.ones((*np.shape(x), 2))
        if kind == "none":
            return None
        if kind == "nan":
            return np.full(np.shape(x), np.nan)
        if kind == "same":
            return x
        if kind == "frozen":
            result = np.array(benign(x, *rest))
            result.flags.writeable = False
            return result
        if kind == "expanded":
            return np.broadcast_to(np.float64(0.5), np.shape(x))
        if kind == "single":
            with np.errstate(
                all="ignore"
            ):  # a callback computes in the caller's state: its own casts are its own affair
                return np.asarray(benign(x, *rest), np.float32)
        if kind == "hostile":
            return np.asarray(benign(x, *rest)).view(Hostile)
        return benign(x, *rest)

    return behave


GENTLE = ("sin", "reenter", "state", "frozen", "same", "expanded")
ROUGH = ("raise", "mutate", "shape", "none", "nan", "single", "hostile")


# ---- recipes to arguments ------------------------------------------------------------------------


class Built:
    """The arguments of one call, made from their recipes.

    With `plain` every array is an ordinary contiguous one of the same values, whatever its recipe
    says of its memory.
    """

    def __init__(self, recipes, library=fd, plain=False):
        self.library, self.plain, self.memories = library, plain, {}
        self.arguments = {}
        for name in sorted(
            recipes, key=lambda name: "alias" in str(recipes[name])
        ):  # what is shared comes first
            self.arguments[name] = self.make(name, recipes[name])
        self.arguments = {name: self.arguments[name] for name in recipes}

    def make(self, name, recipe):
        if not isinstance(recipe, dict):
            return [self.make(name, r) for r in recipe] if isinstance(recipe, list) else recipe
        if "shape" in recipe:
            return self.array(name, recipe)
        if "tuple" in recipe:
            return tuple(self.make(f"{name}[{i}]", r) for i, r in enumerate(recipe["tuple"]))
        if "alias" in recipe:
            return self.alias(name, recipe)
        if "callback" in recipe:
            return callback(recipe["callback"])
        if "junk" in recipe:
            return JUNK[recipe["junk"]]()
        if "scalar" in recipe:
            return np.dtype(recipe["dtype"]).type(recipe["scalar"])
        return self.network(recipe)

    def array(self, name, recipe):
        if recipe.get("vast"):  # one number, as often as asked for
            return np.broadcast_to(np.dtype(recipe["dtype"]).type(1), recipe["shape"])
        given = recipe["values"]
        if isinstance(given, list):
            array = np.array(given, recipe["dtype"]).reshape(recipe["shape"])
        else:
            array = values(given, recipe["seed"], recipe["shape"], recipe["dtype"])
        if self.plain:
            return (
                np.asarray(array, "f8")
                if recipe.get("as") == "list" and array.dtype.kind == "f"
                else array
            )
        memory = self.memories[name] = Memory(recipe, array)
        memory.may_change = bool(recipe.get("updated"))
        return dressed(memory.view, recipe.get("as"))

    def alias(self, name, recipe):
        """A view of another argument's memory; of itself where that is no array."""
        memory = self.memories.get(recipe["alias"])
        if memory is None:
            base = np.zeros(4)
            return np.lib.stride_tricks.as_strided(base, (3,), (0,))
        if isinstance(self.arguments.get(recipe["alias"]), list | ArrayLike):
            memory.may_change = True  # what was passed is a copy
        if recipe["how"] == "reversed":
            return memory.view[::-1] if memory.view.ndim else memory.view
        if recipe["how"] == "expanded":
            return np.lib.stride_tricks.as_strided(
                memory.view, memory.view.shape, [0] * memory.view.ndim
            )
        return memory.view

    def network(self, recipe):
        widths, biases, weights = recipe["net"], [], []
        for k, (i, j) in enumerate(itertools.pairwise(widths)):
            weights.append(
                values(recipe["values"], recipe["seed"] + 2 * k, (i, j), "f8")
                * recipe.get("scale", 1.0)
            )
            biases.append(values(recipe["values"], recipe["seed"] + 2 * k + 1, (j,), "f8"))
        return self.library.SigmoidMLP(weights, biases)
