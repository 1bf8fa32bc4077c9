"""Small random checkpoints, and what mlx-lm computes from them with packed keys and values.

    python kv.py FOLDER

One folder per case, made as make.py makes them, whose parts it uses: config.json, safetensors
in float32, and
  reference.json   prompt; bits and start of the packing; 64 greedy tokens with it
  packed.f32       logits of the last prompt position and of every greedy token but the last,
                   little-endian float32 [64][vocabulary]
  full.f32         the same tokens' logits with keys and values as they are computed

mlx-lm packs between the pieces of a prompt, so where it cuts one shows in the answer. In pieces of
CHUNK, one token each, the first query that sees packed keys and values is that at `start`, or the
second.

A value that lies between two steps of the packing may be rounded either way, so the choices must
be clearer than make.py's: GAP.
"""

import json
import sys
from pathlib import Path

import hybrids
import make
import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step, maybe_quantize_kv_cache
from mlx_lm.models.cache import make_prompt_cache

CHUNK = 1
GAP = 5e-3


def cases():
    """Name, config, and the group."""
    # Two query heads to a key head, four to one, and one to one.
    yield "llama", dict(make.LLAMA, head_dim=64), 64
    yield "qwen3", dict(make.QWEN3, head_dim=64, num_key_value_heads=1), 64
    yield "full-heads", dict(make.LLAMA, head_dim=64, num_key_value_heads=4), 64
    yield "narrow", make.QWEN2, 32
    yield "hybrid", hybrids.HYBRID, 32


def packings():
    """Bits and start: from the second token on, and in the middle of the answer."""
    return [(bits, start) for bits in (8, 4) for start in (0, 40)]


def greedy(model, prompt, group, bits, start):
    steps = generate_step(
        mx.array(prompt), model, max_tokens=make.GREEDY, prefill_step_size=CHUNK,
        kv_bits=bits, kv_group_size=group, quantized_kv_start=start,
    )
    return [int(token) for token, _ in steps]


def logits_along(model, prompt, tokens, group, bits, start, chunk):
    cache = make_prompt_cache(model)

    def run(ids):
        out = model(mx.array([ids]), cache=cache)
        maybe_quantize_kv_cache(cache, start, group, bits)
        return np.array(out[0, -1].astype(mx.float32))

    for at in range(0, len(prompt) - 1, chunk):
        run(prompt[at : min(at + chunk, len(prompt) - 1)])
    return np.stack([run([token]) for token in [prompt[-1]] + tokens[:-1]])


def write(folder, name, config, packing, seed):
    """Writes one case; False if a greedy choice was too close, or there was little choice."""
    group, bits, start = packing
    maker = hybrids if config is hybrids.HYBRID else make
    model = maker.random_model(config, seed)
    model.eval()
    prompt = np.random.default_rng(seed).integers(0, config["vocab_size"], make.PROMPT).tolist()
    tokens = greedy(model, prompt, *packing)
    if len(set(tokens)) < make.DISTINCT:
        return False
    packed = logits_along(model, prompt, tokens, *packing, CHUNK)
    best = np.sort(packed, axis=-1)
    if (best[:, -1] - best[:, -2]).min() < GAP:
        return False
    assert packed.argmax(-1).tolist() == tokens, name
    case = folder / name
    make.save(model, config, case, 1)
    packed.astype("<f4").tofile(case / "packed.f32")
    full = logits_along(model, prompt, tokens, group, None, 0, len(prompt))
    full.astype("<f4").tofile(case / "full.f32")
    reference = dict(prompt=prompt, tokens=tokens, bits=bits, start=start)
    (case / "reference.json").write_text(json.dumps(reference))
    return True


def main(folder):
    mx.set_default_device(mx.cpu)
    names = []
    for model, config, group in cases():
        for bits, start in packings():
            name = f"{model}-{bits}-from-{start}"
            packing = (group, bits, start)
            if not any(write(folder, name, config, packing, seed) for seed in range(1, 80)):
                raise SystemExit(f"{name}: no seed with clear choices")
            names.append(name)
    (folder / "cases.json").write_text(json.dumps(names))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
