"""A Mamba-2 language model trained on the CPU, by code as it is written for mamba_ssm on a GPU.

    python examples/mamba2_language_model.py [--steps N] [--plot FILE]

The text is the docstrings of Python's standard library, character by character; the last tenth is
held out.  `install` lets the two imports of mamba_ssm lead to fastderiv.  PyTorch has the
gradients, fastderiv the scans and convolutions.
"""

import argparse
import ast
import math
import sysconfig
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn import functional as F

from fastderiv._cli.output import count, fit_terminal, picture
from fastderiv.integrations.mamba_ssm import install

install()

from mamba_ssm.models.config_mamba import MambaConfig  # noqa: E402
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel  # noqa: E402

CONFIG = MambaConfig(
    d_model=128,
    n_layer=3,
    vocab_size=128,  # ASCII
    ssm_cfg={"layer": "Mamba2", "d_state": 64, "headdim": 32},
)
BATCH, LENGTH, RATE, LONG = 8, 256, 6e-3, 1024


def load_text():
    """Training and held-out text (steps,) as character codes."""
    found = {}  # in order, each once
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found[ast.get_docstring(node) or ""] = None
    text = "\n\n".join(found).encode("ascii", "ignore")
    text = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    cut = len(text) * 9 // 10
    return text[:cut], text[cut:]


def bits(model, text):
    """Bits (batch, L) of each character of text (batch, L + 1) but the first, given all before."""
    logits = model(text[:, :-1]).logits
    return F.cross_entropy(logits.mT, text[:, 1:], reduction="none") / math.log(2)


def held_out_bits(model, text, length, windows=16):
    """The same on windows of held-out text."""
    starts = torch.linspace(0, len(text) - length - 1, windows).long()
    with torch.no_grad():
        return bits(model, text[starts[:, None] + torch.arange(length + 1)])


def train(model, text, steps, report):
    """The loss of every step."""
    decayed, others = [], []
    for parameter in model.parameters():
        matrix = parameter.ndim > 1 and not hasattr(parameter, "_no_weight_decay")
        (decayed if matrix else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))

    def rate(t):  # of RATE: it rises for 20 steps, then falls to zero
        return min(1, (t + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * t / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses = []
    for step in range(1, steps + 1):
        starts = torch.randint(len(text) - LENGTH, (BATCH, 1))
        loss = bits(model, text[starts + torch.arange(LENGTH + 1)]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        report(step, losses)
    return losses


def write(model, prompt, length):
    """A text that begins with the prompt, drawn character by character."""
    tokens = torch.tensor([list(prompt.encode("ascii"))])
    out = model.generate(tokens, tokens.shape[1] + length, top_k=0, top_p=0.9, temperature=0.7)
    return bytes(out[0].tolist()).decode("ascii")


def draw(losses, held_out, by_position, file):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    steps = range(1, len(losses) + 1)
    left.plot(
        steps, losses, color="#2f6f9f", alpha=0.35, linewidth=0.8, label="training, each batch"
    )
    left.plot(*zip(*held_out, strict=True), "o-", color="#1f2933", markersize=3.5,
              label="held-out text")  # fmt: skip
    left.set(xlabel="step", ylabel="bits per character", yscale="log", ylim=(1.4, 8))
    left.set(yticks=[1.5, 2, 3, 4, 6, 8], yticklabels=["1.5", "2", "3", "4", "6", "8"])
    left.set_title("A small Mamba-2 learns docstrings", fontsize=11)
    left.legend(frameon=False)

    edges = 2 ** torch.arange(int(math.log2(LONG)) + 1)
    means = [by_position[:, a:b].mean().item() for a, b in pairwise(edges)]
    right.plot(edges[:-1] * 2**0.5, means, "o-", color="#d9822b", markersize=3.5)
    right.axvline(LENGTH, color="#1f2933", linewidth=0.9, linestyle=":")
    right.annotate("length in\ntraining", (LENGTH, 5), (4, 0), textcoords="offset points")
    right.set(xlabel="characters read before", xscale="log")
    right.set(xticks=[1, 10, 100, 1000], xticklabels=["1", "10", "100", "1000"])
    right.set_title("As good beyond the length in training", fontsize=11)
    for axes in left, right:
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=90)


def main():
    fit_terminal()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=count, default=600, help="training steps (default: %(default)s)"
    )
    parser.add_argument(
        "--plot", metavar="FILE", type=picture, help="draw the loss curve (needs matplotlib)"
    )
    options = parser.parse_args()

    torch.manual_seed(0)
    text, rest = load_text()
    model = MambaLMHeadModel(CONFIG)
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(text)} characters to learn from, {len(rest)} held out; {size} parameters\n")
    start, held_out = time.perf_counter(), []

    def report(step, losses):
        if step % 50 == 0 or step == options.steps:
            held_out.append((step, held_out_bits(model, rest, LENGTH).mean().item()))
            recent = losses[-50:]
            print(
                f"step {step:4}  training {sum(recent) / len(recent):.3f}  "
                f"held out {held_out[-1][1]:.3f} bits per character  "
                f"({time.perf_counter() - start:.0f} s)",
                flush=True,
            )

    losses = train(model, text, options.steps, report)
    by_position = held_out_bits(model, rest, LONG, windows=64)
    print(
        f"\nheld-out text, characters {LENGTH} to {LONG} of a window, which is longer than those "
        f"in training: {by_position[:, LENGTH:].mean():.3f} bits per character"
    )
    prompt = "Return the"
    start = time.perf_counter()
    written = write(model, prompt, 400)
    each = (time.perf_counter() - start) / 400
    print(f"\nwhat it writes ({1e3 * each:.1f} ms a character):\n{written}")
    if options.plot:
        draw(losses, held_out, by_position, options.plot)
        print(f"Wrote {options.plot}")


if __name__ == "__main__":
    main()
