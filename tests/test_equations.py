import operator
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from kdbench.equations import Equation, equations, path_key, pick_distinct


def written(text):
    return [f"{e.expression}={e.result}" for e in equations(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("48/2 = <<48/2=24>>24 and 48+24 = <<48 + 24 = 72>>72", "48/2=24 48+24=72"),
        ("<<$1,200.50*2=$2,401>>", "1200.50*2=2401"),
        ("<<5x2=10>> <<5 × 2=10>> <<2^3=8>>", "5*2=10 5*2=10 2**3=8"),
        ("2 + 2 = 4, <<1+1=2>>", "1+1=2"),
        ("She has 48 / 2 = 24 clips.", "48/2=24"),
        ("3 x 4 = 12, $5 * 2 = $10, 10 – 4 = 6 and 9 ÷ 3=3.", "3*4=12 5*2=10 10-4=6 9/3=3"),
        ("So $1,000 + 1,500 = $2,500.", "1000+1500=2500"),
        ("In all (2 + 3) * 4 = 20 (and -2 + 5 = 3).", "(2+3)*4=20 -2+5=3"),
        ("He pays (2 + 3 = 5).", "2+3=5"),
        ("1 + 4 = (2 + 3)", "1+4=(2+3)"),
        ("2 + 3 = 5 + 1 = 6", "2+3=5 5+1=6"),
        ("2 + 3 * 4 = 2 + 12 = 14", "2+3*4=2+12 2+12=14"),
        ("x = 48 / 2 = 24", "48/2=24"),
        ("\\(48 \\times 2 = 96\\) and $9 \\div 3 = 3$", "48*2=96 9/3=3"),
        ("The total is **2 + 3 = 5**.\n- 4 * 3 = 12\n* 1 + 1 = 2\n1. 7 - 2 = 5", "2+3=5 4*3=12 1+1=2 7-2=5"),
        ("Cost - 5 * 3 = $15/hour - so be it", "5*3=15"),
        ("There are 3, 4 + 5 = 9.", "4+5=9"),
        ("Step 3\n- 4 * 2 = 8", "4*2=8"),
        ("20% * 50 = 10", "20%*50=10"),
        (".5 * 4 = 2", ".5*4=2"),
        ("x = 5, 7 = 7, Day 1 = 5 apples, 2024-01-02, 3 apples * $2 = $6", ""),
        ("2x + 4 + 2 = 6; a - 4 + 2 = 6; y * 2 + 1 = 7; 4 + 2 = 3x; 4 + 2 = 3 * y", ""),
        ("y ** 2 + 1 = 5, x^2 + 1 = 5", ""),
        ("3(2 + 1) = 9; f(2 + 1) = 3; that is (some 2 + 1) = 3", ""),
        ("v1.2 + 3 = 5 and x1,000 + 5 = 7", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_calculations_of_a_text(text, found):
    assert written(text) == found.split()


@pytest.mark.parametrize(
    "text",
    ["<<48/2=24>>", "<<10/4=2.5>>", "<<10/3=3.333>>", "<<2**10=1024>>", "<<-(2+3)*2=-10>>", "<<7=14/2>>",
     "<<2**-1=.5>>", "<<007+1=8>>", "<<5/20=25%>>", "<<5/20*100=25%>>", "<<25%*8=2>>", "<<1+1=2=4/2>>",
     "<<0.1+0.2=0.3>>", "<<123456789*987654321=121932631112635269>>"],
)  # fmt: skip
def test_true_equations_are_valid(text):
    assert all(e.is_valid for e in equations(text))
    assert equations(text)


@pytest.mark.parametrize(
    "text",
    ["<<48/2=25>>", "<<10/3=3.33>>", "<<1/0=0>>", "<<5*2>>", "<<>>", "<<two+2=4>>", "<<9**9**9=1>>",
     "<<9**9**9**9**9=1>>", "<<((9**99)**99)**99=1>>", "<<2**0.5=1.414>>", "<<4**0.5=4>>", "<<6//2=3>>",
     "<<2+=2>>", "<<__import__('os')=1>>", "<<0**-1=0>>", "<<1_0*2=20>>", "<<1.2.3=1>>", "<<(1)(2)=2>>",
     "<<3=3.001>>"],
)  # fmt: skip
def test_what_is_false_or_cannot_be_evaluated_is_not_valid(text):
    began = time.monotonic()
    assert not all(e.is_valid for e in equations(text))
    assert time.monotonic() - began < 5


def test_a_false_step_spoils_a_chain_once():
    assert [e.is_valid for e in equations("2 + 3 = 6 + 1 = 7")] == [False, True]
    assert [e.is_valid for e in equations("2 + 3 = 5 + 1 = 7")] == [True, False]


CALCULATE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def decimal(number, places=2):
    sign = "-" if number < 0 else ""
    return f"{sign}{abs(number) // 10**places}.{abs(number) % 10**places:0{places}d}"


@st.composite
def true_equations(draw):
    """An expression of two or three numbers and what it is worth."""
    terms = draw(st.lists(st.integers(1, 9999), min_size=2, max_size=3))
    text, value = decimal(terms[0]), Fraction(terms[0], 100)
    for term in terms[1:]:
        sign = draw(st.sampled_from("+-*/"))
        number = Fraction(term, 100)
        value = CALCULATE[sign](value, number)
        text = f"({text} {sign} {decimal(term)})"
    return text[1:-1], value


@given(
    true_equations(),
    st.sampled_from(["<<{} = {}>>", "So {} = {} apples.", "**{} = {}**"]),
    st.sampled_from([0, 990, -990, 1010, -1010]),
)
def test_a_result_holds_within_a_thousandth(equation, shape, millionths_off):
    expression, value = equation
    result = decimal(round(value * 10**6) + millionths_off, 6)
    (found,) = equations(shape.format(expression, result))
    assert found.is_valid == (abs(millionths_off) < 1000)


spacing = st.lists(st.sampled_from(["", " ", "  "]), min_size=12, max_size=12)


@given(spacing, st.booleans())
def test_a_path_does_not_depend_on_spacing(spaces, annotated):
    gaps = iter(spaces)
    tokens = ["(", "48", "+", "2", ")", "/", "5", "=", "10"]
    chain = "".join(f"{next(gaps)}{token}" for token in tokens)
    text = f"We get <<{chain}>>10" if annotated else f"We get {chain}"
    assert path_key(text) == "(48+2)/5=10"


def test_paths_differ_by_their_calculations_and_their_order():
    texts = ["2 + 3 = 5, 5 * 2 = 10", "5 * 2 = 10, 2 + 3 = 5", "2 + 3 = 5", "3 + 2 = 5", "no sums"]
    assert len({path_key(text) for text in texts}) == len(texts)
    assert path_key("no sums") == ""


characters = [*"0123456789.,+-*/()=$%x^ \n", "**", "<<", ">>", "×", " = ", "a", "\\times", "１", "٣"]
noise = st.lists(st.sampled_from(characters)).map("".join)


@given(st.one_of(st.text(), noise, noise.map("<<{}>>".format)))
@example("<<" + "(" * 199 + "1>>")
@example("<<" + "-" * 199 + "1=1>>")
def test_no_text_breaks_it(text):
    for equation in equations(text):
        assert isinstance(equation, Equation)
        assert equation.is_valid in (True, False)


def test_an_expression_may_have_200_characters():
    assert equations(f"<<{'1+' * 99}11=110>>")[0].is_valid
    assert not equations(f"<<{'1+' * 100}1=101>>")[0].is_valid


@pytest.mark.parametrize(
    "text", ["1 + " * 2000 + "= 2", "(" * 9000 + "=", "1" * 9000 + "=", "1 " * 4000 + "=", "=1+1" * 2000]
)
def test_long_texts_are_read_in_time(text):
    began = time.monotonic()
    equations(text)
    assert time.monotonic() - began < 5


def by_the_papers_code(texts):
    """collect_rejection_sampling.py of OFA-Sys/gsm8k-ScRel, in our words."""
    paths, kept = [], []
    for text in texts:
        path = path_key(text)
        if path not in paths:
            paths.append(path)
            kept.append(text)
            continue
        now = kept[paths.index(path)]
        score, now_score = (
            sum(Levenshtein.distance(candidate, other) for other in kept if other != now)
            for candidate in (text, now)
        )
        if score > now_score:
            kept[paths.index(path)] = text
    return kept


paths = st.sampled_from(["<<1+1=2>>", "<<2+2=4>>", "<<1+1=2>><<2+2=4>>", ""])


@given(st.lists(st.tuples(st.text("ab", max_size=6), paths).map("".join)))
def test_one_text_a_path_is_kept_as_the_paper_does(texts):
    picked = pick_distinct(texts)
    assert [texts[i] for i in picked] == by_the_papers_code(texts)
    assert {path_key(texts[i]) for i in picked} == {path_key(t) for t in texts}
    assert len(picked) == len({path_key(t) for t in texts})


def test_of_one_path_the_text_furthest_from_the_others_is_kept():
    texts = ["So 1 + 1 = 2.", "So 2 + 2 = 4.", "Adding one to one gives us 1 + 1 = 2.", "So, 2 + 2 = 4."]
    assert pick_distinct(texts) == [2, 1]
    assert pick_distinct(["b 1 + 1 = 2", "a 1 + 1 = 2"]) == [0]
    assert pick_distinct([]) == []
