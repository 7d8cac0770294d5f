# ---- roots as they are found --------------------------------------------------------------------------------------

cdef enum:
    CLUSTER, UNIQUE                     # what an enclosure is known to hold: all roots near there, or exactly one, simple

cdef struct Sink:                       # OUT the enclosures of one task's rows, row by row and ascending when it ends
    ix *row
    double *lower
    double *upper
    double *x
    char *kind
    ix n, cap                           # n counts on beyond cap, where nothing is stored: the task is then run again


cdef inline void emit(Sink *s, ix row, double lower, double upper, double x, char kind) noexcept nogil:
    if s.n < s.cap:
        s.row[s.n], s.lower[s.n], s.upper[s.n], s.x[s.n], s.kind[s.n] = row, lower, upper, x, kind
    s.n += 1
