"""Every exception that avila_diffusion raises on purpose.

    AvilaError
    ├── RequestError          a field of a request cannot be used (also a ValueError)
    ├── FileProblem           a file on disk cannot be used
    │   ├── HeaderError       not a well-formed safetensors file: truncated, hostile or damaged
    │   ├── PickleRefused     a pickled file; the way out is `avila convert`
    │   ├── NotADiffusionModel  well formed, but not a Stable Diffusion checkpoint; says what it looks like
    │   ├── MissingPart       a checkpoint without VAE or text encoder, and none was given
    │   ├── WeightMismatch    tensors missing or of the wrong shape for the network they name
    │   └── JournalProblem    the journal of a run is damaged, of another run, or cannot be gone on with here
    ├── ModelNotFound         no file of that name in the models folders
    ├── Unsupported           recognised, but there is no pipeline for it yet
    ├── DeviceProblem         the asked device or dtype cannot be used here
    ├── NotFinite             a network produced NaN or infinity
    ├── OutputProblem         the picture could not be written
    └── Cancelled             the run was stopped on request

A message is one line: what was found, what was expected, what to do. Interfaces print it as it is; no traceback.
`exit_code` is what the command line leaves with: 2 where the call itself was wrong, 1 where the world was.
"""


class AvilaError(Exception):
    """Base of all errors of this package."""

    exit_code = 1


class RequestError(AvilaError, ValueError):
    """A field of a request is unknown, out of range or of the wrong type."""

    exit_code = 2


class FileProblem(AvilaError):
    """A file on disk cannot be used."""


class HeaderError(FileProblem):
    """Not a well-formed safetensors file."""


class PickleRefused(FileProblem):
    """A pickled checkpoint was given where only safetensors are read."""


class NotADiffusionModel(FileProblem):
    """A well-formed file that is not a Stable Diffusion checkpoint."""


class MissingPart(FileProblem):
    """A checkpoint that lacks a part which was not given separately."""


class WeightMismatch(FileProblem):
    """Tensors that are missing or have the wrong shape for the network."""


class JournalProblem(FileProblem):
    """The journal or trail of a run cannot be used: damaged, of another run, or made under other conditions."""


class ModelNotFound(AvilaError):
    """No model file of that name was found."""

    exit_code = 2


class Unsupported(AvilaError):
    """Recognised, but this version has no pipeline for it."""


class DeviceProblem(AvilaError):
    """The asked device or dtype is not usable on this machine."""


class NotFinite(AvilaError):
    """A network produced NaN or infinity."""


class OutputProblem(AvilaError):
    """A result could not be written."""


class Cancelled(AvilaError):
    """The run was stopped on request; nothing was written."""

    exit_code = 130


def is_out_of_memory(error: Exception) -> bool:
    """Python's, a GPU's, or the processor allocator's, which is a plain RuntimeError of torch."""
    names = {kind.__name__ for kind in type(error).__mro__}
    said = str(error).lower()
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or ("allocate" in said and "memory" in said)
