"""Pictures show the measurements; nothing to draw and unknown formats are errors."""

from pathlib import Path

import pytest

from fastcifar.display import bars
from fastcifar.runtime.errors import UserError
from fastcifar.runtime.measurement import Measurement


def row(subject="augment", case="seed policy", batch=64, variant="fastcifar", rounds=(2.0, 1.0, 3.0)):
    return Measurement(subject, case, batch, variant, "images/s", rounds, 0.0, 9.0 if rounds else None, "", None)


ROWS = [row(), row(variant="kornia"), row(batch=512), row(variant="timm", rounds=()), row("prep", "write", None)]


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved."""
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **options: figures.append(figure))
    return figures


@pytest.mark.parametrize("plot", [bars.plot_bars, bars.plot_sweep])
def test_a_picture_is_written(plot, tmp_path):
    plot(ROWS, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_bars_have_a_panel_for_each_subject_and_a_bar_for_each_measurement(drawn, tmp_path):
    bars.plot_bars(ROWS, tmp_path / "a.png")
    first, second = drawn[0].axes
    names = ["seed policy, 64: fastcifar", "seed policy, 64: kornia", "seed policy, 512: fastcifar"]
    assert [label.get_text() for label in first.get_yticklabels()] == names
    assert [bar.get_width() for bar in first.patches] == [2.0, 2.0, 2.0]
    assert second.get_title() == "prep"


@pytest.mark.parametrize(("slowest", "scale"), [(2.0, "linear"), (0.5, "log")])
def test_bars_start_at_zero_unless_they_differ_by_more_than_ten_times(drawn, tmp_path, slowest, scale):
    bars.plot_bars([row(), row(variant="kornia", rounds=(slowest,))], tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == scale
    assert (axes.get_xlim()[0] == 0) == (scale == "linear")


def test_a_sweep_has_a_line_for_each_variant_over_its_batch_sizes(drawn, tmp_path):
    bars.plot_sweep(ROWS, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
    assert lines == {"fastcifar": [64, 512], "kornia": [64]}


@pytest.mark.parametrize("plot", [bars.plot_bars, bars.plot_sweep])
def test_nothing_measured_is_one_clear_line(plot, tmp_path):
    with pytest.raises(UserError, match="nothing was measured"):
        plot([row(rounds=())], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_format_that_cannot_be_drawn_is_refused_by_the_name_of_its_option():
    with pytest.raises(UserError, match=r"--plot bars\.txt: must end in one of \.png, \.pdf, \.svg"):
        bars.check_format("--plot", Path("bars.txt"))
    bars.check_format("--plot", Path("bars.svg"))
