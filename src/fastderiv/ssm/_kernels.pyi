"""What the compiled kernels of this room offer: `_core.dispatch.kernels("ssm")` returns them by
dtype.

Arrays have the dtype of the kernels and any strides; shapes and types are checked by the kernels,
and a mistake in them is a TypeError.  ``cu_seqlens`` are (segments + 1,) contiguous intp,
non-decreasing from 0 to L, which the kernels do not check; without them every batch item is one
segment.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

class Kernels(Protocol):
    def scan(
        self,
        u: NDArray[Any],
        delta: NDArray[Any],
        A: NDArray[Any],
        B: NDArray[Any],
        C: NDArray[Any] | None,
        D: NDArray[Any] | None,
        z: NDArray[Any] | None,
        delta_bias: NDArray[Any] | None,
        delta_softplus: bool,
        initial_state: NDArray[Any] | None,
        cu_seqlens: NDArray[np.intp] | None,
        last_state: NDArray[Any] | None,
        out: NDArray[Any] | None,
        states: NDArray[Any] | None,
        span: int,
        checks: NDArray[np.uint64] | None,
    ) -> None:
        """The selective scan (docs/derivations.md §1.1).

        IN u, delta, z (Bt, D, L); A (D, N); B, C (D, N) or (Bt, G, N, L) with G dividing D; D,
        delta_bias (D,); initial_state (segments, D, N).  OUT last_state (segments, D, N); out
        (Bt, D, L).  C may be None only where out is.

        OUT states (Bt·D·(L // span)·N,) contiguous: those before every `span` steps, 32, 64 or
        128, for the adjoint; in these, checks (3,) contiguous, zero before: the checksums of delta,
        u and z, if they are wanted.
        """

    def adjoint(
        self,
        dout: NDArray[Any],
        u: NDArray[Any],
        delta: NDArray[Any],
        A: NDArray[Any],
        B: NDArray[Any],
        C: NDArray[Any],
        D: NDArray[Any] | None,
        z: NDArray[Any] | None,
        delta_bias: NDArray[Any] | None,
        delta_softplus: bool,
        initial_state: NDArray[Any] | None,
        cu_seqlens: NDArray[np.intp] | None,
        longest: int,
        dlast_state: NDArray[Any] | None,
        du: NDArray[Any],
        ddelta: NDArray[Any],
        dz: NDArray[Any] | None,
        dinitial_state: NDArray[Any] | None,
        dB: NDArray[Any] | None,
        dC: NDArray[Any] | None,
        states: NDArray[Any] | None,
        span: int,
        checks: NDArray[np.uint64] | None,
    ) -> NDArray[Any]:
        """The adjoint of `scan` (docs/derivations.md §1.4).

        IN dout (Bt, D, L); dlast_state (segments, D, N); the arguments of `scan`; the number of
        steps of the longest segment.  OUT du, ddelta, dz (Bt, D, L), dz where z is given;
        dinitial_state (segments, D, N); dB, dC (Bt, G, N, L), contiguous and zero before, where B
        or C varies.  IN states and span, as `scan` left them, or None.  OUT checks, as of `scan`.

        Returns sums over batch and time (ranges, rows, D), yet to be summed over the ranges.  Rows
        are dA state by state, then dB and dC likewise where they are constant, dD, and dbias.
        """

    def step(
        self,
        state: NDArray[Any],
        x: NDArray[Any],
        dt: NDArray[Any],
        A: NDArray[Any],
        B: NDArray[Any],
        C: NDArray[Any],
        D: NDArray[Any] | None,
        z: NDArray[Any] | None,
        dt_bias: NDArray[Any] | None,
        dt_softplus: bool,
        out: NDArray[Any],
    ) -> None:
        """One step of the scan (docs/derivations.md §1.1), never interrupted.

        IN x, dt, z (Bt, D); A (D, N); B, C (Bt, N) or (Bt, G, N) with G dividing D; D, dt_bias
        (D,).  IN OUT state (Bt, D, N).  OUT out (Bt, D).  Without Bt, it is missing everywhere.
        """

    def step_sum(
        self,
        delta: NDArray[Any],
        delta_bias: NDArray[Any] | None,
        delta_softplus: bool,
        total: NDArray[Any],
    ) -> None:
        """The sum of all step sizes of a channel (docs/derivations.md §1.7).

        IN delta (Bt, D, L); delta_bias (D,).  OUT total (Bt, D) = Σ Δ, contiguous.
        """

    def attention(
        self,
        delta: NDArray[Any],
        A: NDArray[Any],
        B: NDArray[Any],
        C: NDArray[Any],
        delta_bias: NDArray[Any] | None,
        delta_softplus: bool,
        rows: NDArray[np.intp],
        out: NDArray[Any],
    ) -> None:
        """Rows of the hidden attention (docs/derivations.md §1.2).

        IN delta, A, B, C and delta_bias as of `scan`; rows (R,) contiguous, in [0, L), which is not
        checked.  OUT out (Bt, D, R, L), contiguous and zero before.
        """

    def convolution(
        self,
        x: NDArray[Any],
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        silu: bool,
        initial_state: NDArray[Any] | None,
        cu_seqlens: NDArray[np.intp] | None,
        last_state: NDArray[Any] | None,
        out: NDArray[Any],
    ) -> None:
        """The causal convolution (docs/derivations.md §6.6).

        IN x (Bt, D, L); weight (D, K), K ≥ 1; bias (D,); initial_state (segments, D, K − 1).  OUT
        last_state (segments, D, K − 1); out (Bt, D, L).
        """

    def convolution_adjoint(
        self,
        dout: NDArray[Any],
        x: NDArray[Any],
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        silu: bool,
        initial_state: NDArray[Any] | None,
        cu_seqlens: NDArray[np.intp] | None,
        dlast_state: NDArray[Any] | None,
        dx: NDArray[Any],
        dinitial_state: NDArray[Any] | None,
    ) -> NDArray[Any]:
        """The adjoint of `convolution` (docs/derivations.md §6.6).

        IN dout (Bt, D, L); dlast_state (segments, D, K − 1); the arguments of `convolution`.  OUT
        dx (Bt, D, L); dinitial_state (segments, D, K − 1), except that of empty segments.

        Returns sums (shares, K + 1, D), yet to be summed over the shares: dweight, tap by tap, and
        dbias.
        """

    def convolution_step(
        self,
        x: NDArray[Any],
        state: NDArray[Any],
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        silu: bool,
        out: NDArray[Any],
    ) -> None:
        """Steps of the convolution (docs/derivations.md §6.6), never interrupted.

        IN x (Bt, D, S); weight (D, K), K ≥ 1; bias (D,).  IN OUT state (Bt, D, W), W ≥ K − 1.  OUT
        out (Bt, D, S).
        """

    def ssd_scan(
        self,
        x: NDArray[Any],
        dt: NDArray[Any],
        A: NDArray[Any],
        B: NDArray[Any],
        C: NDArray[Any] | None,
        D: NDArray[Any] | None,
        z: NDArray[Any] | None,
        dt_bias: NDArray[Any] | None,
        dt_softplus: bool,
        low: float,
        high: float,
        initial_state: NDArray[Any] | None,
        cu_seqlens: NDArray[np.intp] | None,
        last_state: NDArray[Any] | None,
        kept: NDArray[Any] | None,
        out: NDArray[Any] | None,
    ) -> None:
        """Mamba-2's scan (docs/derivations.md §6.1).

        IN x, z (Bt, L, H, P); dt (Bt, L, H); A, dt_bias (H,); B, C (Bt, L, G, N) with G dividing H;
        D (H,) or (H, P); step sizes are limited to [low, high]; initial_state (segments, H, P, N).
        OUT last_state (segments, H, P, N); kept (slots, H, N, P), contiguous, the states before
        chunks as ssd/_problem.pxi says; out (Bt, L, H, P).  C may be None only where out is.
        """

    def ssd_adjoint(
        self,
        dout: NDArray[Any],
        x: NDArray[Any],
        dt: NDArray[Any],
        A: NDArray[Any],
        B: NDArray[Any],
        C: NDArray[Any],
        D: NDArray[Any] | None,
        z: NDArray[Any] | None,
        dt_bias: NDArray[Any] | None,
        dt_softplus: bool,
        low: float,
        high: float,
        initial_state: NDArray[Any] | None,
        cu_seqlens: NDArray[np.intp] | None,
        longest: int,
        dlast_state: NDArray[Any] | None,
        kept: NDArray[Any] | None,
        dx: NDArray[Any],
        ddt: NDArray[Any],
        dz: NDArray[Any] | None,
        dinitial_state: NDArray[Any] | None,
        dB: NDArray[Any],
        dC: NDArray[Any],
    ) -> NDArray[np.float64]:
        """The adjoint of `ssd_scan` (docs/derivations.md §6.4).

        IN dout (Bt, L, H, P); dlast_state (segments, H, P, N); the arguments of `ssd_scan`, and
        `kept` as it has written it, or None; the number of steps of the longest segment.  OUT dx,
        dz (Bt, L, H, P), dz where z is given; ddt (Bt, L, H); dinitial_state (segments, H, P, N)
        where initial_state is given; dB, dC (Bt, L, G, N), contiguous.

        Returns sums over batch and time (ranges, H, 2 or more), yet to be summed over the ranges.
        They are dA, dbias, and dD: one number, or P numbers if D is (H, P).
        """

    def ssd_step(
        self,
        state: NDArray[Any],
        x: NDArray[Any],
        dt: NDArray[Any],
        A: NDArray[Any],
        B: NDArray[Any],
        C: NDArray[Any],
        D: NDArray[Any] | None,
        z: NDArray[Any] | None,
        dt_bias: NDArray[Any] | None,
        dt_softplus: bool,
        out: NDArray[Any],
    ) -> None:
        """One step of Mamba-2's scan (docs/derivations.md §6.5), never interrupted.

        IN x, z (Bt, H, P); dt (Bt, H); A, dt_bias (H,); B, C (Bt, N) or (Bt, G, N), of the same
        groups, G dividing H; D (H,) or (H, P).  IN OUT state (Bt, H, P, N).  OUT out (Bt, H, P).
        Without Bt, it is missing everywhere.
        """

    def ssd_attention(
        self,
        dt: NDArray[Any],
        A: NDArray[Any],
        B: NDArray[Any],
        C: NDArray[Any],
        dt_bias: NDArray[Any] | None,
        dt_softplus: bool,
        low: float,
        high: float,
        rows: NDArray[np.intp],
        out: NDArray[Any],
    ) -> None:
        """Rows of the SSD scan's hidden attention (docs/derivations.md §6.5).

        IN dt, A, B, C, dt_bias and limits as of `ssd_scan`; rows (R,) contiguous, in [0, L), which
        is not checked.  OUT out (Bt, H, R, L), contiguous and zero before.
        """

    def ssd_decay(
        self,
        dt: NDArray[Any],
        A: NDArray[Any],
        B: NDArray[Any],
        dt_bias: NDArray[Any] | None,
        dt_softplus: bool,
        low: float,
        high: float,
        out: NDArray[Any],
    ) -> None:
        """The product of all decays of a head (docs/derivations.md §6.5).

        IN dt, A, B, dt_bias and limits as of `ssd_scan`.  OUT out (Bt, H) = exp(A Σ Δ), contiguous.
        """

    def linear_scan(
        self,
        a: NDArray[Any],
        b: NDArray[Any],
        axis: int,
        reverse: bool,
        initial_state: NDArray[Any] | None,
        last_state: NDArray[Any] | None,
        out: NDArray[Any],
    ) -> None:
        """The linear recurrence along an axis of b, in [0, b.ndim) (docs/derivations.md §6.7).

        IN b, of any shape of up to 64 axes, at least one; a of b's shape, of that shape without the
        axis, or (); initial_state of b's shape without the axis.  OUT last_state likewise; out of
        b's shape.
        """

    def linear_adjoint(
        self,
        dout: NDArray[Any],
        a: NDArray[Any],
        b: NDArray[Any],
        axis: int,
        reverse: bool,
        initial_state: NDArray[Any] | None,
        dlast_state: NDArray[Any] | None,
        da: NDArray[Any] | None,
        db: NDArray[Any],
        dinitial_state: NDArray[Any] | None,
        sums: NDArray[np.float64] | None,
        total: NDArray[Any] | None,
    ) -> None:
        """The adjoint of `linear_scan` (docs/derivations.md §6.7).

        IN dout of b's shape; dlast_state of b's shape without the axis; the arguments of
        `linear_scan`.  OUT db, and da where a has b's shape, of b's shape; dinitial_state of b's
        shape without the axis.  Where a has fewer axes than b: OUT sums of b's shape without the
        axis, contiguous, the sums over time of what da would be; total (), the sum of these.
        """
