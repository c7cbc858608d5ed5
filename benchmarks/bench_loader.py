"""How fast does a data set become augmented batches, against DataLoader and FFCV? See fastcifar/bench/loader.py.

pytest benchmarks/bench_loader.py --benchmark-only
"""


def test_loader(play, case, variant):
    play(case, variant)
