"""The mixers of transformers 4.5x, computed by fastderiv.

In transformers 4.5x the class of a layer has a method, ``slow_forward`` or ``torch_forward``, that
is the layer on a CPU, recurrence included.  The functions here have the parameters of those methods
and take their place.  Each goes through the layer in the order of the paper: project, convolve,
select, scan, project.  Projections and norms are the modules of the mixer and are called as such,
so that adapters and quantised weights work.  The cache is that of transformers, which is written
where and when transformers writes it.

A function returns None for a call that it does not know, before it has changed anything: several
tokens on a cache that is in use, for instance, which transformers 4.5x does not support either.

Results are those of transformers, except for two mistakes of its methods for CPUs that those for
GPUs do not make: the chunks of Zamba2 are put together wrongly, and after a prompt that is shorter
than the window of the convolution, what is decoded misses a token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from math import inf
from types import ModuleType
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from torch.nn.functional import conv1d, pad, rms_norm, silu, softplus

from ..torch import (
    causal_conv1d,
    causal_conv1d_update,
    selective_scan,
    selective_state_update,
    ssd_scan,
)
from ._leaving import instead_of, obstacle, say
from ._table import Replacement, Row

# ---- the convolution -----------------------------------------------------------------------------


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (batch, l, d) with zeros for padding, where the mask (batch, l) has them."""
    return x if mask is None else (x * mask[:, :, None]).to(x.dtype)


def _is_silu(mixer: Any) -> bool:
    return mixer.activation in ("silu", "swish")


def _convolve(mixer: Any, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
    """The activated convolution of x (batch, d, l)."""
    weight, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
    fused = "silu" if _is_silu(mixer) else None
    out: Tensor = causal_conv1d(x, weight, bias, seq_idx=seq_idx, activation=fused)
    return out if fused else mixer.act(out)


def _convolve_step(mixer: Any, x: Tensor, window: Tensor) -> Tensor:
    """The same of one step x (batch, d), after the steps in the window (batch, d, k)."""
    weight, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
    fused = "silu" if _is_silu(mixer) else None
    out: Tensor = causal_conv1d_update(x, window, weight, bias, activation=fused)
    return out if fused else mixer.act(out)


def _window(x: Tensor, taps: int) -> Tensor:
    """The last steps of x (batch, d, l), which the cache keeps for the next convolution."""
    return pad(x, (taps - x.shape[-1], 0))


# ---- Mamba, Falcon-Mamba, Jamba, Zamba -----------------------------------------------------------


def mamba(
    mixer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    cache_position: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor | None:
    if cache_params is None:
        prefill = True
    elif cache_position is None:
        return None
    else:  # transformers tells the two apart by the length, which torch.compile knows
        prefill = cache_position.shape[0] == mixer.conv_kernel_size
    if not prefill and hidden_states.shape[1] != 1:
        return None
    x, gate = mixer.in_proj(hidden_states).chunk(2, dim=-1)
    x, gate = _masked(x, attention_mask).transpose(1, 2), gate.transpose(1, 2)
    if not prefill:
        window = cache_params.conv_states[mixer.layer_idx]
        x = _convolve_step(mixer, x[..., 0], window)[..., None]
    else:
        if cache_params is not None:
            window = _window(x, mixer.conv_kernel_size)
            cache_params.update_conv_state(mixer.layer_idx, window, cache_position)
        x = _convolve(mixer, x)
    x = _masked(x.transpose(1, 2), attention_mask).transpose(1, 2)
    state = None if cache_params is None else cache_params.ssm_states[mixer.layer_idx]
    # the graph keeps the state from before, which is overwritten below
    before = state if state is None or not prefill else state.clone()
    out, last = _recurrence(mixer, x, gate, _select(mixer, x), before, step=not prefill)
    if state is not None and last is not None:
        state.copy_(last)
    return _projected(mixer, out)


def jamba(
    mixer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
) -> Tensor | None:
    step = _is_step_of_hybrid(mixer, cache_params, hidden_states)
    if step is None:
        return None
    x, gate = mixer.in_proj(hidden_states).chunk(2, dim=-1)
    x, gate = _masked(x, attention_mask).transpose(1, 2), gate.transpose(1, 2)
    x = _convolve_hybrid(mixer, x, cache_params, step=step)
    x = _masked(x.transpose(1, 2), attention_mask).transpose(1, 2)
    state = None if cache_params is None else cache_params.ssm_states[mixer.layer_idx]
    out, last = _recurrence(mixer, x, gate, _select(mixer, x), state, step=step)
    if last is not None and cache_params is not None:
        cache_params.ssm_states[mixer.layer_idx] = last
    return _projected(mixer, out)


def zamba(
    mixer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
) -> Tensor | None:
    step = _is_step_of_hybrid(mixer, cache_params, hidden_states)
    if step is None:
        return None
    # the two halves alternate, channel by channel
    x, gate = mixer.in_proj(hidden_states).transpose(1, 2).unflatten(1, (-1, 2)).unbind(2)
    mask = attention_mask
    if mask is not None:
        mask = None if step else mask[:, -hidden_states.shape[1] :]
    x = _masked(x.transpose(1, 2), mask).transpose(1, 2)
    x = _convolve_hybrid(mixer, x, cache_params, step=step)
    x = _masked(x.transpose(1, 2), mask).transpose(1, 2)
    state = None if cache_params is None else cache_params.ssm_states[mixer.layer_idx].flatten(1, 2)
    out, last = _recurrence(mixer, x, gate, _select_by_heads(mixer, x), state, step=step)
    if last is not None and cache_params is not None:
        by_heads = last.unflatten(1, (mixer.n_mamba_heads, -1))
        cache_params.ssm_states[mixer.layer_idx] = by_heads
    return _projected(mixer, out)


def _is_step_of_hybrid(mixer: Any, cache: Any, x: Tensor) -> bool | None:
    """Whether the cache is used, and for one token; None if it is of another batch."""
    if cache is None:
        return False
    batches = {len(states[mixer.layer_idx]) for states in (cache.conv_states, cache.ssm_states)}
    if batches != {len(x)}:
        return None
    return bool(cache.has_previous_state) and x.shape[1] == 1


def _convolve_hybrid(mixer: Any, x: Tensor, cache: Any, *, step: bool) -> Tensor:
    if step:
        window = cache.conv_states[mixer.layer_idx]
        return _convolve_step(mixer, x[..., 0], window)[..., None]
    if cache is not None:
        cache.conv_states[mixer.layer_idx] = _window(x, mixer.conv_kernel_size)
    return _convolve(mixer, x)


class _Selected(NamedTuple):
    """What a scan takes beside x and the gate."""

    dt: Tensor  # (batch, d, l), to be given to softplus
    A: Tensor  # (d, n)
    B: Tensor  # (batch, n, l), or (batch, groups, n, l)
    C: Tensor
    D: Tensor  # (d,)


def _select(mixer: Any, x: Tensor) -> _Selected:
    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    time_step, B, C = mixer.x_proj(x.transpose(1, 2)).split(sizes, dim=-1)
    if hasattr(mixer, "dt_layernorm"):  # Jamba
        time_step, B, C = (
            mixer.dt_layernorm(time_step),
            mixer.b_layernorm(B),
            mixer.c_layernorm(C),
        )
    elif hasattr(mixer, "rms_eps"):  # Falcon-Mamba
        time_step, B, C = (
            rms_norm(t.float(), t.shape[-1:], eps=mixer.rms_eps).to(t.dtype)
            for t in (time_step, B, C)
        )
    dt, B, C = (t.transpose(1, 2) for t in (mixer.dt_proj(time_step), B, C))
    return _Selected(dt, -torch.exp(mixer.A_log.float()), B, C, mixer.D)


def _select_by_heads(mixer: Any, x: Tensor) -> _Selected:
    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    heads = x.unflatten(1, (mixer.n_mamba_heads, -1))
    time_step, B, C = (mixer.x_proj_weight @ heads).split(sizes, dim=2)
    dt = mixer.dt_proj_weight @ time_step + mixer.dt_proj_bias[:, :, None]
    A = -torch.exp(mixer.A_log.float())
    return _Selected(dt.flatten(1, 2), A.flatten(0, 1), B, C, mixer.D.flatten())


def _recurrence(
    mixer: Any, x: Tensor, gate: Tensor, selected: _Selected, state: Tensor | None, *, step: bool
) -> tuple[Tensor, Tensor | None]:
    """The gated output (batch, d, l), and the last state if it is not in its place already."""
    dt, A, B, C, D = selected
    fused = _is_silu(mixer)
    last = None
    if step:
        x_, dt_, B_, C_, gate_ = (t[..., 0] for t in (x, dt, B, C, gate))
        z = gate_ if fused else None
        out = selective_state_update(state, x_, dt_, A, B_, C_, D, z, dt_softplus=True)[..., None]
    else:
        z = gate if fused else None
        # transformers goes on from the cache's state even where its convolution starts anew
        options: Any = dict(delta_softplus=True, return_last_state=True, initial_state=state)
        out, last = selective_scan(x, dt, A, B, C, D, z, **options)
    return out if fused else out * mixer.act(gate), last


def _projected(mixer: Any, out: Tensor) -> Tensor:
    result: Tensor = mixer.out_proj(out.transpose(1, 2))
    return result


# ---- Mamba-2, Bamba, Falcon-H1, Granite-MoE-hybrid, Zamba2 ---------------------------------------


def mamba2(
    mixer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    cache_position: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor | None:
    step = cache_params is not None and cache_position is not None and bool(cache_position[0] > 0)
    if step and hidden_states.shape[1] != 1:
        return None
    mask = _mask_of_batch(attention_mask)
    projected = mixer.in_proj(_masked(hidden_states, mask))
    options: Any = dict(dt_limit=mixer.time_step_limit, step=step)
    return _state_space_dual(mixer, projected, cache_params, mask, **options)


def bamba(
    mixer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    cache_position: Tensor | None = None,
    attention_mask: Tensor | None = None,
    seq_idx: Tensor | None = None,
    **_: Any,
) -> Tensor | None:
    step = (
        bool(_is_step_of_hybrid(mixer, cache_params, hidden_states))
        and cache_position is not None
        and bool(cache_position[0] > 0)
    )
    mask = _mask_of_batch(attention_mask)
    x = _masked(hidden_states, mask)
    if hasattr(mixer, "mup_vector"):  # Falcon-H1
        projected = mixer.in_proj(x * mixer.ssm_in_multiplier) * mixer.mup_vector
    else:
        projected = mixer.in_proj(x)
    options: Any = dict(dt_limit=mixer.time_step_limit, step=step, seq_idx=seq_idx)
    return _state_space_dual(mixer, projected, cache_params, mask, **options)


def zamba2(
    mixer: Any,
    hidden_states: Tensor,
    cache_params: Any = None,
    attention_mask: Tensor | None = None,
) -> Tensor | None:
    step = cache_params is not None and bool(cache_params.has_previous_state)
    if step and hidden_states.shape[1] != 1:
        return None
    mask = None if step else attention_mask
    projected = mixer.in_proj(_masked(hidden_states, mask))
    # transformers masks twice only if there is a cache, and has a lower limit of its own
    again = None if cache_params is None else mask
    options: Any = dict(dt_limit=(mixer.time_step_min, inf), step=step)
    return _state_space_dual(mixer, projected, cache_params, again, **options)


def _mask_of_batch(mask: Tensor | None) -> Tensor | None:
    return mask if mask is not None and min(mask.shape) > 1 else None


def _state_space_dual(
    mixer: Any,
    projected: Tensor,
    cache: Any,
    mask: Tensor | None,
    *,
    dt_limit: tuple[float, float],
    step: bool,
    seq_idx: Tensor | None = None,
) -> Tensor:
    """The layer after its first projection."""
    sizes = [mixer.intermediate_size, mixer.conv_dim, mixer.num_heads]
    gate, xBC, dt = projected.split(sizes, dim=-1)
    i = mixer.layer_idx
    if step:
        xBC = _convolve_step(mixer, xBC[:, 0], cache.conv_states[i])[:, None]
    else:
        rows = xBC.transpose(1, 2)
        if cache is not None:
            cache.conv_states[i].copy_(_window(rows, mixer.conv_kernel_size))
        xBC = _convolve(mixer, rows, seq_idx).transpose(1, 2)
    states = mixer.n_groups * mixer.ssm_state_size
    x, B, C = _masked(xBC, mask).split([mixer.intermediate_size, states, states], dim=-1)
    x = x.unflatten(-1, (mixer.num_heads, mixer.head_dim))
    B, C = (t.unflatten(-1, (mixer.n_groups, mixer.ssm_state_size)) for t in (B, C))
    A = -torch.exp(mixer.A_log.float())
    if step:
        y = _dual_step(mixer, x, dt, A, B, C, cache.ssm_states[i], dt_limit)
    else:
        options: Any = dict(seq_idx=seq_idx, dt_softplus=True, dt_limit=dt_limit)
        options |= dict(dt_bias=mixer.dt_bias, return_final_states=cache is not None)
        y = ssd_scan(x, dt, A, B, C, mixer.chunk_size, D=mixer.D, **options)
        if cache is not None:
            y, last = y
            cache.ssm_states[i].copy_(last)
    y = y.flatten(-2)
    # Falcon-H1 may have no norm
    y = mixer.norm(y, gate) if getattr(mixer, "mamba_rms_norm", True) else y * silu(gate)
    result: Tensor = mixer.out_proj(y)
    return result


def _dual_step(
    mixer: Any,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    dt_limit: tuple[float, float],
) -> Tensor:
    """The output (batch, 1, h, p) of one step, which moves the state (batch, h, p, n) on."""
    p, n = state.shape[2:]
    dt, bias = dt[:, 0], mixer.dt_bias
    limited = tuple(dt_limit) != (0.0, inf)
    if limited:  # the function for one step has no limits
        dt, bias = softplus(dt + bias).clamp(*dt_limit), None
    out: Tensor = selective_state_update(
        state,
        x[:, 0],
        dt[:, :, None].expand(-1, -1, p),
        A[:, None, None].expand(-1, p, n),
        B[:, 0],
        C[:, 0],
        mixer.D[:, None].expand(-1, p),
        dt_bias=None if bias is None else bias[:, None].expand(-1, p),
        dt_softplus=not limited,
    )
    return out[:, None]


# ---- LFM2, Qwen3-Next ----------------------------------------------------------------------------


def lfm2(
    mixer: Any,
    x: Tensor,
    past_key_values: Any = None,
    cache_position: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor | None:
    step = (
        past_key_values is not None and cache_position is not None and bool(cache_position[0] > 0)
    )
    if step and x.shape[1] != 1:
        return None
    projected = mixer.in_proj(_masked(x, _mask_of_batch(attention_mask)))
    B, C, values = projected.transpose(1, 2).chunk(3, dim=1)
    Bx, weight, bias = B * values, mixer.conv.weight[:, 0], mixer.conv.bias
    window = None if past_key_values is None else past_key_values.conv_cache[mixer.layer_idx]
    if step:
        out = causal_conv1d_update(Bx[..., 0], window, weight, bias)[..., None]
    else:
        if window is not None:
            window.copy_(_window(Bx, mixer.L_cache))
        out = causal_conv1d(Bx, weight, bias)
    result: Tensor = mixer.out_proj((C * out).transpose(1, 2))
    return result


def qwen3_next(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor:
    return causal_conv1d(x, weight, bias, seq_idx, activation=activation)


def qwen3_next_step(
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    return causal_conv1d_update(hidden_states, conv_state, weight, bias, activation)


def _convolve_in_pytorch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor:
    """What Qwen3-Next does where it has no function for it."""
    out = conv1d(x, weight[:, None], bias, padding=weight.shape[1] - 1, groups=len(weight))
    return silu(out[..., : x.shape[-1]])


# ---- which take whose place ----------------------------------------------------------------------


class _Layer(NamedTuple):
    ours: Callable[..., Tensor | None]
    methods: tuple[str, ...]
    """The method for CPUs.  Where ``forward`` would not call it in cases that fastderiv computes
    (packed sequences, `use_mamba_kernels`), that too."""


_LAYERS = {
    "MambaMixer": _Layer(mamba, ("slow_forward",)),
    "FalconMambaMixer": _Layer(mamba, ("slow_forward",)),
    "JambaMambaMixer": _Layer(jamba, ("slow_forward", "forward")),
    "ZambaMambaMixer": _Layer(zamba, ("slow_forward", "forward")),
    "Mamba2Mixer": _Layer(mamba2, ("torch_forward",)),
    "BambaMixer": _Layer(bamba, ("torch_forward", "forward")),
    "FalconH1Mixer": _Layer(bamba, ("torch_forward",)),
    "GraniteMoeHybridMambaLayer": _Layer(bamba, ("torch_forward", "forward")),
    "Zamba2MambaMixer": _Layer(zamba2, ("torch_forward",)),
    "Lfm2ShortConv": _Layer(lfm2, ("slow_forward",)),
    "Lfm2MoeShortConv": _Layer(lfm2, ("slow_forward",)),
}
_WITH_ATTRIBUTES = "Qwen3NextGatedDeltaNet"


def are_here() -> bool:
    """Whether this version of transformers has layers and caches like those of 4.5x."""
    major, minor, *_ = transformers.__version__.split(".")
    return (4, 50) <= (int(major), int(minor)) < (5, 4)


def replacements(row: Row, module: ModuleType) -> tuple[list[Replacement], list[str]]:
    """What to replace in the module of a row, and the names that it does not have."""
    found: list[Replacement] = []
    missing = []
    for name in row.mixers:
        cls = getattr(module, name, None)
        if cls is None:
            missing.append(f"{row.module}.{name}")
        elif name == _WITH_ATTRIBUTES:
            found += _attributes(cls, module)
        else:
            new, unknown = _methods(cls, _LAYERS[name])
            found += new
            missing += [f"{row.module}.{name}.{method}" for method in unknown]
    return [*found, *_signs(module)] if found else [], missing


def _methods(cls: type, layer: _Layer) -> tuple[list[Replacement], list[str]]:
    found, missing = [], []
    for name in layer.methods:
        original = vars(cls).get(name)
        if original is None:
            missing.append(name)
        else:
            only = cls if name == "forward" else None
            found.append(Replacement(cls, name, _layer_instead_of(original, layer.ours, only)))
    return found, missing


def _signs(module: ModuleType) -> Iterator[Replacement]:
    """A global of the module, replaced by its equal.

    ``torch.compile`` compiles anew if a global that it has seen is another object, but it does not
    see that a method is.  Layers of Jamba and Zamba look at no such global: if they were compiled
    before, they stay as they are.
    """
    lazy = getattr(module, "_lazy_load_causal_conv1d", None)
    if lazy is not None:
        yield Replacement(module, lazy.__name__, _equal(lazy))
    elif hasattr(module, "is_fast_path_available"):
        available = module.is_fast_path_available
        yield Replacement(module, "is_fast_path_available", int(bool(available)))


@functools.cache
def _equal(function: Callable[[], Any]) -> Callable[[], Any]:
    return functools.wraps(function)(lambda: function())


# cached, so that compiled models find the methods they know
@functools.cache
def _layer_instead_of(
    original: Callable[..., Any], ours: Callable[..., Tensor | None], only: type | None
) -> Callable[..., Any]:
    """A method that calls `ours` wherever it can, of objects of the class `only` if given."""

    @functools.wraps(original)
    def either(mixer: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if only is not None and type(mixer) is not only:  # its own slow_forward may be what counts
            return original(mixer, hidden_states, *args, **kwargs)
        reason = obstacle([hidden_states, *_tensors(mixer, args, kwargs)])
        if reason is None:
            out = ours(mixer, hidden_states, *args, **kwargs)
            if out is not None:
                return out
        else:
            say(reason)
        return original(mixer, hidden_states, *args, **kwargs)

    return either


def _tensors(mixer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """What an operator would be given beside what comes from the input."""
    yield from mixer.parameters(recurse=False)
    convolution = mixer.conv if hasattr(mixer, "L_cache") else mixer.conv1d
    yield convolution.weight
    cache = args[0] if args else kwargs.get("cache_params", kwargs.get("past_key_values"))
    for name in ("conv_states", "ssm_states", "conv_cache"):
        if hasattr(cache, name):
            yield getattr(cache, name)[mixer.layer_idx]


def _attributes(cls: type, module: ModuleType) -> Iterator[Replacement]:
    """The functions of Qwen3-Next's convolution.

    A layer keeps them as attributes from when it is built.  Properties of the class come before
    them, and serve layers that were built earlier too.
    """
    update = module.causal_conv1d_update or module.torch_causal_conv1d_update
    for name, default, ours in (
        ("causal_conv1d_fn", module.causal_conv1d_fn, qwen3_next),
        ("causal_conv1d_update", update, qwen3_next_step),
    ):
        either = instead_of(default or _convolve_in_pytorch, ours, packs=False)
        yield Replacement(cls, name, _attribute(name, default, either))


@functools.cache
def _attribute(name: str, default: Any, ours: Callable[..., Any]) -> property:
    def get(mixer: Any) -> Any:
        own = vars(mixer)[name]
        return ours if own is default else own

    def keep(mixer: Any, value: Any) -> None:
        vars(mixer)[name] = value

    return property(get, keep)
