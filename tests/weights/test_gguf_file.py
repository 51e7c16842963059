"""GGUF's reader against a transcription number by number, what it refuses, and Llama by the names of llama.cpp."""

import dataclasses
import struct

import jax
import numpy as np
import pytest

from benchmarks import gguf_writer
from benchmarks.gguf_writer import F16, F32, Q4_1, Q8_0, Array
from mlperf_jax.errors import Refused, UserError
from mlperf_jax.weights import files, gguf_file, llama
from tests.weights.test_llama_weights import CONFIG, parameters, published

FACTS = {"general.name": "x", "general.alignment": 32, "tokens": ["a", "\u0120b"], "kinds": [1, 3], "e": 0.5}
SHAPE = (3, 5, 64)


def halves(values):
    return np.asarray(values, "<f2").tobytes()


def drawn(kind, shape, seed=0):
    """Random blocks, and their numbers after dequantize_row_q4_1 and dequantize_row_q8_0 of ggml-quants.c."""
    random = np.random.default_rng(seed)
    data, numbers = b"", []
    for _ in range(int(np.prod(shape)) // 32):
        scale, least = np.float16(random.normal()), np.float16(random.normal())
        if kind == Q4_1:
            packed = random.integers(256, size=16).tolist()
            data += halves([scale, least]) + bytes(packed)
            block = [0.0] * 32
            for j in range(16):
                block[j] = float(np.float32(packed[j] & 0x0F) * np.float32(scale) + np.float32(least))
                block[j + 16] = float(np.float32(packed[j] >> 4) * np.float32(scale) + np.float32(least))
        else:
            packed = random.integers(-128, 128, size=32).tolist()
            data += halves([scale]) + struct.pack("<32b", *packed)
            block = [float(np.float32(number) * np.float32(scale)) for number in packed]
        numbers += block
    return Array(shape, kind, data), np.array(numbers, np.float32).reshape(shape)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    arrays = {"q4": drawn(Q4_1, SHAPE)[0], "q8": drawn(Q8_0, SHAPE)[0]}
    arrays["plain"] = Array((7,), F32, np.arange(7, dtype="<f4").tobytes())
    arrays["half"] = Array((2, 3), F16, halves(range(6)))
    gguf_writer.write(path, FACTS, arrays)
    return path


def test_numbers_are_those_of_a_transcription(path):
    found = files.read_tensors(path)
    for name, kind in (("q4", Q4_1), ("q8", Q8_0)):
        expected = drawn(kind, SHAPE)[1]
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], expected)
        for part in (
            np.s_[1:2, 2:5, 3:40],
            np.s_[0:3, 0:0, 0:64],
            np.s_[0:3, 1:2, 33:33],
            np.s_[:, :, 32:64],
        ):
            np.testing.assert_array_equal(found[name][part], expected[part])
    np.testing.assert_array_equal(found["plain"], np.arange(7))
    np.testing.assert_array_equal(found["half"], np.arange(6).reshape(2, 3))
    assert gguf_file.read_facts(path) == FACTS


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([("a", (32,), Q4_1, 2**40)], "ends inside its array 'a'"),
        ([("a", (32,), Q4_1, 2**64 - 32)], "ends inside its array 'a'"),
        ([("a", (2**40, 2**40), F32, 0)], "larger than any memory"),
        ([("a", (31,), Q4_1, 0)], "is of kind 3 in rows of"),
        ([("a", (32,), 14, 0)], "is of kind 14"),
        ([("a", (), Q4_1, 0)], "is of kind 3"),
        ([("a", (1, 1, 1, 1, 1), F32, 0)], "5 axes"),
        ([("a", (1,), F32, 0), ("a", (1,), F32, 0)], "one name"),
    ],
)
def test_arrays_that_cannot_be(tmp_path, arrays, words):
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf_writer.described(FACTS, arrays) + bytes(64))
    with pytest.raises(UserError, match=words):
        files.read_tensors(path)


def test_descriptions_that_cannot_be(tmp_path, path):
    def refused(data):
        (tmp_path / "x.gguf").write_bytes(data)
        with pytest.raises((Refused, ValueError)) as caught:
            gguf_file.read(tmp_path / "x.gguf")
        return str(caught.value)

    sound = path.read_bytes()
    assert "of version 1" in refused(sound[:4] + struct.pack("<I", 1) + sound[8:])
    assert "axes" in refused(sound[:8] + struct.pack("<Q", 2**63) + sound[16:])
    for end in range(4, 200, 7):
        refused(sound[:end])
    # A list that claims what no file holds, and a list of lists.
    start = gguf_writer.described({}, [])[:16] + struct.pack("<Q", 1) + gguf_writer.text("x")
    assert "inside its description" in refused(start + struct.pack("<IIQ", 9, 4, 2**62))
    assert "of kind 9" in refused(start + struct.pack("<IIQ", 9, 9, 1) + bytes(64))


def as_llama_cpp(tensors):
    """Under its names, and its rows of queries and keys: LlamaModel.permute of convert_hf_to_gguf.py, row by row."""
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    found = {}
    for name, array in tensors.items():
        bare = name.removesuffix(".weight")
        if bare in names:
            found[f"{names[bare]}.weight"] = array
            continue
        number, _, part = bare.removeprefix("model.layers.").partition(".")
        if part not in parts:
            continue  # waves of the positions
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            head = CONFIG.head_width
            rows = [
                first + half * head // 2 + pair
                for first in range(0, len(array), head)
                for pair in range(head // 2)
                for half in range(2)
            ]
            array = array[rows]
        found[f"blk.{number}.{parts[part]}.weight"] = array
    return found


def test_llama_by_the_names_of_llama_cpp():
    config = dataclasses.replace(CONFIG, query_key_norm=False)
    expected = parameters(config)
    tensors = as_llama_cpp(published(expected, config))
    found = llama.from_published(tensors, config)["params"]
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), theirs)
    with pytest.raises(UserError, match="have no layers.1"):
        llama.from_published(
            {name: array for name, array in tensors.items() if "blk.1.ffn_up" not in name}, config
        )
