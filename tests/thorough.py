"""How often tests with random inputs repeat: a little by default, at full size with TANDEM_THOROUGH=1."""

from __future__ import annotations

import os

THOROUGH = os.environ.get("TANDEM_THOROUGH") == "1"


def times(usual: int, full: int) -> int:
    """How often to repeat."""
    return full if THOROUGH else usual
