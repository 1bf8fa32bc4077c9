"""Small random embedding models, and the vectors that others compute from them.

    python embeddings.py FOLDER

One folder per case: config.json, safetensors, what sentence-transformers keeps beside them, and
  reference.json   texts of token ids, and for each the vector
The vectors of BERT's kind come from a plain float64 reading of the published formulas below
(Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", section 3; Vaswani et
al., "Attention Is All You Need", section 3.2; Hendrycks and Gimpel, "Gaussian Error Linear
Units"): neither torch nor an encoder is in the test environment. Those of Qwen3 are mlx-lm's
hidden states of each text alone, pooled here.
"""

import json
import math
import sys
from pathlib import Path

import make
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

BERT = dict(
    model_type="bert",
    vocab_size=300,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=160,
    max_position_embeddings=48,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
)
ROBERTA = dict(
    BERT, model_type="xlm-roberta", pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5,
    max_position_embeddings=50,
)
QWEN3 = dict(make.QWEN3, num_hidden_layers=3)
PACK = dict(bits=4, group_size=64)


def cases():
    """Name, config, how it pools (None: nothing is said), whether it normalises, and the rest."""
    yield "bert-mean", BERT, "mean_tokens", True, {}
    yield "bert-cls", BERT, "cls_token", True, dict(prefix="bert.", pooler=True)
    yield "bert-last", dict(BERT, hidden_act="gelu_new"), "lasttoken", False, {}
    yield "bert-unsaid", dict(BERT, hidden_act="relu"), None, True, {}
    yield "bert-half", BERT, "mean_tokens", True, dict(dtype=mx.float16)
    yield "bert-xlm-roberta", ROBERTA, "cls_token", True, dict(prefix="roberta.")
    yield "qwen3-last", QWEN3, "lasttoken", True, {}
    yield "qwen3-published", QWEN3, "lasttoken", True, dict(bare=True, folderless=True)
    yield "qwen3-mean", dict(QWEN3, head_dim=64), "mean_tokens", False, {}
    yield "qwen3-quant", QWEN3, "lasttoken", True, dict(pack=PACK)


def bert_weights(config, rng):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    weights = {}

    def matrix(name, rows, columns, scale=1.0):
        weights[f"{name}.weight"] = rng.normal(0, scale / columns**0.5, (rows, columns))

    def linear(name, rows, columns):
        matrix(name, rows, columns, 1.4)
        weights[f"{name}.bias"] = rng.normal(0, 0.3, rows)

    def norm(name):
        weights[f"{name}.weight"] = rng.uniform(0.6, 1.4, hidden)
        weights[f"{name}.bias"] = rng.normal(0, 0.3, hidden)

    matrix("embeddings.word_embeddings", config["vocab_size"], hidden, 4)
    matrix("embeddings.position_embeddings", config["max_position_embeddings"], hidden, 4)
    matrix("embeddings.token_type_embeddings", config["type_vocab_size"], hidden, 4)
    norm("embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", hidden, hidden)
        linear(f"{layer}.attention.output.dense", hidden, hidden)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", inner, hidden)
        linear(f"{layer}.output.dense", hidden, inner)
        norm(f"{layer}.output.LayerNorm")
    return weights


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_new(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


BENDS = dict(gelu=gelu, gelu_new=gelu_new, relu=lambda x: np.maximum(x, 0))


def bert_states(config, weights, text):
    """The last hidden states of one text, `[tokens, hidden]`."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    width = hidden // heads
    bend = BENDS[config["hidden_act"]]

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        x = (x - mean) / np.sqrt(variance + config["layer_norm_eps"])
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    # RoBERTa numbers positions from behind the padding's id.
    first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
    x = weights["embeddings.word_embeddings.weight"][text]
    x = x + weights["embeddings.position_embeddings.weight"][first : first + len(text)]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x)
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        q, k, v = (
            linear(f"{layer}.attention.self.{part}", x).reshape(-1, heads, width).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / math.sqrt(width)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        attended = (shares @ v).swapaxes(0, 1).reshape(-1, hidden)
        attended = linear(f"{layer}.attention.output.dense", attended)
        x = norm(f"{layer}.attention.output.LayerNorm", attended + x)
        inner = bend(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", inner) + x)
    return x


def pooled(states, mode, normalised):
    vector = {
        "cls_token": lambda: states[0],
        "lasttoken": lambda: states[-1],
    }.get(mode, lambda: states.mean(0))()
    return vector / np.linalg.norm(vector) if normalised else vector


def make_bert(case, config, recipe, rng):
    case.mkdir(parents=True)
    weights = bert_weights(config, rng)
    dtype = recipe.get("dtype", mx.float32)
    stored = {name: mx.array(value.astype(np.float32)).astype(dtype) for name, value in weights.items()}
    # What is computed with is what is stored.
    exact = {name: np.array(value.astype(mx.float32)).astype(np.float64) for name, value in stored.items()}
    if recipe.get("pooler"):
        stored["pooler.dense.weight"] = mx.zeros((8, 8))
    stored = {recipe.get("prefix", "") + name: value for name, value in stored.items()}
    mx.save_safetensors(str(case / "model.safetensors"), stored, metadata={"format": "pt"})
    (case / "config.json").write_text(json.dumps(config))
    return lambda text: bert_states(config, exact, text)


def make_qwen3(case, config, recipe, seed):
    model = make.random_model(config, seed)
    config = dict(config)
    if "pack" in recipe:
        config["quantization"] = make.pack(model, recipe)
    make.save(model, config, case, 1)
    if "pack" in recipe:
        model = make.widened(case, config)
    if recipe.get("bare"):
        weights = dict(tree_flatten(model.parameters()))
        weights = {name.removeprefix("model."): value for name, value in weights.items()}
        mx.save_safetensors(str(case / "model.safetensors"), weights, metadata={"format": "pt"})
    model.eval()
    return lambda text: np.array(model.model(mx.array([text]))[0]).astype(np.float64)


def say_pooling(case, mode, normalised, folderless):
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    kinds += [("2_Normalize", "Normalize")] if normalised else []
    modules = [
        dict(idx=i, name=str(i), path=path, type=f"sentence_transformers.models.{kind}")
        for i, (path, kind) in enumerate(kinds)
    ]
    (case / "modules.json").write_text(json.dumps(modules))
    if folderless:
        return
    (case / "1_Pooling").mkdir()
    flags = {f"pooling_mode_{each}": each == mode for each in ("cls_token", "mean_tokens", "lasttoken")}
    (case / "1_Pooling/config.json").write_text(json.dumps(flags))


def main(folder):
    mx.set_default_device(mx.cpu)
    names = []
    for seed, (name, config, mode, normalised, recipe) in enumerate(cases(), 1):
        rng = np.random.default_rng(seed)
        case = folder / name
        bert = config["model_type"] != "qwen3"
        states = make_bert(case, config, recipe, rng) if bert else make_qwen3(case, config, recipe, seed)
        if mode:
            say_pooling(case, mode, normalised, recipe.get("folderless"))
        texts = [rng.integers(0, config["vocab_size"], n).tolist() for n in (1, 2, 40, 7, 7, 31, 48)]
        vectors = [pooled(states(text), mode, normalised).tolist() for text in texts]
        (case / "reference.json").write_text(json.dumps(dict(texts=texts, vectors=vectors)))
        names.append(name)
    (folder / "cases.json").write_text(json.dumps(names))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
