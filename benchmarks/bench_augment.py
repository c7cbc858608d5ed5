"""How fast is a policy, against torchvision and kornia? See fastcifar/bench/augment.py.

pytest benchmarks/bench_augment.py --benchmark-only --benchmark-json=augment.json
python benchmarks/sweep.py augment augment.json augment.png     # a picture of it
"""


def test_augment(play, case, variant):
    play(case, variant)
