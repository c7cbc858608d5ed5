"""How fast is random erasing, against torchvision, kornia and timm? See fastcifar/bench/erasing.py.

pytest benchmarks/bench_erasing.py --benchmark-only
"""


def test_erasing(play, case, variant):
    play(case, variant)
