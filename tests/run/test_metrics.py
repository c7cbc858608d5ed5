"""The metrics file."""

import pytest

from fastcifar.run.metrics import MetricsLog, read_metrics
from fastcifar.runtime.errors import UserError


def test_rows_survive_and_a_resumed_log_drops_what_lies_ahead(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (2, 4, 6):
        log.add("steps", global_step=step, loss=1.0 / step)
    log.save()
    again = MetricsLog(path)
    again.load(4)
    assert again.rows == log.rows[:2] == read_metrics(path)[:2]


def test_a_file_that_is_no_json_lines_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("hello\n")
    with pytest.raises(UserError, match="not JSON lines"):
        read_metrics(path)
