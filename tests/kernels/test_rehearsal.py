"""A rehearsal against the run that it stands for: the same memory, the same calls of kernels; and this machine's rates."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion import kernels
from avila_diffusion.checkpoint.load import load_model
from avila_diffusion.kernels import build, calibration, native
from avila_diffusion.kernels import rehearsal as module
from avila_diffusion.kernels.rehearsal import Rehearsal, Stage, Work, rehearsing
from avila_diffusion.kernels.rooms import PAGE
from avila_diffusion.models.layers import Conv2d, Linear, keep_derived, keeper_of
from avila_diffusion.models.text_keys import TextKeys
from avila_diffusion.models.twin import twin
from avila_diffusion.models.weights import LowRank

needs_kernels = pytest.mark.skipif(
    not kernels.ENABLED or build.library() is None, reason=f"no kernels of ours here, or turned off: {build.problem}"
)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def tiny(tiny_checkpoint: Any) -> Any:
    return load_model(tiny_checkpoint("sd1"))


def inputs(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of a UNet call with guidance: x, t, context."""
    return tuple(torch.zeros(shape, device=device) for shape in ((1, 4, 8, 8), (1,), (2, 77, 64)))  # type: ignore[return-value]


def watched(run: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Stage, int, list[int]]:
    """A real run whose allocations are counted by the rehearsal's own mode: (its stage, scratch, kernels called)."""
    counted, called, compute = Rehearsal(), [], native._Kernels.run

    def noting(self: Any, which: int, arguments: Any, threads: int | None = None) -> None:
        called.append(which)
        compute(self, which, arguments, threads)

    monkeypatch.setattr(kernels, "is_watched", lambda: False)
    monkeypatch.setattr(native._Kernels, "run", noting)
    monkeypatch.setattr(native._own, "scratch", None, raising=False)
    # Ours are made by torch here, which the mode sees.
    monkeypatch.setattr(native, "room", lambda *shape: torch.empty(shape, dtype=torch.float32))
    monkeypatch.setattr(native, "_room_to_stay", lambda *shape: torch.empty(shape, dtype=torch.float32))
    with module._Watching(counted):
        run()
        stage = counted.mark()
    return stage, 0 if native._own.scratch is None else native._own.scratch.nbytes, called


@needs_kernels
@pytest.mark.parametrize("limit", [None, 2_000_000, 0])
def test_live_bytes_are_those_of_the_real_run(tiny: Any, limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_derived(tiny.unet, limit)
    copy, keys = twin(tiny.unet, limit), TextKeys()
    with rehearsing() as rehearsal:
        copy(*inputs("meta"), keys=keys)
        told, scratch = rehearsal.mark(), rehearsal.scratch
    real_keys = TextKeys()
    real, real_scratch, called = watched(lambda: tiny.unet(*inputs("cpu"), keys=real_keys), monkeypatch)
    assert scratch is not None and scratch.nbytes == real_scratch > 0
    kernel_calls = [work for work in told.work if not work.kind.startswith(("torch", "copy"))]
    assert len(kernel_calls) == len(called) > 20
    # Torch's own layout changes of convolutions' weights, and inputs made within, are all that may differ.
    assert told.left == pytest.approx(real.left, rel=0.01)
    assert told.peak == pytest.approx(real.peak, rel=0.05)
    assert real_keys.bytes == keys.bytes > 0


@needs_kernels
def test_kept_bytes_are_those_of_the_real_network(tiny: Any) -> None:
    copy = twin(tiny.unet, None)
    with rehearsing():
        copy(*inputs("meta"))
    assert keeper_of(tiny.unet).held == 0, "the rehearsal touched the network"
    tiny.unet(*inputs("cpu"))
    assert keeper_of(tiny.unet).held == keeper_of(copy).held > 1_000_000


def test_by_torch_alone(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ENABLED", False)
    copy = twin(tiny.unet, None)
    with rehearsing() as rehearsal:
        copy(*inputs("meta"))
        stage = rehearsal.mark()
    kinds = {work.kind for work in stage.work}
    assert kinds == {"torch product", "torch convolution", "torch attention", "copy"}
    assert 0 < stage.left <= stage.peak


@needs_kernels
def test_operations_are_those_that_are_made() -> None:
    with torch.device("meta"), rehearsing() as rehearsal:
        matrix = Linear(64, 96)
        matrix(torch.empty(10, 64))
        linear = rehearsal.mark().work
        conv = Conv2d(64, 96, 3, padding=1)
        conv(torch.empty(1, 64, 30, 30).contiguous(memory_format=torch.channels_last))
        winograd = rehearsal.mark().work
    (product,) = [work for work in linear if work.kind == "linear"]
    assert product.operations == 2 * 10 * 64 * 96
    (tiles,) = [work for work in winograd if work.kind == "winograd 4x4"]
    assert tiles.operations == 2 * 36 * 8 * 8 * 64 * 96  # 30 pixels are 8 tiles, the last over the border
    (packing,) = [work for work in winograd if work.kind == "pack winograd"]
    assert packing.moved == 4 * 36 * 64 * 96


@needs_kernels
def test_a_changed_layer_derives_a_copy() -> None:
    with torch.device("meta"):
        layer = Linear(64, 96)
    keep_derived(layer, 0)
    with rehearsing() as rehearsal:
        layer(torch.empty(1, 64, device="meta"))
        plain = rehearsal.mark().peak
        layer.change("weight", [LowRank(torch.empty(96, 2, device="meta"), torch.empty(2, 64, device="meta"), 1.0)])
        layer(torch.empty(1, 64, device="meta"))
        assert rehearsal.mark().peak - plain >= 4 * 64 * 96


def test_other_threads_compute_meanwhile() -> None:
    layer = Linear(16, 32, bias=False)
    torch.nn.init.ones_(layer.weight)
    found: list[Tensor] = []

    def compute() -> None:
        with torch.no_grad():
            found.append(layer(torch.ones(3, 16)))

    with rehearsing():
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="within a rehearsal"), rehearsing():
            pass
    assert torch.equal(found[0], torch.full((3, 32), 16.0))
    assert kernels.in_rehearsal() is None


def test_free_blocks_are_held_too() -> None:
    with rehearsing() as rehearsal:
        first = torch.empty(PAGE, device="meta")  # 4 pages' bytes
        del first
        second = torch.empty(3 * PAGE, device="meta")
        stage = rehearsal.mark()
    assert stage.peak == 4 * 3 * PAGE and stage.held == 4 * 4 * PAGE
    del second


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AVILA_CACHE", str(tmp_path))
    monkeypatch.setattr(calibration, "SECONDS_A_KIND", 0.0)
    monkeypatch.setattr(calibration, "ROUNDS", 1)
    monkeypatch.setattr(calibration, "TOUCHED", 1 << 20)
    return tmp_path


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"work": {}, "touch": 1, "read": 1}',
        '{"work": {"copy": -1}, "touch": 0}',
        '{"work": {"copy": 1, "pack rows": 1, "torch product": 1}, "touch": 1, "read": 1}',
        '{"work": {"copy": 1' + "0" * 400 + '}, "touch": 1, "read": 1}',
    ],
    ids=["empty", "cut", "list", "deep", "no kinds", "below 0", "kinds missing", "huge"],
)
def test_rates_are_kept_and_made_anew_where_damaged(cache: Path, damage: str) -> None:
    first = calibration.rates()
    assert first.work.keys() == calibration._kinds(calibration._served(torch.device("cpu"), torch.float32))
    (path,) = (cache / "rates").iterdir()
    assert calibration.rates() == first, "not read again"
    path.write_text(damage, "utf-8")
    again = calibration.rates()
    assert json.loads(path.read_text("utf-8")) == {"work": dict(again.work), "touch": again.touch, "read": again.read}
    assert all(rate > 0 for rate in again.work.values())


def test_measuring_neither_minds_nor_changes_what_torch_is_set_to(cache: Path) -> None:
    state = torch.get_rng_state()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            assert all(rate > 0 for rate in calibration.measure().work.values())
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


def test_seconds_are_work_by_rate() -> None:
    rates = calibration.Rates({"copy": 10.0, "linear": 100.0, "pack rows": 5.0}, 1.0, 10.0)
    assert rates.seconds([Work("copy", 0, 20), Work("linear", 300, 10, packed=15)]) == 2 + 3 + 3
    assert rates.seconds([Work("linear", 100, 40)]) == 4, "it waits for its weights"
