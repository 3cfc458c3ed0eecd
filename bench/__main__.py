"""`python -m bench`: errors that a user caused are one sentence, defects keep their traceback."""

from __future__ import annotations

import sys

from bench.cli import app
from fastgan.errors import FastganError


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="python -m bench")
    except FastganError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
