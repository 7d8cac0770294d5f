"""Models of transformers with and without fastderiv: checks the results, then times interleaved.

    python bench/bench_transformers.py [--json] [--rounds N] [--only NAMES] [--dtypes NAMES]
                                       [--tasks NAMES] [--quick] [--threads N]

Ratio first (how many times as long transformers takes alone), time second, in ns per token of the
batch.  The models have random weights and one or two layers of the widths of released models;
embedding, attention and MLPs, which are the same on both sides, are narrow: see
peers/language_models.py.  "256" and "2048" are forward passes without a cache, "decode" is a token
from the cache, "train" is a forward and a backward pass at L = 512, or at 128 where transformers
alone would take minutes.  What takes transformers more than 2 s is called once.  The names of the
rows say how far results are from those of transformers alone, relative to the largest of their
tensor; in bfloat16 how far both are from float32, transformers second.  Of 64 tokens that are
decoded greedily they say how many are the same; in bfloat16 rounding decides between some.
"projections" are the matrix products of the model alone: no mixer could be faster.
"""

import time

import fastderiv as fd
from fastderiv._cli.timing import Timing, interleave
from peers.language_models import (
    MODELS,
    QUADRATIC,
    QUICK,
    build,
    decoder,
    largest_error,
    projections,
    tokens,
    torch,
)
from report import compare, options, peak_memory, report

if torch is not None:
    from fastderiv.integrations import transformers as fast

OURS, THEIRS = "fastderiv", "transformers"
TASKS = ("2048", "256", "decode", "decode-8", "train")
BOUNDS = {"float32": 2e-3, "bfloat16": 2e-2}  # of errors: beyond them something is wrong
SLOW = 2.0  # seconds: what takes longer is called once only, beside the check


def with_fastderiv(call):
    def quick():
        with fast.enabled():
            return call()

    return quick


def at(name, dtype, task, rounds):
    """The result of one task of one model."""
    model = build(name, dtype)
    if model is None:
        return
    label = f"{name}, {dtype}"
    if task.startswith("decode"):
        yield decoding(label, model, int(task.partition("-")[2] or 1), rounds, BOUNDS[dtype])
    elif task == "train":
        # one step of the smallest model at L = 512 takes transformers 40 s already
        short = MODELS[name][0] in QUADRATIC and (name, dtype) != ("mamba-130m", "float32")
        yield training(label, model, 128 if short else 512, rounds, BOUNDS[dtype])
    else:
        yield from prefill(label, model, int(task), rounds, BOUNDS[dtype])


def prefill(label, model, length, rounds, bound):
    ids = tokens(1, length)

    def forward():
        with torch.no_grad():
            return [model(ids, use_cache=False).logits]

    timings, memory, results = timed(forward, rounds)
    how_close = closeness(label, model, forward, results, bound)
    what = f"{label}, L = {length}: logits {how_close}"
    yield compare(what, timings, OURS, THEIRS, "token", length, memory)
    calls = {OURS: with_fastderiv(forward), "projections": projections(model, length)}
    t = interleave(calls, rounds=rounds)
    yield compare(f"{label}, L = {length}", t, OURS, "projections", "token", length)


def training(label, model, length, rounds, bound):
    ids = tokens(1, length)
    model.train()

    def both():
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    timings, memory, results = timed(both, rounds)
    how_close = closeness(label, model, both, results, bound)
    what = f"{label}, L = {length}: gradients {how_close}"
    return compare(what, timings, OURS, THEIRS, "token, both", length, memory)


def closeness(label, model, call, results, bound):
    """Says how close two lists of tensors are to each other, or in 16 bits to those of float32."""
    ours, theirs = ([t.clone() for t in results[who]] for who in (OURS, THEIRS))
    if model.dtype == torch.float32:
        error = largest_error(ours, theirs)
        assert error < bound, f"{label}: results differ by {error:.0e}"
        return f"to {error:.0e}"
    dtype = model.dtype
    model.float()
    exact = with_fastderiv(call)()
    model.to(dtype)
    error, usual = (largest_error(found, exact) for found in (ours, theirs))
    assert error < max(2 * usual, bound), f"{label}: {error:.0e} from float32, not {usual:.0e}"
    return f"to {error:.0e} (alone {usual:.0e})"


def decoding(label, model, batch, rounds, bound):
    asked = dict(max_new_tokens=64, do_sample=False, eos_token_id=None)

    def generated():
        return model.generate(tokens(1, 16), **asked)[0, 16:]

    same = int((with_fastderiv(generated)() == generated()).sum())
    assert same == 64 or bound > 1e-2, f"{label}: {same} of 64 tokens are the same"
    with fast.enabled():
        ours, steps = decoder(model, batch)
    calls = {OURS: with_fastderiv(ours), THEIRS: decoder(model, batch)[0]}
    t = interleave(calls, rounds=2 * rounds, round_time=0.1)
    what = f"{label}, decoding, batch {batch}: {same} of 64 tokens"
    return compare(what, t, OURS, THEIRS, "token", batch * steps)


def timed(call, rounds):
    """Timings, peak memory and results of a call with fastderiv and without."""
    calls = {OURS: with_fastderiv(call), THEIRS: call}
    results, memory, timings = {}, {}, {}
    for who, run in calls.items():

        def kept(who=who, run=run):
            results[who] = run()

        start = time.perf_counter()
        memory[who] = peak_memory(kept, warm=True)
        timings[who] = Timing((time.perf_counter() - start,))
    if timings[THEIRS].best < SLOW:
        timings = interleave(calls, rounds=rounds)
    else:  # the first call of ours was no measurement
        timings[OURS] = Timing(
            (min(interleave({OURS: calls[OURS]}, rounds=1)[OURS].best, timings[OURS].best),)
        )
    return timings, memory, results


def results(names, dtypes, tasks, rounds, threads):
    if torch is None:
        return
    torch.set_num_threads(threads)
    fd.set_num_threads(threads)
    for name in names:
        for dtype in dtypes:
            for task in tasks:
                yield from at(name, dtype, task, rounds)


def names(given):
    return [name.strip() for name in given.split(",")]


if __name__ == "__main__":
    parser = options(__doc__, rounds=3)
    parser.add_argument("--only", default=",".join(MODELS), help="models (default: all)")
    parser.add_argument(
        "--dtypes", default="float32,bfloat16", help="of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--tasks", default=",".join(TASKS), help="what to measure (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"only {', '.join(QUICK)}, not at L = 2048"
    )
    parser.add_argument("--threads", type=int, default=1, help="for both sides (default: 1)")
    given = parser.parse_args()
    models, tasks = names(given.only), names(given.tasks)
    if given.quick:
        models = [name for name in models if name in QUICK]
        tasks = [task for task in tasks if task != "2048"]
    rows = results(models, names(given.dtypes), tasks, given.rounds, given.threads)
    report(rows, given.json)
