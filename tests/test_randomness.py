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
def test_different_draws_give_different_numbers(key, first, second):
    equal = (key.generator("p", *first).random(8) == key.generator("p", *second).random(8)).all()
    assert equal == (first == second)


def test_every_part_of_a_key_matters():
    base = dict(seed=1, stage="teacher", stream="pool")
    keys = [
        Key(**base),
        Key(**{**base, "seed": 2}),
        Key(**{**base, "stage": "s"}),
        Key(**{**base, "stream": "labelled"}),
    ]
    numbers = {key.generator("p").random() for key in keys} | {keys[0].generator("q").random()}
    assert len(numbers) == 5
    assert len({key.torch_seed("step", n, rank) for key in keys for n in range(3) for rank in range(2)}) == 24


def test_parts_of_a_key_do_not_run_into_each_other():
    assert Key(1, "ab", "c").torch_seed("p") != Key(1, "a", "bc").torch_seed("p")


@given(st.lists(draws, min_size=1, max_size=12), keys)
def test_rekeyed_generators_do_not_remember_what_came_before(sequence, key):
    def view(generators: SeekableGenerators) -> tuple[float, ...]:
        return (generators.numpy.random(), generators.python.random(), float(generators.numpy.integers(1 << 30)))

    reused = SeekableGenerators(key, "augment")
    for draw in sequence:
        reused.seek(*draw)
        numbers = view(reused)
        fresh = SeekableGenerators(key, "augment")
        fresh.seek(*draw)
        assert view(fresh) == numbers


def test_split_mix_gives_its_makers_numbers():
    """The first numbers from seed 1234567, as published with the C code (prng.di.unimi.it)."""
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
    for draw, row in zip(sequence, numbers, strict=True):
        assert (Numbers(key, "augment").draw(np.array([draw]), count + 3)[0, :count] == row).all()
    assert len({row.tobytes() for row in numbers}) == len(sequence)
    other_seed = Numbers(Key(key.seed + 1, key.stage, key.stream), "augment").draw(np.array(sequence), count)
    assert (other_seed != numbers).any()


def test_numbers_are_uniform_and_draws_next_to_each_other_have_nothing_in_common():
    numbers = Numbers(Key(0, "s"), "augment").draw(np.array([(p, i, 0) for p in range(20) for i in range(1000)]), 8)
    for column in range(8):
        assert kstest(numbers[:, column], "uniform").pvalue > 1e-4
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
    sampler = StreamSampler(stream, Key(seed, "s", stream.name))
    size = len(stream.indices)
    steps = -(-3 * size // stream.batch_size)
    draws = [draw for step in range(steps) for draw in zip(*sampler.at(step), strict=True)][: 3 * size]
    for pass_number in range(3):
        part = draws[pass_number * size : (pass_number + 1) * size]
        assert {p for p, _, _ in part} == {pass_number}
        assert sorted(entry for _, entry, _ in part) == list(range(size))


@given(streams, st.integers(0, 1000))
def test_a_streams_position_follows_from_the_step_alone(stream, step):
    sampler = StreamSampler(stream, Key(0, "s"))
    for earlier_step in range(max(0, step - 3), step):
        sampler.at(earlier_step)
    assert np.array_equal(sampler.at(step), StreamSampler(stream, Key(0, "s")).at(step))


def test_passes_come_in_different_orders():
    stream = Stream("pool", np.arange(50), np.zeros(50, dtype=np.int64), 50)
    sampler = StreamSampler(stream, Key(0, "s"))
    assert (sampler.at(0).entries != sampler.at(1).entries).any()


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(1, 7), st.integers(0, 50))
@settings(max_examples=60)
def test_an_even_stream_shows_classes_equally_often_and_each_image_of_a_class_too(sizes, batch, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    stream = Stream("labelled", np.arange(len(labels)), labels, batch, even=True)
    sampler, passes = StreamSampler(stream, Key(seed, "s")), 12
    steps = -(-passes * stream.length // batch)
    draws = [draw for step in range(steps) for draw in zip(*sampler.at(step), strict=True)][: passes * stream.length]
    assert len(set(draws)) == len(draws)  # no view comes twice
    for pass_number in range(passes):
        entries = [entry for number, entry, _ in draws if number == pass_number]
        assert np.bincount(labels[entries]).tolist() == [max(sizes)] * len(sizes)
    counts = np.bincount([entry for _, entry, _ in draws], minlength=len(labels))
    for c in range(len(sizes)):
        assert np.ptp(counts[labels == c]) <= 1
