"""OpenAI's own client, as it is on PyPI, against the real server on loopback."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy
import PIL.Image
import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

import openai
import uvicorn
from openai import AsyncOpenAI, OpenAI

from avila_diffusion.images import read_image
from avila_diffusion.server.app import create_app
from avila_diffusion.server.job import Job
from avila_diffusion.server.service import Service
from avila_diffusion.server.settings import Limits, Settings
from avila_diffusion.server.submission import Submission

Value = TypeVar("Value")
LONG = {"num_inference_steps": 500, "seed": 7}
"""Steps that take the bundled model minutes."""


class Running:
    """A server in a thread. calls: that came in, by method and path. made: jobs by id, as they were when they were taken: with
    the pictures that were given."""

    def __init__(self, settings: Settings) -> None:
        self.calls: Counter[str] = Counter()
        self.service = Service(settings)
        self.made: dict[str, Job] = {}
        submit = self.service.submit

        async def remembered(asked: Submission) -> Job:
            job = await submit(asked)
            self.made[job.id] = job
            return job

        self.service.submit = remembered  # type: ignore[method-assign]
        app = create_app(settings, self.service)

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.calls[f"{scope['method']} {scope['path']}"] += 1
            await app(scope, receive, send)

        self._server = uvicorn.Server(uvicorn.Config(counted, port=0, log_level="warning", lifespan="on"))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        until = time.monotonic() + 30
        while not self._server.started and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        assert self._server.started, "the server did not start"
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def _run(self) -> None:
        async def served() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve()

        asyncio.run(served())

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def do(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Run it on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def jobs(self, prompt: str) -> list[Job]:
        """Those of a prompt, in order."""
        return [job for job in self.made.values() if job.request.prompt == prompt]

    def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.02)

    def cancel_all(self) -> None:
        for job in self.service.live():
            self.do(self.service.cancel(job))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "models").mkdir()
    running = Running(Settings(data=folder / "data", models_dir=str(folder / "models"), model="procedural", drain=1.0))
    yield running
    running.cancel_all()
    running.stop()


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="any", timeout=60) as found:
        yield found


@pytest.fixture
def bundled(server: Running) -> str:
    if not any(one.name == "bundled" for one in server.service.models.entries()):
        pytest.skip("this copy has no bundled model")
    return "bundled"


def picture(data: Any) -> PIL.Image.Image:
    """The picture of an item of an answer."""
    return PIL.Image.open(io.BytesIO(base64.b64decode(data.b64_json)))


def png(mode: str = "RGB", size: tuple[int, int] = (128, 128), hole: bool = False) -> bytes:
    pixels = PIL.Image.new(mode, size, (200, 120, 40, 255)[: len(mode)])
    if hole:
        pixels.paste((0, 0, 0, 0), (32, 32, 96, 96))
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()


# Generations.


def test_a_picture(client: OpenAI) -> None:
    before = time.time()
    made = client.images.generate(prompt="a hill at dawn", size="96x64", extra_body={"seed": 5})
    assert made.data is not None and len(made.data) == 1 and made.data[0].url is None
    image = picture(made.data[0])
    assert image.format == "PNG" and image.size == (96, 64)
    assert (made.size, made.output_format, made.background, made.quality) == ("96x64", "png", "opaque", "medium")
    assert before - 2 <= made.created <= time.time() + 2
    assert made.data[0].revised_prompt is None and made.data[0].seed == 5  # type: ignore[attr-defined]
    text = read_image(base64.b64decode(made.data[0].b64_json or "")).infotext or ""
    assert text.startswith("a hill at dawn") and "Seed: 5" in text
    usage = made.usage
    assert usage is not None and usage.input_tokens == 4 and usage.output_tokens == 3 * 2 and usage.total_tokens == 10
    again = client.images.generate(prompt="a hill at dawn", size="96x64", extra_body={"seed": 5})
    assert again.data is not None and again.data[0].b64_json == made.data[0].b64_json


def test_several_in_any_format(client: OpenAI) -> None:
    formats: list[tuple[Any, bytes]] = [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF")]
    for output, magic in formats:
        made = client.images.generate(
            prompt="a lake",
            n=3,
            size="64x64",
            output_format=output,
            output_compression=40,
            extra_body={"seed": 9},
        )
        assert made.data is not None and made.output_format == output
        assert [one.seed for one in made.data] == [9, 10, 11]  # type: ignore[attr-defined]
        files = [base64.b64decode(one.b64_json or "") for one in made.data]
        assert len(set(files)) == 3 and all(file.startswith(magic) for file in files)
        assert all("a lake" in (read_image(file).infotext or "") for file in files)


def test_by_address(client: OpenAI, server: Running) -> None:
    made = client.images.generate(prompt="a lake", size="64x64", response_format="url", output_format="jpeg")
    assert made.data is not None and made.data[0].b64_json is None
    url = made.data[0].url or ""
    assert url.startswith(f"http://127.0.0.1:{server.port}/v1/images/files/")
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["content-type"] == "image/jpeg" and answer.headers["x-content-type-options"] == "nosniff"
        assert PIL.Image.open(io.BytesIO(answer.read())).size == (64, 64)
    for other in (url.replace("-0", "-1"), url[:-9] + "x.jpeg", url.rpartition("/")[0] + "/..%2f..%2fjobs.sqlite"):
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(other, timeout=10)
        with told.value:
            assert told.value.code == 404


def test_names_of_openai_mean_the_default_model(client: OpenAI, server: Running) -> None:
    for name in ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-2.5-flare-2026-09-08", "auto", "procedural"):
        client.images.generate(prompt="whose model", model=name, size="64x64")
    assert {job.using.model for job in server.jobs("whose model")} == {"procedural"}


def test_what_fields_become(client: OpenAI, server: Running) -> None:
    client.images.generate(
        prompt="fields",
        size="64x72",
        n=2,
        quality="high",
        style="vivid",
        user="me",
        moderation="low",
        background="opaque",
        extra_body={
            "negative_prompt": "fog",
            "guidance_scale": 3.5,
            "sampler": "k_euler_a",
            "scheduler": "karras",
            "clip_skip": 2,
        },
    )
    (job,) = server.jobs("fields")
    request = job.request
    assert (request.width, request.height, request.count, request.batch) == (64, 72, 2, 1)
    assert (request.negative_prompt, request.guidance_scale, request.clip_skip) == ("fog", 3.5, 2)
    assert (request.sampler, request.schedule, request.steps) == ("Euler a", "Karras", 30)
    assert job.dialect == "openai"


def test_models(client: OpenAI, server: Running) -> None:
    listed = list(client.models.list())
    assert listed[0].id == "procedural" and {one.object for one in listed} == {"model"}
    assert client.models.retrieve("procedural").owned_by == "avila"
    assert client.models.retrieve("dall-e-3").id == "procedural"
    assert client.get("/models/", cast_to=dict)["object"] == "list"  # as some programs join addresses
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no such")
    before = server.calls["DELETE /v1/models/procedural"]
    with pytest.raises(openai.InternalServerError) as told:
        client.models.delete("procedural")
    assert told.value.status_code == 501 and server.calls["DELETE /v1/models/procedural"] == before + 1


def test_together_and_asynchronously(server: Running) -> None:
    async def drawn() -> list[Any]:
        async with AsyncOpenAI(base_url=server.url, api_key="any", timeout=60) as client:
            calls = (
                client.images.generate(prompt="all at once", size="64x64", extra_body={"seed": seed})
                for seed in range(8)
            )
            return await asyncio.gather(*calls)

    made = asyncio.run(drawn())
    assert len({one.data[0].b64_json for one in made}) == 8
    assert len(server.jobs("all at once")) == 8


# Pictures that are given.


def test_edits_with_a_mask(client: OpenAI, server: Running, bundled: str) -> None:
    client.images.edit(
        image=("photo.png", png(), "image/png"),
        mask=("mask.png", png("RGBA", hole=True), "image/png"),
        prompt="a red apple",
        model=bundled,
        extra_body={"num_inference_steps": 2, "seed": 3},
    )
    (job,) = server.jobs("a red apple")
    assert job.request.mask is not None and job.request.image is not None
    assert (job.request.strength, job.request.masked_content) == (0.9, "fill")
    assert job.request.image.data == png()
    painted = job.request.mask.mask()
    assert painted[64, 64] == 255 and painted[8, 8] == 0 and numpy.mean(painted == 255) == 0.25


def test_edits_of_the_transparent_part_and_of_all(client: OpenAI, server: Running, bundled: str) -> None:
    for name, given in (("a hole", png("RGBA", hole=True)), ("no hole", png()), ("opaque", png("RGBA"))):
        made = client.images.edit(image=[given], prompt=name, model=bundled, extra_body={"steps": 2, "strength": 0.5})
        # Where a part is painted the picture keeps its size; else it has as many pixels as the model draws.
        size = (128, 128) if name == "a hole" else (512, 512)
        assert made.data is not None and picture(made.data[0]).size == size
        (job,) = server.jobs(name)
        assert (job.request.mask is not None) == (name == "a hole") and job.request.strength == 0.5


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # in OpenAI's own client
def test_variations(client: OpenAI, server: Running, bundled: str) -> None:
    made = client.images.create_variation(
        image=png(), n=2, size="256x256", model=bundled, extra_body={"seed": 4242, "steps": 2}
    )
    assert made.data is not None and [picture(one).size for one in made.data] == [(256, 256)] * 2
    job = next(job for job in server.jobs("") if job.request.seed == 4242)
    assert job.request.strength == 0.6 and job.request.image is not None and job.request.image.data == png()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": [png(), png()]}, "image is there more than once"),
        ({"image": b"no picture"}, "image is not a PNG"),
        ({"image": png(), "mask": png()}, "mask has no transparent pixel"),
        ({"image": png(), "mask": png("RGBA", (64, 64), True)}, "mask is 64x64 and image is 128x128"),
        ({"image": png(), "markup": png()}, "markup cannot be used"),
        ({"image": png(), "output_format": "gif"}, "output_format gif is not made here"),
        ({"image": png(), "frame_count": 3}, "no moving pictures"),
    ],
)
def test_edits_that_cannot_be_made(client: OpenAI, server: Running, given: dict[str, Any], said: str) -> None:
    before = server.calls["POST /v1/images/edits"]
    with pytest.raises(openai.BadRequestError, match=said) as told:
        client.images.edit(prompt="x", **given)
    assert told.value.param is not None and "\n" not in told.value.message
    assert server.calls["POST /v1/images/edits"] == before + 1


# Streams.


def test_a_stream_of_previews_and_the_picture(client: OpenAI, bundled: str) -> None:
    stream = client.images.generate(
        prompt="streamed",
        model=bundled,
        size="128x128",
        stream=True,
        partial_images=3,
        output_format="webp",
        extra_body={"steps": 100, "seed": 1},  # long enough for previews, which are not made more often than people see
    )
    events = list(stream)
    last = events[-1]
    assert last.type == "image_generation.completed" and last.usage.output_tokens == 16 and last.size == "128x128"
    assert picture(last).format == "WEBP" and picture(last).size == (128, 128)
    partial = events[:-1]
    assert 1 <= len(partial) <= 3
    for index, event in enumerate(partial):
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == index and picture(event).format == "WEBP"


def test_streams_of_edits_and_of_several(client: OpenAI, bundled: str) -> None:
    stream = client.images.edit(
        image=png(), prompt="streamed", model=bundled, stream=True, n=2, extra_body={"steps": 2, "seed": 2}
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_edit.completed"] * 2
    assert events[0].b64_json != events[1].b64_json


def test_asynchronous_streams(server: Running) -> None:
    async def drawn() -> list[Any]:
        async with AsyncOpenAI(base_url=server.url, api_key="any", timeout=60) as client:
            stream = await client.images.generate(prompt="a", size="64x64", stream=True, partial_images=1)
            return [event async for event in stream]

    assert asyncio.run(drawn())[-1].type == "image_generation.completed"


def test_an_error_in_a_stream(client: OpenAI, server: Running, bundled: str) -> None:
    stream = client.images.generate(prompt="to be cancelled", model=bundled, stream=True, extra_body=LONG)
    with ThreadPoolExecutor(1) as others:
        others.submit(
            lambda: (server.until(lambda: bool(server.jobs("to be cancelled"))), server.cancel_all())  # type: ignore[func-returns-value]
        )
        with pytest.raises(openai.APIError, match="the job was cancelled"):
            list(stream)


def test_who_leaves_a_stream_ends_its_job(server: Running, bundled: str) -> None:
    with OpenAI(base_url=server.url, api_key="any") as client:
        stream = client.images.generate(
            prompt="left alone", model=bundled, stream=True, partial_images=1, extra_body={**LONG, "seed": 77}
        )
        server.until(lambda: bool(server.jobs("left alone")))
        stream.close()
    server.until(lambda: server.jobs("left alone")[0].state == "cancelled")


# Errors, and who tries again.


@pytest.mark.parametrize(
    ("values", "param", "said"),
    [
        ({"size": "big"}, "size", "it must be WIDTHxHEIGHT"),
        ({"size": "0x0"}, "size", "each side"),
        ({"n": 11}, "n", "n is 11; it must be from 1 to 10"),
        ({"n": 0}, "n", "from 1 to 10"),
        ({"quality": "best"}, "quality", "one of"),
        ({"background": "transparent"}, "background", "opaque pictures"),
        ({"response_format": "file"}, "response_format", "one of"),
        ({"output_compression": 101}, "output_compression", "from 0 to 100"),
        ({"partial_images": 2}, "partial_images", "needs a stream"),
        ({"stream": True, "partial_images": 4}, "partial_images", "from 0 to 3"),
        ({"stream": True, "response_format": "url"}, "response_format", "does not go with stream"),
        ({"prompt": None}, "prompt", "prompt is missing"),
        ({"prompt": 3}, "prompt", "must be text"),
        ({"extra_body": {"seed": 1.5}}, "seed", "a whole number"),
        ({"extra_body": {"stepps": 3}}, "stepps", "did you mean steps"),
        ({"extra_body": {"steps": 3, "num_inference_steps": 4}}, "steps", "give one of the two"),
        ({"extra_body": {"sampler": "Eulr"}}, "sampler", "unknown sampler"),
        ({"size": "8192x8192"}, "size", "more than"),
        ({"extra_body": {"guidance_scale": 1000}}, "guidance_scale", "guidance_scale is 1000"),
        ({"extra_body": {"steps": 600}}, "steps", "steps is 600"),
    ],
)
def test_bad_calls_are_one_line_and_one_call(
    client: OpenAI, server: Running, values: dict[str, Any], param: str | None, said: str
) -> None:
    before = server.calls["POST /v1/images/generations"]
    with pytest.raises(openai.BadRequestError, match=said) as told:
        client.images.generate(**{"prompt": "x", **values})
    error = told.value
    assert error.param == param and error.type == "invalid_request_error" and error.code
    assert error.response.headers["x-should-retry"] == "false" and "\n" not in error.message
    assert server.calls["POST /v1/images/generations"] == before + 1


def test_an_unknown_model(client: OpenAI, server: Running) -> None:
    before = server.calls["POST /v1/images/generations"]
    with pytest.raises(openai.NotFoundError, match="no checkpoint named 'nix'") as told:
        client.images.generate(prompt="x", model="nix")
    assert (told.value.code, told.value.param) == ("model_not_found", "model")
    assert server.calls["POST /v1/images/generations"] == before + 1


def test_a_time_out_makes_one_generation(server: Running, bundled: str) -> None:
    before = server.calls["POST /v1/images/generations"]
    with (
        OpenAI(base_url=server.url, api_key="any", timeout=1.0, max_retries=2) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.images.generate(prompt="impatient", model=bundled, extra_body={"steps": 500})
    assert server.calls["POST /v1/images/generations"] == before + 3
    (job,) = server.jobs("impatient")
    assert not job.ended, "for a while somebody may come back for it"
    server.until(lambda: server.jobs("impatient")[0].state == "cancelled")


def test_a_retry_gets_what_the_first_call_began(server: Running, bundled: str) -> None:
    with OpenAI(base_url=server.url, api_key="any", timeout=1.0, max_retries=4) as client:
        made = client.images.generate(prompt="patient", model=bundled, size="128x128", extra_body={"steps": 12})
    assert made.data is not None and len(server.jobs("patient")) == 1


def test_equal_calls_with_a_seed_are_one_job(server: Running, bundled: str) -> None:
    def drawn(seed: int | None) -> Any:
        body = {"steps": 4} | ({} if seed is None else {"seed": seed})
        with OpenAI(base_url=server.url, api_key="any", timeout=60) as client:
            made = client.images.generate(prompt=f"twins {seed}", model=bundled, size="128x128", extra_body=body)
        assert made.data is not None
        return made.data[0].b64_json

    for seed, jobs in ((1, 1), (None, 2)):
        with ThreadPoolExecutor(2) as callers:
            assert len(set(callers.map(drawn, (seed, seed)))) == jobs
        assert len(server.jobs(f"twins {seed}")) == jobs


def test_idempotency_keys(client: OpenAI, server: Running) -> None:
    headers = {"Idempotency-Key": "key-1"}
    first, second = (
        client.images.with_raw_response.generate(prompt="keyed", size="64x64", extra_headers=headers) for _ in range(2)
    )
    assert first.headers["x-request-id"] == second.headers["x-request-id"] and first.content == second.content
    before = server.calls["POST /v1/images/generations"]
    with pytest.raises(openai.ConflictError):
        client.images.generate(prompt="another", size="64x64", extra_headers=headers)
    assert server.calls["POST /v1/images/generations"] == before + 1
    assert len(server.jobs("keyed")) == 1 and not server.jobs("another")


def test_a_key_keeps_the_job_though_its_caller_is_gone(server: Running, bundled: str) -> None:
    with (
        OpenAI(base_url=server.url, api_key="any", timeout=0.3, max_retries=0) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.images.generate(
            prompt="kept", model=bundled, extra_body={"steps": 80}, extra_headers={"Idempotency-Key": "key-2"}
        )
    server.until(lambda: server.jobs("kept")[0].state == "done", 60)


def test_a_full_queue_is_tried_again_later(tmp_path: Path, server: Running, bundled: str) -> None:
    settings = Settings(
        data=tmp_path / "data",
        models_dir=str(tmp_path),
        model="procedural",
        drain=0.5,
        limits=Limits(queue=1),
        token="sesame",
    )
    running = Running(settings)
    try:
        with OpenAI(base_url=running.url, api_key="sesame", timeout=60, max_retries=1) as client:
            stream = client.images.generate(prompt="long", model=bundled, stream=True, extra_body=LONG)
            running.until(lambda: bool(running.jobs("long")))
            before, begun = running.calls["POST /v1/images/generations"], time.monotonic()
            with pytest.raises(openai.RateLimitError) as told:
                client.images.generate(prompt="short", size="64x64")
            assert running.calls["POST /v1/images/generations"] == before + 2 and time.monotonic() - begun >= 0.9
            assert told.value.response.headers["x-should-retry"] == "true"
            assert int(told.value.response.headers["retry-after"]) >= 1 and told.value.code == "rate_limit_exceeded"
            stream.close()
        with OpenAI(base_url=running.url, api_key="open", max_retries=2) as client:
            before = running.calls["GET /v1/models"]
            with pytest.raises(openai.AuthenticationError) as denied:
                client.models.list()
            assert denied.value.code == "invalid_api_key" and running.calls["GET /v1/models"] == before + 1
    finally:
        running.cancel_all()
        running.stop()


def test_what_is_not_there(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as told:
        client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hello"}])
    assert told.value.type == "invalid_request_error"
