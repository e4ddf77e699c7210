"""Which pool images a student trains on: by hand, against a plain reference, and what never changes."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data import Labels, LabelStore, Rules, Selection, read_labels, select
from tutelage.data.pseudo_labels import selection

PROBABILITIES = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.55, 0.45], [0.8, 0.2]], dtype=np.float32)


def chosen_by(**rules) -> Selection:
    return select(Labels.from_array(PROBABILITIES), Rules(**rules))


def test_by_hand_balance_keeps_the_most_confident_and_duplicates_the_rare():
    chosen = chosen_by()
    # six answers, two classes: three each. Class 0: images 0, 5, 3. Class 1: image 2, three times.
    assert chosen.entries.tolist() == [0, 5, 3, 2, 2, 2]
    assert chosen.copies.tolist() == [0, 0, 0, 0, 1, 2]
    assert (np.asarray(chosen.targets) == PROBABILITIES[chosen.entries]).all()


def test_by_hand_a_number_a_class_is_what_each_class_gets():
    chosen = chosen_by(per_class=2)
    assert chosen.entries.tolist() == [0, 5, 2, 2]
    assert chosen.copies.tolist() == [0, 0, 0, 1]


def test_by_hand_the_confidence_filter_comes_first():
    assert chosen_by(confidence=0.65).entries.tolist() == [0, 5, 2, 2]


def test_by_hand_without_balance_each_kept_image_stands_once():
    chosen = chosen_by(balance=False, confidence=0.58)
    assert chosen.entries.tolist() == [0, 1, 2, 3, 5]
    assert not chosen.copies.any()


def test_by_hand_entries_in_order_are_the_same_ones():
    chosen = chosen_by(in_order=True)
    assert chosen.entries.tolist() == [0, 2, 2, 2, 3, 5]
    assert chosen.copies.tolist() == [0, 0, 1, 2, 0, 0]
    assert (chosen.targets[np.array([1, 5])] == PROBABILITIES[[2, 5]]).all()


def test_among_equals_the_earlier_image_is_kept():
    chosen = select(Labels.from_array(np.tile(np.float32([0.5, 0.25, 0.25]), (9, 1))), Rules(per_class=4))
    assert chosen.entries.tolist() == [0, 1, 2, 3]


def test_hard_labels_are_the_answers():
    targets = np.asarray(chosen_by(hard=True, balance=False).targets)
    assert targets.tolist() == [[1, 0], [1, 0], [0, 1], [1, 0], [1, 0], [1, 0]]


def test_by_hand_a_temperature_of_two_takes_square_roots():
    targets = chosen_by(balance=False, temperature=2.0).targets
    # 0.9 and 0.1 are 9 to 1, their roots 3 to 1
    assert targets[np.array([0])][0].tolist() == pytest.approx([0.75, 0.25])


def test_where_nothing_is_kept_nothing_is_selected():
    for balance in (True, False):
        chosen = chosen_by(confidence=0.99, balance=balance)
        assert len(chosen.entries) == len(chosen.copies) == len(chosen.targets) == 0


def reference(probabilities: np.ndarray, rules: Rules) -> list[tuple[int, int]]:
    """The rules image by image, in plain Python: pairs of entry and copy, sorted."""
    kept = [(float(row.max()), entry, int(row.argmax())) for entry, row in enumerate(probabilities)]
    kept = [one for one in kept if one[0] >= np.float32(rules.confidence)]
    if not rules.balance:
        return sorted((entry, 0) for _, entry, _ in kept)
    each = rules.per_class or max(1, round(len(kept) / probabilities.shape[1]))
    found = []
    for c in {answer for _, _, answer in kept}:
        members = sorted((-sure, entry) for sure, entry, answer in kept if answer == c)
        found += [(members[turn % len(members)][1], turn // len(members)) for turn in range(each)]
    return sorted(found)


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
        chosen, again = select(labels, rules), select(labels, rules)
        in_order = select(labels, Rules(confidence, balance, per_class, hard, temperature, in_order=True))
    assert (chosen.entries == again.entries).all()
    assert (chosen.copies == again.copies).all()
    expected = reference(probabilities, rules)
    pairs = list(zip(chosen.entries.tolist(), chosen.copies.tolist(), strict=True))
    assert sorted(pairs) == expected
    assert len(set(pairs)) == len(pairs)  # no draw twice
    assert list(zip(in_order.entries.tolist(), in_order.copies.tolist(), strict=True)) == expected
    assert chosen.count_uses(count).tolist() == np.bincount(chosen.entries, minlength=count).tolist()
    targets = chosen.targets[np.arange(len(pairs))]
    assert targets.dtype == np.float32
    assert targets.shape == chosen.targets.shape == (len(pairs), classes)
    if hard:
        assert (targets.argmax(axis=1) == probabilities.argmax(axis=1)[chosen.entries]).all()
        assert sorted(set(targets.ravel().tolist())) in ([], [0.0, 1.0])
    else:
        with np.errstate(divide="ignore"):
            logits = np.log(probabilities[chosen.entries].astype(float)) / temperature
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
    chosen = chosen_by()
    assert chosen.entries.dtype == np.int32
    assert chosen.copies.dtype == np.uint8
    many = select(Labels.from_array(PROBABILITIES), Rules(per_class=300))
    assert many.copies.dtype == np.uint16
    assert many.copies.max() == 299
