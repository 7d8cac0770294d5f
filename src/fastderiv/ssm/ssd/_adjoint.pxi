# The adjoint of the SSD scan (docs/derivations.md §6.4) within one chunk: its tiles, and the
# products of one head.  Included by _kernels.pyx.
# needs: Ssd, ssd_step_sizes, SsdCoefficient, SsdSegment, SsdSignal, SsdState,
#        SsdSteps (ssd/_problem.pxi)

cdef extern from "ssd/adjoint.h" nogil:
    enum: SSD_MOST                      # steps of a chunk
    ctypedef struct SsdChunkDecays:
        real *size                      # Δ_t
        real *slope                     # dΔ/d(dt + bias)
        real *past                      # exp(c_t)
        real *kept                      # Δ_t exp(c_T − c_t)
        real *rest                      # exp(c_T − c_t)
        real all                        # exp(c_T)
    ctypedef struct SsdPairs:
        ix steps, row
        const SsdChunkDecays *decays
        const real *products
        const real *inner
        real *mixing
        real *terms
        real *dots
    ctypedef struct SsdInputs:
        ix steps, columns, row
        const SsdChunkDecays *decays
        const real *e
        const real *skip
        real *x
        real *dx
        real *dots
        real *dD
    ctypedef struct SsdFlows:
        ix steps
        const SsdChunkDecays *decays
        const real *inside
        const real *to_y
        const real *to_end
        const real *own
        double through, A, dA, dbias
        real *ddt
        ix stride
    ctypedef struct SsdFetch:
        ix row, byte
        int count, done, each
    void ssd_plane(SsdFetch *ahead, const real *p, ix row, ix stride, ix rows, ix length)
    ix ssd_lines(const SsdFetch *ahead)
    void ssd_multiply(const Gemm *g, int how, SsdFetch *ahead)
    void ssd_load(const real *src, ix row_stride, ix stride, ix rows, ix columns, real *tile,
                  ix row)
    void ssd_store(const real *tile, ix row, ix rows, ix columns, real *dst, ix row_stride,
                   ix stride)
    void ssd_add(const real *tile, ix row, ix rows, ix columns, real *dst, ix row_stride,
                 ix stride)
    void ssd_transpose(const real *src, ix row, ix rows, ix columns, real *dst, ix dst_row)
    void ssd_scale_tile(const real *src, const real *factor, ix rows, ix columns, ix row,
                        real *dst)
    void ssd_scale_state(const real *src, real factor, ix count, real *dst)
    void ssd_gate(ix rows, ix columns, ix row, real *dout, real *z)
    void ssd_gate_gradient(ix rows, ix columns, ix row, const real *y, const real *x,
                           const real *skip, real *z)
    void ssd_chunk_decays(real A, ix steps, SsdChunkDecays *d)
    void ssd_pairs(const SsdPairs *p)
    void ssd_row_sums(const real *dots, ix rows, real *sums)
    void ssd_add_and_dot(const real *a, const real *b, ix rows, ix columns, ix row, real *sum,
                         real *dots)
    void ssd_scale_and_dot(const real *factor, const real *b, ix rows, ix columns, ix row, real *a,
                           real *dots)
    void ssd_scale_and_add(const real *factor, const real *a, ix rows, ix columns, ix row,
                           real *sum)
    void ssd_inputs(const SsdInputs *inputs)
    double ssd_state_dot(const real *a, const real *b, ix rows, ix columns, ix row)
    void ssd_flows(SsdFlows *f)


# ---- a call -----------------------------------------------------------------------------------

cdef struct SsdAdjoint:
    Ssd ssd
    SsdSignal dout, dx, dz
    SsdSteps ddt
    SsdState dlast_state, dinitial_state
    SsdCoefficient dB, dC               # of slice 0
    real *shared_dB                     # (slices − 1, Bt, L, G, N), of the others
    real *shared_dC
    const real *kept                    # the states of a cache, or NULL
    double *sums                        # (ranges, H, 2 + D's numbers of a head): dA, dbias, dD
    ix head_sums                        # 2 + D's numbers of a head
    ix ranges, slices                   # of the segments, and of a group's heads
    ix carry                            # heads that a task takes through time together
    ix window                           # chunks whose first states are in memory at once
    ix places                           # for states of a head's window: an odd number, lest all
                                        # heads' states share the sets of a cache
    ix windows                          # of the longest segment
    ix most                             # steps of the longest chunk, a multiple of GL
    ix wide, deep                       # P and N, rounded up to multiples of GL
    ix p_row, n_row, t_row              # from one row of a tile to the next: P, N or steps
    ix state                            # numbers of a state (P, N) with rows n_row apart


cdef struct SsdTiles:                   # of one chunk; [rows, columns]
    double *sums                        # [carry, head_sums]
    SsdChunkDecays *decays
    real *G                             # [carry] states (P, N): dL/dh behind the chunk
    real *H                             # [carry, window] states before chunks
    real *starts                        # [carry, windows] states before windows
    # of all heads of a group
    real *b                             # [t, N] B
    real *c                             # [t, N] C
    real *turned_c                      # [N, t] C
    real *products                      # [s, t] B_s·C_t
    real *terms                         # [s, t] Σ over heads of Δ_s W_st x_s·ȳ_t
    real *dB                            # [t, N]
    real *dC                            # [t, N]
    # of one head
    real *x                             # [t, P] x, then what it adds to the last state
    real *e                             # [t, P] ȳ
    real *past_e                        # [t, P] exp(c_t) ȳ
    real *turned_e                      # [P, t] ȳ
    real *inner                         # [s, t] x_s·ȳ_t
    real *mixing                        # [s, t] W_st B_s·C_t
    real *turned_state                  # [N, P]
    real *dx                            # [t, P]
    real *far                           # [t, N] of dC: from before the chunk
    real *z                             # [t, P] dout silu'(z); only with a gate
    real *y                             # [t, P]; only with a gate
    real *dots                          # [t, GL]
    real *skip                          # [P] D
    real *dD                            # [P]
    real *inside                        # [t] each: see SsdFlows
    real *to_y
    real *to_end
    real *own


cdef struct SsdBack:                    # a task on its way
    const SsdAdjoint *adj
    Worker *worker
    SsdTiles tiles
    SsdSegment segment
    ix number                           # of the segment
    ix steps, chunks                    # of a chunk; of the segment
    ix group, first, heads              # the heads first … first + heads − 1 of a group
    SsdCoefficient dB, dC               # of its slice
    SsdFetch ahead                      # what the next head will read
    bint add                            # whether other heads' terms are there already

cdef struct SsdPart:                    # a chunk
    ix number, start, steps             # start: counted in the batch item
    bint past, future                   # whether there is a state before it, a gradient behind it


# ---- products ---------------------------------------------------------------------------------

cdef void ssd_triangle(ix steps, ix K, const real *a, ix a_row, const real *b, ix row,
                       real *c) noexcept nogil:
    """OUT c[s, t] = Σ_k a[s, k] b[k, t] for s < steps and t from a little before s on.

    b and c have rows `row` apart; b has zeros behind its last step.
    """
    cdef ix s = 0, rows, at
    cdef Gemm g
    while s < steps:
        rows, at = min(<ix>GEMM_ROWS, steps - s), s // VL * VL
        g = Gemm(rows, round_up(steps, VL) - at, K, a + s * a_row, a_row, 1, b + at, row,
                 c + s * row + at, row)
        gemm(&g, GEMM_SET)
        s += rows


cdef inline real *ssd_own(SsdBack *back, real *states, ix head, ix each,
                          ix number) noexcept nogil:
    """State `number` of a head among `each` of them."""
    return states + ((head - back.first) * each + number) * back.adj.state


cdef void ssd_head_decays(SsdBack *back, const SsdPart *part, ix head) noexcept nogil:
    """OUT tiles.decays: step sizes and decays of a head."""
    cdef const Ssd *ssd = &back.adj.ssd
    cdef SsdChunkDecays *d = back.tiles.decays
    ssd_step_sizes(ssd, back.segment.batch, part.start, part.steps, head, d.size, d.slope)
    ssd_chunk_decays(ssd.A.p[head * ssd.A.h], part.steps, d)


cdef void ssd_load_signal(SsdBack *back, const SsdPart *part, const SsdSignal *signal,
                          ix head, real *tile) noexcept nogil:
    ssd_load(signal.p + back.segment.batch * signal.b + part.start * signal.t + head * signal.h,
             signal.t, signal.p_, part.steps, back.adj.ssd.width, tile, back.adj.p_row)


cdef void ssd_store_signal(SsdBack *back, const SsdPart *part, const SsdSignal *signal,
                           ix head, const real *tile) noexcept nogil:
    ssd_store(tile, back.adj.p_row, part.steps, back.adj.ssd.width,
              signal.p + back.segment.batch * signal.b + part.start * signal.t + head * signal.h,
              signal.t, signal.p_)


cdef void ssd_advance(SsdBack *back, const SsdPart *part, ix head, const real *before,
                      real *after) noexcept nogil:
    """OUT after: the state behind a chunk, from the one before it; they may be the same."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef Gemm g
    ssd_head_decays(back, part, head)
    ssd_load_signal(back, part, &adj.ssd.x, head, tiles.x)
    ssd_scale_tile(tiles.x, tiles.decays.kept, part.steps, adj.wide, adj.p_row, tiles.x)
    ssd_scale_state(before, tiles.decays.all, adj.state, after)
    g = Gemm(adj.ssd.width, adj.deep, part.steps, tiles.x, 1, adj.p_row, tiles.b, adj.n_row,
             after, adj.n_row)
    ssd_multiply(&g, 0, &back.ahead)


# ---- a head of a chunk, on the way back ---------------------------------------------------------

cdef void ssd_load_signals(SsdBack *back, const SsdPart *part, ix head) noexcept nogil:
    """OUT tiles: 1. the decays, x, ȳ and ȳ transposed; the gate's slope, D."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const Ssd *ssd = &adj.ssd
    cdef const SsdTiles *tiles = &back.tiles
    cdef ix p
    ssd_head_decays(back, part, head)
    ssd_load_signal(back, part, &ssd.x, head, tiles.x)
    ssd_load_signal(back, part, &adj.dout, head, tiles.e)
    if ssd.z.p is not NULL:
        ssd_load_signal(back, part, &ssd.z, head, tiles.z)
        ssd_gate(part.steps, adj.wide, adj.p_row, tiles.e, tiles.z)
    ssd_transpose(tiles.e, adj.p_row, round_up(part.steps, VL), adj.wide, tiles.turned_e,
                  adj.t_row)
    ssd_scale_tile(tiles.e, tiles.decays.past, part.steps, adj.wide, adj.p_row, tiles.past_e)
    if ssd.D.p is not NULL:
        for p in range(ssd.width):
            tiles.skip[p] = ssd.D.p[head * ssd.D.h + p * ssd.D.p_]


cdef void ssd_within(SsdBack *back, const SsdPart *part) noexcept nogil:
    """OUT tiles: 2. mixing, the head's terms, and what flows through the decays within a chunk."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef SsdPairs pairs
    ssd_triangle(part.steps, adj.ssd.width, tiles.x, adj.p_row, tiles.turned_e, adj.t_row,
                 tiles.inner)
    pairs.steps, pairs.row, pairs.decays = part.steps, adj.t_row, tiles.decays
    pairs.products, pairs.inner = tiles.products, tiles.inner
    pairs.mixing, pairs.terms, pairs.dots = tiles.mixing, tiles.terms, tiles.dots
    ssd_pairs(&pairs)
    ssd_row_sums(tiles.dots, part.steps, tiles.inside)


cdef void ssd_from_past(SsdBack *back, const SsdPart *part, const real *H) noexcept nogil:
    """OUT tiles: 3. dC's terms from the state H before the chunk, and to_y."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef Gemm g
    if not part.past:
        memset(tiles.to_y, 0, part.steps * sizeof(real))
        return
    g = Gemm(part.steps, adj.deep, adj.ssd.width, tiles.past_e, adj.p_row, 1, H, adj.n_row,
             tiles.far, adj.n_row)
    ssd_multiply(&g, GEMM_SET, &back.ahead)
    ssd_add_and_dot(tiles.far, tiles.c, part.steps, adj.deep, adj.n_row, tiles.dC, tiles.dots)
    ssd_row_sums(tiles.dots, part.steps, tiles.to_y)


cdef void ssd_back_gate(SsdBack *back, const SsdPart *part, ix head,
                        const real *H) noexcept nogil:
    """OUT dz: 4. y once more, from the state H before the chunk and the chunk's inputs."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef ix steps = part.steps
    cdef Gemm g
    ssd_scale_tile(tiles.x, tiles.decays.size, steps, adj.wide, adj.p_row, tiles.dx)
    g = Gemm(steps, adj.wide, steps, tiles.mixing, 1, adj.t_row, tiles.dx, adj.p_row,
             tiles.y, adj.p_row)
    ssd_multiply(&g, GEMM_SET | GEMM_LOWER, &back.ahead)
    if part.past:
        ssd_transpose(H, adj.n_row, adj.wide, adj.deep, tiles.turned_state, adj.p_row)
        g = Gemm(steps, adj.wide, adj.ssd.states, tiles.c, adj.n_row, 1, tiles.turned_state,
                 adj.p_row, tiles.dx, adj.p_row)
        ssd_multiply(&g, GEMM_SET, &back.ahead)
        ssd_scale_and_add(tiles.decays.past, tiles.dx, steps, adj.wide, adj.p_row, tiles.y)
    ssd_gate_gradient(steps, adj.wide, adj.p_row, tiles.y, tiles.x, tiles.skip, tiles.z)
    ssd_store_signal(back, part, &adj.dz, head, tiles.z)


cdef void ssd_back_inputs(SsdBack *back, const SsdPart *part, ix head, const real *G,
                          const real *H, double *through) noexcept nogil:
    """OUT dx: 5. from the gradient G behind the chunk and from its outputs; to_end, own, through;
    dD of the chunk; tiles.x times what it adds to the last state."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef ix steps = part.steps
    cdef SsdInputs inputs
    cdef Gemm g
    through[0] = 0
    if part.future:
        ssd_transpose(G, adj.n_row, adj.wide, adj.deep, tiles.turned_state, adj.p_row)
        g = Gemm(steps, adj.wide, adj.ssd.states, tiles.b, adj.n_row, 1, tiles.turned_state,
                 adj.p_row, tiles.dx, adj.p_row)
        ssd_multiply(&g, GEMM_SET, &back.ahead)
        ssd_scale_and_dot(tiles.decays.rest, tiles.x, steps, adj.wide, adj.p_row, tiles.dx,
                          tiles.dots)
        ssd_row_sums(tiles.dots, steps, tiles.to_end)
        if part.past:
            through[0] = tiles.decays.all * ssd_state_dot(G, H, adj.ssd.width, adj.deep, adj.n_row)
    else:
        memset(tiles.to_end, 0, steps * sizeof(real))
    g = Gemm(steps, adj.wide, steps, tiles.mixing, adj.t_row, 1, tiles.e, adj.p_row,
             tiles.dx, adj.p_row)
    ssd_multiply(&g, GEMM_UPPER if part.future else GEMM_UPPER | GEMM_SET, &back.ahead)
    inputs.steps, inputs.columns, inputs.row = steps, adj.wide, adj.p_row
    inputs.decays, inputs.e, inputs.skip = tiles.decays, tiles.e, tiles.skip
    inputs.x, inputs.dx, inputs.dots, inputs.dD = tiles.x, tiles.dx, tiles.dots, tiles.dD
    ssd_inputs(&inputs)
    ssd_row_sums(tiles.dots, steps, tiles.own)
    ssd_store_signal(back, part, &adj.dx, head, tiles.dx)


cdef void ssd_back_steps(SsdBack *back, const SsdPart *part, ix head,
                         double through) noexcept nogil:
    """OUT ddt: 6.; the head's sums, to which the chunk's are added."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const Ssd *ssd = &adj.ssd
    cdef const SsdTiles *tiles = &back.tiles
    cdef double *sums = tiles.sums + (head - back.first) * adj.head_sums
    cdef SsdFlows flows
    cdef ix p
    flows.steps, flows.decays = part.steps, tiles.decays
    flows.inside, flows.to_y, flows.to_end = tiles.inside, tiles.to_y, tiles.to_end
    flows.own, flows.through, flows.A = tiles.own, through, ssd.A.p[head * ssd.A.h]
    flows.ddt = (adj.ddt.p + back.segment.batch * adj.ddt.b + part.start * adj.ddt.t
                 + head * adj.ddt.h)
    flows.stride = adj.ddt.t
    ssd_flows(&flows)
    sums[0] += flows.dA
    sums[1] += flows.dbias
    if ssd.D.p is not NULL:
        for p in range(ssd.width):
            sums[2 + (p if adj.head_sums == 2 + ssd.width else 0)] += tiles.dD[p]


cdef void ssd_back_states(SsdBack *back, const SsdPart *part, real *G) noexcept nogil:
    """OUT 7. dB's terms from the gradient G behind the chunk; 8. G before the chunk."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef Gemm g
    if part.future:
        g = Gemm(part.steps, adj.deep, adj.ssd.width, tiles.x, adj.p_row, 1, G, adj.n_row,
                 tiles.dB, adj.n_row)
        ssd_multiply(&g, 0, &back.ahead)
    if part.past:
        ssd_scale_state(G, tiles.decays.all, adj.state, G)
        g = Gemm(adj.ssd.width, adj.deep, part.steps, tiles.past_e, 1, adj.p_row, tiles.c,
                 adj.n_row, G, adj.n_row)
        ssd_multiply(&g, 0, &back.ahead)


cdef void ssd_back_head(SsdBack *back, const SsdPart *part, ix head,
                        const real *H) noexcept nogil:
    """One head of a chunk, H being its state before the chunk; the steps of §6.4."""
    cdef real *G = ssd_own(back, back.tiles.G, head, 1, 0)
    cdef double through = 0
    ssd_load_signals(back, part, head)
    ssd_within(back, part)
    ssd_from_past(back, part, H)
    if back.adj.ssd.z.p is not NULL:
        ssd_back_gate(back, part, head, H)
    ssd_back_inputs(back, part, head, G, H, &through)
    ssd_back_steps(back, part, head, through)
    ssd_back_states(back, part, G)
