"""Embeddings that travel as pictures, as AUTOMATIC1111 draws them: in a text block, or in the low bits of the margins.

The text block `sd-ti-embedding` is base64 of JSON. In the other form two strips left and right of the picture, each set off
by a black column, hold the low and the high halves of the bytes of zlib-compressed JSON, four bits a colour value, mixed
with a fixed sequence of numbers. In the JSON a tensor is {"TORCHTENSOR": nested lists}.
"""

from __future__ import annotations

import base64
import json
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileProblem

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

PICTURES = (".png", ".webp", ".avif")
TEXT_KEY = "sd-ti-embedding"
MAX_SIDE = 4096
MAX_JSON = 64 << 20


def read_picture(path: Path) -> dict[str, Any] | None:
    """What a picture carries, as the pickled form has it, tensors in float32; None where it carries nothing.

    Raises FileProblem for a file that is no picture, or that carries something damaged.
    """
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as picture:
                if max(picture.size) > MAX_SIDE:
                    return None
                picture.load()
                text = picture.info.get(TEXT_KEY)
                data = base64.b64decode(text) if isinstance(text, str | bytes) else _in_margins(picture)
        return None if data is None else _parsed(data, path)
    except (OSError, ValueError, SyntaxError, OverflowError, RecursionError, MemoryError, zlib.error) as problem:
        raise FileProblem(f"{path} carries no embedding that can be read ({str(problem)[:200]})") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise FileProblem(f"{path} is too large a picture for an embedding") from None


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    content = json.loads(data, object_hook=_as_tensor)
    if not isinstance(content, dict):
        raise FileProblem(f"{path} carries {type(content).__name__}, not an embedding")
    return content


def _as_tensor(table: dict[str, Any]) -> Any:
    if "TORCHTENSOR" not in table:
        return table
    import torch

    try:
        return torch.tensor(table["TORCHTENSOR"], dtype=torch.float32)
    except (TypeError, RuntimeError) as problem:
        raise ValueError(f"a tensor of uneven rows: {problem}") from None


def _in_margins(picture: PIL.Image.Image) -> bytes | None:
    """The bytes in the strips beside a picture, decompressed; None where there are no strips."""
    import numpy as np

    pixels: NDArray[np.uint8] = np.array(picture.convert("RGB"), np.uint8)
    lit = np.all(pixels > 0, axis=2)
    if not lit.any():
        return None
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    low_bits: NDArray[np.uint8] = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & np.uint8(15)
    dark = np.flatnonzero(low_bits.sum(axis=(0, 2)) == 0)
    if len(dark) < 2:
        return None
    low, high = low_bits[:, : dark[0]], low_bits[:, dark[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        return None
    data = (_mixed(high) << np.uint8(4)) | _mixed(low)
    # Any picture with two dark columns gets here; the header of zlib's stream tells those that carry something.
    start = data.reshape(-1)[:2].tolist()
    if start[0] != 0x78 or (start[0] * 256 + start[1]) % 31:
        return None
    stream = zlib.decompressobj()
    content = stream.decompress(data.tobytes(), MAX_JSON)
    if not stream.eof:
        raise ValueError("the data in its margins ends early")
    return content


def _mixed(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The block xor a fixed sequence: x → 1664525 x + 1013904223 modulo 2**32 from 0, each modulo 255, its low four bits."""
    import numpy as np

    # The n-th number for all n at once: x_n = c (1 + a + … + a^(n-1)); in wrapping 32-bit arithmetic.
    powers = np.full(block.size, 1664525, np.uint32)
    powers[0] = 1
    sums = np.cumsum(np.cumprod(powers, dtype=np.uint32), dtype=np.uint32)
    values = sums * np.uint32(1013904223)
    return block ^ ((values % 255).astype(np.uint8) & np.uint8(15)).reshape(block.shape)
