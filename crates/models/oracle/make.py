"""Makes small random checkpoints with mlx-lm and writes down what mlx-lm computes from them.

    python make.py FOLDER

One folder per case: config.json, safetensors, and the reference
  reference.json   prompt, 64 greedy tokens, and whether mlx-lm as it is draws the same
  dense.f32        logits of the last prompt position and of every greedy token but the last,
                   little-endian float32 [64][vocabulary], from the weights widened to dense
                   float32, which is what the loader computes with on a CPU
  stored.f32       the same from mlx-lm as it is: packed or half-precision weights and all

Everything is fixed by the seeds here. A case whose two best logits come closer than GAP
anywhere takes the next seed, so that no rounding can decide a greedy token; so does one that
repeats itself, which would compare little.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load_model

PROMPT = 24
GREEDY = 64
GAP = 5e-4
DISTINCT = 12

BASE = dict(
    hidden_size=128,
    num_hidden_layers=2,
    intermediate_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    vocab_size=320,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)
LLAMA = dict(BASE, model_type="llama", rope_theta=10000.0)
MISTRAL = dict(BASE, model_type="mistral", rope_theta=1e6, tie_word_embeddings=False)
QWEN2 = dict(BASE, model_type="qwen2", rope_theta=1e6)
QWEN3 = dict(BASE, model_type="qwen3", rope_theta=1e6, head_dim=32)
ROPE_LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
ROPE_YARN = dict(type="yarn", factor=4.0, original_max_position_embeddings=32)


def cases():
    """Name, config, and what is done to the weights."""
    yield "arch-llama", LLAMA, {}
    yield "arch-llama-untied", dict(LLAMA, tie_word_embeddings=False), {}
    yield "arch-llama-bias", dict(LLAMA, attention_bias=True, mlp_bias=True), {}
    yield "arch-llama-head-dim", dict(LLAMA, head_dim=48), {}
    yield "arch-llama-full-heads", dict(LLAMA, num_key_value_heads=4), {}
    yield "arch-llama-sharded", LLAMA, dict(shards=3)
    yield "arch-llama-sliding", dict(
        LLAMA, num_hidden_layers=3, sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ), {}
    yield "arch-mistral", MISTRAL, {}
    yield "arch-mistral-head-dim", dict(MISTRAL, head_dim=64), {}
    # Every layer slides. mlx-lm ignores the key without layer_types; see `every_layer_slides`.
    yield "arch-mistral-sliding", dict(MISTRAL, sliding_window=20), {}
    yield "arch-qwen2", QWEN2, {}
    yield "arch-qwen2-untied", dict(QWEN2, tie_word_embeddings=False), {}
    # mlx-lm ignores these keys, and so do we.
    yield "arch-qwen2-window-keys", dict(
        QWEN2, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ), {}
    yield "arch-qwen3", QWEN3, {}
    yield "arch-qwen3-untied", dict(QWEN3, tie_word_embeddings=False, head_dim=64), {}

    yield "rope-linear", dict(LLAMA, rope_scaling=dict(type="linear", factor=4.0)), {}
    yield "rope-llama3", dict(LLAMA, rope_theta=500000.0, rope_scaling=ROPE_LLAMA3), {}
    yield "rope-yarn", dict(QWEN2, rope_scaling=ROPE_YARN), {}
    yield "rope-yarn-scaled", dict(QWEN3, rope_scaling=dict(
        ROPE_YARN, beta_fast=16, beta_slow=2, mscale=0.7, mscale_all_dim=0.3)), {}
    yield "rope-default", dict(QWEN3, rope_scaling=dict(rope_type="default")), {}
    yield "rope-traditional", dict(LLAMA, rope_traditional=True), {}
    nested = dict(QWEN3, rope_parameters=dict(rope_type="default", rope_theta=5000.0))
    del nested["rope_theta"]
    yield "rope-parameters", nested, {}

    families = [LLAMA, MISTRAL, QWEN2, QWEN3]
    for i, bits in enumerate([2, 3, 4, 5, 6, 8]):
        for j, group in enumerate([32, 64, 128]):
            pack = dict(bits=bits, group_size=group)
            yield f"quant-{bits}-{group}", families[(i + j) % 4], dict(pack=pack)
    pack = dict(bits=4, group_size=64)
    listed = {
        "model.layers.0.self_attn.q_proj": dict(bits=8, group_size=32),
        "model.layers.0.mlp.gate_proj": False,
        "model.layers.1.mlp.down_proj": dict(bits=6, group_size=64),
        "model.embed_tokens": dict(bits=8, group_size=64),
        "lm_head": False,
    }
    yield "quant-overrides", MISTRAL, dict(pack=pack, overrides=listed)
    # Packed differently without saying so: mlx-lm goes by the shapes, and so do we.
    yield "quant-unlisted", QWEN3, dict(pack=pack, overrides=listed, unlisted=True)

    for name, dtype in [("bf16", mx.bfloat16), ("f16", mx.float16)]:
        yield f"half-{name}", QWEN3, dict(dtype=dtype)
        yield f"half-{name}-quant", QWEN2, dict(dtype=dtype, pack=pack)
        yield f"half-{name}-quant-8", LLAMA, dict(dtype=dtype, pack=dict(bits=8, group_size=32))


def random_model(config, seed):
    """A model with lively random weights."""
    rng = np.random.default_rng(seed)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))

    def fill(path, value):
        if path.endswith("norm.weight"):
            drawn = rng.uniform(0.6, 1.4, value.shape)
        elif path.endswith("bias"):
            drawn = rng.normal(0, 0.3, value.shape)
        elif "embed_tokens" in path:
            # Small beside what the layers add, or a tied model repeats its last token for ever.
            drawn = rng.normal(0, 0.15, value.shape)
        else:
            drawn = rng.normal(0, 1.4 / value.shape[-1] ** 0.5, value.shape)
        return mx.array(drawn.astype(np.float32))

    flat = [(path, fill(path, value)) for path, value in tree_flatten(model.parameters())]
    model.load_weights(flat)
    return model


def pack(model, recipe):
    """Packs the model in place and returns what config.json says of it."""
    overrides = recipe.get("overrides", {})
    default = recipe["pack"]

    def how(path, module):
        return hasattr(module, "to_quantized") and overrides.get(path, True)

    nn.quantize(model, **default, class_predicate=how)
    return dict(default) if recipe.get("unlisted") else dict(default, **overrides)


def save(model, config, folder, shards):
    folder.mkdir(parents=True)
    weights = dict(tree_flatten(model.parameters()))
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    else:
        places = {}
        for shard in range(shards):
            name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {key: weights[key] for key in sorted(weights)[shard::shards]}
            mx.save_safetensors(str(folder / name), part, metadata={"format": "mlx"})
            places.update({key: name for key in part})
        index = dict(metadata={}, weight_map=places)
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def every_layer_slides(model, config):
    """What mlx-lm's Llama does when all layers slide, which its config cannot say."""
    if config["model_type"] != "mistral" or not config.get("sliding_window"):
        return
    model.model.swa_idx = 0
    for layer in model.layers:
        layer.use_sliding = True


def widened(folder, config):
    """The checkpoint as dense float32: scales and biases widened first, then unpacked."""
    stored = {}
    for file in sorted(folder.glob("model*.safetensors")):
        stored.update(mx.load(str(file)))
    dense = {}
    for path, value in stored.items():
        base = path.removesuffix(".weight")
        if path.endswith((".scales", ".biases")):
            continue
        if f"{base}.scales" in stored:
            scales = stored[f"{base}.scales"].astype(mx.float32)
            biases = stored[f"{base}.biases"].astype(mx.float32)
            # The packing, from the shapes and a trial: columns = groups * group.
            for group, bits in packings(config, base):
                if value.shape[-1] * 32 == scales.shape[-1] * group * bits:
                    value = mx.dequantize(value, scales, biases, group_size=group, bits=bits)
                    break
        dense[path] = value.astype(mx.float32)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.load_weights(list(dense.items()))
    return model


def packings(config, base):
    """Packings that `base` may have; `columns` decides in cases that do not say."""
    quantization = config["quantization"]
    listed = quantization.get(base)
    if isinstance(listed, dict):
        return [(listed["group_size"], listed["bits"])]
    if base in UNLISTED:
        return [UNLISTED[base]]
    return [(quantization["group_size"], quantization["bits"])]


UNLISTED = {}


def greedy(model, prompt):
    steps = generate_step(mx.array(prompt), model, max_tokens=GREEDY)
    return [int(token) for token, _ in steps]


def logits_along(model, prompt, tokens):
    """Logits of the last prompt position and of each of `tokens` but the last."""
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([prompt[:-1]]), cache=cache))
    rows = []
    for token in [prompt[-1]] + tokens[:-1]:
        row = model(mx.array([[token]]), cache=cache)[0, -1].astype(mx.float32)
        rows.append(np.array(row))
    return np.stack(rows)


def make(folder, name, config, recipe, seed):
    """Writes one case; False if a greedy choice was too close, or there was little choice."""
    model = random_model(config, seed)
    if dtype := recipe.get("dtype"):
        model.update(tree_map(lambda value: value.astype(dtype), model.parameters()))
    config = dict(config)
    UNLISTED.clear()
    if "pack" in recipe:
        config["quantization"] = pack(model, recipe)
        if recipe.get("unlisted"):
            for path, module in model.named_modules():
                if hasattr(module, "bits"):
                    UNLISTED[path] = (module.group_size, module.bits)
    case = folder / name
    save(model, config, case, recipe.get("shards", 1))

    prompt = np.random.default_rng(seed).integers(0, config["vocab_size"], PROMPT).tolist()
    dense = widened(case, config)
    stored, _ = load_model(case)
    for each in (dense, stored):
        each.eval()
        every_layer_slides(each, config)
    tokens = greedy(dense, prompt)
    if len(set(tokens)) < DISTINCT:
        return False
    logits = logits_along(dense, prompt, tokens)
    best = np.sort(logits, axis=-1)
    if (best[:, -1] - best[:, -2]).min() < GAP:
        return False
    assert logits.argmax(-1).tolist() == tokens, name
    logits.astype("<f4").tofile(case / "dense.f32")
    logits_along(stored, prompt, tokens).astype("<f4").tofile(case / "stored.f32")
    reference = dict(prompt=prompt, tokens=tokens, stored_agrees=greedy(stored, prompt) == tokens)
    (case / "reference.json").write_text(json.dumps(reference))
    return True


def main(folder):
    mx.set_default_device(mx.cpu)
    names = []
    for name, config, recipe in cases():
        for seed in range(1, 50):
            if make(folder, name, config, recipe, seed):
                break
            for file in (folder / name).iterdir():
                file.unlink()
            (folder / name).rmdir()
        else:
            raise SystemExit(f"{name}: no seed with clear choices")
        names.append(name)
    (folder / "cases.json").write_text(json.dumps(names))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
