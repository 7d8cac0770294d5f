"""The arithmetic of the layers (docs/derivations.md §3, §4.1–4.4 and §5), in one compiled module.

The doors, which are the functions that Python calls, are here, and so is the order of the includes.
The arrays that come in are the room's own, checked where users passed them.  A door compares their
ranks, types and sizes all the same before anything is read, so that a mistake in this package is an
exception and no stray read.  `_kernels.pyi` has the signatures with their types and shapes.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.string cimport memcpy, memmove, memset
cimport numpy as cnp
import numpy as np
from fastderiv._core.gemm cimport GEMM_FAR, GEMM_ROWS, Gemm, gemm
from fastderiv._core.ints cimport ceil_div, round_up
from fastderiv._core.simd cimport (
    GL, VL, ix, real, vabs, vcopysign, vf, vfma, vkeep_nan, vload, vprefetch, vsel_lt, vset1,
    vsigmoid, vsigmoid_grad, vsilu, vsoftplus, vstore, vtail, vtanh, vtanh_slope, vtranspose,
)
from fastderiv._core.threads cimport Worker, interrupted, run

cnp.import_array()

include "_arrays.pxi"
include "_activations.pxi"
include "_dense.pxi"
include "_gemm.pxi"
include "_rows.pxi"
include "_lstm_problem.pxi"
include "_lstm_forward.pxi"
include "_lstm_adjoint.pxi"
include "_lstm_weight_sums.pxi"
include "_grid_problem.pxi"
include "_grid_products.pxi"
include "_grid_forward.pxi"
include "_grid_adjoint.pxi"
include "_grid_sweeps.pxi"


# ---- dense ---------------------------------------------------------------------------------------

def activate(cnp.ndarray x, cnp.ndarray bias, int curve, cnp.ndarray out):
    cdef Layer layer
    expect_layer(x, bias, out)
    if cnp.PyArray_SIZE(x) == 0:
        return
    _owner = set_bias(&layer, bias)
    layer.x, layer.out = reals_of(x), reals_of(out)
    layer.dy, layer.sums, layer.curve = NULL, NULL, <Curve>curve
    run_layer(&layer, x)


def activate_vjp(cnp.ndarray dy, cnp.ndarray x, cnp.ndarray bias, int curve, cnp.ndarray out):
    cdef Layer layer
    cdef cnp.ndarray sums = None
    expect_layer(x, bias, out)
    expect(holds(dy, cnp.PyArray_SIZE(x)))
    layer.sums = NULL
    if bias is not None:
        sums = set_sums(&layer, x)
    if cnp.PyArray_SIZE(x) == 0:
        return sums
    _owner = set_bias(&layer, bias)
    layer.x, layer.out = reals_of(x), reals_of(out)
    layer.dy, layer.curve = reals_of(dy), <Curve>curve
    run_layer(&layer, x)
    return sums


def column_groups(cnp.ndarray x):
    cdef Layer layer
    expect_layer(x, None, x)
    cdef cnp.ndarray sums = set_sums(&layer, x)
    if cnp.PyArray_SIZE(x) == 0:
        return sums
    layer.x, layer.out = NULL, reals_of(x)
    run_layer(&layer, x)
    return sums


# ---- LSTM ----------------------------------------------------------------------------------------

def aligned(ix size):
    return aligned_array(size)


def lstm_units(ix hidden):
    return ceil_div(hidden, VL), VL


def lstm(cnp.ndarray x, cnp.ndarray weight_ih, cnp.ndarray weight_hh, cnp.ndarray bias,
         cnp.ndarray h0, cnp.ndarray c0, cnp.ndarray order, cnp.ndarray lengths,
         cnp.ndarray h, cnp.ndarray h_n, cnp.ndarray c_n, cnp.ndarray gates, cnp.ndarray cells):
    cdef Lstm s
    expect(ranked(x, 3) and ranked(weight_hh, 2))
    set_sizes(&s, x, cnp.PyArray_DIM(x, 2), cnp.PyArray_DIM(weight_hh, 1), order, lengths)
    cdef double states = <double>s.batch * s.hidden, entries = <double>s.steps * s.batch
    expect_weights(&s, weight_ih, weight_hh)
    expect(holds(x, entries * s.inputs) and ranked(bias, 2) and holds(bias, 4. * s.hidden))
    expect(may_hold(h0, states) and may_hold(c0, states) and may_hold(h, entries * s.hidden))
    expect(holds(h_n, states) and holds(c_n, states) and (gates is None) == (cells is None))
    if gates is not None:
        expect_kept(&s, gates, cells)
    cdef cnp.ndarray w_x = pack_gates(weight_ih, s.hidden, s.panel)
    cdef cnp.ndarray w_h = pack_gates(weight_hh, s.hidden, s.panel)
    cdef cnp.ndarray b = pack_gates(bias, s.hidden, PW)
    s.x, s.h0, s.c0 = reals_of(x), reals_of(h0), reals_of(c0)
    s.w_x, s.w_h, s.bias = reals_of(w_x), reals_of(w_h), reals_of(b)
    s.h, s.h_n, s.c_n = reals_of(h), reals_of(h_n), reals_of(c_n)
    s.gates, s.cells = reals_of(gates), reals_of(cells)
    run(lstm_forward, &s, s.tasks, forward_scratch(&s),
        lstm_seconds(entries * s.hidden * (s.hidden + s.inputs)))


def lstm_adjoint(cnp.ndarray dh, cnp.ndarray dh_n, cnp.ndarray dc_n, cnp.ndarray weight_ih,
                 cnp.ndarray weight_hh, cnp.ndarray c0, cnp.ndarray order, cnp.ndarray lengths,
                 cnp.ndarray gates, cnp.ndarray cells, cnp.ndarray abar, cnp.ndarray h,
                 cnp.ndarray dx, cnp.ndarray dh0, cnp.ndarray dc0, cnp.ndarray hbar,
                 cnp.ndarray cbar):
    cdef LstmAdjoint s
    cdef Lstm *f = &s.f
    expect(ranked(dh, 3) and ranked(weight_ih, 2) and ranked(weight_hh, 2))
    set_sizes(f, dh, cnp.PyArray_DIM(weight_ih, 1), cnp.PyArray_DIM(weight_hh, 1), order, lengths)
    cdef double states = <double>f.batch * f.hidden, entries = <double>f.steps * f.batch
    expect_weights(f, weight_ih, weight_hh)
    expect_kept(f, gates, cells)
    expect(holds(dh, entries * f.hidden) and may_hold(dh_n, states) and may_hold(dc_n, states))
    expect(may_hold(c0, states) and holds(dh0, states) and holds(dc0, states))
    expect(may_hold(hbar, entries * f.hidden) and may_hold(cbar, entries * f.hidden))
    expect((hbar is None) == (cbar is None) and (abar is None) == (h is None) == (dx is None))
    if abar is not None:
        expect(holds(abar, cnp.PyArray_SIZE(gates)) and holds(h, entries * f.hidden))
        expect(holds(dx, entries * f.inputs))
    cdef cnp.ndarray w_x = pack_panels(weight_ih, f.panel)
    cdef cnp.ndarray w_h = pack_panels(weight_hh, f.panel)
    s.x_panels, s.h_panels = ceil_div(f.inputs, f.panel), ceil_div(f.hidden, f.panel)
    f.c0, f.gates, f.cells = reals_of(c0), reals_of(gates), reals_of(cells)
    s.dh, s.dh_n, s.dc_n = reals_of(dh), reals_of(dh_n), reals_of(dc_n)
    s.w_x, s.w_h, s.abar, s.h = reals_of(w_x), reals_of(w_h), reals_of(abar), reals_of(h)
    s.dx, s.dh0, s.dc0 = reals_of(dx), reals_of(dh0), reals_of(dc0)
    s.hbar, s.cbar = reals_of(hbar), reals_of(cbar)
    run(lstm_backward, &s, f.tasks, adjoint_scratch(&s),
        lstm_seconds(entries * f.hidden * (f.hidden + (0 if dx is None else f.inputs))))


def lstm_weight_sums(cnp.ndarray abar, cnp.ndarray x, cnp.ndarray h, cnp.ndarray h0,
                     cnp.ndarray order, cnp.ndarray lengths, ix hidden):
    cdef WeightSums s
    cdef Lstm *f = &s.f
    expect(ranked(x, 3) and hidden >= 0)
    set_sizes(f, x, cnp.PyArray_DIM(x, 2), hidden, order, lengths)
    cdef double entries = <double>f.steps * f.batch
    expect(holds(x, entries * f.inputs) and holds(h, entries * hidden))
    expect(holds(abar, entries * 4 * f.unit_vectors * VL))
    expect(may_hold(h0, <double>f.batch * hidden))
    f.x, f.h0, s.abar, s.h = reals_of(x), reals_of(h0), reals_of(abar), reals_of(h)
    cdef cnp.ndarray w_x = zero_weight_sums(&s.x, f.unit_vectors, f.inputs)
    cdef cnp.ndarray w_h = zero_weight_sums(&s.recurrent, f.unit_vectors, hidden)
    cdef cnp.ndarray bias = aligned_array(f.unit_vectors * PW)
    s.bias = reals_of(bias)
    memset(s.bias, 0, f.unit_vectors * PW * sizeof(real))
    run(sum_weights, &s, sum_tasks(&s), SUM_ENTRIES * SUM_STRIDE * <double>sizeof(real),
        lstm_seconds(entries * hidden * (f.inputs + hidden)))
    return w_x, w_h, bias


# ---- grid RNN ------------------------------------------------------------------------------------

def grid_forward(cnp.ndarray x, cnp.ndarray weights, cnp.ndarray bias, int curve, cnp.ndarray h):
    cdef Grid g
    _owners = set_grid(&g, x, weights, bias, <Curve>curve)
    expect(holds(h, count_cells(x) * g.H))
    g.h.p = reals_of(h)
    g.task_items = items_of_task(&g)
    run(grid_forward_task, &g, ceil_div(g.batch, g.task_items), grid_scratch(&g), grid_seconds(&g))


def grid_adjoint(cnp.ndarray dh, cnp.ndarray x, cnp.ndarray weights, cnp.ndarray bias,
                 cnp.ndarray W_in, cnp.ndarray turned, int curve, cnp.ndarray dx):
    cdef Grid g
    _owners = set_grid(&g, x, weights, bias, <Curve>curve)
    _panels, shares = set_grid_adjoint(&g, dh, W_in, turned, dx)
    cdef double states = 2. * g.task_items * g.h.item * sizeof(real)
    run(grid_adjoint_task, &g, ceil_div(g.batch, g.task_items), grid_scratch(&g) + states,
        3 * grid_seconds(&g))
    return shares
