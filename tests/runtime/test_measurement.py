"""Medians, spreads, shares and ratios by hand-computed values."""

import json

import pytest

from fastcifar.runtime.measurement import Measurement, figure, speed_ratio


def a_measurement(**changed):
    fields = {
        "subject": "augment",
        "case": "seed policy",
        "batch_size": 64,
        "variant": "fastcifar",
        "unit": "images/s",
        "rounds": (30.0, 10.0, 20.0),
        "warm_up_s": 1.5,
        "floor": 200.0,
        "floor_of": "9 B read, copied at 1 GB/s",
        "ratio": None,
        "note": "",
    }
    return Measurement(**fields | changed)


def test_a_measurement_has_the_median_and_the_spread_of_its_rounds():
    row = a_measurement()
    assert (row.median, row.spread) == (20.0, (10.0, 30.0))


@pytest.mark.parametrize(("unit", "floor", "share"), [("images/s", 200.0, 0.1), ("s", 5.0, 0.25)])
def test_the_share_of_the_floor_is_one_at_the_floor_for_rates_and_for_seconds(unit, floor, share):
    assert a_measurement(unit=unit, floor=floor).share_of_floor == pytest.approx(share)
    assert a_measurement(unit=unit, floor=20.0).share_of_floor == 1


def test_a_row_that_was_not_measured_has_no_figures():
    row = a_measurement(rounds=(), floor=None, note="not installed")
    assert (row.median, row.spread, row.share_of_floor) == (None, None, None)


def test_a_round_is_seconds_or_amount_per_second():
    assert figure(100, 4.0, "images/s") == 25
    assert figure(100, 4.0, "s") == 4


def test_a_ratio_is_the_median_of_ratios_of_paired_rounds_and_not_the_ratio_of_medians():
    ours, theirs = (10.0, 20.0, 90.0), (10.0, 5.0, 30.0)
    assert speed_ratio(ours, theirs, "images/s") == 3
    assert speed_ratio(ours, theirs, "s") == pytest.approx(1 / 3)


def test_a_machine_that_is_slow_for_one_round_changes_no_ratio():
    assert speed_ratio((10.0, 1.0, 10.0), (5.0, 0.5, 5.0), "steps/s") == 2


@pytest.mark.parametrize("changed", [{}, {"batch_size": None, "rounds": (), "floor": None, "note": "kornia is missing"}])
def test_json_and_back_is_the_same_measurement(changed):
    row = a_measurement(**changed)
    written = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert Measurement.from_json(written) == row
    assert written["median"] == row.median
