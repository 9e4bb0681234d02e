"""Memory for large tensors: blocks serve again, what is held stays bounded, and nothing is lent twice."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from avila_diffusion.kernels import rooms
from avila_diffusion.kernels.rooms import PAGE, SLACK, SMALLEST, Imagined, Rooms, fresh, lend
from avila_diffusion.pipeline.forecast import held_now

FLOATS = PAGE // 4


def test_a_block_that_was_freed_serves_the_next_tensor_of_its_size() -> None:
    pool = Rooms(fresh)
    first = lend(pool, 3 * FLOATS)
    at = first.data_ptr()
    view = first[5:]
    del first
    assert pool.used == 3 * PAGE, "a view still reads it"
    assert lend(pool, 3 * FLOATS).data_ptr() != at
    del view
    assert pool.used == 0
    assert lend(pool, 3 * FLOATS - 7).data_ptr() == at, "of two that fit, the last that was freed"
    assert pool.held == 6 * PAGE


def test_a_block_far_too_large_does_not_serve() -> None:
    pool = Rooms(fresh)
    del (large := [lend(pool, 8 * FLOATS)])[:]
    kept = lend(pool, 6 * FLOATS)  # 8 is more than 5 / 4 of it
    assert (pool.used, pool.held) == (6 * PAGE, 14 * PAGE)
    del kept, large


def test_small_tensors_are_torch_s_own() -> None:
    tensor = rooms.take(SMALLEST // 4 - 1)
    assert tensor.shape == (SMALLEST // 4 - 1,) and tensor.dtype == torch.float32


@pytest.mark.parametrize("make", [fresh, Imagined])
def test_held_memory_stays_within_the_slack_of_the_most_in_use(make: Any) -> None:
    pool, chance = Rooms[Any](make), random.Random(3)
    alive: list[Any] = []
    most = 0
    for _ in range(600):
        if alive and (chance.random() < 0.5 or pool.used > SLACK):
            pool.take_back(alive.pop(chance.randrange(len(alive))))
        else:
            alive.append(pool.take(chance.randrange(1, 40) * PAGE))
        most = max(most, pool.used)
        assert pool.used <= pool.held <= pool.most_held <= most + SLACK
    for block in alive:
        pool.take_back(block)
    assert pool.used == 0 < pool.held
    pool.give_back()
    assert pool.held == 0


def test_tensors_never_share_a_block() -> None:
    """Filled by many threads at once and kept over each other's deaths."""
    pool, wrong = Rooms(fresh), []

    def work(number: int) -> None:
        chance = random.Random(number)
        mine: list[tuple[Tensor, float]] = []
        for turn in range(150):
            value = float(number * 1000 + turn)
            tensor = lend(pool, FLOATS * chance.randrange(1, 3))
            tensor[::4096] = value
            mine.append((tensor, value))
            if len(mine) > 4:
                tensor, value = mine.pop(chance.randrange(len(mine)))
                if not bool((tensor[::4096] == value).all()):
                    wrong.append(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not wrong and pool.used == 0


def test_without_memory_the_refusal_says_so_and_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object, **named: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    pool = Rooms(fresh)
    monkeypatch.setattr("mmap.mmap", none)
    with pytest.raises(MemoryError, match=r"no 0\.84 GB of memory more.*--memory lean"):
        lend(pool, 400 * FLOATS)
    assert pool.used == pool.held == 0


def test_memory_of_ones_own_is_writable_and_as_large_as_asked() -> None:
    for count in (7, FLOATS + 3, 20 * FLOATS + 1):
        tensor = rooms.own(count)
        tensor.fill_(2)
        assert tensor.shape == (count,) and float(tensor.sum(dtype=torch.float64)) == 2 * count


@pytest.mark.skipif(rooms._malloc_trim() is None, reason="the C library here is not glibc")
def test_what_the_heap_keeps_is_given_back() -> None:
    blocks = [torch.ones(16 << 10) for _ in range(1000)]  # 64 kB each, which glibc takes from its heap
    full = held_now()
    pinned = blocks[::100]  # the heap cannot shrink from its end
    del blocks
    left = held_now()
    rooms.trim()
    assert full is not None and left is not None and len(pinned) == 10
    if left < full - (16 << 20):
        pytest.skip("it was given back at once: another library than glibc's stands in for it")
    assert (held_now() or 0) < left - (40 << 20)
