"""Nested dicts, flat."""

from __future__ import annotations

import json

from ml_collections import ConfigDict

from mlperf_jax.nested import flatten, plain, tupled
from mlperf_jax.rounds.objects import flat_texts


def test_dicts_become_dotted_keys_and_lists_stay():
    tree = {"model": {"width": 8, "stages": [1, {"a": 2}], "none": {}}, "seed": None}
    assert flatten(tree) == {"model.width": 8, "model.stages": [1, {"a": 2}], "seed": None}
    assert list(flatten({"b": {"z": 1, "a": 2}, "a": 3})) == ["b.z", "b.a", "a"]


def test_a_config_is_updated_by_what_was_flattened():
    config = ConfigDict({"model": {"width": 8, "depth": {"of": 2}}})
    config.update_from_flattened_dict(flatten({"model": {"depth": {"of": 3}}}))
    assert flatten(config.to_dict()) == {"model.width": 8, "model.depth.of": 3}


def test_tuples_within_tuples_survive_json():
    """A model's stages, as a run keeps them: served with lists inside, no value that a user gives was of their type."""
    stages = ((1, 16, 1, 1), (2, 24, 1, 2))
    assert tupled(json.loads(json.dumps(plain(stages)))) == stages
    assert tupled({"a": [1]}) == {"a": [1]} and tupled("ab") == "ab" and tupled([]) == ()


def test_texts_of_an_object_go_into_lists_and_leave_out_what_says_nothing():
    record = {
        "nodes": [{"cpu": " Xeon\n Gold ", "gpu": "N/A"}],
        "power": None,
        "count": 2,
        "many": [*range(1, 300)],
    }
    texts = flat_texts(record)
    assert texts[:2] == (("nodes.0.cpu", "Xeon Gold"), ("count", "2"))
    assert len(texts) == 202 and texts[-1] == ("many.199", "200")
