"""Our engine beside mlx-lm's own loop, on the same checkpoints, in the same run.

    python benches/gpu_overhead.py --direct PATH/direct_loop [--shapes 0.5B,3B,7B,14B] [--out FILE]

Makes random 4-bit checkpoints shaped as Qwen2.5 (`tiny` tries this out on a CPU; `10M` is a dense
float32 model of 9 million parameters, the size to measure a CPU with), then measures on each
  mlx_lm   mlx_lm.generate.generate_step, in process, every token read
  LAYOUT   `direct_loop`: our engine in a bare loop, no scheduler, no HTTP
in tokens a second over the whole request, prompt included: median of the runs, for 50, 100 and
200 new tokens. Logits are compared before anything is timed, with mlx-lm's and, under `--exact`,
with those of the same weights widened to float32, for both. Greedy tokens are compared with those of
mlx-lm's model by the largest logit: `generate_step` itself rounds log-probabilities to bfloat16
first and takes the first of those that have become equal.

Other legs (the HTTP path) are functions that take a folder and return {new tokens: tok/s}; add
them to `legs()`.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

QWEN = dict(model_type="qwen2", rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=32768)
SHAPES = {
    "10M": dict(model_type="qwen3", rms_norm_eps=1e-6, rope_theta=1e6, hidden_size=256,
                num_hidden_layers=8, intermediate_size=768, num_attention_heads=8,
                num_key_value_heads=4, head_dim=32, vocab_size=8192,
                max_position_embeddings=4096, tie_word_embeddings=True, dense=True),
    "tiny": dict(QWEN, hidden_size=256, num_hidden_layers=4, intermediate_size=512,
                 num_attention_heads=4, num_key_value_heads=2, vocab_size=2048,
                 tie_word_embeddings=True),
    "0.5B": dict(QWEN, hidden_size=896, num_hidden_layers=24, intermediate_size=4864,
                 num_attention_heads=14, num_key_value_heads=2, vocab_size=151936,
                 tie_word_embeddings=True),
    "3B": dict(QWEN, hidden_size=2048, num_hidden_layers=36, intermediate_size=11008,
               num_attention_heads=16, num_key_value_heads=2, vocab_size=151936,
               tie_word_embeddings=True),
    "7B": dict(QWEN, hidden_size=3584, num_hidden_layers=28, intermediate_size=18944,
               num_attention_heads=28, num_key_value_heads=4, vocab_size=152064,
               tie_word_embeddings=False),
    "14B": dict(QWEN, hidden_size=5120, num_hidden_layers=48, intermediate_size=13824,
                num_attention_heads=40, num_key_value_heads=8, vocab_size=152064,
                tie_word_embeddings=False),
}
BITS, GROUP = 4, 64
# For --check: every packing that has kernels of its own, in every type, small.
SMALL = dict(hidden_size=384, num_hidden_layers=3, intermediate_size=1152, num_attention_heads=6,
             num_key_value_heads=2, head_dim=64, vocab_size=9216, max_position_embeddings=512)
CHECKS = {
    f"{bits}-bit g{group} {dtype} {family}": dict(
        QWEN, **SMALL, model_type=family, tie_word_embeddings=tied, bits=bits, group=group,
        dtype=dtype)
    for bits, group, dtype, family, tied in [
        (8, 64, "bfloat16", "qwen2", True),
        (4, 32, "float16", "qwen3", True),
        (4, 128, "bfloat16", "qwen3", False),
        (8, 32, "float16", "qwen2", False),
        (8, 128, "bfloat16", "qwen3", True),
        (6, 64, "bfloat16", "qwen3", True),  # no kernel of its own: MLX's operations
        (4, 64, "float32", "qwen2", True),
    ]
}
PROMPT = 40
FORCED = 8


def make(config, folder):
    """A random checkpoint, packed in bfloat16 or dense in float32. The seed fixes it."""
    mx.random.seed(7)
    weights = {}
    dense = config.get("dense")
    bits, group = config.get("bits", BITS), config.get("group", GROUP)
    dtype = getattr(mx, config.get("dtype", "float32" if dense else "bfloat16"))

    def packed(path, rows, columns, spread=1.0):
        if dense:
            normal = mx.random.normal((rows, columns)) * spread / columns**0.5
            weights[f"{path}.weight"] = normal.astype(dtype)
            return
        low, high = mx.random.randint(0, 1 << 16, (2, rows, columns * bits // 32)).astype(mx.uint32)
        weights[f"{path}.weight"] = low | (high << 16)
        # The mean of a uniform integer, and its deviation.
        mean, deviation = (2**bits - 1) / 2, 2**bits / 12**0.5
        scale = spread / (deviation * columns**0.5)
        scales = mx.random.uniform(0.8 * scale, 1.2 * scale, (rows, columns // group))
        weights[f"{path}.scales"] = scales.astype(dtype)
        weights[f"{path}.biases"] = (-mean * scales).astype(dtype)

    def vector(path, length, low, high):
        weights[path] = mx.random.uniform(low, high, (length,)).astype(dtype)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width = config.get("head_dim", hidden // config["num_attention_heads"])
    q = width * config["num_attention_heads"]
    kv = config["num_key_value_heads"] * width
    packed("model.embed_tokens", config["vocab_size"], hidden)
    if not config["tie_word_embeddings"]:
        packed("lm_head", config["vocab_size"], hidden)
    vector("model.norm.weight", hidden, 0.8, 1.2)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name, rows in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)]:
            packed(f"{layer}.self_attn.{name}", rows, hidden)
            if config["model_type"] == "qwen2":
                vector(f"{layer}.self_attn.{name}.bias", rows, -0.2, 0.2)
        if config["model_type"] == "qwen3":
            vector(f"{layer}.self_attn.q_norm.weight", width, 0.8, 1.2)
            vector(f"{layer}.self_attn.k_norm.weight", width, 0.8, 1.2)
        packed(f"{layer}.self_attn.o_proj", hidden, q)
        packed(f"{layer}.mlp.gate_proj", inner, hidden, 1.5)
        packed(f"{layer}.mlp.up_proj", inner, hidden, 1.5)
        packed(f"{layer}.mlp.down_proj", hidden, inner)
        for name in ["input_layernorm", "post_attention_layernorm"]:
            vector(f"{layer}.{name}.weight", hidden, 0.8, 1.2)
    mx.eval(weights)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    said = dict(config) if dense else dict(config, quantization=dict(bits=bits, group_size=group))
    (folder / "config.json").write_text(json.dumps(said))


def prompt_of(config):
    return [(7919 * index + 13) % config["vocab_size"] for index in range(PROMPT)]


def run_mlx_lm(model, prompt, new):
    """Seconds of one request."""
    begin = time.perf_counter()
    for _ in generate_step(mx.array(prompt), model, max_tokens=new):
        pass
    return time.perf_counter() - begin


def measure_mlx_lm(model, prompt, lengths, runs):
    speeds = {}
    for new in lengths:
        run_mlx_lm(model, prompt, new)
        seconds = [run_mlx_lm(model, prompt, new) for _ in range(runs)]
        speeds[new] = new / statistics.median(seconds)
    return speeds


def largest(model, prompt, new):
    """Greedy tokens by the largest logit."""
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([prompt[:-1]]), cache=cache))
    tokens = [prompt[-1]]
    for _ in range(new):
        tokens.append(int(mx.argmax(model(mx.array([[tokens[-1]]]), cache=cache)[0, -1])))
    return tokens[1:]


def forced_logits(model, prompt, forced):
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([prompt[:-1]]), cache=cache))
    rows = []
    for token in [prompt[-1]] + forced:
        logits = model(mx.array([[token]]), cache=cache)[0, -1].astype(mx.float32)
        rows.append(np.array(logits))
    return np.stack(rows)


def widened(folder):
    """The model with its weights unpacked in float32."""
    model, _ = load_model(folder)

    def widen(module):
        if not hasattr(module, "bits"):
            return module
        weight = mx.dequantize(
            module.weight, module.scales.astype(mx.float32), module.biases.astype(mx.float32),
            module.group_size, module.bits)
        rows, columns = weight.shape
        if isinstance(module, nn.QuantizedEmbedding):
            plain = nn.Embedding(rows, columns)
        else:
            plain = nn.Linear(columns, rows, bias="bias" in module)
            if "bias" in module:
                plain.bias = module.bias
        plain.weight = weight
        return plain

    modules = tree_map(widen, model.leaf_modules(), is_leaf=nn.Module.is_module)
    model.update_modules(modules)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


def typical(ours, theirs):
    """Root mean square difference in standard deviations of `theirs`."""
    return float(np.sqrt(np.mean((ours - theirs) ** 2)) / theirs.std())


def run_direct(direct, folder, layout, lengths, runs, *more):
    command = [direct, str(folder), *layout, "--prompt", str(PROMPT), "--runs", str(runs)]
    command += ["--new", ",".join(map(str, lengths)), *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(key, theirs, exact, forced, tokens, arguments, folder, layout):
    """How far our logits and tokens are from mlx-lm's, and both from the exact ones."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits"
        more = ["--logits", str(file), "--force", ",".join(map(str, forced))]
        said = run_direct(arguments.direct, folder, layout, [len(tokens)], 1, *more)
        ours = np.fromfile(file, "<f4").reshape(theirs.shape)
    same = 0
    while same < len(tokens) and said["tokens"][same] == tokens[same]:
        same += 1
    found = dict(
        backend=said["info"]["backend"], logits_apart=typical(ours, theirs), tokens_equal=same)
    text = (f"{key}: logits {found['logits_apart']:.4f} deviations from mlx-lm's; "
            f"{same} of {len(tokens)} greedy tokens equal")
    if exact is not None:
        found.update(ours_to_exact=typical(ours, exact), theirs_to_exact=typical(theirs, exact))
        text += (f"; from float32's: ours {found['ours_to_exact']:.4f}, "
                 f"mlx-lm's {found['theirs_to_exact']:.4f}")
    print(text, flush=True)
    return found


def legs(name, folder, arguments, layouts):
    prompt = prompt_of(SHAPES[name])
    model, _ = load_model(folder)
    mx.eval(model.parameters())
    speeds = measure_mlx_lm(model, prompt, arguments.lengths, arguments.runs)
    found = {"mlx_lm": dict(speeds=speeds)}
    tokens = largest(model, prompt, arguments.lengths[-1])
    forced = tokens[:FORCED]
    theirs = forced_logits(model, prompt, forced)
    del model
    exact = forced_logits(widened(folder), prompt, forced) if arguments.exact else None
    mx.clear_cache()
    for layout in layouts:
        key = layout[-1] if layout else "default"
        found[key] = compare(
            f"{name} {key}", theirs, exact, forced, tokens, arguments, folder, layout)
        said = run_direct(arguments.direct, folder, layout, arguments.lengths, arguments.runs)
        found[key]["speeds"] = {
            new: new / statistics.median(said["legs"][str(new)]["seconds"])
            for new in arguments.lengths
        }
        found[key]["first_token_ms"] = 1e3 * statistics.median(
            said["legs"][str(arguments.lengths[-1])]["first_token_seconds"])
    return found


def check(arguments):
    """Small models: our logits must be as near to float32's as mlx-lm's are."""
    failed = []
    for name, config in CHECKS.items():
        folder = arguments.folder / name.replace(" ", "-")
        begin = time.perf_counter()
        make(config, folder)
        prompt = prompt_of(config)
        model, _ = load_model(folder)
        tokens = largest(model, prompt, FORCED)
        theirs = forced_logits(model, prompt, tokens)
        exact = forced_logits(widened(folder), prompt, tokens)
        print(f"{name}: {time.perf_counter() - begin:.0f} s for mlx-lm's part", flush=True)
        found = compare(name, theirs, exact, tokens, tokens, arguments, folder, [])
        if not found["ours_to_exact"] <= 1.2 * found["theirs_to_exact"] + 1e-3:
            failed.append(name)
    if failed:
        raise SystemExit(f"too far from float32: {', '.join(failed)}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--direct", required=True)
    parser.add_argument("--shapes", default="0.5B,3B,7B")
    parser.add_argument("--layouts", default="default", help="comma-separated: default, plain, qkv+gate_up+compile, … as direct_loop's --layout")
    parser.add_argument("--exact", action="store_true", help="compare with float32 too")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--lengths", default="50,100,200")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "overhead")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--check", action="store_true",
                        help="compare all packings on small models and stop")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments)
    arguments.lengths = [int(new) for new in arguments.lengths.split(",")]
    layouts = [[] if each == "default" else ["--layout", each] for each in arguments.layouts.split(",")]

    results = {}
    for name in arguments.shapes.split(","):
        folder = arguments.folder / name
        if not (folder / "config.json").exists():
            make(SHAPES[name], folder)
            mx.clear_cache()
        results[name] = legs(name, folder, arguments, layouts)
        for leg, found in results[name].items():
            speeds = "  ".join(
                f"{new}: {speed:7.1f} ({speed / results[name]['mlx_lm']['speeds'][new]:.2f}×)"
                for new, speed in found["speeds"].items())
            print(f"{name:5} {leg:10} {speeds}", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
