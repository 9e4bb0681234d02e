"""How the files of the web page are served, and what must not stand in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from avila_diffusion.server import page as served

FOLDER = Path(str(served.__file__)).parent


@pytest.fixture
def files() -> TestClient:
    return TestClient(Starlette(routes=served.routes(None)))  # type: ignore[arg-type]


def test_files_are_served_with_tags(files: TestClient) -> None:
    first = files.get("/")
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    tag = first.headers["etag"]
    for header in (tag, f'"other", W/{tag}', "*"):
        again = files.get("/", headers={"If-None-Match": header})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert files.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert files.get("/page/main.js").headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize(
    "name", ["__init__.py", "nothing.js", "..%2f__init__.py", "%2e%2e%5cjob.py", "index.html%00", "C:main.js"]
)
def test_nothing_else_is_served(files: TestClient, name: str) -> None:
    assert files.get(f"/page/{name}").status_code == 404


def test_every_file_is_in_the_table_and_short() -> None:
    there = {path.name for path in FOLDER.iterdir() if path.is_file() and path.suffix != ".py"}
    assert there == set(served.FILES)
    for name in there:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 450, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), name
    assert not re.search(r"<script>|\sstyle=|\son\w+=", (FOLDER / "index.html").read_text(encoding="utf-8"))


def test_both_languages_have_the_same_words() -> None:
    keys = [
        re.findall(r'(?:^|[ {,])"?([a-z][\w. ]*?)"?: "', (FOLDER / name).read_text(encoding="utf-8"))
        for name in ("en.js", "pt.js")
    ]
    assert set(keys[0]) == set(keys[1])
    assert len(keys[0]) > 300
