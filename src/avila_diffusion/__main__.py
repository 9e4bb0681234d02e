"""`python -m avila_diffusion` is `avila`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
