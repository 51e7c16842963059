"""Llama by the names of `transformers`: imported, it is the model that was written."""

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
        for part in ("gate", "up", "down"):
            found[f"{at}.mlp.{part}_proj.weight"] = layer["mlp"][part]["kernel"].T
        for theirs, ours in (("input", "attention_norm"), ("post_attention", "mlp_norm")):
            found[f"{at}.{theirs}_layernorm.weight"] = layer[ours]["scale"]
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


@pytest.mark.parametrize("fused", [False, True])
def test_what_was_written_is_read(tmp_path, fused):
    path = tmp_path / "llama.safetensors"
    safetensors_file.write(path, published(parameters(), fused=fused))
    from mlperf_jax.weights import files

    found = llama.from_published(files.read_tensors(path), CONFIG)["params"]
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(parameters()), jax.tree.leaves(found), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(theirs), ours, err_msg=jax.tree_util.keystr(path))
    # And a part of it, as a device of several reads it.
    part = found["layers"]["attention"]["key"]["kernel"][1:2, 4:8, 0:1, 0:8]
    np.testing.assert_array_equal(part, parameters()["layers"]["attention"]["key"]["kernel"][1:2, 4:8, :1])


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
    with pytest.raises(UserError, match="models of experts"):
        llama.from_published(tensors, dataclasses.replace(CONFIG, num_experts=2, num_chosen=1))
