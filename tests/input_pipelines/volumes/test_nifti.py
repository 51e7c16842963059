"""NIfTI files: what is in them, and that hostile ones cost nothing and end in a sentence."""

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from input_pipelines.volumes import nifti
from mlperf_jax.errors import UserError


def content(
    values, spacing=(1.5, 2.0, 2.5), *, order="<", slope=0.0, intercept=0.0, offset=352, rank=None, **changed
):
    """A file's bytes, written from the format's description."""
    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768}
    values = np.asarray(values)
    header = bytearray(348)
    struct.pack_into(f"{order}i", header, 0, 348)
    shape = (*values.shape, 1, 1, 1, 1)[:7]
    struct.pack_into(f"{order}8h", header, 40, rank or values.ndim, *changed.get("shape", shape))
    struct.pack_into(
        f"{order}2h", header, 70, changed.get("code", codes[values.dtype.str[1:]]), 8 * values.dtype.itemsize
    )
    struct.pack_into(f"{order}8f", header, 76, 1.0, *spacing, 0, 0, 0, 0)
    struct.pack_into(f"{order}3f", header, 108, offset, slope, intercept)
    header[344:348] = changed.get("magic", b"n+1\0")
    data = values.astype(values.dtype.newbyteorder(order)).tobytes(order="F")
    return bytes(header) + bytes(max(0, int(offset) - 348) if offset < 1e6 else 4) + data


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8", "i1", "u2", "u4"])
def test_numbers_and_spacing_come_back(tmp_path, dtype, order):
    values = np.random.default_rng(0).integers(0, 100, (2, 3, 5)).astype(dtype)
    for path, packed in ((tmp_path / "a.nii", bytes), (tmp_path / "a.nii.gz", gzip.compress)):
        path.write_bytes(packed(content(values, order=order, offset=400)))
        found = nifti.read(path)
        np.testing.assert_array_equal(found.values, values)
        assert found.values.dtype == np.dtype(dtype) and found.spacing == (1.5, 2.0, 2.5)
    np.testing.assert_array_equal(nifti.parse(content(values[..., None], order=order), "x").values, values)


def test_scaled_values_are_scaled():
    values = np.arange(24, dtype="i2").reshape(2, 3, 4)
    found = nifti.parse(content(values, slope=0.5, intercept=-3), "x").values
    np.testing.assert_allclose(found, 0.5 * values - 3)
    for slope, intercept in ((0, 7), (1, 0), (float("nan"), 1)):
        found = nifti.parse(content(values, slope=slope, intercept=intercept), "x").values
        np.testing.assert_array_equal(found, values)


GOOD = np.zeros((2, 3, 4), "i2")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (b"", "shorter than a header"),
        (content(GOOD)[:200], "shorter than a header"),
        (content(GOOD)[:-1], "ends after 47 of 48 bytes"),
        (b"\0" * 400, "does not begin as one"),
        (content(GOOD, magic=b"ni1\0"), "does not begin as one"),
        (content(GOOD, rank=2), "no single volume"),
        (content(GOOD, rank=4, shape=(2, 3, 4, 2, 1, 1, 1)), "no single volume"),
        (content(GOOD, shape=(0, 3, 4, 1, 1, 1, 1)), "claims a volume of 0 x 3 x 4"),
        (content(GOOD, shape=(-2, 3, 4, 1, 1, 1, 1)), "claims a volume of -2"),
        (content(GOOD, shape=(32767, 32767, 32767, 1, 1, 1, 1)), "claims a volume of 32767"),
        (content(GOOD, code=128), "its type 128 is none of"),
        (content(GOOD, spacing=(0, 1, 1)), "its voxels are 0 x 1 x 1"),
        (content(GOOD, spacing=(1, float("inf"), 1)), "its voxels are"),
        (content(GOOD, offset=100), "numbers begin at 100"),
        (content(GOOD, offset=1e9), "numbers begin at 1e"),
        (content(GOOD, offset=float("nan")), "numbers begin at nan"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, made, said):
    for packed in (bytes, gzip.compress):
        path = tmp_path / "x.nii.gz"
        path.write_bytes(packed(made))
        with pytest.raises(UserError, match=f"x.nii.gz is no whole NIfTI-1 file .*{said}"):
            nifti.read(path)


def test_damaged_packing_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "x.nii.gz"
    whole = gzip.compress(content(np.random.default_rng(0).integers(0, 99, (9, 9, 9)).astype("i2")))
    for damaged in (whole[:60], whole[:30] + b"\xff" * 9 + whole[39:], b"\x1f\x8b" + b"\0" * 20):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="x.nii.gz"):
            nifti.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        nifti.read(tmp_path / "none.nii")


def test_a_claim_costs_no_memory(tmp_path):
    path = tmp_path / "x.nii"
    path.write_bytes(content(GOOD, shape=(1000, 1000, 2000, 1, 1, 1, 1)))
    tracemalloc.start()
    with pytest.raises(UserError, match="ends after"):
        nifti.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26
