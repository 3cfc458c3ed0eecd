"""`python -m bench`: errors that a user caused are one sentence, defects keep their traceback."""

from __future__ import annotations

import sys
from typing import NoReturn

from bench.cli import app
from fastgan.errors import FastganError


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="python -m bench")
    except FastganError as error:
        _stop(str(error))
    except OSError as error:
        reason = error.strerror or str(error)
        _stop(f"{error.filename}: {reason}" if error.filename else reason)


def _stop(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
