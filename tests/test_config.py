"""Settings: strict merge, one clear line for a mistake, and a dump that reads back equal."""

from pathlib import Path

import pytest

from skytrain import config
from skytrain.errors import UserError

FOUND = sorted((Path(__file__).parents[1] / "launch" / "recipes").glob("*.toml"))
RECIPES = [path for path in FOUND if not path.stem.startswith("eval_")]
MINIMAL = """
[run]
dir = "run"
[model]
path = "model"
[data]
path = "data"
[batch]
documents = 4
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_its_dump_is_equal(path, tmp_path):
    settings = config.load(path)
    (tmp_path / "config.toml").write_text(config.dumps(settings), encoding="utf-8")
    assert config.load(tmp_path / "config.toml") == settings


def test_recipes_are_found():
    assert {"cpu_demo", "own_chats", "sky_t1_32b", "sky_t1_7b"} <= {path.stem for path in RECIPES}


def test_overrides_replace_the_recipe_and_bare_words_are_strings(recipe):
    settings = config.load(
        recipe, ["optim.lr=3e-4", "model.path=a/b c", "optim.betas=[0.8, 0.9]", "train.compile=true", "optim.clip=none"]
    )
    assert settings.optim.lr == 3e-4
    assert settings.model.path == "a/b c"
    assert settings.optim.betas == (0.8, 0.9)
    assert settings.train.compile is True
    assert settings.optim.clip is None


def test_dump_holds_strange_strings(recipe, tmp_path):
    strange = 'quote " backslash \\ newline \n tab \t del \x7f and λ'
    recipe.write_text(MINIMAL.replace('path = "model"', f"path = {config.toml(strange)}"), encoding="utf-8")
    settings = config.load(recipe)
    assert settings.model.path == strange
    (tmp_path / "again.toml").write_text(config.dumps(settings), encoding="utf-8")
    assert config.load(tmp_path / "again.toml") == settings


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.rate=1", ["optim", "rate", "there are name, lr, betas"]),
        (
            "trian.epochs=1",
            ["setting trian.epochs=1: there is no section trian; did you mean train? there are"],
        ),
        ("optim.lr=fast", ["setting optim.lr=fast: expected a number, got text"]),
        ("train.epochs=1.5", ["setting train.epochs=1.5: expected a whole number"]),
        ("train.compile=1", ["setting train.compile=1: expected true or false"]),
        ("optim.betas=[0.9]", ["optim.betas"]),
        ("optim.betas=[0.9, 1.0]", ["optim.betas"]),
        ("optim.lr=-1.0", ["optim.lr", "0 or more"]),
        ("optim.lr=inf", ["optim.lr", "finite"]),
        ("optim.lr=nan", ["optim.lr", "finite"]),
        (f"optim.lr=1{'0' * 400}", ["optim.lr"]),
        ("optim.eps=inf", ["optim.eps", "finite"]),
        ("batch.max_tokens=100000000000000000000", ["batch.max_tokens", "at most"]),
        ("train.threads=100000", ["train.threads", "at most 1024"]),
        ("train.epochs=1000000000", ["train.epochs", "at most"]),
        ("schedule.warmup_steps=100000000000000000000", ["schedule.warmup_steps"]),
        ("run.dir=", ["run.dir", "empty"]),
        ("run.dir='" + "a" * 256 + "'", ["run.dir", "255 bytes"]),
        ("model.path='" + "a/" * 3000 + "'", ["model.path"]),
        ('data.path="a\\u0000b"', ["data.path"]),
        ("data.path=\udcff", ["data.path", "UTF-8"]),
        ("optim.lr=" + "1" * 5000, ["optim.lr", "override"]),
        ("optim.lr=" + "[" * 100_000, ["optim.lr", "override"]),
        ("data.path=''", ["data.path", "empty"]),
        ("optim.clip=0.0", ["optim.clip", "none"]),
        ("optim.name=lion", ["optim.name", "lion"]),
        ("optim.format=int4", ["optim.format", "int4"]),
        ("kernels.backend=cuda", ["kernels.backend", "cuda"]),
        ("kernels.logits=float16", ["kernels.logits", "float16"]),
        ("batch.tokens=100", ["batch.documents", "exactly one"]),
        ("batch.documents=none", ["batch.documents", "exactly one"]),
        ("batch.max_tokens=0", ["setting batch.max_tokens=0: must be at least 1"]),
        ("schedule.warmup_ratio=1.5", ["schedule.warmup_ratio"]),
        ("train.validate_every=5", ["data.validation"]),
        ("optim", ["section.key=value"]),
        ("=1", ["section.key=value"]),
        ("optim.lr=1\nweight_decay=5", ["more than one line"]),
        ("run.dir.x=1", ["run"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(recipe, override, told):
    with pytest.raises(UserError) as error:
        config.load(recipe, [override])
    message = str(error.value)
    assert "\n" not in message
    for word in told:
        assert word in message


def test_a_mistake_of_the_recipe_is_not_the_command_line_s(recipe):
    recipe.write_text(recipe.read_text() + "[log]\nevry = 2\n")
    with pytest.raises(UserError, match=r"recipe .*: log: Object contains unknown field `evry`; there are "):
        config.load(recipe, ["optim.lr=1e-5"])


def test_both_warmups_are_refused(recipe):
    with pytest.raises(UserError, match="at most one"):
        config.load(recipe, ["schedule.warmup_ratio=0.1", "schedule.warmup_steps=3"])


def test_8_bit_moments_of_sgd_are_refused(recipe):
    with pytest.raises(UserError, match=r"optim\.format"):
        config.load(recipe, ["optim.format=fp32_8bit", "optim.name=sgd"])


def test_bf16_logits_beside_fp32_operands_are_refused(recipe):
    assert config.load(recipe, ["kernels.logits=bfloat16"]).kernels.logits == "bfloat16"
    with pytest.raises(UserError, match=r"kernels\.logits"):
        config.load(recipe, ["kernels.logits=bfloat16", "train.dtype=float32"])


def test_a_recipe_that_is_not_there_or_not_toml(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.toml"):
        config.load(tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("[run\n")
    with pytest.raises(UserError, match=r"bad\.toml.*not TOML"):
        config.load(tmp_path / "bad.toml")
    for text in ("[run]\nseed = " + "1" * 5000, "[run]\nseed = " + "[" * 5000):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(UserError, match=r"bad\.toml.*not TOML"):
            config.load(tmp_path / "bad.toml")
    with pytest.raises(UserError, match="recipe"):
        config.load("a\0b")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not TOML"):
        config.load(tmp_path / "bytes.toml")


def test_a_missing_section_is_named(tmp_path):
    (tmp_path / "half.toml").write_text('[run]\ndir = "x"\n')
    with pytest.raises(UserError, match="model"):
        config.load(tmp_path / "half.toml")


def test_an_unknown_setting_is_told_as_it_was_given_and_a_recipes_own_as_the_recipes(recipe):
    with pytest.raises(UserError, match=r"^setting optim\.lrr=1: there is no optim\.lrr; did you mean optim\.lr\?"):
        config.load(recipe, ["train.epochs=1", "optim.lrr=1"])
    recipe.write_text(recipe.read_text() + "\n[schedule]\nfloor = 0.1\n")
    with pytest.raises(UserError, match=r"^recipe .*: schedule: Object contains unknown field `floor`; there are name"):
        config.load(recipe, ["schedule.min_ratio=0.1"])


def test_a_relative_recipe_that_is_absent_is_told_with_the_folder_it_was_looked_for_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"recipe no.toml: No such file or directory in {tmp_path};"):
        config.load("no.toml")
