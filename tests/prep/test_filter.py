"""skytrain prep filter: each check fires and does not, the account adds up, nothing is held or lost."""

import json
import os
import random
import signal

import commands
import pytest
from chat_samples import chat, write_jsonl

from skytrain.errors import UserError
from skytrain.prep import filter as prep_filter
from skytrain.prep.balance import Limits, allowed
from skytrain.prep.filter import Checks, filter_chats
from skytrain.prep.quality import loop
from skytrain.prep.stage import read_finished
from skytrain.prep.texts import count_words, terms, tokens

FILLER = (
    "The river rises in the northern hills and runs south for some ninety miles before it meets the sea. "
    "Along its banks stand mills, some of them still at work, and villages whose fairs were known far away. "
)
LONG_ITEM = (
    "Let $ABCD$ be a convex quadrilateral whose diagonals meet at the point $P$, and suppose that the areas of the "
    "triangles $ABP$ and $CDP$ are 24 and 54 while the side $AB$ is parallel to $CD$. Determine the area of the "
    "quadrilateral and prove that the answer does not depend on the shape."
)


def filtered(tmp_path, rows, items=None, name="out", checks=None, **settings):
    """(kept rows, {id: (reason, detail)} of the dropped ones)"""
    source, out = write_jsonl(tmp_path / f"{name}_in.jsonl", rows), tmp_path / f"{name}.jsonl"
    against = []
    if items is not None:
        items = [{"problem": item} if isinstance(item, str) else item for item in items]
        against = [write_jsonl(tmp_path / f"{name}_bench.jsonl", items)]
    account = filter_chats([source], out, against=against, checks=checks or Checks(**settings), overwrite=True)
    assert account.problem() is None and account.read == len(rows)
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    dropped = [json.loads(line) for line in (tmp_path / f"{name}.dropped.jsonl").read_text().splitlines()]
    assert len(kept) == account.kept and len(dropped) == sum(account.dropped.values())
    return kept, {row["id"]: (row["reason"], row["detail"]) for row in dropped}


def graded(i, question, answer="It is so.", **keys):
    row = chat(question, answer, id=f"r{i}", problem=f"p{i}", source="pool", domain="math", difficulty=3, sample=0)
    extra = {"prompt": question, "gold": "1", "tests": None, "solution": None, "starter": None, "form": "tags"}
    return {**row, **extra, "verdict": "correct", "provenance": {"file": "a", "grade": {"strength": "full"}}, **keys}


def copied(tmp_path, prompt, items, response="It is so.", others=()):
    rows = [graded(0, prompt, response), *(graded(i, text) for i, text in enumerate(others, 1))]
    kept, dropped = filtered(tmp_path, rows, items, dedup=False)
    assert "r0" in dropped or any(row["id"] == "r0" for row in kept)
    return dropped.get("r0")


SHORT = [
    "How many primes divide 2310 exactly?",
    "Evaluate $\\log_2 (4^2)$.",
    "Who painted the ceiling of the chapel?",
    "What is the remainder when 7^{100} is divided by 13?",
    "Compute $\\frac{3}{4} + \\frac{1}{6} - \\frac{5}{12}$.",
    "Сколько простых чисел меньше двухсот?",
    "求方程 x^2-5x+6=0 的所有实数根。",
    "Is 𝑥² + 1 irreducible over ℚ?",
]


@pytest.mark.parametrize("item", SHORT)
@pytest.mark.parametrize("form", ["{}", "{long}{}{long}", "{long}\n\n{}\n{long}", "Solve this: {} Think first."])
def test_a_short_item_inside_a_document_is_found(tmp_path, item, form):
    """D65; that set phrases are kept is below."""
    reason, detail = copied(tmp_path, form.format(item, long=FILLER * 20), [LONG_ITEM, item])
    assert reason == "contaminated" and "out_bench.jsonl item 2" in detail


@pytest.mark.parametrize("change", [str.upper, lambda s: s.replace(" ", "\n "), lambda s: f"**{s}**", lambda s: s[:-1],
                                    lambda s: s.replace(" ", "  "), lambda s: s.replace("ny", "\u200bny")])  # fmt: skip
def test_typography_hides_no_copy(tmp_path, change):
    item = SHORT[0]
    assert copied(tmp_path, FILLER + change(item) + " " + FILLER, [item])[0] == "contaminated"


@pytest.mark.parametrize("other", ["Find $x$ if $\\dfrac{x}{2} - 3\\cdot x = 1{,}000$", "Find x if x/2 − 3·x = 1000.",
                                   "Find \\(x\\) if \\[\\frac x2-3 \\times x=1,000\\]"])  # fmt: skip
def test_spellings_of_mathematics_hide_no_copy(tmp_path, other):
    assert copied(tmp_path, FILLER + other + FILLER, ["Find $x$ if $\\frac{x}{2} - 3x\\cdot 1 = 5$", other])[0]
    assert copied(tmp_path, FILLER + other, ["Find $x$ if $\\frac{x}{2}-3 \\cdot x=1000$."])[0] == "contaminated"


def test_an_item_in_a_later_turn_or_in_the_response_is_found(tmp_path):
    assert copied(tmp_path, "Tell me of rivers.", [SHORT[0]], numbered(99) + SHORT[0] + FILLER)[0] == "contaminated"
    turns = [chat("Hello there", "Hello.")["messages"], chat(FILLER + SHORT[0], "Five.")["messages"]]
    _, dropped = filtered(tmp_path, [{"id": "a", "messages": turns[0] + turns[1]}], [SHORT[0]], name="turns")
    assert dropped["a"][0] == "contaminated"


@pytest.mark.parametrize("answer", [FILLER, "What is 12 times 7? It is 84.", "Find x. Then solve it."])
def test_what_everybody_says_in_a_response_is_kept(tmp_path, answer):
    items = ["Find x.", "What is 12 times 7?", "Solve it", LONG_ITEM]
    assert copied(tmp_path, "Tell me of rivers.", items, answer) is None


INSTRUCTION = (
    "You are given an array of integers, and the first line of the input holds the number of test cases. For each test "
    "case print the answer on a single line, modulo 1000000007, and do not print anything else. "
)
BOILERPLATE = [
    ("Find the sum of all possible values of $k$ for which $k^3 - k$ is a multiple of 42 and $k < 100$.",
     ["Find the sum of all possible values of $n$ such that $n^2 + 1$ divides $n + 3$."]),
    (INSTRUCTION + "How many pairs are coprime?",
     [INSTRUCTION + "Find the longest increasing run.", INSTRUCTION + "What is the least swap count?",
      INSTRUCTION + "Say whether a majority exists."]),
    ("A robot walks. " + INSTRUCTION + "How many pairs are coprime?",
     ["A cat sleeps on hay. " + INSTRUCTION + "Find the longest run.", "Two dogs run. " + INSTRUCTION + "Who wins?"]),
    ("In an $n \\times n$ grid, each cell is black or white. Count the colourings without a white row.",
     ["In an $n \\times n$ grid, each cell holds a coin. How many moves turn all of them?"]),
    (FILLER + "What is the value of it all?", ["What is the value of $x$?", "What is it?", "Simplify."]),
    ("Put your final answer within \\boxed{}. What is the largest prime below 90?",
     ["Put your final answer within \\boxed{}. What is the product of the digits of 90?"]),
]  # fmt: skip


@pytest.mark.parametrize("prompt, items", BOILERPLATE)
def test_set_phrases_are_no_copies(tmp_path, prompt, items):
    assert copied(tmp_path, prompt, items) is None
    assert copied(tmp_path, prompt, [*items, prompt])[0] == "contaminated"


def test_what_many_training_prompts_say_is_a_set_phrase(tmp_path):
    item = INSTRUCTION + "How many pairs are coprime?"
    prompt = INSTRUCTION + "Sort them by their last digit and sum those at even places."
    assert copied(tmp_path, prompt, [item])[0] == "contaminated"
    others = [f"{INSTRUCTION} Task {i}: add number {i} to all." for i in range(9)]
    assert copied(tmp_path, prompt, [item], others=others) is None
    assert copied(tmp_path, item, [item], others=others)[0] == "contaminated"


@pytest.mark.parametrize("item", ["Print the answer on a single line", "What is the answer?"])
def test_a_short_item_that_many_prompts_contain_is_a_set_phrase(tmp_path, item):
    others = [f"Add {i} to a number. {item}\nThink." for i in range(30)]
    assert copied(tmp_path, FILLER + item, [item]) is not None
    assert copied(tmp_path, FILLER + item, [item], others=others) is None
    assert copied(tmp_path, item, [item], others=others)[0] == "contaminated"


def reworded(text, seed, changes):
    words = text.split()
    for i in random.Random(seed).sample([i for i, word in enumerate(words) if word.isalpha()], changes):
        words[i] = "something"
    return " ".join(words)


@pytest.mark.parametrize("seed", range(4))
def test_near_copies_are_found(tmp_path, seed):
    item = "A baker sells loaves of rye at 3 coins and rolls of wheat at 2; how much do 14 loaves and 9 rolls cost?"
    for text in (reworded(item, seed, 1), FILLER + reworded(item, seed, 1) + FILLER, reworded(LONG_ITEM, seed, 2)):
        reason, detail = copied(tmp_path, text, [item, LONG_ITEM])
        assert reason == "contaminated" and ("containment" in detail or "cover" in detail)
    assert copied(tmp_path, reworded(item, seed, 12), [item]) is None


def test_half_of_a_long_item_is_a_copy_and_a_quarter_is_none(tmp_path):
    words = LONG_ITEM.split()
    assert copied(tmp_path, FILLER + " ".join(words[: len(words) * 2 // 3]), [LONG_ITEM])[0] == "contaminated"
    assert copied(tmp_path, FILLER + " ".join(words[: len(words) // 4]), [LONG_ITEM]) is None


def test_near_copies_can_be_let_through(tmp_path):
    item = "A baker sells rye at 3 coins and wheat at 2; how much do 14 loaves and 9 rolls cost a man on a market day?"
    near = item.replace("coins", "francs").replace("loaves", "buns")
    for similarity, count in ((0.6, 1), (0, 0), (1, 0)):
        assert len(filtered(tmp_path, [graded(0, near)], [item], similarity=similarity)[1]) == count


@pytest.mark.parametrize("old, new", [("24 and 54", "20 and 45"), ("24 and 54", "-24 and 5.5")])
def test_the_same_template_is_kept_and_told(tmp_path, old, new):
    rows = [graded(0, LONG_ITEM.replace(old, new)), graded(1, "Solve it. " + LONG_ITEM.replace(old, new) + " Now.")]
    rows += [graded(2, LONG_ITEM), graded(3, "Tom has 12 pears and eats five. How many?"), graded(4, "What is 2 + 3?")]
    items = [LONG_ITEM, "Tom has 9 pears and eats three. How many?", "What is 7 + 8?"]
    kept, dropped = filtered(tmp_path, rows, items)
    assert dropped == {"r2": ("contaminated", "out_bench.jsonl item 1: all of it stands in the prompt")}
    assert [row["provenance"]["same_template"][-1] for row in kept] == ["1", "1", "2", "3"]
    assert all(row["provenance"]["grade"] == {"strength": "full"} for row in kept)
    assert read_finished(tmp_path / "out.jsonl").account.notes["same_template"] == 4


@pytest.mark.parametrize("a, b", [("What is 2+3?", "What is 2-3?"), ("2*(3+4) = ?", "(2*3)+4 = ?"),
                                  ("What is the capital of France?", "What is the capital of Germany?"),
                                  ("1 + 1 + 1 + 1 + 1 + 1 = ?", "1 + 1 + 1 + 1 + 1 + 1 + 1 = ?"),
                                  ("Find x when x ≤ 3", "Find x when x ≥ 3")])  # fmt: skip
def test_small_differences_that_matter(tmp_path, a, b):
    kept, dropped = filtered(tmp_path, [graded(0, a), graded(1, b)], [a] if "(" not in a else None)
    assert "r1" not in dropped and kept[-1]["id"] == "r1"


def test_families_of_pictures_and_one_word_questions(tmp_path):
    words = ["ammonia", "splat", "carpet", "window", "sailor", "candle", "mirror"]
    rows = [graded(i, f"Spell this word backward (example: sun -> nus): {word}") for i, word in enumerate(words)]
    grids = [f"How many rectangles does the picture show?\n{sign * 3}\n{sign}.{sign}\n" for sign in "#@&"]
    rows += [graded(10 + i, grid) for i, grid in enumerate(grids)]
    items = [rows[i]["prompt"] for i in (0, 1, 2, 3, 7)]
    kept, dropped = filtered(tmp_path, rows, items)
    assert set(dropped) == {"r0", "r1", "r2", "r3", "r10"} and len(kept) == 5


def test_another_story_with_other_numbers_is_a_template(tmp_path):
    story = ("{} has {} potted plants on each of the {} window ledges of her large country home. Feeling generous, she "
             "has decided that she will give {} of them from each ledge to friends and family tomorrow. How many "
             "plants will {} remain with?")  # fmt: skip
    item, other = story.format("Olivia", 12, 61, 8, "Olivia"), story.format("Isabella", 9, 58, 4, "Isabella")
    kept, dropped = filtered(tmp_path, [graded(0, other), graded(1, item.replace("Olivia", "Anna"))], [item, LONG_ITEM])
    assert kept[0]["provenance"]["same_template"].endswith("item 1") and dropped["r1"][0] == "contaminated"


def test_items_of_all_file_kinds_and_keys(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = [f"How many {kind} live in the forest of Arden?" for kind in ("owls", "bears", "deer", "wolves")]
    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"Question": texts[0]}, {"prompt": texts[1]}]))
    table = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question_content": [texts[2]]}), table)
    source = write_jsonl(tmp_path / "in.jsonl", [graded(i, text) for i, text in enumerate(texts)])
    account = filter_chats([source], tmp_path / "out.jsonl", against=[array, table])
    assert account.dropped == {"contaminated": 3}
    against = read_finished(tmp_path / "out.jsonl").settings["against"]
    assert [name for name, _, _ in against] == ["array.json", "table.parquet"] and len(against[0][2]) == 64


def test_rows_are_lean_and_keep_their_provenance(tmp_path, capsys):
    released = {"system": "Think.", "conversations": [{"from": "user", "value": "Why?"},
                                                      {"from": "assistant", "value": "So."}]}  # fmt: skip
    rows = [graded(0, "What is one?"), released, chat("Who?", "He.", source="")]
    kept, _ = filtered(tmp_path, rows, source="sky")
    assert list(kept[0]) == ["messages", "id", "problem", "source", "domain", "difficulty", "sample", "form", "verdict",
                             "provenance"]  # fmt: skip
    assert kept[0]["provenance"] == rows[0]["provenance"]
    assert kept[1] == {**released, "source": "sky"} and kept[2]["source"] == "sky"
    told = capsys.readouterr()
    assert told.out == "filter: read 3 = kept 3 + dropped 0\n" and told.err.count("\n") == 1
    assert "no decontamination" in told.err


@pytest.mark.parametrize(
    "other", ["what is  THE sum,of 2 + 2", "**What** is the sum of $2+2$", "What is the sum of ２+２"]
)
def test_duplicates_but_for_typography(tmp_path, other):
    question = "What is the sum of 2+2?"
    rows = [graded(0, question, "It is 4."), graded(1, other, "it is  4", problem="p0"),
            graded(2, other, "It is four."), graded(3, other, "Four, it is.", problem="p0", sample=1)]  # fmt: skip
    kept, dropped = filtered(tmp_path, rows)
    assert [row["id"] for row in kept] == ["r0", "r3"]
    assert dropped["r1"] == ("duplicate", "the same prompt and response as r0")
    assert dropped["r2"] == ("duplicate_problem", "the same prompt as r0, of the problem p0")
    assert len(filtered(tmp_path, rows, name="off", dedup=False)[0]) == 4
    kept, dropped = filtered(tmp_path, rows, name="one", per_problem=1)
    assert [row["id"] for row in kept] == ["r0"] and dropped["r3"][0] == "per_problem"


def test_chats_without_ids_are_samples_of_one_problem(tmp_path):
    rows = [chat("Why?", "So."), chat("Why?", "Because."), chat("Why", "so")]
    kept, dropped = filtered(tmp_path, rows)
    assert len(kept) == 2 and dropped[None][0] == "duplicate" and dropped[None][1].endswith("out_in.jsonl:1")


SENTENCE = "We add the two sides and compare the result with what was found before. "
MIXED = [
    ("What is it?", "We think. 所以我们得到最后的答案 is 5." + SENTENCE * 40),
    ("What is it?", SENTENCE * 3 + "Теперь мы знаем ответ на этот вопрос."),
    ("What is it?", SENTENCE * 3 + "الجواب هو خمسة بعد الحساب"),
    ("What is it?", "답은 오입니다 그리고 끝입니다 네 맞습니다. " + SENTENCE),
    ("什么是答案？", "答案是五。Теперь мы знаем ответ на вопрос."),
    ("What is it?", "".join(f"{SENTENCE}但是 " for _ in range(20))),
]
PURE = [
    ("什么是答案？", "答案是五。" * 3),
    ("什么是答案？", SENTENCE),
    ("これは何ですか？", "答えは五です。計算しました。"),
    ("Сколько будет?", "Будет пять, потому что так вышло."),
    ("What is it?", "Let αβγ δεζ ηθκ λμν be ∑∏∫ ℵ₀ ℝℂ 𝑥𝒚𝔷, Ünïcödé naïve façade; Ш(E) is finite. " + SENTENCE),
    ("What is it?", "In Moscow (Москва) they said so. " + SENTENCE * 10),
    ("Translate into Russian: we know the answer", "Мы знаем ответ на этот вопрос."),
    ("Who wrote 紅樓夢 and the story 石頭記?", "The novel 紅樓夢 is also named 石頭記. " + SENTENCE),
    ("What is it?", "∀x∈ℝ: ∃y→∞, ⇒ ⟨a|b⟩ 🙂🙂 ½ ² ₃ Å µ. " + SENTENCE),
]


@pytest.mark.parametrize("prompt, response", MIXED)
def test_mixed_languages_are_dropped(tmp_path, prompt, response):
    assert filtered(tmp_path, [graded(0, prompt, response)], loops=False)[1]["r0"][0] == "mixed_language"
    assert filtered(tmp_path, [graded(0, prompt, response)], name="off", loops=False, languages=False)[1] == {}


@pytest.mark.parametrize("prompt, response", PURE)
def test_mathematics_and_names_are_no_other_language(tmp_path, prompt, response):
    assert filtered(tmp_path, [graded(0, prompt, response)], loops=False)[1] == {}


def numbered(count):
    rng = random.Random(count)
    return " ".join(f"{rng.choice(['we', 'you', 'they'])} takes {rng.randrange(999)} units," for _ in range(count))


LOOPS = {
    "sentence": "Wait, let me check that again.\n" * 12,
    "tail": numbered(400) + " and so the answer is that" * 60,
    "middle": numbered(200) + " I should try another way." * 30 + numbered(200),
    "word": "the " * 300,
    "paragraph": (numbered(30) + "\n\n") * 6,
    "han": "所以答案是五。" * 40,
    "laugh": "ha" * 5000,
    "numbers": "0, 1, " * 3000,
}
NO_LOOPS = {
    "table": "\n".join(f"| row {i} | {i * i} | yes | no |" for i in range(300)),
    "equal rows": "| 0 | 0 | 1 | no |\n" * 60,
    "rule": "|-----|-----|-----|\n" * 10 + "-" * 300,
    "matrix": "\\begin{pmatrix} " + "0 & 0 & 1 & 0 \\\\ " * 40 + "\\end{pmatrix}",
    "list": ", ".join(str(i % 7) for i in range(600)),
    "sum": "1+1+" * 300 + "1 = 601",
    "spaced sum": "1 + " * 400 + "1 = 401",
    "code": "\n".join(f"    if x == {i}:\n        return table[{i}]" for i in range(120)),
    "array": "[" + "[0, 0, 0, 0, 0, 0, 0, 0],\n" * 60 + "]",
    "booleans": "[" + "True, False, " * 80 + "]",
    "prints": 'print("hello there world")\n' * 10,
    "few": "Let me check that again. " * 4,
    "prose": numbered(1000),
    "said twice": (numbered(100) + "\n") * 2,
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_dropped(tmp_path, name):
    reason, detail = filtered(tmp_path, [graded(0, "Why?", LOOPS[name])], languages=False)[1]["r0"]
    assert reason == "repetition" and "in a row" in detail
    assert filtered(tmp_path, [graded(0, "Why?", LOOPS[name])], name="off", languages=False, loops=False)[1] == {}


@pytest.mark.parametrize("name", NO_LOOPS)
def test_tables_sums_and_code_are_no_loops(tmp_path, name):
    assert filtered(tmp_path, [graded(0, "Why?", NO_LOOPS[name])])[1] == {}


def test_a_loop_ends_where_its_settings_say():
    assert loop("so we try once more, " * 5, words=200, repeats=5) and not loop(
        "so we try it, " * 5, words=200, repeats=6
    )
    assert loop("a b c d e f g h", words=20, repeats=3) is None and loop("", words=20, repeats=3) is None


def test_lengths_verdicts_and_empty_answers(tmp_path):
    tags = "<|begin_of_thought|>\nLong thoughts.\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{}\n<|end_of_solution|>"
    rows = [graded(0, "Why 0?", tags.format("Five.")), graded(1, "Why 1?", tags.format("")), graded(2, "Why 2?", "No."),
            graded(3, "Why 3?", "<think>Hm.</think>\n\n"), graded(4, "Why 4?", "one two three", verdict="wrong"),
            graded(5, "Why 5?", "one two three", verdict=None), graded(6, "Why 6?", numbered(9)), {"id": "r7"},
            graded(8, "Why 8?", " "), chat("Why 9?", "字字字", id="r9")]  # fmt: skip
    kept, dropped = filtered(tmp_path, rows, min_words=2, max_words=8, languages=False)
    assert [row["id"] for row in kept] == ["r0", "r5", "r9"]
    assert {key: reason for key, (reason, _) in dropped.items()} == {
        "r1": "empty", "r2": "too_short", "r3": "empty", "r4": "wrong", "r6": "too_long", "r7": "malformed",
        "r8": "empty",
    }  # fmt: skip
    assert "r4" not in filtered(tmp_path, rows, name="off", verdicts=False, languages=False)[1]


def sources(**counts):
    return [chat(f"Question {i} of {name}?", f"It is {i}.", id=f"{name}{i}", source=name)
            for name, count in counts.items() for i in range(count)]  # fmt: skip


def test_balance_keeps_shares_quotas_and_order(tmp_path):
    rows = sources(a=60, b=30, c=10)
    kept, dropped = filtered(tmp_path, rows, checks=Checks(limits=Limits({"a": 0.4}, {"b": 20, "c": 15})))
    found = [row["source"] for row in kept]
    assert {name: found.count(name) for name in "abc"} == {"a": 20, "b": 20, "c": 10} and found == sorted(found)
    assert set(dropped.values()) == {("over_quota", "of a"), ("over_quota", "of b")}
    assert read_finished(tmp_path / "out.jsonl").account.notes == {"short of c": 5}
    kept, _ = filtered(tmp_path, rows, name="each", checks=Checks(limits=Limits(each=7)))
    assert len(kept) == 21


def test_the_choice_is_the_same_for_shuffled_rows_and_other_for_another_seed(tmp_path):
    rows = sources(a=60, b=30) + [graded(i, SHORT[i % 8], numbered(i + 3)) for i in range(8)]
    limits = Limits(each=10)
    chosen = []
    for seed, order in ((0, 0), (0, 1), (0, 2), (1, 0)):
        shuffled = random.Random(order).sample(rows, len(rows))
        checks = Checks(limits=limits, seed=seed)
        kept, dropped = filtered(tmp_path, shuffled, SHORT[:4], name=f"s{seed}{order}", checks=checks)
        chosen.append(
            (sorted(row["id"] for row in kept), sorted((key, reason) for key, (reason, _) in dropped.items()))
        )
    assert chosen[0] == chosen[1] == chosen[2] != chosen[3]
    assert len(chosen[0][0]) == 24


def test_the_largest_solution_of_shares():
    assert allowed({"a": 100, "b": 30, "c": 10}, Limits({"a": 0.4})) == {"a": 26, "b": 30, "c": 10}
    assert allowed({"a": 100, "b": 100}, Limits({"a": 0.5, "b": 0.5})) == {"a": 100, "b": 100}
    with pytest.raises(UserError, match="leaves no rows of 100"):
        allowed({"a": 100}, Limits({"a": 0.4}))


def test_many_prompts_against_many_items(tmp_path):
    rng = random.Random(5)
    nouns = [f"thing{i}" for i in range(400)]
    texts = [" ".join(rng.choices(nouns, k=40)) + f" {i}?" for i in range(2200)]
    rows = [graded(i, text) for i, text in enumerate(texts[:2000])]
    kept, dropped = filtered(tmp_path, rows, texts[1900:])
    assert set(dropped) == {f"r{i}" for i in range(1900, 2000)} and len(kept) == 1900


@pytest.mark.parametrize("settings", [{"ngram": 1}, {"coverage": 0}, {"coverage": 1.5}, {"similarity": float("nan")},
                                      {"min_words": 9, "max_words": 3}, {"max_words": 0}, {"per_problem": 0},
                                      {"source": " "}, {"loop_words": 1}, {"foreign_share": -1},
                                      {"limits": Limits({"a": 0.0})}, {"limits": Limits({}, {"a": -1})},
                                      {"limits": Limits(each=0)}])  # fmt: skip
def test_settings_out_of_range(tmp_path, settings):
    source = write_jsonl(tmp_path / "in.jsonl", sources(a=2))
    with pytest.raises(UserError):
        filter_chats([source], tmp_path / "out.jsonl", checks=Checks(**settings))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("bench", ["", "{}\n", '{"answer": "x"}\n', "[1]", '{"problem": " "}\n', "nonsense\n"])
def test_evaluation_sets_without_items(tmp_path, bench):
    source, path = write_jsonl(tmp_path / "in.jsonl", sources(a=2)), tmp_path / "bench.jsonl"
    path.write_text(bench)
    with pytest.raises(UserError, match=r"bench\.jsonl"):
        filter_chats([source], tmp_path / "out.jsonl", against=[path])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.jsonl", "in.jsonl"]


def command(*words):
    return commands.run("prep", "filter", *words)


def test_the_command(tmp_path):
    source, bench = write_jsonl(tmp_path / "in.jsonl", sources(a=9, b=9)), tmp_path / "bench.jsonl"
    write_jsonl(bench, [{"prompt": "Question 3 of a?"}])
    out = tmp_path / "out.jsonl"
    limits = ["--max-share", "a=0.25", "--quota", "b=6", "--no-loops"]
    done = command(source, "--out", out, "--against", bench, *limits)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout.splitlines(True)[-1]
        == "filter: read 18 = kept 8 + dropped 10 (over_quota 9, contaminated 1); same_template 8\n"
    )
    again = command(source, "--out", out, "--against", bench, *limits)
    assert again.stdout.endswith("(done before)\n")
    other = command(source, "--out", out, "--against", bench, "--max-share", "a=0.3")
    assert other.returncode == 2 and "was made with other settings" in other.stderr
    for wrong in (["--max-share", "a"], ["--quota", "a=x"], ["--quota", "a=1", "--quota", "a=2"], ["--against", "nix"]):
        bad = command(source, "--out", tmp_path / "new.jsonl", *wrong)
        assert bad.returncode == 2 and bad.stderr.count("\n") == 1 and bad.stderr.startswith("error: ")


@pytest.mark.parametrize("limits", [Limits(), Limits(each=3)])
def test_ctrl_c_leaves_out_as_before(tmp_path, monkeypatch, limits):
    filtered(tmp_path, sources(a=5))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("out.")}
    source = write_jsonl(tmp_path / "more.jsonl", sources(a=20))
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(prep_filter, "loop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        filter_chats([source], tmp_path / "out.jsonl", checks=Checks(limits=limits), overwrite=True)
    assert len(calls) == 8
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name.startswith("out.")}
    assert after.keys() - before.keys() <= {"out_in.jsonl"} and {k: after[k] for k in before} == before


def test_tokens_of_equal_mathematics():
    for same in ([r"\frac{1}{2}", r"$\frac12$", "½", "1/2", r"\dfrac 1 2"], ["x^2", "x²", "$x^{2}$", "x**2"],
                 [r"\sin 60^\circ", "sin 60°", r"$\sin60^{\circ}$"], [r"\pi r", "π r"], ["1,000", "1{,}000", "1000"],
                 [r"a \le b", "a ≤ b", "a <= b", r"$a\leq b$"], ["two apples", "2 apples"],
                 ["well-known", "well known"],
                 [r"\left(x+1\right)", "(x + 1)"], ["don't", "don’t"]):  # fmt: skip
        assert len({tuple(tokens(text)) for text in same}) == 1, same
    for a, b in (("x-1", "x+1"), ("10! + 1", "10 + 1"), ("1.5", "1, 5"), ("2(3+4)", "(2 3)+4"), ("1 _ 3", "_ 1 3")):
        assert tokens(a) != tokens(b)
    assert terms("(a) is 中文") == ["a", "is", "中", "文"] and count_words("is 中文 it") == 5


def test_a_verdict_of_the_weaker_test_decides_nothing(tmp_path):
    weak = {"file": "a", "grade": {"strength": "weak"}}
    rows = [graded(0, "Why 0?", verdict="wrong", provenance=weak), graded(1, "Why 1?", verdict="wrong"),
            graded(2, "Why 2?", verdict="ungraded")]  # fmt: skip
    kept, dropped = filtered(tmp_path, rows)
    assert [row["id"] for row in kept] == ["r0", "r2"] and dropped["r1"][0] == "wrong"


COUNTING = "\n".join(f"Step {i}: let me check it again carefully." for i in range(200))


@pytest.mark.parametrize("text", ["Hmm. " * 900, "Wait. " * 900, COUNTING], ids=["hmm", "wait", "counting"])
def test_short_loops_and_loops_that_count(text):
    assert loop(f"I think about it. {text} So it is 5.", words=200, repeats=8) is not None
    assert loop(f"I think about it. {text[: len(text) // 20]} So it is 5.", words=200, repeats=8) is None
