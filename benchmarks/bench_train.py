"""How fast does the seed recipe train, against the same model in plain PyTorch? See fastcifar/bench/training.py.

pytest benchmarks/bench_train.py --benchmark-only
"""


def test_step(play, case, variant):
    play(case, variant)


def test_epoch(play, case, variant):
    play(case, variant)


def test_train(play, case, variant):
    play(case, variant)
