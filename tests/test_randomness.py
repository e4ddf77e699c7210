"""A sample is a function of its draw."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from tutelage.data import Stream, StreamSampler
from tutelage.randomness import Key, Numbers, SeekableGenerators, generate_splitmix64

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
    def view(generators: SeekableGenerators) -> tuple[float, ...]:
        return (generators.numpy.random(), generators.python.random(), float(generators.numpy.integers(1 << 30)))

    used = SeekableGenerators(key, "augment")
    for draw in sequence:
        used.seek(*draw)
        after_others = view(used)
        fresh = SeekableGenerators(key, "augment")
        fresh.seek(*draw)
        assert view(fresh) == after_others


def test_split_mix_gives_its_makers_numbers():
    """The first words from seed 1234567, as published with the C code (prng.di.unimi.it)."""
    words = generate_splitmix64(np.array([1234567], dtype=np.uint64), 5)[0].tolist()
    assert words == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(st.lists(draws, min_size=1, max_size=9, unique=True), keys, st.integers(1, 40))
def test_numbers_of_many_draws_are_those_of_each(sequence, key, count):
    numbers = Numbers(key, "augment").draw(np.array(sequence), count)
    assert ((numbers >= 0) & (numbers < 1)).all()
    for draw, own in zip(sequence, numbers, strict=True):
        assert (Numbers(key, "augment").draw(np.array([draw]), count + 3)[0, :count] == own).all()
    assert len({own.tobytes() for own in numbers}) == len(sequence)
    other = Numbers(Key(key.seed + 1, key.stage, key.stream), "augment").draw(np.array(sequence), count)
    assert (other != numbers).any()


def test_numbers_are_uniform_and_draws_next_to_each_other_have_nothing_in_common():
    numbers = Numbers(Key(0, "s"), "augment").draw(np.array([(p, i, 0) for p in range(20) for i in range(1000)]), 8)
    for place in range(8):
        assert kstest(numbers[:, place], "uniform").pvalue > 1e-4
    correlated = np.corrcoef(np.hstack([numbers[:-1], numbers[1:]]).T) - np.eye(16)
    assert np.abs(correlated).max() < 5 / 20000**0.5


def test_pythons_distributions_over_philox_have_their_means_and_spreads():
    draw = SeekableGenerators(Key(1, "s"), "augment")
    numbers: dict[str, list[float]] = {"uniform": [], "normal": [], "beta": [], "integer": [], "bits": []}
    for index in range(4000):
        draw.seek(0, index, 0)
        numbers["uniform"].append(draw.python.random())
        numbers["normal"].append(draw.python.gauss(0, 1))
        numbers["beta"].append(draw.python.betavariate(1, 1))
        numbers["integer"].append(draw.python.randrange(7))
        numbers["bits"].append(draw.python.getrandbits(100) / 2**100)
    sixth = 12**-0.5
    for name, mean, spread in (
        ("uniform", 0.5, sixth),
        ("normal", 0, 1),
        ("beta", 0.5, sixth),
        ("integer", 3, 2),
        ("bits", 0.5, sixth),
    ):
        assert abs(np.mean(numbers[name]) - mean) < 5 * spread / 4000**0.5, name
        assert abs(np.std(numbers[name]) / spread - 1) < 0.05, name
    assert sorted(set(numbers["integer"])) == list(range(7))
    correlated = np.corrcoef(numbers["uniform"][:-1], numbers["uniform"][1:])[0, 1]
    assert abs(correlated) < 5 / 4000**0.5


streams = st.builds(
    lambda n, b: Stream("pool", np.arange(n), np.zeros(n, dtype=np.int64), b), st.integers(1, 40), st.integers(1, 60)
)


@given(streams, st.integers(0, 2**62))
def test_each_pass_of_a_stream_shows_every_image_once(stream, seed):
    draws = StreamSampler(stream, Key(seed, "s", stream.name))
    size = len(stream.indices)
    steps = -(-3 * size // stream.batch_size)
    shown = [drawn for step in range(steps) for drawn in zip(*draws.at(step), strict=True)][: 3 * size]
    for pass_ in range(3):
        part = shown[pass_ * size : (pass_ + 1) * size]
        assert {p for p, _, _ in part} == {pass_}
        assert sorted(entry for _, entry, _ in part) == list(range(size))


@given(streams, st.integers(0, 1000))
def test_a_streams_position_follows_from_the_step_alone(stream, step):
    walked = StreamSampler(stream, Key(0, "s"))
    for before in range(max(0, step - 3), step):
        walked.at(before)
    assert np.array_equal(walked.at(step), StreamSampler(stream, Key(0, "s")).at(step))


def test_passes_come_in_different_orders():
    stream = Stream("pool", np.arange(50), np.zeros(50, dtype=np.int64), 50)
    draws = StreamSampler(stream, Key(0, "s"))
    assert (draws.at(0).entries != draws.at(1).entries).any()


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(1, 7), st.integers(0, 50))
@settings(max_examples=60)
def test_an_even_stream_shows_classes_equally_often_and_each_image_of_a_class_too(sizes, batch, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    stream = Stream("labelled", np.arange(len(labels)), labels, batch, even=True)
    draws, passes = StreamSampler(stream, Key(seed, "s")), 12
    steps = -(-passes * stream.length // batch)
    shown = [drawn for step in range(steps) for drawn in zip(*draws.at(step), strict=True)][: passes * stream.length]
    assert len(set(shown)) == len(shown)  # no view comes twice
    for pass_ in range(passes):
        entries = [entry for number, entry, _ in shown if number == pass_]
        assert np.bincount(labels[entries]).tolist() == [max(sizes)] * len(sizes)
    counts = np.bincount([entry for _, entry, _ in shown], minlength=len(labels))
    for c in range(len(sizes)):
        assert np.ptp(counts[labels == c]) <= 1
