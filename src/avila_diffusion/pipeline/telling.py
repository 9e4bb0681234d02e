"""What a finished picture says about how it was made: its infotext and our own record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.embeddings import SHORT, Embedding
from ..checkpoint.lora.apply import LoraReport
from ..hashes import own_hash
from ..images import Image
from ..infotext import LoraUsed, write
from ..metadata.record import make_record
from ..request import GenerateRequest
from .ledger import Ledger
from .provenance import told_conditions

if TYPE_CHECKING:
    from .engine import ModelEngine


def told(
    engine: ModelEngine,
    image: Image,
    request: GenerateRequest,
    drawn: GenerateRequest,
    index: int,
    hashes: Mapping[str | Path, str],
    ledger: Ledger,
    used: Mapping[str, Embedding],
    reports: Sequence[LoraReport],
) -> Image:
    """Picture `index` of a resolved request with what it says. drawn: the request as the networks ran it. hashes: of files."""
    resized = {} if drawn == request else {"Drawn at": f"{drawn.width}x{drawn.height}", "Resized with": "Lanczos"}
    branched = {} if ledger.branch is None else ledger.branch.told(request)
    vae, refiner = engine.model.vae_path, engine.refiner
    embeddings = {name: found.hash[:SHORT] for name, found in used.items()}
    loras = [
        LoraUsed(
            name=lora.name,
            text_weight=lora.text_weight,
            unet_weight=lora.unet_weight,
            hash=own_hash(lora.metadata) or hashes.get(lora.path),
            in_prompt=number >= len(engine.rack.given),
        )
        for number, lora in enumerate(reports)
    ]
    infotext = write(
        request,
        request.seeds[index],
        index=index,
        model=engine.name,
        model_hash=hashes.get("model"),
        vae=vae.name if vae is not None else None,
        vae_hash=hashes.get("vae"),
        refiner=None if refiner is None else refiner.name,
        refiner_hash=hashes.get("refiner"),
        loras=loras,
        embeddings=embeddings,
        extra={**resized, **branched},
    )
    record = make_record(
        request, index, infotext, loras=loras, embeddings=embeddings, conditions=told_conditions(engine.policy)
    )
    return replace(image, infotext=infotext, record=record)
