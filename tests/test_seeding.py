"""Seeds: reproducible, and different wherever randomness must be independent."""

from k24lab.marl.seeding import Stream, derive_seed


def test_seeds_differ_between_runs_streams_and_counts():
    seeds = {derive_seed(run, stream, k) for run in range(5) for stream in Stream for k in range(40)}
    assert len(seeds) == 5 * len(Stream) * 40


def test_the_same_run_gets_the_same_seed():
    assert derive_seed(1, Stream.REPLAY, 2) == derive_seed(1, Stream.REPLAY, 2)
