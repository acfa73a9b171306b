import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdbench.errors import Rejected
from kdbench.extraction import Solution, code_block, split_answer


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("2 + 3 = 5. The answer is 5.", "2 + 3 = 5.", "5"),
        ("2 + 3 = 5.\nSo, the answer is: 5", "2 + 3 = 5.", "5"),
        ("Two and three.\n\nTHE ANSWER IS 5 apples.\n", "Two and three.", "5 apples"),
        ("\n Add. The answer is 3.50.", "Add.", "3.50"),
        ("The answer is 5 .", "", "5"),
        ("It adds up.\nThe answer is\n\n5", "It adds up.", "5"),
        ("It adds up.\n**The answer is 5.**", "It adds up.", "5"),
        ("It adds up.\n**The answer is: 5**.", "It adds up.", "5"),
        ("It adds up.\n**The answer is:** 5", "It adds up.", "5"),
        ("It adds up.\nThe answer is **5**.", "It adds up.", "5"),
        ("It adds up.\nThe answer is _five_.", "It adds up.", "five"),
        ("It adds up.\nThe answer is __init__.", "It adds up.", "__init__"),
        ("It adds up.\nThe answer is `*.py`.", "It adds up.", "*.py"),
        ("It adds up.\n### The answer is $5$.", "It adds up.", "5"),
        ("It costs that.\nThe answer is $5.", "It costs that.", "$5"),
        ("It adds up.\nTherefore the answer is \\(5\\).", "It adds up.", "5"),
        ("It adds up.\nThe answer is:\n\\[\n\\boxed{5}\n\\]", "It adds up.", "5"),
        ("It adds up.\nThe answer is $$\\boxed{5}$$.", "It adds up.", "5"),
        ("It adds up: $\\boxed{\\frac{1}{2}}$.", "It adds up:", "\\frac{1}{2}"),
        ("So $\\boxed{\\{1, 2\\}}$", "So", "\\{1, 2\\}"),
        ("It adds up.\n#### 1,200\n\n", "It adds up.", "1,200"),
        ("It adds up.\n<answer>\n5\n</answer>", "It adds up.", "5"),
        ("It adds up.\n<ANSWER>The answer is 5.</ANSWER>", "It adds up.", "5"),
        ("It adds up.\nThe answer is <answer>5</answer>.", "It adds up.", "5"),
        ("It adds up.\nThe answer is 5.\n#### 5", "It adds up.", "5"),
        ("It adds up.\nThe answer is 5. I hope this helps!", "It adds up.", "5"),
        ("He won.\nThe answer is Ulysses S. Grant.", "He won.", "Ulysses S. Grant"),
        ("He won.\nThe answer is Dr. No. He lost.", "He won.", "Dr. No"),
        ("It fits.\nThe answer is B. Paris", "It fits.", "B. Paris"),
        ("#### Step 1\nAdd.\n#### Step 2\nThe answer is 5.", "#### Step 1\nAdd.\n#### Step 2", "5"),
    ],
)  # fmt: skip
def test_the_answer_is_cut_from_the_reasoning(text, reasoning, answer):
    assert split_answer(text) == Solution(reasoning, answer)


@pytest.mark.parametrize(
    "text",
    ["", "It is 5.", "The answers are 5.", "The answer isn't 5.", "The answer is", "The answer is .",
     "\\boxed{5", "\\boxed{}", "<answer> </answer>", "#### Step 1\nAdd two and three.", "##### 5",
     "Bathe answer is 5"],
)  # fmt: skip
def test_a_reply_without_a_marked_answer_is_turned_down(text):
    with pytest.raises(Rejected) as caught:
        split_answer(text)
    assert caught.value.reason == "no_answer"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 5. No: The answer is 6.",
        "The answer is 5, or the answer is 6.",
        "The answer is 5.\n#### 6",
        "The answer is \\boxed{5} or \\boxed{6}",
        "<answer>5</answer> <answer>6</answer>",
        "First \\boxed{5}. Then the answer is 6.",
        "The answer is 5.\nThe answer is 6.\nThe answer is 5.",
    ],
)
def test_a_reply_with_two_answers_is_turned_down(text):
    with pytest.raises(Rejected) as caught:
        split_answer(text)
    assert caught.value.reason == "two_answers"
    assert "5" in caught.value.detail
    assert "6" in caught.value.detail or text.endswith("5.")


def test_an_answer_said_twice_is_cut_where_it_is_said_last():
    text = "3 + 2. The answer is 5. Check: 5 - 2 = 3. So the answer is 5."
    assert split_answer(text) == Solution("3 + 2. The answer is 5. Check: 5 - 2 = 3.", "5")
    assert split_answer("The Answer is Blue Whale.\n#### blue  whale").answer == "blue  whale"


def test_the_caller_may_say_when_two_answers_are_one():
    text = "The answer is $5.00.\n#### 5"
    assert split_answer(text, same=lambda a, b: float(a.strip("$")) == float(b)) == Solution("", "5")
    with pytest.raises(Rejected, match=r"two_answers: \$5\.00 / 5"):
        split_answer(text)


def test_the_marker_is_the_prompts():
    assert split_answer("Add. Answer: 5", marker="Answer:") == Solution("Add.", "5")
    assert split_answer("Add. answer 5", marker="Answer:") == Solution("Add.", "5")
    assert split_answer("Add.\nFinal  answer (5):7", marker="Final answer (5)").answer == "7"
    with pytest.raises(Rejected):
        split_answer("The answer is 5", marker="Answer:  ")


plain = st.text("abc 0123 =+\n.,", max_size=40)
tokens = st.from_regex(r"[-$]?[a-z0-9]+(?:[ ,.][a-z0-9]+)*", fullmatch=True)


@given(plain, tokens, st.sampled_from(
    ["The answer is {}.", "so the answer is: {}", "**The answer is {}.**", "The answer is **{}**.",
     "#### {}", "\\boxed{{{}}}", "$\\boxed{{{}}}$.", "<answer>{}</answer>",
     "The answer is {}.\n\n#### {}"]))  # fmt: skip
def test_what_is_put_together_comes_apart_again(reasoning, answer, ending):
    text = f"{reasoning.strip()}\n{ending.format(answer, answer)}"
    assert split_answer(text) == Solution(reasoning.strip(), answer)


pieces = st.lists(st.sampled_from(
    ["The answer is", "5", "6.", " ", "\n", "\\boxed{", "}", "<answer>", "</answer>", "####", "**", "$", "`",
     "_", ":", "```", "```python\n", "print(1)", "\\", "So "])).map("".join)  # fmt: skip


@given(st.one_of(st.text(), pieces))
@example("The answer is `" + "`" * 50)
def test_no_reply_breaks_the_parsers(text):
    for parse in (split_answer, code_block):
        with contextlib.suppress(Rejected):
            found = parse(text)
            assert found.answer.strip() if isinstance(found, Solution) else found.strip()


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("Sure:\n```python\nx = 1\nprint(x)\n```\nIt prints 1.", "x = 1\nprint(x)"),
        ("```py\nprint(1)\n```", "print(1)"),
        ("```Python\nprint(1)\n```", "print(1)"),
        ("```\nprint(1)\n```", "print(1)"),
        ("1. Do this:\n   ```python\n   if x:\n       y()\n   ```", "if x:\n    y()"),
        ("```python\nprint(1)\n```\nOutput:\n```\n1\n```", "print(1)"),
        ("```bash\npython a.py\n```\n```\nprint(1)\n```", "print(1)"),
        ("```python\nprint(1)\n```\nAgain:\n```python\nprint(1)\n\n```", "print(1)"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("```python\nprint(1)\nprint(2", "print(1)\nprint(2"),
        ("def f():\n    return 1\n\nprint(f())\n", "def f():\n    return 1\n\nprint(f())"),
        ("    print('\\d')\n    print(1)", "print('\\d')\nprint(1)"),
    ],
)
def test_the_program_of_a_reply(text, program):
    assert code_block(text) == program


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_program"),
        ("Here is the program: print(1)", "no_program"),
        ("print(1\n", "no_program"),
        ("return 1", "no_program"),
        ("x = '\0'", "no_program"),
        ("(" * 5000, "no_program"),
        ("```bash\nls\n```", "no_program"),
        ("```python\n\n```", "no_program"),
        ("```python\nprint(1)\n```\n```python\nprint(2)\n```", "two_programs"),
        ("```\nprint(1)\n```\n```\nprint(2)\n```", "two_programs"),
    ],
)
def test_replies_without_one_program_are_turned_down(text, reason):
    with pytest.raises(Rejected) as caught:
        code_block(text)
    assert caught.value.reason == reason
