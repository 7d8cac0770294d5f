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
from fastderiv._core.simd cimport (GL, NS, VL, ix, real, vabs, vall_lt, vcompress, vcopysign, vcount, vf, vfirst, vfma, vfma_once,
                                   vgather, vget, vload, vlt, vmax, vmin, vsel_lt, vsel_neg, vset1, vsigmoid, vsigmoid_grad,
                                   vstore, vtail, vxor)
from fastderiv._core.threads cimport Worker, interrupted, run

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

cdef void units(const real *w, ix panel, const real *b, const real *y, real *z, ix n, ix n_out) noexcept nogil:
    """IN y (n,); OUT z (n_out, padded to GL) = b + Wᵀ y.  `panel`: the way from one panel to the next."""
    cdef ix left = padded(n_out) // GL
    while left >= PANELS:
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


cdef inline void first_layer(const Row *a, real t, real *z) noexcept nogil:
    """z = the first layer's sums, resumed at `coordinate`: the other order would change the bits."""
    cdef const Layer *l = &a.net.layers[0]
    cdef ix c = a.coordinate
    a.x[c] = t
    units(l.w + c * GL, l.n_in * GL, a.prefix, a.x + c, z, l.n_in - c, l.n_out)


cdef real value_at(const Row *a, real t) noexcept nogil:
    """The only output at input `coordinate` = t."""
    cdef const Layer *l
    cdef real *y = a.y
    cdef real *z = a.z
    cdef ix i
    first_layer(a, t, y)
    for i in range(1, a.net.depth):
        l = &a.net.layers[i]
        logistic(y, padded(l.n_in))
        units(l.w, l.n_in * GL, l.b, y, z, l.n_in, l.n_out)
        y, z = z, y
    return y[0]


cdef real slope_at(const Row *a, real t) noexcept nogil:
    """Its derivative with respect to t: the tangent runs along with the value."""
    cdef const Layer *l = &a.net.layers[0]
    cdef real *y = a.y
    cdef real *z = a.z
    cdef real *dy = a.dy
    cdef real *dz = a.dz
    cdef real one = 1
    cdef ix i
    first_layer(a, t, y)
    units(l.w + a.coordinate * GL, l.n_in * GL, a.net.zeros, &one, dy, 1, l.n_out)
    for i in range(1, a.net.depth):
        l = &a.net.layers[i]
        logistic_and_slope(y, z, padded(l.n_in))
        times(dy, z, padded(l.n_in))
        units(l.w, l.n_in * GL, l.b, y, z, l.n_in, l.n_out)
        units(l.w, l.n_in * GL, a.net.zeros, dy, dz, l.n_in, l.n_out)
        y, z, dy, dz = z, y, dz, dy
    return dy[0]


# ---- as Python sees it --------------------------------------------------------------------------------------------

cdef real *aligned(cnp.ndarray store) noexcept:
    """The first cache line that begins in `store`."""
    return <real *>((<uintptr_t>cnp.PyArray_DATA(store) + 63) & ~<uintptr_t>63)


cdef cnp.ndarray reals(ix n):
    return np.zeros(n + 8, np.float64)


cdef class Program:
    """A network packed for the kernels: weights[k] (n_in, n_out) and biases[k] (n_out,), C-contiguous float64."""
    cdef cnp.ndarray store, table
    cdef Net net

    def __cinit__(self, tuple weights, tuple biases):
        cdef ix i, size = 0, depth = len(weights)
        cdef real *at
        self.net.depth = depth
        self.table = np.zeros(depth * sizeof(Layer), np.uint8)
        self.net.layers = <Layer *>cnp.PyArray_DATA(self.table)
        for i in range(depth):
            self.describe(i, weights[i])
            size += padded(self.net.layers[i].n_out) * (self.net.layers[i].n_in + 1)
        # the transposed kernel reads up to a panel beyond the last one, into rows nobody looks at
        self.store = reals(size + self.net.widest + GL * GL)
        at = aligned(self.store)
        for i in range(depth):
            at = self.pack(i, weights[i], biases[i], at)
        self.net.zeros = at

    cdef int describe(self, ix i, cnp.ndarray weights) except -1:
        cdef Net *net = &self.net
        cdef Layer *l = &net.layers[i]
        l.n_in, l.n_out = weights.shape[0], weights.shape[1]
        net.widest = max(net.widest, max(padded(l.n_in), padded(l.n_out)))
        net.macs += l.n_in * l.n_out
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
        cdef ix per_row = (2 * net.widest + (net.slopes if a.gradient else 0)) * sizeof(real)
        cdef ix fits = TILE_BYTES // (max(<ix>1, net.widest) * <ix>sizeof(real))
        a.rows = max(<ix>STEP, min(<ix>MAX_ROWS, fits // STEP * STEP))
        a.task_rows = a.rows * max(<ix>1, <ix>(50e-6 / (a.rows * row)))
        return run(rows_task, a, (a.m + a.task_rows - 1) // a.task_rows,
                   a.rows * per_row + 64 * sizeof(real), a.m * row * (2 if a.gradient else 1))

    def evaluate(self, cnp.ndarray X, cnp.ndarray out, bint squash):
        """OUT out (m, n_out), or any shape of that size: the outputs for X (m, n_in), float64 of any strides."""
        cdef Batch a
        fill(&a, &self.net, X, out)
        a.squash = squash
        self.over(&a)

    def gradient(self, cnp.ndarray X, cnp.ndarray out):
        """OUT out (m, n_in): the gradient of the only output."""
        cdef Batch a
        fill(&a, &self.net, X, out)
        a.gradient = True
        self.over(&a)

    def along(self, cnp.ndarray X, cnp.ndarray pick, cnp.ndarray t, ix coordinate, cnp.ndarray out):
        """OUT out (k, n_out) or (k,): the outputs at the rows pick (k,) of X, their input `coordinate` replaced by t (k,)."""
        cdef Batch a
        fill(&a, &self.net, X, out)
        a.m = cnp.PyArray_SIZE(t)
        a.pick, a.t, a.coordinate = <const ix *>cnp.PyArray_DATA(pick), <const real *>cnp.PyArray_DATA(t), coordinate
        self.over(&a)


cdef void fill(Batch *a, const Net *net, cnp.ndarray X, cnp.ndarray out) noexcept:
    memset(a, 0, sizeof(Batch))
    a.net, a.X, a.out = net, <const real *>cnp.PyArray_DATA(X), <real *>cnp.PyArray_DATA(out)
    a.m = X.shape[0]
    a.x_row = cnp.PyArray_STRIDE(X, 0) // <ix>sizeof(real)
    a.x_col = cnp.PyArray_STRIDE(X, 1) // <ix>sizeof(real)


cdef class Line:
    """The margin as a function of one input, the others fixed by `prepare`: what a scalar root finder calls."""
    cdef Program program
    cdef cnp.ndarray store
    cdef Row row

    def __cinit__(self, Program program, ix coordinate):
        cdef ix w = program.net.widest
        self.program = program
        self.store = reals(6 * w)
        self.row.net, self.row.coordinate = &program.net, coordinate
        self.row.x = aligned(self.store)
        self.row.prefix, self.row.y, self.row.z = self.row.x + w, self.row.x + 2 * w, self.row.x + 3 * w
        self.row.dy, self.row.dz = self.row.x + 4 * w, self.row.x + 5 * w

    def prepare(self, cnp.ndarray X, ix i):
        """Fix the other inputs to those of row i of X (m, n_in), C-contiguous float64."""
        cdef const Layer *l = &self.row.net.layers[0]
        memcpy(self.row.x, <const real *>cnp.PyArray_DATA(X) + i * l.n_in, l.n_in * sizeof(real))
        units(l.w, l.n_in * GL, l.b, self.row.x, self.row.prefix, self.row.coordinate, l.n_out)

    def __call__(self, double t):
        return value_at(&self.row, t)

    def derivative(self, double t):
        return slope_at(&self.row, t)


include "_crossings.pxi"
include "_isolate.pxi"
include "_deep.pxi"
include "_trace.pxi"
