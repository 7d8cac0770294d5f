# The gradients of the LSTM's weights, sums over all steps and rows: docs/derivations.md §4.1, the
# equations of W̄ and b̄.
#
# needs: aligned_array, reals_of (_arrays.pxi)
# needs: PW (_gemm.pxi)
# needs: copy_or_zero, offset (_rows.pxi)
# needs: Lstm (_lstm_problem.pxi)

cdef enum:
    SUM_ENTRIES = 128                   # entries whose terms are summed up in registers
    SUM_COLUMNS = 192                   # inputs of one task, at most
    SUM_STRIDE = SUM_COLUMNS + GL       # between entries in scratch: they use different cache sets
    SUM_UNIT_VECTORS = 8                # vectors of hidden units of one task, at most


cdef struct Sums:                       # for one kind of input: x, or the state before each step
    ix columns, column_blocks           # inputs, and blocks of them
    real *weights                       # OUT [unit vector][columns][gate][VL]


cdef struct WeightSums:
    Lstm f                              # sizes, x, h0 and the order of the rows
    const real *abar                    # [unit vector][entry][gate][VL]
    const real *h                       # [entry][H]
    Sums x, recurrent
    real *bias                          # OUT [unit vector][gate][VL]


cdef struct InputBlock:                 # consecutive inputs of one kind, which a task sums over
    bint recurrent
    ix first, columns
    real *entries                       # [SUM_ENTRIES][SUM_STRIDE], in scratch


cdef ix sum_tasks(const WeightSums *s) noexcept nogil:
    cdef ix unit_blocks = ceil_div(s.f.unit_vectors, SUM_UNIT_VECTORS)
    return (s.x.column_blocks + s.recurrent.column_blocks) * unit_blocks


cdef void sum_weights(void *args, ix task, Worker *worker) noexcept nogil:
    """OUT weights += Σ input ⊗ ā for a block of inputs and a block of unit vectors.

    The tasks of the first block of recurrent inputs also have bias += Σ ā.
    """
    cdef const WeightSums *s = <const WeightSums *>args
    cdef ix blocks = s.x.column_blocks + s.recurrent.column_blocks, block = task % blocks
    cdef ix first_unit = task // blocks * SUM_UNIT_VECTORS
    cdef ix last_unit = min(first_unit + SUM_UNIT_VECTORS, s.f.unit_vectors)
    cdef ix entries = s.f.steps * s.f.batch, entry = 0, K, u
    cdef ix share = ceil_div(<ix>SUM_ENTRIES, last_unit - first_unit)
    cdef InputBlock inputs
    cdef const Sums *out = set_input_block(s, &inputs, block, worker.scratch)
    cdef const real *a
    while entry < entries:
        K = min(<ix>SUM_ENTRIES, entries - entry)
        gather_block(s, &inputs, entry, K)
        for u in range(first_unit, last_unit):
            a = s.abar + (u * entries + entry) * PW
            add_products(&inputs, a, K, out.weights + (u * out.columns + inputs.first) * PW)
            prefetch_inputs(s, &inputs, entry + K + (u - first_unit) * share, share)
            if inputs.recurrent and inputs.first == 0:
                add_entries(a, K, s.bias + u * PW)
        entry += K
        if interrupted(worker):
            return


cdef const Sums *set_input_block(const WeightSums *s, InputBlock *b, ix block,
                                 void *scratch) noexcept nogil:
    cdef const Sums *out = &s.x
    b.recurrent = block >= s.x.column_blocks
    if b.recurrent:
        out, block = &s.recurrent, block - s.x.column_blocks
    b.first = block * out.columns // out.column_blocks
    b.columns = (block + 1) * out.columns // out.column_blocks - b.first
    b.entries = <real *>scratch
    return out


cdef inline const real *input_at(const WeightSums *s, const InputBlock *b, ix entry) noexcept nogil:
    """Where the block of an entry is; NULL for zeros: behind a row's end, or no initial state."""
    cdef const Lstm *f = &s.f
    cdef ix t = entry // f.batch, i = entry % f.batch
    if t >= f.lengths[i]:
        return NULL
    if not b.recurrent:
        return f.x + (t * f.batch + f.order[i]) * f.inputs + b.first
    if t > 0:
        return s.h + (entry - f.batch) * f.hidden + b.first
    return offset(f.h0, f.order[i] * f.hidden + b.first)


cdef void gather_block(const WeightSums *s, InputBlock *b, ix entry, ix K) noexcept nogil:
    """OUT the block of the entries [entry, entry + K)."""
    cdef ix k
    for k in range(K):
        copy_or_zero(b.entries + k * SUM_STRIDE, input_at(s, b, entry + k), b.columns)


cdef void prefetch_inputs(const WeightSums *s, const InputBlock *b, ix entry, ix n) noexcept nogil:
    """Fetch the block of n entries that will be gathered next: their distance is a row of x or h,
    which no hardware follows."""
    cdef ix k, j, last = min(entry + n, s.f.steps * s.f.batch)
    cdef const real *src
    for k in range(entry, last):
        src = input_at(s, b, k)
        if src is not NULL:
            j = 0
            while j < b.columns:
                vprefetch(src + j)
                j += GL


cdef void add_products(const InputBlock *b, const real *a, ix K, real *weights) noexcept nogil:
    """OUT weights (columns, PW) += Σ_k input[k] ⊗ a[k, :]."""
    cdef Gemm g
    g.M, g.N, g.K = b.columns, PW, K
    g.a, g.a_row, g.a_step = b.entries, 1, SUM_STRIDE
    g.b, g.b_row = a, PW
    g.c, g.c_row = weights, PW
    gemm(&g, GEMM_FAR)


cdef void add_entries(const real *a, ix K, real *sums) noexcept nogil:
    """OUT sums (PW,) += Σ_k a (K, PW)."""
    cdef ix k, j
    cdef vf v
    for j in range(4):
        v = vset1(0)
        for k in range(K):
            v = v + vload(a + k * PW + j * VL)
        vstore(sums + j * VL, vload(sums + j * VL) + v)


cdef cnp.ndarray zero_weight_sums(Sums *s, ix unit_vectors, ix columns):
    """An array of zeros that the sums are added to."""
    cdef cnp.ndarray weights = aligned_array(unit_vectors * columns * PW)
    cdef ix u
    s.columns, s.column_blocks = columns, ceil_div(columns, SUM_COLUMNS)
    s.weights = reals_of(weights)
    for u in range(unit_vectors):
        PyErr_CheckSignals()
        memset(s.weights + u * columns * PW, 0, columns * PW * sizeof(real))
    return weights
