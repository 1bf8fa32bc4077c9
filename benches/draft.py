"""What a draft model gains at the most, and costs at the most, on the same machine in the same run.

    python benches/draft.py --programs FOLDER [--shape 0.5B] [--times 4] [--tokens 200] [--runs 7] [--out FILE]

A random checkpoint of the shape, and one with so many times its layers, those behind the first ones
adding nothing: it says the same for that many times the work. `mlxd` serves the deep one over HTTP in
three ways, in turns, and what is printed is tokens a second over the whole request (prompt of 40
tokens, greedy, and sampled at temperature 0.8; median of the runs):
  plain      alone
  agrees     with the small one as its draft, which guesses every token right
  disagrees  with that one's tokens the other way round as its draft, which guesses nothing right
Prompt lookup is off. How many guesses were made and right is from the server's own figures.
"""

import argparse
import http.client
import json
import re
import statistics
import tempfile
from pathlib import Path

import mlx.core as mx
from gpu_overhead import SHAPES, make
from http_overhead import add_tokenizer, host_of, mlxd, timed_request, words

LAYER = re.compile(r"layers\.(\d+)\.")


def deepen(small, deep, times):
    """`small` with layers behind its own whose two outputs are nought."""
    config = json.loads((small / "config.json").read_text())
    layers = config["num_hidden_layers"]
    weights = mx.load(str(small / "model.safetensors"))
    more = {}
    for name, array in weights.items():
        found = LAYER.search(name)
        if not found:
            continue
        for copy in range(1, times):
            index = int(found[1]) + copy * layers
            silent = "o_proj" in name or "down_proj" in name
            value = mx.zeros_like(array) if silent else array
            more[name.replace(f"layers.{found[1]}.", f"layers.{index}.")] = value
    deep.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(deep / "model.safetensors"), {**weights, **more}, {"format": "mlx"})
    config["num_hidden_layers"] = layers * times
    if "max_window_layers" in config:
        config["max_window_layers"] = layers * times
    (deep / "config.json").write_text(json.dumps(config))


def muddle(small, other):
    """`small` with its tokens the other way round."""
    weights = mx.load(str(small / "model.safetensors"))
    turned = {name: array[::-1] if "embed_tokens" in name else array
              for name, array in weights.items()}
    other.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(other / "model.safetensors"), turned, {"format": "mlx"})
    (other / "config.json").write_text((small / "config.json").read_text())


def table(name, path, draft=None):
    lines = [f'[models."{name}"]', f'path = "{path}"', "guesses_max = 0"]
    return "\n".join(lines + ([f'draft_model = "{draft}"'] if draft else [])) + "\n"


def guesses(connection, model):
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    def figure(name):
        found = re.search(rf'mlxd_{name}{{model="{model}",source="draft"}} (\d+)', text)
        return int(found[1]) if found else 0
    return figure("guessed_right_tokens"), figure("guessed_tokens")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--shape", default="0.5B")
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "overhead")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    small = arguments.folder / arguments.shape
    other = arguments.folder / f"{arguments.shape}-other"
    deep = arguments.folder / f"{arguments.shape}-deep{arguments.times}"
    if not (small / "config.json").exists():
        make(shape, small)
    if not (other / "config.json").exists():
        muddle(small, other)
    if not (deep / "config.json").exists():
        deepen(small, deep, arguments.times)
    for folder in (small, other, deep):
        add_tokenizer(folder, shape["vocab_size"])
    models = {"plain": None, "agrees": "small", "disagrees": "other"}
    config = "".join([table("small", small), table("other", other)]
                     + [table(name, deep, draft) for name, draft in models.items()])
    results = {}
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(config)
        file.flush()
        with mlxd(arguments.programs, MLXD_CONFIG=file.name) as card:
            connection = http.client.HTTPConnection(host_of(card))
            run = 0
            for how, temperature in (("greedy", 0.0), ("sampled", 0.8)):
                seconds = {name: [] for name in models}
                for turn in range(arguments.runs + 2):
                    for name in models:
                        run += 1
                        body = dict(
                            model=name, prompt=words(shape, run), max_tokens=arguments.tokens,
                            temperature=temperature, seed=run, ignore_eos=True, stream=True,
                            stream_options=dict(include_usage=True))
                        taken = timed_request(connection, body, arguments.tokens)
                        if turn > 1:
                            seconds[name].append(taken)
                speeds = {name: arguments.tokens / statistics.median(taken)
                          for name, taken in seconds.items()}
                results[how] = speeds
                text = "  ".join(f"{name} {speed:.1f} ({speed / speeds['plain']:.2f}×)"
                                 for name, speed in speeds.items())
                print(f"{arguments.shape} × {arguments.times} layers, {how}: {text}", flush=True)
            for name in ("agrees", "disagrees"):
                right, made = guesses(connection, name)
                results[f"guesses, {name}"] = dict(right=right, made=made)
                print(f"{name}: {right} of {made} guesses were right", flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
