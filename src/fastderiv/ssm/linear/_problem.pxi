# A call of the linear recurrence as structs: its arrays, and their axes other than time, put in an
# order in which neighbours in memory are neighbours (docs/derivations.md §6.7).  Included by
# _kernels.pyx.
#
# The recurrence runs along one axis of b, its time.  A column is one place on the other axes: a
# recurrence of its own.

cdef extern from "linear/linear.h" nogil:
    enum: CHAINS
    enum: LINEAR_STATES, LINEAR_SLOPES, LINEAR_SUMS
    ctypedef struct LinearChains:
        const real *a[CHAINS]
        const real *b[CHAINS]
        const real *dh[CHAINS]
        real *out[CHAINS]
        ix a_t, b_t, dh_t, out_t
    void linear_chains(const LinearChains *c, int count, int what, ix t0, ix n, real *h, real *sums)
    void linear_fetch(const real *p)
    ix linear_to_line(const real *p)
    const real LANE_NUMBERS[VL]
    void linear_read_run(const real *src, ix ahead, ix n, real *dst)
    void linear_write_run(const real *src, ix n, real *dst)
    void linear_write_lines(real *block, ix n, int place, real *dst, real *carry)
    enum: LINEAR_FIRST, LINEAR_LAST, LINEAR_DOWN
    void linear_collect(real *parts, ix n, double *totals)
    double linear_total(const double *x, ix n)

cdef enum:
    LINEAR_AXES = 64                    # of an array: NumPy's NPY_MAXDIMS
    LINEAR_STREAM = 32 << 20              # bytes of a result that go past the caches

# The arrays of a call, those with time first.
cdef enum:
    OF_A, OF_B, OF_OUT, OF_DOUT, OF_DB, OF_DA, TIMED
    OF_FIRST = TIMED
    OF_LAST, OF_DLAST, OF_DFIRST, OF_SUMS, LINEAR_ARRAYS

cdef struct LinearArray:
    bint given
    real *p
    ix t                                # stride of time, in elements as all; 0 if it has no time
    ix c[LINEAR_AXES]                   # strides of the columns' axes; 0 if it is not given

cdef struct Linear:
    LinearArray arrays[LINEAR_ARRAYS]
    double *sums                        # the data of arrays[OF_SUMS], whose p is never used
    ix shape[LINEAR_AXES]               # of the columns' axes, the innermost first
    int axes
    ix steps, columns
    bint constant                       # a does not vary in time
    bint stream                         # results go past the caches
    bint chained                        # columns are faster as chains than in lanes
    bint wide                           # columns are neighbours in all arrays: see _wide.pxi
    ix pieces                           # of the innermost axis: a work_item is one of them
    ix groups                           # work_items of columns that are no neighbours
    ix work_items, items_per_task


# ---- the order of axes ------------------------------------------------------------------------

cdef ix linear_axis_weight(const Linear *call, int axis) noexcept:
    """How far apart neighbours along an axis are, in all arrays with time together."""
    cdef ix weight = 0
    cdef int k
    for k in range(TIMED):
        weight += abs(call.arrays[k].c[axis])
    return weight


cdef void exchange_linear_axes(Linear *call, int i, int j) noexcept:
    cdef int k
    cdef LinearArray *x
    call.shape[i], call.shape[j] = call.shape[j], call.shape[i]
    for k in range(LINEAR_ARRAYS):
        x = &call.arrays[k]
        x.c[i], x.c[j] = x.c[j], x.c[i]


cdef void sort_linear_axes(Linear *call) noexcept:
    """The axis along which neighbours are closest becomes the first."""
    cdef int i, j
    for i in range(1, call.axes):
        j = i
        while j > 0 and linear_axis_weight(call, j) < linear_axis_weight(call, j - 1):
            exchange_linear_axes(call, j, j - 1)
            j -= 1


cdef void turn_linear_axes(Linear *call) noexcept:
    """Walk every axis in the direction in which the result ascends."""
    cdef int axis, k
    cdef int result = OF_OUT if call.arrays[OF_OUT].given else OF_DB
    cdef LinearArray *x
    for axis in range(call.axes):
        if call.arrays[result].c[axis] < 0:
            call.sums += (call.shape[axis] - 1) * call.arrays[OF_SUMS].c[axis]
            for k in range(LINEAR_ARRAYS):
                x = &call.arrays[k]
                x.p += (call.shape[axis] - 1) * x.c[axis]
                x.c[axis] = -x.c[axis]


cdef bint linear_axes_join(const Linear *call, int inner, int outer) noexcept:
    """Whether two axes are one in every array."""
    cdef int k
    for k in range(LINEAR_ARRAYS):
        if call.arrays[k].c[outer] != call.arrays[k].c[inner] * call.shape[inner]:
            return False
    return True


cdef void join_linear_axes(Linear *call) noexcept:
    """Axes that are one in every array become one."""
    cdef int axis, k, last = 0
    for axis in range(1, call.axes):
        if linear_axes_join(call, last, axis):
            call.shape[last] *= call.shape[axis]
            continue
        last += 1
        call.shape[last] = call.shape[axis]
        for k in range(LINEAR_ARRAYS):
            call.arrays[k].c[last] = call.arrays[k].c[axis]
    call.axes = min(call.axes, last + 1)


cdef void drop_linear_axes(Linear *call) noexcept:
    """Axes of one column say nothing."""
    cdef int axis, kept = 0
    for axis in range(call.axes):
        if call.shape[axis] != 1:
            exchange_linear_axes(call, axis, kept)
            kept += 1
    call.axes = kept


cdef void order_linear_axes(Linear *call) noexcept:
    """Sort, turn and join the columns' axes; there is at least one afterwards."""
    cdef int k
    drop_linear_axes(call)
    sort_linear_axes(call)
    turn_linear_axes(call)
    join_linear_axes(call)
    if call.axes == 0:
        call.axes, call.shape[0] = 1, 1
        for k in range(LINEAR_ARRAYS):
            call.arrays[k].c[0] = 0


# ---- columns ----------------------------------------------------------------------------------

cdef ix linear_offset(const Linear *call, const LinearArray *x, ix column) noexcept nogil:
    """From the first column's number to a column's; columns count along the first axis first."""
    cdef ix offset = 0
    cdef int axis
    for axis in range(call.axes - 1):
        offset += column % call.shape[axis] * x.c[axis]
        column //= call.shape[axis]
    return offset + column * x.c[call.axes - 1]


cdef enum:
    LINEAR_WIDEST = 256 * GL            # columns of a work_item
    LINEAR_SUMMED = GL                  # products that are added in the working precision

cdef enum LinearKind:
    LINEAR_CHAINED                      # fewer than VL, each by itself: _chains.pxi
    LINEAR_LANES                        # VL, in the lanes of a vector: _lanes.pxi
    LINEAR_WIDE                         # neighbours in every array: _wide.pxi

cdef struct LinearColumns:                    # of one work_item
    LinearKind kind
    ix count                            # VL at most; LINEAR_WIDEST if LINEAR_WIDE
    ix at[LINEAR_ARRAYS][VL]            # where each array has a column; if LINEAR_WIDE, the first
    bint neighbours[LINEAR_ARRAYS]      # whether there are VL, one after the other
    ix distance[LINEAR_ARRAYS]          # from each column to the next; 0 if that varies


cdef inline ix linear_place(const LinearColumns *columns, int array, ix i) noexcept nogil:
    """Where an array has column i."""
    if columns.kind == LINEAR_WIDE:
        return columns.at[array][0] + i * columns.distance[array]
    return columns.at[array][i]


cdef void read_linear_columns(const Linear *call, int array, const LinearColumns *columns,
                       real *values) noexcept nogil:
    """OUT values: an array's first step of each column, then zeros up to a whole vector; zeros
    only if it is not given."""
    cdef ix i
    cdef const LinearArray *x = &call.arrays[array]
    memset(values, 0, round_up(columns.count, VL) * sizeof(real))
    if x.given:
        for i in range(columns.count):
            values[i] = x.p[linear_place(columns, array, i)]


cdef void write_linear_columns(const Linear *call, int array, const LinearColumns *columns,
                        const real *values) noexcept nogil:
    """Does nothing if the array is not given."""
    cdef ix i
    cdef const LinearArray *x = &call.arrays[array]
    if x.given:
        for i in range(columns.count):
            x.p[linear_place(columns, array, i)] = values[i]


# ---- time -------------------------------------------------------------------------------------

cdef struct LinearStream:               # an array on its way through time
    real *p                             # where the first column has its first step
    ix t
    int array                           # its number in the call

cdef struct LinearPass:                 # h ← a h + b once through time
    int what                            # LINEAR_STATES, LINEAR_SLOPES or LINEAR_SUMS
    LinearStream a, b, dh, out
    ix steps
    bint constant                       # a does not vary in time
    bint stream                         # out goes past the caches

cdef struct LinearScratch:              # of a work_item
    real *h                             # [column]: the states
    real *a                             # [column]: a where it is constant
    real *sums                          # [column]: of up to LINEAR_SUMMED products
    double *totals                      # [column]: of all products
    real *lanes                         # LINEAR_LANES_MEMORY numbers


cdef inline LinearStream linear_forwards(const Linear *call, int array) noexcept nogil:
    cdef LinearStream x
    x.p, x.t, x.array = call.arrays[array].p, call.arrays[array].t, array
    return x


cdef inline LinearStream linear_backwards(const Linear *call, int array, ix start) noexcept nogil:
    """From step `start` to the first."""
    cdef LinearStream x = linear_forwards(call, array)
    x.p, x.t = x.p + start * x.t, -x.t
    return x
