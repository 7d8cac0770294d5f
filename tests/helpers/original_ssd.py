"""Triton's interpreter runs the kernels of the real ``mamba_ssm`` on the CPU; ours must agree.

    TRITON_INTERPRET=1 python tests/helpers/original_ssd.py

Results, states and gradients of `ssd_scan` against those of ``mamba_chunk_scan_combined``, and
steps, of states in a pool too, against those of ``selective_state_update``.
"""

import contextlib
import importlib
import sys
import types
from typing import Any

import torch
from triton.runtime import autotuner

from fastderiv.integrations.torch import selective_state_update, ssd_scan


class FirstConfiguration:
    """In the place of Triton's autotuner, which measures configurations on a GPU."""

    def __init__(self, fn: Any, arg_names: list[str], configs: list[Any], *_: Any, **__: Any):
        self.fn, self.arg_names = fn, arg_names
        self.configs, self.best_config = configs, configs[0]

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: self.run(*args, grid=grid, warmup=False, **kwargs)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        chosen = self.best_config.kwargs
        if self.best_config.pre_hook:
            named = dict(zip(self.arg_names, args, strict=False))
            self.best_config.pre_hook({**named, **kwargs, **chosen})
        return self.fn.run(*args, **kwargs, **chosen)


def without_a_gpu() -> None:
    """Replace what the kernels' callers ask of a GPU; before ``mamba_ssm`` is imported."""
    sys.modules.setdefault("selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    autotuner.Autotuner = FirstConfiguration  # type: ignore[misc]
    torch.cuda.device = lambda *_: contextlib.nullcontext()  # type: ignore[assignment,misc]
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(  # type: ignore[assignment]
        multi_processor_count=1
    )


BATCH, STEPS, HEADS, WIDTH, STATES, CHUNK = 2, 24, 2, 16, 16, 16
SEQ_IDX = torch.tensor([[0] * 6 + [1] * 12 + [2] * 6, [0] * 18 + [1] * 6], dtype=torch.int32)
SHIFTED = SEQ_IDX + torch.tensor([[0], [1]], dtype=torch.int32)


def problem(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    p = {
        "x": normal(batch, STEPS, HEADS, WIDTH),
        "dt": normal(batch, STEPS, HEADS),
        "A": -normal(HEADS).abs(),
        "B": normal(batch, STEPS, 1, STATES),
        "C": normal(batch, STEPS, 1, STATES),
        "D": normal(HEADS, WIDTH),
        "z": normal(batch, STEPS, HEADS, WIDTH),
        "dt_bias": normal(HEADS),
        "initial_states": normal(batch, HEADS, WIDTH, STATES),
    }
    return {name: t.requires_grad_() for name, t in p.items()}


def found(scan: Any, p: dict[str, torch.Tensor], options: dict[str, Any]) -> list[torch.Tensor]:
    """The results, and the gradients where the original has them."""
    results = scan(**p, chunk_size=CHUNK, **options)
    results = results if isinstance(results, tuple) else (results,)
    if "return_varlen_states" in options:
        return list(results)
    seeds = [torch.cos(torch.arange(float(r.numel()))).view(r.shape) for r in results]
    return [*results, *torch.autograd.grad(results, list(p.values()), seeds)]


CASES: dict[str, dict[str, Any]] = {
    "all": {},
    "no softplus, limits": {"dt_softplus": False, "dt_limit": (0.2, 0.9)},
    "no gate, one D a head": {"without": ("z",), "D": 1},
    "seq_idx": {"seq_idx": SEQ_IDX},
    "seq_idx, not from 0": {"seq_idx": SHIFTED},
    "cu_seqlens": {
        "seq_idx": SEQ_IDX[:1],
        "cu_seqlens": torch.tensor([0, 6, 18, 24], dtype=torch.int32),
        "return_varlen_states": True,
        # the original forgets the initial state of a first sequence that ends in the first chunk
        "without": ("initial_states",),
    },
}


def check(name: str, ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    pairs = zip(ours, theirs, strict=True)
    errors = [float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs]
    print(f"{name:24}", *(f"{e:.1e}" for e in errors))
    if not max(errors) < 2e-6:
        raise SystemExit(f"{name} differs")


def check_scans() -> None:
    original = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    for name, case in CASES.items():
        options = {"dt_softplus": True, "return_final_states": True, **case}
        p = problem(1 if "cu_seqlens" in options else BATCH)
        for absent in options.pop("without", ()):
            del p[absent]
        if options.pop("D", 2) == 1:
            p["D"] = p["D"].detach()[:, 0].clone().requires_grad_()
        check(name, *(found(f, p, options) for f in (ssd_scan, original.mamba_chunk_scan_combined)))


@torch.no_grad()
def check_steps() -> None:
    original = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
    p = problem(BATCH)
    one = {name: p[name][:, 0] for name in ("x", "B", "C", "z")}
    shape = HEADS, WIDTH
    expanded = {
        "dt": p["dt"][:, 0, :, None].expand(BATCH, *shape),
        "A": p["A"][:, None, None].expand(*shape, STATES),
        "dt_bias": p["dt_bias"][:, None].expand(shape),
    }
    different = {
        "dt": p["x"][:, 1],
        "A": -p["initial_states"][0].abs(),
        "dt_bias": p["D"].flip(1),
    }
    for name, parameters in ("expanded", expanded), ("different in a head", different):
        for indices in None, torch.tensor([4, -1], dtype=torch.int32):
            states = p["initial_states"].repeat(3, 1, 1, 1)[: BATCH if indices is None else None]
            results = []
            for step in selective_state_update, original.selective_state_update:
                pool = states.clone()
                arguments = {**one, **parameters, "D": p["D"], "state_batch_indices": indices}
                results.append([step(pool, dt_softplus=True, **arguments), pool])
            check(f"step, {name}" + ("" if indices is None else ", of a pool"), *results)


if __name__ == "__main__":
    without_a_gpu()
    check_steps()
    check_scans()
