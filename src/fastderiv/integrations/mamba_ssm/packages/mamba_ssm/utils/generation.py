"""`GenerationMixin.generate`, `decode`: text token by token; `InferenceParams`, its cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class InferenceParams:
    """What models are given to take up where the last call ended.

    Parameters
    ----------
    max_seqlen, max_batch_size : int
        The most tokens and batch items that there will be.
    seqlen_offset : int
        How many tokens came before; the caller counts them.
    batch_size_offset : int
        The first batch item of the cache that a call is about.
    key_value_memory_dict : dict
        The cache: states by the number of the layer.
    lengths_per_sample : Tensor of int, shape (batch,), optional
        For attention, how many tokens of each batch item came before.
    """

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Start anew with the same cache."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


@dataclass
class DecoderOutput:
    """What is generated: attributes, or items by the same names or by their places.

    Parameters
    ----------
    sequences : Tensor of int, shape (batch, length)
    scores : tuple of Tensor, shape (batch, tokens), optional
        The logits of each step.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None

    def __getitem__(self, key: str | int) -> Any:
        return getattr(self, key) if isinstance(key, str) else (self.sequences, self.scores)[key]


# ---- the choice of a token ----------------------------------------------------------------------


def modify_logits_for_min_p_filtering(logits: Tensor, min_p: float) -> None:
    """Set logits of tokens less than min_p times as probable as the likeliest to -inf, in place."""
    if 0 < min_p < 1:
        probabilities = logits.softmax(-1)
        rare = probabilities < min_p * probabilities.amax(-1, keepdim=True)
        logits.masked_fill_(rare, -torch.inf)


def modify_logits_for_top_k_filtering(logits: Tensor, top_k: int) -> None:
    """Set all but the top_k largest logits to -inf, in place."""
    logits.masked_fill_(logits < logits.topk(top_k).values[..., -1:], -torch.inf)


def modify_logits_for_top_p_filtering(logits: Tensor, top_p: float) -> None:
    """Keep the likeliest tokens, just enough for a probability of top_p; others become -inf."""
    if 0 < top_p < 1:
        ascending, order = logits.sort(-1)
        dispensable = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        logits.masked_fill_(dispensable.scatter(-1, order, dispensable), -torch.inf)


def modify_logit_for_repetition_penalty(
    logits: Tensor, prev_output_tokens: Tensor, repetition_penalty: float = 1.0
) -> Tensor:
    """Make tokens (batch, length) that came before less likely, in place (arXiv:1909.05858)."""
    if repetition_penalty != 1.0:
        scores = logits.gather(1, prev_output_tokens)
        scores = torch.where(scores < 0, scores * repetition_penalty, scores / repetition_penalty)
        logits.scatter_(1, prev_output_tokens, scores)
    return logits


def sample(
    logits: Tensor,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Tokens (batch,) drawn by logits (batch, tokens).

    Parameters
    ----------
    logits : Tensor, shape (batch, tokens)
    top_k : int
        How many of the likeliest tokens to draw from; 1: take the likeliest; 0: all.
    top_p : float
        Draw from the likeliest tokens that have this probability together; 0: all.
    min_p : float
        Draw from tokens at least `min_p` times as probable as the likeliest, if `top_k` is 0.
    temperature : float
        What logits are divided by.
    """
    if top_k == 1:
        return logits.argmax(-1)
    if top_p > 1:
        raise ValueError(f"top_p is {top_p}; expected a probability")
    candidates = None
    if top_k > 0:
        logits, candidates = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    else:
        logits = logits.clone()
        modify_logits_for_min_p_filtering(logits, min_p)
    logits = logits / temperature
    modify_logits_for_top_p_filtering(logits, top_p)
    drawn = torch.multinomial(logits.softmax(-1), num_samples=1)
    return (drawn if candidates is None else candidates.gather(-1, drawn))[:, 0]


# ---- token by token -----------------------------------------------------------------------------


def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Any = None,
) -> DecoderOutput:
    """Continue prompts of one length, up to max_length tokens in all.

    Parameters
    ----------
    input_ids : Tensor of int, shape (batch, length)
        The prompts.
    model : Module
        Called with `inference_params` and ``num_last_tokens=1``, it returns ``logits``.
    max_length : int
        Length of the result, unless all items end before.
    top_k, top_p, min_p, temperature
        As in `sample`.
    repetition_penalty : float
        Logits of tokens that came before are divided by it, or multiplied if negative.
    eos_token_id : int, optional
        Stop where all items have this token at once.
    teacher_outputs : Tensor of int, shape (batch, length), optional
        Tokens to take at their places instead of those sampled.
    vocab_size : int, optional
        Only the first logits, so many of them, belong to tokens.
    cg : bool
        Has no effect: on the CPU there are no CUDA graphs.
    enable_timing : bool
        Whether to print how long it took.
    output_scores : bool
        Whether to return the logits of each step.
    streamer : optional
        Its `put` is given the prompts, then the tokens (batch, 1) of each step; `end` comes last.

    Returns
    -------
    DecoderOutput
        The tokens; the scores are empty unless they were asked for.
    """
    scores: list[Tensor] = []
    sequences = _decode(
        input_ids,
        model,
        max_length,
        pick=lambda logits: sample(logits, top_k, top_p, min_p, temperature),
        repetition_penalty=repetition_penalty,
        eos_token_id=eos_token_id,
        teacher_outputs=teacher_outputs,
        vocab_size=vocab_size,
        enable_timing=enable_timing,
        streamer=streamer,
        scores=scores if output_scores else None,
    )
    return DecoderOutput(sequences, tuple(scores))


@torch.inference_mode()
def _decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    *,
    pick: Callable[[Tensor], Tensor],
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    enable_timing: bool = False,
    streamer: Any = None,
    scores: list[Tensor] | None = None,
) -> Tensor:
    """The tokens (batch, length), where pick chooses each from its logits; logits go to scores."""
    if input_ids.ndim != 2 or not input_ids.shape[1]:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, length), length >= 1"
        )
    begun = time.perf_counter()
    cache = InferenceParams(max_seqlen=max_length, max_batch_size=len(input_ids))
    tokens, sequences, position_ids = input_ids, [input_ids], None
    if streamer is not None:
        streamer.put(input_ids.cpu())
    done = False
    while not done:
        out = model(tokens, position_ids=position_ids, inference_params=cache, num_last_tokens=1)
        logits = out.logits[:, -1, :vocab_size]
        if scores is not None:
            scores.append(logits.clone())
        cache.seqlen_offset += tokens.shape[1]
        if teacher_outputs is not None and cache.seqlen_offset < teacher_outputs.shape[1]:
            tokens = teacher_outputs[:, cache.seqlen_offset, None]
        else:
            if repetition_penalty != 1.0:
                before = torch.cat(sequences, dim=1)
                modify_logit_for_repetition_penalty(logits, before, repetition_penalty)
            tokens = pick(logits)[:, None]
        sequences.append(tokens)
        position_ids = torch.full_like(tokens, cache.seqlen_offset)
        if streamer is not None:
            streamer.put(tokens.cpu())
        ended = eos_token_id is not None and bool((tokens == eos_token_id).all())
        done = ended or cache.seqlen_offset >= max_length - 1
    if streamer is not None:
        streamer.end()
    if enable_timing:
        elapsed = 1000 * (time.perf_counter() - begun)
        print(f"Prompt processing + decoding time: {elapsed:.0f}ms")
    return torch.cat(sequences, dim=1)


class GenerationMixin:
    """`generate` for models whose calls take `inference_params`."""

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """What the model keeps between calls."""
        raise NotImplementedError

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> Any:
        """`decode` by this model.

        Returns its result if `return_dict_in_generate`, else the tokens (batch, length).
        """
        output = decode(
            input_ids,
            self,
            max_length,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            temperature=temperature,
            output_scores=output_scores,
            **kwargs,
        )
        if not output_scores:
            output.scores = None
        return output if return_dict_in_generate else output.sequences


# ---- what code for CUDA graphs calls ------------------------------------------------------------


@dataclass
class DecodingCGCache:
    """A cache that is kept from one text to the next, and `run`, which calls the model with it."""

    max_batch_size: int = 0
    max_seqlen: int = 0
    inference_params: InferenceParams | None = None
    run: Callable[[Tensor, Tensor | None, int], Tensor] | None = None


def update_graph_cache(
    model: Any,
    cache: DecodingCGCache | None,
    batch_size: int,
    seqlen_og: int,
    max_seqlen: int,
    decoding_seqlens: Sequence[int] = (1,),
    dtype: torch.dtype | None = None,
    n_warmups: int = 2,
) -> DecodingCGCache:
    """A cache with room for so many texts and tokens, and a function that runs the model with it.

    On the CPU there are no CUDA graphs: ``run(input_ids, position_ids, seqlen)`` calls the model,
    with `seqlen` tokens before these.  `seqlen_og`, `decoding_seqlens` and `n_warmups` have no
    effect.
    """
    cache = cache or DecodingCGCache()
    params = cache.inference_params
    if params is None or batch_size > cache.max_batch_size or max_seqlen > cache.max_seqlen:
        cache.max_batch_size, cache.max_seqlen = batch_size, max_seqlen
        states = model.allocate_inference_cache(batch_size, max_seqlen, dtype)
        params = InferenceParams(max_seqlen, batch_size, key_value_memory_dict=states)
        cache.inference_params = params

    @torch.inference_mode()
    def run(input_ids: Tensor, position_ids: Tensor | None, seqlen: int) -> Tensor:
        before, params.seqlen_offset = params.seqlen_offset, seqlen
        out = model(
            input_ids,
            position_ids=position_ids,
            inference_params=params,
            num_last_tokens=input_ids.shape[1],
        )
        params.seqlen_offset = before
        return out.logits

    cache.run = run
    return cache
