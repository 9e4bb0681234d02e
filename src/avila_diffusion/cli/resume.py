"""`avila resume`: a recorded run goes on, or leaves its way at a step that was recorded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AvilaError, RequestError
from .parser import add_memory_options, typed_text
from .previews import Previews, add_decoder_option, add_preview_options

if TYPE_CHECKING:
    from ..api import AvilaDiffusion
    from ..pipeline.journal import Journal
    from .job import Job
    from .outputs import Destination
    from .progress import ProgressDisplay

CHANGES = ("prompt", "negative_prompt", "guidance_scale", "sampler")


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add this family to the command line."""
    resume = commands.add_parser(
        "resume",
        help="go on with a run that was recorded with --journal",
        description="Go on with a run that was recorded with --journal: no model call is made twice, and the picture has the "
        "same bytes as if nothing had happened. With --branch-at, go another way from a recorded step on.",
    )
    resume.add_argument("journal_file", metavar="FILE", help="the journal")
    resume.add_argument("-o", "--output", metavar="PATH", help="all pictures here; default: those missing, as planned")
    resume.add_argument("-m", "--model", metavar="MODEL", help="where the checkpoint lies now, if elsewhere")
    resume.add_argument(
        "--anyway", action="store_true", help="go on though versions or machine differ; the picture may differ a little"
    )
    add_memory_options(resume.add_argument_group("memory", "by default as the run was begun"))
    previews = resume.add_argument_group("previews", "also of the steps that were recorded")
    add_preview_options(previews)
    add_decoder_option(previews)
    branch = resume.add_argument_group("another way")
    branch.add_argument("--branch-at", type=int, metavar="K", help="keep K steps; what follows is made anew")
    branch.add_argument("-p", "--prompt", type=typed_text, metavar="TEXT", help="by this prompt from there")
    branch.add_argument(
        "-n", "--negative-prompt", type=typed_text, metavar="TEXT", help="by this negative prompt from there"
    )
    branch.add_argument(
        "--cfg", dest="guidance_scale", type=float, metavar="X", help="by this guidance scale from there"
    )
    branch.add_argument("--sampler", metavar="NAME", help="by this sampler from there, on the levels that are left")
    branch.add_argument("--journal", metavar="NEW", help="record the branch in a file of its own")
    resume.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the paths")
    resume.add_argument("-q", "--quiet", action="store_true", help="nothing on stderr but errors")
    resume.set_defaults(run=run_resume)


def run_resume(options: argparse.Namespace) -> int:
    """`avila resume`."""
    from ..pipeline.journal import Journal
    from .progress import ProgressDisplay

    if options.branch_at is None:
        given = [name for name in (*CHANGES, "journal") if getattr(options, name) is not None]
        if given:
            named = ", ".join("--cfg" if name == "guidance_scale" else f"--{name.replace('_', '-')}" for name in given)
            raise RequestError(f"{named} only means something with --branch-at K; a run that goes on stays as it is")
        with Journal.reopen(options.journal_file) as journal:
            display = ProgressDisplay(journal.pictures, quiet=options.quiet)
            return _go_on(options, journal, display)
    with Journal.read(options.journal_file) as journal:
        display = ProgressDisplay(journal.pictures, quiet=options.quiet)
        return _branch(options, journal, display)


def _engine(options: argparse.Namespace, journal: Journal) -> AvilaDiffusion:
    """What the run was begun with."""
    from ..api import AvilaDiffusion

    return AvilaDiffusion.from_journal(
        journal,
        model=_model(options),
        memory=options.memory,
        max_memory=options.max_memory,
        preview_decoder=options.preview_decoder,
        anyway=options.anyway,
    )


def _go_on(options: argparse.Namespace, journal: Journal, display: ProgressDisplay) -> int:
    from .job import Job, is_there, made_size
    from .outputs import Destination

    if journal.torn:
        display.say(f"the last record of {journal.path} was torn; {journal.torn} bytes are dropped")
    output = journal.header.get("output")
    trail = isinstance(output, dict) and bool(output.get("trail"))
    recorded = None if options.output is not None else Destination.recorded(output)
    grid = isinstance(output, dict) and output.get("grid") is True
    destination = recorded or Destination.planned(options.output, journal.pictures, grid=grid)
    there = [is_there(journal, image) for image in range(journal.pictures)]
    if options.output is None and all(there):
        display.say("all pictures are there already; -o makes them again somewhere else")
        return _finish_grid(options, journal, destination, [path for path in there if path is not None])
    destination.check(trails=trail, journals=[journal.path])
    destination.check_sizes(*made_size(journal.request))
    previews = Previews.asked(options, destination.stem, display.say)
    display.say(f"{journal.calls} model calls are recorded")
    try:
        engine = _engine(options, journal)
        job = Job(
            engine,
            journal.request,
            destination,
            display,
            quiet=options.json,
            trail=trail,
            journal=journal,
            branch=journal.branch,
            planned=options.output is None,
            previews=previews,
        )
        job.run()
    finally:
        display.close()
    return _finish(options, journal, job.paths, job)


def _finish_grid(options: argparse.Namespace, journal: Journal, destination: Destination, paths: list[Path]) -> int:
    """All pictures are there; of their grid that is not known yet."""
    from .job import save_grid, tell

    unmade: AvilaError | None = None
    if destination.grid:
        try:
            paths = [*paths, save_grid(destination, paths, journal)]
        except AvilaError as error:
            unmade = error
    for path in [] if options.json else paths:
        tell(path)
    _finish(options, journal, paths)
    if unmade is not None:
        raise unmade
    return 0


def _branch(options: argparse.Namespace, journal: Journal, display: ProgressDisplay) -> int:
    from ..pipeline.branch import Branch, change
    from .job import Job, made_size
    from .outputs import Destination

    before = journal.request
    changes = {name: getattr(options, name) for name in CHANGES}
    request = change(before, options.branch_at, **changes)
    if journal.branch is not None and journal.branch.before.sampler != before.sampler:
        raise RequestError(
            f"{journal.path} is itself a branch to another sampler; branch from the journal it came from"
        )
    destination = Destination.planned(options.output, journal.pictures)
    destination.check(journals=[journal.path, *([options.journal] if options.journal else [])])
    destination.check_sizes(*made_size(request))
    previews = Previews.asked(options, destination.stem, display.say)
    journal.cut(options.branch_at)
    try:
        engine = _engine(options, journal)
        branch = Branch(at=options.branch_at, before=before)
        job = Job(
            engine, request, destination, display, quiet=options.json, journal=journal, branch=branch, previews=previews
        )
        if options.journal is None:
            job.planned = False
        else:
            job.begin_journal(options.journal, copied=journal)
        job.run()
    finally:
        display.close()
    return _finish(options, job.journal or journal, job.paths, job)


def _model(options: argparse.Namespace) -> Any:
    from ..checkpoint.folders import find_model

    return None if options.model is None else find_model(options.model, "checkpoint")


def _finish(options: argparse.Namespace, journal: Journal, paths: list[Any], job: Job | None = None) -> int:
    if options.json:
        notes = list(dict.fromkeys(note for result in ([] if job is None else job.results) for note in result.notes))
        seeds = list(journal.request.seeds)
        print(
            json.dumps({"paths": [str(path) for path in paths], "seeds": seeds, "calls": journal.calls, "notes": notes})
        )
    if job is not None and job.unmade is not None:
        raise job.unmade
    return 0
