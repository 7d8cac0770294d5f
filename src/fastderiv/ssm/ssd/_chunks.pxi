# The product of the decays of a chunk, P = exp(A·ΣΔ) (docs/derivations.md §6.5).  It is formed once
# from the sum, which is compensated: the rounding errors of equal steps would add up.  Included by
# _kernels.pyx.
# needs: accumulate, Sum, sum_of (s6/_step_sum.pxi)
# needs: Ssd, ssd_step_sizes (ssd/_problem.pxi)

cdef enum:
    SSD_CHUNK_HEADS = 32                # of a task: neighbours in memory, step by step
    SSD_CHUNK_STEPS = 64                # steps of a block, a multiple of VL

cdef struct SsdChunk:
    Ssd ssd                             # of which dt, A, bias and sizes are set
    real *out                           # (Bt, H), contiguous
    ix tasks                            # of a batch item


cdef real ssd_chunk_product(real rate, const Sum *sum) noexcept nogil:
    """exp(rate·sum), the exponent to more than the working precision."""
    cdef double exponent = rate * sum_of(sum)
    cdef real rounded = <real>exponent, e[VL]
    vstore(e, vexp(vset1(rounded)))
    if isfinite(<double>rounded):
        e[0] += e[0] * <real>(exponent - rounded)
    return e[0]


cdef void ssd_chunk_task(void *args, ix i, Worker *worker) noexcept nogil:
    """P of some heads of a batch item."""
    cdef const SsdChunk *chunk = <const SsdChunk *>args
    cdef const Ssd *ssd = &chunk.ssd
    cdef real *size = <real *>worker.scratch
    cdef Sum sums[SSD_CHUNK_HEADS]
    cdef ix batch = i // chunk.tasks, first = i % chunk.tasks * SSD_CHUNK_HEADS
    cdef ix t = 0, n, head, step
    cdef ix heads = min(<ix>SSD_CHUNK_HEADS, ssd.heads - first)
    memset(sums, 0, sizeof(sums))
    while t < ssd.steps:
        if interrupted(worker):
            return
        n = min(<ix>SSD_CHUNK_STEPS, ssd.steps - t)
        for head in range(heads):
            ssd_step_sizes(ssd, batch, t, n, first + head, size, NULL)
            for step in range(n):
                accumulate(&sums[head], size[step])
        t += SSD_CHUNK_STEPS
    for head in range(heads):
        chunk.out[batch * ssd.heads + first + head] = ssd_chunk_product(
            ssd.A.p[(first + head) * ssd.A.h], &sums[head])
