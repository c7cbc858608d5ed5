"""Results on the console."""

import torch

from fastcifar.display.tables import print_comparison, print_evaluation, print_runs
from fastcifar.run.compare import Comparison, Pair, Sample
from fastcifar.run.score import Score
from fastcifar.run.statistics import difference, interval
from fastcifar.run.summary import RunsSummary


def test_a_class_without_images_and_one_with_a_strange_name_are_shown(capsys):
    score = Score(loss=0.5, confusion=torch.tensor([[3, 1], [0, 0]]))
    print_evaluation(score, ["[red]", "blue"], "title")
    title, _, first, second = capsys.readouterr().out.rstrip().splitlines()
    assert title == "title: accuracy 75.00%, loss 0.5000, 4 images"
    assert first.split() == ["0", "[red]", "75.00%", "3", "1"]
    assert second.split() == ["1", "blue", "-", "0", "0"]


def test_the_score_of_a_class_without_images_is_null_in_json():
    score = Score(loss=0.5, confusion=torch.tensor([[3, 1], [0, 0]]))
    assert score.to_json(["a", "b"])["per_class"] == {"a": 0.75, "b": None}


def runs(accuracies, **changes):
    """A summary of runs with these test accuracies, seeds from 3 and times of 2, 3, ... seconds."""
    count = len(accuracies)
    measures = {"test_accuracy": interval(accuracies), "train_loss": interval([0.5, 0.75, 1.0][:count])}
    measures |= {"seconds": interval([2.0, 3.0, 10.0][:count])}
    fields = {"recipe": "mine", "dataset": "[tiny]", "parameters": 10, "epochs": 2, "pflop": 0.29729, "warm_up_seconds": 41.26}
    return RunsSummary(**fields, seeds=tuple(range(3, 3 + count)), measures=measures | changes)


def test_runs_are_a_row_each_then_their_mean_deviation_and_interval(capsys):
    print_runs(runs([0.91, 0.92, 0.93]))
    title, *table, last = capsys.readouterr().out.rstrip().splitlines()
    assert title == "mine on [tiny], 3 finished, seeds 3 to 5"
    header, *rows = (line.split() for line in table if line.strip())
    assert header == ["seed", "test", "accuracy", "train", "loss", "seconds"]
    assert rows[:3] == [
        ["3", "91.00%", "0.5000", "2.000"],
        ["4", "92.00%", "0.7500", "3.000"],
        ["5", "93.00%", "1.0000", "10.000"],
    ]
    assert rows[3] == ["mean", "92.000%", "0.75000", "5.0000"]
    assert rows[4] == ["std", "1.000%", "0.25000", "4.3589"]
    # 4.3027 is the quantile for two degrees of freedom
    assert " ".join(rows[5]) == "95 % interval ± 2.484% ± 0.62103 ± 10.8281"
    assert last == "median time 3.000 s a run, 0.297 PFLOP a run; warm-up 41.3 s once, not in these times"


def test_the_validation_accuracy_has_a_column_where_there_is_one_and_a_single_run_has_no_spread(capsys):
    print_runs(runs([0.91], val_accuracy=interval([0.9])))
    lines = capsys.readouterr().out.splitlines()
    assert "val accuracy" in lines[1]
    assert [line.split() for line in lines if "std" in line] == [["std", "-", "-", "-", "-"]]


def comparison(*folders, measure="test_accuracy"):
    samples = [Sample(f"runs/[{name}]", "mine", "cifar10", interval(values)) for name, values in folders]
    first, *others = samples
    pairs = []
    for other in others:
        found = difference(first.interval, other.interval)
        pairs.append(Pair(first.folder, other.folder, found, found.p, "differs"))
    return Comparison(measure, tuple(samples), tuple(pairs))


def test_a_comparison_names_test_effect_size_and_runs_needed(capsys):
    """Both deviations are 1 %, the standard error is sqrt(2 / 3) %, t = sqrt(6) with 4 degrees of freedom, d = 2."""
    print_comparison(comparison(("a", [0.90, 0.91, 0.92]), ("b", [0.92, 0.93, 0.94])))
    header, first, second, _, *rows = capsys.readouterr().out.rstrip().splitlines()
    assert header.split() == ["test", "accuracy", "recipe", "runs", "mean", "std", "95", "%", "interval"]
    assert first.split() == ["runs/[a]", "mine", "3", "91.000%", "1.000%", "±", "2.484%"]
    assert second.split()[:4] == ["runs/[b]", "mine", "3", "93.000%"]
    assert [" ".join(row.split()) for row in rows] == [
        "runs/[b] minus runs/[a]: differs",
        # 2 +- 2.7764 * 0.81650
        "difference +2.000 percentage points, 95 % interval -0.267 to +4.267",
        "p value 0.07, Welch's t test",
        "effect size 2.00, Cohen's d: difference divided by the pooled standard deviation",
        "runs needed 6 of each, to show a difference of this size in 80% of all cases (two-sided, 5%)",
    ]


def test_a_comparison_of_several_says_that_it_is_corrected(capsys):
    print_comparison(comparison(("a", [1.0, 2.0]), ("b", [3.0, 4.0]), ("c", [1.0, 2.0]), measure="seconds"))
    out = capsys.readouterr().out
    assert out.count("by Holm's correction for 2 pairs with the first folder") == 2
    assert out.count("of this pair alone") == 2
    assert "+2.0000 s" in out
    assert "no number of runs: the means are equal" in out


def test_a_comparison_without_spread_says_why_there_is_no_p_value(capsys):
    print_comparison(comparison(("a", [0.5, 0.5]), ("b", [0.6, 0.6])))
    out = capsys.readouterr().out
    assert "undefined: all values of each folder are identical" in out
    assert "+10.000 percentage points" in out
