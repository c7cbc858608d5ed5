"""Each kind of bottleneck is named in a sentence, with the key to change."""

import re

import pytest

from fastcifar.profiling.bottleneck import CONVOLUTION, bottleneck

BUSY = {"augment": 0.02, "forward": 0.3, "loss": 0.01, "backward": 0.6, "optimizer": 0.03, "idle": 0.04}
GROUPS = {CONVOLUTION: 0.7, "normalisation": 0.2, "elementwise and reductions": 0.06}
USUAL = {"batch_size": 64, "device": "cuda", "backend": "captured", "phases": BUSY, "groups": GROUPS, "idle_in": ""}
USUAL |= {"waits": {}, "utilisation": 0.3, "awkward_widths": False, "precision": "bf16"}


def idling(share, **phases):
    rest = 1 - share
    return {name: seconds / 0.96 * rest for name, seconds in BUSY.items()} | {"idle": share} | phases


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"phases": idling(0.61), "backend": "eager"},
            "launch-bound at batch 64: 61% of the step is gaps.*`backend=captured`",
        ),
        ({"phases": idling(0.61)}, r"launch-bound.* increase train\.batch_size"),
        ({"phases": idling(0.3), "waits": {"cudaStreamSynchronize": 1.0}}, r"host-bound.*1 times per step \(cudaStreamSync"),
        (
            {"phases": idling(0.4), "device": "cpu", "idle_in": "augment"},
            "host-bound.* no operator runs, most of it in augment",
        ),
        ({"phases": BUSY | {"augment": 0.4}}, r"bound by the augment phase.* augment\.transforms"),
        ({"phases": BUSY | {"optimizer": 0.4}}, r"bound by the optimizer phase.* train\.batch_size"),
        ({"groups": GROUPS | {CONVOLUTION: 0.1}, "backend": "eager"}, "memory-bound: 72% of the work.* `backend=compiled`"),
        ({"groups": GROUPS | {CONVOLUTION: 0.1}}, r"memory-bound.* train\.precision to pure_bf16"),
        ({"utilisation": 0.8}, r"compute-bound: the step reaches 80% .* model\.channels"),
        ({"utilisation": 0.8, "device": "cpu"}, r"compute-bound: the step reaches 80% .* model\.channels"),
        ({"device": "cpu"}, r"bound by convolutions, .* train\.batch_size"),
        ({"utilisation": 0.8, "precision": "fp32"}, r"compute-bound.* train\.precision to bf16"),
        ({"utilisation": 1.0}, "compute-bound: the step reaches 100%"),
        (
            {"utilisation": 2.76},
            r"bound by convolutions, 73% of the work; .* 276% of the peak .* slower here than .*; reduce model\.channels",
        ),
        ({"utilisation": 2.76, "precision": "fp32"}, r"slower here than convolutions; set train\.precision to bf16"),
        ({"awkward_widths": True}, r"bound by convolutions, 73% of the work.* train\.pad_widths"),
        ({}, r"bound by convolutions.* train\.batch_size"),
    ],
)
def test_each_bottleneck_is_named_with_the_key_to_change(changes, words):
    sentence = bottleneck(**USUAL | changes)
    assert re.search(words, sentence), sentence
    assert "\n" not in sentence
