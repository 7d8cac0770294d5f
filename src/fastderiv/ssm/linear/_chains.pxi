# A few columns of the linear recurrence, number by number where they lie (docs/derivations.md
# §6.7).  Included by _kernels.pyx.
#
# Each is a chain of operations that wait for one another; up to CHAINS of them are interleaved.
# needs: CHAINS, linear_chains, linear_collect, LINEAR_STATES, LINEAR_SUMMED, LINEAR_SUMS,
#        LinearChains, LinearColumns, LinearPass, LinearScratch, LinearStream (linear/_problem.pxi)

cdef enum:
    LINEAR_STRETCH = 1 << 16                   # steps between two looks for signals


cdef inline real *chain_start(const LinearStream *x, const LinearColumns *columns,
                              ix i) noexcept nogil:
    return x.p + columns.at[x.array][i]


cdef void set_chains(const LinearPass *run, const LinearColumns *columns, ix first, ix count,
                     LinearScratch *scratch, LinearChains *chains) noexcept nogil:
    """OUT chains: so many columns from this one on."""
    cdef ix i
    memset(chains, 0, sizeof(LinearChains))
    chains.a_t = 0 if run.constant else run.a.t
    chains.b_t, chains.dh_t, chains.out_t = run.b.t, run.dh.t, run.out.t
    for i in range(count):
        chains.a[i] = chain_start(&run.a, columns, first + i)
        chains.b[i] = chain_start(&run.b, columns, first + i)
        if run.what != LINEAR_STATES:
            chains.dh[i] = chain_start(&run.dh, columns, first + i)
        if run.what != LINEAR_SUMS:
            chains.out[i] = chain_start(&run.out, columns, first + i)
        if run.constant:
            chains.a[i] = scratch.a + first + i


cdef void run_linear_chains(const LinearPass *run, const LinearColumns *columns,
                            LinearScratch *scratch, Worker *worker) noexcept nogil:
    cdef LinearChains chains
    cdef ix first = 0, count, t, n
    cdef ix stretch = LINEAR_SUMMED if run.what == LINEAR_SUMS else LINEAR_STRETCH
    while first < columns.count:
        count, t = min(<ix>CHAINS, columns.count - first), 0
        set_chains(run, columns, first, count, scratch, &chains)
        while t < run.steps and not (t % LINEAR_STRETCH == 0 and interrupted(worker)):
            n = min(stretch, run.steps - t)
            linear_chains(&chains, <int>count, run.what, t, n, scratch.h + first,
                          scratch.sums + first)
            if run.what == LINEAR_SUMS:
                linear_collect(scratch.sums + first, count, scratch.totals + first)
            t += n
        first += CHAINS
