"""Fields of OpenAI's calls as JSON and as forms have them; masks; errors; calls that share a job. Without a server."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("starlette")

from avila_diffusion.errors import AvilaError, Cancelled, ModelNotFound, OutputProblem, RequestError
from avila_diffusion.pictures import Picture
from avila_diffusion.server.job import Problem
from avila_diffusion.server.openai import flights as module
from avila_diffusion.server.openai.errors import BadField, error_response, failed_response
from avila_diffusion.server.openai.fields import FILES, QUALITIES, Given, model_name, read
from avila_diffusion.server.openai.flights import Flights, digest_of
from avila_diffusion.server.openai.masks import edit_values
from avila_diffusion.server.problems import Draining, NoSuchJob, NotOffered, QueueFull, TooLarge, status_of
from avila_diffusion.server.settings import Limits


def test_forms_and_json_say_the_same() -> None:
    json_ = {
        "prompt": "a",
        "n": 2,
        "seed": 3,
        "guidance_scale": 4.5,
        "size": "64x64",
        "stream": True,
        "partial_images": 1,
    }
    form = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in json_.items()}
    one, other = read(Given(json_)), read(Given(form, form=True))
    assert one.values == other.values == {
        "prompt": "a", "count": 2, "seed": 3, "guidance_scale": 4.5, "width": 64, "height": 64
    }  # fmt: skip
    assert (one.stream, one.partial) == (other.stream, other.partial) == (True, 1)


def test_what_is_missing_is_the_models_own() -> None:
    asked = read(Given({"prompt": "a", "size": "auto", "n": None, "model": None, "quality": "auto", "seed": -1}))
    assert asked.values == {"prompt": "a", "count": 1, "seed": -1} and asked.model is None
    assert (asked.format, asked.compression, asked.url, asked.stream) == ("png", 100, False, False)
    assert [asked.steps_of(steps) for steps in (None, 8)] == [20, 8]


@pytest.mark.parametrize(("quality", "steps"), [("low", 4), ("medium", 8), ("hd", 12), ("xhigh", 16), ("max", 24)])
def test_quality_is_steps(quality: str, steps: int) -> None:
    asked = read(Given({"prompt": "a", "quality": quality}))
    assert asked.steps_of(8) == steps and asked.told_quality == QUALITIES[quality][1]
    assert read(Given({"prompt": "a", "quality": quality, "steps": 5})).steps_of(8) == 5


def test_a_number_in_a_form_may_be_none() -> None:
    for name, value in (("n", "two"), ("seed", "1e3"), ("guidance_scale", "nan"), ("strength", "x"), ("n", "9" * 5000)):
        with pytest.raises(BadField) as told:
            read(Given({"prompt": "a", name: value}, form=True))
        assert told.value.param == name and len(str(told.value)) < 200
    assert "n" not in read(Given({"prompt": "a", "n": ""}, form=True)).values


def test_numbers_in_json_are_numbers() -> None:
    for name, value in (("n", "2"), ("n", True), ("stream", "true"), ("stream", 1), ("size", 64), ("model", 3)):
        with pytest.raises(BadField):
            read(Given({"prompt": "a", name: value}))


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.dictionaries(
        st.sampled_from(["n", "size", "seed", "quality", "stream", "prompt", "strength", "x"]),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=20),
            st.lists(st.integers(), max_size=2),
        ),
    )
)
def test_nothing_but_bad_fields_comes_of_nonsense(values: dict[str, Any]) -> None:  # fmt: skip
    for form in (False, True):
        try:
            read(Given(values, form=form))
        except BadField as error:
            assert "\n" not in str(error)


def test_own_names_of_openai() -> None:
    for name in (None, "", "auto", "default", "dall-e-2", "DALL-E-3", "gpt-image-1-mini", "chatgpt-image-latest"):
        assert model_name(name) is None
    for name in ("dream", "dall-e", "gpt-image.safetensors", "my-gpt-image-1"):
        assert model_name(name) == name


def test_names_of_dall_e_mean_addresses() -> None:
    for values, url in (
        ({"model": "dall-e-3"}, True),
        ({"model": "DALL-E-2"}, True),
        ({"model": "dall-e-3", "response_format": "b64_json"}, False),
        ({"model": "dall-e-3", "stream": True}, False),
        ({"model": "gpt-image-1"}, False),
        ({"model": "dall-e"}, False),
        ({}, False),
        ({"response_format": "url"}, True),
    ):
        assert read(Given({"prompt": "x", **values})).url is url, values


# Masks.


def _picture(alpha: int | None, size: tuple[int, int] = (16, 16)) -> Picture:
    image = PIL.Image.new("RGB" if alpha is None else "RGBA", size, (9, 9, 9) if alpha is None else (9, 9, 9, 255))
    if alpha is not None:
        image.paste((9, 9, 9, alpha), (0, 0, 8, 16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(buffer.getvalue())


def test_what_is_transparent_becomes_white() -> None:
    values = edit_values(_picture(None), _picture(0))
    painted = values["mask"].mask()
    assert numpy.all(painted[:, :8] == 255) and numpy.all(painted[:, 8:] == 0)
    assert numpy.all(edit_values(_picture(0), None)["mask"].mask() == painted)
    assert "mask" not in edit_values(_picture(None), None) and "mask" not in edit_values(_picture(255), None)


def test_masks_that_let_nothing_through() -> None:
    for mask in (_picture(None), _picture(255)):
        with pytest.raises(BadField, match="no transparent pixel"):
            edit_values(_picture(None), mask)
    with pytest.raises(BadField, match="mask is 8x16 and image is 16x16"):
        edit_values(_picture(None), _picture(0, (8, 16)))


# Errors.


@pytest.mark.parametrize(
    ("error", "status", "code", "retry"),
    [
        (RequestError("steps is 0; it must be from 1 to 1,000"), 400, "invalid_value", "false"),
        (BadField("n", "n is 0", "x"), 400, "x", "false"),
        (ModelNotFound("no"), 404, "model_not_found", "false"),
        (NoSuchJob("no"), 404, "not_found", "false"),
        (TooLarge("no"), 413, "request_too_large", "false"),
        (QueueFull("no", 2.4), 429, "rate_limit_exceeded", "true"),
        (Draining("no"), 503, "server_stopping", "true"),
        (NotOffered("no"), 501, "not_supported", "false"),
        (OutputProblem("no"), 507, "storage_full", "false"),
        (Cancelled("no"), 409, "cancelled", "false"),
        (AvilaError("no"), 500, "server_error", "false"),
    ],
)
def test_errors(error: AvilaError, status: int, code: str, retry: str) -> None:
    answer = error_response(error, status_of(error))
    told = json.loads(bytes(answer.body))["error"]
    assert (answer.status_code, told["code"], answer.headers["x-should-retry"]) == (status, code, retry)
    assert set(told) == {"message", "type", "param", "code"} and told["message"] == str(error)
    assert ("retry-after" in answer.headers) == (retry == "true")
    if isinstance(error, QueueFull):
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("3", "2400")


def test_the_field_that_is_meant() -> None:
    for message, param in (
        ("steps is 0", "steps"),
        ("width 65 is not", "size"),
        ("8,192x8,192 has more", "size"),
        ("count is 0", "n"),
        ("unknown schedule 'x'", "schedule"),
        ("this takes up", None),
        ("image: no", "image"),
    ):
        told = json.loads(bytes(error_response(RequestError(message), 422).body))["error"]
        assert told["param"] == param


@pytest.mark.parametrize(
    ("problem", "status", "code", "retry"),
    [
        (Problem(kind="OutOfMemoryError", message="m"), 500, "out_of_memory_error", "false"),
        (Problem(kind="WeightMismatch", message="m", asked=True), 400, "weight_mismatch", "false"),
        (Problem(kind="TimedOut", message="m"), 504, "timed_out", "false"),
        (Problem(kind="Crashed", message="m", lasting=False), 500, "crashed", "true"),
    ],
)
def test_failed_jobs(problem: Problem, status: int, code: str, retry: str) -> None:
    answer = failed_response(problem)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (status, retry)
    assert json.loads(bytes(answer.body))["error"]["code"] == code


# Calls that share a job.


@dataclass
class Counting:
    """Stands for a service: counts what is submitted and cancelled."""

    made: int = 0
    cancelled: list[int] = field(default_factory=list)

    @property
    def settings(self) -> Any:
        @dataclass
        class Held:
            limits: Limits = field(default_factory=lambda: Limits(streams=1))

        return Held()

    async def submit(self) -> Any:
        await asyncio.sleep(0)
        self.made += 1
        return self.made

    async def cancel(self, job: Any) -> None:
        self.cancelled.append(job)


KEY = ("me", "digest")


def run(story: Any, monkeypatch: pytest.MonkeyPatch, grace: float = 0.05) -> Counting:
    monkeypatch.setattr(module, "GRACE", grace)
    service = Counting()

    async def told() -> None:
        await story(service, Flights(service))  # type: ignore[arg-type]

    asyncio.run(told())
    return service


def test_who_is_alone_and_leaves_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(service: Counting, flights: Flights) -> None:
        flight = flights.board(KEY, service.submit, shared=False)
        await flight.job
        flights.leave(flight, delivered=False)
        assert service.cancelled == []
        await asyncio.sleep(0.15)

    assert run(story, monkeypatch).cancelled == [1]


def test_a_job_that_is_submitted_longer_than_anybody_waits_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(service: Counting, flights: Flights) -> None:
        async def slow() -> Any:
            await asyncio.sleep(0.2)
            return await service.submit()

        flight = flights.board(KEY, slow, shared=False)
        flights.leave(flight, delivered=False)
        await asyncio.sleep(0.1)
        assert flights.board(KEY, service.submit, shared=True) is not flight
        await flight.job
        await asyncio.sleep(0.05)

    assert run(story, monkeypatch).cancelled == [2]


def test_who_comes_back_in_time_gets_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(service: Counting, flights: Flights) -> None:
        first = flights.board(KEY, service.submit, shared=False)
        flights.leave(first, delivered=False)
        again = flights.board(KEY, service.submit, shared=False)
        assert again is first
        await asyncio.sleep(0.15)
        assert service.cancelled == []
        flights.leave(again, delivered=True)
        after = flights.board(KEY, service.submit, shared=True)
        assert after is not first
        flights.leave(after, delivered=True)
        await after.job
        await asyncio.sleep(0.15)

    service = run(story, monkeypatch)
    assert (service.made, service.cancelled) == (2, [])


def test_equal_calls_are_shared_only_where_they_are_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(service: Counting, flights: Flights) -> None:
        one, other = (flights.board(KEY, service.submit, shared=False) for _ in range(2))
        assert one is not other
        same = flights.board(KEY, service.submit, shared=True)
        assert same is other
        flights.leave(other, delivered=False)
        await asyncio.sleep(0.15)
        assert service.cancelled == [], "somebody waits for it still"
        kept = flights.board(KEY, service.submit, shared=True, keep=True)
        assert kept not in (one, other)
        for flight in (one, same, kept):
            await flight.job
            flights.leave(flight, delivered=False)
        await asyncio.sleep(0.15)

    service = run(story, monkeypatch)
    assert service.made == 3 and sorted(service.cancelled) == [1, 2]


def test_a_call_that_is_refused_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused() -> Any:
        raise RequestError("no")

    async def story(service: Counting, flights: Flights) -> None:
        flight = flights.board(KEY, refused, shared=True)
        with pytest.raises(RequestError):
            await flight.job
        flights.leave(flight, delivered=False)
        assert flights.board(KEY, service.submit, shared=True) is not flight
        await asyncio.sleep(0.15)

    assert run(story, monkeypatch).cancelled == []


def test_streams_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(service: Counting, flights: Flights) -> None:
        flights.stream()
        with pytest.raises(QueueFull):
            flights.stream()

    run(story, monkeypatch)


def test_what_tells_calls_apart() -> None:
    one = digest_of("/a", {"n": 1, "prompt": "x"}, {"image": b"1"})
    assert one == digest_of("/a", {"prompt": "x", "n": 1}, {"image": b"1"})
    others = [("/b", {"n": 1, "prompt": "x"}, {"image": b"1"}), ("/a", {"n": 2, "prompt": "x"}, {"image": b"1"})]
    assert all(one != digest_of(*other) for other in [*others, ("/a", {"n": 1, "prompt": "x"}, {"image": b"2"})])
    assert FILES
