"""What the compiled module of this room offers, for every CPU level and real type.

All arrays are C-contiguous and of the module's real type, but for those of indices (intp).  OUT
marks what a function writes.  An array of another rank, size or type is a ValueError.
"""

from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]

class Kernels(Protocol):
    # ---- dense -----------------------------------------------------------------------------------

    def activate(self, x: Array, bias: Array | None, curve: int, out: Array) -> None:
        """OUT out (K, m) = φ(x + bias); it may be x.

        x (K, m) pre-activations, bias (m,) or None.  `curve` is the number of φ, as
        `_activations.check` returns it.
        """

    def activate_vjp(
        self, dy: Array, x: Array, bias: Array | None, curve: int, out: Array
    ) -> Array | None:
        """OUT out (K, m) = dy ⊙ φ'(x + bias); it may be x.

        dy (K, m), x (K, m), bias (m,) or None.  Returns the `column_groups` of out, or None without
        a bias.
        """

    def column_groups(self, x: Array) -> Array:
        """The sums (groups, m) of x (K, m) over groups of 64 rows."""

    # ---- LSTM ------------------------------------------------------------------------------------
    # [unit vector] counts the vectors that hold the hidden units, [lane] the lanes of a vector.

    def aligned(self, size: int) -> Array:
        """A new array (size,) that begins on a cache line."""

    def lstm_units(self, hidden: int) -> tuple[int, int]:
        """How many vectors hold the hidden units, and how many lanes a vector has."""

    def lstm(
        self,
        x: Array,
        weight_ih: Array,
        weight_hh: Array,
        bias: Array,
        h0: Array | None,
        c0: Array | None,
        order: Array,
        lengths: Array,
        h: Array | None,
        h_n: Array,
        c_n: Array,
        gates: Array | None,
        cells: Array | None,
    ) -> None:
        """The layer forwards.

        x (T, B, D), weight_ih (4H, D), weight_hh (4H, H), bias (4H, 1), h0 and c0 (B, H) or None:
        zeros.  order (B,) are the rows of the batch by descending length, lengths (B,) their
        lengths in this order.

        OUT h (T, B, H) or None; h_n and c_n (B, H); and what the adjoint needs, or None:
        gates [unit vector][T·B][gate][lane] and cells [unit vector][T·B][lane].
        """

    def lstm_adjoint(
        self,
        dh: Array,
        dh_n: Array | None,
        dc_n: Array | None,
        weight_ih: Array,
        weight_hh: Array,
        c0: Array | None,
        order: Array,
        lengths: Array,
        gates: Array,
        cells: Array,
        abar: Array | None,
        h: Array | None,
        dx: Array | None,
        dh0: Array,
        dc0: Array,
        hbar: Array | None,
        cbar: Array | None,
    ) -> None:
        """The layer backwards, but for the sums that the gradients of weights are.

        dh (T, B, H), dh_n and dc_n (B, H) or None: zeros; the others are arguments and results of
        `lstm`.

        OUT abar as gates, which it may be, h (T·B, H) in sorted rows and dx (T, B, D), all three or
        none; dh0 and dc0 (B, H); hbar and cbar (T, B, H), both or none.
        """

    def lstm_weight_sums(
        self,
        abar: Array,
        x: Array,
        h: Array,
        h0: Array | None,
        order: Array,
        lengths: Array,
        hidden: int,
    ) -> tuple[Array, Array, Array]:
        """Σ ā ⊗ x, Σ ā ⊗ h[t−1] and Σ ā, flat, as [unit vector][columns][gate][lane].

        abar and h are results of `lstm_adjoint`, the others arguments of `lstm`.
        """

    # ---- grid RNN: no axis but D is empty --------------------------------------------------------

    def grid_forward(
        self, x: Array, weights: Array, bias: Array | None, curve: int, h: Array
    ) -> None:
        """OUT h (batch, G1, G2, H).

        x (batch, G1, G2, D), weights (D + 2H, H): those of x, west and north, one above the other,
        bias (H,) or None.
        """

    def grid_adjoint(
        self,
        dh: Array,
        x: Array,
        weights: Array,
        bias: Array | None,
        W_in: Array,
        turned: Array,
        curve: int,
        dx: Array,
    ) -> Array:
        """OUT dx (batch, G1, G2, D); returns the gradient of [W_in | W_west | W_north | b].

        dh (batch, G1, G2, H); x, weights and bias as for `grid_forward`; W_in (H, D); turned (2H,
        H): W_west above W_north.  The gradient is in float64 shares (tasks, H, at least D + 2H + 1)
        that are still to be added up.
        """
