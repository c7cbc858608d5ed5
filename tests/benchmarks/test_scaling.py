"""The scaling of a recipe is measured, drawn and printed by one command."""

import importlib.util
import json
from pathlib import Path

import torch

from fastcifar.bench.scaling import Grid


def test_every_point_is_written_down(tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("scaling", Path(__file__).parents[2] / "benchmarks/scaling.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "choose_device", lambda asked: torch.device("cpu"))
    monkeypatch.setattr(script, "ON_CPU", Grid((8, 16), (), (), (), 16))
    script.main(str(tmp_path / "results.json"), str(tmp_path / "scaling.png"), "cpu")
    found = json.loads((tmp_path / "results.json").read_text())
    assert [point["value"] for point in found["points"]] == [8, 16]
    assert found["environment"]["device"] == "cpu"
    assert capsys.readouterr().out.count("| batch size |") == 2
    assert (tmp_path / "scaling.png").stat().st_size > 0
