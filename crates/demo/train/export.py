"""Writes a trained network as a model folder: what crates/demo/model holds."""

import json

import torch
from safetensors.torch import save_file

import tokens

FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "model.safetensors",
]


def write(folder, network, tokenizer_json):
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.loads(tokenizer_json)
    ids = {t["content"]: t["id"] for t in vocabulary["added_tokens"]}
    end, pad = ids[tokens.TURN_END], ids[tokens.END_OF_TEXT]

    def put(name, value):
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    put("config.json", network.s.config([end, pad], pad))
    put(
        "generation_config.json",
        # Greedy where a request says nothing: it is the answer with the facts.
        {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad},
    )
    put(
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": network.s.context,
            "bos_token": None,
            "eos_token": tokens.TURN_END,
            "pad_token": tokens.END_OF_TEXT,
            "unk_token": None,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(tokens.TEMPLATE, encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    weights = network.weights()
    assert all(torch.isfinite(w).all() for w in weights.values())
    save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    stamp(folder)


def stamp(folder):
    """Writes `revision`: 64-bit FNV-1a over all shipped files, in the order of src/lib.rs."""
    mark = 0xCBF29CE484222325
    for name in FILES:
        for byte in (folder / name).read_bytes():
            mark = (mark ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    (folder / "revision").write_text(f"{mark:016x}\n")
