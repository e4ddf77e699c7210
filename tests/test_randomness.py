"""A sample is a function of its draw."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data import Draws, Stream
from tutelage.randomness import Key, Rekeyed

numbers = st.integers(0, 2**40)
keys = st.builds(
    Key, seed=st.integers(0, 2**62), stage=st.text(max_size=8), stream=st.sampled_from(["labelled", "pool"])
)
draws = st.tuples(numbers, numbers, st.integers(0, 100))


@given(keys, draws)
def test_the_same_key_gives_the_same_numbers(key, draw):
    first, second = (key.generator("p", *draw).random(8) for _ in range(2))
    assert (first == second).all()


@given(keys, draws, draws)
def test_different_draws_give_different_numbers(key, one, other):
    same = (key.generator("p", *one).random(8) == key.generator("p", *other).random(8)).all()
    assert same == (one == other)


def test_every_part_of_a_key_matters():
    base = dict(seed=1, stage="teacher", stream="pool")
    keys = [
        Key(**base),
        Key(**{**base, "seed": 2}),
        Key(**{**base, "stage": "s"}),
        Key(**{**base, "stream": "labelled"}),
    ]
    seen = {key.generator("p").random() for key in keys} | {keys[0].generator("q").random()}
    assert len(seen) == 5
    assert len({key.torch_seed("step", n, rank) for key in keys for n in range(3) for rank in range(2)}) == 24


def test_parts_of_a_key_do_not_run_into_each_other():
    assert Key(1, "ab", "c").torch_seed("p") != Key(1, "a", "bc").torch_seed("p")


@given(st.lists(draws, min_size=1, max_size=12), keys)
def test_rekeyed_generators_do_not_remember_what_came_before(sequence, key):
    def view(generators: Rekeyed) -> tuple[float, ...]:
        return (generators.numpy.random(), generators.python.random(), float(generators.numpy.integers(1 << 30)))

    used = Rekeyed(key, "augment")
    for draw in sequence:
        used.at(*draw)
        after_others = view(used)
        fresh = Rekeyed(key, "augment")
        fresh.at(*draw)
        assert view(fresh) == after_others


streams = st.builds(
    lambda n, b: Stream("pool", np.arange(n), np.zeros(n, dtype=np.int64), b), st.integers(1, 40), st.integers(1, 60)
)


@given(streams, st.integers(0, 2**62))
def test_each_pass_of_a_stream_shows_every_image_once(stream, seed):
    draws = Draws(stream, Key(seed, "s", stream.name))
    size = len(stream.indices)
    steps = -(-3 * size // stream.batch_size)
    shown = [drawn for step in range(steps) for drawn in draws.at(step)][: 3 * size]
    for pass_ in range(3):
        part = shown[pass_ * size : (pass_ + 1) * size]
        assert {p for p, _, _ in part} == {pass_}
        assert sorted(entry for _, entry, _ in part) == list(range(size))


@given(streams, st.integers(0, 1000))
def test_a_streams_position_follows_from_the_step_alone(stream, step):
    walked = Draws(stream, Key(0, "s"))
    for before in range(max(0, step - 3), step):
        list(walked.at(before))
    assert list(walked.at(step)) == list(Draws(stream, Key(0, "s")).at(step))


def test_passes_come_in_different_orders():
    stream = Stream("pool", np.arange(50), np.zeros(50, dtype=np.int64), 50)
    draws = Draws(stream, Key(0, "s"))
    assert [e for _, e, _ in draws.at(0)] != [e for _, e, _ in draws.at(1)]


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(1, 7), st.integers(0, 50))
@settings(max_examples=60)
def test_an_even_stream_shows_classes_equally_often_and_each_image_of_a_class_too(sizes, batch, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    stream = Stream("labelled", np.arange(len(labels)), labels, batch, even=True)
    draws, passes = Draws(stream, Key(seed, "s")), 12
    steps = -(-passes * stream.length // batch)
    shown = [drawn for step in range(steps) for drawn in draws.at(step)][: passes * stream.length]
    assert len(set(shown)) == len(shown)  # no view comes twice
    for pass_ in range(passes):
        entries = [entry for number, entry, _ in shown if number == pass_]
        assert np.bincount(labels[entries]).tolist() == [max(sizes)] * len(sizes)
    counts = np.bincount([entry for _, entry, _ in shown], minlength=len(labels))
    for c in range(len(sizes)):
        assert np.ptp(counts[labels == c]) <= 1
