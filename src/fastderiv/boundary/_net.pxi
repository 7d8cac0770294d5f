# A network as the kernels see it, and a batch of its rows: docs/derivations.md §2.1.

cdef extern from "panels.h" nogil:
    enum: AT_ONCE, PANELS
    ctypedef struct Panel:
        const real *w
        const real *b
        ix n, next
    void dense_block(const Panel *panel, const real *y, real *z, ix ts, int NO, bint turned)
    void units_block(const real *w, ix panel, const real *b, const real *y, real *z, ix n, int NP)

cdef extern from "rounding.h" nogil:
    const double ROUND                  # u = 2⁻⁵³
    const real WIDE, LEAST              # 32u; the smallest normal number

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

cdef struct Batch:                      # IN X (…, n_in); OUT out (m, n_out) or (m, n_in)
    const Net *net
    const real *X
    ix m, x_row, x_col                  # strides in elements
    const ix *pick                      # row of X for each of the m, or NULL
    const real *t                       # (m,) replaces input `coordinate`, or NULL
    ix coordinate
    real *out
    ix tile_rows, task_rows
    bint squash                         # σ on the outputs too
    bint gradient                       # out is the gradient of the only output


cdef inline ix padded(ix n) noexcept nogil:
    return round_up(n, GL)
