"""The output of a run, on a terminal and elsewhere."""

import io
import math

from rich.console import Console

from fastcifar.display.console import Reporter

EPOCH = {
    "epoch": 3,
    "train_loss": 1.25,
    "train_accuracy": 0.5,
    "val_loss": 1.5,
    "val_accuracy": 0.4567,
    "lr": 0.01,
    "images_per_s": 12345.6,
    "train_seconds": 3.2,
}


def printed(terminal=False, verbose=False):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False, soft_wrap=True)
    reporter = Reporter(verbose=verbose, console=console)
    reporter.start(epochs=40, steps_per_epoch=625, step=0)
    reporter.advance(600, math.nan, 1000.0)
    reporter.steps({"epoch": 40, "step": 600, "loss": 0.3761})
    reporter.epoch(EPOCH)
    reporter.stop()
    return out.getvalue()


def test_off_a_terminal_an_epoch_is_one_plain_line():
    assert printed() == (
        "epoch  3/40  train loss 1.2500 accuracy 50.00%  val loss 1.5000 accuracy 45.67%  lr 0.01  12,346 images/s  3.2 s\n"
    )


def test_verbose_shows_the_losses_as_the_seeds_own_log():
    assert printed(verbose=True).splitlines()[0] == "Epoch [40/40], Step [600/625], Loss: 0.376"


def test_on_a_terminal_there_is_a_live_line_with_the_speed():
    text = printed(terminal=True)
    assert "epoch 1/40 1,000 images/s" in text
    assert "val loss 1.5000" in text
