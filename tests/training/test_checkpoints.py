"""Checkpoints: written by one process, read by another, damaged, of another model, without room."""

import asyncio
import gc
import logging
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.training import digests
from mlperf_jax.training.checkpoints import Checkpoints, Position
from tests import door


def make_state(n: int) -> dict:
    return {
        "step": jnp.int32(n),
        "params": {"w": jax.random.normal(jax.random.key(n), (40, 30)), "b": jnp.arange(3.0) * n},
        "opt_state": ({"m": jnp.full((3,), n, jnp.bfloat16)}, None),
    }


def position(n: int) -> Position:
    return Position(step=n, epoch=n // 4, example=n % 4, log_position=10 * n)


def struct(state: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("checkpoints") / "c"
    written = Checkpoints(folder)
    for step in (4, 8):
        written.save(make_state(step), position(step))
    written.wait()
    written.close()
    return folder


def opened(folder, read):
    checkpoints = Checkpoints(folder)
    try:
        return read(checkpoints)
    finally:
        checkpoints.close()


def both(checkpoints: Checkpoints) -> tuple:
    return checkpoints.position(), checkpoints.restore(struct(make_state(0)))


def assert_holds(found: tuple, step: int) -> None:
    assert found[0] == position(step)
    jax.tree.map(np.testing.assert_array_equal, found[1], make_state(step))
    assert jax.tree.map(lambda x: x.dtype, found[1]) == jax.tree.map(lambda x: x.dtype, make_state(step))


def test_what_one_process_wrote_another_reads(two):
    """A manager that has saved nothing itself, as after a restart."""
    assert_holds(opened(two, both), 8)


def test_an_empty_folder_has_no_position(tmp_path):
    assert opened(tmp_path / "new", Checkpoints.position) is None


def test_the_newest_are_kept_and_a_step_is_saved_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 2, 3):
        checkpoints.save(make_state(step), position(step))
    checkpoints.wait()
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]
    assert_holds(opened(tmp_path, both), 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s["params"].update(w=jnp.zeros((40, 31))),
            r"params\.w is float32\[40, 30\] in it and float32\[40, 31\]",
        ),
        (
            lambda s: s["params"].update(b=jnp.zeros(3, jnp.float16)),
            r"params\.b is float32\[3\] in it and float16\[3\] here",
        ),
        (
            lambda s: s["params"].update(new=jnp.zeros(2)),
            r"params\.new is not there in it and float32\[2\] here",
        ),
        (lambda s: s["params"].pop("b"), r"params\.b is float32\[3\] in it and not there here"),
    ],
)
def test_another_model_is_refused_with_the_difference_named(two, change, said):
    state = make_state(0)
    change(state)
    with pytest.raises(UserError, match=rf"8 holds another model: {said}") as caught:
        opened(two, lambda c: c.restore(struct(state)))
    assert "another --results_dir" in str(caught.value)


def test_another_layout_is_no_other_model(two):
    if jax.device_count() < 2:
        pytest.skip("one device")
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    asked = struct(make_state(0))
    asked["params"]["w"] = jax.ShapeDtypeStruct((40, 30), jnp.float32, sharding=split)
    restored = opened(two, lambda c: c.restore(asked))
    assert restored["params"]["w"].sharding == split
    np.testing.assert_array_equal(restored["params"]["w"], make_state(8)["params"]["w"])


def test_a_damaged_one_is_set_aside_and_the_one_before_taken(two, tmp_path, capfd):
    """Each file of the newest cut, removed and overwritten: a sentence, and never other numbers."""
    for file in sorted(p.relative_to(two) for p in (two / "8").rglob("*") if p.is_file()):
        for how in ("cut", "removed", "overwritten"):
            folder = tmp_path / "c"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(two, folder)
            data = (folder / file).read_bytes()
            if how == "removed":
                (folder / file).unlink()
            else:
                (folder / file).write_bytes(
                    data[: len(data) // 2] if how == "cut" else bytes(255 - b for b in data)
                )
            shutil.rmtree(tmp_path / "damaged_8", ignore_errors=True)
            assert_holds(opened(folder, both), 4)
            said = capfd.readouterr().err
            assert f"the checkpoint of step 8 is damaged ({folder / '8'}: " in said, (file, how, said)
            assert f"now in {tmp_path / 'damaged_8'}); that of step 4 is taken." in said
            assert (tmp_path / "damaged_8").is_dir() and not (folder / "8").exists()


def test_no_flipped_bit_goes_unseen(two, tmp_path, capfd):
    random = np.random.default_rng(0)
    files = [p.relative_to(two) for p in sorted((two / "8").rglob("*")) if p.is_file() and p.stat().st_size]
    for _ in range(60):
        folder = tmp_path / "c"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(two, folder)
        file = folder / files[random.integers(len(files))]
        data = bytearray(file.read_bytes())
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        file.write_bytes(data)
        found = opened(folder, both)
        assert found[0] == position(4) and "step 8 is damaged" in capfd.readouterr().err, file


def test_reading_leaves_a_damaged_one_where_it_is(two, tmp_path, capfd):
    folder = tmp_path / "c"
    shutil.copytree(two, folder)
    (folder / "8" / "digests.json").unlink()
    checkpoints = Checkpoints(folder, read_only=True)
    assert checkpoints.position() == position(4) and (folder / "8").is_dir()
    checkpoints.close()
    assert "digests.json is missing: it was not finished" in capfd.readouterr().err


def test_where_all_are_damaged_there_is_none(two, tmp_path, capfd):
    folder = tmp_path / "c"
    shutil.copytree(two, folder)
    for step in ("4", "8"):
        (folder / step / "position" / "metadata").write_text("{}")
    assert opened(folder, Checkpoints.position) is None
    assert capfd.readouterr().err.endswith("there is none before it.\n")


def test_without_the_damaged_one_the_one_before_is_read(two, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(two, folder)
    shutil.rmtree(folder / "8")
    assert_holds(opened(folder, both), 4)


def test_a_half_written_checkpoint_is_passed_over(two, tmp_path):
    """What a killed process leaves: the files of a step, under the name of a temporary."""
    folder = tmp_path / "c"
    shutil.copytree(two, folder)
    (folder / "8").rename(folder / "8.orbax-checkpoint-tmp")
    assert_holds(opened(folder, both), 4)


def test_an_unknown_schema_is_refused(two, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(two, folder)
    metadata = folder / "8/position/metadata"
    metadata.write_text(metadata.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    digests.seal(folder / "8")
    with pytest.raises(UserError, match="8 has schema_version 2 and this version reads 1"):
        opened(folder, Checkpoints.position)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/c.*another --results_dir"):
        Checkpoints(tmp_path / "file" / "c")


def test_a_full_disk_is_a_sentence_and_leaves_the_earlier_checkpoint(tmp_path):
    """Files may not outgrow 100 kB from the second checkpoint on, which would be 7 MB."""
    script = """
import pathlib, resource, sys
import jax
from mlperf_jax.errors import UserError
from mlperf_jax.training import digests
from mlperf_jax.training.checkpoints import Checkpoints
from tests.training.test_checkpoints import both, make_state, position, assert_holds, opened
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
checkpoints.save(make_state(4), position(4))
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    big = {f"w{i}": jax.random.normal(jax.random.key(i), (300, 300)) for i in range(20)}
    checkpoints.save(big, position(8))
    checkpoints.wait()
except UserError as error:
    print(error)
checkpoints.close()
assert_holds(opened(pathlib.Path(sys.argv[1]), both), 4)
print("whole")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c")],
        env=door.environment(JAX_PLATFORMS="cpu"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    sentence, whole = done.stdout.splitlines()
    assert (
        f"A checkpoint in {tmp_path / 'c'} could not be written" in sentence and "File too large" in sentence
    )
    assert "free space" in sentence and whole == "whole"
    assert "Traceback" not in done.stderr  # Orbax logs pages of it


def test_what_cannot_be_written_does_not_speak_over_what_ended_the_run(tmp_path, monkeypatch):
    """A run that ends early closes its checkpoints while the newest is being written, and fails."""

    def full():
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(checkpoints._manager, "close", full)
    checkpoints._sealing = checkpoints._sealer.submit(checkpoints._seal, 4)  # waits for what never comes
    checkpoints.close()
    assert checkpoints._sealing.done()


def test_what_tensorstore_could_not_write_goes_unsaid(two):
    opened(two, Checkpoints.position)
    record = logging.LogRecord(
        "asyncio", logging.ERROR, "", 0, "Future exception was never retrieved", None, None
    )
    record.exc_info = (ValueError, ValueError("RESOURCE_EXHAUSTED: ... [tensorstore_spec='{\"x\":1}']"), None)
    assert not logging.getLogger("asyncio").filter(record)
    record.exc_info = (ValueError, ValueError("another"), None)
    assert logging.getLogger("asyncio").filter(record)


def test_only_what_orbax_left_unawaited_goes_unsaid(two, caplog):
    """Whether asyncio gets to log it is a race within Orbax; here it surely does."""
    opened(two, Checkpoints.position)

    def leave(filename: str) -> None:
        scope = {}
        exec(
            compile("async def fail(): raise ValueError(filename)", filename, "exec"),
            {"filename": filename},
            scope,
        )

        async def abandon() -> None:
            asyncio.ensure_future(scope["fail"]())
            await asyncio.sleep(0)

        asyncio.run(abandon())
        gc.collect()

    leave("/lib/orbax/checkpoint/serialization.py")
    leave("/lib/other/serialization.py")
    assert [str(record.exc_info[1]) for record in caplog.records if record.name == "asyncio"] == [
        "/lib/other/serialization.py"
    ]
