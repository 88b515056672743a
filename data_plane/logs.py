"""The log of a data plane's processes: one line per event on stderr, `time level process logger message`.

Messages name an event and its facts as `key=value`; `facts` writes those. Secrets are never among them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any


class LineFormatter(logging.Formatter):
    """One line per record: a traceback, or a message with line breaks, is folded into it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = f"{process}[{os.getpid()}]"

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += f" traceback={json.dumps(self.formatException(record.exc_info))}"
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = f"{moment}.{int(record.msecs):03d}Z {record.levelname.lower()} {self._process} {record.name}"
        return f"{head}: " + text.replace("\n", "\\n")


def configure(process: str) -> None:
    """Send this process's log to stderr. TANDEM_LOG_LEVEL: debug, info (default), warning, error."""
    level = logging.getLevelName(os.environ.get("TANDEM_LOG_LEVEL", "info").upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(process))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level if isinstance(level, int) else logging.INFO)
    # A library's request lines would say more than is wanted, URLs with keys among it.
    for chatty in ("httpx", "httpcore", "botocore", "urllib3", "asyncio", "grpc"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def facts(**values: Any) -> str:
    """`key=value …`; values with spaces or quotes are quoted."""
    return " ".join(f"{key}={_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    text = str(value)
    if text and all(32 < ord(character) < 127 and character not in '"=\\' for character in text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
