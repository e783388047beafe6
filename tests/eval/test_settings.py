import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from skytrain.errors import UserError
from skytrain.eval.scores import proportion
from skytrain.eval.settings import expected, read

RECIPE = Path(__file__).parents[2] / "launch" / "recipes" / "eval_sky_t1.toml"
PUBLISHED = {  # right of problems, as published for Sky-T1-32B-Preview: the lowest and the highest
    "math500": {"": ((412, 500), (443, 500))},
    "aime24": {"": ((13, 30), (13, 30))},
    "gpqa_diamond": {"": ((112.5, 198), (112.5, 198))},
    "livecodebench": {
        "easy": ((157, 182), (157, 182)),
        "medium": ((117, 206), (117, 206)),
        "hard": ((22, 123), (22, 123)),
    },
}


def recipe(folder, text):
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_published_recipe_is_read():
    settings = read(RECIPE, {}, [])
    assert {task.name for task in settings.task} == PUBLISHED.keys()
    for task in settings.task:
        asked = (task.samples, task.temperature, task.top_p, task.max_tokens, task.prompt, task.system)
        assert asked == (8, 0.7, 1.0, 32768, "before", "train")


def test_expected_ranges_are_what_chance_leaves_of_the_published_scores():
    """Rounded outwards to whole points, as the recipe's head says."""
    for task in read(RECIPE, {}, []).task:
        ranges = expected(task)
        assert ranges.keys() == PUBLISHED[task.name].keys()
        for part, (low, high) in PUBLISHED[task.name].items():
            ends = [interval(*low)[0], interval(*high)[1]]
            assert np.abs(np.array(ranges[part]) - [np.floor(ends[0]), np.ceil(ends[1])]).max() <= 1, (task.name, ends)


def interval(right, problems):
    means = np.full(problems, right / problems) if right % 1 else np.repeat([1.0, 0.0], [right, problems - right])
    found = proportion(means, 1)
    return 100 * found.low, 100 * found.high


def test_the_command_line_comes_over_the_recipe_and_its_tasks(tmp_path):
    path = recipe(
        tmp_path,
        'model = "m"\nsamples = 4\ntemperature = 0.5\n'
        '[[task]]\nname = "aime24"\ndata = "a.jsonl"\nsamples = 2\n[[task]]\nname = "amc"\nlimit = 3\n',
    )
    settings = read(path, {"temperature": 1.0, "limit": 7}, [])
    aime, amc = settings.task
    assert (aime.samples, aime.temperature, aime.limit, aime.data) == (2, 1.0, 7, "a.jsonl")
    assert (amc.samples, amc.temperature, amc.limit) == (4, 1.0, 7)
    (only,) = read(path, {"samples": 1}, ["aime24=b.jsonl"]).task
    assert (only.name, only.data, only.samples) == ("aime24", "b.jsonl", 1)


def test_the_folder_is_named_by_the_model(tmp_path):
    assert read(None, {"model": "Qwen/Qwen2.5-32B"}, ["aime24"]).folder == Path("runs/eval-Qwen-Qwen2.5-32B")
    assert read(None, {"model": "m", "out": "x"}, ["aime24"]).folder == Path("x")


@pytest.mark.parametrize(
    "text, told",
    [
        ("modle = 'm'", "unknown field `modle`"),
        ("samples = '8'", "samples: Expected `int"),
        ("[[task]]\nname = 'a'\nlimits = 3", r"task\[0\].*unknown field `limits`|task\[0\]: .*limits"),
        ("[[task]]\nname = 'a'\nlimit = 'x'", r"task\[0\].limit: Expected"),
        ("[[task]]\ndata = 'x'", "missing required field `name`"),
        ("[[task]]\nname = 'A b'", "lower-case letters"),
        ("[[task]]\nname = 'a'\nsince = 'May 2024'", "since must be a date as 2024-05-01"),
        ("[[task]]\nname = 'a'\nexpected = [60, 50]", "expected must be low and high"),
        ("[[task]]\nname = 'a'\n[[task]]\nname = 'a'", "stands twice"),
        ("samples = 8", "names no task"),
        ("samples = = 8", "cannot be read as TOML"),
    ],
)
def test_a_recipe_that_means_nothing_is_told_in_one_line(tmp_path, text, told):
    with pytest.raises(UserError) as caught:
        read(recipe(tmp_path, text), {}, [])
    assert re.search(told, str(caught.value)) and "\n" not in str(caught.value)


def test_a_version_is_of_the_tasks_that_grow():
    settings = read(None, {"version": "release_v2", "until": "2024-05-31"}, ["livecodebench=x", "aime24=y"])
    lcb, aime = settings.task
    assert (lcb.version, lcb.since, lcb.until) == ("release_v2", None, "2024-05-31")
    assert (aime.version, aime.until) == (None, None)
    with pytest.raises(UserError, match="--since: none of the tasks grows"):
        read(None, {"since": "2024-05-31"}, ["aime24=y"])
    with pytest.raises(UserError, match="since must be a date"):
        read(None, {"since": "May"}, ["livecodebench=y"])


def test_tasks_that_are_not_there_are_told(tmp_path):
    path = recipe(tmp_path, "[[task]]\nname = 'aime24'\n")
    with pytest.raises(UserError, match=r"amc: is not in .*recipe.toml, which has aime24"):
        read(path, {}, ["amc"])
    with pytest.raises(UserError, match="names no file behind"):
        read(path, {}, ["aime24="])
    with pytest.raises(UserError, match=r"none.toml: cannot be read \(No such file or directory\); give the path"):
        read(tmp_path / "none.toml", {}, [])


def test_the_recipe_in_the_docstring_is_one(tmp_path):
    from skytrain.eval import settings

    text = re.search(r"(?s)\nmodel = .*", settings.__doc__)[0]
    assert tomllib.loads(text)["task"][0]["name"] == "aime24"
    assert read(recipe(tmp_path, text), {}, []).samples == 8
