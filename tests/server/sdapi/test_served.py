"""What clients do that cannot be installed here, played by hand: Open WebUI, SillyTavern, image-generation-mcp; several
clients at once; clients that go away; errors."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import requests

from avila_diffusion.server.job import Job, Problem, Using
from avila_diffusion.server.problems import QueueFull
from avila_diffusion.server.sdapi.answers import failure

from ..real import until
from .conftest import Served

SMALL = {"prompt": "a hill", "width": 64, "height": 64, "steps": 2, "cfg_scale": 2, "seed": 5}
LONG = SMALL | {"steps": 450}


class Call(threading.Thread):
    """A POST in a thread of its own. response: when it is there."""

    def __init__(self, served: Served, body: dict[str, Any], **headers: str) -> None:
        super().__init__(daemon=True)
        self.response: requests.Response | None = None
        self._work = partial(served.post, "txt2img", body, headers=headers)
        self.start()

    def run(self) -> None:
        self.response = self._work()

    def ended(self) -> requests.Response:
        self.join(60)
        assert self.response is not None
        return self.response


def test_open_webui(served: Served) -> None:
    headers = {"authorization": "Basic "}  # which it sends where no user is set
    options = served.get("options", headers=headers).json()
    titles = [model["title"] for model in served.get("sd-models", headers=headers).json()]
    assert options["sd_model_checkpoint"] in titles
    options["sd_model_checkpoint"] = next(title for title in titles if title.startswith("small/tiny2"))
    assert served.post("options", options, headers=headers).status_code == 200
    body = {"prompt": "a hill", "batch_size": 1, "width": 64, "height": 64, "steps": 2, "negative_prompt": "fog"}
    answer = served.post("txt2img", body, headers=headers).json()
    assert base64.b64decode(answer["images"][0]).startswith(b"\x89PNG")
    assert json.loads(answer["info"])["sd_model_name"] == "tiny2"
    options["sd_model_checkpoint"] = next(title for title in titles if title.startswith("tiny"))
    assert served.post("options", options, headers=headers).status_code == 200
    assert served.service.default_model == "tiny.safetensors"


def test_silly_tavern(served: Served) -> None:
    served.get("options")
    upscalers = [one["name"] for one in served.get("upscalers").json()]
    upscalers[1:1] = [one["name"] for one in served.get("latent-upscale-modes").json()]
    assert upscalers[:2] == ["None", "Latent"]
    for path in ("sd-vae", "samplers", "schedulers", "sd-models"):
        assert served.get(path).status_code == 200
    body = SMALL | {
        "url": served.url,
        "auth": "user:secret",
        "sampler_name": "Euler a",
        "scheduler": "karras",
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1.5,
        "hr_second_pass_steps": 0,
        "denoising_strength": 0.7,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
        "override_settings_restore_afterwards": True,
    }
    answer = served.post("txt2img", body)
    assert answer.status_code == 200
    assert len(answer.json()["images"]) == 1
    assert "secret" not in answer.text
    assert served.post("interrupt", {}).json() == {}
    assert served.get("progress").json()["progress"] == 0


def test_somebody_polls_the_progress(served: Served) -> None:
    call = Call(served, LONG | {"n_iter": 2, "steps": 100, "force_task_id": "task(txt2img-1)"})
    until(lambda: served.service.running())
    seen: list[dict[str, Any]] = []
    while call.is_alive():
        seen.append(served.get("progress").json())
        time.sleep(0.02)
    busy = [one for one in seen if one["state"]["job_count"]]
    assert len(busy) > 3
    assert all(0 < one["progress"] <= 1 and one["eta_relative"] >= 0 for one in busy)
    progress = [one["progress"] for one in busy]
    assert progress == sorted(progress)
    assert {one["state"]["job"] for one in busy} == {"task(txt2img-1)"}
    assert {one["state"]["job_count"] for one in busy} == {2}
    assert {one["state"]["job_no"] for one in busy} <= {0, 1}
    assert any(one["current_image"] for one in busy)
    assert served.get("progress").json() == {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "",
            "job_count": 0,
            "job_timestamp": "0",
            "job_no": 0,
            "sampling_step": 0,
            "sampling_steps": 0,
        },
        "current_image": None,
        "textinfo": None,
    }


def internal(served: Served, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = requests.post(f"{served.url}/internal/progress", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200
    told: dict[str, Any] = answer.json()
    return told


def test_a_task_by_its_name(served: Served) -> None:
    first = Call(served, LONG | {"force_task_id": "task(a)"})
    until(lambda: served.service.running())
    second = Call(served, LONG | {"force_task_id": "task(b)"})
    until(lambda: len(served.service.live()) == 2)
    until(lambda: internal(served, {"id_task": "task(a)"})["live_preview"])
    told = internal(served, {"id_task": "task(a)", "id_live_preview": -1})
    assert (told["active"], told["queued"], told["completed"]) == (True, False, False)
    assert told["live_preview"].startswith("data:image/")
    assert told["progress"] > 0
    assert internal(served, {"id_task": "task(a)", "live_preview": False})["live_preview"] is None
    waiting = requests.get(f"{served.url}/internal/pending-tasks", timeout=30).json()
    queued = internal(served, {"id_task": "task(b)"})
    if queued["queued"]:  # both may run, a call of each in turn
        assert (queued["active"], queued["textinfo"], queued["live_preview"]) == (False, "In queue: 1/1", None)
        assert waiting == {"size": 1, "tasks": ["task(b)"]}
    assert internal(served, {"id_task": "task(zzz)"})["textinfo"] == "Waiting..."
    for _ in range(2):
        served.post("interrupt")
        time.sleep(0.1)
    until(lambda: served.post("interrupt").ok and not served.service.live())
    assert first.ended().status_code == 200
    assert second.ended().status_code in (200, 409)
    assert internal(served, {"id_task": "task(a)"})["completed"] is True
    assert requests.get(f"{served.url}/internal/ping", timeout=30).json() == {}


def test_interrupted_pictures_are_answered(served: Served) -> None:
    call = Call(served, LONG | {"n_iter": 3})
    until(lambda: served.get("progress").json()["state"]["sampling_step"] > 1)
    assert served.post("interrupt").json() == {}
    answer = call.ended()
    assert answer.status_code == 200
    assert len(answer.json()["images"]) == 1


def test_skipped_pictures_are_answered(served: Served) -> None:
    call = Call(served, LONG | {"n_iter": 2})
    for number in (0, 1):
        until(partial(_steps, served, number))
        assert served.post("skip").json() is None
    answer = call.ended()
    assert answer.status_code == 200
    assert len(answer.json()["images"]) == 2


def _steps(served: Served, number: int) -> bool:
    """Whether this picture is being drawn, and some steps are done."""
    state = served.get("progress").json()["state"]
    return bool(state["job_no"] == number and state["sampling_step"] > 1)


def test_clients_see_and_stop_their_own_only(served: Served) -> None:
    anna, bert = {"X-Avila-Client": "anna"}, {"X-Avila-Client": "bert"}
    call = Call(served, LONG | {"force_task_id": "task(anna)"}, **anna)
    until(lambda: served.get("progress", headers=anna).json()["current_image"])
    told = served.get("progress", headers=bert).json()
    assert (told["progress"], told["current_image"], told["state"]["job_count"]) == (0, None, 0)
    assert internal(served, {"id_task": "task(anna)"}, **bert)["active"] is False
    for path in ("interrupt", "skip"):
        served.post(path, headers=bert)
    assert [job.interrupted or job.skipped for job in served.service.live()] == [False]
    assert served.get("progress?skip_current_image=true", headers=anna).json()["current_image"] is None
    assert requests.get(f"{served.url}/internal/pending-tasks", headers=bert, timeout=30).json()["size"] == 0
    served.post("interrupt", headers=anna)
    assert call.ended().status_code == 200


def test_of_several_no_preview(served: Served) -> None:
    calls = [Call(served, LONG) for _ in range(3)]
    until(lambda: len(served.service.live()) == 3)
    for _ in range(20):
        told = served.get("progress").json()
        assert told["progress"] > 0
        if len(served.service.running()) > 1:
            assert told["current_image"] is None
        time.sleep(0.02)
    until(lambda: served.post("interrupt").ok and not served.service.live())
    assert {call.ended().status_code for call in calls} <= {200, 409}


@pytest.mark.parametrize(("save", "state"), [(False, "cancelled"), (True, "done")])
def test_a_client_that_goes_away(served: Served, save: bool, state: str) -> None:
    before = len(served.jobs())
    body = json.dumps(SMALL | {"steps": 120, "save_images": save}).encode()
    head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: served.service.running())
    until(lambda: not served.service.live())
    jobs = served.jobs()
    assert len(jobs) == before + 1
    assert jobs[0].state == state


def test_the_same_call_twice_with_a_key(served: Served) -> None:
    key = {"Idempotency-Key": "once"}
    first = served.post("txt2img", SMALL, headers=key).json()
    before = len(served.jobs())
    assert served.post("txt2img", SMALL, headers=key).json() == first
    assert len(served.jobs()) == before
    other = served.post("txt2img", SMALL | {"seed": 6}, headers=key)
    assert other.status_code == 409
    assert other.json()["error"] == "Conflict"


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
def test_what_is_no_key(served: Served, key: str) -> None:
    answer = served.post("txt2img", SMALL, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "idempotency-key"]


def test_a_name_of_a_task_is_bounded(served: Served) -> None:
    answer = served.post("txt2img", SMALL | {"force_task_id": "x" * 129})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "force_task_id"]


def test_a_full_queue(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.service, "full", lambda client: QueueFull("9 jobs are waiting", 4.0))
    answer = served.post("txt2img", SMALL)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "4")
    assert answer.json() == {
        "error": "QueueFull",
        "detail": "9 jobs are waiting",
        "body": "",
        "errors": "9 jobs are waiting",
    }


def test_errors_are_one_line_in_the_right_shape(served: Served) -> None:
    told = served.post("txt2img", SMALL | {"steps": "many", "width": 0})
    assert told.status_code == 422
    assert [detail["loc"] for detail in told.json()["detail"]] == [["body", "steps"], ["body", "width"]]
    assert set(told.json()) == {"detail"}
    for path, body, status in (
        ("img2img", {"prompt": "x"}, 404),
        ("img2img", SMALL | {"init_images": ["http://127.0.0.1:9/x.png"]}, 403),
        ("img2img", SMALL | {"init_images": ["aGVsbG8="]}, 422),
        ("txt2img", SMALL | {"override_settings": {"sd_model_checkpoint": "../../etc/passwd"}}, 404),
        ("options", {"sd_model_checkpoint": "nothing"}, 404),
        ("interrogate", {}, 501),
        ("create/embedding", {}, 501),
        ("create/hypernetwork", {}, 501),
        ("train/embedding", {}, 501),
        ("server-kill", {}, 404),
        ("server-restart", {}, 404),
        ("server-stop", {}, 404),
        ("samplers", {}, 405),
    ):
        answer = served.post(path, body)
        assert answer.status_code == status, (path, answer.text)
        assert set(answer.json()) == {"error", "detail", "body", "errors"}
        assert "Traceback" not in answer.text
        assert len(answer.json()["detail"].splitlines()) == 1
    assert served.post("img2img", {}).json()["detail"] == "Init image not found"
    assert requests.get(f"{served.url}/system_stats", timeout=30).status_code == 404
    assert requests.get(f"{served.url}/controlnet/model_list", timeout=30).status_code == 404


def test_bodies_that_are_none(served: Served) -> None:
    url = f"{served.url}/sdapi/v1/txt2img"
    for data, kind, status in (
        (b"{", "application/json", 422),
        (b"[]", "application/json", 422),
        (b'{"steps": NaN}', "application/json", 422),
        (b'{"comments": {"a": 1e999}}', "application/json", 422),
        (b"prompt=x", "application/x-www-form-urlencoded", 415),
    ):
        answer = requests.post(url, data=data, headers={"Content-Type": kind}, timeout=30)
        assert answer.status_code == status
        assert set(answer.json()) == {"error", "detail", "body", "errors"}


def test_options_that_could_not_be_told_again_are_not_kept(served: Served) -> None:
    headers = {"Content-Type": "application/json"}
    kept = requests.post(f"{served.url}/sdapi/v1/options", data=b'{"x": 1e999}', headers=headers, timeout=30)
    assert kept.status_code == 422
    told = served.get("options")
    assert told.status_code == 200
    assert "x" not in told.json()


def test_options_stay_only_with_the_job(served: Served) -> None:
    before = served.get("options").json()
    overrides = {"CLIP_stop_at_last_layers": 3, "odd": 1}
    body = SMALL | {"override_settings": overrides, "override_settings_restore_afterwards": False, "width": 32}
    assert served.post("txt2img", body).status_code == 422
    assert served.post("txt2img", body | {"override_settings": {"sd_model_checkpoint": "zzz"}}).status_code == 404
    assert served.get("options").json() == before


@pytest.fixture
def held_up(served: Served) -> Iterator[None]:
    """Nothing is begun meanwhile, as while a model is loaded or others have their turn."""
    assert served.service.floor is not None
    served.service.floor.open = False
    yield
    served.service.floor.open = True
    served.service.floor.wake()


def test_a_job_that_was_not_begun_is_interrupted(served: Served, held_up: None) -> None:
    call = Call(served, LONG | {"save_images": True})
    until(lambda: served.service.live())
    assert served.get("progress").json()["textinfo"] == "In queue: 1/1"
    assert served.post("interrupt").json() == {}
    answer = call.ended()
    assert (answer.status_code, answer.json()["images"]) == (200, [])
    assert json.loads(answer.json()["info"])["infotexts"] == []
    assert served.jobs()[0].state == "cancelled"
    assert served.get("progress").json()["state"]["job_count"] == 0


def test_a_body_in_pieces_counts_by_its_size(served: Served, held_up: None) -> None:
    def pieces() -> Iterator[bytes]:
        yield json.dumps(SMALL | {"comments": {"a": "x" * 50_000}}).encode()

    headers = {"Content-Type": "application/json"}
    url = f"{served.url}/sdapi/v1/txt2img"
    caller = threading.Thread(
        target=lambda: requests.post(url, data=pieces(), headers=headers, timeout=60), daemon=True
    )
    caller.start()
    until(lambda: served.service.held)
    assert next(iter(served.service.held.values())).size > 50_000
    served.post("interrupt")
    caller.join(30)


async def _loaded(served: Served) -> str | None:
    return served.service.loaded


def test_models_are_let_go_and_taken_again(served: Served) -> None:
    assert served.post("txt2img", SMALL).status_code == 200
    assert served.post("unload-checkpoint").json() == {}
    assert served.do(_loaded(served)) is None
    assert served.post("reload-checkpoint").json() == {}
    assert served.do(_loaded(served)) == "tiny.safetensors"
    for path in ("refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings"):
        assert served.post(path).json() is None


FAILED: list[tuple[Problem | None, int, str]] = [
    (Problem(kind="OutOfMemoryError", message="no memory is left"), 500, "OutOfMemoryError"),
    (Problem(kind="TimedOut", message="it took too long"), 504, "TimedOut"),
    (Problem(kind="Crashed", message="the worker ended"), 500, "Crashed"),
    (Problem(kind="RequestError", message="that cannot be", asked=True), 422, "RequestError"),
    (None, 409, "Cancelled"),
]


@pytest.mark.parametrize(("problem", "status", "kind"), FAILED, ids=lambda value: str(value)[:30])
def test_jobs_that_fail(problem: Problem | None, status: int, kind: str) -> None:
    request: Any = None
    job = Job(
        id="x", number=1, client="anna", request=request, using=Using(model="tiny"), state="failed", problem=problem
    )
    answer = failure(job)
    assert answer.status_code == status
    assert json.loads(bytes(answer.body))["error"] == kind
