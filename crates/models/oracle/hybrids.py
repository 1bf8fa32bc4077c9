"""Small random checkpoints with experts and recurrent layers, and what mlx-lm computes from them.

    python hybrids.py FOLDER

As make.py, whose parts it uses; the files of a case are described there. A case whose name ends
in `-published` holds the tensors of another as their makers publish them: experts each in
tensors of their own, convolutions in PyTorch's order.
"""

import json
import shutil
import sys
from pathlib import Path

import make
import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

MOE = dict(
    make.BASE,
    model_type="qwen3_moe",
    head_dim=32,
    rope_theta=1e6,
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=64,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    norm_topk_prob=True,
    tie_word_embeddings=False,
)
PACK = dict(bits=4, group_size=32)
ROUTERS = {f"model.layers.{i}.mlp.gate": dict(bits=8, group_size=64) for i in range(2)}

HYBRID = dict(
    model_type="nemotron_h",
    vocab_size=320,
    hidden_size=128,
    intermediate_size=192,
    max_position_embeddings=512,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    attention_bias=False,
    mamba_num_heads=6,
    mamba_head_dim=32,
    mamba_proj_bias=False,
    ssm_state_size=32,
    conv_kernel=4,
    n_groups=2,
    mlp_bias=False,
    layer_norm_epsilon=1e-5,
    use_bias=False,
    use_conv_bias=True,
    hybrid_override_pattern="M-M*-M",
    num_hidden_layers=6,
)
EXPERTS = dict(
    HYBRID,
    hybrid_override_pattern="MEM*E",
    num_hidden_layers=5,
    moe_intermediate_size=64,
    moe_shared_expert_intermediate_size=96,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=3,
    n_group=1,
    topk_group=1,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
)


def cases():
    yield "moe", MOE, {}
    yield "moe-published", "moe", {}
    yield "moe-tied", dict(MOE, tie_word_embeddings=True, norm_topk_prob=False), {}
    yield "moe-some", dict(
        MOE, num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[1], num_experts=12,
        num_experts_per_tok=5,
    ), {}
    yield "moe-quant", MOE, dict(pack=PACK, overrides=ROUTERS)
    yield "moe-quant-published", "moe-quant", {}
    yield "moe-quant-8", dict(MOE, norm_topk_prob=False), dict(pack=dict(bits=8, group_size=64))
    yield "moe-half-bf16-quant", MOE, dict(dtype=mx.bfloat16, pack=PACK)

    yield "hybrid", HYBRID, {}
    yield "hybrid-published", "hybrid", {}
    # Longer than the 256 positions that mlx-lm scans at once.
    yield "hybrid-long", dict(HYBRID, hybrid_override_pattern="M*M-", num_hidden_layers=4), dict(
        prompt=330)
    yield "hybrid-biases", dict(
        HYBRID, attention_bias=True, mamba_proj_bias=True, mlp_bias=True, use_conv_bias=False,
        conv_kernel=3, n_groups=1, time_step_limit=[0.3, 0.9],
    ), {}
    no_pattern = dict(HYBRID, layers_block_type=["mamba", "attention", "mlp", "mamba"])
    del no_pattern["hybrid_override_pattern"], no_pattern["num_hidden_layers"]
    yield "hybrid-listed", no_pattern, {}
    yield "hybrid-quant", HYBRID, dict(pack=PACK)
    yield "hybrid-quant-8", HYBRID, dict(pack=dict(bits=8, group_size=64))
    yield "hybrid-experts", EXPERTS, {}
    yield "hybrid-experts-published", "hybrid-experts", {}
    yield "hybrid-experts-groups", dict(
        EXPERTS, n_group=4, topk_group=2, n_routed_experts=16, norm_topk_prob=False,
        n_shared_experts=None, moe_shared_expert_intermediate_size=None,
    ), {}
    yield "hybrid-experts-latent", dict(EXPERTS, moe_latent_size=64), {}
    yield "hybrid-experts-quant", dict(EXPERTS, moe_latent_size=64), dict(pack=PACK)
    yield "hybrid-half-bf16", HYBRID, dict(dtype=mx.bfloat16)
    yield "hybrid-experts-half-bf16-quant", EXPERTS, dict(dtype=mx.bfloat16, pack=PACK)


def without_global_scale(gather_qmm):
    """This mlx-lm names an argument that this MLX has not got; None there means nothing."""

    def gather(*arrays, global_scale=None, **options):
        assert global_scale is None
        return gather_qmm(*arrays, **options)

    return gather


def random_model(config, seed):
    """A model with lively random weights."""
    rng = np.random.default_rng(seed)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))

    def fill(path, value):
        if path.endswith(("norm.weight", "norm_f.weight")):
            drawn = rng.uniform(0.6, 1.4, value.shape)
        elif path.endswith(("bias", ".D")):
            drawn = rng.normal(0, 0.3, value.shape)
        elif path.endswith("A_log"):
            drawn = rng.uniform(-2.0, 1.0, value.shape)
        elif path.endswith("conv1d.weight"):
            drawn = rng.normal(0, 0.7, value.shape)
        elif "embed" in path:
            drawn = rng.normal(0, 0.15, value.shape)
        else:
            drawn = rng.normal(0, 1.4 / value.shape[-1] ** 0.5, value.shape)
        return mx.array(drawn.astype(np.float32))

    flat = [(path, fill(path, value)) for path, value in tree_flatten(model.parameters())]
    model.load_weights(flat)
    return model


def publish(source, target):
    """Writes `source` again with the names and orders that its makers publish."""
    shutil.copytree(source, target)
    weights = {}
    for name, value in mx.load(str(source / "model.safetensors")).items():
        if ".switch_mlp." in name:
            before, part = name.split(".switch_mlp.")
            part = part.replace("fc1.", "up_proj.").replace("fc2.", "down_proj.")
            for index in range(value.shape[0]):
                weights[f"{before}.experts.{index}.{part}"] = value[index]
        elif name.endswith("conv1d.weight"):
            weights[name] = mx.contiguous(value.swapaxes(1, 2))
        else:
            weights[name] = value
    if (config := json.loads((source / "config.json").read_text()))["model_type"] == "nemotron_h":
        # Left out by mlx-lm too: heads that predict further tokens.
        weights["mtp.layers.0.norm.weight"] = mx.ones((8,))
        # Written by Python, and not JSON.
        config["time_step_limit"] = [0.0, float("inf")]
        (target / "config.json").write_text(json.dumps(config, indent=1))
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "pt"})


def main(folder):
    mx.set_default_device(mx.cpu)
    make.random_model = random_model
    mx.gather_qmm = without_global_scale(mx.gather_qmm)
    names, prompt = [], make.PROMPT
    for name, config, recipe in cases():
        names.append(name)
        if isinstance(config, str):
            publish(folder / config, folder / name)
            continue
        make.PROMPT = recipe.get("prompt", prompt)
        for seed in range(1, 50):
            if make.make(folder, name, config, recipe, seed):
                break
            shutil.rmtree(folder / name)
        else:
            raise SystemExit(f"{name}: no seed with clear choices")
    (folder / "cases.json").write_text(json.dumps(names))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
