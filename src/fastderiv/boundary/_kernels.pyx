"""Sigmoid networks, tile by tile: logits, margins, their gradients, and one row at a time for scalar callbacks.

A `Program` packs the weights once into panels of GL outputs: w[k, o] lies at ((o / GL)·n_in + k)·GL + o % GL, zero padded.
Activations of a tile are (unit, row) with the rows in lanes; the whole network runs over one tile before the next is read,
so nothing of size (m, H) exists.  Every sum starts from the bias and runs over the inputs in ascending order with vfma,
in the tile kernels and in the single-row kernels alike: one row has the same bits wherever and however it is computed.
"""
import numpy as np

from cpython.exc cimport PyErr_CheckSignals
from libc.float cimport DBL_MAX
from libc.math cimport INFINITY, exp, fabs, isfinite, log, sqrt
from libc.stdint cimport uintptr_t
from libc.string cimport memcpy, memset
cimport numpy as cnp
from fastderiv._core.fpstate cimport fp_enter, fp_leave, fp_word
from fastderiv._core.simd cimport (GL, NS, VL, ix, real, vabs, vall_lt, vcompress, vcopysign, vcount, vf, vfirst, vfma, vfma_once,
                                   vgather, vget, vload, vlt, vmax, vmin, vsel_lt, vsel_neg, vset1, vsigmoid, vsigmoid_grad,
                                   vstore, vtail, vxor)
from fastderiv._core.threads cimport Worker, interrupted, run, task_t

cnp.import_array()

cdef extern from *:
    """
    /* z[j, r] = b[j] + sum over k of w(k, j) y[k, r], k ascending: NO outputs of one panel by 2·VL rows, in registers.
     * `turned` reads the same panels as the transposed matrix; `next` is the way from eight k's to the next eight. */
    VINL void dense_block(const real *w, ptrdiff_t next, const real *b, const real *y, real *z, ptrdiff_t ts,
                          ptrdiff_t n, const int NO, const int turned)
    {
        vf acc[8][2];
        int j, k;
        UNROLLED
        for (j = 0; j < NO; j++) acc[j][0] = acc[j][1] = vset1(b[j]);
        for (; n > 0; n -= GL, w += next) {
            const int c = n < GL ? (int)n : GL;
            for (k = 0; k < c; k++, y += ts) {
                const vf y0 = vload(y), y1 = vload(y + VL);
                UNROLLED
                for (j = 0; j < NO; j++) {
                    const vf a = vset1(turned ? w[j * GL + k] : w[k * GL + j]);
                    acc[j][0] = vfma(a, y0, acc[j][0]);
                    acc[j][1] = vfma(a, y1, acc[j][1]);
                }
            }
        }
        UNROLLED
        for (j = 0; j < NO; j++) { vstore(z + j * ts, acc[j][0]); vstore(z + j * ts + VL, acc[j][1]); }
    }

    /* One row, outputs in lanes: NP panels at once.  The same sums in the same order as above. */
    VINL void units_block(const real *w, ptrdiff_t panel, const real *b, const real *y, real *z, ptrdiff_t n, const int NP)
    {
        vf acc[8];
        ptrdiff_t k;
        int i;
        UNROLLED
        for (i = 0; i < NP * NS; i++) acc[i] = vload(b + i * VL);
        for (k = 0; k < n; k++) {
            const vf a = vset1(y[k]);
            UNROLLED
            for (i = 0; i < NP * NS; i++) acc[i] = vfma(a, vload(w + i / NS * panel + k * GL + i % NS * VL), acc[i]);
        }
        UNROLLED
        for (i = 0; i < NP * NS; i++) vstore(z + i * VL, acc[i]);
    }
    enum { AT_ONCE = VL == 8 ? 8 : 4,               /* outputs of a block: what 32 or 16 registers hold beside two rows */
           PANELS = NS < 8 ? 8 / NS : 1 };          /* panels of a row at once: eight accumulators hide the latency */
    """
    enum: AT_ONCE, PANELS
    void dense_block(const real *w, ix next, const real *b, const real *y, real *z, ix ts, ix n, int NO,
                     bint turned) noexcept nogil
    void units_block(const real *w, ix panel, const real *b, const real *y, real *z, ix n, int NP) noexcept nogil

cdef enum:
    STEP = 16                           # rows of a tile come in steps of two vectors of the widest level
    MAX_ROWS = 128
    TILE_BYTES = 32768                  # of one layer's activations: they stay in the first-level cache
    QUICK = 1 << 24                     # multiply–adds of a tile, a few milliseconds, that needs no look for signals
    ROW_QUICK = 1 << 21                 # of a single row, which reads every weight for one: a millisecond

cdef struct Layer:
    const real *w                       # panels, (⌈n_out / GL⌉, n_in, GL)
    const real *b                       # (n_out,), zero padded to GL
    ix n_in, n_out

cdef struct Net:
    Layer *layers
    ix depth                            # weight matrices; the first depth − 1 are followed by σ
    ix widest                           # over all layers, the inputs included, rounded up to GL
    ix slopes                           # over all hidden layers, each rounded up to GL
    const real *zeros                   # (widest,)
    double macs, sigmoids               # per row
    ix outputs                          # of the last layer

cdef struct Batch:                      # IN X (…, n_in); OUT out (m, n_out), or the gradient (m, n_in)
    const Net *net
    const real *X
    ix m, x_row, x_col                  # strides in elements
    const ix *pick                      # row of X for each of the m, or NULL
    const real *t                       # (m,) replaces input `coordinate`, or NULL
    ix coordinate
    real *out
    ix rows, task_rows                  # of a tile, of a task
    bint squash                         # σ on the outputs too
    bint gradient                       # out is the gradient of the only output


cdef inline ix padded(ix n) noexcept nogil:
    return (n + GL - 1) // GL * GL


# ---- tiles: rows in lanes -----------------------------------------------------------------------------------------

cdef inline void panel_times(const real *w, ix next, const real *b, const real *y, real *z, ix ts, ix n, ix outputs,
                             const bint turned) noexcept nogil:
    """z (outputs ≤ GL, ts) of one panel; rows beyond `outputs` of z may be overwritten up to GL."""
    cdef ix r = 0, j
    while r < ts:
        if outputs == 1:
            dense_block(w, next, b, y + r, z + r, ts, n, 1, turned)
        elif AT_ONCE == 8 and outputs > 4:
            dense_block(w, next, b, y + r, z + r, ts, n, 8, turned)
        else:
            dense_block(w, next, b, y + r, z + r, ts, n, 4, turned)
            if outputs > 4:
                j = 4 * GL if turned else 4
                dense_block(w + j, next, b + 4, y + r, z + 4 * ts + r, ts, n, 4, turned)
        r += 2 * VL


cdef bint dense(const Layer *l, const real *y, real *z, ix ts, Worker *watch) noexcept nogil:
    """IN y (n_in, ts); OUT z (n_out, ts) = b + Wᵀ y.  True if `watch`, unless it is NULL, was interrupted on the way."""
    cdef ix o = 0
    while o < l.n_out:
        if watch is not NULL and interrupted(watch):
            return True
        panel_times(l.w + o * l.n_in, GL * GL, l.b + o, y, z + o * ts, ts, l.n_in, min(<ix>GL, l.n_out - o), False)
        o += GL
    return False


cdef bint dense_vjp(const Layer *l, const real *zeros, const real *dz, real *dy, ix ts, Worker *watch) noexcept nogil:
    """IN dz (n_out, ts); OUT dy (n_in, ts) = W dz, outputs ascending.  `watch` as in `dense`."""
    cdef ix i = 0
    while i < l.n_in:
        if watch is not NULL and interrupted(watch):
            return True
        panel_times(l.w + i * GL, l.n_in * GL, zeros, dz, dy + i * ts, ts, l.n_out, min(<ix>GL, l.n_in - i), True)
        i += GL
    return False


cdef inline void logistic(real *y, ix size) noexcept nogil:
    """y = σ(y)."""
    cdef ix i
    for i in range(size // VL):
        vstore(y + i * VL, vsigmoid(vload(y + i * VL)))


cdef inline void logistic_and_slope(real *y, real *slope, ix size) noexcept nogil:
    """slope = σ'(y) = e/(1 + e)², e = exp(−|y|); y = σ(y)."""
    cdef ix i
    cdef vf x
    for i in range(size // VL):
        x = vload(y + i * VL)
        vstore(y + i * VL, vsigmoid(x))
        vstore(slope + i * VL, vsigmoid_grad(x))


cdef inline void times(real *y, const real *slope, ix size) noexcept nogil:
    cdef ix i
    for i in range(size // VL):
        vstore(y + i * VL, vload(y + i * VL) * vload(slope + i * VL))


cdef inline void gather(const real *x, ix x_step, real *y, ix y_step, ix n) noexcept nogil:
    cdef ix i
    for i in range(n):
        y[i * y_step] = x[i * x_step]


cdef void load_rows(const Batch *a, ix first, ix rows, real *y, ix ts) noexcept nogil:
    """OUT y (n_in, ts): the inputs of `rows` rows from `first`; the rest of the tile is zero."""
    cdef ix n_in = a.net.layers[0].n_in, r, k
    cdef const real *x
    if rows < ts:
        memset(y, 0, n_in * ts * sizeof(real))
    for k in range(n_in):
        x = a.X + k * a.x_col
        if a.pick is NULL:
            gather(x + first * a.x_row, a.x_row, y + k * ts, 1, rows)
        else:
            for r in range(rows):
                y[k * ts + r] = x[a.pick[first + r] * a.x_row]
    if a.t is not NULL:
        memcpy(y + a.coordinate * ts, a.t + first, rows * sizeof(real))


cdef void store_rows(const real *z, ix ts, real *out, ix rows, ix n) noexcept nogil:
    """OUT out (rows, n) from z (n, ts)."""
    cdef ix k
    for k in range(n):
        gather(z + k * ts, 1, out + k, n, rows)


cdef void forward_tile(const Batch *a, ix first, ix rows, real *y, Worker *watch) noexcept nogil:
    """1. read the rows  2. layer by layer  3. write the logits, or σ of them."""
    cdef const Net *net = a.net
    cdef const Layer *l
    cdef ix ts = (rows + STEP - 1) // STEP * STEP, i
    cdef real *z = y + net.widest * ts + GL                         # an odd number of cache lines apart
    load_rows(a, first, rows, y, ts)
    for i in range(net.depth):
        l = &net.layers[i]
        if dense(l, y, z, ts, watch):
            return
        if i < net.depth - 1 or a.squash:
            logistic(z, l.n_out * ts)
        y, z = z, y
    store_rows(y, ts, a.out + first * net.layers[net.depth - 1].n_out, rows, net.layers[net.depth - 1].n_out)


cdef void gradient_tile(const Batch *a, ix first, ix rows, real *y, Worker *watch) noexcept nogil:
    """The gradient of the only output.  1. read  2. forward, keeping σ'  3. back, last layer first  4. write."""
    cdef const Net *net = a.net
    cdef const Layer *l
    cdef ix ts = (rows + STEP - 1) // STEP * STEP, n_in = net.layers[0].n_in, i
    cdef real *z = y + net.widest * ts + GL
    cdef real *slope = z + net.widest * ts + GL
    load_rows(a, first, rows, y, ts)
    for i in range(net.depth - 1):
        l = &net.layers[i]
        if dense(l, y, z, ts, watch):
            return
        logistic_and_slope(z, slope, l.n_out * ts)
        slope += padded(l.n_out) * ts
        y, z = z, y
    for i in range(ts):
        y[i] = 1
    for i in range(net.depth - 1, -1, -1):
        l = &net.layers[i]
        if dense_vjp(l, net.zeros, y, z, ts, watch):
            return
        if i > 0:
            slope -= padded(l.n_in) * ts
            times(z, slope, l.n_in * ts)
        y, z = z, y
    store_rows(y, ts, a.out + first * n_in, rows, n_in)


cdef void rows_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Batch *a = <Batch *>args
    cdef ix first = i * a.task_rows, end = min(a.m, (i + 1) * a.task_rows)
    cdef Worker *watch = worker if a.net.macs * a.rows > QUICK else NULL
    while first < end:
        if a.gradient:
            gradient_tile(a, first, min(a.rows, end - first), <real *>worker.scratch, watch)
        else:
            forward_tile(a, first, min(a.rows, end - first), <real *>worker.scratch, watch)
        first += a.rows


# ---- one row: units in lanes --------------------------------------------------------------------------------------

cdef void units(const real *w, ix panel, const real *b, const real *y, real *z, ix n, ix n_out,
                Worker *watch) noexcept nogil:
    """IN y (n,); OUT z (n_out, padded to GL) = b + Wᵀ y.  `panel`: the way from one panel to the next.

    What is left is not computed if `watch`, unless it is NULL, was interrupted.
    """
    cdef ix left = padded(n_out) // GL
    while left >= PANELS:
        if watch is not NULL and interrupted(watch):
            return
        units_block(w, panel, b, y, z, n, PANELS)
        w, b, z, left = w + PANELS * panel, b + PANELS * GL, z + PANELS * GL, left - PANELS
    while left > 0:
        units_block(w, panel, b, y, z, n, 1)
        w, b, z, left = w + panel, b + GL, z + GL, left - 1


cdef struct Row:                        # a network along one input, the others fixed
    const Net *net
    ix coordinate
    real *x                             # (n_in,)
    real *prefix                        # (first layer's n_out,): bias and the inputs before `coordinate`
    real *y                             # (widest,) twice, for values
    real *z
    real *dy                            # and for tangents
    real *dz


cdef struct LineCall:                   # what a `Line` is asked
    const Row *row
    const real *x                       # `prepare`: the row of X
    real t, out                         # the others: OUT the value or the slope at t


cdef inline void first_layer(const Row *a, real t, real *z, Worker *watch) noexcept nogil:
    """z = the first layer's sums, resumed at `coordinate`: the other order would change the bits."""
    cdef const Layer *l = &a.net.layers[0]
    cdef ix c = a.coordinate
    a.x[c] = t
    units(l.w + c * GL, l.n_in * GL, a.prefix, a.x + c, z, l.n_in - c, l.n_out, watch)


cdef void prepare_task(void *args, ix i, Worker *watch) noexcept nogil:
    """OUT the row's inputs and, of the first layer's sums, the part before `coordinate`."""
    cdef const LineCall *call = <const LineCall *>args
    cdef const Row *a = call.row
    cdef const Layer *l = &a.net.layers[0]
    memcpy(a.x, call.x, l.n_in * sizeof(real))
    units(l.w, l.n_in * GL, l.b, a.x, a.prefix, a.coordinate, l.n_out, watch)


cdef void value_task(void *args, ix i, Worker *watch) noexcept nogil:
    """OUT the only output at input `coordinate` = t."""
    cdef LineCall *call = <LineCall *>args
    cdef const Row *a = call.row
    cdef const Layer *l
    cdef real *y = a.y
    cdef real *z = a.z
    cdef ix k
    first_layer(a, call.t, y, watch)
    for k in range(1, a.net.depth):
        l = &a.net.layers[k]
        logistic(y, padded(l.n_in))
        units(l.w, l.n_in * GL, l.b, y, z, l.n_in, l.n_out, watch)
        y, z = z, y
    call.out = y[0]


cdef void slope_task(void *args, ix i, Worker *watch) noexcept nogil:
    """OUT its derivative with respect to t: the tangent runs along with the value."""
    cdef LineCall *call = <LineCall *>args
    cdef const Row *a = call.row
    cdef const Layer *l = &a.net.layers[0]
    cdef real *y = a.y
    cdef real *z = a.z
    cdef real *dy = a.dy
    cdef real *dz = a.dz
    cdef real one = 1
    cdef ix k
    first_layer(a, call.t, y, watch)
    units(l.w + a.coordinate * GL, l.n_in * GL, a.net.zeros, &one, dy, 1, l.n_out, watch)
    for k in range(1, a.net.depth):
        l = &a.net.layers[k]
        logistic_and_slope(y, z, padded(l.n_in))
        times(dy, z, padded(l.n_in))
        units(l.w, l.n_in * GL, l.b, y, z, l.n_in, l.n_out, watch)
        units(l.w, l.n_in * GL, a.net.zeros, dy, dz, l.n_in, l.n_out, watch)
        y, z, dy, dz = z, y, dz, dy
    call.out = dy[0]


# ---- as Python sees it --------------------------------------------------------------------------------------------

cdef real *aligned(cnp.ndarray store) noexcept:
    """The first cache line that begins in `store`."""
    return <real *>((<uintptr_t>cnp.PyArray_DATA(store) + 63) & ~<uintptr_t>63)


cdef cnp.ndarray reals(double n):
    """n zeros and what `aligned` may skip; sizes are doubles, as in `run`."""
    if not (n + 8) * sizeof(real) < 2.0**48:
        raise MemoryError(f"no memory for {(n + 8) * sizeof(real):.0f} bytes of a network")
    return np.zeros(<ix>n + 8, np.float64)


cdef int expect_reals(str name, cnp.ndarray a, int ndim, bint contiguous) except -1:
    """The kernels take pointers: native, aligned float64 of `ndim` axes, or an error."""
    if a is None:
        raise TypeError(f"{name} is None; expected an array")
    if cnp.PyArray_TYPE(a) != cnp.NPY_DOUBLE or not cnp.PyArray_ISBEHAVED_RO(a):
        raise TypeError(f"{name} has dtype {a.dtype}; expected native, aligned float64")
    if cnp.PyArray_NDIM(a) != ndim:
        raise ValueError(f"{name} has {cnp.PyArray_NDIM(a)} axes; expected {ndim}")
    if contiguous and not cnp.PyArray_IS_C_CONTIGUOUS(a):
        raise ValueError(f"{name} is not C-contiguous")
    return 0


cdef int expect_length(str name, ix given, ix wanted) except -1:
    if given != wanted:
        raise ValueError(f"{name} is {given}; expected {wanted}")
    return 0


cdef int run_once(const Net *net, task_t task, void *args) except -1:
    """task(args, 0, …) in the default floating-point state, with looks for signals if the network is large.

    The pointer is volatile: the compiler cannot inline the task, and then move its arithmetic to where
    the state is the caller's.
    """
    cdef volatile task_t opaque = task
    cdef fp_word state
    if net.macs > ROW_QUICK:
        return run(task, args, 1, 0, 0)
    state = fp_enter()
    opaque(args, 0, NULL)
    fp_leave(state)
    return 0


cdef class Program:
    """A network packed for the kernels: weights[k] (n_in, n_out) and biases[k] (n_out,), C-contiguous float64."""
    cdef cnp.ndarray store, table
    cdef Net net

    def __cinit__(self, tuple weights not None, tuple biases not None):
        cdef ix i, depth = len(weights)
        cdef double size = 0
        cdef real *at
        if depth < 1 or len(biases) != depth:
            raise ValueError(f"there are {depth} weights and {len(biases)} biases; expected as many")
        self.net.depth = depth
        self.table = np.zeros(depth * sizeof(Layer), np.uint8)
        self.net.layers = <Layer *>cnp.PyArray_DATA(self.table)
        for i in range(depth):
            self.describe(i, weights[i], biases[i])
            size += <double>padded(self.net.layers[i].n_out) * (<double>self.net.layers[i].n_in + 1)
        # the transposed kernel reads up to a panel beyond the last one, into rows nobody looks at
        self.store = reals(size + self.net.widest + GL * GL)
        at = aligned(self.store)
        for i in range(depth):
            at = self.pack(i, weights[i], biases[i], at)
        self.net.zeros = at

    cdef int describe(self, ix i, cnp.ndarray weights, cnp.ndarray biases) except -1:
        cdef Net *net = &self.net
        cdef Layer *l = &net.layers[i]
        expect_reals(f"weights[{i}]", weights, 2, True)
        expect_reals(f"biases[{i}]", biases, 1, True)
        l.n_in, l.n_out = weights.shape[0], weights.shape[1]
        expect_length(f"the size of biases[{i}]", biases.shape[0], l.n_out)
        if i > 0:
            expect_length(f"weights[{i}].shape[0]", l.n_in, net.outputs)
        if max(l.n_in, l.n_out) >= <ix>1 << 58:
            raise MemoryError(f"no memory for {8. * max(l.n_in, l.n_out):.0f} bytes of a layer")
        net.outputs = l.n_out
        net.widest = max(net.widest, max(padded(l.n_in), padded(l.n_out)))
        net.macs += <double>l.n_in * l.n_out
        if i > 0:
            net.slopes += padded(l.n_in)
            net.sigmoids += l.n_in
        return 0

    cdef real *pack(self, ix i, cnp.ndarray weights, cnp.ndarray biases, real *at) except NULL:
        cdef Layer *l = &self.net.layers[i]
        cdef const real *w = <const real *>cnp.PyArray_DATA(weights)
        cdef ix first, k, o
        l.w = at
        for first in range(0, l.n_out, GL):
            PyErr_CheckSignals()
            for k in range(l.n_in):
                for o in range(min(<ix>GL, l.n_out - first)):
                    at[o] = w[k * l.n_out + first + o]
                at += GL
        l.b = at
        memcpy(at, cnp.PyArray_DATA(biases), l.n_out * sizeof(real))
        return at + padded(l.n_out)

    cdef int over(self, Batch *a) except -1:
        """Cut m rows into tiles and tasks, and run them."""
        cdef const Net *net = a.net
        cdef double row = 2e-10 * net.macs / VL + 5e-9 * (net.sigmoids + 1) / VL + 1e-9 * net.layers[0].n_in
        cdef double per_row = (2. * net.widest + (net.slopes if a.gradient else 0)) * sizeof(real)
        cdef ix fits = TILE_BYTES // (max(<ix>1, net.widest) * <ix>sizeof(real))
        a.rows = max(<ix>STEP, min(<ix>MAX_ROWS, fits // STEP * STEP))
        a.task_rows = a.rows * max(<ix>1, <ix>(50e-6 / (a.rows * row)))
        if a.m == 0 or (net.layers[0].n_in if a.gradient else net.outputs) == 0:
            return 0                    # no output: 2**60 rows of none would take ages
        return run(rows_task, a, (a.m - 1) // a.task_rows + 1, a.rows * per_row + 64 * sizeof(real),
                   a.m * row * (2 if a.gradient else 1))

    def evaluate(self, cnp.ndarray X not None, cnp.ndarray out not None, bint squash):
        """OUT out (m, n_out), or any shape of that size: the outputs for X (m, n_in), float64 of any strides."""
        cdef Batch a
        fill(&a, &self.net, X, out)
        give(&a, out, self.net.outputs)
        a.squash = squash
        self.over(&a)

    def gradient(self, cnp.ndarray X not None, cnp.ndarray out not None):
        """OUT out (m, n_in): the gradient of the only output."""
        cdef Batch a
        expect_length("the number of outputs", self.net.outputs, 1)
        fill(&a, &self.net, X, out)
        give(&a, out, self.net.layers[0].n_in)
        a.gradient = True
        self.over(&a)

    def along(self, cnp.ndarray X not None, cnp.ndarray pick not None, cnp.ndarray t not None,
              ix coordinate, cnp.ndarray out not None):
        """OUT out (k, n_out) or (k,): the outputs at the rows pick (k,) of X, their input `coordinate` replaced by t (k,)."""
        cdef Batch a
        cdef cnp.ndarray own            # of the call, which nobody else can change amid it
        fill(&a, &self.net, X, out)
        expect_reals("t", t, cnp.PyArray_NDIM(t), True)
        a.coordinate = expect_index("coordinate", coordinate, self.net.layers[0].n_in)
        own = numbers("pick", pick, cnp.PyArray_SIZE(t), a.m)
        a.m = cnp.PyArray_SIZE(t)
        give(&a, out, self.net.outputs)
        a.pick, a.t = <const ix *>cnp.PyArray_DATA(own), <const real *>cnp.PyArray_DATA(t)
        self.over(&a)


cdef int fill(Batch *a, const Net *net, cnp.ndarray X, cnp.ndarray out) except -1:
    """The rows X (m, n_in), float64 of any strides; `out` is checked by `give`."""
    memset(a, 0, sizeof(Batch))
    expect_reals("X", X, 2, False)
    expect_length("X.shape[1]", X.shape[1], net.layers[0].n_in)
    a.net, a.X, a.out = net, <const real *>cnp.PyArray_DATA(X), <real *>cnp.PyArray_DATA(out)
    a.m = X.shape[0]
    a.x_row = cnp.PyArray_STRIDE(X, 0) // <ix>sizeof(real)
    a.x_col = cnp.PyArray_STRIDE(X, 1) // <ix>sizeof(real)
    return 0


cdef int give(Batch *a, cnp.ndarray out, ix n) except -1:
    """Check that `out` takes n numbers for each of the rows."""
    expect_reals("out", out, cnp.PyArray_NDIM(out), True)
    if not cnp.PyArray_ISWRITEABLE(out):
        raise ValueError("out is read-only")
    if <double>cnp.PyArray_SIZE(out) != <double>a.m * n:
        raise ValueError(f"out has {cnp.PyArray_SIZE(out)} numbers; expected {a.m} rows of {n}")
    return 0


cdef ix expect_index(str name, ix i, ix n) except -1:
    if not 0 <= i < n:
        raise IndexError(f"{name} is {i}; expected an index from 0 to {n - 1}")
    return i


cdef cnp.ndarray numbers(str name, cnp.ndarray given, ix size, ix end):
    """A copy of `given` (size,), contiguous intp: each is read once, and is from 0 to end − 1."""
    cdef cnp.ndarray own = np.empty(size, np.intp)
    cdef const ix *at = <const ix *>cnp.PyArray_DATA(given)
    cdef ix *to = <ix *>cnp.PyArray_DATA(own)
    cdef ix i, one
    if cnp.PyArray_TYPE(given) != cnp.NPY_INTP or not cnp.PyArray_ISCARRAY_RO(given):
        raise TypeError(f"{name} has dtype {given.dtype}; expected native, contiguous intp")
    expect_length(f"the size of {name}", cnp.PyArray_SIZE(given), size)
    for i in range(size):
        one = at[i]
        to[i] = expect_index(name, one, end)
    return own


cdef class Line:
    """The margin as a function of one input, the others fixed by `prepare`: what a scalar root finder calls."""
    cdef Program program
    cdef cnp.ndarray store
    cdef Row row

    def __cinit__(self, Program program not None, ix coordinate):
        cdef ix w = program.net.widest
        expect_length("the number of outputs", program.net.outputs, 1)
        self.program = program
        self.store = reals(6. * w)
        self.row.net = &program.net
        self.row.coordinate = expect_index("coordinate", coordinate, program.net.layers[0].n_in)
        self.row.x = aligned(self.store)
        self.row.prefix, self.row.y, self.row.z = self.row.x + w, self.row.x + 2 * w, self.row.x + 3 * w
        self.row.dy, self.row.dz = self.row.x + 4 * w, self.row.x + 5 * w

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


include "_crossings.pxi"
include "_isolate.pxi"
include "_deep.pxi"
include "_trace.pxi"
