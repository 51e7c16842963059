"""Leave-one-out and its negatives against the reference's steps in plain Python, made-up ratings, files."""

import collections

import numpy as np
import pytest

import input_pipelines
from input_pipelines import prepared
from input_pipelines.ratings import interactions, movielens_20m, movielens_100k, tables
from mlperf_jax.errors import UserError


def table(seed=0, users=12, items=60):
    """Ratings in the order of a table, users and items under any names; one user has too few."""
    random = np.random.default_rng(seed)
    rows = []
    for user in random.permutation(1000)[:users]:
        chosen = random.choice(items, 7 if not rows else random.integers(20, 40), replace=False)
        rows += [(user, 500 - item, random.integers(0, 10**6)) for item in chosen]
    return np.array(rows)[random.permutation(len(rows))]


def reference(rows, negatives):
    """convert.py of the reference without pandas: its dictionaries and sets, its random numbers."""
    counts = collections.Counter(row[0] for row in rows.tolist())
    rows = [row for row in rows.tolist() if counts[row[0]] >= 20]
    users, items = (list(dict.fromkeys(row[i] for row in rows)) for i in (0, 1))
    own = collections.defaultdict(list)
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        own[users.index(user)].append(items.index(item))
    random = np.random.RandomState(0)
    positives, drawn = [], []
    for user in range(len(users)):
        positives.append(own[user].pop())
        free = sorted(set(range(len(items))) - set(own[user]))
        drawn.append(sorted(random.choice(free, negatives).tolist()))
    return own, positives, drawn, len(items)


@pytest.mark.parametrize("seed", range(5))
def test_held_out_and_drawn_as_the_reference_does(seed):
    rows = table(seed)
    own, positives, drawn, num_items = reference(rows, 30)
    data = interactions.leave_one_out(*rows.T, 30)
    assert (data.num_users, data.num_items) == (len(positives), num_items) == (11, num_items)
    for user in range(data.num_users):
        assert data.item[data.start[user] : data.start[user + 1]].tolist() == sorted(own[user])
    assert data.positive.tolist() == positives and data.negatives.tolist() == drawn
    assert any(len(set(row)) < len(row) for row in drawn)  # with duplicates, as the rules have it


def test_of_ratings_at_one_time_the_last_in_the_table_is_held_out():
    items = np.arange(20)
    data = interactions.leave_one_out(np.full(20, 7), items, np.repeat([2, 5, 3], [8, 6, 6]), 3)
    assert data.positive.tolist() == [13]


@pytest.mark.parametrize(("ratings", "users", "items"), [(47, 5, 31), (2_000, 13, 200), (40, 2, 64)])
def test_made_up_choices_are_distinct_and_as_many_as_asked(ratings, users, items):
    data = interactions.made_up(ratings, users, items, 9)
    assert len(data.item) + users == ratings and data.num_users == users
    assert data.item.max() < items and data.negatives.shape == (users, 9)
    for user in range(users):
        own = data.item[data.start[user] : data.start[user + 1]]
        assert (np.diff(own) > 0).all() and data.positive[user] not in own
    sizes = np.diff(data.start)
    assert sizes.max() - sizes.min() <= 1


def test_a_table_as_text():
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", "196\t242\t3\t881250949"]
    assert [column.tolist() for column in tables.read(lines, "\t", (0, 1, 3))] == [[196], [242], [881250949]]
    with pytest.raises(ValueError, match="column"):
        tables.read([*lines, "1\t2"], "\t", (0, 1, 3))
    for number in ("nan", "inf", "1e300"):
        with pytest.raises(ValueError, match="too large"):
            tables.read([*lines, f"1\t2\t3\t{number}"], "\t", (0, 1, 3))


def test_movielens_20m_from_its_table(tmp_path, monkeypatch):
    rows = table(users=8)
    for name, count in (("RATINGS", len(rows)), ("USERS", 8), ("ITEMS", len(set(rows[:, 1])))):
        monkeypatch.setattr(movielens_20m, name, count)
    with pytest.raises(UserError, match="get ml-20m.zip"):
        input_pipelines.prepare("movielens_20m", tmp_path)
    path = tmp_path / "ml-20m" / "ratings.csv"
    path.parent.mkdir()
    lines = ["userId,movieId,rating,timestamp", *(f"{u},{i},3.5,{t}" for u, i, t in rows.tolist())]
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match="get the whole file"):
        input_pipelines.prepare("movielens_20m", tmp_path)
    path.write_text("\n".join(lines).replace(",3.5,", ",3.5;", 1))
    with pytest.raises(UserError, match="get it again"):
        input_pipelines.prepare("movielens_20m", tmp_path)
    path.write_text("\n".join(lines))
    assert "7 users" in input_pipelines.prepare("movielens_20m", tmp_path)
    dataset = input_pipelines.open_dataset("movielens_20m", tmp_path, {"negatives": 4})
    expected = interactions.leave_one_out(*rows.T, 999)
    for mine, other in zip(dataset.data[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (dataset.num_train, dataset.num_eval, dataset.fake) == (5 * len(expected.item), 7, False)
    read = dataset.read_eval(np.array([3, 0]), ("user", "positive", "negatives"))
    assert read["user"].tolist() == [3, 0] and read["positive"].tolist() == expected.positive[[3, 0]].tolist()


def test_positions_of_the_order_of_epochs(tmp_path):
    input_pipelines.prepare("movielens_20m", tmp_path, fake=300)
    dataset = input_pipelines.open_dataset("movielens_20m", tmp_path, {"fake": 300, "negatives": 4})
    length = dataset.num_train
    assert dataset.fake and length == 5 * 298 and dataset.data.num_items == 26_744
    batch = dataset.read_train(length - 2, length + 1, 0)
    assert batch["epoch"].tolist() == [0, 0, 1] and batch["offset"].tolist() == [length - 2, length - 1, 0]


def test_a_made_up_set_of_the_real_ones_size_has_its_counts(monkeypatch):
    """20,000,263 ratings would be of all 138,493 users: here by the same formula, at a thousandth."""
    assert 20_000_263 * movielens_20m.USERS // movielens_20m.RATINGS == 138_493
    with pytest.raises(UserError, match="too few ratings"):
        movielens_20m._make_up(1, None)


@pytest.mark.parametrize("sizes", [{}, {"num_train": 5 * 1_003, "num_eval": 10}])
def test_synthetic_choices_have_the_real_ones_shapes(sizes):
    dataset = input_pipelines.open_dataset("movielens_100k", None, {"synthetic": True, **sizes})
    data = dataset.data
    assert data.num_items == 1_682 and data.negatives.shape == (data.num_users, 99) and dataset.fake
    assert (data.num_users, len(data.item)) == ((10, 1_003) if sizes else (943, 99_057))
    for user in range(data.num_users):
        own = data.item[data.start[user] : data.start[user + 1]]
        assert (np.diff(own) > 0).all() and own[0] >= 0 and own[-1] < 1_682
    with pytest.raises(UserError, match="ask for fewer"):
        input_pipelines.open_dataset(
            "movielens_100k", None, {"synthetic": True, "num_train": 10**6, "num_eval": 2}
        )


def test_a_damaged_set_is_told(tmp_path):
    input_pipelines.prepare("movielens_20m", tmp_path, fake=300)
    folder = tmp_path / "movielens_20m_fake_300"
    start = np.load(folder / "train_start.npy")
    np.save(folder / "train_start.npy", start[::-1].copy())
    with pytest.raises(UserError, match="counts do not fit"):
        interactions.load(folder)
    np.save(folder / "train_start.npy", start[:1])
    with pytest.raises(UserError, match="bytes where its manifest says"):
        interactions.load(folder)


def test_the_small_set_has_no_made_up_one(tmp_path):
    with pytest.raises(UserError, match="leave --fake out"):
        movielens_100k.prepare(tmp_path, fake=8)


def test_movielens_100k_has_its_counts():
    """Where it is prepared already."""
    folder = input_pipelines.default_data_dir() / "movielens_100k"
    if not folder.exists():
        pytest.skip("MovieLens-100K is not prepared on this machine")
    data, fake = interactions.load(folder)
    assert not fake and (data.num_users, data.num_items, len(data.item)) == (943, 1682, 99_057)
    assert prepared.read_manifest(folder)["num_negatives"] == 99
