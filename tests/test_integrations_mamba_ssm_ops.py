"""Our `mamba_ssm.ops` and `causal_conv1d` compute what the originals do, gradients included.

The oracles are formulas in float64, here, and what the original packages have in plain PyTorch:
these run in a process of their own, where stubs take the place of their compiled extensions.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import math
import pathlib
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F

PACKAGES = "fastderiv.integrations.mamba_ssm.packages"
INTERFACE = "mamba_ssm.ops.selective_scan_interface"
UPDATE = "mamba_ssm.ops.triton.selective_state_update"
SSD = "mamba_ssm.ops.triton.ssd_combined"
NORM = "mamba_ssm.ops.triton.layer_norm"
GATED = "mamba_ssm.ops.triton.layernorm_gated"
CONV = "causal_conv1d.causal_conv1d_interface"
VARLEN = "causal_conv1d.causal_conv1d_varlen"
CPP = "causal_conv1d.cpp_functions"

# PyTorch about itself, on first use of its compiler
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def ours(module, name):
    return getattr(importlib.import_module(f"{PACKAGES}.{module}"), name)


interface = importlib.import_module(f"{PACKAGES}.{INTERFACE}")
ssd_combined = importlib.import_module(f"{PACKAGES}.{SSD}")
layer_norm = importlib.import_module(f"{PACKAGES}.{NORM}")
gated = importlib.import_module(f"{PACKAGES}.{GATED}")
conv = importlib.import_module(f"{PACKAGES}.{CONV}")
selective_state_update = ours(UPDATE, "selective_state_update")
swiglu = ours("mamba_ssm.ops.triton.k_activations", "swiglu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- drawing and comparing -----------------------------------------------------------------------


def draw(shapes, dtype=torch.float64, seed=0):
    """Tensors of these shapes, as a dictionary of arguments; A and A_b decay."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    return {name: (-t.abs() if name in ("A", "A_b") else t).to(dtype) for name, t in drawn.items()}


def is_variable(t):
    return isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())


def as_tuple(found):
    return found if isinstance(found, tuple) else (found,)


def results_and_gradients(function, given):
    """All results, and the gradient of a random projection of them for every floating argument."""
    own = {
        name: t.detach().clone().requires_grad_() if is_variable(t) else t
        for name, t in given.items()
    }
    found = as_tuple(function(**own))
    generator = torch.Generator().manual_seed(1)
    loss = 0
    for result in found:
        if is_variable(result):
            weight = torch.randn(result.shape, generator=generator, dtype=torch.float64)
            loss = loss + (result * weight).real.sum()
    variables = {name: t for name, t in own.items() if is_variable(t)}
    gradients = torch.autograd.grad(loss, list(variables.values()), allow_unused=True)
    missing = [name for name, g in zip(variables, gradients, strict=True) if g is None]
    assert not missing, f"no gradient for {missing}"
    return found, dict(zip(variables, gradients, strict=True))


def assert_close(a, b, tolerance, what):
    """Relative to the largest magnitude of b."""
    assert a.shape == b.shape, (what, a.shape, b.shape)
    a, b = (t.detach().to(torch.complex128 if t.is_complex() else torch.float64) for t in (a, b))
    scale = b.abs().max().item() if b.numel() else 0
    error = (a - b).abs().max().item() if b.numel() else 0
    assert error <= tolerance * scale + 1e-300, (what, error, scale)


def assert_same(function, formula, given, tolerance=1e-9):
    """Function and formula agree, and so do their gradients for every floating argument."""
    found, gradients = results_and_gradients(function, given)
    expected, right = results_and_gradients(formula, given)
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert_close(a, b, tolerance, f"result {i}")
    for name, gradient in gradients.items():
        assert_close(gradient, right[name], tolerance, f"gradient of {name}")


def assert_rounded(function, given, results, gradients, dtype=torch.bfloat16):
    """16-bit arguments give 16-bit results, right to a few roundings, and 16-bit gradients."""
    narrow = {name: t.to(dtype) if is_variable(t) else t for name, t in given.items()}
    wide = {name: t.to(torch.float64) if is_variable(t) else t for name, t in narrow.items()}
    found, slopes = results_and_gradients(function, narrow)
    expected, right = results_and_gradients(function, wide)
    assert found[0].dtype == dtype
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, results, "result")
    for name, slope in slopes.items():
        assert slope.dtype == dtype
        assert_close(slope, right[name], gradients, name)


# ---- the formulas --------------------------------------------------------------------------------


def plain_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, **options):
    """The selective scan with B and C of any shape, and a real or complex A."""
    batch, channels, length = u.shape
    if A.is_complex():
        B, C = (t if t.ndim == 2 else torch.complex(t[..., 0::2], t[..., 1::2]) for t in (B, C))
    B, C = (
        t[None, :, :, None].expand(batch, -1, -1, length)
        if t.ndim == 2
        else (t if t.ndim == 4 else t[:, None]).repeat_interleave(
            channels // (t.shape[1] if t.ndim == 4 else 1), 1
        )
        for t in (B, C)
    )
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    h, ys = torch.zeros(batch, *A.shape, dtype=A.dtype), []
    for i in range(length):
        h = torch.exp(dt[:, :, i, None] * A) * h + (dt * u)[:, :, i, None] * B[..., i]
        y = (h * C[..., i]).sum(-1)
        ys.append(2 * y.real if A.is_complex() else y)
    y = torch.stack(ys, -1)
    y = y if D is None else y + D[:, None] * u
    y = y if z is None else y * z * torch.sigmoid(z)
    return (y, h) if options.get("return_last_state") else y


def plain_convolution(x, weight, bias=None, silu=True, before=None):
    taps = weight.shape[1]
    row = torch.cat([x.new_zeros(*x.shape[:2], taps - 1) if before is None else before, x], -1)
    y = sum(weight[:, k, None] * row[..., k : k + x.shape[-1]] for k in range(taps))
    y = y if bias is None else y + bias[:, None]
    return y * torch.sigmoid(y) if silu else y


def plain_packed(x, weight, bias, seq_idx, silu, before=None):
    """Each sequence by itself, the first of a row with the inputs before it; zero of padding."""
    rows = []
    for i, (row, numbers) in enumerate(zip(x, seq_idx, strict=True)):
        values, counts = torch.unique_consecutive(numbers, return_counts=True)
        pieces = []
        for piece, value in zip(row.split(counts.tolist(), -1), values, strict=True):
            first = None if before is None or pieces else before[i : i + 1]
            y = plain_convolution(piece[None], weight, bias, silu, first)[0]
            pieces.append(y if value >= 0 else y * 0)
        rows.append(torch.cat(pieces, -1))
    return torch.stack(rows)


def plain_rms(x, weight, eps):
    """RMSNorm over the axis before the last."""
    return x / torch.sqrt((x * x).mean(-2, keepdim=True) + eps) * weight[:, None]


def plain_signals(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A,
    B=None, C=None, B_proj_bias=None, C_proj_bias=None,
    b_rms_weight=None, c_rms_weight=None, dt_rms_weight=None, b_c_dt_rms_eps=1e-6,
):  # fmt: skip
    """What a mixer of Mamba scans: u, delta, B, C and z."""
    half, rank, n = xz.shape[1] // 2, delta_proj_weight.shape[1], A.shape[1]
    n = 2 * n if A.is_complex() else n
    u = plain_convolution(xz[:, :half], conv1d_weight[:, 0], conv1d_bias)
    rows = torch.einsum("rd,bdl->brl", x_proj_weight, u)
    delta = torch.einsum("dr,brl->bdl", delta_proj_weight, rows[:, :rank])

    def coefficient(rows, bias):
        rows = rows if bias is None else rows + bias[:, None]
        if not A.is_complex():
            return rows
        return torch.stack([rows[:, 0::2], rows[:, 1::2]], -1).flatten(-2)

    B = coefficient(rows[:, rank : rank + n], B_proj_bias) if B is None else B
    C = coefficient(rows[:, -n:], C_proj_bias) if C is None else C
    B = B if b_rms_weight is None else plain_rms(B, b_rms_weight, b_c_dt_rms_eps)
    C = C if c_rms_weight is None else plain_rms(C, c_rms_weight, b_c_dt_rms_eps)
    if dt_rms_weight is not None:
        delta = plain_rms(delta, dt_rms_weight, b_c_dt_rms_eps)
    return u, delta, B, C, xz[:, half:]


def plain_inner(
    *, A, D=None, delta_bias=None, delta_softplus=True, out_proj_weight=None, out_proj_bias=None,
    A_b=None, **given,
):  # fmt: skip
    """A mixer of Mamba, with a scan in reverse time if there is an `A_b`."""
    given.pop("checkpoint_lvl", None)
    u, delta, B, C, z = plain_signals(A=A, **given)
    y = plain_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    if A_b is not None:
        u, delta, z = (t.flip(-1) for t in (u, delta, z))
        B, C = (t if t.ndim == 2 else t.flip(-1) for t in (B, C))
        y = y + plain_scan(u, delta, A_b, B, C, D, z, delta_bias, delta_softplus).flip(-1)
    if out_proj_weight is None:
        return y
    out = torch.einsum("ed,bdl->ble", out_proj_weight, y)
    return out if out_proj_bias is None else out + out_proj_bias


def plain_ssd(
    x, dt, A, B, C, chunk_size=None, D=None, z=None, dt_bias=None, initial_states=None,
    seq_idx=None, cu_seqlens=None, dt_softplus=False, dt_limit=(0.0, math.inf),
    return_final_states=False, return_varlen_states=False, state_dtype=None,
):  # fmt: skip
    """Mamba-2's scan; cu_seqlens says where states are taken, seq_idx where they restart."""
    batch, length, heads, width = x.shape
    dt = dt if dt_bias is None else dt + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    dt = dt.clamp(*dt_limit)
    B, C = (t.repeat_interleave(heads // t.shape[2], 2) for t in (B, C))
    h = x.new_zeros(batch, heads, width, B.shape[-1])
    if initial_states is not None:
        h = initial_states
    numbers = torch.zeros(batch, length) if seq_idx is None else seq_idx
    numbers = torch.cat([torch.zeros(batch, 1), numbers], 1)
    ends = [] if cu_seqlens is None else cu_seqlens[1:].tolist()
    ys, states = [], []
    for i in range(length):
        goes_on = (numbers[:, i + 1] == numbers[:, i]).to(x.dtype)
        decay = torch.exp(dt[:, i] * A) * goes_on[:, None]
        h = decay[..., None, None] * h + torch.einsum(
            "bh,bhp,bhn->bhpn", dt[:, i], x[:, i], B[:, i]
        )
        ys.append(torch.einsum("bhpn,bhn->bhp", h, C[:, i]))
        states += [h[0]] * ends.count(i + 1)
    y = torch.stack(ys, 1)
    if D is not None:
        y = y + (D if D.ndim == 2 else D[:, None]) * x
    y = y if z is None else y * z * torch.sigmoid(z)
    found = (y,) + ((h,) if return_final_states else ())
    found += (torch.stack(states),) if return_varlen_states else ()
    return found if len(found) > 1 else y


def plain_gated_norm(
    x, weight, bias=None, z=None, eps=1e-6, group_size=None, norm_before_gate=True,
    is_rms_norm=False,
):  # fmt: skip
    gate = 1 if z is None else z * torch.sigmoid(z)
    y = x if norm_before_gate else x * gate
    size = x.shape[-1] if group_size is None else group_size
    parts = []
    for part in y.split(size, -1):
        part = part if is_rms_norm else part - part.mean(-1, keepdim=True)
        parts.append(part / torch.sqrt((part * part).mean(-1, keepdim=True) + eps))
    y = torch.cat(parts, -1) * weight
    y = y if bias is None else y + bias
    return y * gate if norm_before_gate else y


def plain_split(
    zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, initial_states=None,
    seq_idx=None, dt_limit=(0.0, math.inf), return_final_states=False, activation="silu",
    rmsnorm_weight=None, rmsnorm_eps=1e-6, outproj_weight=None, outproj_bias=None, headdim=None,
    ngroups=1, norm_before_gate=True, state_dtype=None,
):  # fmt: skip
    """A mixer of Mamba-2, with an MLP beside it if zxbcdt is wide enough."""
    heads, headdim = D.shape[0], D.shape[1] if D.ndim == 2 else headdim
    d = heads * headdim
    gn = (conv1d_weight.shape[0] - d) // 2
    mlp = (zxbcdt.shape[-1] - 2 * d - 2 * gn - heads) // 2
    first, second, z, xBC, dt = zxbcdt.split([mlp, mlp, d, d + 2 * gn, heads], -1)
    rows, silu = xBC.transpose(1, 2), activation is not None
    numbers = torch.zeros(rows.shape[0], rows.shape[2]) if seq_idx is None else seq_idx
    xBC = plain_packed(rows, conv1d_weight, conv1d_bias, numbers, silu)
    x, B, C = xBC.transpose(1, 2).split([d, gn, gn], -1)
    x, gate = (t.unflatten(2, (heads, headdim)) for t in (x, z))
    B, C = (t.unflatten(2, (ngroups, -1)) for t in (B, C))
    y, final = plain_ssd(
        x, dt, A, B, C, D=D, z=gate if rmsnorm_weight is None else None, dt_bias=dt_bias,
        initial_states=initial_states, seq_idx=seq_idx, dt_softplus=True, dt_limit=dt_limit,
        return_final_states=True,
    )  # fmt: skip
    y = y.flatten(2)
    if rmsnorm_weight is not None:
        y = plain_gated_norm(
            y, rmsnorm_weight, z=z, eps=rmsnorm_eps, group_size=d // ngroups,
            norm_before_gate=norm_before_gate, is_rms_norm=True,
        )  # fmt: skip
    y = torch.cat([first * torch.sigmoid(first) * second, y], -1)
    if outproj_weight is not None:
        y = y @ outproj_weight.T + (0 if outproj_bias is None else outproj_bias)
    return (y, final) if return_final_states else y


def plain_norm(
    x, weight, bias=None, residual=None, x1=None, weight1=None, bias1=None, eps=1e-6,
    rowscale=None, prenorm=False, is_rms_norm=False, **ignored,
):  # fmt: skip
    total = x if rowscale is None else x * rowscale[..., None]
    for t in (x1, residual):
        total = total if t is None else total + t
    found = [
        plain_gated_norm(total, w, b, eps=eps, is_rms_norm=is_rms_norm)
        for w, b in ((weight, bias), (weight1, bias1))
        if w is not None
    ]
    return tuple(found + ([total] if prenorm else [])) if prenorm or len(found) > 1 else found[0]


# ---- Mamba: the scan -----------------------------------------------------------------------------

BATCH, DIM, N, L, RANK = 2, 4, 3, 6, 2
COEFFICIENTS = {"constant": (DIM, N), "in time": (BATCH, N, L), "grouped": (BATCH, 2, N, L)}


def scan_problem(B="in time", C="in time", without=(), **options):
    shapes = {
        "u": (BATCH, DIM, L),
        "delta": (BATCH, DIM, L),
        "A": (DIM, N),
        "B": COEFFICIENTS[B],
        "C": COEFFICIENTS[C],
        "D": (DIM,),
        "z": (BATCH, DIM, L),
        "delta_bias": (DIM,),
    }
    drawn = draw({name: shape for name, shape in shapes.items() if name not in without})
    return {**drawn, **options}


@pytest.mark.parametrize("name", ["selective_scan_fn", "selective_scan_ref"])
@pytest.mark.parametrize("B, C", [("constant", "grouped"), ("in time", "constant")])
@pytest.mark.parametrize("without", [(), ("D", "z", "delta_bias")])
def test_scan_is_the_recurrence(name, B, C, without):
    given = scan_problem(B, C, without, delta_softplus=True, return_last_state=True)
    assert_same(getattr(interface, name), plain_scan, given)


@pytest.mark.parametrize("B, C", [("constant", "grouped"), ("in time", "constant")])
def test_scan_with_complex_A_is_the_recurrence(B, C):
    given = scan_problem(B, C, delta_softplus=True, return_last_state=True)
    phases = draw({"A": (DIM, N), "B": (DIM, N), "C": (DIM, N)}, seed=3)
    for name in "ABC":
        t = given[name]
        if name == "A" or t.ndim == 2:
            given[name] = torch.complex(t, phases[name])
        else:
            given[name] = torch.cat([t, t.flip(-1)], -1)
    assert_same(interface.selective_scan_fn, plain_scan, given)


def test_scan_takes_none_for_its_flags_and_answers_as_an_autograd_function():
    given = scan_problem(delta_softplus=None, return_last_state=None)
    y = interface.selective_scan_fn(**given)
    assert torch.equal(y, interface.SelectiveScanFn.apply(*given.values()))


def test_scan_of_16_bit_signals_has_their_dtype_and_a_float32_state():
    given = scan_problem(delta_softplus=True, return_last_state=True)
    narrow = {
        name: t if name in ("A", "D", "delta_bias") or not is_variable(t) else t.bfloat16()
        for name, t in given.items()
    }
    narrow |= {name: given[name].float() for name in ("A", "D", "delta_bias")}
    y, state = interface.selective_scan_fn(**narrow)
    right, right_state = plain_scan(
        **{name: t.double() if is_variable(t) else t for name, t in narrow.items()}
    )
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert_close(y, right, 2**-8, "y")
    assert_close(state, right_state, 1e-6, "state")


# ---- Mamba: the mixer ----------------------------------------------------------------------------


def inner_problem(*more, bi=False, without=(), **options):
    """The arguments of a mixer; `more` names optional ones."""
    shapes = {
        "xz": (BATCH, 2 * DIM, L),
        "conv1d_weight": (DIM, 1, 3),
        "conv1d_bias": (DIM,),
        "x_proj_weight": (RANK + 2 * N, DIM),
        "delta_proj_weight": (DIM, RANK),
        "out_proj_weight": (5, DIM),
        "out_proj_bias": (5,),
        "A": (DIM, N),
    }
    optional = {
        "A_b": (DIM, N),
        "B": COEFFICIENTS["grouped"],
        "C": COEFFICIENTS["constant"],
        "D": (DIM,),
        "delta_bias": (DIM,),
        "B_proj_bias": (N,),
        "C_proj_bias": (N,),
        "b_rms_weight": (N,),
        "c_rms_weight": (N,),
        "dt_rms_weight": (DIM,),
    }
    shapes |= {name: optional[name] for name in (*more, *(["A_b"] if bi else []))}
    nothing = {name: None for name in ("conv1d_bias", "out_proj_bias") if name in without}
    shapes = {name: shape for name, shape in shapes.items() if name not in without}
    if "B" in more:
        shapes["x_proj_weight"] = (RANK + N, DIM)
    if "B" in more and "C" in more:
        shapes["x_proj_weight"] = (RANK, DIM)
    return {**draw(shapes), **nothing, **options}


MIXERS = {
    "all optional arguments": inner_problem(
        "D",
        "delta_bias",
        "B_proj_bias",
        "C_proj_bias",
        "b_rms_weight",
        "c_rms_weight",
        "dt_rms_weight",
        b_c_dt_rms_eps=1e-3,
        checkpoint_lvl=0,
    ),
    "none of them": inner_problem(without=("conv1d_bias", "out_proj_bias")),
    "no softplus": inner_problem("delta_bias", delta_softplus=False),
    "B given": inner_problem("B", "D", "b_rms_weight"),
    "B and C given": inner_problem("B", "C", "D", "delta_bias"),
}


@pytest.mark.parametrize("which", MIXERS)
def test_mixer_is_convolution_projections_scan_and_projection(which):
    assert_same(interface.mamba_inner_fn, plain_inner, MIXERS[which])


@pytest.mark.parametrize("which", ["none of them", "B and C given"])
def test_reference_of_the_mixer_is_the_same_formula(which):
    assert_same(interface.mamba_inner_ref, plain_inner, MIXERS[which])


def test_mixer_with_complex_A_reads_pairs_of_rows():
    given = inner_problem("D", "delta_bias")
    given["A"] = torch.complex(given["A"], given["A"].flip(0))
    more = draw({"x_proj_weight": (RANK + 4 * N, DIM), "B_proj_bias": (2 * N,)}, seed=4)
    assert_same(interface.mamba_inner_fn, plain_inner, given | more)


def test_mixer_without_output_projection_keeps_channels_before_time():
    given = inner_problem("D", "delta_bias", without=("out_proj_weight", "out_proj_bias"))
    del given["out_proj_bias"]
    assert_same(interface.mamba_inner_fn_no_out_proj, plain_inner, given)


@pytest.mark.parametrize("name", ["bimamba_inner_fn", "bimamba_inner_ref"])
@pytest.mark.parametrize("more", [("D", "delta_bias", "B_proj_bias"), ("B", "C")])
def test_bidirectional_mixer_adds_a_scan_in_reverse_time(name, more):
    assert_same(getattr(interface, name), plain_inner, inner_problem(*more, bi=True))


def test_mixer_in_16_bits_is_right_to_its_roundings():
    given = inner_problem("D", "delta_bias")
    assert_rounded(interface.mamba_inner_fn, given, 2**-5, 2**-4)


def test_mixer_under_autocast_projects_in_its_dtype_and_has_float32_gradients():
    given = {name: t.float() for name, t in inner_problem("D", "delta_bias").items()}
    with torch.autocast("cpu", torch.bfloat16):
        (out,), gradients = results_and_gradients(interface.mamba_inner_fn, given)
    (right,), slopes = results_and_gradients(interface.mamba_inner_fn, given)
    assert out.dtype == torch.bfloat16 and right.dtype == torch.float32
    assert_close(out, right, 2**-5, "out")
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert_close(gradient, slopes[name], 2**-4, name)


@pytest.mark.parametrize("name", ["xz", "conv1d_weight", "x_proj_weight", "delta_proj_weight", "A"])
def test_mixer_names_what_does_not_fit(name):
    given = MIXERS["none of them"]
    with pytest.raises(ValueError, match=f"{name} has shape .* expected"):
        interface.mamba_inner_fn(**given | {name: given[name][..., 0]})
    with pytest.raises(ValueError, match=r"x_proj_weight has shape \(\d+, \d+\); expected"):
        interface.mamba_inner_fn(**given | {"A": given["A"][:, 1:]})


def test_mixer_does_not_need_the_rows_of_a_B_that_is_given():
    given = MIXERS["B given"]
    rank, last = given["x_proj_weight"].split([RANK, N])
    more = {"x_proj_weight": torch.cat([rank, torch.ones_like(last), last])}
    found = interface.mamba_inner_fn(**given | more)
    assert torch.equal(found, interface.mamba_inner_fn(**given))


def test_scan_names_a_decay_that_is_none():
    with pytest.raises(TypeError, match="A is a NoneType; expected a tensor"):
        interface.selective_scan_fn(torch.ones(1, 2, 3), torch.ones(1, 2, 3), None, None, None)


def test_mixer_says_what_it_does_not_take():
    given = MIXERS["B and C given"]
    with pytest.raises(ValueError, match="checkpoint_lvl is 2; expected 0 or 1"):
        interface.mamba_inner_fn(**given, checkpoint_lvl=2)
    with pytest.raises(ValueError, match=r"C has shape .* axis of time"):
        interface.mamba_inner_fn(**given, c_rms_weight=torch.ones(N))


# ---- a step --------------------------------------------------------------------------------------


def plain_step(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """One step with heads, out of place: result and new state."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    B, C = (t.repeat_interleave(x.shape[1] // t.shape[1], 1) for t in (B, C))
    h = torch.exp(dt[..., None] * A) * state + torch.einsum("bhp,bhp,bhn->bhpn", dt, x, B)
    y = torch.einsum("bhpn,bhn->bhp", h, C)
    y = y if D is None else y + D * x
    return y if z is None else y * z * torch.sigmoid(z), h


def step_problem(heads=4, groups=2, dtype=torch.float64, without=()):
    shapes = {
        "state": (BATCH, heads, 5, N),
        "x": (BATCH, heads, 5),
        "dt": (BATCH, heads, 5),
        "A": (heads, 5, N),
        "B": (BATCH, groups, N),
        "C": (BATCH, groups, N),
        "D": (heads, 5),
        "z": (BATCH, heads, 5),
        "dt_bias": (heads, 5),
    }
    return draw({name: shape for name, shape in shapes.items() if name not in without}, dtype)


def stepping(function):
    """The function with its new state as a second result, applied to a copy of the state."""

    def both(state, **given):
        state = state.clone()
        return function(state, **given), state

    return both


@pytest.mark.parametrize("name", ["selective_state_update", "selective_state_update_ref"])
@pytest.mark.parametrize("without", [(), ("D", "z", "dt_bias")])
def test_step_updates_the_states_of_heads(name, without):
    given = {**step_problem(without=without), "dt_softplus": True}
    assert_same(stepping(ours(UPDATE, name)), plain_step, given)


@pytest.mark.parametrize("name", ["selective_state_update", "selective_state_update_ref"])
def test_step_without_heads_is_that_of_one_head(name):
    given = step_problem(heads=1, groups=1)
    y, state = plain_step(**given)
    axes = {"A": 0, "D": 0, "dt_bias": 0}
    flat = {name_: t.squeeze(axes.get(name_, 1)) for name_, t in given.items()}
    mixed = flat | {k: given[k] for k in ("A", "B", "dt", "D")}  # some with an axis of one head
    for form in (flat, mixed):
        form = form | {"state": flat["state"].clone()}
        assert_close(ours(UPDATE, name)(**form), y[:, 0], 1e-12, "y")
        assert_close(form["state"], state[:, 0], 1e-12, "state")


def test_step_takes_one_number_of_every_head_as_expanded_views():
    given = step_problem()
    for name in ("dt", "A", "dt_bias"):
        t = given[name]
        first = t[..., :1] if name != "A" else t[..., :1, :1]
        given[name] = first.expand(t.shape)
    y, state = plain_step(**given, dt_softplus=True)
    assert_close(selective_state_update(**given, dt_softplus=True), y, 1e-12, "y")
    assert_close(given["state"], state, 1e-12, "state")


def test_step_of_chosen_states_leaves_the_others_and_skips_padding():
    given = step_problem()
    y, new = plain_step(**given)
    pool = torch.ones(5, *given["state"].shape[1:], dtype=torch.float64)
    pool[3] = given["state"][0]
    before = pool.clone()
    indices = torch.tensor([3, -1], dtype=torch.int32)
    out = selective_state_update(**(given | {"state": pool}), state_batch_indices=indices)
    assert_close(out[0], y[0], 1e-12, "y")
    assert not out[1].any()
    assert_close(pool[3], new[0], 1e-12, "state")
    others = [0, 1, 2, 4]
    assert torch.equal(pool[others], before[others])


def test_step_keeps_the_dtypes_of_state_and_input():
    given = step_problem(dtype=torch.bfloat16)
    given["state"] = given["state"].float()
    wide = {name: t.double() for name, t in given.items()}
    y, state = plain_step(**wide)
    out = selective_state_update(**given)
    assert out.dtype == torch.bfloat16 and given["state"].dtype == torch.float32
    assert_close(out, y, 2**-8, "y")
    assert_close(given["state"], state, 1e-6, "state")


# ---- Mamba-2: the scan ---------------------------------------------------------------------------

HEADS, WIDTH, GROUPS = 4, 2, 2


def ssd_problem(batch=BATCH, length=9, D=(HEADS,), without=(), **options):
    shapes = {
        "x": (batch, length, HEADS, WIDTH),
        "dt": (batch, length, HEADS),
        "A": (HEADS,),
        "B": (batch, length, GROUPS, N),
        "C": (batch, length, GROUPS, N),
        "D": D,
        "z": (batch, length, HEADS, WIDTH),
        "dt_bias": (HEADS,),
        "initial_states": (batch, HEADS, WIDTH, N),
    }
    drawn = draw({name: shape for name, shape in shapes.items() if name not in without})
    return {**drawn, "chunk_size": 4, **options}


SEQ_IDX = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [1, 1, 2, 2, 2, 3, 4, 4, 4]])
CU_SEQLENS = torch.tensor([0, 3, 7, 9])
SCANS = {
    "all optional arguments": ssd_problem(
        dt_softplus=True, dt_limit=(0.3, 1.2), return_final_states=True
    ),
    "none of them": ssd_problem(without=("D", "z", "dt_bias", "initial_states")),
    "D of channels": ssd_problem(D=(HEADS, WIDTH), dt_softplus=True),
    "packed": ssd_problem(seq_idx=SEQ_IDX, dt_softplus=True, return_final_states=True),
    "states of packed sequences": ssd_problem(
        batch=1, seq_idx=SEQ_IDX[:1], cu_seqlens=CU_SEQLENS, dt_softplus=True,
        return_final_states=True, return_varlen_states=True,
    ),
    "boundaries without states of theirs": ssd_problem(batch=1, cu_seqlens=CU_SEQLENS),
}  # fmt: skip


@pytest.mark.parametrize("which", SCANS)
def test_scan_of_mamba2_is_the_recurrence(which):
    assert_same(ssd_combined.mamba_chunk_scan_combined, plain_ssd, SCANS[which])


@pytest.mark.parametrize(
    "name", ["mamba_chunk_scan", "ssd_chunk_scan_combined_ref", "ssd_selective_scan"]
)
@pytest.mark.parametrize("options", [{}, {"D": (HEADS, WIDTH)}, {"without": ("D", "z", "dt_bias")}])
def test_other_scans_of_mamba2_are_the_same_recurrence(name, options):
    without = ("initial_states", *options.get("without", ()))
    given = ssd_problem(**{**options, "without": without}, dt_softplus=True)
    if name == "ssd_selective_scan":
        del given["chunk_size"]
    assert_same(getattr(ssd_combined, name), plain_ssd, given)


def test_ssd_as_selective_scan_limits_step_sizes():
    given = ssd_problem(without=("initial_states",), dt_softplus=True, dt_limit=(0.3, 1.2))
    del given["chunk_size"]
    assert_same(ssd_combined.ssd_selective_scan, plain_ssd, given)


def test_states_of_16_bit_scans_have_the_dtypes_of_the_original():
    given = ssd_problem(batch=1, seq_idx=SEQ_IDX[:1], cu_seqlens=CU_SEQLENS)
    given = {name: t.bfloat16() if is_variable(t) else t for name, t in given.items()}
    given["A"], wanted = given["A"].float(), dict(return_final_states=True)
    both = wanted | dict(return_varlen_states=True)
    kinds = [t.dtype for t in ssd_combined.mamba_chunk_scan_combined(**given, **both)]
    assert kinds == [torch.bfloat16, torch.float32, torch.bfloat16]
    both["state_dtype"] = torch.float64
    kinds = [t.dtype for t in ssd_combined.mamba_chunk_scan_combined(**given, **both)]
    assert kinds == [torch.bfloat16, torch.float64, torch.float64]
    y, _ = ssd_combined.mamba_chunk_scan_combined(**given, **wanted)
    wide = {name: t.double() if is_variable(t) else t for name, t in given.items()}
    assert_close(y, plain_ssd(**wide), 2**-8, "y")


# ---- Mamba-2: the mixer --------------------------------------------------------------------------


def split_problem(
    *more, mlp=0, D=(HEADS,), headdim=WIDTH, groups=GROUPS, project=True, batch=BATCH, **options
):
    d, gn = HEADS * WIDTH, groups * N
    shapes = {
        "zxbcdt": (batch, 9, 2 * mlp + 2 * d + 2 * gn + HEADS),
        "conv1d_weight": (d + 2 * gn, 3),
        "conv1d_bias": (d + 2 * gn,),
        "dt_bias": (HEADS,),
        "A": (HEADS,),
        "D": D,
    }
    optional = {
        "initial_states": (batch, HEADS, WIDTH, N),
        "rmsnorm_weight": (d,),
        "outproj_weight": (3, mlp + d),
        "outproj_bias": (3,),
    }
    shapes |= {name: optional[name] for name in more}
    return {**draw(shapes), "chunk_size": 4, "headdim": headdim, "ngroups": groups, **options}


NORMED = ("rmsnorm_weight", "outproj_weight", "outproj_bias")
SPLITS = {
    "norm and projection": split_problem(*NORMED, "initial_states", return_final_states=True),
    "norm behind the gate": split_problem(*NORMED, norm_before_gate=False, rmsnorm_eps=1e-2),
    "neither": split_problem(D=(HEADS, WIDTH), headdim=None, dt_limit=(0.4, 1.0)),
    "an MLP beside it": split_problem(*NORMED, mlp=2),
    "an MLP, no norm": split_problem("outproj_weight", mlp=2, activation=None),
    "packed": split_problem(*NORMED, "initial_states", seq_idx=SEQ_IDX, activation="swish"),
}


@pytest.mark.parametrize("which", SPLITS)
def test_mixer_of_mamba2_is_convolution_scan_norm_and_projection(which):
    assert_same(ssd_combined.mamba_split_conv1d_scan_combined, plain_split, SPLITS[which])


@pytest.mark.parametrize("which", ["norm behind the gate", "neither", "an MLP beside it"])
def test_reference_of_mamba2s_mixer_is_the_same_formula(which):
    # the gated norm's reference computes in float32
    tolerance = 1e-9 if which == "neither" else 1e-5
    assert_same(ssd_combined.mamba_split_conv1d_scan_ref, plain_split, SPLITS[which], tolerance)


def test_convolution_and_scan_of_mamba2_are_those_of_the_mixer():
    given = split_problem(batch=2)
    d, gn = HEADS * WIDTH, GROUPS * N
    z, xBC, dt = given["zxbcdt"].split([d, d + 2 * gn, HEADS], -1)
    rest = {k: given[k] for k in ("conv1d_weight", "conv1d_bias", "A", "chunk_size", "D")}
    rest |= {"dt_bias": given["dt_bias"], "dt_softplus": True, "ngroups": GROUPS}
    y = ssd_combined.mamba_conv1d_scan_ref(xBC, dt=dt, z=z, **rest)
    assert_close(y, plain_split(**given), 1e-10, "y")
    ungated = ssd_combined.mamba_conv1d_scan_ref(xBC, dt=dt, headdim=WIDTH, **rest)
    assert_close(ungated * F.silu(z), y, 1e-10, "without z")
    with pytest.raises(ValueError, match="headdim is None"):
        ssd_combined.mamba_conv1d_scan_ref(xBC, dt=dt, **rest)


def test_mixer_of_mamba2_in_16_bits_is_right_to_its_roundings():
    given = SPLITS["norm and projection"]
    assert_rounded(ssd_combined.mamba_split_conv1d_scan_combined, given, 2**-4, 2**-3)


def test_mixer_of_mamba2_under_autocast_projects_in_its_dtype():
    given = {n: t.float() if is_variable(t) else t for n, t in SPLITS["an MLP beside it"].items()}
    with torch.autocast("cpu", torch.bfloat16):
        (out,), gradients = results_and_gradients(
            ssd_combined.mamba_split_conv1d_scan_combined, given
        )
    assert out.dtype == torch.bfloat16
    right = ssd_combined.mamba_split_conv1d_scan_combined(**given)
    assert_close(out, right, 2**-6, "out")
    assert all(g.dtype == torch.float32 for g in gradients.values())


def test_mixer_of_mamba2_says_what_does_not_fit():
    given = SPLITS["neither"]
    mixer = ssd_combined.mamba_split_conv1d_scan_combined
    with pytest.raises(ValueError, match="headdim is None; expected P, which D of shape"):
        mixer(**(given | {"D": given["D"][:, 0]}))
    with pytest.raises(ValueError, match="zxbcdt has shape"):
        mixer(**(given | {"zxbcdt": given["zxbcdt"][..., :-1]}))
    with pytest.raises(ValueError, match="outproj_bias is given without outproj_weight"):
        mixer(**given, outproj_bias=torch.ones(3))


# ---- normalisations ------------------------------------------------------------------------------


def norm_problem(*more, **options):
    shapes = {"x": (2, 3, 8), "weight": (8,)}
    optional = {
        "bias": (8,),
        "residual": (2, 3, 8),
        "x1": (2, 3, 8),
        "weight1": (8,),
        "bias1": (8,),
        "rowscale": (2, 3),
    }
    drawn = draw(shapes | {name: optional[name] for name in more})
    return {"bias": None, **drawn, **options}


NORMS = {
    "all but rowscale": norm_problem("bias", "residual", "x1", "weight1", "bias1", prenorm=True),
    "none": norm_problem(),
    "rowscale": norm_problem("rowscale", "residual", prenorm=True, eps=1e-2),
    "two weights": norm_problem("weight1", "bias"),
    "the input as residual": norm_problem(prenorm=True),
}


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("which", NORMS)
def test_norms_add_the_branches_and_normalise(kind, which):
    rms = kind == "rms"
    given = NORMS[which]

    def formula(**arguments):
        return plain_norm(**arguments, is_rms_norm=rms)

    assert_same(getattr(layer_norm, f"{kind}_norm_fn"), formula, given)
    assert_same(getattr(layer_norm, f"{kind}_norm_ref"), formula, given)
    if rms:
        switched = layer_norm.layer_norm_fn(**given, is_rms_norm=True)
        found = layer_norm.rms_norm_fn(**given)
        pairs = [(switched, found)] if torch.is_tensor(found) else zip(switched, found, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("in_fp32", [False, True])
@pytest.mark.parametrize("residual", [None, torch.bfloat16, torch.float32])
def test_the_residual_keeps_its_dtype_and_the_norm_that_of_the_input(in_fp32, residual):
    given = {n: t.bfloat16() for n, t in norm_problem("residual").items() if t is not None}
    given["residual"] = None if residual is None else given["residual"].to(residual)
    y, out = layer_norm.rms_norm_fn(**given, bias=None, prenorm=True, residual_in_fp32=in_fp32)
    without = torch.float32 if in_fp32 else torch.bfloat16
    assert y.dtype == torch.bfloat16 and out.dtype == (without if residual is None else residual)
    wide = {n: None if t is None else t.double() for n, t in given.items()}
    right, total = plain_norm(**wide, prenorm=True, is_rms_norm=True)
    assert_close(y, right, 2**-8, "y")
    assert_close(out, total, 2**-8 if out.dtype == torch.bfloat16 else 1e-6, "residual")


@pytest.mark.parametrize("x1", [False, True])
def test_dropout_drops_what_its_masks_say(x1):
    given = norm_problem(*(["x1"] if x1 else []), "residual", prenorm=True, dropout_p=0.4)
    torch.manual_seed(0)
    y, total, mask, mask1 = layer_norm.layer_norm_fn(**given, return_dropout_mask=True)
    assert mask.dtype == torch.bool and 0 < mask.double().mean() < 1
    assert (mask1 is not None) == x1 and not (x1 and torch.equal(mask, mask1))
    masks = dict(dropout_mask=mask, dropout_mask1=mask1)
    right, sum_ = layer_norm.layer_norm_ref(**given, **masks)
    assert_close(y, right, 1e-12, "y")
    assert_close(total, sum_, 1e-12, "sum")
    dropped = given["x"] * mask / 0.6 + (given["x1"] * mask1 / 0.6 if x1 else 0)
    assert_close(total, dropped + given["residual"], 1e-12, "by hand")
    nothing = layer_norm.layer_norm_fn(**(given | {"dropout_p": 0.0}), return_dropout_mask=True)
    assert nothing[2:] == (None, None)
    all_ = layer_norm.layer_norm_fn(**(given | {"dropout_p": 1.0}))[1]
    assert torch.equal(all_, given["residual"])


def test_norms_refuse_what_does_not_fit():
    given = NORMS["none"]
    with pytest.raises(ValueError, match="rowscale is given together with x1"):
        layer_norm.layer_norm_fn(**given, x1=given["x"], rowscale=torch.ones(2, 3))
    with pytest.raises(ValueError, match="residual has shape"):
        layer_norm.layer_norm_fn(**given, residual=given["x"][:1])
    with pytest.raises(ValueError, match="weight has shape"):
        layer_norm.rms_norm_fn(**(given | {"weight": torch.ones(7)}))


def test_norm_modules_are_the_functions_with_their_parameters():
    x, z, residual = draw({"x": (2, 8), "z": (2, 8), "r": (2, 8)}, torch.float32).values()
    norm = layer_norm.RMSNorm(8, eps=1e-3, dropout_p=0.5)
    assert list(norm.state_dict()) == ["weight"] and norm.weight.eq(1).all()
    torch.nn.init.normal_(norm.weight)
    expected = layer_norm.rms_norm_fn(x, norm.weight, None, residual, eps=1e-3, prenorm=True)
    norm.eval()
    found = norm(x, residual, prenorm=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(norm.train()(x), norm.eval()(x))
    assert layer_norm.RMSNorm(8).eps == 1e-5 and layer_norm.RMSNorm(8).drop is None
    for kind, function in ("RMSNorm", gated.rmsnorm_fn), ("LayerNorm", gated.layernorm_fn):
        norm = getattr(gated, kind)(8, group_size=4, norm_before_gate=False)
        for p in norm.parameters():
            torch.nn.init.normal_(p)
        expected = function(
            x, norm.weight, norm.bias, z, eps=1e-5, group_size=4, norm_before_gate=False
        )
        assert torch.equal(norm(x, z), expected)


def test_the_former_path_of_the_norms_leads_to_them():
    former = importlib.import_module(f"{PACKAGES}.mamba_ssm.ops.triton.layernorm")
    for name in ("RMSNorm", "layer_norm_fn", "rms_norm_fn", "layer_norm_ref", "rms_norm_ref"):
        assert getattr(former, name) is getattr(layer_norm, name)


def test_norm_with_linear_map_is_both():
    given = draw({
        "x": (2, 8), "norm_weight": (8,), "norm_bias": (8,), "linear_weight": (3, 8),
        "linear_bias": (3,), "residual": (2, 8),
    })  # fmt: skip

    def formula(x, norm_weight, norm_bias, linear_weight, linear_bias, residual, prenorm):
        y, total = plain_norm(x, norm_weight, norm_bias, residual, prenorm=True)
        return y @ linear_weight.T + linear_bias, total

    assert_same(layer_norm.layer_norm_linear_fn, formula, {**given, "prenorm": True})


@pytest.mark.parametrize("kind", ["layernorm_fn", "rmsnorm_fn"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("size, with_z, with_bias", [(None, 1, 1), (4, 1, 0), (4, 0, 1), (2, 1, 1)])
def test_gated_norms_normalise_groups_before_or_behind_the_gate(
    kind, before, size, with_z, with_bias, monkeypatch
):
    names = ["x", "weight", *(["z"] if with_z else []), *(["bias"] if with_bias else [])]
    shapes = {"x": (2, 3, 8), "z": (2, 3, 8), "weight": (8,), "bias": (8,)}
    given = {"bias": None, **draw({name: shapes[name] for name in names})}
    given |= {"eps": 1e-2, "group_size": size, "norm_before_gate": before}

    def formula(**arguments):
        return plain_gated_norm(**arguments, is_rms_norm=kind == "rmsnorm_fn")

    assert_same(getattr(gated, kind), formula, given)
    assert_rounded(getattr(gated, kind), given, 2**-7, 2**-6)
    monkeypatch.setattr(gated, "LARGE", 0)  # as large calls
    assert_same(getattr(gated, kind), formula, given)
    if kind == "rmsnorm_fn":
        assert_close(gated.rms_norm_ref(**given), formula(**given), 1e-6, "reference")


def test_a_graph_keeps_of_a_large_gated_norm_its_arguments_in_their_dtype():
    x, z, weight = draw({"x": (64, 1024), "z": (64, 1024), "weight": (1024,)}).values()
    x, z, weight = (t.requires_grad_() for t in (x.bfloat16(), z.bfloat16(), weight.float()))
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = gated.rmsnorm_fn(x, weight, None, z=z)
    assert sum(kept.values()) <= 2 * x.numel() * 2 + 4 * weight.numel()
    (slope,) = torch.autograd.grad(y.double().sum(), x, create_graph=True)
    (again,) = torch.autograd.grad(slope.double().square().sum(), z)  # second derivatives
    assert again.isfinite().all() and again.any()


def test_copies_of_mamba_ssms_interface_find_its_forward_pass():
    given = norm_problem("residual", "bias", "weight1", "bias1")
    given |= {n: given[n].flatten(0, 1) for n in ("x", "residual")}
    y, y1, mean, rstd, total, *nothing = layer_norm._layer_norm_fwd(**given, eps=1e-3)
    right, right1, sum_ = plain_norm(**given, eps=1e-3, prenorm=True)
    for a, b in zip((y, y1, total), (right, right1, sum_), strict=True):
        assert_close(a, b, 1e-12, "result")
    assert_close(mean, sum_.mean(-1), 1e-12, "mean")
    assert_close(rstd, 1 / (sum_.var(-1, correction=0) + 1e-3).sqrt(), 1e-12, "rstd")
    assert nothing == [None, None, None]
    narrow = {n: t.bfloat16() for n, t in given.items()} | {"residual": None}
    y, _, mean, _, total, *_ = layer_norm._layer_norm_fwd(
        **narrow, eps=1e-6, residual_dtype=torch.float32, is_rms_norm=True
    )
    assert y.dtype == torch.bfloat16 and total.dtype == torch.float32 and mean is None


def test_gated_norms_refuse_what_does_not_fit():
    x, w = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(ValueError, match="group_size is 3; expected a divisor of 8"):
        gated.rmsnorm_fn(x, w, None, group_size=3)
    with pytest.raises(ValueError, match="z has shape"):
        gated.rmsnorm_fn(x, w, None, z=x[:1])
    with pytest.raises(ValueError, match="bias has shape"):
        gated.layernorm_fn(x, w, w[:4])


def test_swiglu_gates_the_second_half_by_the_first():
    given = draw({"xy": (2, 6)})

    def formula(xy):
        return xy[:, :3] * torch.sigmoid(xy[:, :3]) * xy[:, 3:]

    assert_same(swiglu, formula, given)
    assert_rounded(swiglu, given, 2**-8, 2**-7)
    with pytest.raises(ValueError, match="even last axis"):
        swiglu(torch.ones(3))


# ---- the convolution -----------------------------------------------------------------------------


def conv_problem(*more, **options):
    shapes = {"x": (2, 4, 7), "weight": (4, 3)}
    optional = {"bias": (4,), "initial_states": (2, 4, 2)}
    return {**draw(shapes | {name: optional[name] for name in more}), **options}


def plain_conv1d(
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
    activation=None,
):  # fmt: skip
    before = x.new_zeros(*x.shape[:2], weight.shape[1] - 1)
    before = before if initial_states is None else initial_states
    silu = activation is not None
    if seq_idx is None:
        y = plain_convolution(x, weight, bias, silu, before)
        row = torch.cat([before, x], -1)
        return (y, row[..., row.shape[-1] - before.shape[-1] :]) if return_final_states else y
    return plain_packed(x, weight, bias, seq_idx, silu, before)


NUMBERS = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [3, 4, 4, 4, -1, -1, -1]])
CONVOLUTIONS = {
    "all optional arguments": conv_problem(
        "bias", "initial_states", return_final_states=True, activation="silu"
    ),
    "none of them": conv_problem(),
    "packed": conv_problem("bias", seq_idx=NUMBERS, activation="swish"),
    "packed, with states": conv_problem("initial_states", seq_idx=NUMBERS),
}


@pytest.mark.parametrize("name", ["causal_conv1d_fn", "causal_conv1d_ref"])
@pytest.mark.parametrize("which", CONVOLUTIONS)
def test_convolution_is_the_sum_over_taps(name, which):
    assert_same(getattr(conv, name), plain_conv1d, CONVOLUTIONS[which])


def test_final_states_are_written_where_they_are_wanted():
    for function in (conv.causal_conv1d_fn, conv.causal_conv1d_ref):
        x, weight = conv_problem().values()
        x = x.bfloat16()
        place = torch.zeros(2, 4, 2, dtype=torch.bfloat16)
        y, states = function(x, weight.bfloat16(), return_final_states=True, final_states_out=place)
        assert states.data_ptr() == place.data_ptr() and torch.equal(place, x[..., -2:])
        assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("steps, size", [(None, 2), (1, 5), (3, 5), (2, 2)])
@pytest.mark.parametrize("circular", [False, True])
def test_update_goes_on_where_the_convolution_was(steps, size, circular):
    x, weight, bias = conv_problem("bias").values()
    count = 4 if steps is None else 7 - steps
    expected = plain_convolution(x, weight, bias)[..., count : count + (steps or 1)]
    new = x[..., count] if steps is None else x[..., count : count + steps]
    expected = expected[..., 0] if steps is None else expected
    seen = torch.cat([x.new_zeros(2, 4, size), x[..., :count]], -1)[..., -size:]
    after = torch.cat([seen, new.reshape(2, 4, -1)], -1)[..., -size:]
    options = {}
    if circular:
        turn = (torch.arange(count - size, count) % size).argsort()
        seen = seen[..., turn]
        total = count + (steps or 1)
        after = after[..., (torch.arange(total - size, total) % size).argsort()]
        options["cache_seqlens"] = torch.full((2,), count, dtype=torch.int32)
    for function in (conv.causal_conv1d_update, conv.causal_conv1d_update_ref):
        state = seen.clone()
        y = function(new, state, weight, bias, activation="silu", **options)
        assert_close(y, expected, 1e-12, "y")
        assert_close(state, after, 1e-12, "state")


def test_update_of_chosen_states_leaves_the_others_and_skips_padding():
    x, weight = conv_problem().values()
    pool = torch.ones(4, 4, 2, dtype=torch.float64)
    pool[2] = x[0, :, :2]
    before = pool.clone()
    indices = torch.tensor([2, -1], dtype=torch.int32)
    y = conv.causal_conv1d_update(x[..., 2], pool, weight, conv_state_indices=indices)
    assert_close(y[0], plain_convolution(x, weight, silu=False)[0, :, 2], 1e-12, "y")
    assert not y[1].any() and torch.equal(pool[2], x[0, :, 1:3])
    assert torch.equal(pool[[0, 1, 3]], before[[0, 1, 3]])


def test_convolution_refuses_other_activations_as_the_original_does():
    x, weight = conv_problem().values()
    for function in (conv.causal_conv1d_fn, conv.causal_conv1d_ref):
        with pytest.raises(NotImplementedError, match="activation is 'gelu'"):
            function(x, weight, activation="gelu")
    for function in (conv.causal_conv1d_update, conv.causal_conv1d_update_ref):
        with pytest.raises(NotImplementedError, match="activation is 'gelu'"):
            function(x, x[..., :2].clone(), weight, activation="gelu")


@pytest.mark.parametrize("bounds", [[0, 1, 1, 5], [0, 0, 5], [0, 5], [0, 2, 4]])
def test_states_of_packed_sequences_are_their_last_inputs(bounds):
    x = draw({"x": (5, 3)})["x"]
    expected = torch.zeros(len(bounds) - 1, 3, 4, dtype=torch.float64)
    for k, (start, end) in enumerate(itertools.pairwise(bounds)):
        for back in range(min(4, end - start)):
            expected[k, :, 3 - back] = x[end - 1 - back]
    for name in ("causal_conv1d_varlen_states", "causal_conv1d_varlen_states_ref"):
        states = ours(VARLEN, name)(x, torch.tensor(bounds, dtype=torch.int32), 4)
        assert torch.equal(states, expected) and states.stride(1) == 1


def test_functions_for_own_autograd_are_the_convolution_and_its_gradients():
    given = CONVOLUTIONS["all optional arguments"]
    x, weight, bias, initial = (given[k] for k in ("x", "weight", "bias", "initial_states"))
    (y, final), slopes = results_and_gradients(conv.causal_conv1d_fn, given)
    place = torch.empty_like(final)
    assert torch.equal(
        ours(CPP, "causal_conv1d_fwd_function")(x, weight, bias, None, initial, place, True), y
    )
    assert torch.equal(place, final)
    generator = torch.Generator().manual_seed(1)
    dy, dfinal = (
        torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (y, final)
    )
    backward, dx = ours(CPP, "causal_conv1d_bwd_function"), torch.empty_like(x)
    with torch.no_grad():
        found = backward(x, weight, bias, dy, None, initial, dfinal, dx, True, True)
    assert found[0] is dx
    for name, g in zip(("x", "weight", "bias", "initial_states"), found, strict=True):
        assert_close(g, slopes[name], 1e-12, name)
    for first in (None, initial):
        rest = None, first, None, None, False, True
        assert backward(x, weight, None, dy, *rest)[2:] == (None, None)
    state = initial.clone()
    step = ours(CPP, "causal_conv1d_update_function")
    assert_close(step(x, state, weight, bias, True, None, None), y, 1e-12, "update")
    assert torch.equal(state, final)


# ---- as PyTorch's own ----------------------------------------------------------------------------


def reversed_strides(given):
    """The same arguments, the first axis of each tensor contiguous in memory."""

    def turned(t):
        axes = tuple(reversed(range(t.ndim)))
        return t.permute(axes).contiguous().permute(axes)

    return {n: turned(t) if torch.is_tensor(t) else t for n, t in given.items()}


@pytest.mark.parametrize("length", [1, 2, 6])
def test_mixers_take_strides_as_they_come_and_sequences_shorter_than_their_taps(length):
    one, two = MIXERS["all optional arguments"], SPLITS["norm and projection"]
    one = one | {"xz": one["xz"][..., :length]}
    two = two | {"zxbcdt": two["zxbcdt"][:, :length]}
    for function, formula, given in [
        (interface.mamba_inner_fn, plain_inner, one),
        (ssd_combined.mamba_split_conv1d_scan_combined, plain_split, two),
    ]:
        assert_same(lambda f=function, **g: f(**reversed_strides(g)), formula, given)


def test_mixers_compile_as_one_graph():
    one = {n: t.float() if is_variable(t) else t for n, t in inner_problem("D").items()}
    two = {n: t.float() if is_variable(t) else t for n, t in SPLITS["norm and projection"].items()}

    def both(one, two):
        out, state = ssd_combined.mamba_split_conv1d_scan_combined(**two)
        norm = layer_norm.rms_norm_fn(out, out.new_ones(3), None, out, prenorm=True)
        return interface.mamba_inner_fn(**one), state, *norm

    one["xz"].requires_grad_()
    two["zxbcdt"].requires_grad_()
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    found, expected = compiled(one, two), both(one, two)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-6, "compiled")
    leaves = one["xz"], two["zxbcdt"]
    gradients = (torch.autograd.grad(sum(t.sum() for t in r), leaves) for r in (found, expected))
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, 1e-5, "gradient")


def test_tensors_elsewhere_are_refused_by_name():
    def elsewhere(given):
        return {n: t.to("meta") if torch.is_tensor(t) else t for n, t in given.items()}

    for function, given, name in [
        (interface.selective_scan_fn, scan_problem(), "u"),
        (interface.mamba_inner_fn, inner_problem(), "x"),
        (ssd_combined.mamba_chunk_scan_combined, SCANS["none of them"], "x"),
        (ssd_combined.mamba_split_conv1d_scan_combined, SPLITS["neither"], "x"),
        (selective_state_update, step_problem(), "state"),
        (conv.causal_conv1d_fn, conv_problem(), "x"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} is on meta; expected a CPU tensor"):
            function(**elsewhere(given))


# ---- the original packages -----------------------------------------------------------------------

SERVER = """
import importlib, inspect, sys, types, torch

class Stub(types.ModuleType):
    __spec__ = None
    def __getattr__(self, name):
        raise AttributeError(name)

for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
    sys.modules[name] = Stub(name)
# the package's own __init__ would import its models, and transformers
package = types.ModuleType("mamba_ssm")
package.__path__ = [sys.argv[2]]
sys.modules["mamba_ssm"] = package

def module(name):
    return importlib.import_module(name)

conv = module("causal_conv1d.causal_conv1d_interface")
interface = module("mamba_ssm.ops.selective_scan_interface")
ssd = module("mamba_ssm.ops.triton.ssd_combined")
gated = module("mamba_ssm.ops.triton.layernorm_gated")
interface.causal_conv1d_fn = ssd.causal_conv1d_fn = conv.causal_conv1d_ref
interface.selective_scan_fn = interface.selective_scan_ref
ssd.rmsnorm_fn = gated.rms_norm_ref

def signature(f):
    return [(p.name, p.kind.name, p.default if p.default is not p.empty else "required")
            for p in inspect.signature(f).parameters.values()]

asked = torch.load(sys.argv[1])
answers = {"signatures": [signature(getattr(module(m), n)) for m, n in asked["signatures"]],
           "calls": []}
for m, name, given in asked["calls"]:
    own = {k: v.clone() if torch.is_tensor(v) else v for k, v in given.items()}
    found = getattr(module(m), name)(**own)
    state = own.get("state", own.get("conv_state"))
    answers["calls"].append((found, state))
torch.save(answers, sys.argv[1])
"""

SIGNATURES = [
    *((INTERFACE, f"{n}_{k}") for n in ("selective_scan", "mamba_inner") for k in ("fn", "ref")),
    (INTERFACE, "rms_norm_forward"),
    (UPDATE, "selective_state_update"),
    (UPDATE, "selective_state_update_ref"),
    *((SSD, name) for name in ssd_combined.__all__ if not name.endswith("Fn")),
    *((NORM, name) for name in layer_norm.__all__),
    *((GATED, name) for name in gated.__all__),
    *((CONV, name) for name in conv.__all__),
    (VARLEN, "causal_conv1d_varlen_states"),
    (VARLEN, "causal_conv1d_varlen_states_ref"),
    (CPP, "causal_conv1d_fwd_function"),
    (CPP, "causal_conv1d_bwd_function"),
    (CPP, "causal_conv1d_update_function"),
]
SINGLE = {torch.float64: torch.float32, torch.complex128: torch.complex64}


def single(given):
    """The arguments in float32, as the originals take them."""
    return {
        n: t.to(SINGLE.get(t.dtype, t.dtype)) if torch.is_tensor(t) else t for n, t in given.items()
    }


CALLS = [
    (INTERFACE, "selective_scan_ref", "selective_scan_fn",
     scan_problem("grouped", "constant", delta_softplus=True, return_last_state=True)),
    (INTERFACE, "mamba_inner_ref", "mamba_inner_fn", inner_problem("D", "delta_bias")),
    (UPDATE, "selective_state_update_ref", "selective_state_update",
     {**step_problem(), "dt_softplus": True}),
    (SSD, "ssd_chunk_scan_combined_ref", "mamba_chunk_scan_combined",
     ssd_problem(without=("initial_states",), length=8, dt_softplus=True)),
    (SSD, "ssd_selective_scan", "ssd_selective_scan",
     {k: v for k, v in ssd_problem(without=("initial_states",), dt_limit=(0.3, 1.2)).items()
      if k != "chunk_size"}),
    (SSD, "mamba_split_conv1d_scan_ref", "mamba_split_conv1d_scan_combined",
     split_problem(*NORMED, groups=1, norm_before_gate=False)),
    (SSD, "mamba_split_conv1d_scan_ref", "mamba_split_conv1d_scan_combined",
     split_problem(dt_limit=(0.4, 1.0))),
    *((NORM, f"{kind}_norm_ref", f"{kind}_norm_fn", given)
      for kind in ("layer", "rms") for given in NORMS.values()),
    *((GATED, "rms_norm_ref", "rmsnorm_fn",
       {**draw({"x": (2, 8), "weight": (8,), "z": (2, 8)}), "bias": None, "group_size": 4,
        "norm_before_gate": before}) for before in (True, False)),
    *((CONV, "causal_conv1d_ref", "causal_conv1d_fn", given) for given in CONVOLUTIONS.values()),
    *((CONV, "causal_conv1d_update_ref", "causal_conv1d_update",
       {**draw({"x": (2, 4, 2), "conv_state": (2, 4, 3), "weight": (4, 3), "bias": (4,)}),
        "activation": "silu", "cache_seqlens": seen}) for seen in (None, torch.tensor([2, 7]))),
    (VARLEN, "causal_conv1d_varlen_states_ref", "causal_conv1d_varlen_states",
     {**draw({"x": (9, 4)}), "cu_seqlens": CU_SEQLENS, "state_len": 3}),
]  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Signatures of the original packages, and what their plain PyTorch computes."""
    try:
        files = importlib.metadata.distribution("mamba_ssm").locate_file("mamba_ssm")
        importlib.metadata.distribution("causal_conv1d")
    except importlib.metadata.PackageNotFoundError as error:
        pytest.skip(f"needs the original package: {error}")
    for name in ("einops", "triton"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the original mamba_ssm needs {name}")
    path = tmp_path_factory.mktemp("originals") / "asked"
    calls = [(module, name, single(given)) for module, name, _, given in CALLS]
    minimal = "mamba_ssm.modules.ssd_minimal", "ssd_minimal_discrete", single(minimal_problem())
    torch.save({"signatures": SIGNATURES, "calls": [*calls, minimal]}, path)
    command = [sys.executable, "-c", SERVER, str(path), str(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(path)


def minimal_problem():
    given = draw({
        "X": (2, 8, HEADS, WIDTH), "A": (2, 8, HEADS), "B": (2, 8, HEADS, N),
        "C": (2, 8, HEADS, N), "initial_states": (2, 1, HEADS, WIDTH, N),
    })  # fmt: skip
    return {**given, "block_len": 4}


def test_signatures_are_those_of_the_original_packages(originals):
    for (module, name), theirs in zip(SIGNATURES, originals["signatures"], strict=True):
        mine = [
            (p.name, p.kind.name, p.default if p.default is not p.empty else "required")
            for p in inspect.signature(ours(module, name)).parameters.values()
        ]
        more = mine[len(theirs) :]  # of later versions
        assert mine[: len(theirs)] == theirs, name
        assert all(parameter[2] != "required" for parameter in more), name


def test_functions_compute_what_the_originals_references_do(originals):
    for (module, _, name, given), (expected, state) in zip(CALLS, originals["calls"], strict=False):
        arguments = single(given)
        own = {n: t.clone() if torch.is_tensor(t) else t for n, t in arguments.items()}
        found = ours(module, name)(**own)
        pairs = [(found, expected)] if torch.is_tensor(found) else zip(found, expected, strict=True)
        for a, b in pairs:
            assert a.dtype == b.dtype, name
            assert_close(a, b, 3e-6, name)
        if state is not None:
            assert_close(own.get("state", own.get("conv_state")), state, 1e-6, name)


def test_scan_of_mamba2_is_the_papers_minimal_one(originals):
    given = single(minimal_problem())
    expected = originals["calls"][-1][0]
    # its X has the step sizes in it, its A too
    steps = given["A"].abs()
    found = ssd_combined.mamba_chunk_scan_combined(
        given["X"] / steps[..., None], steps, -torch.ones(HEADS), given["B"], given["C"], 4,
        initial_states=given["initial_states"][:, 0], return_final_states=True,
    )  # fmt: skip
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 3e-6, "minimal")


# The originals' Triton kernels, forward and backward, in Triton's interpreter: it needs no GPU, and
# is slow.  What asks for one is replaced, and the extension's convolution by ours.
KERNELS = """
import contextlib, importlib, math, os, sys, types
os.environ["TRITON_INTERPRET"] = "1"
tests, files = sys.argv[1:]
sys.path.insert(0, tests)
import torch, triton
import test_integrations_mamba_ssm_ops as t

for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
    sys.modules[name] = types.ModuleType(name)
package = types.ModuleType("mamba_ssm")
package.__path__ = [files]
sys.modules["mamba_ssm"] = package

def run_smallest(self, *args, **kwargs):
    # no timing: the configuration with the smallest blocks
    config = self.best_config = min(self.configs, key=lambda c: math.prod(c.kwargs.values()))
    options = {**kwargs, **config.all_kwargs()}
    if config.pre_hook is not None:
        config.pre_hook({**dict(zip(self.arg_names, args)), **options})
    return self.fn.run(*args, **options)

triton.runtime.autotuner.Autotuner.run = run_smallest
torch.cuda.device = lambda index: contextlib.nullcontext()
one = types.SimpleNamespace(multi_processor_count=2)
torch.cuda.get_device_properties = lambda device: one
torch.set_num_threads(1)

def original(module, name):
    return getattr(importlib.import_module(module), name)

try:
    original(t.NORM, "rms_norm_fn")(torch.ones(1, 8), torch.ones(8), None)
except Exception as error:
    print(f"Triton {triton.__version__} cannot interpret the kernels: {error!r}")
    sys.exit(77)

cpp = importlib.import_module(f"{t.PACKAGES}.{t.CPP}")
combined = importlib.import_module(t.SSD)
combined.causal_conv1d_fwd_function = cpp.causal_conv1d_fwd_function
combined.causal_conv1d_bwd_function = cpp.causal_conv1d_bwd_function

def both(module, name, given, tolerance=3e-5, forward=False):
    mine, theirs = t.ours(module, name), original(module, name)
    if forward:
        mine, theirs = (without_gradients(f) for f in (mine, theirs))
    given = t.single(given)
    rowscale = {k: given.pop(k) for k in ("rowscale",) if k in given}  # it has no gradient there
    functions = (lambda f=f, **g: f(**g, **rowscale) for f in (mine, theirs))
    print(name, flush=True)
    t.assert_same(*functions, given, tolerance)
    kinds = ([r.dtype for r in t.as_tuple(f(**given, **rowscale))] for f in (mine, theirs))
    assert next(kinds) == next(kinds)

def without_gradients(function):
    # as a function of all arguments whose gradients are zero, the state's new value a result
    def called(**given):
        own = {k: v.detach().clone() if torch.is_tensor(v) else v for k, v in given.items()}
        found = t.as_tuple(function(**own))
        found += (own["state"],) if "state" in own else ()
        nothing = sum(0 * v.sum() for v in given.values() if t.is_variable(v))
        return tuple(r + nothing.to(r.dtype) for r in found)
    return called

for given in t.NORMS.values():
    both(t.NORM, "layer_norm_fn", given)
    both(t.NORM, "rms_norm_fn", given)
rows = t.draw({"x": (3, 8), "weight": (8,), "z": (3, 8), "bias": (8,)})
for before, size in (True, None), (False, 4):
    for name in "layernorm_fn", "rmsnorm_fn":
        both(t.GATED, name, {**rows, "group_size": size, "norm_before_gate": before})
both("mamba_ssm.ops.triton.k_activations", "swiglu", t.draw({"xy": (3, 8)}))
step = {**t.step_problem(), "dt_softplus": True}
both(t.UPDATE, "selective_state_update", step, forward=True)
indices = torch.tensor([1, -1], dtype=torch.int32)
both(t.UPDATE, "selective_state_update", {**step, "state_batch_indices": indices}, forward=True)

scan = {"length": 18, "dt_softplus": True, "return_final_states": True}
numbers = torch.zeros(2, 18, dtype=torch.int32)
numbers[0, 5:], numbers[0, 17:], numbers[1] = 1, 2, 3
packed = {**t.ssd_problem(**scan), "seq_idx": numbers, "chunk_size": 16}
both(t.SSD, "mamba_chunk_scan_combined", packed)
ends = {"cu_seqlens": torch.tensor([0, 5, 17, 18], dtype=torch.int32), "return_varlen_states": True}
alone = t.ssd_problem(batch=1, without=("initial_states",), **scan)
alone |= {**ends, "seq_idx": numbers[:1], "chunk_size": 16}
both(t.SSD, "mamba_chunk_scan_combined", alone, forward=True)

t.N = 4  # the original's convolution takes multiples of 8 channels
for given in [
    t.split_problem(*t.NORMED, mlp=4, norm_before_gate=False, rmsnorm_eps=1e-2),
    t.split_problem("initial_states", seq_idx=t.SEQ_IDX.int(), return_final_states=True,
                    dt_limit=(0.4, 1.0)),
]:
    both(t.SSD, "mamba_split_conv1d_scan_combined", {**given, "chunk_size": 16}, 1e-4)
"""


@pytest.mark.slow
def test_functions_and_gradients_are_those_of_the_originals_triton_kernels(originals):
    files = importlib.metadata.distribution("mamba_ssm").locate_file("mamba_ssm")
    command = [sys.executable, "-c", KERNELS, str(pathlib.Path(__file__).parent), str(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
