"""Fetching and preparing: pinned by content, from the first source that has it, whole or not at all."""

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import io
import json
import lzma
import multiprocessing
import re
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from input_pipelines import fetch, prepared
from input_pipelines.image import fashion_mnist
from mlperf_jax.errors import UserError


def pinned(name, content):
    return fetch.PinnedFile(name, len(content), hashlib.sha256(content).hexdigest())


def tar_of(*members):
    """A tar of (path, bytes or None for a symlink to /etc/passwd)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path, content in members:
            info = tarfile.TarInfo(path)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_the_first_source_that_has_the_pinned_content_is_taken(tmp_path):
    right, wrong = b"right" * 100, b"wrong" * 100
    for name, content in (("bad", wrong), ("good", right)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.gz").write_bytes(gzip.compress(content))
    sources = [fetch.folder(tmp_path / name) for name in ("absent", "bad", "good")]
    assert fetch.fetch("Data", [pinned("a.gz", right)], sources, tmp_path) == {"a.gz": right}


def test_failure_tells_each_source_and_why(tmp_path):
    right = b"right" * 100
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.gz").write_bytes(gzip.compress(b"wrong"))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.gz").write_bytes(gzip.compress(right)[:-12])
    (tmp_path / "bomb").mkdir()
    (tmp_path / "bomb" / "a.gz").write_bytes(gzip.compress(right + bytes(10**6)))
    sources = [fetch.folder(tmp_path / name) for name in ("absent", "other", "cut", "bomb")]
    with pytest.raises(UserError) as caught:
        fetch.fetch("Data", [pinned("a.gz", right)], sources, tmp_path)
    message = str(caught.value)
    assert message.startswith("Data could not be had from any source")
    for reason in (
        "absent: a.gz is not there",
        "other: a.gz has other content",
        "cut: a.gz is not a whole gzip",
    ):
        assert reason in message
    assert "bomb: a.gz has other content" in message
    assert "\n" not in message


def test_tar_members_ignore_escapes_and_links(tmp_path):
    archive = tar_of(
        ("../../evil", b"x"), ("/etc/evil", b"x"), ("./data/a", b"A"), ("data/b", None), ("data/c", b"C")
    )
    assert fetch.tar_members(archive, {"data/a": "a", "data/c": "c"}) == {"a": b"A", "c": b"C"}
    with pytest.raises(fetch.SourceError, match="no file b"):
        fetch.tar_members(archive, {"data/b": "b"})
    with pytest.raises(fetch.SourceError, match="damaged"):
        fetch.tar_members(b"not a tar" * 100, {"data/a": "a"})
    assert not list(tmp_path.iterdir())


def tree(files, patterns=("a/*.png", "b.rcc")):
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(files.items()))
    return fetch.PinnedTree(patterns, len(files), hashlib.sha256(lines.encode()).hexdigest())


def test_trees_are_taken_whole_from_the_first_source_that_has_them(tmp_path):
    wanted = {"a/z.png": b"Z", "a/deep/er.png": b"E", "b.rcc": b"B"}
    for name, files in {"less": dict(list(wanted.items())[1:]), "other": wanted | {"b.rcc": b"b"}}.items():
        fill(tmp_path / name, files)
    fill(tmp_path / "good", wanted | {"a/other.txt": b"x", "c/z.png": b"x", "xa/z.png": b"x"})
    sources = [fetch.folder_tree(tmp_path / name) for name in ("absent", "less", "other", "good")]
    got = fetch.fetch_tree("Data", tree(wanted), sources, tmp_path)
    assert list(got.items()) == sorted(wanted.items())
    with pytest.raises(UserError) as caught:
        fetch.fetch_tree("Data", tree(wanted), sources[:3], tmp_path)
    for reason in ("absent: it is not there", "less: it has 2 files", "other: its .* have other content"):
        assert re.search(reason, str(caught.value))


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_tar_trees_ignore_escapes_and_links():
    archive = tar_of(
        ("./usr/x/a/1.png", b"1"),
        ("usr/x/a/link.png", None),
        ("usr/x/../a/2.png", b"2"),
        ("../usr/x/a/3.png", b"3"),
        ("usr/xa/4.png", b"4"),
        ("usr/x/b.rcc", b"5"),
    )
    assert fetch.tar_tree(archive, "usr/x", ("a/*.png", "b.rcc")) == {"a/1.png": b"1", "b.rcc": b"5"}
    with pytest.raises(fetch.SourceError, match="damaged"):
        fetch.tar_tree(b"not a tar" * 100, "usr/x", ("*",))


CLIENTS = {
    "apt-get": """#!/bin/sh
case "$*" in
  *Dir::State::lists=*download*) cp "{deb}" ./x_1_all.deb ;;
  *update*) exit 0 ;;
  *) echo "E: Unable to locate package x" >&2; exit 100 ;;
esac
""",
    "dpkg-deb": """#!/bin/sh
cat "$2"
""",
}


def test_debian_package_falls_back_to_lists_of_its_own(tmp_path, monkeypatch):
    bin_dir, scratch = tmp_path / "bin", tmp_path / "scratch"
    bin_dir.mkdir()
    scratch.mkdir()
    deb = tmp_path / "package"
    deb.write_bytes(tar_of(("./usr/share/x/a.gz", b"A")))
    for name, text in CLIENTS.items():
        (bin_dir / name).write_text(text.replace("{deb}", str(deb)))
        (bin_dir / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    source = fetch.debian_package("x", "usr/share/x")
    assert source.read(["a.gz"], scratch) == {"a.gz": b"A"}

    (bin_dir / "apt-get").write_text("#!/bin/sh\necho 'E: no mirror' >&2; exit 100\n")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(fetch.SourceError, match="'E: no mirror'"):
        source.read(["a.gz"], other)


def test_debian_package_needs_its_clients(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(fetch.SourceError, match="apt-get is not on this machine"):
        fetch.debian_package("x", "usr/share/x").read(["a.gz"], tmp_path)


def test_pinned_files_may_be_packed_otherwise():
    content = b"content" * 100
    for compression, raw in (
        ("gzip", gzip.compress(content)),
        ("xz", lzma.compress(content)),
        ("none", content),
    ):
        pin = dataclasses.replace(pinned("a", content), compression=compression)
        assert pin.content(raw) == content
        with pytest.raises(fetch.SourceError, match="a (is not a whole|has other content)"):
            pin.content(raw[:-12])
        with pytest.raises(fetch.SourceError, match="a (is not a whole|has other content)"):
            pin.content(b"\x07" + raw)


def wheel_of(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)


def test_pypi_package_reads_the_wheel_that_pip_leaves(tmp_path, monkeypatch):
    wheel_of(tmp_path / "x-1.2-py3-none-any.whl", x__data__a=b"A", x__evil=b"x")
    client = tmp_path / "python"
    client.write_text(
        "#!/bin/sh\n"
        'test "$*" = "-m pip download --no-deps --only-binary=:all: --quiet --disable-pip-version-check '
        '--dest $PWD/wheels x==1.2" || { echo "ERROR: $*" >&2; exit 1; }\n'
        f"mkdir wheels && cp {tmp_path}/*.whl wheels\n"
    )
    client.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(client))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert fetch.pypi_package("x==1.2", "x/data").read(["a"], scratch) == {"a": b"A"}
    with pytest.raises(fetch.SourceError, match="`python` said 'ERROR: .* x==9'"):
        fetch.pypi_package("x==9", "x/data").read(["a"], scratch)


def test_zip_members_are_read_whole_or_refused(tmp_path, monkeypatch):
    wheel_of(tmp_path / "z", a__b=b"B" * 1000, c=b"C")
    assert fetch.zip_members(tmp_path / "z", {"a/b": "b"}) == {"b": b"B" * 1000}
    with pytest.raises(fetch.SourceError, match="no file d"):
        fetch.zip_members(tmp_path / "z", {"c": "c", "a/d": "d"})
    monkeypatch.setattr(fetch, "_MOST_MEMBER_BYTES", 999)
    with pytest.raises(fetch.SourceError, match="b is larger than 999 bytes"):
        fetch.zip_members(tmp_path / "z", {"a/b": "b"})
    (tmp_path / "z").write_bytes((tmp_path / "z").read_bytes()[:-40])
    with pytest.raises(fetch.SourceError, match="damaged"):
        fetch.zip_members(tmp_path / "z", {"c": "c"})


def write_x(folder):
    (folder / "x").write_text("content")
    return {"name": "x", "fake": False}


def test_prepared_folder_is_built_once(tmp_path):
    folder = tmp_path / "set"
    manifest = prepared.prepare_folder(folder, write_x)
    assert manifest["schema_version"] == 1 and manifest["files"]["x"]["bytes"] == 7

    def never(_):
        raise AssertionError("built twice")

    assert prepared.prepare_folder(folder, never, verify=True) == manifest


@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt(), UserError("no source"), OSError(errno.ENOSPC, "full")]
)
def test_interrupted_preparation_leaves_nothing_and_can_be_repeated(tmp_path, interruption):
    folder = tmp_path / "set"

    def interrupted(partial):
        (partial / "half").write_text("half")
        raise interruption

    expected = UserError if isinstance(interruption, OSError) else type(interruption)
    with pytest.raises(expected) as caught:
        prepared.prepare_folder(folder, interrupted)
    if isinstance(interruption, OSError):
        assert "disk is full" in str(caught.value) and str(folder) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [".set.lock"]
    assert set(prepared.prepare_folder(folder, write_x)["files"]) == {"x"}


def test_leavings_of_a_killed_process_are_cleared(tmp_path):
    (tmp_path / ".set.partial").mkdir()
    (tmp_path / ".set.partial" / "half").write_text("half")
    assert set(prepared.prepare_folder(tmp_path / "set", write_x)["files"]) == {"x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set.lock", "set"]


def test_a_full_disk_keeps_the_folder_that_was_there(tmp_path):
    folder = tmp_path / "set"
    prepared.prepare_folder(folder, write_x)
    (folder / "x").write_text("damaged!")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x"))

    with pytest.raises(UserError, match="disk is full at .*/x"):
        prepared.prepare_folder(folder, full)
    assert (folder / "x").read_text() == "damaged!"
    prepared.prepare_folder(folder, write_x)
    assert (folder / "x").read_text() == "content"


def count_builds(folder, log):
    def build(partial):
        with open(log, "a") as file:
            file.write("built\n")
        return write_x(partial)

    prepared.prepare_folder(folder, build)


def test_two_processes_build_one_folder_once(tmp_path):
    spawn = multiprocessing.get_context("fork")
    processes = [
        spawn.Process(target=count_builds, args=(tmp_path / "set", tmp_path / "log")) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "built\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "x").write_text("longer than it was"), "x has 18 bytes where its manifest says 7"),
        (lambda f: (f / "x").unlink(), "x is missing"),
        (lambda f: (f / "x").write_text("CONTENT"), "SHA-256"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
        (lambda f: edit(f, files={"x": 7}), "cannot be read"),
        (lambda f: (f / "manifest.json").write_text("[]"), "cannot be read"),
        (lambda f: (f / "manifest.json").unlink(), "no prepared data set in"),
        (lambda f: edit(f, schema_version=99), "schema version 99"),
        (lambda f: edit(f, files={"../../x": {"bytes": 1, "sha256": ""}}), "outside its folder"),
    ],
)
def test_damage_is_told_in_a_sentence_that_names_the_file(tmp_path, damage, message):
    folder = tmp_path / "set"
    prepared.prepare_folder(folder, write_x)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        prepared.read_manifest(folder, verify=True)
    assert str(folder) in str(caught.value) and "python -m mlperf_jax.prepare" in str(caught.value)


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def test_idx_round_trip_and_refusals():
    array = np.arange(24).reshape(2, 3, 4)
    good = idx(array)
    assert np.array_equal(fashion_mnist.parse_idx(good), array)
    for bad in (b"", good[:3], good[:10], good[:-1], good + b"x", b"\0\0\x09" + good[3:], b"\0\0\x08\0"):
        with pytest.raises(ValueError, match="IDX"):
            fashion_mnist.parse_idx(bad)


@pytest.fixture
def small_fashion(tmp_path, monkeypatch):
    """A stand-in of 12 + 5 images, pinned to itself, in the folder that users fill by hand."""
    random = np.random.default_rng(0)
    counts = {"train": 12, "eval": 5}
    manual = tmp_path / "manual" / "fashion-mnist"
    manual.mkdir(parents=True)
    arrays, files = {}, {}
    for field, pin in fashion_mnist._FILES.items():
        split, kind = field.split("_")
        shape = (counts[split], 28, 28) if kind == "image" else (counts[split],)
        arrays[field] = random.integers(10, size=shape, dtype=np.uint8)
        content = idx(arrays[field])
        (manual / pin.name).write_bytes(gzip.compress(content))
        files[field] = pinned(pin.name, content)
    monkeypatch.setattr(fashion_mnist, "_FILES", files)
    monkeypatch.setattr(fashion_mnist, "_COUNTS", counts)
    monkeypatch.setattr(
        fashion_mnist, "sources", lambda data_dir: [fetch.folder(data_dir / "manual/fashion-mnist")]
    )
    return arrays


def test_fashion_mnist_from_files_to_batches(tmp_path, small_fashion):
    with pytest.raises(UserError, match="no prepared data set"):
        fashion_mnist.open_dataset(tmp_path, {})
    assert "Fashion-MNIST" in fashion_mnist.prepare(tmp_path)
    data = fashion_mnist.open_dataset(tmp_path, {})
    assert data.train_spec == {"image": ((28, 28, 1), np.uint8), "label": ((), np.int32)}
    (batch,) = list(data.eval_batches(batch_size=8, rows=slice(0, 8)))
    assert np.array_equal(batch["image"][:5, ..., 0], small_fashion["eval_image"])
    assert np.array_equal(batch["label"][:5], small_fashion["eval_label"])
    assert batch["mask"].tolist() == [1] * 5 + [0] * 3
    with contextlib.closing(
        data.train_batches(seed=3, batch_size=12, start_step=1, rows=slice(0, 12))
    ) as batches:
        batch = next(batches)
    order = [
        int(np.argmax((small_fashion["train_image"] == image[..., 0]).all((1, 2))))
        for image in batch["image"]
    ]
    assert sorted(order) == list(range(12))
    assert np.array_equal(batch["label"], small_fashion["train_label"][order])


def test_fashion_mnist_without_a_source_says_where_to_put_the_files(tmp_path, small_fashion):
    for path in (tmp_path / "manual" / "fashion-mnist").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="Put its four .gz files into .*manual/fashion-mnist") as caught:
        fashion_mnist.prepare(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "fashion_mnist").exists()


def test_fashion_mnist_array_of_another_shape_is_refused(tmp_path, small_fashion, monkeypatch):
    fashion_mnist.prepare(tmp_path)
    monkeypatch.setitem(fashion_mnist._SPEC, "label", ((2,), np.dtype(np.int32)))
    with pytest.raises(UserError, match="train_label.npy holds int32"):
        fashion_mnist.open_dataset(tmp_path, {})


def test_npm_package_reads_the_tarball_that_npm_leaves(tmp_path, monkeypatch):
    whole = gzip.compress(tar_of(("package/a", b"A"), ("package/../a", b"B"), ("package/link", None)))
    left = {"x@1.2": [whole], "x@9": [], "x@3": [whole[:-20]], "x@4": [b"PK"]}

    def run(command, cwd):
        assert command[:2] == ["npm", "pack"] and "--ignore-scripts" in command
        for i, content in enumerate(left[command[-1]]):
            (cwd / f"x-{i}.tgz").write_bytes(content)
        return b""

    monkeypatch.setattr(fetch, "_run", run)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    scratch = iter(tmp_path / str(i) for i in range(9))

    def read(package, names):
        folder = next(scratch)
        folder.mkdir()
        return fetch.npm_package(package).read(names, folder)

    assert read("x@1.2", ["a"]) == {"a": b"A"}
    for package, names, said in (
        ("x@1.2", ["link"], "has no file link"),
        ("x@9", ["a"], "left no package"),
        ("x@3", ["a"], "damaged"),
        ("x@4", ["a"], "damaged"),
    ):
        with pytest.raises(fetch.SourceError, match=said):
            read(package, names)
    monkeypatch.setattr(fetch, "_MOST_MEMBER_BYTES", 100)
    with pytest.raises(fetch.SourceError, match="unfolds to more"):
        read("x@1.2", ["a"])
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(fetch.SourceError, match="npm is not on this machine"):
        read("x@1.2", ["a"])
