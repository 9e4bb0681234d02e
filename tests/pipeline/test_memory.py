"""What a run keeps and how it decodes, by the memory that it may take; its pictures stay the same."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avila_diffusion import AvilaDiffusion, Progress
from avila_diffusion.errors import RequestError
from avila_diffusion.kernels import rooms
from avila_diffusion.machine import Memory as MachineMemory
from avila_diffusion.models.layers import keeper_of
from avila_diffusion.models.plans import least_room
from avila_diffusion.pipeline import memory as module
from avila_diffusion.pipeline.engine import ModelEngine
from avila_diffusion.pipeline.forecast import BAND_SCRATCH, Outlook, held_now
from avila_diffusion.pipeline.memory import Memory, Way, choose_way, most_kept
from avila_diffusion.request import GenerateRequest

SIDE = 128


@pytest.fixture
def make(tiny_checkpoint: Any) -> Any:
    return lambda **options: AvilaDiffusion.with_model(tiny_checkpoint("sd1"), device="cpu", **options)


def asked(diffusion: AvilaDiffusion) -> tuple[ModelEngine, GenerateRequest]:
    engine = diffusion._engine
    assert isinstance(engine, ModelEngine)
    return engine, engine.accept(diffusion.request("a hill", "a lake", width=SIDE, height=SIDE, steps=2, seed=3))


def with_room(diffusion: AvilaDiffusion, room: int, mode: Any = "auto") -> tuple[ModelEngine, GenerateRequest]:
    """The engine with a limit that leaves so much beside what the process holds anyway."""
    engine, request = asked(diffusion)
    base = Outlook(engine, request).base
    return ModelEngine(
        engine.model, engine.policy, engine.rack, memory=Memory(mode, int((base + room) / module.CERTAIN) + 2)
    ), request


def draw(engine: ModelEngine, request: GenerateRequest) -> Any:
    *_, result = engine.generate(request)
    return result.to_numpy().astype(int)  # type: ignore[union-attr]


def test_modes_without_a_limit_are_not_rehearsed(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Outlook", lambda *of: pytest.fail("rehearsed"))
    assert choose_way(*asked(make(memory="fast"))) == Way(None)
    assert choose_way(*asked(make(memory="lean"))) == Way(0)
    assert choose_way(*asked(make())) == Way(None)


def test_auto_keeps_what_the_machine_has_room_for(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, request = asked(make())
    needed = Outlook(engine, request).rehearsed(0).decode.held
    for left, expected in ((needed + 3_000_000, 3_000_000), (needed, 0)):
        monkeypatch.setattr(
            module, "machine_memory", lambda left=left: MachineMemory(10**10, int(left / module.SHARE) + 2)
        )
        assert choose_way(engine, request).kept == pytest.approx(expected, abs=8)
    monkeypatch.setattr(module, "machine_memory", lambda: MachineMemory(10**10, 1))
    assert choose_way(engine, request).decode_room is not None, "never refused: the system may have more"


def test_a_limit_is_shared_out(make: Any) -> None:
    diffusion = make()
    engine, request = asked(diffusion)
    lean = Outlook(engine, request).rehearsed(0)
    assert lean.alone.held < lean.decode.held, "else this tests nothing"
    way = choose_way(*with_room(diffusion, lean.decode.held + 2_000_000))
    assert way.decode_room is None and way.kept == pytest.approx(2_000_000, abs=2**20)
    assert choose_way(*with_room(diffusion, lean.decode.held + 2_000_000, "lean")) == Way(0)


def test_what_does_not_fit_whole_is_decoded_in_bands(make: Any) -> None:
    diffusion = make()
    engine, request = asked(diffusion)
    request = replace(request, width=1024, height=1024)
    outlook = Outlook(engine, request)
    room = outlook.rehearsed(0).decode.held - (48 << 20)  # what the process holds changes a little meanwhile
    limit = Memory("auto", int((outlook.base + room) / module.CERTAIN) + 2)
    limited = ModelEngine(engine.model, engine.policy, engine.rack, memory=limit)
    way = choose_way(limited, request)
    assert way.decode_room is not None
    assert least_room(engine.model.spec.vae, 128, 128) <= way.decode_room <= room - BAND_SCRATCH + (48 << 20)
    told = module.chosen(Outlook(limited, request))
    assert told.peak_bytes <= limit.limit  # type: ignore[operator]
    assert told.decode_seconds > outlook.at(0).decode_seconds


def test_too_little_is_refused_with_what_would_do(make: Any) -> None:
    engine, request = with_room(make(), 1 << 20)
    with pytest.raises(RequestError, match=r"takes \S+ GB at least, and --max-memory is \S+ GB; give more") as told:
        list(engine.generate(request))
    found = re.search(r"takes ([\d.]+) GB", str(told.value))
    assert found is not None
    enough = Memory("auto", int(float(found[1]) * 1e9) + (8 << 20))  # the process itself may have grown a little
    choose_way(ModelEngine(engine.model, engine.policy, engine.rack, memory=enough), request)


PROCESS = """
import sys, threading, time
from avila_diffusion import AvilaDiffusion
from avila_diffusion.errors import RequestError
from avila_diffusion.pipeline.forecast import held_now
path, limit, side = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
peak, ended = [0], threading.Event()
def watch():
    while not ended.wait(0.002):
        peak[0] = max(peak[0], held_now())
threading.Thread(target=watch, daemon=True).start()
diffusion = AvilaDiffusion.with_model(path, device="cpu", threads=2, max_memory=limit)
try:
    diffusion.text_to_image("a hill", None, side, side, steps=1, seed=1).save_png("made.png")
    print("made", peak[0])
except RequestError as error:
    print("refused", error)
"""


@pytest.mark.skipif(held_now() is None, reason="this system does not tell what a process holds")
@pytest.mark.parametrize("side", [128, 576])
def test_a_process_keeps_to_the_number_that_it_told(tiny_checkpoint: Any, tmp_path: Path, side: int) -> None:
    """Also where a picture is decoded in bands, as the larger one is."""

    def run(limit: int) -> str:
        command = [sys.executable, "-c", PROCESS, str(tiny_checkpoint("sd1")), str(limit), str(side)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    refused = run(10**8)
    told = re.search(r"refused this run takes ([\d.]+) GB", refused)
    assert told is not None, refused
    limit = int(float(told[1]) * 1e9)
    made = run(limit).split()
    assert made[0] == "made" and int(made[1]) <= limit, (made, limit)


def test_pictures_do_not_depend_on_it(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, request = asked(make(memory="fast"))
    expected = draw(fast, request)
    kept = keeper_of(fast.model.unet).held
    lean = asked(make(memory="lean"))[0]
    assert np.array_equal(draw(lean, request), expected)
    assert keeper_of(lean.model.unet).held == 0 == keeper_of(lean.model.vae).held
    part = asked(make())[0]
    monkeypatch.setattr(module, "choose_way", lambda *of: Way(kept // 2))
    monkeypatch.setattr("avila_diffusion.pipeline.run.choose_way", lambda *of: Way(kept // 2))
    assert np.array_equal(draw(part, request), expected)
    assert 0 < keeper_of(part.model.unet).held <= kept // 2
    room = least_room(part.model.spec.vae, SIDE // 8, SIDE // 8)
    monkeypatch.setattr("avila_diffusion.pipeline.run.choose_way", lambda *of: Way(kept // 2, room))
    assert np.abs(draw(part, request) - expected).max() <= 1
    assert keeper_of(part.model.unet).held == 0, "dropped before decoding in bands"


def test_nothing_free_is_held_after_a_run(make: Any) -> None:
    draw(*asked(make()))
    assert rooms._rooms.held == rooms._rooms.used


def test_most_kept_is_no_less_than_what_is_kept(make: Any) -> None:
    engine, request = asked(make())
    assert Outlook(engine, request).keepable <= most_kept(engine.model)


@pytest.mark.parametrize(
    "given", ["", "3 apples", "-1G", 3.5, True, "1e9", "12", "3i", "3iB", 10**400, "999999999999T"]
)
def test_what_is_no_size_is_refused(make: Any, given: Any) -> None:
    with pytest.raises(RequestError, match="max_memory is "):
        make(max_memory=given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.int64(3 * 10**9), 3 * 10**9),
        ("3G", 3 * 10**9),
        ("1.5g", 1_500_000_000),
        ("800 MB", 800_000_000),
        ("2GiB", 2 << 30),
        ("1048576", 1 << 20),
        (10**9, 10**9),
    ],
)
def test_sizes(make: Any, given: Any, expected: int) -> None:
    assert make(max_memory=given)._engine.memory.limit == expected
    with pytest.raises(RequestError, match="memory is 'most'; it must be auto, fast, lean"):
        make(memory="most")


def test_the_heap_is_given_back_after_every_call_of_a_run_that_may_not_keep_all(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[None] = []
    monkeypatch.setattr("avila_diffusion.kernels.rooms.trim", lambda: asked_for.append(None))
    trimmed = {}
    for memory in ("fast", "lean"):
        engine, request = asked(make(memory=memory))
        asked_for.clear()
        steps = sum(isinstance(event, Progress) and event.step > 0 for event in engine.generate(request))
        trimmed[memory] = len(asked_for) - 1
    assert trimmed == {"fast": 0, "lean": steps}, "once more at the end of each"
