"""`avila serve`: the web page, and the HTTP interfaces that other programs speak."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AvilaError, OutputProblem, RequestError
from .parser import add_memory_options

if TYPE_CHECKING:
    from ..server.settings import Limits, Retention, Settings

PACKAGES = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "python-multipart": "python_multipart",
    "prometheus-client": "prometheus_client",
    "httptools": "httptools",
}
"""What the server needs beyond the package, and the name of the module in each."""
TOKEN = "AVILA_TOKEN"
FOLDER = "avila-server"


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add `serve`."""
    parser = commands.add_parser(
        "serve",
        help="a web page and the HTTP interfaces of AUTOMATIC1111 and OpenAI",
        description="Serve the web page, the interface of AUTOMATIC1111's WebUI (/sdapi/v1), OpenAI's image interface (/v1) "
        "and one with jobs and events (/api/v1), to this machine alone unless told otherwise. See docs/http.md and "
        "docs/deploy.md. Ctrl-C ends it once running jobs are done, Ctrl-C again at once; what waits goes on with the next "
        "start.",
    )
    _add_network(parser.add_argument_group("who may call"))
    _add_model(parser.add_argument_group("the model"))
    _add_jobs(parser.add_argument_group("jobs"))
    said = parser.add_argument_group("what is said")
    said.add_argument("--open", action="store_true", help="open the page in a browser")
    said.add_argument("--log", choices=("text", "json"), default="text", help="lines for people (default) or programs")
    said.add_argument("-q", "--quiet", action="store_true", help="warnings only")
    said.add_argument("-v", "--verbose", action="store_true", help="every call too")
    parser.set_defaults(run=run_serve)


def _add_network(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on; default 127.0.0.1")
    group.add_argument(
        "--listen", dest="host", action="store_const", const="0.0.0.0", help="the same as --host 0.0.0.0: everybody"
    )
    group.add_argument("--port", type=int, default=7860, metavar="N", help="default 7860; 0 takes a free one")
    group.add_argument(
        "--token", metavar="TEXT", help=f"what every call must carry; better in {TOKEN}, which other users cannot see"
    )
    group.add_argument("--insecure", action="store_true", help="let everybody in the network use it, without a token")
    group.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name it goes by; repeatable"
    )
    group.add_argument(
        "--cors-origin", action="append", default=[], metavar="URL", help="a web page that may call; repeatable"
    )
    group.add_argument(
        "--allow-fetch-host",
        action="append",
        default=[],
        metavar="NAME",
        help="pictures may come from there; repeatable",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-m", "--model", metavar="MODEL", help="used where none is asked for, and loaded at once")
    group.add_argument("--models-dir", metavar="DIR", help="where models lie; default AVILA_MODELS, else ./models")
    group.add_argument("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:1, mps")
    group.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"), help="default auto"
    )
    group.add_argument("-t", "--threads", type=int, metavar="N", help="processor threads; default: one a core")
    add_memory_options(group)
    group.add_argument("--no-mmap", action="store_true", help="read the file into memory instead of mapping it")


def _add_jobs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data-dir", type=Path, metavar="DIR", help="where jobs and pictures are kept")
    group.add_argument("--queue", type=int, metavar="N", help="jobs that may wait, of all; default 256")
    group.add_argument(
        "--per-client",
        type=int,
        metavar="N",
        help="jobs that may wait, of one client; default: as --queue, a quarter of it for a server of several people",
    )
    group.add_argument("--keep", type=int, metavar="N", help="ended jobs that are kept; default 2000")
    group.add_argument("--keep-days", type=float, metavar="DAYS", help="how long they are kept; default: for ever")
    group.add_argument("--keep-size", metavar="SIZE", help="bytes that they may take, such as 20G; default 8G")
    group.add_argument(
        "--job-timeout", type=float, metavar="SECONDS", help="that a job has, waiting included; default: no limit"
    )
    group.add_argument(
        "--drain", type=float, default=20.0, metavar="SECONDS", help="that running jobs have at the end; default 20"
    )
    group.add_argument(
        "--preview-every", type=int, default=1, metavar="N", help="model calls between previews, 0 for none; default 1"
    )
    group.add_argument("--preview-decoder", metavar="NAME", help="a TAESD, for previews of full size")


def run_serve(options: argparse.Namespace) -> int:
    """`avila serve`."""
    missing = [name for name, module in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise AvilaError(f"avila serve needs {', '.join(missing)}: pip install 'avila-diffusion[server]'")
    settings = settings_of(options)
    from ..server import logs
    from ..server.guard import check_binding
    from ..server.listening import address_of_page, bind, serve

    check_binding(settings)
    logs.set_up(int(options.verbose) - int(options.quiet), options.log == "json")
    _make_private(settings.data)
    listening = bind(settings.host, settings.port)
    page = address_of_page(listening, settings)

    def ready() -> None:
        print(f"avila: the page is at {page}", flush=True)
        if options.open:
            _open(page)

    with contextlib.closing(listening):
        serve(settings, listening, ready)
    return 0


def settings_of(options: argparse.Namespace) -> Settings:
    """What the options say. Raises RequestError."""
    from ..limits import check_device, check_number, check_whole
    from ..server.hosts import is_loopback
    from ..server.settings import Settings

    check_whole("--port", options.port, 0, 65535)
    check_device(options.device)
    check_number("--drain", options.drain, 0.0, 86_400.0)
    check_whole("--preview-every", options.preview_every, 0, 10_000)
    if options.threads is not None:
        check_whole("--threads", options.threads, 1, 1024)
    if options.max_memory is not None:
        from ..given import bytes_of

        bytes_of(options.max_memory)
    token = options.token if options.token is not None else os.environ.get(TOKEN) or None
    return Settings(
        data=options.data_dir or _data_folder(),
        host=options.host,
        port=options.port,
        models_dir=_models_dir(options.models_dir),
        model=options.model,
        token=token,
        insecure=options.insecure,
        hosts=tuple(_host("--allow-host", name) for name in options.allow_host),
        origins=tuple(map(_origin, options.cors_origin)),
        fetch_hosts=tuple(_host("--allow-fetch-host", name) for name in options.allow_fetch_host),
        drain=options.drain,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        memory=options.memory or "auto",
        max_memory=options.max_memory,
        mmap=not options.no_mmap,
        preview_every=options.preview_every,
        preview_decoder=options.preview_decoder,
        limits=_limits(options, token is None and is_loopback(options.host)),
        retention=_retention(options),
    )


def _limits(options: argparse.Namespace, alone: bool) -> Limits:
    """alone: it is one person's server, whose programs may fill the queue each."""
    from ..limits import check_number, check_whole
    from ..server.settings import Limits

    if options.job_timeout is not None:
        check_number("--job-timeout", options.job_timeout, 1.0, 8_640_000.0)
    for option, value in (("--queue", options.queue), ("--per-client", options.per_client)):
        if value is not None:
            check_whole(option, value, 1, 100_000)
    queue = Limits.queue if options.queue is None else options.queue
    own = options.per_client
    if own is None:
        own = queue if alone else max(queue // 4, 1)
    return Limits(queue=queue, per_client=own, job_seconds=options.job_timeout)


def _retention(options: argparse.Namespace) -> Retention:
    """How much of what has ended is kept."""
    from ..given import bytes_of
    from ..limits import check_number, check_whole
    from ..server.settings import Retention

    kept = Retention()
    if options.keep is not None:
        check_whole("--keep", options.keep, 0, 1_000_000_000)
        kept = replace(kept, count=options.keep)
    if options.keep_days is not None:
        check_number("--keep-days", options.keep_days, 0.0, 36_500.0)
        kept = replace(kept, age=options.keep_days * 86_400.0)
    if options.keep_size is not None:
        kept = replace(kept, size=bytes_of(options.keep_size, "--keep-size"))
    return kept


def _models_dir(text: str | None) -> str | None:
    """Raises RequestError where a folder that was named is not there: nobody would find out why there are no models."""
    for part in (text or "").split(os.pathsep):
        folder = Path(part.strip()).expanduser()
        if part.strip() and not folder.is_dir():
            raise RequestError(
                f"--models-dir {part.strip()[:200]!r} is no folder; give the one that your models are in"
            )
    return text


def _host(option: str, name: str) -> str:
    from ..server.hosts import split_authority

    if split_authority(name.strip()) is None:
        raise RequestError(f"{option} {name[:80]!r} is no name of a machine; give one such as pictures.example.org")
    return name.strip().lower()


def _origin(text: str) -> str:
    """Scheme, host and port of a page."""
    from ..server.hosts import split_authority

    scheme, _, authority = text.strip().lower().rstrip("/").partition("://")
    if scheme not in ("http", "https") or split_authority(authority) is None:
        raise RequestError(
            f"--cors-origin {text[:80]!r} is no origin; give a page's scheme, host and port, such as https://example.org"
        )
    return f"{scheme}://{authority}"


def _data_folder() -> Path:
    from ..machine import data_folder

    try:
        return data_folder() / FOLDER
    except RuntimeError:
        raise RequestError("this user has no home folder; give --data-dir") from None


def _make_private(folder: Path) -> None:
    """The folder, for this user alone: prompts and pictures are nobody else's business. One that is there is left as it is,
    and it is said where others can look into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = folder.stat().st_mode
    except OSError as error:
        told = error.strerror or error
        raise OutputProblem(f"{folder} cannot be made ({told}); choose another --data-dir") from None
    if os.name != "nt" and mode & 0o077:
        log = logging.getLogger("avila.server")
        log.warning(
            "other users can look into %s (mode %o); chmod 700 keeps prompts and pictures private", folder, mode & 0o777
        )


def _open(page: str) -> None:
    """In a thread: some browsers' commands wait until they are closed."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
