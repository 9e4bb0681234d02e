"""Whose turn it is: in the line before the worker, and call by call in it."""

from __future__ import annotations

import time
from itertools import pairwise

from avila_diffusion.request import GenerateRequest
from avila_diffusion.server.dispatch import AT_ONCE, LOAD_TIMES, Line, Place
from avila_diffusion.server.job import Job, Using
from avila_diffusion.server.turns import PATIENCE, Turns

ONE, TWO = Using(model="one"), Using(model="two")


def place(number: int, client: str = "anna", parts: int = 1, using: Using | None = ONE, priority: int = 0) -> Place:
    request = GenerateRequest(prompt="x", seed=1, count=parts)
    job = Job(id=str(number), number=number, client=client, request=request, using=ONE, priority=priority)
    return Place(job, parts, using=using)


def begun(line: Line, places: list[Place], active: set[str] | None = None) -> list[int]:
    return [one.job.number for one in line.to_begin(places, active or set())]


def test_every_client_has_one_job_in_hand() -> None:
    line = Line(using=ONE)
    places = [place(1), place(2), place(3, "ben"), place(4, "cleo")]
    assert begun(line, places) == [1, 3, 4]
    assert begun(line, places, {"anna", "cleo"}) == [3]


def test_who_was_served_longest_ago_goes_first() -> None:
    line = Line(using=ONE)
    for client in ("ben", "anna"):
        line.serve(client)
    assert begun(line, [place(1), place(2, "ben"), place(3, "cleo")]) == [3, 2, 1]


def test_no_more_clients_at_once_than_take_turns() -> None:
    line = Line(using=ONE)
    places = [place(number, f"client{number}") for number in range(20)]
    assert len(begun(line, places)) == AT_ONCE
    assert len(begun(line, places, {f"other{number}" for number in range(AT_ONCE - 1)})) == 1


def test_a_clients_own_jobs_go_by_priority_then_age() -> None:
    assert begun(Line(using=ONE), [place(1), place(2), place(3, priority=5)]) == [3]
    assert begun(Line(using=ONE), [place(1), place(2)]) == [1]


def test_a_short_job_passes_a_long_one_at_a_picture_but_not_for_ever() -> None:
    line, long = Line(using=ONE), place(1, parts=100)
    order = []
    for number in range(2, 400):
        (chosen,) = begun(line, [long, place(number)])
        order.append(chosen)
        if chosen == 1:
            long.parts, long.passed = long.parts + 1, 0
    assert order[0] == 2
    assert order.count(1) >= 3  # of four hundred newcomers none kept it waiting for good


def test_a_job_without_a_model_goes_with_any() -> None:
    assert begun(Line(using=TWO), [place(1), place(2, "ben", using=None)]) == [2]


def test_a_model_is_changed_at_once_where_nothing_else_is_to_do() -> None:
    line = Line()
    assert line.to_load([place(1)], 0.0) == ONE
    line.holding(ONE, 100.0, 10.0)
    assert line.to_load([place(1)], 100.0) is None
    assert line.to_load([place(1, using=TWO)], 100.0) == TWO


def test_a_model_stays_five_load_times_while_there_is_work_for_it() -> None:
    line = Line()
    line.holding(ONE, 100.0, 10.0)
    places = [place(1), place(2, "ben", using=TWO)]
    assert line.to_load(places, 100.0 + LOAD_TIMES * 10.0 - 0.1) is None
    assert line.to_load(places, 100.0 + LOAD_TIMES * 10.0) == TWO


def test_clients_take_turns_call_by_call_and_a_new_one_is_next() -> None:
    turns = Turns()
    turns.add("a", "anna")
    assert [turns.next() for _ in range(3)] == ["a", "a", "a"]
    turns.add("b", "ben")
    assert [turns.next() for _ in range(4)] == ["b", "a", "b", "a"]


def test_a_client_of_many_tiny_jobs_does_not_go_before_others() -> None:
    turns = Turns()
    turns.add("long", "anna")
    order = []
    for number in range(6):
        turns.add(f"tiny{number}", "ben")
        for _ in range(2):
            order.append(turns.next())
        turns.remove(f"tiny{number}")
    assert order.count("long") == 6


def test_units_with_the_same_loras_keep_the_model_for_some_calls() -> None:
    turns = Turns()
    turns.add("a", "anna", "one")
    turns.add("b", "ben", "two")
    turns.add("c", "cleo", "one")
    order = [turns.next() for _ in range(PATIENCE * 4)]
    changes = sum((here == "b") != (there == "b") for here, there in pairwise(order))
    assert changes <= 5
    assert order.count("b") >= PATIENCE


def test_choosing_is_quick_with_a_full_queue() -> None:
    line = Line(using=ONE)
    places = [place(number, f"client{number % 50}") for number in range(2000)]
    began = time.process_time()
    begun(line, places)
    assert time.process_time() - began < 1.0
