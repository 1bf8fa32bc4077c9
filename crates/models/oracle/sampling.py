"""What sampling should do: probabilities from numpy, penalties from mlx-lm's processors.

    python sampling.py FOLDER     writes FOLDER/sampling.json
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import (
    make_frequency_penalty,
    make_logits_processors,
    make_presence_penalty,
    make_repetition_penalty,
)

VOCAB = 24


def shares(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def filtered(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities after temperature, top-k, top-p, min-p, in that order, in float64."""
    scores = np.array(logits, np.float64) / temperature
    order = np.argsort(-scores, kind="stable")
    if top_k:
        scores[order[top_k:]] = -np.inf
    if top_p < 1.0:
        probabilities = shares(scores)[order]
        before = np.cumsum(probabilities) - probabilities
        scores[order[before >= top_p]] = -np.inf
    if min_p:
        probabilities = shares(scores)
        scores[probabilities < min_p * probabilities.max()] = -np.inf
    return shares(scores)


def distributions(rng):
    for parameters in [
        dict(),
        dict(temperature=0.5),
        dict(temperature=2.0),
        dict(top_k=5),
        dict(top_k=1),
        dict(top_p=0.7),
        dict(top_p=0.01),
        dict(min_p=0.2),
        dict(temperature=1.5, top_k=8, top_p=0.8, min_p=0.1),
        dict(temperature=0.8, top_p=0.9, min_p=0.05),
    ]:
        logits = rng.normal(0, 1.5, VOCAB).astype(np.float32).tolist()
        yield dict(
            logits=logits, probabilities=filtered(logits, **parameters).tolist(), **parameters
        )


def penalties(rng):
    """mlx-lm's processors see all tokens; our presence and frequency see the generated ones."""
    for repetition, window, presence, frequency, bias in [
        (1.3, 8, 0.0, 0.0, {}),
        (0.7, 100, 0.0, 0.0, {}),
        (1.0, 64, 0.6, 0.0, {}),
        (1.0, 64, 0.0, 0.4, {}),
        (1.0, 64, 0.0, 0.0, {3: -5.0, 7: 2.5}),
        (1.2, 16, 0.5, -0.3, {1: 1.0}),
    ]:
        prompt = rng.integers(0, VOCAB, 10).tolist()
        generated = rng.integers(0, VOCAB, 14).tolist()
        given = rng.normal(0, 1.5, VOCAB).astype(np.float32)
        logits = mx.array(given)[None]
        if repetition != 1.0:
            everything = mx.array(prompt + generated)
            logits = make_repetition_penalty(repetition, window)(everything, logits)
        if presence:
            logits = make_presence_penalty(presence, 1000)(mx.array(generated), logits)
        if frequency:
            logits = make_frequency_penalty(frequency, 1000)(mx.array(generated), logits)
        if bias:
            (add,) = make_logits_processors(logit_bias=bias)
            logits = add(None, logits)
        yield dict(
            logits=given.tolist(), prompt=prompt, generated=generated, repetition=repetition,
            window=window, presence=presence, frequency=frequency, bias=list(bias.items()),
            adjusted=np.array(logits[0]).tolist(),
        )


def main(folder):
    mx.set_default_device(mx.cpu)
    rng = np.random.default_rng(11)
    written = dict(distributions=list(distributions(rng)), penalties=list(penalties(rng)))
    (folder / "sampling.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
