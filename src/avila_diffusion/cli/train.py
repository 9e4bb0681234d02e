"""`avila train`: an autoencoder, a UNet with its text tower, a LoRA or an embedding, as a TOML file says."""

from __future__ import annotations

import argparse
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..training.loop import Report

KINDS = {
    "vae": "an autoencoder, from nothing",
    "unet": "a UNet and its text tower, from nothing, on an autoencoder's latents",
    "lora": "a LoRA for a checkpoint",
    "embedding": "an embedding (textual inversion) for a checkpoint",
}


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `train KIND --config FILE`."""
    parser = commands.add_parser(
        "train",
        help="train a LoRA, an embedding, or a small model of your own",
        description="Train as a TOML file says (docs/training.md). A run that was stopped goes on with the same command.",
    )
    parser.add_argument("kind", choices=KINDS, help="; ".join(f"{kind}: {what}" for kind, what in KINDS.items()))
    parser.add_argument("--config", "-c", required=True, type=Path, metavar="FILE", help="the TOML file")
    parser.add_argument("--minutes", type=float, metavar="N", help="stop after so many minutes, keeping the state")
    parser.add_argument("--threads", "-t", type=int, metavar="N", help="threads to compute with")
    parser.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")
    parser.set_defaults(run=train)


def train(options: argparse.Namespace) -> int:
    """Run it; the path of the result on stdout, progress on stderr."""
    if options.minutes is not None and not 0 < options.minutes < 1e6:
        raise RequestError(f"--minutes is {options.minutes:g}; it must be above 0")
    from ..device import check_threads, use_threads
    from ..training.recipes import make_trainer, read_recipe

    check_threads(options.threads)

    def say(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    recipe = read_recipe(options.config, minutes=options.minutes, say=say)
    use_threads(options.threads)
    trainer = make_trainer(options.kind, recipe)
    cancel, signals = threading.Event(), list[int]()
    try:
        with _stopping(cancel, signals):
            for report in trainer.run(cancel):
                say(_line(report))
    except Cancelled as stopped:
        print(f"avila: error: {stopped}", file=sys.stderr, flush=True)
        return 128 + signals[0]
    if trainer.step < recipe.settings.steps:
        say(f"avila: the time is up; the same command goes on, its state is in {trainer.folder}")
    print(trainer.out)
    return 0


def _line(report: Report) -> str:
    losses = ", ".join(f"{name} {value:.4g}" for name, value in report.losses.items())
    left = (report.of - report.step) * report.seconds_per_step
    return (
        f"step {report.step:,} of {report.of:,}: {losses}; rate {report.learning_rate:.2g}; "
        f"{report.items_per_second:.1f} pictures/s, {left / 60:.0f} min to go"
    )


@contextmanager
def _stopping(cancel: threading.Event, signals: list[int]) -> Iterator[None]:
    """Let Ctrl-C and the like end the run between two steps, its state kept; a second one ends it at once.

    signals: takes the number of the one that came.
    """
    import signal

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        cancel.set()
        signal.signal(number, before[number])

    main = threading.current_thread() is threading.main_thread()
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if main else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # as nohup leaves it
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
