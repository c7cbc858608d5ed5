"""Tables and files hold every measurement with its provenance."""

import json
import re

import pytest
import torch

from fastcifar.display import measurements
from fastcifar.runtime.measurement import Measurement


def row(variant="fastcifar", rounds=(1.0, 2.0, 4.0), *, case="a case", ratio=None, note="", subject="step", batch=64):
    floor = 8.0 if rounds else None
    return Measurement(subject, case, batch, variant, "steps/s", rounds, 0.5, floor, "work at a rate", ratio, note)


ROWS = [
    row(note="eager step"),
    row("plain", (123456.0,), ratio=2.5),
    row("kornia", (), note="kornia is not installed; get it with: pip"),
    row(subject="augment", batch=None),
]


def test_a_row_shows_median_spread_share_ratio_and_warm_up():
    assert measurements.cells(ROWS[0]) == ["a case", "64", "fastcifar", "2", "1 .. 4", "25.00%", "", "0.5 s"]
    assert measurements.cells(ROWS[1])[3:7] == ["123,456", "123,456 .. 123,456", "1543200.00% *", "2.5 x"]


def test_a_row_that_was_not_measured_says_so_and_a_footnote_says_why():
    assert measurements.cells(ROWS[2])[2:] == ["kornia", "not measured", "", "", "", ""]
    assert "kornia not measured: kornia is not installed; get it with: pip" in measurements.footnotes(ROWS)


def test_each_roofline_and_each_note_is_one_line():
    rows = [*ROWS[:3], *ROWS[:3], row(case="other")]
    assert measurements.footnotes(rows).count("fastcifar: eager step") == 1
    assert measurements.footnotes(rows)[0] == "roofline of a case, other: work at a rate"


def test_markdown_has_a_table_for_each_subject_with_every_row():
    text = measurements.to_markdown(ROWS)
    assert re.findall("^### .*", text, re.MULTILINE) == ["### step, steps/s", "### augment, steps/s"]
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 * 2 + len(ROWS)
    assert {line.count("|") for line in table} == {len(measurements.COLUMNS) + 1}


def test_the_console_shows_the_same_cells_as_markdown(capsys):
    measurements.print_measurements(ROWS)
    shown = capsys.readouterr().out
    for one in ROWS:
        assert all(cell in shown for cell in measurements.cells(one))


def test_a_document_has_its_provenance_and_reads_back_to_the_same_measurements():
    written = json.loads(json.dumps(measurements.document(ROWS, torch.device("cpu"), "fastcifar bench step"), allow_nan=False))
    assert measurements.read_document(written) == ROWS
    assert written["command"] == "fastcifar bench step"
    assert written["environment"]["torch"] == torch.__version__
    assert written["peers"]["torchvision"]


@pytest.mark.parametrize(("value", "shown"), [(0.0123456, "0.0123"), (99.9, "99.9"), (1234.6, "1,235"), (1e6, "1,000,000")])
def test_numbers_have_three_digits_or_all_of_their_whole_part(value, shown):
    assert measurements.number(value) == shown
