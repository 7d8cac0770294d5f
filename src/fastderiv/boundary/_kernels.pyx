"""Sigmoid networks and where their outputs tie: the doors to the kernels of this room.

What Python calls is below; _kernels.pyi declares it, with shapes.  The arithmetic is in the files
that are included here, each of which sees what stands above it:

    a network      _net (structs)  _tiles (many rows)  _line (one row)  _door (checks, packing)
    enclosures     _enclosures (as they are found, and in order)
    one layer      _isolate_terms … _isolate_task: all ties along one input, split, judged, refined
    any depth      _deep_enclose (layer by layer)  _deep_roots  _deep_search  _deep_task
    a plane        _boxes (ranges of the margin and its gradient)

A `Program` packs the weights once into panels of GL outputs (panels.h).  Every sum starts from the
bias and runs over the inputs in ascending order with vfma: a row has the same bits wherever and
however it is computed.  What rounding can do to a certificate is in docs/rounding.md.
"""
import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, exp, fabs, fma, isfinite, log, sqrt
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memcpy, memset
cimport numpy as cnp
from fastderiv._core.fpstate cimport fp_enter, fp_leave, fp_word
from fastderiv._core.ints cimport ceil_div, round_up
from fastderiv._core.simd cimport (
    GL, NS, VL, ix, real, vabs, vall_lt, vcompress, vcopysign, vcount, vf, vfirst, vfma, vfma_once,
    vgather, vget, vload, vlt, vmax, vmin, vsel_lt, vsel_neg, vset1, vsigmoid, vsigmoid_grad,
    vstore, vtail, vxor,
)
from fastderiv._core.threads cimport Worker, interrupted, run, task_t

cnp.import_array()

include "_net.pxi"
include "_tiles.pxi"
include "_line.pxi"
include "_door.pxi"
include "_enclosures.pxi"
include "_isolate_terms.pxi"
include "_isolate_verdicts.pxi"
include "_isolate_newton.pxi"
include "_isolate_polynomial.pxi"
include "_isolate_search.pxi"
include "_isolate_clusters.pxi"
include "_isolate_task.pxi"
include "_deep_enclose.pxi"
include "_deep_roots.pxi"
include "_deep_search.pxi"
include "_deep_task.pxi"
include "_boxes.pxi"


# ---- networks ------------------------------------------------------------------------------------

cdef class Program:
    """A network packed for the kernels: weights[k] (n_in, n_out), biases[k] (n_out,), float64."""
    cdef cnp.ndarray store, table
    cdef Net net

    def __cinit__(self, tuple weights not None, tuple biases not None):
        cdef ix i, depth = len(weights)
        cdef Net *net = &self.net
        cdef double size = 0
        cdef real *at
        if depth < 1 or len(biases) != depth:
            counts = f"{depth} weights and {len(biases)} biases"
            raise ValueError(f"there are {counts}; expected as many")
        net.depth = depth
        self.table = np.zeros(depth * sizeof(Layer), np.uint8)
        net.layers = <Layer *>cnp.PyArray_DATA(self.table)
        for i in range(depth):
            describe_layer(i, weights[i], biases[i], net)
            size += <double>padded(net.layers[i].n_out) * (<double>net.layers[i].n_in + 1)
        # the transposed kernel reads up to a panel beyond the last one, into rows nobody looks at
        self.store = reals(size + net.widest + GL * GL)
        at = aligned(self.store)
        for i in range(depth):
            at = pack_layer(weights[i], biases[i], &net.layers[i], at)
        net.zeros = at

    def evaluate(self, cnp.ndarray X not None, cnp.ndarray out not None, bint squash):
        """OUT out (m, n_out), or of that size: the outputs at X (m, n_in) of any strides."""
        cdef Batch call
        take_rows(&self.net, X, &call)
        take_out(out, self.net.outputs, &call)
        call.squash = squash
        run_tiles(&call)

    def gradient(self, cnp.ndarray X not None, cnp.ndarray out not None):
        """OUT out (m, n_in): the gradient of the only output."""
        cdef Batch call
        expect_length("the number of outputs", self.net.outputs, 1)
        take_rows(&self.net, X, &call)
        take_out(out, self.net.layers[0].n_in, &call)
        call.gradient = True
        run_tiles(&call)

    def along(self, cnp.ndarray X not None, cnp.ndarray pick not None, cnp.ndarray t not None,
              ix coordinate, cnp.ndarray out not None):
        """OUT out (k, n_out) or (k,): the outputs at rows pick of X, their `coordinate` being t."""
        cdef Batch call
        cdef cnp.ndarray own            # a copy that nobody else can change during the call
        take_rows(&self.net, X, &call)
        expect_reals("t", t, cnp.PyArray_NDIM(t), True)
        call.coordinate = expect_index("coordinate", coordinate, self.net.layers[0].n_in)
        own = own_indices("pick", pick, cnp.PyArray_SIZE(t), call.m)
        call.m = cnp.PyArray_SIZE(t)
        take_out(out, self.net.outputs, &call)
        call.pick = <const ix *>cnp.PyArray_DATA(own)
        call.t = <const real *>cnp.PyArray_DATA(t)
        run_tiles(&call)


cdef class Line:
    """The only output along one input, the others fixed by `prepare`."""
    cdef Program program
    cdef cnp.ndarray store
    cdef Row row

    def __cinit__(self, Program program not None, ix coordinate):
        cdef ix w = program.net.widest
        cdef Row *row = &self.row
        expect_length("the number of outputs", program.net.outputs, 1)
        self.program = program
        self.store = reals(6. * w)
        row.net = &program.net
        row.coordinate = expect_index("coordinate", coordinate, program.net.layers[0].n_in)
        row.x = aligned(self.store)
        row.prefix, row.y, row.z = row.x + w, row.x + 2 * w, row.x + 3 * w
        row.dy, row.dz = row.x + 4 * w, row.x + 5 * w

    def prepare(self, cnp.ndarray X not None, ix row):
        """Fix the other inputs to those of one row of X (m, n_in), C-contiguous float64."""
        cdef ix n = self.row.net.layers[0].n_in
        cdef LineCall call
        expect_reals("X", X, 2, True)
        expect_length("X.shape[1]", X.shape[1], n)
        call.row = &self.row
        call.x = <const real *>cnp.PyArray_DATA(X) + expect_index("row", row, X.shape[0]) * n
        run_once(self.row.net, prepare_task, &call)

    def __call__(self, double t):
        cdef LineCall call
        call.row, call.t = &self.row, t
        run_once(self.row.net, value_task, &call)
        return call.out

    def derivative(self, double t):
        cdef LineCall call
        call.row, call.t = &self.row, t
        run_once(self.row.net, slope_task, &call)
        return call.out


# ---- all ties along one input --------------------------------------------------------------------

cdef class Listing:
    """The enclosures of all rows of a call, row after row, in arrays that grow."""
    cdef ix rows, n, cap                # rows that are listed, enclosures, and room for these
    cdef cnp.ndarray count, lower, upper, x, unique

    def __cinit__(self, ix rows):
        self.cap = rows + 64
        self.count = np.zeros(rows + 1, np.intp)        # row i has count[i + 1]
        self.lower, self.upper, self.x = (np.empty(self.cap) for _ in range(3))
        self.unique = np.empty(self.cap, np.bool_)

    cdef int resize(self, ix cap) except -1:
        for array in (self.lower, self.upper, self.x, self.unique):
            try:
                array.resize(cap, refcheck=False)
            except MemoryError:
                raise MemoryError(f"no memory for {25 * cap} bytes of enclosures") from None
        self.cap = cap
        return 0

    cdef int add(self, const Found *found, ix first, ix n) except -1:
        """Add `n` enclosures from `first` on."""
        if self.n + n > self.cap:
            self.resize(self.n + n + self.cap // 2)
        memcpy(<real *>cnp.PyArray_DATA(self.lower) + self.n, found.lower + first, n * sizeof(real))
        memcpy(<real *>cnp.PyArray_DATA(self.upper) + self.n, found.upper + first, n * sizeof(real))
        memcpy(<real *>cnp.PyArray_DATA(self.x) + self.n, found.x + first, n * sizeof(real))
        memcpy(<char *>cnp.PyArray_DATA(self.unique) + self.n, found.unique + first, n)
        self.n += n
        return 0

    def arrays(self):
        """indptr (m + 1,), x, lower, upper, unique (k,).  Nothing can be listed any more."""
        cdef ix *count = <ix *>cnp.PyArray_DATA(self.count)
        cdef ix i, n = self.n
        for i in range(self.rows):
            count[i + 1] += count[i]
        if self.cap <= SMALL:           # copies cost less than shrinking the arrays
            return (self.count, self.x[:n].copy(), self.lower[:n].copy(), self.upper[:n].copy(),
                    self.unique[:n].copy())
        self.resize(n)
        return self.count, self.x, self.lower, self.upper, self.unique


cdef class Buffers:
    """Memory for up to so many rows in tasks of `task_rows`, with `cap` enclosures for each."""
    cdef Found found
    cdef ix tasks, rows, task_rows
    cdef cnp.ndarray needed, lower, upper, x, unique

    def __cinit__(self, ix rows, ix task_rows, ix cap):
        cdef ix tasks = ceil_div(rows, task_rows)
        cdef Found *found = &self.found
        self.task_rows = task_rows
        self.needed = np.empty(tasks, np.intp)
        self.lower, self.upper, self.x = (np.empty(tasks * cap) for _ in range(3))
        self.unique = np.empty(tasks * cap, np.bool_)
        found.cap = cap
        found.needed = <ix *>cnp.PyArray_DATA(self.needed)
        found.lower = <real *>cnp.PyArray_DATA(self.lower)
        found.upper = <real *>cnp.PyArray_DATA(self.upper)
        found.x = <real *>cnp.PyArray_DATA(self.x)
        found.unique = <char *>cnp.PyArray_DATA(self.unique)

    cdef void reset(self, ix rows, Listing listing) noexcept:
        self.rows, self.tasks = rows, ceil_div(rows, self.task_rows)
        self.found.count = <ix *>cnp.PyArray_DATA(listing.count) + listing.rows + 1

    cdef ix most(self) noexcept:
        """The most enclosures that a task found."""
        cdef ix i, most = 0
        for i in range(self.tasks):
            most = max(most, self.found.needed[i])
        return most

    cdef int append(self, Listing listing) except -1:
        """List what the tasks found, one behind the other."""
        cdef ix i, n, row
        for i in range(self.tasks):
            n = 0
            for row in range(i * self.task_rows, min(self.rows, (i + 1) * self.task_rows)):
                n += self.found.count[row]
            listing.add(&self.found, i * self.found.cap, n)
        listing.rows += self.rows
        return 0


cdef class Solver:
    """All ties along one input: what `Isolator` and `DeepNet` have in common."""

    cdef ix task_rows(self) noexcept:
        return 1

    cdef int search(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers out) except -1:
        """OUT the enclosures of the rows X (m, n_in − 1)."""
        raise NotImplementedError

    def buffers(self, ix rows, ix cap=0):
        """Memory for so many rows; without `cap`, for eight enclosures a row on average."""
        return Buffers(rows, self.task_rows(), cap or 8 * self.task_rows())

    def solve(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers buffers,
              Listing listing):
        """List the enclosures of the rows X (m, n_in − 1), float64 of any strides."""
        cdef ix half
        buffers.reset(X.shape[0], listing)
        self.search(X, lo, hi, xtol, buffers)
        if buffers.most() <= buffers.found.cap:
            buffers.append(listing)
        elif buffers.tasks == 1:        # its part of the buffers was too small
            self.solve(X, lo, hi, xtol, self.buffers(buffers.rows, buffers.most()), listing)
        else:
            half = buffers.tasks // 2 * buffers.task_rows
            self.solve(X[:half], lo, hi, xtol, buffers, listing)
            self.solve(X[half:], lo, hi, xtol, buffers, listing)


cdef class Isolator(Solver):
    """The ties along one input of a network with one hidden layer, f = c + Σ d_i σ(a_i t + s_i)."""
    cdef Sigmoids f
    cdef Program net, sizes
    cdef cnp.ndarray store

    def __cinit__(self, cnp.ndarray a, cnp.ndarray d, double c, double error, bint one_root_at_most,
                  tuple limits, Program offsets, Program magnitudes):
        cdef Sigmoids *f = &self.f
        cdef ix n = a.shape[0], i
        cdef real *at
        self.net, self.sizes, self.store = offsets, magnitudes, reals(3 * n)
        at = aligned(self.store)
        f.units, f.a, f.d, f.g = n, at, at + n, at + 2 * n
        f.c, f.one_root_at_most = c, one_root_at_most
        memcpy(at, cnp.PyArray_DATA(a), n * sizeof(real))
        memcpy(at + n, cnp.PyArray_DATA(d), n * sizeof(real))
        for i in range(n):
            at[2 * n + i] = at[i] * at[n + i]
        for i in range(2):
            f.limit[i] = limits[i]
        set_bounds(error, f)

    cdef ix task_rows(self) noexcept:
        return MAX_ROWS if self.f.units <= 16 else 2 * STEP if self.f.units <= 64 else STEP

    cdef int search(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers out) except -1:
        cdef Isolate call
        cdef Task task
        cdef ix n = self.f.units
        cdef double row = 3.2e-8 * (n + 2) * (n + 8) ** 0.5 / VL
        take_rows(&self.net.net, X, &call.other)
        call.f, call.magnitudes = &self.f, &self.sizes.net.layers[0]
        call.lo, call.hi, call.xtol = lo, hi, xtol
        call.task_rows, call.found = out.task_rows, out.found
        call.breaks = n if n <= 4 else 4 if n <= 16 else 7
        call.todo_cap = (call.breaks + 1) * call.task_rows + DEPTH + 4 * VL
        call.bracket_cap = call.task_rows + 2 * (MOST_BREAKS + 2) * VL
        return run(isolate_task, &call, out.tasks, lay_out(&call, NULL, &task) * sizeof(real),
                   X.shape[0] * row)


cdef class DeepNet(Solver):
    """The ties of a network of any depth along one input; the only output is the margin."""
    cdef Program program
    cdef ix coordinate

    def __cinit__(self, Program program not None, ix coordinate):
        expect_length("the number of outputs", program.net.outputs, 1)
        self.program = program
        self.coordinate = expect_index("coordinate", coordinate, program.net.layers[0].n_in)

    def enclosure(self, cnp.ndarray X not None, double l, double m, double r):
        """(mid, radius) of f and f' at m, then (lower, upper) of f, f', f'' on [l, r]."""
        cdef Deep call
        cdef OneSpan one
        cdef MarginRange *f = &one.f
        cdef cnp.ndarray store = reals(deep_scratch(&self.program.net) / sizeof(real))
        if self.program.net.depth < 2 or not l <= m <= r:
            given = f"{self.program.net.depth - 1} hidden layers, and points {l}, {m}, {r}"
            raise ValueError(f"there are {given}; expected a layer, and ascending points")
        take_other_rows(&self.program.net, self.coordinate, X, &call)
        expect_length("X.shape[0]", call.m, 1)
        one.call, one.l, one.m, one.r = &call, l, m, r
        lay_flow(call.net, aligned(store), &one.flow)
        run_once(call.net, enclose_task, &one)
        return ((f.f.mid, f.f.rad), (f.slope.mid, f.slope.rad), (f.range.lo, f.range.hi),
                (f.slopes.lo, f.slopes.hi), (f.curvatures.lo, f.curvatures.hi))

    def effort(self, cnp.ndarray X not None, double lo, double hi, double xtol):
        """How many enclosures each row takes to solve, (m,) intp; what is found is not listed."""
        cdef cnp.ndarray work = np.zeros(X.shape[0], np.intp)
        cdef Buffers buffers = self.buffers(X.shape[0])
        buffers.reset(X.shape[0], Listing(X.shape[0]))
        self.run_rows(X, lo, hi, xtol, buffers, <ix *>cnp.PyArray_DATA(work))
        return work

    cdef ix task_rows(self) noexcept:
        return max(<ix>1, min(<ix>MAX_ROWS, <ix>(5e-4 / deep_seconds(&self.program.net))))

    cdef int search(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers out) except -1:
        return self.run_rows(X, lo, hi, xtol, out, NULL)

    cdef int run_rows(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers out,
                      ix *work) except -1:
        """OUT the enclosures of the rows X and, unless it is NULL, work (m,)."""
        cdef Deep call
        take_other_rows(&self.program.net, self.coordinate, X, &call)
        if out.rows != call.m or out.tasks * out.task_rows < call.m:
            raise ValueError(f"there is room for {out.rows} rows; expected {call.m}")
        call.lo, call.hi, call.xtol = lo, hi, xtol
        call.task_rows, call.found, call.work = out.task_rows, out.found, work
        return run(deep_task, &call, out.tasks, deep_scratch(call.net),
                   call.m * deep_seconds(call.net))


# ---- a plane of two inputs -----------------------------------------------------------------------

def judge_boxes(Program program, cnp.ndarray errors, cnp.ndarray boxes, bint slopes=False):
    """(4, n): what the only output f of two inputs does on boxes (4, n): x0, x1, y0, y1, finite.

    Signed gaps between zero and the ranges of f, ∂f/∂x and ∂f/∂y, and the largest |f|; or if
    `slopes` the least and largest ∂f/∂x, and those of ∂f/∂y.  errors: float64, layer after layer
    what its units' sums may be off by, padded to GL = 8, then what their values at a point may be.
    """
    cdef Boxes call
    cdef const Net *net = &program.net
    cdef ix n = boxes.shape[1], m = padded(n)
    cdef cnp.ndarray box = np.zeros((4, m))
    cdef cnp.ndarray out = np.empty((4, m))
    cdef double seconds = (2.5e-9 * net.macs + 35e-9 * net.sigmoids + 50e-9) / VL
    box[:, :n] = boxes
    call.net, call.m, call.slopes = net, m, slopes
    call.errors = <const real *>cnp.PyArray_DATA(errors)
    call.box, call.out = <const real *>cnp.PyArray_DATA(box), <real *>cnp.PyArray_DATA(out)
    call.task_boxes = max(<ix>1, <ix>(50e-6 / (seconds * GL))) * GL
    run(boxes_task, &call, ceil_div(m, call.task_boxes),
        2 * net.widest * UNIT_SIZE * sizeof(real), m * seconds, True)
    return out[:, :n]
