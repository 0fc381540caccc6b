"""Seeds: reproducible, and different wherever randomness must be independent."""

from k24lab.marl.seeding import Stream, derive_seed


def test_seeds_differ_between_runs_streams_and_counts():
    seeds = {derive_seed(run, stream, k) for run in range(5) for stream in Stream for k in range(40)}
    assert len(seeds) == 5 * len(Stream) * 40


def test_the_same_run_gets_the_same_seed():
    assert derive_seed(1, Stream.REPLAY, 2) == derive_seed(1, Stream.REPLAY, 2)


def test_every_use_has_a_stream_of_its_own_whose_number_stays():
    """Another number would draw other episodes, networks or masks than those of stored runs."""
    names = "TRAIN_EPISODES TEST_EPISODES NETWORK MASKS EXPLORATION REPLAY ACTING_MASKS TEST_MASKS".split()
    assert {name: stream.value for name, stream in Stream.__members__.items()} == dict(
        zip(names, range(8), strict=True)
    )
