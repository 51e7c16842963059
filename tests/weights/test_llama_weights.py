"""Llama, and decoders of experts, by the names of `transformers`: imported, it is the model that was written."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import llama, safetensors_file
from models.decoder import Decoder, DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=23,
    width=16,
    mlp_width=24,
    num_heads=4,
    num_key_heads=2,
    head_width=8,
    num_layers=2,
    query_key_norm=True,
)
EXPERTS = dataclasses.replace(CONFIG, mlp_width=12, num_experts=3, num_chosen=2)


@functools.cache
def parameters(config=CONFIG):
    random = np.random.default_rng(1)
    model = nnx.eval_shape(lambda: Decoder(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), shapes)


def published(params, config=CONFIG, *, fused=False):
    """As `transformers` has them."""
    found = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["norm"]["scale"]}
    if not config.tied:
        found["lm_head.weight"] = params["head"].T
    for n in range(config.num_layers):
        layer, at = jax.tree.map(lambda x: x[n], params["layers"]), f"model.layers.{n}"  # noqa: B023
        flat = {
            part: layer["attention"][part]["kernel"].reshape(config.width, -1).T
            for part in ("query", "key", "value")
        }
        if fused:
            found[f"{at}.self_attn.qkv_proj.weight"] = np.concatenate(list(flat.values()))
        else:
            found |= {f"{at}.self_attn.{part[0]}_proj.weight": kernel for part, kernel in flat.items()}
        found[f"{at}.self_attn.o_proj.weight"] = (
            layer["attention"]["out"]["kernel"].reshape(-1, config.width).T
        )
        for part in ("query", "key") if config.query_key_norm else ():
            found[f"{at}.self_attn.{part[0]}_norm.weight"] = layer["attention"][f"{part}_norm"]["scale"]
        found[f"{at}.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
        if config.num_experts:
            found |= {f"{at}.mlp.{name}": array for name, array in experts(layer["mlp"], fused).items()}
        else:
            for part in ("gate", "up", "down"):
                found[f"{at}.mlp.{part}_proj.weight"] = layer["mlp"][part]["kernel"].T
        for theirs, ours in (("input", "attention_norm"), ("post_attention", "mlp_norm")):
            found[f"{at}.{theirs}_layernorm.weight"] = layer[ours]["scale"]
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def experts(layer, fused):
    """As gpt-oss has them where fused, gates and what they multiply side by side, else as Qwen3-MoE."""
    if fused:
        both = np.stack([layer["gate"], layer["up"]], -1)
        return {
            "router.weight": layer["router"].T,
            "experts.gate_up_proj": both.reshape(*both.shape[:2], -1),
            "experts.down_proj": layer["down"],
        }
    return {"gate.weight": layer["router"].T} | {
        f"experts.{n}.{part}_proj.weight": layer[part][n].T
        for n in range(len(layer["gate"]))
        for part in ("gate", "up", "down")
    }


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("config", [CONFIG, EXPERTS], ids=["llama", "experts"])
def test_what_was_written_is_read(tmp_path, config, fused):
    path = tmp_path / "llama.safetensors"
    safetensors_file.write(path, published(parameters(config), config, fused=fused))
    from mlperf_jax.weights import files

    found = llama.from_published(files.read_tensors(path), config)["params"]
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(parameters(config)), jax.tree.leaves(found), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(theirs), ours, err_msg=jax.tree_util.keystr(path))
    # And a part of it, as a device of several reads it.
    part = found["layers"]["attention"]["key"]["kernel"][1:2, 4:8, 0:1, 0:8]
    key = parameters(config)["layers"]["attention"]["key"]["kernel"]
    np.testing.assert_array_equal(part, key[1:2, 4:8, :1])
    if config.num_experts:
        up = found["layers"]["mlp"]["up"][1:2, 1:3, 4:8, 3:7]
        np.testing.assert_array_equal(up, parameters(config)["layers"]["mlp"]["up"][1:2, 1:3, 4:8, 3:7])


def test_a_tied_product_may_be_there_or_not():
    config = dataclasses.replace(CONFIG, tied=True)
    tensors = published(parameters(config), config)
    for more in ({}, {"lm_head.weight": tensors["model.embed_tokens.weight"]}):
        assert "head" not in llama.from_published(tensors | more, config)["params"]
    with pytest.raises(UserError, match="is not the table of embeddings"):
        llama.from_published(tensors | {"lm_head.weight": np.zeros((23, 16), np.float32)}, config)


def test_other_models_are_refused():
    tensors = published(parameters())
    with pytest.raises(UserError, match=r"have no layers\.2\."):
        llama.from_published(tensors, dataclasses.replace(CONFIG, num_layers=3))
    with pytest.raises(UserError, match=r"have layers\.1\..*, which this model does not"):
        llama.from_published(tensors, dataclasses.replace(CONFIG, num_layers=1))
    with pytest.raises(UserError, match="has shape"):
        llama.from_published(tensors, dataclasses.replace(CONFIG, mlp_width=25))
    with pytest.raises(UserError, match=r"have no layers\.0\.mlp\.experts\.0\.gate_proj"):
        llama.from_published(tensors, EXPERTS)
    sinks = {"model.layers.0.self_attn.sinks": np.zeros(4, np.float32)}
    with pytest.raises(UserError, match="OpenAI's gpt-oss, with attention sinks"):
        llama.from_published(published(parameters(EXPERTS), EXPERTS, fused=True) | sinks, EXPERTS)
