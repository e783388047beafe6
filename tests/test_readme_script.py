"""What tests/readme.py reads of the pages, and what it tells of a command that it does not know."""

import subprocess
import sys
from pathlib import Path

import pytest
from pages import anchors, blocks, broken_links, commands, imports, parts
from short_forms import FORMS, Form, find, unknown

ROOT = Path(__file__).resolve().parents[1]
PAGE = r"""# A page

Some `make demo` in a line, and `from skytrain.prep.grade import grade_math, grade_code`.

```sh
make demo   # two cores
git clone https://example.org/a#b && cd a

skytrain eval --tasks a=b \
  --limit '# 3 && 4'   # no more
export A=1
```

```toml
# a comment
folder = "data"
```
"""


def found():
    return [command for block in blocks("P.md", PAGE) for command in commands(block)]


def test_commands_are_those_of_the_blocks_with_the_lines_where_they_begin():
    assert [(command.line, command.text) for command in found()] == [
        (6, "make demo"),
        (7, "git clone https://example.org/a#b"),
        (7, "cd a"),
        (9, "skytrain eval --tasks a=b --limit '# 3 && 4'"),
        (11, "export A=1"),
    ]
    assert found()[3].words == ["skytrain", "eval", "--tasks", "a=b", "--limit", "# 3 && 4"]
    (recipe,) = (block for block in blocks("P.md", PAGE) if block.language == "toml")
    assert (recipe.line, recipe.text) == (15, '# a comment\nfolder = "data"')


def test_a_block_that_is_not_closed_is_told():
    with pytest.raises(ValueError, match=r"P\.md:2: the block is not closed"):
        blocks("P.md", "text\n```sh\nmake demo\n")


@pytest.mark.parametrize(
    "line, told",
    [
        ("a && b&&c", ["a", "b", "c"]),
        ("a 'b && c' \"# d\" # e && f", ["a 'b && c' \"# d\""]),
        ("# nothing", []),
        ("a#b", ["a#b"]),
    ],
)
def test_quotes_hold_what_is_neither_a_comment_nor_another_command(line, told):
    assert parts(line) == told


def test_a_command_without_a_form_and_a_form_without_a_command_are_told():
    forms = [Form("make "), Form("git clone"), Form("cd "), Form("export "), Form("torchrun ")]
    assert unknown(found(), forms) == [
        "P.md:9: no short form is known for: skytrain eval --tasks a=b --limit '# 3 && 4'",
        "no page has a command any more for: torchrun ",
    ]
    # One that stands behind another of the same commands is never used.
    assert unknown(found()[:1], [Form("make "), Form("make demo")]) == ["no page has a command any more for: make demo"]


def test_a_replacement_of_what_is_not_there_is_told():
    form = Form("torchrun ", {"--nproc-per-node 8": "--nproc-per-node 2"}, "train.max_steps=2")
    assert form.shortened("torchrun --nproc-per-node 8 a.py") == "torchrun --nproc-per-node 2 a.py train.max_steps=2"
    with pytest.raises(ValueError, match="replaces '--nproc-per-node 8', which is not there"):
        form.shortened("torchrun --nproc-per-node 4 a.py")


def test_words_are_read_by_the_programs_own_parsers(tmp_path):
    def refusal(line: str) -> str:
        (command,) = commands(blocks("P.md", f"```sh\n{line}\n```")[0])
        try:
            find(line, FORMS).words(command, tmp_path)
        except ValueError as error:
            return str(error)
        return ""

    assert refusal("pip install '.[train,prep]'") == ""
    assert "no extra pre" in refusal("pip install '.[train,pre]'")
    assert "refuses" in refusal("pip install --no-isolation .")
    assert "constraints.txt is not there" in refusal("pip install -c constraints.txt .")
    recipe = "launch/recipes/sky_t1_32b.toml"
    assert refusal(f"sbatch --nodes 4 launch/slurm.sh {recipe} parallel.nodes=2") == ""
    assert "there is no parallel.node; did you mean parallel.nodes?" in refusal(
        f"sbatch launch/slurm.sh {recipe} parallel.node=2"
    )
    assert "nothing is there" in refusal("vllm serve models/a")


def test_imports_are_found_within_backticks_and_blocks():
    assert list(imports(PAGE)) == [(3, "from skytrain.prep.grade import grade_math, grade_code")]
    assert list(imports("```python\nimport skytrain\n```\nfrom skytrain come models")) == [(2, "import skytrain")]


def test_links_lead_to_files_and_headings(tmp_path):
    page = tmp_path / "P.md"
    page.write_text(
        "# One `two`: three's\n[a](P.md#one-two-threes) [b](#four) [c](Q.md)\n[d](https://example.org/x)\n"
        "```sh\n# Four\n[e](R.md)\n```\n"
    )
    assert list(broken_links(page)) == [
        (2, "the link #four leads to no heading of P.md"),
        (2, "the link Q.md leads to no file"),
    ]
    assert anchors("# A\n## A\n## B c, d\n") == {"a", "a-1", "b-c-d"}


def download(tmp_path, *words):
    program = ROOT / "tests" / "support" / "offline_hf.py"
    command = [sys.executable, "-P", program, tmp_path / "hub", "download", *words, "--local-dir", tmp_path / "here"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_download_puts_what_its_words_name_and_refuses_words_that_hf_leaves_out(tmp_path):
    for name in ("train/a.arrow", "test/b.arrow", "README.md"):
        (tmp_path / "hub/o/n" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub/o/n" / name).touch()
    done = download(tmp_path, "o/n", "--include", "train/*", "--include", "test/*")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "here").rglob("*") if path.is_file()) == ["a.arrow", "b.arrow"]
    done = download(tmp_path, "o/n", "--include", "train/*", "test/*")
    assert done.returncode == 1 and "Ignoring `--include`" in done.stdout + done.stderr
    done = download(tmp_path, "o/n", "c.arrow")
    assert done.returncode == 1 and "has no file c.arrow" in done.stdout + done.stderr
