"""Makes a small random checkpoint of every architecture that the worker knows.

    python checkpoints.py FOLDER

One folder each, with config.json and safetensors but no tokenizer. The weights are those that the
comparison with mlx-lm uses: crates/models/oracle/make.py knows the architectures.
"""

import sys
from pathlib import Path

ORACLE = Path(__file__).resolve().parents[2] / "crates/models/oracle"
sys.path.insert(0, str(ORACLE))

import hybrids  # noqa: E402
import make  # noqa: E402
import mlx.core as mx  # noqa: E402


# Experts, recurrent layers, and both together.
HYBRIDS = ["moe", "hybrid", "hybrid-experts"]


def main(folder):
    mx.set_default_device(mx.cpu)
    for name, config, _ in make.cases():
        # The plain case of each architecture has no more to its name.
        if name == f"arch-{config['model_type']}":
            make.save(make.random_model(config, seed=1), config, folder / config["model_type"], 1)
    for name, config, _ in hybrids.cases():
        if name in HYBRIDS:
            model = hybrids.random_model(config, seed=1)
            make.save(model, config, folder / f"{config['model_type']}-{name}", 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
