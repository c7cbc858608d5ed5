"""Committed results tell of the machine what they must, and not where its files were."""

from pathlib import Path

import pytest
from helpers import ABSOLUTE_PATH

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("path", [path for path in RESULTS.iterdir() if path.suffix in (".json", ".md")], ids=lambda p: p.name)
def test_a_result_names_no_folder_of_the_machine_that_it_was_made_on(path):
    assert ABSOLUTE_PATH.findall(path.read_text()) == []


def test_such_a_folder_would_be_found():
    assert ABSOLUTE_PATH.findall(
        '"note": "of /home/me/cifar-10-batches-py" "~/data" images/s https://a.b/c/d [x](../docs/a)'
    ) == [
        "/home/me",
        "~/data",
    ]
