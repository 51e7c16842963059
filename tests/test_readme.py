"""What README.md shows must work: its flags, files, modules and names."""

import importlib.util
import re

import pytest

from mlperf_jax import config as configs
from mlperf_jax import main, prepare, workload
from mlperf_jax.parallel import mesh
from tests import door

README = (door.ROOT / "README.md").read_text()
LINES = re.findall(r"^(?:python -m|\./run_).*$", README, re.MULTILINE)
COMMANDS = [line.split("#")[0].split() for line in LINES]


def test_there_are_commands():
    assert ["./run_and_time.sh", "--workload=resnet50", "--platform=cpu"] in COMMANDS
    assert "./run_tests.sh" in README


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_its_commands_parse(command):
    flags = [word for word in command if word.startswith("--")]
    if "mlperf_jax.prepare" in command:
        known = {name for name in prepare._flag_values()}
        assert {flag.removeprefix("--").partition("=")[0] for flag in flags} <= known
        return
    if command[0] == "python" and command[2] != "mlperf_jax.main":
        assert importlib.util.find_spec(command[2])
        return
    overrides = [flag for flag in flags if flag.startswith("--config.")]
    main._parse([flag for flag in flags if flag not in overrides])
    if main.FLAGS.workload:
        preset = main.FLAGS.preset or configs.default_preset(main.FLAGS.platform)
        configs.resolve(configs.base_config(main.FLAGS.workload, preset), overrides)
        mesh.find_strategy(main.FLAGS.sharding)


def test_flags_that_it_mentions_exist():
    known = {*main.FLAGS, *prepare._flag_values()}
    resolved = {preset: configs.base_config("resnet50", preset).to_dict() for preset in configs.PRESETS}
    for name in re.findall(r"--([a-z_]+(?:\.[a-z_]+)*)", README):
        if name.startswith("config."):
            part = resolved["closed"]
            for key in name.split(".")[1:]:
                assert key in part, name
                part = part[key]
        else:
            assert name in known, name


def test_files_that_it_links_and_lists_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (door.ROOT / path).exists(), path
    architecture = README.partition("## Architecture")[2]
    for path in re.findall(r"^([a-z_]+(?:/[a-z_]+)*(?:/|\.py))\s", architecture, re.MULTILINE):
        assert (door.ROOT / path).exists(), path


def test_every_workload_stands_in_its_table():
    for name in workload.names():
        assert re.search(rf"^\| `{name}` \|", README, re.MULTILINE), name


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README
