"""`--style` and `--styles-file`, of `avila generate` and `avila prompt`, and `styles=` of the Python API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avila_diffusion import AvilaDiffusion
from avila_diffusion.checkpoint.folders import find_styles_file
from avila_diffusion.cli import main
from avila_diffusion.errors import FileProblem, RequestError
from avila_diffusion.images import read_image
from avila_diffusion.metadata import read_request
from avila_diffusion.text.styles import Style, apply_styles

FILE = 'name,prompt,negative_prompt\nink,"ink drawing of {prompt}, fine",photo\nwet,rain,\nwet,"rain, wet",dry\nbad\n'


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AVILA_MODELS", raising=False)
    (tmp_path / "styles.csv").write_text(FILE, encoding="utf-8")
    return tmp_path


GENERATE = ["generate", "a hill", "-n", "fog", "--procedural", "-W", "32", "-H", "32", "-o", "a.png", "-s", "1"]


def test_a_picture_holds_what_the_styles_made_of_the_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GENERATE, "--style", "ink", "--style", "wet"]) == 0
    said = capsys.readouterr().err
    assert "line 4: style 'wet' comes a second time" in said
    assert "line 5: style 'bad' has no prompt" in said
    request = read_request(read_image("a.png")).request()
    assert request.prompt == "ink drawing of a hill, fine, rain, wet"
    assert request.negative_prompt == "fog, photo, dry"
    api = AvilaDiffusion(seed=1).text_to_image("a hill", "fog", 32, 32, styles=["ink", "wet"])
    assert (api.request.prompt, api.request.negative_prompt) == (request.prompt, request.negative_prompt)
    assert api.to_numpy().tobytes() == read_image("a.png").pixels.tobytes()


def test_styles_are_merged_into_the_prompt_of_a_picture() -> None:
    assert main(GENERATE) == 0
    assert main(["generate", "--from", "a.png", "--style", "ink", "--procedural", "-o", "b.png"]) == 0
    request = read_request(read_image("b.png")).request()
    assert (request.prompt, request.negative_prompt) == ("ink drawing of a hill, fine", "fog, photo")


def test_a_prompt_is_shown_with_its_styles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt", "a hill", "--style", "ink", "--styles-file", "styles.csv"]) == 0
    said = capsys.readouterr().out
    assert "style ink: 'ink drawing of {prompt}, fine', negative 'photo'" in said
    assert "\nprompt: 'ink drawing of a hill, fine'" in said
    assert "\nnegative prompt: 'photo'" in said
    assert main(["prompt", "a hill", "--style", "ink", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [prompt["text"] for prompt in found["prompts"]] == ["ink drawing of a hill, fine", "photo"]
    assert found["styles"][0]["negative_prompt"] == "photo"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--style", "pen"], 2, "there is no style 'pen'; known: ink, wet, in "),
        (["--styles-file", "styles.csv"], 2, "has no effect without --style"),
        (["--style", "ink", "--styles-file", "none.csv"], 1, "none.csv: the styles cannot be read"),
        (["--style", "ink", "--models-dir", "/nowhere/at/all"], 1, "there is no styles.csv in /nowhere/at/all"),
    ],
    ids=lambda value: str(value)[:24],
)
@pytest.mark.parametrize("command", [GENERATE, ["prompt", "a hill"]], ids=["generate", "prompt"])
def test_what_is_wrong(
    capsys: pytest.CaptureFixture[str], command: list[str], arguments: list[str], code: int, words: str
) -> None:
    assert main([*command, *arguments]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not Path("a.png").exists()


@pytest.mark.parametrize("folder", ["web/models/Stable-diffusion", "web/models", "web", "web/models/plain"])
def test_where_the_file_is_looked_for(folder: str, place: Path) -> None:
    (place / folder).mkdir(parents=True)
    (place / "web/models").mkdir(parents=True, exist_ok=True)
    where = place / ("web/models" if folder.endswith("plain") else "web") / "styles.csv"
    where.write_text(FILE, encoding="utf-8")
    assert find_styles_file(place / folder) == where
    assert find_styles_file() == place / "styles.csv"
    with pytest.raises(FileProblem, match=r"no styles\.csv in"):
        find_styles_file("/nowhere/at/all")


def test_the_python_api_refuses(place: Path) -> None:
    diffusion = AvilaDiffusion()
    assert diffusion.request("a", styles="ink", styles_file=place / "styles.csv").prompt == "ink drawing of a, fine"
    for named in ({"styles": 3}, {"styles": [3]}, {"styles": "pen"}, {"styles_file": "styles.csv"}):
        with pytest.raises(RequestError):
            diffusion.request("a", **named)
    with pytest.raises(RequestError, match="prompt must be text"):
        diffusion.request(3, styles="ink")  # type: ignore[arg-type]


def test_styles_cannot_double_a_prompt_for_ever() -> None:
    with pytest.raises(RequestError, match="1,000,000 characters"):
        apply_styles("ab", "", [Style("x", "{prompt}{prompt}")] * 60)
