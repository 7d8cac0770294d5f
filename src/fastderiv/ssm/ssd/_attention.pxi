# Rows of the hidden attention of the SSD scan (docs/derivations.md §6.5), with the time s of the
# input in the lanes:
#
#     α[t, s] = (C[t]·B[s])·Δ[s]·exp(A·x[t, s]),      x[t, s] = Δ[s+1] + … + Δ[t]
#
# A task has some rows of some heads that share B and C.  It takes columns in blocks, from the last
# to the first: the products C·B of a block serve all its heads.  x is a sum of step sizes backwards
# from the block's end, plus the gap from there to the row: nothing is subtracted.
# Included by _kernels.pyx.
# needs: load_tile (s6/_tiles.pxi)
# needs: accumulate, Sum, sum_of (s6/_step_sum.pxi)
# needs: sum_behind (s6/_attention.pxi)
# needs: Ssd, ssd_step_sizes, SsdCoefficient (ssd/_problem.pxi)

cdef enum:
    SSD_COLUMNS = 64                    # of a block, a multiple of 2·VL
    SSD_WANTED = 64                       # of a task, at most
    SSD_SHARERS = 16                    # heads of a task, at most
    SSD_DEPTH = 128                     # states of B that are held at once

cdef struct SsdAttention:
    Ssd ssd                             # of which dt, A, B, C, bias and sizes are set
    const ix *rows                      # their steps
    real *out                           # (Bt, H, rows, L), contiguous and zero
    ix count, row_tasks                 # rows; tasks that share them
    ix head_tasks                       # tasks that share the heads of a group

cdef struct SsdRow:
    ix l
    const real *C                       # of the group at step l
    real *dots                          # [column]: C·B
    real *out                           # (L,), of the first head; the others follow at `apart`

cdef struct SsdColumns:                 # a block of columns, in scratch
    ix batch, group, head, heads        # whose
    ix t, T                             # its first step, and how many
    real rate                           # A·log2(e), and what follows, of the head at work
    bint decays                         # whether no exp(A·x) exceeds 1
    double total                        # Σ Δ of the block
    real *size                          # [column]: Δ
    real *x                             # [column]: Σ Δ behind it, up to the block's end
    real *x_row                         # [column]: Σ Δ behind it, up to a row
    real *y                             # [column]: a row in the block that holds its diagonal
    real *b                             # [SSD_DEPTH, column]: B
    SsdRow *rows
    ix count, apart                     # rows; from one head to the next in `out`
    Sum *gaps                           # [head, row]: Σ Δ from the block's end to the row
    Worker *worker                      # the thread at work, which is told to stop


# ---- C·B, for all heads of a group ------------------------------------------------------------

cdef void ssd_four_dots(const SsdColumns *held, SsdRow **row, ix n, ix depth,
                        ix C_n) noexcept nogil:
    """dots += C·B of four rows, over `depth` states from n on."""
    cdef const real *c0 = row[0].C + n * C_n
    cdef const real *c1 = row[1].C + n * C_n
    cdef const real *c2 = row[2].C + n * C_n
    cdef const real *c3 = row[3].C + n * C_n
    cdef const real *b = held.b
    cdef vf a0, a1, a2, a3, b0, b1, b2, b3, p, q
    cdef ix j = 0, k
    while j < SSD_COLUMNS:
        a0, b0 = vload(row[0].dots + j), vload(row[0].dots + j + VL)
        a1, b1 = vload(row[1].dots + j), vload(row[1].dots + j + VL)
        a2, b2 = vload(row[2].dots + j), vload(row[2].dots + j + VL)
        a3, b3 = vload(row[3].dots + j), vload(row[3].dots + j + VL)
        for k in range(depth):
            p, q = vload(b + k * SSD_COLUMNS + j), vload(b + k * SSD_COLUMNS + j + VL)
            a0, b0 = vfma(vset1(c0[k * C_n]), p, a0), vfma(vset1(c0[k * C_n]), q, b0)
            a1, b1 = vfma(vset1(c1[k * C_n]), p, a1), vfma(vset1(c1[k * C_n]), q, b1)
            a2, b2 = vfma(vset1(c2[k * C_n]), p, a2), vfma(vset1(c2[k * C_n]), q, b2)
            a3, b3 = vfma(vset1(c3[k * C_n]), p, a3), vfma(vset1(c3[k * C_n]), q, b3)
        vstore(row[0].dots + j, a0)
        vstore(row[0].dots + j + VL, b0)
        vstore(row[1].dots + j, a1)
        vstore(row[1].dots + j + VL, b1)
        vstore(row[2].dots + j, a2)
        vstore(row[2].dots + j + VL, b2)
        vstore(row[3].dots + j, a3)
        vstore(row[3].dots + j + VL, b3)
        j += 2 * VL


cdef void ssd_dots_of(const Ssd *ssd, SsdColumns *held, ix n, ix depth) noexcept nogil:
    """dots += C·B of the rows that reach into the block, over `depth` states from n on.  Rows that
    are missing in the last four are counted in a row of their own, behind the others."""
    cdef SsdRow *four[4]
    cdef ix i, k = 0
    for i in range(held.count):
        if held.rows[i].l >= held.t:
            four[k % 4] = &held.rows[i]
            k += 1
            if k % 4 == 0:
                ssd_four_dots(held, four, n, depth, ssd.C.n)
    if k % 4:
        held.rows[held.count].C = four[0].C
        for i in range(k % 4, 4):
            four[i] = &held.rows[held.count]
        ssd_four_dots(held, four, n, depth, ssd.C.n)


cdef void ssd_set_dots(const Ssd *ssd, SsdColumns *held) noexcept nogil:
    """OUT dots = C·B of a block, piece by piece of the states."""
    cdef const SsdCoefficient *B = &ssd.B
    cdef const real *src = B.p + held.batch * B.b + held.t * B.t + held.group * B.g
    cdef ix n = 0, depth
    memset(held.rows[0].dots, 0, (held.count + 1) * SSD_COLUMNS * sizeof(real))
    while n < ssd.states and not (n > 0 and interrupted(held.worker)):
        depth = min(<ix>SSD_DEPTH, ssd.states - n)
        if held.T < SSD_COLUMNS:
            memset(held.b, 0, depth * SSD_COLUMNS * sizeof(real))
        load_tile(src + n * B.n, B.t, B.n, held.T, depth, held.b, SSD_COLUMNS)
        ssd_dots_of(ssd, held, n, depth)
        n += SSD_DEPTH


# ---- one head ---------------------------------------------------------------------------------

cdef void ssd_load_head(const Ssd *ssd, ix head, SsdColumns *held) noexcept nogil:
    """OUT the step sizes of a head in the block, their sums, and how it decays."""
    cdef ix j
    held.rate = ssd.A.p[head * ssd.A.h] * LOG2E
    ssd_step_sizes(ssd, held.batch, held.t, held.T, head, held.size, NULL)
    held.total = sum_behind(held.size, held.T, held.x)
    held.decays = isfinite(held.rate) and held.rate <= 0
    for j in range(held.T):
        held.decays = held.decays and held.size[j] >= 0


cdef inline void ssd_attention_row(const SsdColumns *held, const real *dots, real gap,
                                   const real *x, ix n, real *y,
                                   const bint decays) noexcept nogil:
    """OUT y = C·B·Δ·exp(A·(gap + x)) of n columns.  0 stays 0 where exp overflows."""
    cdef vf rate = vset1(held.rate), behind = vset1(gap), w, e
    cdef ix j = 0
    while j < n:
        w = vload(dots + j) * vload(held.size + j)
        if decays:
            e = w * vexp2_neg(behind + vload(x + j), rate)
        else:
            e = vexp2_any(behind + vload(x + j), rate)
            e = vsel_lt(vset1(0), vabs(w), w * e, w * vmin(vset1(1), e))    # vmin keeps a NaN
        vstore(y + j, e)
        j += VL


cdef void ssd_diagonal_row(SsdColumns *held, const SsdRow *row, Sum *gap,
                           real *out) noexcept nogil:
    """A row through the block that holds its diagonal; OUT its gap."""
    cdef ix n = row.l - held.t + 1
    gap.value, gap.lost = sum_behind(held.size, n, held.x_row), 0
    if held.decays:
        ssd_attention_row(held, row.dots, 0, held.x_row, n, held.y, True)
    else:
        ssd_attention_row(held, row.dots, 0, held.x_row, n, held.y, False)
    memcpy(out + held.t, held.y, n * sizeof(real))


cdef void ssd_head_rows(SsdColumns *held, ix number) noexcept nogil:
    """All rows of a head through a block; `number` counts the task's heads."""
    cdef SsdRow *row
    cdef Sum *gap
    cdef real *out
    cdef double behind
    cdef ix i, j
    for i in range(held.count):
        row, gap = &held.rows[i], &held.gaps[number * held.count + i]
        out = row.out + number * held.apart
        if i % 8 == 0 and interrupted(held.worker):     # a row may touch a fresh page of 2 MiB
            return
        if row.l < held.t:
            continue
        if row.l < held.t + SSD_COLUMNS:
            ssd_diagonal_row(held, row, gap, out)
            continue
        behind = sum_of(gap)
        if held.decays and behind >= 0:
            ssd_attention_row(held, row.dots, <real>behind, held.x, SSD_COLUMNS, out + held.t, True)
        else:
            for j in range(SSD_COLUMNS):                # of both signs, perhaps: not to be rounded
                held.x_row[j] = <real>(behind + held.x[j])
            ssd_attention_row(held, row.dots, 0, held.x_row, SSD_COLUMNS, out + held.t, False)
        accumulate(gap, held.total)


# ---- tasks ------------------------------------------------------------------------------------

cdef ix ssd_set_rows(const SsdAttention *att, ix first, SsdColumns *held,
                     real *dots) noexcept nogil:
    """OUT the rows of a task from `first` on; the last step among them."""
    cdef const SsdCoefficient *C = &att.ssd.C
    cdef ix i, last = 0
    cdef SsdRow *row
    held.count, held.apart = min(<ix>SSD_WANTED, att.count - first), att.count * att.ssd.steps
    for i in range(held.count):
        row = &held.rows[i]
        row.l, row.dots = att.rows[first + i], dots + i * SSD_COLUMNS
        row.C = C.p + held.batch * C.b + row.l * C.t + held.group * C.g
        row.out = att.out + (held.batch * att.ssd.heads + held.head) * held.apart
        row.out += (first + i) * att.ssd.steps
        last = max(last, row.l)
    held.rows[held.count].dots = dots + held.count * SSD_COLUMNS
    return last


cdef void ssd_attention_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Some rows of some heads, from the last block of columns to the first."""
    cdef const SsdAttention *att = <const SsdAttention *>args
    cdef const Ssd *ssd = &att.ssd
    cdef SsdColumns held
    cdef ix item = i // att.row_tasks, share = item % att.head_tasks, number
    held.batch, held.group = item // att.head_tasks // ssd.groups, item // att.head_tasks
    held.group %= ssd.groups
    held.heads = min(<ix>SSD_SHARERS, ssd.per_group - share * SSD_SHARERS)
    held.head, held.worker = held.group * ssd.per_group + share * SSD_SHARERS, worker
    held.rows = <SsdRow *>worker.scratch
    held.gaps = <Sum *>(held.rows + SSD_WANTED + 1)
    held.size = <real *>(held.gaps + SSD_SHARERS * SSD_WANTED)
    held.x = held.size + SSD_COLUMNS
    held.x_row = held.x + SSD_COLUMNS
    held.y = held.x_row + SSD_COLUMNS
    held.b = held.y + SSD_COLUMNS
    memset(held.size, 0, 4 * SSD_COLUMNS * sizeof(real))
    held.t = ssd_set_rows(att, i % att.row_tasks * SSD_WANTED, &held,
                          held.b + SSD_DEPTH * SSD_COLUMNS)
    held.t -= held.t % SSD_COLUMNS
    while held.t >= 0 and not interrupted(worker):
        held.T = min(<ix>SSD_COLUMNS, ssd.steps - held.t)
        ssd_set_dots(ssd, &held)
        for number in range(held.heads):
            ssd_load_head(ssd, held.head + number, &held)
            ssd_head_rows(&held, number)
        held.t -= SSD_COLUMNS


cdef double ssd_attention_scratch() noexcept:
    """Bytes of scratch of a thread."""
    cdef double reals = SSD_COLUMNS * (4. + SSD_DEPTH + SSD_WANTED + 1)
    return ((SSD_WANTED + 1.) * sizeof(SsdRow) + SSD_SHARERS * SSD_WANTED * sizeof(Sum)
            + reals * sizeof(real))


cdef double divide_ssd_attention(SsdAttention *att) noexcept:
    """Tasks by the size of the call; the seconds that it takes."""
    cdef const Ssd *ssd = &att.ssd
    cdef double entries = <double>ssd.batch * ssd.heads * att.count * ssd.steps
    att.row_tasks = ceil_div(att.count, SSD_WANTED)
    att.head_tasks = ceil_div(ssd.per_group, SSD_SHARERS)
    return 1e-9 * entries * (0.5 + 0.03 * ssd.states / min(<ix>SSD_SHARERS, ssd.per_group))
