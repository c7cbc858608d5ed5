from fastcifar.runtime.errors import nearest


def test_a_misspelt_word_brings_the_one_meant_and_a_strange_one_all_of_them():
    assert nearest("momentun", ["lr", "momentum"]) == "; did you mean 'momentum'?"
    assert nearest("zzz", {"lr": 1, "momentum": 2}) == "; valid are lr, momentum"
