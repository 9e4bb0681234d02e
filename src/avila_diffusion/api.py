"""The Python interface: `AvilaDiffusion`, with a checkpoint, with the bundled model, or without any."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from .errors import AvilaError, Cancelled, JournalProblem, RequestError
from .given import LoraGiven, PictureGiven, absolute, bytes_of, check_given, checked_share, folders_of
from .loading import loading, path_of, read_model, read_preview_decoder, read_refiner, tell_loras
from .options import GenerateOptions, MemoryMode, PictureOptions, SizedOptions
from .request import GenerateRequest
from .result import Early, GenerateResult, Progress
from .sampling.names import resolve_sampler
from .styling import styled

if TYPE_CHECKING:
    from .checkpoint.report import LoadReport
    from .pipeline.engine import ModelEngine
    from .pipeline.forecast import Forecast, Outlook
    from .pipeline.journal import Journal
    from .pipeline.ledger import Ledger

PROMPTS = ("prompt", "negative_prompt")
LOADED = frozenset(
    ("path", "vae", "text_encoder", "lora", "prediction", "device", "dtype", "mmap", "embeddings", "lenient", "models")
)
"""What a journal says of how its model was loaded."""
LATER = frozenset(("min_match", "memory", "max_memory", "refiner"))
"""The same, missing in journals of before it could be chosen."""


class Engine(Protocol):
    """What makes pictures of requests: a loaded model, or the procedural generator."""

    @property
    def size(self) -> int: ...

    def generate(
        self, request: GenerateRequest, cancel: threading.Event | None = None, *, early: Early | None = None
    ) -> Iterator[Progress | GenerateResult]: ...


class AvilaDiffusion:
    """A picture generator.

        AvilaDiffusion.with_model("dreamshaper_8.safetensors", steps=20)
        AvilaDiffusion.bundled()

    Without a model it is the procedural generator, which loads no torch:

    >>> result = AvilaDiffusion(seed=1).text_to_image("sunset", None, 96, 64)
    >>> result.seed, result[0].width, result.to_numpy().shape
    (1, 96, (64, 96, 3))

    Options given here are the defaults of `text_to_image`, whose own options win; `generate` takes a request as it is.
    They are the fields of `GenerateRequest` but its prompts: steps, sampler, schedule, guidance_scale, seed, width, height …
    Raises RequestError, a ValueError, for an option that does not exist or cannot be used.
    """

    def __init__(self, **defaults: Unpack[GenerateOptions]) -> None:
        from .procedural.engine import ProceduralEngine

        self._engine: Engine = ProceduralEngine()
        self._report: LoadReport | None = None
        self._loaded: dict[str, Any] = {}
        self._recommended: dict[str, Any] = {}
        prompts = [name for name in PROMPTS if name in defaults]
        if prompts:
            raise RequestError(f"unknown option {', '.join(prompts)}; text_to_image takes the prompts")
        self._defaults: dict[str, Any] = dict(defaults)
        self.request("")  # defaults that cannot be used are refused now

    @classmethod
    def with_model(
        cls,
        path: str | Path,
        *,
        vae: str | Path | None = None,
        text_encoder: str | Path | Sequence[str | Path] | None = None,
        lora: LoraGiven | Sequence[LoraGiven] | None = None,
        refiner: str | Path | None = None,
        prediction: str | None = None,
        embeddings: str | Path | Sequence[str | Path] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        memory: MemoryMode = "auto",
        max_memory: int | str | None = None,
        mmap: bool = True,
        lenient: bool = False,
        min_match: float = 1.0,
        preview_decoder: str | Path | None = None,
        **defaults: Unpack[GenerateOptions],
    ) -> AvilaDiffusion:
        """Load a checkpoint: a `.safetensors` file, a diffusers folder, or the name of a model in a models folder.

        vae, text_encoder: files that replace or supply those parts. lora: a LoRA file that changes the model, or it
        with its weight (1 by default) or its weights for the text towers and for the UNet, or a list of these.
        refiner: a model that takes over before the end of the sampling (`refiner_switch`).
        prediction: "epsilon", "v" or "edm" overrules what is detected. embeddings: the folder of textual inversions,
        or a list of them, by default those in the models folders. device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto", "float32", "float16", "bfloat16", "float64". threads: how many torch computes with, for the
        whole process. memory: "fast" keeps the weights in the form that is computed with, "lean" makes them again as
        it goes, "auto" is as fast as this machine has room for. max_memory: what the process may hold at most, in
        bytes or as "3G"; a run that needs more is refused. mmap: map the file instead of reading it. lenient: leave out
        what of a LoRA does not fit the model. min_match: likewise, where at least this share (0 to 1) of its layers fits.
        preview_decoder: a tiny autoencoder (TAESD) that draws `Progress.preview()`, at the picture's size.
        Raises an AvilaError with one clear line where the file cannot be used.
        """
        diffusion = cls(**defaults)
        from .checkpoint.embeddings import embeddings_by_name
        from .device import check_threads, choose_policy, use_threads
        from .pipeline.engine import ModelEngine
        from .pipeline.loras import LoraRack
        from .pipeline.memory import Memory, prepare

        allowed, policy = Memory(memory, bytes_of(max_memory)), choose_policy(device, dtype)
        check_threads(threads)
        model, towers, loras = read_model(path, vae, text_encoder, lora, prediction, mmap)
        rack = LoraRack(model, tuple(loras), mapped=mmap, min_match=0.0 if lenient else checked_share(min_match))
        tell_loras(model.report, rack.use())
        use_threads(threads)
        folders = None if embeddings is None else folders_of(embeddings)
        decoder = read_preview_decoder(preview_decoder, model.spec, mmap)
        prepare(model, policy, decoder)
        words = embeddings_by_name(folders, [x.path for x, *_ in loras])
        second = read_refiner(refiner, model, policy, allowed, mmap)
        diffusion._engine = ModelEngine(model, policy, rack, words, allowed, second, decoder)
        again = {"embeddings": absolute(folders), "lenient": lenient, "min_match": min_match, "models": None}
        again |= {"memory": allowed.mode, "max_memory": allowed.limit, "refiner": path_of(second)}
        diffusion._loaded = loading(model, towers, loras, policy, prediction, mmap) | again
        diffusion._recommended, diffusion._report = model.spec.defaults.recommended, model.report
        return diffusion

    @classmethod
    def bundled(
        cls,
        *,
        lora: LoraGiven | Sequence[LoraGiven] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        memory: MemoryMode = "auto",
        max_memory: int | str | None = None,
        mmap: bool = True,
        **defaults: Unpack[GenerateOptions],
    ) -> AvilaDiffusion:
        """Load the small model that comes with the package; options as those of `with_model`.

        It draws about 128x128 pixels, which are enlarged to the size asked for. Raises FileProblem where this copy of the
        package has no such file.
        """
        cls(**defaults)  # refuses what only with_model takes, such as another VAE
        from .checkpoint.bundled import bundled_model

        options: dict[str, Any] = {"lora": lora, "device": device, "dtype": dtype, "threads": threads, "mmap": mmap}
        return cls.with_model(bundled_model(), memory=memory, max_memory=max_memory, **options, **defaults)

    @property
    def report(self) -> LoadReport | None:
        """What was used of the model's files, what not and why; None for the procedural generator."""
        return self._report

    @property
    def size(self) -> int:
        """Width and height, in pixels, of pictures for which none are asked."""
        return self._engine.size

    def text_to_image(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        *,
        journal: str | Path | None = None,
        styles: str | Sequence[str] = (),
        styles_file: str | Path | None = None,
        **options: Unpack[PictureOptions],
    ) -> GenerateResult:
        """Make pictures of a prompt. width, height: pixels, by default the model's own size. journal: see `generate`.
        styles, styles_file: see `request`.

        The result is a sequence of pictures; with one, which is usual, it can be saved and converted like a picture.
        Raises RequestError for what cannot be asked for, and other AvilaErrors where the run fails.
        """
        sizes = {name: side for name, side in (("width", width), ("height", height)) if side is not None}
        given: dict[str, Any] = {**options, **sizes}
        named: dict[str, Any] = {} if journal is None else {"journal": journal}
        request = self.request(prompt, negative_prompt, styles=styles, styles_file=styles_file, **given)
        for event in self.generate(request, **named):
            if isinstance(event, GenerateResult):
                return event
        raise AvilaError("the run ended without a result")

    def image_to_image(
        self,
        image: PictureGiven,
        prompt: str = "",
        negative_prompt: str | None = None,
        **options: Unpack[SizedOptions],
    ) -> GenerateResult:
        """Make pictures that begin with another one, noised by `strength`. image: a path, the bytes of a file, an array, a
        Pillow image or one of ours. Options are those of `text_to_image`; width and height are by default the picture's."""
        check_given(image=image)
        return self.text_to_image(prompt, negative_prompt, image=image, **options)

    def inpaint(
        self,
        image: PictureGiven,
        mask: PictureGiven,
        prompt: str = "",
        negative_prompt: str | None = None,
        **options: Unpack[SizedOptions],
    ) -> GenerateResult:
        """Paint a part of a picture anew: what is white in the mask. The picture keeps its size, and the rest of it byte for
        byte, unless another size is asked for and inpaint_area is "whole"."""
        check_given(image=image, mask=mask)
        return self.text_to_image(prompt, negative_prompt, image=image, mask=mask, **options)

    def generate(
        self,
        request: GenerateRequest,
        *,
        cancel: threading.Event | None = None,
        journal: str | Path | Ledger | None = None,
        early: Early | None = None,
    ) -> Iterator[Progress | GenerateResult]:
        """Run a request: an iterator of `Progress` events whose last item is the `GenerateResult`.

        journal: a new file to which every answer of the model is written, so that `avila resume` can go on with the run; or
        the ledger of one that is open.
        Set `cancel`, or close the iterator, to stop between two model calls; then Cancelled is raised, or nothing. early: set
        its fields between two events to end sooner, with what there is then.
        """
        if cancel is not None and not isinstance(cancel, threading.Event):
            raise RequestError(f"cancel must be a threading.Event, not {type(cancel).__name__}")
        if not isinstance(request, GenerateRequest):
            raise RequestError(f"generate takes a GenerateRequest, not {type(request).__name__}; see text_to_image")
        if journal is None:
            return self._engine.generate(request, cancel, early=early)
        if isinstance(journal, str | Path):
            return self._journalled(self.resolved(request), cancel, journal, early)
        return _naming_the_journal(self._model_engine().generate(request, cancel, journal, early), journal.journal)

    def _journalled(
        self, request: GenerateRequest, cancel: threading.Event | None, path: str | Path, early: Early | None
    ) -> Iterator[Progress | GenerateResult]:
        from .pipeline.ledger import Ledger

        with self.new_journal(path, request) as journal:
            run = self._model_engine().generate(journal.request, cancel, Ledger(journal), early)
            yield from _naming_the_journal(run, journal)

    def plan(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        kept: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Forecast:
        """What `text_to_image` would take of memory and time; makes no picture. kept: bytes of derived weights that may stay,
        by default all; with 0 none. The first time on a machine it measures that for two seconds. Raises as the run would."""
        return self.outlook(self.request(prompt, negative_prompt, **options)).at(kept)

    def outlook(self, request: GenerateRequest) -> Outlook:
        """The same for a request and any number of kept bytes: its `at(kept)`, its `keepable`."""
        from .pipeline.forecast import Outlook

        engine = self._model_engine("plan")
        return Outlook(engine, engine.accept(request))

    def resolved(self, request: GenerateRequest) -> GenerateRequest:
        """The request with nothing left open: its seed is drawn and its size that of the model.

        Raises RequestError or Unsupported where the model cannot run it.
        """
        return self._model_engine().accept(request)

    def conditions(self) -> dict[str, Any]:
        """What the bits of this object's pictures depend on beside request and model: versions, device, threads …"""
        from .pipeline.provenance import conditions

        return conditions(self._model_engine().policy)

    def new_journal(
        self, path: str | Path, request: GenerateRequest, *, copied: Journal | None = None, **header: Any
    ) -> Journal:
        """A new journal for a run of `request`; its `request` is the one to run. header: what else it is to hold.

        copied: a journal whose calls it begins with. Raises OutputProblem where there is a file of that name.
        """
        from .pipeline.journal import Journal
        from .pipeline.provenance import files_of

        engine = self._model_engine()
        request = self.resolved(request)
        loras = engine.reports(engine.passes(request))
        header |= {
            "request": request.to_dict(),
            "loaded": self._loaded,
            "files": files_of(engine.models, loras, engine.embeddings_of(request)),
            "conditions": self.conditions(),
        }
        return Journal.create(path, header, copied=copied)

    @classmethod
    def from_journal(
        cls,
        journal: Journal,
        *,
        model: str | Path | None = None,
        memory: MemoryMode | None = None,
        max_memory: int | str | None = None,
        preview_decoder: str | Path | None = None,
        anyway: bool = False,
    ) -> AvilaDiffusion:
        """The generator that a journal's run was begun with, computing as it did: device, dtype, threads and kernels.

        model: where the checkpoint lies now, if elsewhere. memory, max_memory: see `with_model`; by default as then;
        preview_decoder: likewise, by default none.
        anyway: go on where versions or machine are others; the rest of the picture is then another by a little. Raises
        JournalProblem where the same bits cannot be had.
        """
        from .pipeline.provenance import check_files, differences, take_over

        loaded = journal.header.get("loaded")
        missing = LOADED - set(loaded) if isinstance(loaded, dict) else LOADED
        if (
            not isinstance(loaded, dict)
            or missing
            or not set(loaded) <= LOADED | LATER
            or not isinstance(loaded["path"], str)
        ):
            raise JournalProblem(f"{journal.path} does not say which model it was made with; it cannot be gone on with")
        given = {**loaded, "lora": [tuple(one) for one in loaded["lora"]]}
        given |= {
            name: value for name, value in {"memory": memory, "max_memory": max_memory}.items() if value is not None
        }
        models = given.pop("models")
        recorded_path = given.pop("path")
        place = recorded_path if model is None else model
        check_files(journal.header.get("files"), {} if model is None else {loaded["path"]: Path(model)})
        recorded = journal.header.get("conditions")
        take_over(recorded)
        diffusion = cls.with_model(place, preview_decoder=preview_decoder, **given)
        diffusion.look_in(models)
        others = differences(recorded, diffusion.conditions())
        if others and not anyway:
            raise JournalProblem(
                f"{journal.path} cannot be gone on with to the same bits: {'; '.join(others)}; "
                "--anyway goes on to a picture that may differ a little"
            )
        return diffusion

    def look_in(self, models: str | Path | None) -> None:
        """Look for the LoRAs that prompts name in this models folder, None for the usual ones (`avila models`)."""
        self._model_engine().rack.models = models
        self._loaded["models"] = absolute(None if models is None else Path(models))

    def _model_engine(self, what: str = "record") -> ModelEngine:
        from .pipeline.engine import ModelEngine

        if not isinstance(self._engine, ModelEngine):
            raise RequestError(
                f"the procedural generator makes no model calls, so there is nothing to {what}; take a model"
            )
        return self._engine

    def request(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        styles: str | Sequence[str] = (),
        styles_file: str | Path | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GenerateRequest:
        """The request that `text_to_image` would run: these options, then the defaults given to this object, then those
        that the model's file recommends, then those of `GenerateRequest`.

        styles: names in a styles.csv, merged into both prompts in order; the request has what they made. styles_file: that
        file, by default in the models folder or beside it.
        """
        negative = "" if negative_prompt is None else negative_prompt
        prompt, negative = styled(prompt, negative, styles, styles_file, self._loaded.get("models"))
        asked = {**self._defaults, **options, "prompt": prompt, "negative_prompt": negative}
        values = {**self._recommended, **asked}
        if asked.get("sigmas") is not None and "sampler" not in asked and "sampler" in values:
            # The schedule in a joint name such as "DPM++ 2M Karras" was recommended, not asked for: it gives way.
            values["sampler"] = resolve_sampler(values["sampler"])[0].name
        return GenerateRequest.from_dict(values)


def _naming_the_journal(
    run: Iterator[Progress | GenerateResult], journal: Journal | None
) -> Iterator[Progress | GenerateResult]:
    """The same run; where it is cancelled, the message says how to go on."""
    try:
        yield from run
    except Cancelled:
        if journal is None or not journal.writable:
            raise
        calls = f"{journal.calls} model call{'' if journal.calls == 1 else 's'}"
        raise Cancelled(f"cancelled; {journal.path} holds {calls}, go on with `avila resume {journal.path}`") from None
