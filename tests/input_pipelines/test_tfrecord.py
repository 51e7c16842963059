"""TFRecords: records and examples that TensorFlow wrote are read, and damaged ones refused."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipelines import tfrecord
from mlperf_jax.errors import Refused, UserError

INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)


def test_checksums_are_those_of_the_format():
    """RFC 3720's CRC-32C of 32 zero bytes and of "123456789", turned by 15 and moved as the format has it."""
    for data, crc in ((bytes(32), 0x8A9136AA), (b"123456789", 0xE3069283)):
        turned = ((crc >> 15) | (crc << 17)) & 0xFFFFFFFF
        assert tfrecord.framed(data)[-4:] == struct.pack("<I", (turned + 0xA282EAD8) & 0xFFFFFFFF)


@settings(max_examples=30)
@given(records=st.lists(st.binary(max_size=40), max_size=12), every=st.integers(1, 5))
def test_blocks_are_the_records_in_order(records, every, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "part-0"
    path.write_bytes(b"".join(map(tfrecord.framed, records)))
    starts, count = tfrecord.offsets(path, every)
    assert count == len(records) and len(starts) == -(-count // every) + 1
    blocks = [tfrecord.block(path, *pair) for pair in zip(starts, starts[1:], strict=False)]
    assert [record for block in blocks for record in block] == records
    assert all(len(block) == every for block in blocks[:-1])


@settings(max_examples=30)
@given(values=INTEGERS, floats=st.lists(st.floats(width=32, allow_nan=False), max_size=9))
def test_what_is_encoded_is_parsed(values, floats):
    example = {"integers": np.array(values, np.int64), "floats": np.array(floats, np.float32)}
    found = tfrecord.parse(tfrecord.encode(example))
    assert found.keys() == example.keys()
    for name, expected in example.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_examples_are_googles():
    """Against the messages that TFDS brings, both packed and value by value."""
    proto = pytest.importorskip("tensorflow_datasets.proto.tf_example_generated_pb2", reason="is the judge")
    example = proto.Example()
    example.features.feature["ids"].int64_list.value.extend([0, 1, 300, -1, 2**40])
    example.features.feature["weights"].float_list.value.extend([0.5, -1.0])
    example.features.feature["text"].bytes_list.value.extend([b"a", b""])
    found = tfrecord.parse(example.SerializeToString())
    np.testing.assert_array_equal(found["ids"], [0, 1, 300, -1, 2**40])
    np.testing.assert_array_equal(found["weights"], np.float32([0.5, -1]))
    assert found["text"] == [b"a", b""]
    ours = {"ids": np.array([5, -5]), "weights": np.float32([2.5])}
    read = proto.Example.FromString(tfrecord.encode(ours)).features.feature
    assert list(read["ids"].int64_list.value) == [5, -5]
    assert list(read["weights"].float_list.value) == [2.5]
    one_by_one = b"\x08\x05\x08\xac\x02"  # Int64List without packing: 5, 300
    entry = tfrecord._field(1, b"ids") + tfrecord._field(2, tfrecord._field(3, one_by_one))
    parsed = tfrecord.parse(tfrecord._field(1, tfrecord._field(1, entry)))
    np.testing.assert_array_equal(parsed["ids"], [5, 300])


def test_what_is_damaged_is_refused(tmp_path):
    path, whole = tmp_path / "part-0", b"".join(map(tfrecord.framed, (b"one", b"three")))
    for data, why in (
        (whole[:-1], "ends inside a record"),
        (whole[:-9], "ends inside a record"),
        (whole[:20], "ends inside a record"),
        (b"\1" + whole[1:], "is no TFRecord file, or damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(
            UserError, match=f"part-0 cannot be read as TFRecords: it {why}; get a sound copy"
        ):
            tfrecord.offsets(path, 1)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="ends inside a record"):
        tfrecord.block(path, 0, len(whole) - 1)
    with pytest.raises(UserError, match="part-1 cannot be read"):
        tfrecord.offsets(tmp_path / "part-1", 1)
    for data in (b"\xff", b"\x0a\x05", tfrecord.encode({"x": np.arange(300)})[:-3]):
        with pytest.raises(Refused):
            tfrecord.parse(data)
