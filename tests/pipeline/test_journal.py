"""The journal: cut anywhere it goes on to the same bits, damaged it is refused, and no model call is made twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from avila_diffusion.config import NoiseConfig
from avila_diffusion.errors import JournalProblem, OutputProblem, RequestError
from avila_diffusion.pipeline import journal as journal_module
from avila_diffusion.pipeline.branch import Branch, change, switch
from avila_diffusion.pipeline.driver import Step, drive
from avila_diffusion.pipeline.journal import Journal
from avila_diffusion.pipeline.ledger import Ledger
from avila_diffusion.pipeline.records import BEGINNING
from avila_diffusion.request import GenerateRequest
from avila_diffusion.result import GenerateResult
from avila_diffusion.sampling.guidance import Call, Denoised
from avila_diffusion.sampling.names import SAMPLERS as ROWS
from avila_diffusion.sampling.names import SCHEDULES
from avila_diffusion.sampling.noise import initial_noise, noise_source, step_noise
from avila_diffusion.sampling.samplers import SAMPLERS, sample, start
from avila_diffusion.sampling.samplers.run import Run
from avila_diffusion.sampling.schedules import NoiseTable, sampler_sigmas

TABLE = NoiseTable.from_config(NoiseConfig())
REQUEST = GenerateRequest(prompt="a cat", steps=5, width=64, height=64, seed=3, batch=2)
HEADER = {"request": asdict(REQUEST)}


class Model:
    """A formula for a network, which counts its calls and keeps what it was asked."""

    def __init__(self, *, by_pixel: bool = False, factor: float = 0.3) -> None:
        self.asked: list[int] = []
        self.by_pixel = by_pixel
        self.factor = factor

    def __call__(self, call: Call) -> Denoised:
        self.asked.append(call.number)
        x0 = torch.tanh(call.x / (1 + call.sigma)) * self.factor + 0.1 * torch.cos(call.x)
        if self.by_pixel:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        return Denoised(x0, 0.8 * x0)


def begin(key: str, seed: int = 3, steps: int = 5) -> Run:
    row = ROWS[key]
    sigmas = sampler_sigmas(row, SCHEDULES["automatic"], steps, TABLE)
    source = noise_source("nv", seed)
    x = start(row, initial_noise(source, (4, 4, 4)), sigmas)
    return sample(row, x, sigmas, step_noise(source, x), table=TABLE)


def finish(run: Run, ledger: Ledger, model: Model, index: int = 0) -> Tensor:
    """Drive a run as the engine does."""
    *_, latent = drive(run, ledger.recorded(model, index))
    assert isinstance(latent, Tensor)
    ledger.keep(index, "latent", latent)
    return latent


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes()


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """The journal of two pictures by Euler a."""
    path = tmp_path / "two.journal"
    with Journal.create(path, HEADER) as journal:
        for index, seed in enumerate(REQUEST.seeds):
            finish(begin("euler_ancestral", seed), Ledger(journal), Model(), index)
    return path


def record_ends(path: Path) -> list[int]:
    """Where the records of a journal end."""
    with Journal.read(path) as journal:
        kept = [record for calls in journal._calls.values() for record in calls] + list(journal._stages.values())
        return sorted(record.offset + record.size + 32 for record in kept)


@pytest.mark.parametrize("key", SAMPLERS)
def test_cut_anywhere_a_run_goes_on_to_the_same_bits(key: str, tmp_path: Path) -> None:
    whole, alone = tmp_path / "whole", Model()
    *_, expected = drive(begin(key), alone)
    assert isinstance(expected, Tensor)
    with Journal.create(whole, HEADER) as journal:
        header = whole.stat().st_size
        assert same(finish(begin(key), Ledger(journal), Model()), expected)
    data, ends = whole.read_bytes(), record_ends(whole)
    assert len(ends) == len(alone.asked) + 1
    draw = random.Random(key)
    cuts = [header, *ends, *(draw.randrange(header, len(data)) for _ in range(6))]
    for number, cut in enumerate(cuts):
        path, model = tmp_path / f"cut-{number}", Model()
        path.write_bytes(data[:cut])
        with Journal.reopen(path) as journal:
            there = journal.calls
            assert there == min(sum(end <= cut for end in ends), len(alone.asked))
            assert same(finish(begin(key), Ledger(journal), model), expected)
        assert model.asked == list(range(there, len(alone.asked)))
        assert path.read_bytes() == data
        path.unlink()


def test_the_order_in_memory_comes_back(tmp_path: Path) -> None:
    asked: list[Tensor] = []
    for _ in range(2):
        path = tmp_path / "by-pixel"
        with Journal.reopen(path) if path.exists() else Journal.create(path, HEADER) as journal:
            answer = Ledger(journal).recorded(Model(by_pixel=True), 0)
            asked.append(answer(Call(torch.ones(1, 4, 3, 5), 1.0, 0)).x0)
    assert not asked[1].is_contiguous()
    assert asked[1].stride() == asked[0].stride()
    assert same(asked[0].contiguous(), asked[1].contiguous())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    call = Call(torch.linspace(-2, 2, 16).reshape(1, 4, 2, 2).to(dtype), 0.1, 0, want_uncond=True)
    with Journal.create(tmp_path / "j", HEADER) as journal:
        made = Ledger(journal).recorded(Model(), 0)(call)
        again = journal.answer(0, call)
    assert again is not None
    assert again.x0.dtype == dtype
    assert torch.equal(again.x0, made.x0)
    assert again.uncond is not None and made.uncond is not None
    assert torch.equal(again.uncond, made.uncond)


def test_a_flipped_byte_never_gives_another_picture(recorded: Path, tmp_path: Path) -> None:
    data = recorded.read_bytes()
    with Journal.read(recorded) as journal:
        texts = [record.text for calls in journal._calls.values() for record in calls]
    refused = 0
    draw = random.Random(1)
    places = sorted({*range(200), *draw.sample(range(len(data)), 400), *range(len(data) - 200, len(data))})
    damaged = tmp_path / "damaged"
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        damaged.write_bytes(flipped)
        try:
            with Journal.read(damaged) as journal:
                left = [record.text for calls in journal._calls.values() for record in calls]
                assert journal.torn > 0
                assert left == texts[: len(left)]
        except JournalProblem:
            refused += 1
    assert refused > len(places) / 2


def test_a_damaged_middle_is_refused_by_its_number(recorded: Path) -> None:
    data, ends = bytearray(recorded.read_bytes()), record_ends(recorded)
    data[ends[2] - 40] ^= 1
    recorded.write_bytes(data)
    with pytest.raises(JournalProblem, match=r"^record 4 of .* is damaged"):  # the first is the header
        Journal.read(recorded)


def test_room_that_was_never_filled_is_a_torn_end(recorded: Path) -> None:
    end = record_ends(recorded)[3]
    recorded.write_bytes(recorded.read_bytes()[:end] + bytes(5000))
    with Journal.reopen(recorded) as journal:
        assert journal.torn == 5000
        assert journal.calls == 4
    assert recorded.stat().st_size == end


def test_a_record_of_another_run_cannot_slip_in(recorded: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with Journal.create(other, HEADER) as journal:
        for index, seed in enumerate(REQUEST.seeds):
            finish(begin("euler_ancestral", seed), Ledger(journal), Model(), index)
    ends = record_ends(recorded)
    assert record_ends(other) == ends
    mixed = recorded.read_bytes()[: ends[0]] + other.read_bytes()[ends[0] :]
    recorded.write_bytes(mixed)
    with pytest.raises(JournalProblem, match=r"record 3 .* is damaged"):
        Journal.read(recorded)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"a text", "is not a journal"),
        (BEGINNING[:8] + b"\x02\0\0\0", "format 2"),
        (BEGINNING, "ends before its first record"),
        (BEGINNING + b"\xff" * 12 + (0).to_bytes(4, "little"), "damaged"),
    ],
)
def test_what_is_no_journal(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(data)
    with pytest.raises(JournalProblem, match=said):
        Journal.reopen(path)
    assert path.read_bytes() == data


def test_lengths_that_lie_reserve_no_memory(tmp_path: Path) -> None:
    from zlib import crc32

    lengths = (0xFFFFFFFF).to_bytes(4, "little") + (1 << 62).to_bytes(8, "little")
    path = tmp_path / "j"
    path.write_bytes(BEGINNING + lengths + crc32(lengths).to_bytes(4, "little"))
    with pytest.raises(JournalProblem, match="ends before its first record"):
        Journal.read(path)


def test_another_question_is_refused_by_the_number_of_the_call(recorded: Path) -> None:
    with (
        Journal.read(recorded) as journal,
        pytest.raises(JournalProblem, match=r"^call 1 of picture 1 \(step 1, sigma"),
    ):
        finish(begin("euler_ancestral", seed=4), Ledger(journal), Model())
    with Journal.read(recorded) as journal:
        ledger = Ledger(journal)
        finish(begin("euler_ancestral"), ledger, Model())
        with pytest.raises(JournalProblem, match="latent of picture 1 is not the one"):
            ledger.keep(0, "latent", torch.zeros(1, 4, 4, 4))
    call = Call(torch.ones(1, 4, 2, 2), 1.0, 0)
    digests = {
        journal_module.digest_call(changed)
        for changed in (
            call,
            replace(call, sigma=1.0 + 2**-52),
            replace(call, step=1),
            replace(call, want_uncond=True),
            replace(call, x=call.x + 2**-23),
            replace(call, x=call.x.double()),
        )
    }
    assert len(digests) == 6


def test_one_writer_and_nothing_replaced(recorded: Path, tmp_path: Path) -> None:
    before = recorded.read_bytes()
    with pytest.raises(OutputProblem, match="is there already"):
        Journal.create(recorded, HEADER)
    with Journal.reopen(recorded), pytest.raises(JournalProblem, match="another run is writing"):
        Journal.reopen(recorded)
    with Journal.reopen(recorded), Journal.read(recorded) as reader:  # looking is free
        assert reader.calls == 10
    with pytest.raises(OutputProblem, match="cannot be written"):
        Journal.create(tmp_path / "no" / "folder", HEADER)
    assert recorded.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [recorded.name]


def test_records_are_synced_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[float] = []
    now = 100.0
    monkeypatch.setattr("avila_diffusion.pipeline.journal.os.fsync", lambda descriptor: synced.append(now))
    monkeypatch.setattr("avila_diffusion.pipeline.journal.time.monotonic", lambda: now)
    waits: list[float] = []
    timers: list[Timer] = []

    class Timer:
        daemon = False

        def __init__(self, seconds: float, then: Callable[[], None]) -> None:
            waits.append(seconds)
            timers.append(self)
            self.then = then

        def start(self) -> None: ...
        def cancel(self) -> None: ...
        def is_alive(self) -> bool:
            return True

    monkeypatch.setattr("avila_diffusion.pipeline.journal.threading.Timer", Timer)
    with Journal.create(tmp_path / "j", HEADER) as journal:
        synced.clear()
        call = Call(torch.ones(1, 4, 2, 2), 1.0, 0)
        journal.add_call(0, call, Model()(call))
        assert waits == [2.0]  # not yet, but soon
        now = 101.0
        journal.add_call(0, replace(call, number=1), Model()(call))
        assert (waits, synced) == ([2.0], [])
        timers[0].then()
        assert synced == [101.0]
        now = 103.5
        journal.add_call(0, replace(call, number=2), Model()(call))
        assert synced == [101.0, 103.5]
    assert synced[-1] == 103.5 and len(synced) == 3


def test_a_branch_with_nothing_changed_is_the_same(recorded: Path) -> None:
    expected = finish(begin("euler_ancestral"), Ledger(), Model())
    for at in range(6):
        with Journal.read(recorded) as journal:
            journal.cut(at)
            model = Model()
            branch = Branch(at=at, before=REQUEST)
            assert same(finish(begin("euler_ancestral"), Ledger(journal, 0, branch), model), expected)
            assert model.asked == list(range(at, 5))
    assert Branch(at=2, before=REQUEST).told(REQUEST) == {}
    assert len(record_ends(recorded)) == 12


def test_a_branch_to_another_model_keeps_the_steps_before(recorded: Path) -> None:
    def by_hand(call: Call) -> Denoised:
        return Model()(call) if call.step < 3 else Model(factor=0.5)(call)

    *_, expected = drive(begin("euler_ancestral"), by_hand)
    assert isinstance(expected, Tensor)
    with Journal.read(recorded) as journal:
        journal.cut(3)
        got = finish(begin("euler_ancestral"), Ledger(journal, 0, Branch(at=3, before=REQUEST)), Model(factor=0.5))
    assert same(got, expected)


def test_a_sampler_that_takes_over_starts_at_the_border() -> None:
    sigmas = sampler_sigmas(ROWS["euler"], SCHEDULES["karras"], 5, TABLE)
    x = 14.6 * torch.sin(torch.arange(64.0)).reshape(1, 4, 4, 4)

    def run(key: str, x: Tensor, sigmas: Tensor) -> Run:
        return sample(ROWS[key], x, sigmas, lambda a, b: torch.ones_like(x), table=TABLE)

    for first in ("euler", "heun", "dpmpp_2m"):
        steps = [step for step in drive(run(first, x, sigmas), Model()) if isinstance(step, Step)]
        border = next(step.call.x for step in steps if step.call.step == 2)
        *_, expected = drive(run("dpm_2_ancestral", border, sigmas[2:]), Model())
        switched = switch(run(first, x, sigmas), 2, sigmas, lambda x, rest: run("dpm_2_ancestral", x, rest))
        *told, got = drive(switched, Model())
        assert isinstance(got, Tensor) and isinstance(expected, Tensor)
        assert same(got, expected)
        assert [step.call.step for step in told if isinstance(step, Step)][-1] == 4
    *_, whole = drive(switch(run("euler", x, sigmas), 5, sigmas, lambda x, rest: run("heun", x, rest)), Model())
    *_, plain = drive(run("euler", x, sigmas), Model())
    assert isinstance(whole, Tensor) and isinstance(plain, Tensor)
    assert same(whole, plain)

    def between() -> Run:
        x0 = (yield Call(x, 20.0, 0)).x0
        return x0

    with pytest.raises(RequestError, match="stands at sigma 20, between two levels"):
        next(switch(between(), 0, sigmas, lambda x, rest: run("euler", x, rest)))


def test_what_cannot_branch(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="from 0 to 5"):
        change(REQUEST, 6)
    with pytest.raises(RequestError, match="names a schedule"):
        change(REQUEST, 2, sampler="Euler a Karras")
    with pytest.raises(RequestError, match="the new sampler DDIM walks noise levels of its own"):
        change(REQUEST, 2, sampler="ddim")
    with pytest.raises(RequestError, match="the run's sampler DDIM"):
        change(replace(REQUEST, sampler="DDIM"), 2, sampler="euler")
    assert change(replace(REQUEST, eta=0.5, sampler="Euler a"), 2, sampler="dpmpp_2m").eta is None
    changed = change(REQUEST, 2, prompt="a dog", guidance_scale=3.0)
    assert (changed.prompt, changed.guidance_scale, changed.negative_prompt) == ("a dog", 3.0, "")
    recorded.write_bytes(recorded.read_bytes()[: record_ends(recorded)[8]])  # the second picture has three calls
    with Journal.read(recorded) as journal, pytest.raises(JournalProblem, match=r"picture 2 .* step 2, not of 3"):
        journal.cut(3)
    with Journal.read(recorded) as journal:
        journal.cut(2)
        assert journal.steps(0) == journal.steps(1) == [0, 1]
    with pytest.raises(JournalProblem, match="step 1 of picture 1 lies before the branch"):
        finish(begin("euler"), Ledger(None, 0, Branch(at=2, before=REQUEST)), Model())


def test_an_engine_goes_on(
    make_engine: Callable[..., object],
    finish: Callable[[Iterator[object]], GenerateResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from avila_diffusion.pipeline.engine import ModelEngine

    engine = make_engine()
    assert isinstance(engine, ModelEngine)
    request = engine.accept(replace(REQUEST, steps=3, sampler="Euler a"))
    expected = finish(engine.generate(request))
    path = tmp_path / "j"
    with Journal.create(path, {"request": asdict(request)}) as journal:
        run = engine.generate(request, None, Ledger(journal))
        for _ in range(6):  # into the second picture
            next(run)
        run.close()  # type: ignore[attr-defined]
        assert 0 < journal.calls < 6
    with Journal.reopen(path) as journal:
        result = finish(engine.generate(journal.request, None, Ledger(journal)))
    for one, other in zip(result, expected, strict=True):
        assert (one.to_numpy() == other.to_numpy()).all()
        assert one.infotext == other.infotext

    def refuse(*given: object) -> None:
        raise AssertionError("a finished run reads no prompt")

    monkeypatch.setattr(ModelEngine, "conditioned", refuse)
    with Journal.read(path) as journal:
        assert journal.finished(1)
        again = finish(engine.generate(journal.request, None, Ledger(journal)))
    assert (again[1].to_numpy() == expected[1].to_numpy()).all()
