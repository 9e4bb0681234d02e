"""Rank and alpha that a LoRA of PEFT's carries outside its tensors: in `adapter_config.json` beside it, or, from
diffusers 0.35 on, in the metadata of the file. No torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import Unsupported, WeightMismatch
from ..header import Header, shown
from ..signatures import open_regular

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"
MAX_BYTES = 1 << 20
COMPONENTS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
SUPPORTED = ("LORA", "LOHA", "LOKR", "IA3")


@dataclass(frozen=True)
class AdapterSettings:
    """What was read. values: of the whole file, or by component with names such as "unet.lora_alpha"."""

    source: str
    values: Mapping[str, Any]

    def scale(self, module: str, name: str, rank: int) -> float | None:
        """What the product is multiplied with; None where the settings say nothing of it.

        module, name: the layer as the file names it, and kohya's name. Raises WeightMismatch for what is no number.
        """
        component = next((title for prefix, title in COMPONENTS.items() if name.startswith(prefix)), "")
        alpha = self._for_layer("alpha_pattern", module, component)
        for key in ("lora_alpha", "alpha"):
            alpha = self._value(key, component) if alpha is None else alpha
        if alpha is None:
            return None
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
            or abs(alpha) > 1e9
        ):
            raise WeightMismatch(f"{self.source}: alpha of {shown(module)} is {shown(alpha)}, expected a number")
        return alpha / math.sqrt(rank) if self._value("use_rslora", component) is True else alpha / rank

    def _value(self, key: str, component: str) -> Any:
        return self.values.get(f"{component}.{key}", self.values.get(key))

    def _for_layer(self, key: str, module: str, component: str) -> Any:
        patterns = self._value(key, component) or {}
        if not isinstance(patterns, dict):
            raise WeightMismatch(f"{self.source}: {key} is {shown(patterns)}, expected names and numbers")
        for pattern, value in patterns.items():
            # PEFT takes them for regular expressions; in files they are names or ends of names
            if not re.fullmatch(r"\^?[\w.\\]+\$?", pattern, re.ASCII):
                raise Unsupported(
                    f"{self.source}: {key} has the pattern {shown(pattern)}; only names of layers are read"
                )
            layer = pattern.strip("^$").replace("\\", "")
            if module == layer or module.endswith(f".{layer}"):
                return value
        return None


def read_settings(header: Header) -> AdapterSettings | None:
    """The settings of a LoRA file; None where there are none.

    Raises WeightMismatch where they cannot be read, Unsupported for another kind of adapter.
    """
    if METADATA in header.metadata:
        return _parse(f"{header.path.name}, metadata {METADATA}", header.metadata[METADATA])
    path = header.path.with_name(CONFIG)
    if header.path.stem not in ("adapter_model", "pytorch_lora_weights") or not path.is_file():
        return None
    try:
        with open_regular(path) as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as problem:
        raise WeightMismatch(f"{path} cannot be read: {problem.strerror}") from None
    return _parse(str(path), text)


def _parse(source: str, text: str | bytes) -> AdapterSettings:
    if len(text) > MAX_BYTES:
        raise WeightMismatch(f"{source} has more than {MAX_BYTES:,} bytes; expected a LoRA's settings")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise WeightMismatch(f"{source} is not a LoRA's settings in JSON; take it away or download it again")
    kind = values.get("peft_type", "LORA")
    if kind not in SUPPORTED:
        raise Unsupported(f"{source} is for an adapter of the kind {shown(kind)}; {', '.join(SUPPORTED)} are read")
    return AdapterSettings(source, values)
