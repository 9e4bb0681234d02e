"""The server's own interface, over the real service and its worker."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from starlette.testclient import TestClient

from avila_diffusion.limits import CHOICES
from avila_diffusion.request import GenerateRequest
from avila_diffusion.server.app import create_app
from avila_diffusion.server.job import Event
from avila_diffusion.server.native.events import lines_of
from avila_diffusion.server.settings import Limits, Settings

SMALL = {"prompt": "a sunset over the sea", "width": 64, "height": 64, "seed": 5}
BASE = "http://127.0.0.1:7860"
API = "/api/v1"


def settings_in(folder: Path, models: Path, **given: Any) -> Settings:
    values: dict[str, Any] = {"models_dir": str(models), "model": "procedural", "threads": 1, "warm_up": False}
    return Settings(data=folder / "data", **(values | given))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Iterator[TestClient]:
    """A server of one person, with the procedural generator as its model."""
    settings = settings_in(tmp_path_factory.mktemp("native"), models_folder, limits=Limits(body=4 << 20))
    with TestClient(create_app(settings), base_url=BASE) as made:
        yield made


def post(client: TestClient, path: str, body: Any, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(API + path, json=body, headers=named)


def make(client: TestClient, headers: dict[str, str] | None = None, **values: Any) -> Any:
    """A job that was taken."""
    answer = client.post(f"{API}/jobs", json={"request": {**SMALL, **values}}, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def ended(client: TestClient, id: str) -> Any:
    """The job when it has ended."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        job = client.get(f"{API}/jobs/{id}").json()
        if job["state"] in ("done", "failed", "cancelled"):
            return job
        time.sleep(0.02)
    raise AssertionError(f"job {id} does not end: {job}")


def test_a_job_from_asking_to_deleting(client: TestClient) -> None:
    answer = client.post(f"{API}/jobs", json={"request": {**SMALL, "count": 2}, "task": "mine", "priority": 3})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"{API}/jobs/{job['id']}" == job["url"]
    assert (job["images"], job["priority"], job["task"], job["model"]) == (2, 3, "mine", "procedural")
    assert job["request"]["prompt"] == SMALL["prompt"]
    done = ended(client, job["id"])
    assert (done["state"], done["position"], done["problem"]) == ("done", None, None)
    assert [(one["index"], one["seed"]) for one in done["results"]] == [(0, 5), (1, 6)]
    for one in done["results"]:
        answer = client.get(one["url"])
        assert answer.headers["cache-control"].startswith("private")
        with PIL.Image.open(io.BytesIO(answer.content)) as picture:
            assert (picture.format, picture.size) == ("PNG", (64, 64))
            assert picture.info["parameters"] == one["infotext"]
    assert done["id"] in [one["id"] for one in client.get(f"{API}/jobs").json()["jobs"]]
    assert client.delete(f"{API}/jobs/{job['id']}").status_code == 204
    assert client.get(f"{API}/jobs/{job['id']}").status_code == 404
    assert client.get(done["results"][0]["url"]).status_code == 404


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_pictures_in_other_formats(client: TestClient, suffix: str, kind: str) -> None:
    job = ended(client, make(client)["id"])
    answer = client.get(f"{API}/jobs/{job['id']}/images/0.{suffix}?download=1")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == f'attachment; filename="5.{suffix}"'
    with PIL.Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.format == kind
    said = client.post(f"{API}/metadata", content=answer.content, headers={"Content-Type": "image/png"}).json()
    assert (said["values"]["prompt"], said["values"]["seed"]) == (SMALL["prompt"], 5)
    for wrong in ("0.gif", "7.png", "-1.png", "x.png", f"{'9' * 5000}.png", "0.png/..", "%2e%2e%2fjobs.sqlite.png"):
        assert client.get(f"{API}/jobs/{job['id']}/images/{wrong}").status_code == 404, wrong
    assert client.get(f"{API}/jobs/{job['id']}/images/0.jpg?quality=0").status_code == 422


def test_the_same_key_is_the_same_job(client: TestClient) -> None:
    body = {"request": SMALL}
    first = post(client, "/jobs", body, Idempotency_Key="key-1")
    again = post(client, "/jobs", body, Idempotency_Key="key-1")
    other = post(client, "/jobs", {"request": {**SMALL, "seed": 6}}, Idempotency_Key="key-1")
    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 409)
    assert first.json()["id"] == again.json()["id"]
    assert post(client, "/jobs", body, Idempotency_Key="a b").status_code == 422


def test_what_happens_to_a_job_is_streamed(client: TestClient) -> None:
    job = make(client, count=2)
    text = client.get(f"{API}/jobs/{job['id']}/events").text
    events = [dict(line.split(": ", 1) for line in part.split("\n")) for part in text.split("\n\n")[1:] if part]
    kinds = [event["event"] for event in events]
    assert kinds[-1] == "end"
    assert kinds.count("end") == 1
    assert kinds.count("picture") == 2
    numbers = [int(event["id"]) for event in events]
    assert numbers == sorted(numbers)
    assert json.loads(events[-1]["data"])["state"] == "done"
    after = {"Last-Event-ID": str(numbers[-2])}
    later = client.get(f"{API}/jobs/{job['id']}/events", headers=after).text
    # Of a job that has ended pictures may be told of again, once each; what is new is "end" alone.
    assert later.count("event: end") == 1
    told = [json.loads(line[6:])["index"] for line in later.splitlines() if line.startswith('data: {"index"')]
    assert later.count("event: ") == 1 + len(told) and len(set(told)) == len(told) <= 2
    assert client.get(f"{API}/jobs/{job['id']}/events", headers={"Last-Event-ID": "x"}).status_code == 422


def test_an_event_cannot_break_its_line() -> None:
    line = lines_of(Event(3, "note", {"text": "a\nevent: end\r\ndata: \u2028x"}))
    assert line == b'id: 3\nevent: note\ndata: {"text":"a\\nevent: end\\r\\ndata: \\u2028x"}\n\n'


def test_stopping_and_moving(client: TestClient) -> None:
    paused = make(client, count=50)
    one = f"{API}/jobs/{paused['id']}"
    assert client.post(f"{one}/pause").json()["state"] == "paused"
    assert client.patch(one, json={"priority": 7}).json()["priority"] == 7
    for wrong in ({}, {"priority": "x"}, {"priority": 101}, {"priority": 1, "state": "done"}, {"priority": True}):
        assert client.patch(one, json=wrong).status_code == 422, wrong
    assert client.delete(one).status_code == 409
    assert client.post(f"{one}/resume").json()["state"] in ("queued", "running")
    assert client.post(f"{one}/skip").status_code == 200
    assert client.post(f"{one}/cancel").status_code == 200
    assert ended(client, paused["id"])["state"] == "cancelled"
    assert client.post(f"{one}/cancel").json()["state"] == "cancelled"  # again: nothing happens
    assert client.post(f"{one}/pause").status_code == 409
    assert client.delete(one).status_code == 204


def test_another_client_sees_and_cannot_stop(client: TestClient) -> None:
    anna, bert = {"X-Avila-Client": "anna"}, {"X-Avila-Client": "bert"}
    job = make(client, headers=anna, count=30)
    one = f"{API}/jobs/{job['id']}"
    assert job["client"].endswith("/anna")
    assert client.get(one, headers=bert).status_code == 200
    for what in ("cancel", "interrupt", "skip", "pause", "resume"):
        assert client.post(f"{one}/{what}", headers=bert).status_code == 404
        assert client.post(f"{one}/{what}").status_code == 404
    assert client.delete(one, headers=bert).status_code == 404
    assert client.patch(one, json={"priority": 1}, headers=bert).status_code == 404
    assert job["id"] not in [one["id"] for one in client.get(f"{API}/jobs", headers=bert).json()["jobs"]]
    assert job["id"] in [one["id"] for one in client.get(f"{API}/jobs?all=true", headers=bert).json()["jobs"]]
    assert job["id"] in [one["id"] for one in client.get(f"{API}/jobs?client=anna").json()["jobs"]]
    assert client.post(f"{one}/cancel", headers=anna).status_code == 200


def test_behind_a_token_everybody_sees_their_own(tmp_path: Path, models_folder: Path) -> None:
    with TestClient(create_app(settings_in(tmp_path, models_folder, token="t")), base_url=BASE) as client:
        anna, bert = (base64.b64encode(f"{name}:t".encode()).decode() for name in ("anna", "bert"))
        mine, theirs = {"Authorization": f"Basic {anna}"}, {"Authorization": f"Basic {bert}"}
        job = make(client, headers=mine)
        assert client.get(f"{API}/jobs/{job['id']}", headers=mine).status_code == 200
        for path in ("", "/events", "/images/0.png", "/preview"):
            assert client.get(f"{API}/jobs/{job['id']}{path}", headers=theirs).status_code == 404
        assert client.get(f"{API}/jobs?all=true", headers=theirs).status_code == 403
        assert client.get(f"{API}/queue", headers=theirs).status_code == 200
        assert client.get(f"{API}/jobs").status_code == 401
        assert client.get("/health/ready").status_code == 401
        assert post(client, "/session", {"token": "x"}).status_code == 401
        answer = post(client, "/session", {"token": "t"})
        cookie = answer.headers["set-cookie"].lower()
        assert (answer.status_code, "httponly" in cookie, "samesite=strict" in cookie) == (200, True, True)
        assert "=t;" not in cookie
        assert client.get(f"{API}/jobs").status_code == 200  # the client keeps the cookie
        assert client.delete(f"{API}/session").status_code == 204
        assert client.get(f"{API}/jobs").status_code == 401


def test_lists(client: TestClient) -> None:
    jobs = [make(client)["number"] for _ in range(3)]
    first = client.get(f"{API}/jobs?limit=2").json()
    assert [job["number"] for job in first["jobs"]] == jobs[:0:-1]
    second = client.get(f"{API}/jobs?limit=1&before={first['next']}").json()
    assert [job["number"] for job in second["jobs"]] == jobs[:1]
    ended(client, client.get(f"{API}/jobs?limit=1").json()["jobs"][0]["id"])
    assert {job["state"] for job in client.get(f"{API}/jobs?state=done,cancelled").json()["jobs"]} <= {
        "done",
        "cancelled",
    }
    for wrong in (
        "limit=0",
        "limit=501",
        "limit=x",
        "limit=--5",
        "limit=5-",
        "before=--5",
        "before=-1",
        "state=new",
        "all=perhaps",
        f"limit={'9' * 5000}",
    ):
        assert client.get(f"{API}/jobs?{wrong}").status_code == 422, wrong
    queue = client.get(f"{API}/queue").json()
    assert queue["full"] is None
    assert queue["limit"] == 256


WRONG: list[tuple[Any, str]] = [
    ({"request": {"steps": 0}}, "steps is 0"),
    ({"request": {"steps": "x"}}, "steps must be a whole number"),
    ({"request": {"stepz": 1}}, "unknown field stepz"),
    ({"request": []}, "request must be an object"),
    ({}, "request must be an object"),
    ({"prompt": "a cat"}, "fields of a picture go into request"),
    ({"request": {}, "model": "no-such-model"}, "no-such-model"),
    ({"request": {}, "model": "../../etc/passwd"}, "passwd"),
    ({"request": {}, "model": 3}, "model must be text"),
    ({"request": {}, "priority": 1000}, "priority is 1,000"),
    ({"request": {}, "seconds": 0}, "seconds is 0"),
    ({"request": {}, "task": "x" * 200}, "task has 200"),
    ({"request": {"width": 8192, "height": 8192}}, "pixels"),
    ({"request": {"batch": 64, "count": 1000}}, "64,000 pictures"),
    ({"request": {"image": "/etc/passwd"}}, "image"),
    ({"request": {"image": "http://127.0.0.2/x.png"}}, "base64"),
    ({"request": {"image": "file:///etc/passwd"}}, "image"),
    ({"request": {"image": {"base64": "AAAA"}}}, "image"),
    ({"request": {"image": {"path": "/etc/passwd"}}}, "image must be the base64"),
    ({"request": {"image": 3}}, "image must be the base64"),
    ({"request": {"sampler": "Euler b"}}, "Euler"),
]


@pytest.mark.parametrize(("body", "words"), WRONG)
def test_what_cannot_be_done_is_told_in_a_line(client: TestClient, body: Any, words: str) -> None:
    for path in ("/jobs", "/validate"):
        answer = post(client, path, body)
        assert 400 <= answer.status_code < 500, answer.text
        error = answer.json()["error"]
        assert words in error["message"]
        assert "\n" not in error["message"]
        assert "Traceback" not in answer.text
        assert error["status"] == answer.status_code


BODIES: list[tuple[bytes, str, int]] = [
    (b"", "application/json", 422),
    (b"{", "application/json", 422),
    (b"[]", "application/json", 422),
    (b"null", "application/json", 422),
    (b'{"request": NaN}', "application/json", 422),
    (b'{"request": {"steps": Infinity}}', "application/json", 422),
    (b'{"request": {"steps": 1e999}}', "application/json", 422),
    (b'{"request": {"prompt": "\\ud800"}}', "application/json", 422),
    (b"\xff\xfe", "application/json", 422),
    (b"[" * 100_000, "application/json", 422),
    (b'{"request":' * 40 + b"1" + b"}" * 40, "application/json", 422),
    (b'{"a":[' + b"0," * 600_000 + b"0]}", "application/json", 422),
    (b'{"request": {"steps": ' + b"9" * 5000 + b"}}", "application/json", 422),
    (b'{"request": {}}', "text/plain", 415),
    (b'{"request": {}}', "", 415),
    (b'{"request": {}}', "application/json; charset=latin-1", 415),
    (b'{"request": {"prompt": 1}}', "application/json; charset=UTF8", 422),
    (b"x" * (5 << 20), "application/json", 413),
]


@pytest.mark.parametrize(("body", "kind", "status"), BODIES)
def test_what_is_no_json(client: TestClient, body: bytes, kind: str, status: int) -> None:
    answer = client.post(f"{API}/jobs", content=body, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status
    assert len(answer.json()["error"]["message"]) < 400


def test_an_encoded_body(client: TestClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert client.post(f"{API}/jobs", content=b"x", headers=headers).status_code == 415


def png(size: tuple[int, int] = (64, 64)) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", size, (200, 80, 40)).save(stream, "PNG")
    return stream.getvalue()


def test_pictures_in_a_request(client: TestClient) -> None:
    text = base64.b64encode(png()).decode()
    for given in (text, f"data:image/png;base64,{text}", {"base64": text, "name": "a b.png"}):
        answer = post(client, "/validate", {"request": {**SMALL, "image": given}, "model": "tiny"})
        assert answer.status_code == 200, answer.text
        image = answer.json()["request"]["image"]
        assert (image["width"], image["height"], len(image["digest"])) == (64, 64, 64)
        assert text not in answer.text


def test_trying_a_request_makes_no_job(client: TestClient) -> None:
    before = client.get(f"{API}/jobs?limit=1&all=true").json()["jobs"][:1]
    told = post(client, "/validate", {"request": {"prompt": "a", "steps": 7}, "model": "tiny"}).json()
    assert told["model"] == "tiny.safetensors"
    assert (told["request"]["steps"], told["request"]["width"]) == (7, 64)
    assert told["request"]["seed"] >= 0
    assert told["estimate"]["memory"] > 0
    assert told["estimate"]["calls"] >= 7
    assert [one["id"] for one in client.get(f"{API}/jobs?limit=1&all=true").json()["jobs"]] == [
        one["id"] for one in before
    ]


def test_models(client: TestClient) -> None:
    told = client.get(f"{API}/models").json()
    names = {model["name"]: model for model in told["models"]}
    assert {"tiny.safetensors", "small/tiny2.safetensors", "procedural"} <= set(names)
    assert told["default"] == "procedural"
    assert str(Path.home()) not in json.dumps(told)
    facts = client.get(f"{API}/models/small/tiny2.safetensors").json()
    assert (facts["family"], facts["size"]) == ("sd2", 64)
    assert facts["lines"]
    assert client.get(f"{API}/models?role=lora").json()["models"] == []
    assert client.get(f"{API}/models?role=dog").status_code == 422
    for wrong in ("nothing", "..", "../tiny.safetensors", "%2e%2e%2ftiny.safetensors", "tiny.safetensors/../x", "%00"):
        assert client.get(f"{API}/models/{wrong}").status_code in (400, 404), wrong
    assert client.post(f"{API}/models/rescan").json()["checkpoint"] >= 3
    assert client.patch(f"{API}/models", json={"default": "tiny"}).json()["default"] == "tiny.safetensors"
    assert client.patch(f"{API}/models", json={"default": "procedural"}).json()["default"] == "procedural"
    assert client.patch(f"{API}/models", json={"default": "nothing"}).status_code == 404
    assert client.patch(f"{API}/models", json={"default": "tiny", "default_vae": "nothing"}).status_code == 404
    assert client.get(f"{API}/models").json()["default"] == "procedural"  # both or neither
    assert client.patch(f"{API}/models", json={}).status_code == 422
    assert client.post(f"{API}/models/load", json={"model": "nothing"}).status_code == 404
    assert client.post(f"{API}/models/load", json={"model": "procedural"}).status_code == 200
    assert client.post(f"{API}/models/unload").status_code == 200


def test_what_a_form_needs(client: TestClient) -> None:
    limits = client.get(f"{API}/limits").json()
    assert set(limits["fields"]) == set(GenerateRequest.__dataclass_fields__)
    for name, field in limits["fields"].items():
        if name in CHOICES:
            assert set(field["choices"]) == set(CHOICES[name])
        assert field.get("text") or name in ("sampler", "schedule"), name
    assert limits["fields"]["steps"]["max"] == 1000
    for path, key in (
        ("samplers", "samplers"),
        ("schedules", "schedules"),
        ("upscalers", "upscalers"),
        ("loras", "loras"),
        ("embeddings", "embeddings"),
        ("styles", "styles"),
    ):
        assert isinstance(client.get(f"{API}/{path}").json()[key], list)
    server = client.get(f"{API}/server").json()
    assert (server["open"], server["token"]) == (True, False)
    assert server["uptime"] >= 0


def test_styles(tmp_path: Path, models_folder: Path) -> None:
    (tmp_path / "Stable-diffusion").mkdir()
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nOil,{prompt} in oil,photo\n", encoding="utf-8")
    with TestClient(create_app(settings_in(tmp_path, tmp_path)), base_url=BASE) as client:
        found = client.get(f"{API}/styles").json()["styles"]
    assert found == [{"name": "Oil", "prompt": "{prompt} in oil", "negative_prompt": "photo"}]


def test_metadata_of_what_has_none(client: TestClient) -> None:
    def post_picture(data: bytes, kind: str = "image/png") -> Any:
        return client.post(f"{API}/metadata", content=data, headers={"Content-Type": kind})

    assert post_picture(png()).status_code == 422
    assert post_picture(b"nothing").status_code == 422
    assert post_picture(b"").status_code == 422
    assert post_picture(png(), "text/html").status_code == 415
    assert post_picture(png((5000, 5000))).status_code in (413, 422)


def test_health_and_metrics(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"live": True}
    ended(client, make(client)["id"])
    answer = client.get("/health/ready")
    assert answer.status_code == 200, answer.text
    text = client.get("/metrics").text
    for name in (
        'avila_jobs_accepted_total{dialect="avila"}',
        'avila_jobs_ended_total{dialect="avila",state="done"}',
        "avila_job_run_seconds_count",
        "avila_pictures_total",
        'avila_jobs{state="queued"}',
        'avila_http_answers_total{method="POST",route="/api/v1/jobs",status="202"}',
        "avila_worker_memory_bytes",
    ):
        assert name in text, name


def test_what_is_not_there(client: TestClient) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", f"{API}/nothing", 404),
        ("GET", f"{API}/jobs/nothing", 404),
        ("PUT", f"{API}/jobs", 405),
        ("DELETE", f"{API}/limits", 405),
        ("GET", f"{API}/jobs/", 404),
        ("GET", "/system_stats", 404),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status, path
        assert answer.json()["error"]["status"] == status
    assert client.put(f"{API}/jobs").headers["allow"]


def test_too_many_streams(tmp_path: Path, models_folder: Path) -> None:
    settings = settings_in(tmp_path, models_folder, limits=Limits(streams=0))
    with TestClient(create_app(settings), base_url=BASE) as client:
        answer = client.get(f"{API}/jobs/{make(client)['id']}/events")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "5"


def test_something_unforeseen_is_an_incident(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: object) -> None:
        raise ZeroDivisionError("a secret\nin two lines")

    monkeypatch.setattr("avila_diffusion.server.native.jobs.job_json", broken)
    answer = make_broken(client)
    assert answer.status_code == 500
    message = answer.json()["error"]["message"]
    assert "incident" in message
    assert "secret" not in answer.text
    number = message.partition("incident ")[2].split()[0]
    assert any(number in record.getMessage() and record.exc_info for record in caplog.records)


def make_broken(client: TestClient) -> Any:
    return client.post(f"{API}/jobs", json={"request": SMALL})
