"""Which pool images a student trains on: small examples, and a plain reference implementation."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data import Labels, LabelStore, Rules, Selection, read_labels, select
from tutelage.data.pseudo_labels import selection

PROBABILITIES = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.55, 0.45], [0.8, 0.2]], dtype=np.float32)


def select_by(**rules) -> Selection:
    return select(Labels.from_array(PROBABILITIES), Rules(**rules))


def test_balance_keeps_the_most_confident_images_and_duplicates_those_of_rare_classes():
    selected = select_by()
    # six predictions of two classes: three entries each. Class 0: images 0, 5, 3. Class 1: image 2, three times.
    assert selected.entries.tolist() == [0, 5, 3, 2, 2, 2]
    assert selected.copies.tolist() == [0, 0, 0, 0, 1, 2]
    assert (np.asarray(selected.targets) == PROBABILITIES[selected.entries]).all()


def test_per_class_sets_the_number_of_entries_of_each_class():
    selected = select_by(per_class=2)
    assert selected.entries.tolist() == [0, 5, 2, 2]
    assert selected.copies.tolist() == [0, 0, 0, 1]


def test_the_confidence_filter_is_applied_before_balancing():
    assert select_by(confidence=0.65).entries.tolist() == [0, 5, 2, 2]


def test_without_balance_each_confident_image_is_selected_once():
    selected = select_by(balance=False, confidence=0.58)
    assert selected.entries.tolist() == [0, 1, 2, 3, 5]
    assert not selected.copies.any()


def test_entries_in_order_are_the_same_entries():
    selected = select_by(in_order=True)
    assert selected.entries.tolist() == [0, 2, 2, 2, 3, 5]
    assert selected.copies.tolist() == [0, 0, 1, 2, 0, 0]
    assert (selected.targets[np.array([1, 5])] == PROBABILITIES[[2, 5]]).all()


def test_of_equally_confident_images_the_first_are_selected():
    selected = select(Labels.from_array(np.tile(np.float32([0.5, 0.25, 0.25]), (9, 1))), Rules(per_class=4))
    assert selected.entries.tolist() == [0, 1, 2, 3]


def test_hard_labels_are_the_predicted_classes():
    targets = np.asarray(select_by(hard=True, balance=False).targets)
    assert targets.tolist() == [[1, 0], [1, 0], [0, 1], [1, 0], [1, 0], [1, 0]]


def test_a_temperature_of_two_takes_square_roots_of_the_probabilities():
    targets = select_by(balance=False, temperature=2.0).targets
    # 0.9 and 0.1 are 9 to 1, their roots 3 to 1
    assert targets[np.array([0])][0].tolist() == pytest.approx([0.75, 0.25])


def test_a_confidence_that_no_image_reaches_selects_nothing():
    for balance in (True, False):
        selected = select_by(confidence=0.99, balance=balance)
        assert len(selected.entries) == len(selected.copies) == len(selected.targets) == 0


def reference(probabilities: np.ndarray, rules: Rules) -> list[tuple[int, int]]:
    """Apply the rules in plain Python, image by image, and return sorted pairs of entry and copy."""
    confident = [(float(row.max()), entry, int(row.argmax())) for entry, row in enumerate(probabilities)]
    confident = [row for row in confident if row[0] >= np.float32(rules.confidence)]
    if not rules.balance:
        return sorted((entry, 0) for _, entry, _ in confident)
    per_class = rules.per_class or max(1, round(len(confident) / probabilities.shape[1]))
    pairs = []
    for c in {prediction for _, _, prediction in confident}:
        members = sorted((-confidence, entry) for confidence, entry, prediction in confident if prediction == c)
        pairs += [(members[number % len(members)][1], number // len(members)) for number in range(per_class)]
    return sorted(pairs)


@given(
    st.integers(1, 60),
    st.integers(2, 6),
    st.integers(0, 99),
    st.floats(0, 0.99),
    st.booleans(),
    st.none() | st.integers(1, 40),
    st.booleans(),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([7, 1 << 20]),
)
def test_a_selection_follows_the_rules_and_only_them(
    count, classes, seed, confidence, balance, per_class, hard, temperature, at_once
):
    probabilities = np.random.default_rng(seed).dirichlet(np.full(classes, 0.5), count).astype(np.float32)
    probabilities = np.round(probabilities, 1)  # so that there are equals
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    rules = Rules(confidence, balance, per_class, hard, temperature)
    labels = Labels.from_array(probabilities)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "CHUNK_SIZE", at_once)
        selected, again = select(labels, rules), select(labels, rules)
        in_order = select(labels, Rules(confidence, balance, per_class, hard, temperature, in_order=True))
    assert (selected.entries == again.entries).all()
    assert (selected.copies == again.copies).all()
    expected = reference(probabilities, rules)
    pairs = list(zip(selected.entries.tolist(), selected.copies.tolist(), strict=True))
    assert sorted(pairs) == expected
    assert len(set(pairs)) == len(pairs)  # no draw twice
    assert list(zip(in_order.entries.tolist(), in_order.copies.tolist(), strict=True)) == expected
    assert selected.count_uses(count).tolist() == np.bincount(selected.entries, minlength=count).tolist()
    targets = selected.targets[np.arange(len(pairs))]
    assert targets.dtype == np.float32
    assert targets.shape == selected.targets.shape == (len(pairs), classes)
    if hard:
        assert (targets.argmax(axis=1) == probabilities.argmax(axis=1)[selected.entries]).all()
        assert sorted(set(targets.ravel().tolist())) in ([], [0.0, 1.0])
    else:
        with np.errstate(divide="ignore"):
            logits = np.log(probabilities[selected.entries].astype(float)) / temperature
        expected_targets = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert targets == pytest.approx(expected_targets, abs=1e-5)


def test_targets_travel_by_the_path_of_their_labels(tmp_path):
    count, classes = 5_000, 20
    probabilities = np.random.default_rng(0).dirichlet(np.full(classes, 0.5), count).astype(np.float32)
    store = LabelStore(tmp_path, count, classes, {})
    for shard in store.missing:
        first, last = store.bounds(shard)
        store.write(shard, probabilities[first:last])
    labels = read_labels(tmp_path)
    assert len(labels.predictions) == count
    targets = select(labels, Rules(confidence=0.6)).targets
    sent = pickle.dumps(targets)
    assert len(sent) < 4_000  # neither the probabilities nor what was noted of all of them
    assert 4 < len(targets) < 500
    places = np.array([3, 0, 3])
    assert (pickle.loads(sent)[places] == targets[places]).all()


def test_positions_take_four_bytes_and_copies_one():
    selected = select_by()
    assert selected.entries.dtype == np.int32
    assert selected.copies.dtype == np.uint8
    many = select(Labels.from_array(PROBABILITIES), Rules(per_class=300))
    assert many.copies.dtype == np.uint16
    assert many.copies.max() == 299
