"""What a small file of weights may cost, whatever it says: each of these took for ever, or all memory, or a traceback."""

import io
import json
import struct
import time
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from benchmarks.fuzzed_readers import ARRAYS, WEIGHTS, field, state_dict, varint
from input_pipelines.clicks import pickled_frame
from mlperf_jax.errors import Refused, UserError
from mlperf_jax.weights import budget, files, lazy, safetensors_file, tensorflow_file

SECONDS, MEMORY = 5, 200 * 2**20


@pytest.fixture
def refused(tmp_path):
    """Asserts that a file is refused in a sentence, fast and in little memory."""

    def check(data, match, name="x", read=files.read_tensors):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        tracemalloc.start()
        start = time.process_time()
        with pytest.raises(UserError, match=match) as caught:
            for array in read(path).values():
                np.asarray(array)
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seconds < SECONDS and peak < MEMORY
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000

    return check


def zipped(pickled, storages=(), **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        archive.writestr("x/data.pkl", pickled)
        for i, data in enumerate(storages):
            archive.writestr(f"x/data/{i}", data)
    return out.getvalue()


NESTED = b"K\x01K\x01\x86q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))
BOMBS = {
    "keys": b"\x80\x02}" + NESTED + b"K\x01s.",
    "kinds": b"\x80\x02(" + NESTED + NESTED + b"K\x01K\x01tQ.",
    "marks": b"\x80\x02" + b"K\x01" * 60_000 + b"(t0" * 60_000 + b".",
    "collisions": b"\x80\x02}("
    + b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(30_000))
    + b"u.",
    "length": b"\x80\x02\x8d" + (2**40).to_bytes(8, "little") + b".",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_pickles_that_would_take_for_ever(kind, refused):
    refused(zipped(BOMBS[kind]), "cannot be read as weights")
    refused(BOMBS[kind], "cannot be read as weights")
    start = time.process_time()
    with pytest.raises(Refused):
        pickled_frame.read(BOMBS[kind])
    assert time.process_time() - start < 2 * SECONDS


def test_pickles_of_many_steps(refused, monkeypatch):
    monkeypatch.setattr(budget, "STEPS", 1000)
    refused(b"\x80\x02" + b"}0" * 1000 + b"N.", "too many steps")


def test_tensors_that_share_a_storage_unfold_no_further_than_told(refused):
    names = b"".join(b"X" + struct.pack("<I", 5) + b"%05d" % i + b"h\x09" for i in range(1000))
    one = state_dict({"w": np.zeros(250_000, np.float32)})
    tensor = one[one.index(b"ctorch._utils") : -2]
    data = b"\x80\x02}" + tensor + b"q\x090(" + names + b"u."
    refused(zipped(data, [bytes(1_000_000)]), f"unfold to more than {budget.EXPANSION} times")


def test_entries_that_claim_more_than_the_file_holds(refused):
    one = state_dict({"w": np.zeros(100, np.float32)})
    claiming = one.replace(b"J" + struct.pack("<i", 100), b"J" + struct.pack("<i", 2**28))
    data = zipped(claiming, [bytes(400)])
    refused(data.replace(struct.pack("<II", 400, 400), struct.pack("<II", 2**30, 2**30)), "beyond the file")
    refused(claiming, "no file of torch.save")


def test_an_archive_that_inflates_a_thousandfold(refused, tmp_path):
    np.savez_compressed(tmp_path / "x.npz", w=np.zeros(30_000_000, np.float32))
    refused(None, "unfold to more than", "x.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_are_packed_as_numpy_packs_them(method, refused, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive, archive.open("w.npy", "w") as file:
        np.lib.format.write_array(file, np.arange(9))
    refused(None, "in a way that NumPy does not", "x.npz")


def test_a_damaged_stream_is_told_when_it_is_read(refused, tmp_path):
    np.savez_compressed(tmp_path / "x.npz", w=np.random.default_rng(0).random(5000))
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[3000:3100] = bytes(100)
    refused(bytes(data), "cannot be read as weights", "x.npz")


def test_a_header_that_is_no_python(refused, tmp_path):
    np.savez(tmp_path / "x.npz", w=np.arange(9))
    data = (tmp_path / "x.npz").read_bytes()
    refused(data.replace(b"'shape': (9,), }", b"'shape': [[[[[[["), "cannot be read as weights", "x.npz")
    refused(data.replace(b"'shape': (9,)", b"'shape': (-9,"), "cannot be read as weights", "x.npz")


def onnx(tensor):
    return field(7, field(5, field(2, 1) + field(8, b"w") + tensor))


def test_onnx_in_many_pieces(refused, tmp_path):
    """Each number in a field of its own; pieces that grow were put together anew each time."""
    count = 100_000
    numbers = np.arange(count, dtype=np.float32)
    pieces = b"".join(bytes([4 << 3 | 5]) + number.tobytes() for number in numbers)
    (tmp_path / "x").write_bytes(onnx(field(1, count) + pieces))
    start = time.process_time()
    np.testing.assert_array_equal(np.asarray(files.read_tensors(tmp_path / "x")["w"]), numbers)
    assert time.process_time() - start < SECONDS


def test_onnx_as_its_helpers_do_not_write_it(tmp_path):
    """Integers in single fields, halves in 32 bits, eight bits: all are allowed."""
    halves = np.array([1.5, -2], np.float16)
    for kind, numbers, expected in (
        (7, b"".join(field(7, n) for n in (1, 2**64 - 2)), np.array([1, -2])),
        (6, field(5, varint(1) + varint(2**64 - 2)), np.array([1, -2], np.int32)),
        (10, field(5, b"".join(varint(int(n)) for n in halves.view(np.uint16))), halves),
        (3, field(5, varint(1) + varint(2**64 - 2)), np.array([1, -2], np.int8)),
        (17, field(9, b"\x38\xb8"), np.array([1, -1], ml_dtypes.float8_e4m3fn)),
    ):
        (tmp_path / "x").write_bytes(
            field(7, field(5, field(1, 2) + field(2, kind) + field(8, b"w") + numbers))
        )
        (found,) = files.read_tensors(tmp_path / "x").values()
        assert found.dtype == expected.dtype and np.asarray(found).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "shape",
    [
        b"".join(field(1, 2**62 - 1) for _ in range(60)),
        field(1, varint(2**62 - 1) * 300_000),
        field(1, 2**64 - 1),
    ],
)
def test_onnx_of_huge_dimensions(shape, refused):
    refused(onnx(shape + field(9, bytes(8))), "dimensions|impossible shape|larger than any memory")


def test_safetensors_of_eight_bits(tmp_path):
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        safetensors_file.write(
            tmp_path / "x", {"w": np.array([1, 2], dtype), "bad": np.array([1, np.nan], dtype)}
        )
        found = files.read_tensors(tmp_path / "x")
        assert np.asarray(found["w"]).astype(int).tolist() == [1, 2]
        with pytest.raises(UserError, match="bad has numbers that are NaN or infinite"):
            np.asarray(found["bad"])


def test_a_header_of_most_of_the_memory(refused):
    refused(struct.pack("<Q", 2**31) + b'{"a"' + bytes(99), "header too large|damaged")


def index(entries, handles=1):
    """A checkpoint's index of one block that is told of `handles` times."""

    def block(pairs):
        return b"".join(
            varint(s) + varint(len(k)) + varint(len(v)) + k + v for s, k, v in pairs
        ) + struct.pack("<II", 0, 1)

    file = block(entries)
    handle = varint(0) + varint(len(file))
    file += b"\0" * 5
    told = block([(0, b"%09d" % i, handle) for i in range(handles)])
    footer = b"\0\0" + varint(len(file)) + varint(len(told))
    return file + told + b"\0" * 5 + footer.ljust(40, b"\0") + tensorflow_file.MAGIC


def test_an_index_whose_names_unfold(refused):
    entries = [
        (0, b"", field(1, 1)),
        (0, b"a" * 100_000, b""),
        *((100_000, b"", b"") for _ in range(100_000)),
    ]
    refused(index(entries), "names unfold", "x.index")


def test_an_index_that_tells_of_a_block_again_and_again(refused):
    entries = [(0, b"", field(1, 1)), *((0, b"%05d" % i, b"") for i in range(9999))]
    refused(index(entries, 10_000), "told of twice", "x.index")


def test_an_index_of_huge_dimensions(refused, tmp_path):
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(8))
    entry = field(1, 1) + field(2, field(2, field(1, 2**62)) * 30_000) + field(5, 8)
    refused(index([(0, b"", field(1, 1)), (0, b"w", entry)]), "axes|shape", "x.index")


@pytest.mark.parametrize("kind", WEIGHTS)
def test_no_memory_is_a_sentence(kind, tmp_path, monkeypatch):
    WEIGHTS[kind](tmp_path / f"x.{kind}")

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(budget, "held", full)
    with pytest.raises(UserError, match="needs more memory than there is"):
        files.read_tensors(tmp_path / f"x.{kind}")


@pytest.mark.parametrize("kind", WEIGHTS)
def test_small_files_written_by_hand_are_read(kind, tmp_path):
    """Without the libraries that write them: what is damaged elsewhere is first of all sound."""
    WEIGHTS[kind](tmp_path / f"x.{kind}")
    found = files.read_tensors(tmp_path / f"x.{kind}")
    assert found.keys() - {"eight"} == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(found[name]), array)


@pytest.mark.parametrize("numbers", [[], [0], [127, 128, 300], [2**64 - 1, 5]])
def test_numbers_of_any_length(numbers):
    from mlperf_jax.weights.protobuf import varints

    assert varints(b"".join(map(varint, numbers))).tolist() == numbers
    for bad in (b"\x80", b"\x01\xff", b"\xff" * 11 + b"\x01"):
        with pytest.raises(Refused):
            varints(bad)


def test_what_an_edited_folder_gets(tmp_path):
    arrays = {"params": {"w": np.ones(3, np.float32)}}
    files.save(tmp_path, files.Imported(arrays, "resnet50", {}, {}))
    description = tmp_path / "weights.json"
    description.write_text(description.read_text().replace('"config"', '"other"'))
    with pytest.raises(UserError, match=r"weights.json is damaged; import the weights again"):
        files.load(tmp_path)
    safetensors_file.write(tmp_path / "weights.safetensors", {"a": np.ones(1), "a.b": np.ones(1)})
    description.write_text(
        json.dumps(
            {"schema_version": 1, "workload": "x", "config": {}, "source": {}}
            | {"sha256": files.sha256(tmp_path / "weights.safetensors")}
        )
    )
    with pytest.raises(UserError, match="lies in another one"):
        files.load(tmp_path)


def test_a_library_that_says_much(tmp_path):
    with pytest.raises(UserError) as caught, lazy.said_of(tmp_path):
        raise KeyError("x" * 5000)
    assert str(caught.value).endswith("cannot be read as weights: it is damaged (KeyError).")
