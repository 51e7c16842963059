"""Criteo's days of text to binary files: against a transcription of the reference, and after being killed."""

import dataclasses
import gzip
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipelines.clicks import criteo, criteo_convert, criteo_order, criteo_text
from mlperf_jax.errors import UserError

SPEC = criteo_convert.Spec(
    num_days=4, modulus=1000, table_sizes=(), counts=(), num_workers=1, part_bytes=160 * 50, chunk_bytes=5000
)


def reference(days, modulus, seed=123):
    """The reference's data_utils.py and data_loader_terabyte.py, line by line: (train, test, val), [n, 40]."""
    dicts = [{} for _ in range(26)]
    parsed = []
    for lines in days:
        rows = []
        for line in lines:
            fields = (line + "\n").split("\t")
            fields = ["0" if field in ("", "\n") else field for field in fields]
            categories = [int(field, 16) % modulus for field in fields[14:]]
            for table, value in enumerate(categories):
                dicts[table].setdefault(value, len(dicts[table]))
            rows.append([int(fields[0]), *(int(field) for field in fields[1:14]), *categories])
        parsed.append(rows)
    for rows in parsed:
        for row in rows:
            row[1:14] = [max(value, 0) for value in row[1:14]]
            row[14:] = [dicts[table][value] for table, value in enumerate(row[14:])]

    np.random.seed(seed)
    num_days = len(days)
    buckets = [[] for _ in days]
    for i, rows in enumerate(parsed):
        drawn = np.random.randint(low=0, high=num_days - 1, size=len(rows))
        for k, row in enumerate(rows):
            p = i
            if i < num_days - 1:
                p = drawn[k]
                while len(buckets[p]) >= len(parsed[p]):
                    p = np.random.randint(low=0, high=num_days - 1)
            buckets[p].append(row)
    train = []
    for bucket in buckets[:-1]:
        order = np.random.permutation(range(len(bucket)))
        train += [bucket[k] for k in order]
    half = int(np.ceil(len(buckets[-1]) / 2.0))
    sizes = [len(table) for table in dicts]
    return *(
        np.array(rows, np.int32).reshape(-1, 40) for rows in (train, buckets[-1][:half], buckets[-1][half:])
    ), sizes


def line(random):
    numbers = ["" if random.random() < 0.3 else str(int(n)) for n in random.integers(-3, 10**6, size=13)]
    categories = ["" if random.random() < 0.2 else f"{n:08x}" for n in random.integers(2**32, size=26)]
    return "\t".join([str(random.integers(2)), *numbers, *categories])


def made_up_days(sizes, seed=0):
    random = np.random.default_rng(seed)
    return [[line(random) for _ in range(size)] for size in sizes]


def write_days(folder, days):
    folder.mkdir()
    for day, lines in enumerate(days):
        text = "".join(f"{line}\n" for line in lines).encode()
        if day % 2:
            (folder / f"day_{day}.gz").write_bytes(gzip.compress(text))
        else:
            (folder / f"day_{day}").write_bytes(text)


def read(folder):
    return [
        np.fromfile(folder / criteo.FILES[split], "<i4").reshape(-1, 40) for split in ("train", "test", "val")
    ]


@pytest.mark.parametrize(("sizes", "num_workers"), [((90, 250, 40, 61), 1), ((60, 30, 200, 2), 2)])
def test_files_are_those_of_the_reference(tmp_path, capsys, sizes, num_workers):
    days = made_up_days(sizes)
    write_days(tmp_path / "raw", days)
    *expected, counts = reference(days, SPEC.modulus)
    spec = dataclasses.replace(
        SPEC, num_workers=num_workers, counts=(sum(sizes[:-1]), sizes[-1]), table_sizes=tuple(counts)
    )
    criteo_convert.convert(tmp_path / "raw", tmp_path / "out", spec)
    for found, wanted in zip(read(tmp_path / "out"), expected, strict=True):
        assert np.array_equal(found, wanted)
    assert np.load(tmp_path / "out" / "day_fea_count.npz")["counts"].tolist() == counts
    assert not (tmp_path / "out" / ".convert").exists()
    assert "parsed 4 of 4" in capsys.readouterr().out


@given(st.lists(st.integers(1, 300), min_size=3, max_size=7), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_buckets_and_permutations_are_drawn_as_one_by_one(sizes, seed):
    """Against draws one after the other; days of other sizes than the mean make buckets full early."""
    pieces, criteo_order._AT_ONCE = criteo_order._AT_ONCE, 64
    try:
        plan = criteo_order.make_plan(sizes)
        drawn = [plan.buckets(day) for day in range(len(sizes) - 1)]
        orders = [plan.permutation(bucket) for bucket in range(len(sizes) - 1)]
    finally:
        criteo_order._AT_ONCE = pieces
    random = np.random.RandomState(123)
    used = [0] * (len(sizes) - 1)
    for day, size in enumerate(sizes):
        proposed = random.randint(0, len(sizes) - 1, size=size)
        if day < len(sizes) - 1:
            assert plan.begins[day].tolist() == used
            for k in range(size):
                p = proposed[k]
                while used[p] >= sizes[p]:
                    p = random.randint(0, len(sizes) - 1)
                used[p] += 1
                assert drawn[day][k] == p
    for bucket, order in enumerate(orders):
        assert np.array_equal(order, random.permutation(range(sizes[bucket])))


NUMBER = st.one_of(st.just(""), st.integers(-(2**31), 2**31 - 1).map(str), st.integers(-5, 200).map(str))
CATEGORY = st.one_of(
    st.just(""), st.integers(0, 2**32 - 1).map("{:08x}".format), st.integers(0, 2**32 - 1).map("{:X}".format)
)
LINE = st.tuples(st.sampled_from("01"), *[NUMBER] * 13, *[CATEGORY] * 26)


@given(st.lists(LINE, min_size=1, max_size=5), st.sampled_from([7, 40_000_000, 2**31 - 1]))
@settings(max_examples=60, deadline=None)
def test_parsed_text_against_plain_python(lines, modulus):
    text = "".join("\t".join(fields) + "\n" for fields in lines).encode()
    expected = [
        [int(fields[0])]
        + [max(int(field or "0"), 0) for field in fields[1:14]]
        + [int(field or "0", 16) % modulus for field in fields[14:]]
        for fields in lines
    ]
    assert criteo_text.parse(text, modulus).tolist() == expected


GOOD = ["1", *["2"] * 13, *["0000000a"] * 26]


@given(st.integers(0, 39), st.integers(0, 8), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_strange_byte_is_refused_or_read_as_plain_python_does(field, place, byte):
    fields = [f.encode() for f in GOOD]
    fields[field] = fields[field][:place] + bytes([byte]) + fields[field][place + 1 :]
    text = b"\t".join(fields) + b"\n"
    allowed = b"0123456789" if field < 14 else b"0123456789abcdefABCDEF"
    value = fields[field]
    digits = value[1:] if 0 < field < 14 and value[:1] == b"-" and len(value) > 1 else value
    good = all(c in allowed for c in digits) and (len(value) <= 8 if field >= 14 else True)
    if field == 0:
        good = value in (b"0", b"1")
    if not good:
        with pytest.raises(ValueError, match="line|number|category|label"):
            criteo_text.parse(text, 2**31 - 1)
    else:
        found = int(criteo_text.parse(text, 2**31 - 1)[0, field])
        assert found == max(0, int(value or b"0", 10 if field < 14 else 16)) % (2**31 - 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\t".join(GOOD[:-1]), "without 40 fields"),
        ("\t".join([*GOOD, "1"]), "without 40 fields"),
        ("\t".join(GOOD[:20]) + "\n" + "\t".join(GOOD[:20]), "without 40 fields"),
        *(
            ("\t".join([label, *GOOD[1:]]), "a label that is neither 0 nor 1")
            for label in ("2", "", "-1", "-0", "01", "-2147483648", "0000000001")
        ),
        ("\t".join(["1", "99999999999", *GOOD[2:]]), "where a number belongs"),
        ("\t".join(["1", "2147483648", *GOOD[2:]]), "where a number belongs"),
        ("\t".join(["1", "-", *GOOD[2:]]), "where a number belongs"),
        ("\t".join([*GOOD[:-1], "123456789"]), "not hexadecimal"),
        ("\t".join([*GOOD[:-1], "0x000012"]), "not hexadecimal"),
    ],
)
def test_damaged_days_are_told(tmp_path, text, message):
    write_days(tmp_path / "raw", made_up_days((3, 3, 3, 3)))
    (tmp_path / "raw" / "day_2").write_text("\t".join(GOOD) + "\n" + text + "\n")
    with pytest.raises(UserError, match=f"day_2, after example 0: .*{message}") as caught:
        criteo_convert.convert(tmp_path / "raw", tmp_path / "out", SPEC)
    assert "\n" not in str(caught.value)


def test_days_that_are_missing_cut_off_or_of_other_counts_are_told(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_days(raw, made_up_days((3, 3, 3, 3)))
    with pytest.raises(UserError, match="9 train and 3 other examples where Criteo 1TB has 10 and 3"):
        criteo_convert.convert(raw, out, dataclasses.replace(SPEC, counts=(10, 3)))
    with pytest.raises(UserError, match="where MLPerf's have"):
        criteo_convert.convert(raw, out, dataclasses.replace(SPEC, table_sizes=(1,) * 26))
    (raw / "day_1.gz").write_bytes((raw / "day_1.gz").read_bytes()[:-9])
    with pytest.raises(UserError, match="day_1.gz is not a whole gzip file"):
        criteo_convert.convert(raw, tmp_path / "other", SPEC)
    (raw / "day_1.gz").unlink()
    with pytest.raises(UserError, match="day_1.gz is missing"):
        criteo_convert.convert(raw, tmp_path / "other", SPEC)
    (raw / "day_1").write_text("")
    with pytest.raises(UserError, match="day_1 is empty"):
        criteo_convert.convert(raw, tmp_path / "other", SPEC)


STEPS = ("_parse_day", "_write_vocabulary", "_distribute_day", "_permute_bucket")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "within"])
def test_a_conversion_that_was_killed_goes_on(tmp_path, monkeypatch, step, when):
    """Killed before a task, or when half of its bytes were written."""
    sizes = (70, 50, 60, 33)
    days = made_up_days(sizes, seed=5)
    write_days(tmp_path / "raw", days)
    *expected, _ = reference(days, SPEC.modulus)
    real, calls = getattr(criteo_convert, step), []

    class Killed(BaseException):
        pass

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) < 3:
            return real(*arguments)
        if when == "within":
            with monkeypatch.context() as patch:
                patch.setattr(criteo_convert.Path, "touch", _raising(Killed, criteo_convert.Path.touch))
                patch.setattr(criteo_convert.Path, "replace", _raising(Killed, criteo_convert.Path.replace))
                real(*arguments)
        raise Killed

    monkeypatch.setattr(criteo_convert, step, killed)
    with pytest.raises(Killed):
        criteo_convert.convert(tmp_path / "raw", tmp_path / "out", SPEC)
    assert not (tmp_path / "out" / criteo.FILES["train"]).exists()
    monkeypatch.setattr(criteo_convert, step, real)
    criteo_convert.convert(tmp_path / "raw", tmp_path / "out", SPEC)
    for found, wanted in zip(read(tmp_path / "out"), expected, strict=True):
        assert np.array_equal(found, wanted)


def _raising(error, real):
    """Lets files be created, but none appear whole."""

    def method(self, *arguments):
        if "bucket_" in self.name or self.suffix == ".bin":
            return real(self, *arguments)
        raise error

    return method


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    """A real SIGKILL: no worker goes on writing, and a second call finishes the work."""
    days = made_up_days((400, 300, 350, 101), seed=7)
    write_days(tmp_path / "raw", days)
    program = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from input_pipelines.clicks import criteo_convert
        if __name__ == "__main__":
            spec = criteo_convert.Spec(num_days=4, modulus=1000, table_sizes=(), counts=(), num_workers=2)
            criteo_convert.convert(Path({str(tmp_path / "raw")!r}), Path({str(tmp_path / "out")!r}), spec)
        """
    )
    (tmp_path / "main.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(Path(criteo_convert.__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert process.stdout.readline().startswith("parsed 1 of 4")
    process.send_signal(signal.SIGKILL)
    process.stdout.read()  # Ends when the last worker that holds this pipe has ended.
    process.wait()
    subprocess.run(
        [sys.executable, str(tmp_path / "main.py")], check=True, env=environment, stdout=subprocess.DEVNULL
    )
    *expected, _ = reference(days, 1000)
    for found, wanted in zip(read(tmp_path / "out"), expected, strict=True):
        assert np.array_equal(found, wanted)
