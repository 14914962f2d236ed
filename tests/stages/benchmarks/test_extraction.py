import pytest

from stages.benchmarks.extraction import number, numbers, option_letter, short_answer, yes_or_no

ANIMALS = ("a dog", "a cat", "a horse", "none of the above")
LETTER_ANSWERS = [
    ("B", "B"),
    ("b", "B"),
    ("B.", "B"),
    ("(B)", "B"),
    ("[B]", "B"),
    (" b) ", "B"),
    ("**B**", "B"),
    ("Ｂ", "B"),
    ("（Ｂ）", "B"),
    ("\\boxed{B}", "B"),
    ("$\\boxed{\\text{B}}$", "B"),
    ("<answer>B</answer>", "B"),
    ("<think>A or C? It must be A.</think>B", "B"),
    ("B. a cat", "B"),
    ("(B) a cat", "B"),
    ("b) a cat", "B"),
    ("B: a cat", "B"),
    ("B - it has whiskers", "B"),
    ("B\nThe picture shows a cat.", "B"),
    ("Answer: B", "B"),
    ("answer: b", "B"),
    ("The answer is B.", "B"),
    ("The answer is (B), not (A).", "B"),
    ("The correct answer is B because A is a dog.", "B"),
    ("The correct option is (B)", "B"),
    ("The answer would be option B", "B"),
    ("答案是B", "B"),
    ("Option A is wrong. Option C is wrong. The answer is B.", "B"),
    ("The answer is B. Option A is wrong since it barks.", "B"),
    ("I first thought of A. On reflection, the answer is B", "B"),
    ("I would go with B", "B"),
    ("B because of the whiskers", "B"),
    ("A cat", "B"),
    ("a cat.", "B"),
    ("A cat is sitting there.", "B"),
    ("The animal in the picture is a cat", "B"),
    ("A, because it barks", "A"),
    ("None of the above", "D"),
    ("It is not A but B", "B"),
    ("B because it is not a dog", "B"),
    ("A bird", ""),
    ("The answer is a bird", ""),
    ("The answer is A bird", ""),
    ("The answer is A or B", ""),
    ("Both A and B", ""),
    ("It is either (A) or (C).", ""),
    ("a dog or a cat", ""),
    ("E", ""),
    ("The answer is E", ""),
    ("I do not know", ""),
    ("I", ""),
    ("yes", ""),
    ("", ""),
]


@pytest.mark.parametrize(("said", "letter"), LETTER_ANSWERS)
def test_an_option_is_found(said: str, letter: str) -> None:
    assert option_letter(said, ANIMALS) == letter


@pytest.mark.parametrize(
    ("said", "options", "letter"),
    [
        ("It lacks vitamin C.", ("vitamin A", "vitamin C", "vitamin D"), "B"),
        ("15", ("5", "15", "1.5"), "B"),
        ("It is 1.5 m", ("5", "15", "1.5"), "C"),
        ("red and blue", ("red", "red and blue"), "B"),
        ("Yes, it is", ("yes", "no"), "A"),
        ("B", ("C", "A", "B"), "B"),
        ("E", ("1", "2", "3", "4", "5"), "E"),
        ("Answer: D", ("", "", "", ""), "D"),
        ("the U.S.", ("the U.S.", "the U.K."), "A"),
    ],
)
def test_texts_of_options_do_not_confuse(said: str, options: tuple[str, ...], letter: str) -> None:
    assert option_letter(said, options) == letter


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Yes", "yes"),
        ("yes", "yes"),
        ("YES!", "yes"),
        ("Yes.", "yes"),
        ("**Yes**", "yes"),
        ('"Yes"', "yes"),
        ("Yes, there is no doubt.", "yes"),
        ("Yes, but not in the middle", "yes"),
        ("Yeah, on the left", "yes"),
        ("- Yes", "yes"),
        ("\nYes", "yes"),
        ("Answer: yes", "yes"),
        ("The answer is yes", "yes"),
        ("There is a dog in the image.", "yes"),
        ("A dog stands there. It is not a cat.", "yes"),
        ("I can see a person. No cars.", "yes"),
        ("Looking closely, nothing is hidden... the answer is: Yes", "yes"),
        ("ＹＥＳ", "yes"),
        ("No", "no"),
        ("no.", "no"),
        ("NO", "no"),
        ("No, there is a cat.", "no"),
        ("Nope", "no"),
        ("(no)", "no"),
        ("Answer: No", "no"),
        ("The answer is no.", "no"),
        ("There is no dog in the image.", "no"),
        ("There isn't a dog.", "no"),
        ("There isn’t a dog.", "no"),
        ("I cannot see a dog", "no"),
        ("It does not show one.", "no"),
        ("None is visible", "no"),
        ("<think>yes?</think>No", "no"),
        ("Noah is in the picture", "yes"),
        ("Nothing like that", "no"),
        ("", ""),
        ("...", ""),
    ],
)
def test_yes_and_no_are_found(said: str, found: str) -> None:
    assert yes_or_no(said) == found


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("14", 14),
        ("14.", 14),
        (" 14 ", 14),
        ("-3", -3),
        ("−3", -3),
        ("+3", 3),
        ("0.6", 0.6),
        (".5", 0.5),
        ("1,234", 1234),
        ("1,234,567.5", 1234567.5),
        ("1e3", 1000),
        ("2.5E-1", 0.25),
        ("$1.45", 1.45),
        ("45%", 45),
        ("3.5cm", 3.5),
        ("１２", 12),
        ("**42**", 42),
        ("\\boxed{42}", 42),
        ("The answer is 42.", 42),
        ("Answer: 42", 42),
        ("The number missing in the sequence is 14.", 14),
        ("5 + 3 = 8", 8),
        ("8 (5 + 3)", 8),
        ("8. Because 5 and 3 make it", 8),
        ("There are 5 dogs and 3 cats, 8 in all", 8),
        ("between 2007 and 2008", 2008),
        ("2007-2008", 2008),
        ("1/4", 0.25),
        ("The answer is 1/4", 0.25),
        ("The answer is 12, since 7 + 5 are 12", 12),
        ("twelve", 12),
        ("There are three of them", 3),
        ("H2O has 3 atoms", 3),
        ("1, 2, 3", 3),
        ("<think>7</think>9", 9),
        ("1/0", None),
        ("none", None),
        ("", None),
    ],
)
def test_a_number_is_found(said: str, value: float | None) -> None:
    assert number(said) == value


def test_all_numbers_of_a_list_are_found() -> None:
    assert numbers("[2007, 2,008.5, -1]") == [2007, 2008.5, -1]
    assert numbers("between 2007 and 2008") == [2007, 2008]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("The answer is 42%.", "42%"),
        ("Answer: Blue", "Blue"),
        ("blue", "blue"),
        ('"blue."', "blue"),
        ("**blue**", "blue"),
        ("3.5", "3.5"),
        ("The answer is the U.K.", "the U.K"),
        ("", ""),
    ],
)
def test_a_short_answer_loses_what_surrounds_it(said: str, found: str) -> None:
    assert short_answer(said) == found
