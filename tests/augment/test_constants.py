"""The constants of a kernel: they are the key of Triton's cache on disk, and compared at each launch."""

from dataclasses import dataclass

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from fastcifar.augment import Normalize, Policy, RandomCrop, RandomHorizontalFlip
from fastcifar.augment.constants import policy_constants, transform_constants
from fastcifar.augment.transforms.base import Transform

SIZE = 32, 32, 3, 256


def printed(*transforms):
    return repr(policy_constants(Policy(transforms), *SIZE)[0])


def test_equal_policies_print_the_same_and_others_do_not():
    crop, flip, normalize = RandomCrop(32, padding=4), RandomHorizontalFlip(), Normalize(0.5, 0.25)
    assert printed(crop, flip, normalize) == printed(crop, flip, normalize)
    others = [(flip, crop, normalize), (flip, normalize), (RandomCrop(32), flip, normalize), (crop, flip, Normalize(0.5, 0.2))]
    assert len({printed(crop, flip, normalize), *(printed(*other) for other in others)}) == 5


def test_a_transform_without_triton_code_is_not_left_out_silently():
    with pytest.raises(NotImplementedError, match="Transform has no Triton code"):
        transform_constants(dataclass(Transform)(), *SIZE[:3])


TRANSFORM = """
from dataclasses import dataclass
from fastcifar.augment.transforms.base import Transform, triton_code

@triton_code
def brighter(x):
    return x * 2

@dataclass(frozen=True)
class Brightening(Transform):
    @triton_code
    def kernel_color(T, drawn, image, y, x, red, green, blue, c):
        return brighter(red), brighter(green), brighter(blue)
"""


def test_changed_triton_code_is_not_taken_from_the_cache(run_script, tmp_path):
    """Also if the transform's own function calls it; Triton's own key has only the function's name."""

    def printed(source):
        (tmp_path / "brightening.py").write_text(source)
        script = "from brightening import Brightening\nfrom fastcifar.augment.constants import transform_constants\n"
        return run_script(f"{script}print(transform_constants(Brightening(), 32, 32, 3))")

    assert printed(TRANSFORM) == printed(TRANSFORM)
    assert printed(TRANSFORM) != printed(TRANSFORM.replace("x * 2", "x * 2.5"))
