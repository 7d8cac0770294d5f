# Between two checkpoints of the adjoint (docs/derivations.md §1.4): the states of an interval are
# replayed forward, keeping what the way back needs of every step; then their adjoints run back,
# h̄[l] = C·ȳ[l] + Ā[l+1]·h̄[l+1].  Included by _kernels.pyx.
# needs: CoefficientRows, INTERVAL, Lanes (s6/_problem.pxi)
# needs: TILE (s6/_tiles.pxi)
# needs: coefficient, stopped (s6/_lanes.pxi)
# needs: SOME, sum_lanes, TERMS (s6/_coefficient_sums.pxi)

cdef enum:
    KEPT_TILE = INTERVAL * VL + 7 * GL
    KEPT = 3 * KEPT_TILE                # what `replay_step` keeps of one state

cdef enum:                              # tiles of a block of one Lanes, [time, lane] each
    DT = 0 * TILE                       # Δ
    DTU = 1 * TILE                      # Δ·u
    U = 2 * TILE
    SLOPE = 3 * TILE                    # dΔ/dδ
    DY = 4 * TILE                       # ȳ = dout·silu(z)
    GATE = 5 * TILE                     # dout·silu'(z)
    Y = 6 * TILE                        # C·h + D·u
    HB = 7 * TILE                       # Σ h̄·B
    HA = 8 * TILE                       # Σ adj(Ā)·Ā·A·log2(e), adj(Ā) being the adjoint of Ā
    TILES = 9 * TILE

cdef struct Back:                       # what the way back adds to a Lanes, in scratch
    real *checkpoints                   # [interval, N, lane]: states before every interval, of a
                                        # segment, or of a block if a cache holds the states
    real *g                             # [N, lane]: Ā·h̄ of the step behind
    real *sums                          # [row, lane]: over time, as in Adjoint
    real *low                           # [row, lane]: what rounding took from them
    real *used                          # [lane]: 1 where there is a channel, else 0
    bint full                           # whether there is one in every lane
    bint tame                           # whether constant B and C are finite

cdef struct AdjointLoop:                # a block of one Lanes on its way back, or an interval of it
    Lanes *lanes
    Back *back
    real *tiles
    real *kept                          # of four states' intervals
    const real *checkpoints             # states before every interval
    CoefficientRows B, C
    real *terms                         # of dB and dC, summed over the lanes of each 128-bit part
    ix states, steps
    bint add                            # whether `terms` already holds those of other Lanes
    bint safe                           # whether every Δ·A is in the range of exp, B and C finite
    bint gate

cdef struct Row:                        # one state, in registers
    vf a, h, g, dA, dB, dC
    const real *B
    const real *C
    real *kept

cdef struct BackStep:                   # one step of up to four states, in registers
    vf dt, dtu, dy                      # Δ, Δ·u, ȳ
    vf y, hb, ha                        # as in the tiles
    vf dB[4]                            # each lane's term of the four rows of dB
    vf dC[4]


# ---- forward ----------------------------------------------------------------------------------

cdef inline void start_row(const AdjointLoop *loop, ix n, real *kept, Row *row) noexcept nogil:
    """OUT row: state n before the interval."""
    row.a, row.h = vload(loop.lanes.a + n * VL), vload(loop.checkpoints + n * VL)
    row.g = vload(loop.back.g + n * VL)
    row.dA = row.dB = row.dC = vset1(0)
    row.B, row.C = loop.B.p + n * loop.B.row, loop.C.p + n * loop.C.row
    row.kept = kept


cdef inline void replay_step(Row *row, ix t, vf dt, vf dtu, const bint safe,
                             const bint B_constant) noexcept nogil:
    """h = Ā·h + Δ·u·B, keeping Ā = scale·(1 + rest) and the state before the step."""
    cdef vf b = coefficient(row.B, t, B_constant), rest
    cdef vf scale = vratio_safe(dt, row.a, &rest) if safe else vratio_any(dt, row.a, &rest)
    cdef vf g = scale * row.h
    vstore(row.kept + t * VL, scale)
    vstore(row.kept + KEPT_TILE + t * VL, rest)
    vstore(row.kept + 2 * KEPT_TILE + t * VL, row.h)
    if safe:
        row.h = vfma(rest, g, vfma(dtu, b, g))
    else:
        row.h = vdecay_any(dt, row.a, row.h, dtu, b)


cdef inline bint rows_finite(const Row *row, const ix rows) noexcept nogil:
    """Whether the states are finite: if one is not, neither is their sum."""
    cdef vf h = row[0].h
    if rows == 4:
        h = row[0].h + row[1].h + row[2].h + row[3].h
    return vall_lt(vfma(h, vset1(0), vset1(0)), vset1(1))


cdef inline bint replay(const AdjointLoop *loop, Row *row, const ix rows, const bint safe,
                        const bint B_constant) noexcept nogil:
    """Forward through an interval.  Whether the states stayed finite."""
    cdef const real *tiles = loop.tiles
    cdef ix t, T = loop.steps
    cdef vf dt, dtu
    if safe and not rows_finite(row, rows):
        return False
    for t in range(T):
        dt = vload(tiles + DT + t * VL)
        dtu = vload(tiles + DTU + t * VL)
        replay_step(&row[0], t, dt, dtu, safe, B_constant)
        if rows == 4:
            replay_step(&row[1], t, dt, dtu, safe, B_constant)
            replay_step(&row[2], t, dt, dtu, safe, B_constant)
            replay_step(&row[3], t, dt, dtu, safe, B_constant)
    return rows_finite(row, rows)


# ---- back -------------------------------------------------------------------------------------

cdef inline void back_step(Row *row, BackStep *step, ix t, const ix i, const bint careful,
                           const bint gate, const bint B_constant,
                           const bint C_constant) noexcept nogil:
    """h̄[t] of the i-th of four states, and its part in every gradient: y += C·h, hb += h̄·B,
    ha += adj(Ā)·Ā·A·log2(e); OUT dB[i], dC[i]."""
    cdef vf c = coefficient(row.C, t, C_constant)
    cdef vf g = vfma(step.dy, c, row.g), q
    if gate:
        step.y = vfma(row.h, c, step.y)
    if C_constant:
        row.dC = vfma(step.dy, row.h, row.dC)
    else:
        step.dC[i] = step.dy * row.h
    if B_constant:
        row.dB = vfma(g, step.dtu, row.dB)
    else:
        step.dB[i] = g * step.dtu
    step.hb = vfma(g, coefficient(row.B, t, B_constant), step.hb)
    g = g * vload(row.kept + t * VL)
    row.g = vfma(vload(row.kept + KEPT_TILE + t * VL), g, g)
    if careful:                         # if g is inf and rest negative, vfma would give inf − inf
        row.g = vsel_lt(vabs(g), vset1(<real>INFINITY), row.g, g)
    row.h = vload(row.kept + 2 * KEPT_TILE + t * VL)
    q = row.g * row.h
    step.ha = vfma(q, row.a, step.ha)
    row.dA = vfma(q, step.dt, row.dA)


cdef inline void go_back(const AdjointLoop *loop, Row *row, const ix rows, const bint careful,
                         const bint gate, const bint B_constant,
                         const bint C_constant) noexcept nogil:
    """Back through an interval: h̄, and what it adds to every gradient."""
    cdef real *tiles = loop.tiles
    cdef real *terms = loop.terms
    cdef const real *used = loop.back.used
    cdef bint more = loop.add
    cdef BackStep step
    cdef ix i, t
    step.y = vset1(0)
    for i in range(4):
        step.dB[i] = step.dC[i] = vset1(0)
    for t in range(loop.steps - 1, -1, -1):
        step.dt, step.dtu = vload(tiles + DT + t * VL), vload(tiles + DTU + t * VL)
        step.dy = vload(tiles + DY + t * VL)
        step.hb, step.ha = vload(tiles + HB + t * VL), vload(tiles + HA + t * VL)
        if gate:
            step.y = vload(tiles + Y + t * VL)
        back_step(&row[0], &step, t, 0, careful, gate, B_constant, C_constant)
        if rows == 4:
            back_step(&row[1], &step, t, 1, careful, gate, B_constant, C_constant)
            back_step(&row[2], &step, t, 2, careful, gate, B_constant, C_constant)
            back_step(&row[3], &step, t, 3, careful, gate, B_constant, C_constant)
        vstore(tiles + HB + t * VL, step.hb)
        vstore(tiles + HA + t * VL, step.ha)
        if gate:
            vstore(tiles + Y + t * VL, step.y)
        if not B_constant:
            sum_lanes(step.dB, used, more, careful, terms + t * VL)
        if not C_constant:
            sum_lanes(step.dC, used, more, careful, terms + TERMS // 2 + t * VL)


cdef inline void add_exactly(vf x, real *sum, real *low) noexcept nogil:
    """sum + low += x: what rounding takes from sum goes to low."""
    cdef vf a = vload(sum)
    cdef vf s = a + x
    cdef vf b = s - a
    vstore(sum, s)
    vstore(low, vload(low) + ((a - (s - b)) + (x - b)))


cdef inline void end_row(const AdjointLoop *loop, ix n, const Row *row, const bint B_constant,
                         const bint C_constant) noexcept nogil:
    """Store what state n hands to the step before the interval, and its sums over time."""
    cdef real *sums = loop.back.sums + n * VL
    cdef real *low = loop.back.low + n * VL
    cdef ix size = loop.states * VL
    vstore(loop.back.g + n * VL, row.g)
    add_exactly(row.dA, sums, low)
    if B_constant:
        sums, low = sums + size, low + size
        add_exactly(row.dB, sums, low)
    if C_constant:
        sums, low = sums + size, low + size
        add_exactly(row.dC, sums, low)


# ---- both ways --------------------------------------------------------------------------------

cdef inline void start_rows(const AdjointLoop *loop, ix n, const ix rows, Row *row) noexcept nogil:
    """OUT row: states n … n+rows−1 before the interval."""
    start_row(loop, n, loop.kept, &row[0])
    if rows == 4:
        start_row(loop, n + 1, loop.kept + KEPT, &row[1])
        start_row(loop, n + 2, loop.kept + 2 * KEPT, &row[2])
        start_row(loop, n + 3, loop.kept + 3 * KEPT, &row[3])


# What is rare has one loop for all ways that flags can be set: it would be a third of the module
# otherwise.

cdef bint replay_any(const AdjointLoop *loop, Row *row, ix rows) noexcept nogil:
    """Forward through an interval with the arithmetic that follows IEEE."""
    return replay(loop, row, rows, False, loop.B.constant)


cdef void go_back_any(const AdjointLoop *loop, Row *row, ix rows, bint gate) noexcept nogil:
    """Back through an interval where states may not be finite, or lanes are not used."""
    go_back(loop, row, rows, True, gate, loop.B.constant, loop.C.constant)


cdef inline bint replay_rows(const AdjointLoop *loop, ix n, Row *row, const ix rows,
                             const bint B_constant) noexcept nogil:
    """Forward through an interval; a second time, with the arithmetic that follows IEEE, if a state
    overflows.  Returns whether the way back needs no care."""
    start_rows(loop, n, rows, row)
    if loop.safe and replay(loop, row, rows, True, B_constant):
        return True
    start_rows(loop, n, rows, row)
    return replay_any(loop, row, rows) and loop.safe


cdef inline void some_rows(const AdjointLoop *loop, ix n, const ix rows, const bint gate,
                           const bint B_constant, const bint C_constant) noexcept nogil:
    """Both ways through an interval for the states n … n+rows−1, 1 or 4 of them."""
    cdef Row row[4]
    if replay_rows(loop, n, row, rows, B_constant) and loop.back.full:
        go_back(loop, row, rows, False, gate, B_constant, C_constant)
    else:
        go_back_any(loop, row, rows, gate)
    end_row(loop, n, &row[0], B_constant, C_constant)
    if rows == 4:
        end_row(loop, n + 1, &row[1], B_constant, C_constant)
        end_row(loop, n + 2, &row[2], B_constant, C_constant)
        end_row(loop, n + 3, &row[3], B_constant, C_constant)


cdef void one_row(const AdjointLoop *loop, ix n, bint gate) noexcept nogil:
    """The same for state n alone, one of the last three."""
    some_rows(loop, n, 1, gate, loop.B.constant, loop.C.constant)


cdef inline AdjointLoop interval_at(const AdjointLoop *block, ix t) noexcept nogil:
    """The interval of a block that begins at its step t."""
    cdef AdjointLoop loop = block[0]
    loop.steps = min(<ix>INTERVAL, block.steps - t)
    loop.tiles, loop.terms = block.tiles + t * VL, block.terms + t * VL
    loop.checkpoints = block.checkpoints + t // INTERVAL * block.states * VL
    if not block.B.constant:
        loop.B.p = block.B.p + t
    if not block.C.constant:
        loop.C.p = block.C.p + t
    return loop


cdef inline void each_interval(const AdjointLoop *block, const bint gate, const bint B_constant,
                               const bint C_constant) noexcept nogil:
    """All intervals of a block, from the last to the first, four states at a time."""
    cdef AdjointLoop loop
    cdef ix n = 0, t, N = block.states, offset = 0
    while n < N and not (n % SOME == 0 and stopped(block.lanes, n)):
        t = (block.steps - 1) // INTERVAL * INTERVAL
        while t >= 0:
            loop = interval_at(block, t)
            loop.terms += offset
            if n + 4 <= N:
                some_rows(&loop, n, 4, gate, B_constant, C_constant)
            else:
                one_row(&loop, n, gate)
            t -= INTERVAL
        n += 4 if n + 4 <= N else 1
        offset += TERMS


# What is common has a loop of its own, and what is rare has one loop for all.

cdef void each_interval_any(const AdjointLoop *block) noexcept nogil:
    each_interval(block, block.gate, block.B.constant, block.C.constant)


cdef void adjoint_states(const AdjointLoop *block) noexcept nogil:
    """2. All states of a block, forward and back."""
    cdef bint constant = block.B.constant and block.C.constant
    if constant and not block.gate:
        each_interval(block, False, True, True)
    elif block.B.constant or block.C.constant:
        each_interval_any(block)
    elif block.gate:
        each_interval(block, True, False, False)
    else:
        each_interval(block, False, False, False)
