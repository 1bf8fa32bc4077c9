"""Random checkpoints for measuring: of every size, with a tokenizer, and no use otherwise.

    python benches/checkpoints.py FOLDER [--shapes 1M,3M,9M,25M]

Makes FOLDER/SHAPE for each. Those of millions are dense float32, for a CPU; 0.5B, 3B, 7B and 14B are
4-bit in Qwen2.5's shapes, for a GPU. What measures them:

    mlxd bench load --models FOLDER/1M,FOLDER/3M,FOLDER/9M
    mlxd bench admission --models FOLDER/1M,FOLDER/9M
    mlxd bench swap --model FOLDER/25M
"""

import argparse
from pathlib import Path

from gpu_overhead import QWEN, SHAPES, make
from http_overhead import add_tokenizer

DENSE = dict(SHAPES["10M"], max_position_embeddings=16384)
LADDER = {
    "1M": dict(DENSE, hidden_size=128, num_hidden_layers=4, intermediate_size=384,
               num_attention_heads=4, num_key_value_heads=2, vocab_size=2048),
    "3M": dict(DENSE, hidden_size=192, num_hidden_layers=6, intermediate_size=576,
               num_attention_heads=6, num_key_value_heads=3, vocab_size=4096),
    "9M": DENSE,
    "25M": dict(DENSE, hidden_size=512, num_hidden_layers=8, intermediate_size=1536,
                num_attention_heads=8, num_key_value_heads=4, head_dim=64),
    "14B": dict(QWEN, hidden_size=5120, num_hidden_layers=48, intermediate_size=13824,
                num_attention_heads=40, num_key_value_heads=8, vocab_size=152064,
                tie_word_embeddings=False),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", default="1M,3M,9M,25M")
    arguments = parser.parse_args()
    for name in arguments.shapes.split(","):
        config = LADDER[name] if name in LADDER else SHAPES[name]
        folder = arguments.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        make(config, folder)
        add_tokenizer(folder, config["vocab_size"])


if __name__ == "__main__":
    main()
