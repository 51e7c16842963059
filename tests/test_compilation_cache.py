"""Compiled programs on disk: what a second command finds, and that nothing wrong with the files changes a run."""

import json
import os
import stat
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mlperf_jax import compilation_cache
from mlperf_jax.compilation_cache import Files
from mlperf_jax.results import summary
from tests import door

TOY = ("--workload=tests.toys:SmallResNet", "--platform=cpu", "--config.max_epochs=1", "--seed=5")


def train(folder, name, *more, **environment):
    """Trains a toy: (its evaluations and its last state, its `compile_time` event, what it said)."""
    results = folder / name
    done = door.run(
        folder,
        *TOY,
        f"--results_dir={results}",
        *more,
        JAX_COMPILATION_CACHE_DIR="",
        **door.LIGHTLY,
        **environment,
    )
    assert done.returncode in (0, 1), done.stderr
    told = door.events_of(results)
    (compiled,) = [event for event in told if event.key == "compile_time"]
    states = (door.run_folder(results) / "checkpoints").glob("*/state")
    state = ocp.PyTreeCheckpointer().restore(max(states, key=lambda path: int(path.parent.name)))
    arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    return (door.values(told, "eval_accuracy"), arrays), compiled, done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained_twice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twice")
    kept = {"XDG_CACHE_HOME": str(folder / "kept")}
    return folder, train(folder, "first", **kept), train(folder, "second", **kept)


def test_the_second_command_compiles_nothing_and_trains_alike(trained_twice):
    folder, (before, first, said_first), (after, second, said_second) = trained_twice
    names = list(first.metadata["seconds"])
    assert {"init", "train_step", "eval_step"} <= set(names)
    assert first.metadata["cached"] == [] and second.metadata["cached"] == names
    assert before == after and all(before)
    assert f"0 of {len(names)} programs kept from before; training" in said_first
    assert f"{len(names)} of {len(names)} programs kept from before; training" in said_second
    assert f"with {len(names)} of {len(names)} programs kept from before)" in said_second
    assert summary.summarize(door.logs(folder / "second")[0]).cached == f"{len(names)} of {len(names)}"


def test_its_folder_is_its_owners_alone(trained_twice):
    kept = trained_twice[0] / "kept" / "mlperf_jax" / "xla"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert all(path.name.endswith(".program") for path in kept.iterdir())


def test_without_it_and_with_damaged_files_a_run_is_the_same(trained_twice):
    folder, (figures, _, _), _ = trained_twice
    off, compiled, said = train(
        folder, "off", "--compilation_cache=none", XDG_CACHE_HOME=str(folder / "unused")
    )
    assert off == figures and "cached" not in compiled.metadata and "kept from before" not in said
    assert not (folder / "unused" / "mlperf_jax" / "xla").exists()

    kept = folder / "kept" / "mlperf_jax" / "xla"
    for i, path in enumerate(sorted(kept.iterdir())):
        content = bytearray(path.read_bytes())
        if i % 2:
            content[len(content) // 2] ^= 1
        path.write_bytes(content if i % 2 else content[: len(content) // 2])
    again, compiled, said = train(folder, "again", f"--compilation_cache={kept}")
    assert again == figures and compiled.metadata["cached"] == [] and "Warning" not in said


PROBE = """
import json, sys
from mlperf_jax import compilation_cache, platform
platform.configure("cpu", cpu_devices=int(sys.argv[2]))
compilation_cache.use(sys.argv[1])
import jax, jax.numpy as jnp
def f(x):
    return jnp.sin(x) @ x
found = []
for precision in sys.argv[3:]:
    before = compilation_cache.found()
    jax.clear_caches()
    x = jax.ShapeDtypeStruct((8, 8), precision)
    jax.jit(f).lower(x).compile()
    found.append(compilation_cache.found() - before)
print(json.dumps(found))
"""


def probe(folder, devices, *precisions, flags=""):
    """How many of each precision's programs were found, and what was said."""
    command = [sys.executable, "-c", PROBE, str(folder), str(devices), *precisions]
    done = subprocess.run(
        command, env=door.environment(XLA_FLAGS=flags), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), done.stderr


def test_a_program_is_found_only_by_what_compiles_alike(tmp_path):
    """Devices, precision and flags of the compiler each part what is kept."""
    assert probe(tmp_path, 1, "float32", "float32", "bfloat16")[0] == [0, 1, 0]
    assert probe(tmp_path, 1, "float32", "bfloat16")[0] == [1, 1]
    assert probe(tmp_path, 2, "float32")[0] == [0]
    assert probe(tmp_path, 1, "float32", flags=door.LIGHT_FLAGS)[0] == [0]
    assert probe(tmp_path, 1, "float32", flags="--xla_cpu_enable_fast_math=true")[0] == [0]


def test_where_nothing_can_be_kept_one_line_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    found, said = probe(tmp_path / "file" / "xla", 1, "float32", "bfloat16", "float32")
    assert found == [0, 0, 0]
    assert said.count("\n") == 1 and "Not a directory" in said and "--compilation_cache=none none" in said


# The files.


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    files = Files(tmp_path / "new" / "folder")
    assert files.get("key") is None
    files.put("key", b"content" * 100)
    assert files.get("key") == b"content" * 100
    (path,) = files.folder.iterdir()
    for damaged in (b"", path.read_bytes()[:-1], path.read_bytes()[:40], b"x" + path.read_bytes()[1:]):
        path.write_bytes(damaged)
        assert files.get("key") is None and not path.exists()
    files.put("key", b"better")
    assert Files(files.folder).get("key") == b"better"
    monkeypatch.setattr(compilation_cache, "_processor", lambda: "another")
    assert files.get("key") is None


def test_a_full_disk_is_told_once_and_leaves_nothing_half(tmp_path, monkeypatch, capsys):
    files = Files(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    files.put("one", b"1")
    files.put("two", b"2")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    (tmp_path / "notes.txt").write_text("not ours" * 1000)
    files = Files(tmp_path, most_bytes=400)
    for age, name in enumerate("abc"):
        files.put(name, bytes(100))
        (path,) = tmp_path.glob(f"{name}-*")
        os.utime(path, ns=(age, age))
    assert files.get("a") is not None  # used now: b is the oldest
    files.put("d", bytes(100))
    assert {name for name in "abcd" if files.get(name)} == {"a", "c", "d"}
    files.put(
        "large", bytes(1000)
    )  # kept, of a program larger than all the room there is nothing better to do
    assert files.get("a") is None and (tmp_path / "notes.txt").exists()


def test_where_it_is_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compilation_cache.user_folder() == tmp_path / "mlperf_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compilation_cache.user_folder() == tmp_path / ".cache" / "mlperf_jax"
