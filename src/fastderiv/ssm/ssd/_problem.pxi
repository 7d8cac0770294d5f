# A call of the SSD functions as structs: its arrays, heads and groups (docs/derivations.md §6.1).
# Included by _kernels.pyx.

# ---- arrays; strides in elements --------------------------------------------------------------

cdef struct SsdSignal:                  # x, z, y and their gradients (Bt, L, H, P)
    real *p
    ix b, t, h, p_                      # p_: from one of a head's P numbers to the next

cdef struct SsdSteps:                   # dt (Bt, L, H)
    real *p
    ix b, t, h

cdef struct SsdCoefficient:             # B or C (Bt, L, G, N)
    real *p
    ix b, t, g, n

cdef struct SsdState:                   # initial or last state (segments, H, P, N)
    real *p
    ix s, h, p_, n

cdef struct SsdPerHead:                 # A, dt_bias (H,); D (H,) or (H, P), p_ = 0 if (H,)
    real *p
    ix h, p_


# ---- a call -----------------------------------------------------------------------------------

cdef struct Ssd:
    SsdSignal x, z, y
    SsdSteps dt
    SsdCoefficient B, C                 # of the same groups and states
    SsdPerHead A, D, bias
    SsdState initial_state, last_state
    bint softplus
    real low, high                      # of a step size
    const ix *starts                    # of packed segments; NULL: one segment a batch item
    ix batch, segments, steps
    ix heads, width, groups, states     # H, P, G, N
    ix per_group                        # heads that share B and C

cdef struct SsdSegment:                 # the steps start … stop−1 of a batch item
    ix batch, start, stop


cdef SsdSegment ssd_segment(const Ssd *ssd, ix number) noexcept nogil:
    cdef SsdSegment segment
    if ssd.starts is NULL:
        segment.batch, segment.start, segment.stop = number, 0, ssd.steps
    else:
        segment.batch, segment.start = 0, ssd.starts[number]
        segment.stop = ssd.starts[number + 1]
    return segment


# ---- states that a forward pass keeps for its adjoint -------------------------------------------
# A segment is cut into chunks of SSD_CHUNK steps; the last may be shorter.  `kept` is an array
# (slots, H, N, P), contiguous, of the true (unscaled) states before the first step of each chunk.
# Chunk c of a segment lies in the slot ssd_first_slot + c.  Slots of packed segments need no table:
# ceil((b − a)/Q) ≤ floor(b/Q) − floor(a/Q) + 1.  Some may be unused; they hold nothing.

cdef enum:
    SSD_CHUNK = 64                      # as CHUNK in _call.py


cdef inline ix ssd_slots(const Ssd *ssd) noexcept nogil:
    """How many slots an array of kept states has."""
    if ssd.starts is NULL:
        return ssd.batch * ceil_div(ssd.steps, SSD_CHUNK)
    return ssd.steps // SSD_CHUNK + ssd.segments


cdef inline ix ssd_first_slot(const Ssd *ssd, ix segment) noexcept nogil:
    """The slot of a segment's first chunk."""
    if ssd.starts is NULL:
        return segment * ceil_div(ssd.steps, SSD_CHUNK)
    return ssd.starts[segment] // SSD_CHUNK + segment


cdef inline real *ssd_kept_state(const Ssd *ssd, real *kept, ix segment, ix chunk,
                                 ix head) noexcept nogil:
    """The state (N, P) of a head before a chunk."""
    cdef ix slot = ssd_first_slot(ssd, segment) + chunk
    return kept + (slot * ssd.heads + head) * ssd.states * ssd.width


# ---- step sizes -------------------------------------------------------------------------------

cdef void ssd_step_sizes(const Ssd *ssd, ix batch, ix start, ix count, ix head,
                         real *size, real *slope) noexcept nogil:
    """Step sizes Δ = clamp(softplus(dt + bias)) of `count` steps of a head from `start` on.

    OUT size: Δ; slope: dΔ/d(dt + bias), unless it is NULL.  Both have room for round_up(count, VL).
    A clamp that is active has slope 0.
    """
    cdef const real *dt = ssd.dt.p + batch * ssd.dt.b + start * ssd.dt.t + head * ssd.dt.h
    cdef real bias = 0 if ssd.bias.p is NULL else ssd.bias.p[head * ssd.bias.h]
    cdef vf low = vset1(ssd.low), high = vset1(ssd.high), raw, own, clamped
    cdef ix t
    for t in range(count):
        size[t] = dt[t * ssd.dt.t] + bias
    for t in range(count, round_up(count, VL)):
        size[t] = 0
    t = 0
    while t < count:
        raw = vload(size + t)
        own = vset1(1)
        if ssd.softplus:
            raw = vsoftplus_slope(raw, &own)
        clamped = vkeep_nan(raw, vmin(vmax(raw, low), high))
        vstore(size + t, clamped)
        if slope is not NULL:
            own = vsel_lt(raw, low, vset1(0), own)
            vstore(slope + t, vsel_lt(high, raw, vset1(0), own))
        t += VL
