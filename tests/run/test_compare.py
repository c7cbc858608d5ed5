"""Comparing the runs of folders: against SciPy, and every folder that cannot be compared is refused in one line."""

import json

import pytest
from scipy.stats import t, ttest_ind

from fastcifar.run.compare import compare
from fastcifar.runtime.errors import UserError

FIRST = [0.9401, 0.9388, 0.9412, 0.9395, 0.9407]
BETTER = [0.9431, 0.9440, 0.9422, 0.9429, 0.9450, 0.9437]
SAME = [0.9399, 0.9411, 0.9392, 0.9404]


@pytest.fixture
def folder(tmp_path):
    """A function that writes a folder of `train --runs N` with these test accuracies, in the oldest format."""

    def write(name, values, **changes):
        spread = {"mean": 0.0, "std": 0.0, "half_width": 0.0}  # never read
        table = {"recipe": "mine", "dataset": "cifar10", "runs": len(values), "seeds": list(range(len(values)))}
        (tmp_path / name).mkdir()
        table["test_accuracy"] = spread | {"values": values}
        (tmp_path / name / "summary.json").write_text(json.dumps(table | changes))
        return tmp_path / name

    return write


def test_a_pair_is_scipys_welch_test_of_other_minus_first(folder):
    comparison = compare([folder("a", FIRST), folder("b", BETTER)])
    theirs = ttest_ind(BETTER, FIRST, equal_var=False)
    (pair,) = comparison.pairs
    assert pair.p == pair.difference.p == pytest.approx(theirs.pvalue, rel=1e-9)
    low, high = theirs.confidence_interval(0.95)
    assert pair.difference.mean == pytest.approx((low + high) / 2, rel=1e-9)
    assert pair.difference.half_width == pytest.approx((high - low) / 2, rel=1e-9)
    assert pair.verdict == "differs"
    assert not comparison.corrected


def test_a_folder_has_its_mean_deviation_and_interval(folder):
    sample, _ = compare([folder("a", FIRST), folder("b", BETTER)]).samples
    mean = sum(FIRST) / 5
    std = (sum((value - mean) ** 2 for value in FIRST) / 4) ** 0.5
    assert (sample.recipe, sample.dataset) == ("mine", "cifar10")
    assert (sample.interval.mean, sample.interval.std) == (pytest.approx(mean), pytest.approx(std))
    assert sample.interval.half_width == pytest.approx(2.776 * std / 5**0.5, rel=1e-3)  # the quantile of any table


def test_where_chance_explains_it_no_difference_is_shown(folder):
    (pair,) = compare([folder("a", FIRST), folder("b", SAME)]).pairs
    assert pair.verdict == "no difference shown"
    assert pair.p > 0.05
    assert pair.difference.runs_needed > 5


def test_several_pairs_are_corrected_by_holm_and_may_lose_their_significance(folder):
    """The middle one's p value is below 5 % alone, and above it after the correction."""
    close = [0.9403, 0.9415, 0.9418, 0.9409, 0.9421]
    comparison = compare([folder("a", FIRST), folder("b", close), folder("c", BETTER), folder("d", SAME)])
    alone = [ttest_ind(FIRST, other, equal_var=False).pvalue for other in (close, BETTER, SAME)]
    assert alone[1] < alone[0] < 0.05 < alone[2]
    expected = [2 * alone[0], 3 * alone[1], max(2 * alone[0], alone[2])]
    assert [pair.p for pair in comparison.pairs] == pytest.approx(expected, rel=1e-9)
    assert [pair.verdict for pair in comparison.pairs] == ["no difference shown", "differs", "no difference shown"]
    assert [(pair.first[-1], pair.other[-1]) for pair in comparison.pairs] == [("a", "b"), ("a", "c"), ("a", "d")]
    assert comparison.to_json()["correction"] == "holm"


@pytest.mark.parametrize(("values", "verdict"), [([0.5, 0.5], "equal"), ([0.6, 0.6, 0.6], "differs")])
def test_identical_values_have_no_p_value_but_a_verdict(folder, values, verdict):
    comparison = compare([folder("a", [0.5] * 3), folder("b", values), folder("c", FIRST)])
    identical, other = comparison.pairs
    assert (identical.p, identical.verdict) == (None, verdict)
    assert other.p == pytest.approx(other.difference.p)  # it is the only test
    json.dumps(comparison.to_json(), allow_nan=False)


def test_json_holds_every_figure(folder):
    content = compare([folder("a", FIRST), folder("b", BETTER)]).to_json()
    assert json.loads(json.dumps(content, allow_nan=False))["folders"][1]["values"] == BETTER
    assert (content["measure"], content["correction"], content["warning"]) == ("test_accuracy", None, None)
    assert [(row["runs"], row["recipe"]) for row in content["folders"]] == [(5, "mine"), (6, "mine")]
    (pair,) = content["pairs"]
    assert pair["difference"] == pytest.approx(sum(BETTER) / 6 - sum(FIRST) / 5)
    assert pair["p"] == pair["p_uncorrected"]
    quantile = t.ppf(0.975, pair["degrees_of_freedom"])
    errors = [row["std"] ** 2 / row["runs"] for row in content["folders"]]
    assert pair["half_width"] == pytest.approx(quantile * sum(errors) ** 0.5)
    assert pair.keys() >= {"effect_size", "runs_needed", "verdict", "first", "other"}


@pytest.mark.parametrize("measure", ["val_accuracy", "test_loss", "train_loss", "seconds", "images_per_s"])
def test_another_measure_may_be_compared(folder, measure):
    values = {measure: {"mean": 2.0, "std": 1.0, "half_width": 1.0, "values": [1.0, 2.0, 3.0]}}
    comparison = compare([folder("a", FIRST, **values), folder("b", FIRST, **values)], measure)
    assert [sample.interval.mean for sample in comparison.samples] == [2.0, 2.0]


def test_two_data_sets_are_compared_with_a_warning_of_one_line(folder):
    a, b = folder("a", FIRST), folder("b", BETTER, dataset="cifar100")
    warning = compare([a, b]).warning
    assert warning == f"warning: not of one data set: {a} is of cifar10, {b} is of cifar100"


@pytest.mark.parametrize(
    ("values", "changes", "words"),
    [
        ([0.9], {}, "holds 1 run, a spread needs at least 2; train with `runs=2` or more"),
        ([], {}, "holds 0 runs"),
        ([0.9, float("nan")], {}, "test_accuracy of run 2 is nan, not a finite number"),
        ([float("inf"), 0.9], {}, "test_accuracy of run 1 is inf"),
        ([0.9, None], {}, "test_accuracy of run 2 is None"),
        ([0.9, "0.8"], {}, "test_accuracy of run 2 is '0.8'"),
        (FIRST, {"test_accuracy": None, "train_loss": {"values": FIRST}}, "has no test_accuracy; it has train_loss"),
        (FIRST, {"test_accuracy": 0.9}, "has no test_accuracy; it has no measure at all"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_in_one_line(folder, values, changes, words):
    with pytest.raises(UserError) as caught:
        compare([folder("a", FIRST), folder("b", values, **changes)])
    message = str(caught.value)
    assert words in message
    assert "b/summary.json: " in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "holds no summary.json; give a folder that `fastcifar train --runs N` wrote"),
        ('{"seed": 0, "test_accuracy": 0.9}', "the summary of a single run; give a folder that"),
        ("[1, 2]", "not the summary of several runs"),
        ("{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_a_folder_of_anything_else_is_refused_in_one_line(folder, tmp_path, text, words):
    (tmp_path / "b").mkdir()
    if text is not None:
        (tmp_path / "b" / "summary.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        compare([folder("a", FIRST), tmp_path / "b"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_measure_and_a_single_folder_are_refused(folder):
    a = folder("a", FIRST)
    with pytest.raises(UserError, match=r"`measure=test_acuracy`: .* did you mean 'test_accuracy'"):
        compare([a, a], "test_acuracy")
    with pytest.raises(UserError, match="at least two folders"):
        compare([a])
