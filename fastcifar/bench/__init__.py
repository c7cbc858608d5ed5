"""Throughput of fastcifar beside its peers: shared by `fastcifar bench` and the suites in benchmarks/.

    from fastcifar.bench import run

    rows = run(["augment", "step"], torch.device("cpu"), fc.load_recipe("seed"))
    rows[0].median, rows[0].unit, rows[0].share_of_floor

A *subject* (augment) has *cases* (the seed recipe's policy at batch 512), and a case has *implementations* (fastcifar,
kornia), which run in interleaved rounds: see `run_interleaved`. Each implementation of a case gets one `Measurement`.
"""

from fastcifar.bench.setting import TINY, Size
from fastcifar.bench.subjects import SUBJECTS, choose_subjects, make_cases, measure, run
from fastcifar.runtime.measurement import Measurement

__all__ = ["SUBJECTS", "TINY", "Measurement", "Size", "choose_subjects", "make_cases", "measure", "run"]
