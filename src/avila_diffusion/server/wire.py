"""What server and worker say to each other: one JSON object a line, through the worker's standard input and output.

To the worker, `do`:
    draw    unit, job, part, first (index of its first picture), client, request, model (name, path, vae, refiner, using:
            the names; None: the procedural generator), key (of the LoRAs that its prompts name), folder, interrupted,
            preview_every
    stop    unit, forget: put it away now; its journal stays, unless it is to be forgotten
    early   unit, how ("skip", "finish"): see `avila_diffusion.result.Early`
    load    model; unload
    end     leave in order

From the worker, `is`:
    ready    pid; its first word
    beat     memory (bytes that it holds), busy (what it does, None: nothing), since (seconds that takes so far)
    loading  model;  loaded  model, using, seconds, report;  refused  model, kind, message …: a `load` failed;  unloaded
    unfit    message: no model can be drawn with as the server was started
    turn     unit: it is its turn, a call begins
    begun    unit
    progress unit, stage, image, step, of, sigma, seconds;  preview  unit, image, media_type, data (base64)
    done     unit, results, notes;  failed  unit, kind, message, asked, lasting, full (the disk is);  stopped  unit
"""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """What `encode` wrote. Raises ValueError for a torn line, which a killed process leaves."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("a message is a table")
    return message
