"""Label budgets as numbers of images, groups that stay together, and folds."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.configs import data_config, rgb_config
from helpers.sources import make_source
from tutelage.data import UNKNOWN, fingerprint, split
from tutelage.data.datasets.image_files import LISTINGS, image_files
from tutelage.data.files.group_names import find_group_names
from tutelage.data.groups import GroupedImages
from tutelage.errors import UserError
from tutelage.randomness import Key

SEEDS, FEW = st.integers(0, 99), 20
class_sizes = st.lists(st.integers(12, 40), min_size=2, max_size=6)


def make_grouped(sizes, test, unlabelled, group_count, seed):
    """Return a source of ``group_count`` groups, in each of which there are a few classes; the test set has its own."""
    source = make_source(np.repeat(np.arange(len(sizes)), sizes), test, unlabelled)
    groups = np.random.default_rng(seed).integers(0, group_count, len(source.labels)).astype(np.int32)
    groups[source.test] += group_count
    groups[source.unlabelled[::2]] = UNKNOWN
    return replace(source, groups=groups)


grouped_sources = st.builds(
    make_grouped, class_sizes, st.sampled_from([0, 9]), st.integers(0, 20), st.integers(8, 60), SEEDS
)
group_budgets = st.sampled_from([{}, {"labels": 9}, {"labels": 20}, {"labels": "30%"}, {"labels_per_class": 3}])


def split_or_skip(source, **changes):
    """Return the splits; skip an example of too few images or groups, which is refused."""
    try:
        return split(source, data_config(**changes))
    except UserError as error:
        assume(not any(reason in str(error) for reason in ("too few", "no group", "outside the", "labels_per_class=")))
        raise


@given(class_sizes, st.integers(1, 60), SEEDS)
def test_a_number_of_labels_is_exact_and_shared_out_in_proportion_to_the_classes(sizes, count, seed):
    count = min(count, sum(sizes))
    source = make_source(np.repeat(np.arange(len(sizes)), sizes), 3, 0)
    counts = np.bincount(
        source.labels[split(source, data_config(labels=count, split_seed=seed)).labelled], minlength=len(sizes)
    )
    assert counts.sum() == count
    if count >= len(sizes):
        assert counts.min() >= 1
    # Webster: with one divisor, each class has its size divided by it, rounded
    pairs = list(zip(counts.tolist(), sizes, strict=True))
    at_most = min(Fraction(2 * n + 1, 2 * size) for n, size in pairs if n)
    assert all(Fraction(2 * n - 1, 2 * size) <= at_most for n, size in pairs if n > 1)


@given(class_sizes, st.integers(1, 60), st.integers(1, 60), SEEDS)
def test_a_smaller_number_of_labels_is_a_part_of_a_larger_one(sizes, first, second, seed):
    source = make_source(np.repeat(np.arange(len(sizes)), sizes), 3, 0)
    counts = sorted(min(count, sum(sizes)) for count in (first, second))
    small, large = (set(split(source, data_config(labels=count, split_seed=seed)).labelled) for count in counts)
    assert small <= large


def test_more_labels_than_there_are_images_is_an_error():
    with pytest.raises(UserError, match=r"data.labels=25: there are 24 training images; give fewer, or a share"):
        split(make_source(np.repeat([0, 1], 12), 3, 0), data_config(labels=25))


def test_a_limit_below_the_number_of_labels_leaves_some_images_without():
    parts = split(make_source(np.repeat([0, 1], 100), 90, 0), data_config(labels=80, limit=60))
    assert (len(parts.labelled), len(parts.pool), len(parts.test)) == (30, 30, 60)


@settings(max_examples=FEW)
@given(grouped_sources, group_budgets, st.sampled_from(["none", "inside", "outside:8"]), SEEDS)
def test_no_group_is_torn_between_splits(source, budget, validation, seed):
    parts = split_or_skip(source, **budget, validation=validation, split_seed=seed)
    together = np.concatenate([parts.labelled, parts.validation, parts.test, parts.pool])
    assert len(np.unique(together)) == len(together)
    pool = np.setdiff1d(parts.pool, source.unlabelled)
    groups = [set(source.groups[part]) for part in (parts.labelled, parts.validation, parts.test, pool)]
    assert len(set.union(*groups)) == sum(map(len, groups))
    pooled = set(source.groups[parts.pool]) - {UNKNOWN}
    assert not pooled & (groups[1] | groups[2])
    left_out = len(source.labels) - len(together)
    assert [note for note in parts.notes if "not in the pool" in note] == (
        [f"{left_out} unlabelled images are not in the pool: their groups are in the test or validation set"]
        if left_out
        else []
    )


@settings(max_examples=FEW)
@given(grouped_sources, st.sampled_from(["labels_per_class", "labels", "%"]), st.integers(1, 12), st.integers(1, 12))
def test_groups_of_a_smaller_budget_are_among_those_of_a_larger_one(source, kind, first, second):
    def draw(count):
        return split_or_skip(source, **({"labels": f"{8 * count}%"} if kind == "%" else {kind: count}))

    small, large = (set(draw(count).labelled) for count in sorted((first, second)))
    assert small <= large


def test_whole_groups_are_labelled_until_the_budget_is_reached_and_their_number_is_said():
    source = make_grouped([30, 30], 9, 0, 12, 1)
    parts = split(source, data_config(labels=20))
    groups = len(set(source.groups[parts.labelled]))
    assert len(parts.labelled) >= 20
    assert parts.notes == (f"labelled: {len(parts.labelled)} images of {groups} groups (data.labels=20 asks for 20)",)
    (note,) = split(source, data_config(labels_per_class=4)).notes
    assert note.endswith("(data.labels_per_class=4 asks for 8)")


def test_a_draw_of_groups_is_as_large_and_as_stratified_as_asked():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), rng.integers(1, 20, 100))
    labels = np.where(rng.random(len(groups)) < 0.7, groups % 5, rng.integers(0, 5, len(groups)))
    images = GroupedImages(np.arange(len(labels)), labels, groups)
    for seed in range(3):
        counts = np.bincount(labels[images.draw(len(labels) // 5, Key(seed, "x"))])
        assert abs(counts.sum() / len(labels) - 0.2) < 0.01
        assert np.abs(counts / np.bincount(labels) - 0.2).max() < 0.03


@given(class_sizes, st.integers(2, 10), SEEDS)
def test_folds_partition_the_training_images_in_proportion_whatever_the_seed(sizes, folds, seed):
    source = make_source(np.repeat(np.arange(len(sizes)), sizes), 0, 5)
    tests = [split(source, data_config(folds=folds, fold=fold, split_seed=seed)).test for fold in range(folds)]
    assert np.sort(np.concatenate(tests)).tolist() == source.train.tolist()
    counts = np.array([np.bincount(source.labels[test], minlength=len(sizes)) for test in tests])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1
    assert (split(source, data_config(folds=folds, fold=0, split_seed=seed + 1)).test == tests[0]).all()


@settings(max_examples=FEW)
@given(class_sizes, st.integers(20, 60), st.integers(2, 4), SEEDS)
def test_folds_keep_groups_whole(sizes, group_count, folds, seed):
    source = make_grouped(sizes, 0, 0, group_count, seed)
    try:
        parts = [split(source, data_config(folds=folds, fold=fold)) for fold in range(folds)]
    except UserError as error:
        assume("fewer groups than folds" not in str(error))
        raise
    assert np.sort(np.concatenate([each.test for each in parts])).tolist() == source.train.tolist()
    for each in parts:
        assert set(source.groups[each.labelled]).isdisjoint(source.groups[each.test])
        assert len(each.labelled) + len(each.test) == len(source.train)


def test_folds_of_groups_are_about_as_even_as_those_of_scikit_learn():
    from sklearn.model_selection import StratifiedGroupKFold

    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(60), rng.integers(1, 20, 60))
    labels = np.where(rng.random(len(groups)) < 0.7, groups % 4, rng.integers(0, 4, len(groups)))

    def unevenness(folds):
        shares = np.array([np.bincount(labels[fold], minlength=4) / np.bincount(labels) for fold in folds])
        return np.abs(shares - 0.2).max()

    theirs = [test for _, test in StratifiedGroupKFold(5).split(labels, labels, groups)]
    ours = GroupedImages(np.arange(len(labels)), labels, groups).deal(5, Key(0, "x"))
    assert unevenness(ours) < 1.5 * unevenness(theirs)


def test_folds_that_the_data_cannot_give_are_an_error():
    with pytest.raises(UserError, match=r"data.folds=5: Digits has a test set of its own, and folds are for data"):
        split(make_source(np.repeat([0, 1], 12), 3, 0), data_config(folds=5, fold=0))
    source = make_source(np.array([0] * 9 + [1] * 4), 0, 0)
    with pytest.raises(UserError, match=r"data.folds=5: fewer images than folds: class 'b' has 4; give fewer folds"):
        split(source, data_config(folds=5, fold=0))
    grouped = replace(source, groups=np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 1, 1], dtype=np.int32))
    with pytest.raises(UserError, match=r"data.folds=3: fewer groups than folds: class 'b' has 2"):
        split(grouped, data_config(folds=3, fold=0))


def test_one_group_a_class_gives_no_test_set():
    source = replace(make_source(np.repeat([0, 1], 9), 0, 0), groups=np.repeat([0, 1], 9).astype(np.int32))
    with pytest.raises(UserError, match="no group can be set aside for a test set, as each has all images of a class"):
        split(source, data_config())


def test_given_splits_that_share_a_group_are_an_error():
    source = make_grouped([12, 12], 9, 0, 8, 0)
    groups = source.groups.copy()
    groups[source.test[:2]] = groups[source.train[0]]
    with pytest.raises(
        UserError, match=r"^groups that are in train and in test .1., such as that of \d+ and 24; put each into"
    ):
        split(replace(source, groups=groups), data_config())
    further = replace(source, further_tests={"night": source.train[:1]}, train=source.train[1:])
    with pytest.raises(UserError, match="groups that are in train and in test-night"):
        split(further, data_config())
    with pytest.raises(UserError, match=r"data.group=p: MyData.read\(\) returns a Source without groups; set it to"):
        split(replace(source, groups=None), data_config(_target_="my.MyData", group="p"))


def write_patients(root):
    """Write images of two classes in ``root``, of patients p0 to p4, and one that is not labelled of each of two."""
    for number in range(10):
        for label in ("a", "b"):
            folder = root / label
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"p{number // 2}-{number}.png")
    (root / "unlabelled").mkdir()
    for name in ("p1-x", "other"):
        Image.new("RGB", (8, 8)).save(root / "unlabelled" / f"{name}.png")


def read(config):
    return image_files(LISTINGS[config.target.rpartition(".")[2]](config), config)


def test_a_part_of_the_path_is_the_group(tmp_path):
    write_patients(tmp_path)
    folder = dict(_target_="tutelage.data.ImageFolder", root=str(tmp_path))
    source = read(rgb_config(**folder, group="p([0-9])-"))
    expected = [name.split("/p")[1][0] if "/p" in name else None for name in map(str, source.names)]
    assert expected.count(None) == 1
    assert [len({expected[i] for i in np.flatnonzero(source.groups == g)}) for g in range(5)] == [1] * 5
    assert source.groups.dtype == np.int32
    assert [source.groups[i] for i in source.unlabelled if "other" in source.names[i]] == [UNKNOWN]
    whole = read(rgb_config(**folder, group="p[0-9]"))
    assert (whole.groups == source.groups).all()
    message = r"data.group=p\[0-3\]: 4 labelled images whose path has no match: a/p4-8.png, a/p4-9.png, b/p4-8"
    with pytest.raises(UserError, match=message):
        fingerprint(rgb_config(**folder, group="p[0-3]"))


def test_a_column_of_a_table_is_the_group(tmp_path):
    write_patients(tmp_path / "images")
    rows = [f"images/{c}/p{n // 2}-{n}.png,{c},00{n // 2}" for c in "ab" for n in range(10)]
    table = tmp_path / "list.csv"
    config = rgb_config(_target_="tutelage.data.Table", root=str(table), group="patient id")
    table.write_text("\n".join(["path,label,patient id", *rows, "images/unlabelled/other.png,,"]))
    listing = LISTINGS["Table"](config)
    table.rename(tmp_path / "moved")
    assert find_group_names(listing, config) == [*[f"00{n // 2}" for n in range(10)] * 2, None]  # parsed once
    (tmp_path / "moved").rename(table)
    source = read(config)
    assert source.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] * 2 + [UNKNOWN]
    assert "data.group=patient id: 5 groups of 20 labelled images; 1 unlabelled images have no group" in source.notes
    before = fingerprint(config)
    table.write_text(table.read_text().replace(",b,004", ",b,003"))
    assert fingerprint(config) != before
    table.write_text(table.read_text().replace(",b,003", ",b,"))
    with pytest.raises(
        UserError, match=r"data.group=patient id: 4 labelled images whose row has no value there: images"
    ):
        read(config)
    with pytest.raises(
        UserError, match=r"data.group=person: .*list.csv has no such column, and 20 labelled .* no match"
    ):
        read(config.model_copy(update={"group": "person"}))
    with pytest.raises(UserError, match=r"data.group=\(: no column of the table, and no regular expression"):
        read(config.model_copy(update={"group": "("}))
