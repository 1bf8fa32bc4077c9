"""Small random checkpoints, and what mlx-lm computes from them with keys and values of a bounded
number of positions.

    python rotating.py FOLDER

One folder per case, made as make.py makes them, whose parts it uses: config.json, safetensors
in float32, and
  reference.json   prompt; how many positions are kept at the most; 64 greedy tokens
  rotating.f32     logits of the last prompt position and of every greedy token but the last,
                   little-endian float32 [64][vocabulary]
  full.f32         the same tokens' logits with the keys and values of all positions

The prompt is run in one piece, as mlx-lm runs prompts up to 2048 tokens. A model that makes its own
cache is not told of max_kv_size, so every layer that would keep all positions is given what
make_prompt_cache gives the others.
"""

import json
import sys
from pathlib import Path

import hybrids
import make
import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

MOST = 40
SLIDING = dict(
    make.LLAMA, num_hidden_layers=3, sliding_window=16,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)


def cases():
    """Name, config and length of the prompt: far from the limit, around it, and beyond it."""
    for prompt in (24, MOST - 1, MOST, MOST + 1, MOST + 2, 150):
        yield f"llama-{prompt}", make.LLAMA, prompt
        yield f"qwen3-{prompt}", make.QWEN3, prompt
    for prompt in (24, 150):
        yield f"sliding-{prompt}", SLIDING, prompt
        yield f"hybrid-{prompt}", hybrids.HYBRID, prompt


def rotating_cache(model):
    def bounded(layer):
        return RotatingKVCache(max_size=MOST, keep=4) if type(layer) is KVCache else layer

    return [bounded(layer) for layer in make_prompt_cache(model, MOST)]


def greedy(model, prompt):
    steps = generate_step(
        mx.array(prompt), model, max_tokens=make.GREEDY, prompt_cache=rotating_cache(model)
    )
    return [int(token) for token, _ in steps]


def logits_along(model, prompt, tokens, cache):
    if len(prompt) > 1:
        model(mx.array([prompt[:-1]]), cache=cache)
    rows = []
    for token in [prompt[-1]] + tokens[:-1]:
        out = model(mx.array([[token]]), cache=cache)
        rows.append(np.array(out[0, -1].astype(mx.float32)))
    return np.stack(rows)


def write(folder, name, config, length, seed):
    """Writes one case; False if a greedy choice was too close, or there was little choice."""
    maker = hybrids if config is hybrids.HYBRID else make
    model = maker.random_model(config, seed)
    model.eval()
    prompt = np.random.default_rng(seed).integers(0, config["vocab_size"], length).tolist()
    tokens = greedy(model, prompt)
    if len(set(tokens)) < make.DISTINCT:
        return False
    rotating = logits_along(model, prompt, tokens, rotating_cache(model))
    best = np.sort(rotating, axis=-1)
    if (best[:, -1] - best[:, -2]).min() < make.GAP:
        return False
    assert rotating.argmax(-1).tolist() == tokens, name
    case = folder / name
    make.save(model, config, case, 1)
    rotating.astype("<f4").tofile(case / "rotating.f32")
    full = logits_along(model, prompt, tokens, make_prompt_cache(model))
    full.astype("<f4").tofile(case / "full.f32")
    reference = dict(prompt=prompt, tokens=tokens, most=MOST)
    (case / "reference.json").write_text(json.dumps(reference))
    return True


def main(folder):
    mx.set_default_device(mx.cpu)
    names = []
    for name, config, length in cases():
        if not any(write(folder, name, config, length, seed) for seed in range(1, 60)):
            raise SystemExit(f"{name}: no seed with clear choices")
        names.append(name)
    (folder / "cases.json").write_text(json.dumps(names))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
