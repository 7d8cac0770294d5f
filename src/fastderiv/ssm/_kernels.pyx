"""The arithmetic of the scans (docs/derivations.md §1 and §6), in one compiled module.

The rest is included below, in this order; nothing sees what stands further down.  Each family has a
folder, and in it a file `_doors.pxi`: every `def` that Python calls, declared to Python in
_kernels.pyi.  A door fills a struct from arrays and runs tasks on it.

    _arrays.pxi                 the doors' checks: from arrays to pointers; running tasks
    s6/_problem.pxi             structs: arrays, a call, the division of channels, a task's burden
    s6/_tiles.pxi               blocks of signals, transposed into [time, lane] and back
    s6/_lanes.pxi               Lanes: parameters and state of VL channels, B and C of a block
    s6/_door.pxi                from arrays to these structs
    s6/_remembered.pxi          what a scan keeps for its adjoint
    s6/_scan.pxi                forward, in one fused pass
    s6/_coefficient_sums.pxi    adjoint: the sums over channels that dB and dC are
    s6/_replay.pxi              adjoint: the recurrence forward once more, and back
    s6/_recall.pxi              adjoint: checkpoints, from scratch or from a cache
    s6/_adjoint.pxi             adjoint: a block, a segment
    s6/_adjoint_task.pxi        adjoint: how the work is divided
    s6/_step.pxi                one step, as a decoder takes it
    s6/_step_sum.pxi            sums of step sizes
    s6/_attention.pxi           rows of the expanded recurrence
    s6/_doors.pxi               the doors of the selective scan
    ssd/_problem.pxi            structs of the SSD functions; step sizes
    ssd/_door.pxi               from arrays to these structs
    ssd/_scan_decays.pxi        the scale of the state: runs of steps
    ssd/_scan_rows.pxi          signals and states as rows of vectors
    ssd/_scan.pxi               the SSD scan forward
    ssd/_scan_short.pxi         the same of a short segment, as one chunk
    ssd/_scan_task.pxi          how its work is divided
    ssd/_step.pxi               one step, as a decoder takes it
    ssd/_attention.pxi          rows of the expanded recurrence
    ssd/_chunks.pxi             products of decays
    ssd/_adjoint.pxi            adjoint: the products of one head in a chunk
    ssd/_adjoint_sweeps.pxi     adjoint: heads through a segment, forward and back
    ssd/_adjoint_task.pxi       adjoint: how the work is divided
    ssd/_doors.pxi              the doors of the SSD functions
    conv/_problem.pxi           structs of the causal convolution; how it is divided; its tiles
    conv/_forward.pxi           the convolution
    conv/_adjoint.pxi           its adjoint
    conv/_step.pxi              its steps, as a decoder takes them
    conv/_doors.pxi             the doors of the causal convolution
    linear/_problem.pxi         the linear recurrence: a call, the order of its axes, its columns
    linear/_lanes.pxi           columns in the lanes of a vector, block by block
    linear/_chains.pxi          a few columns, number by number
    linear/_wide.pxi            columns that are neighbours, step by step
    linear/_task.pxi            how its columns are divided; forward, adjoint
    linear/_doors.pxi           its doors

The selective scan: VL channels lie in the lanes of a vector.  A task carries a few such vectors
through time in blocks of TB steps: a block of each input is transposed into a tile [time, lane],
every four states run through the block with h in registers, and the finished tile of y is
transposed out.  No array of D·L·N elements exists.

Every output of the room is computed by the same operations in the same order whatever the strides,
the blocks, the tasks and the threads are.
"""
from libc.math cimport INFINITY, isfinite
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memmove, memset
cimport numpy as cnp
import numpy as np
from fastderiv._core.gemm cimport GEMM_LOWER, GEMM_ROWS, GEMM_SET, GEMM_UPPER, Gemm, gemm
from fastderiv._core.ints cimport ceil_div, round_up
from fastderiv._core.simd cimport (
    EXP2_SAFE, FOURS, GL, LOG2E, NS, PARTS, SHARE, VL, ix, real, vabs, vall_lt, vdecay_any,
    vdecay_safe, vexp, vexp2_any, vexp2_neg, vf, vfma, vkeep_nan, vload, vload_some, vmax, vmin,
    vpartsums, vprefetch, vprefetch_far, vratio_any, vratio_safe, vsel_lt, vset1, vsilu,
    vsilu_slope, vsoftplus, vsoftplus_slope, vstore, vstore_some, vstream, vstream_end,
    vtranspose)
from fastderiv._core.threads cimport Worker, interrupted, run, task_t
from fastderiv._core.arrays import check_fits, empty

cnp.import_array()

include "_arrays.pxi"
include "s6/_problem.pxi"
include "s6/_tiles.pxi"
include "s6/_lanes.pxi"
include "s6/_door.pxi"
include "s6/_remembered.pxi"
include "s6/_scan.pxi"
include "s6/_coefficient_sums.pxi"
include "s6/_replay.pxi"
include "s6/_recall.pxi"
include "s6/_adjoint.pxi"
include "s6/_adjoint_task.pxi"
include "s6/_step.pxi"
include "s6/_step_sum.pxi"
include "s6/_attention.pxi"
include "s6/_doors.pxi"
include "ssd/_problem.pxi"
include "ssd/_door.pxi"
include "ssd/_scan_decays.pxi"
include "ssd/_scan_rows.pxi"
include "ssd/_scan.pxi"
include "ssd/_scan_short.pxi"
include "ssd/_scan_task.pxi"
include "ssd/_step.pxi"
include "ssd/_attention.pxi"
include "ssd/_chunks.pxi"
include "ssd/_adjoint.pxi"
include "ssd/_adjoint_sweeps.pxi"
include "ssd/_adjoint_task.pxi"
include "ssd/_doors.pxi"
include "conv/_problem.pxi"
include "conv/_forward.pxi"
include "conv/_adjoint.pxi"
include "conv/_step.pxi"
include "conv/_doors.pxi"
include "linear/_problem.pxi"
include "linear/_lanes.pxi"
include "linear/_chains.pxi"
include "linear/_wide.pxi"
include "linear/_task.pxi"
include "linear/_doors.pxi"
