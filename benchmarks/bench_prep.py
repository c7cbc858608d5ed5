"""How fast do images become a .beton, against FFCV's own writer? See fastcifar/bench/prep.py.

pytest benchmarks/bench_prep.py --benchmark-only
"""


def test_prep(play, case, variant):
    play(case, variant)
