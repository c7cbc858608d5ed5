"""Tests marked `gpu` that softcuda cannot judge, and why."""

import os

SLOW = "softcuda: Triton's interpreter would take minutes"
PROFILER = "softcuda: there is no CUPTI, which PyTorch's profiler needs"
UNTRACED = "softcuda: torch.compile cannot trace Triton's interpreter"
AT_ONCE = "softcuda: work is never under way; run with SOFTCUDA_LAZY=1"

REASONS: dict[str, str] = {
    "tests/augment/test_erasing_fused.py::test_more_elements_than_an_int32_counts_are_reached": SLOW,
    "tests/bench/test_subjects.py::test_a_subject_runs_on_a_gpu[augment]": SLOW,
    "tests/bench/test_subjects.py::test_a_subject_runs_on_a_gpu[erasing]": SLOW,
    "tests/models/test_norm_fused.py::test_compiled_and_captured_it_is_the_eager_one": UNTRACED,
    "tests/profiling/test_profile.py::": PROFILER,
    "tests/runtime/test_roofline.py::test_a_gpu_reaches_more_in_bf16": "softcuda: its numbers and speed are the CPU's",
}
"""Beginning of a test's identifier -> reason."""
AT_ONCE_REASONS: dict[str, str] = {
    "tests/runtime/test_transfer.py::test_reading_waits_for_the_copy_and_not_for_what_came_later": AT_ONCE,
}
"""The same, of softcuda as it is without SOFTCUDA_LAZY=1."""


def reason(identifier: str) -> str | None:
    """Why a test is not judged; None where it is."""
    reasons = REASONS if os.environ.get("SOFTCUDA_LAZY") == "1" else REASONS | AT_ONCE_REASONS
    return next((why for begin, why in reasons.items() if identifier.startswith(begin)), None)
