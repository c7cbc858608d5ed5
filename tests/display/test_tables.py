import torch

from fastcifar.display.tables import print_evaluation
from fastcifar.run.score import Score


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
