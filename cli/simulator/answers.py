"""What the simulated models say: a function of the conversation, the same every time.

The rule for routing prompts (a system message that asks for "fast" or "smart") is meant to be read: a prompt is *smart*
when its last user message has more than 20 words or contains one of `COMPLEX_WORDS`; any other is *fast*. Tokens are
counted as words of text, plus three per message, so that a test can count them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COMPLEX_WORDS = frozenset(
    "algorithm analyze analyse architecture code compare debug derive design essay explain function implement "  # noqa: SIM905
    "optimize poem prove python refactor sql story strategy write".split()
)
COMPLEX_LENGTH = 20
TOKENS_PER_MESSAGE = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, its text parts joined."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer: its text in the pieces a stream would carry, why it ended, and what it cost."""

    pieces: tuple[str, ...]
    truncated: bool
    prompt_tokens: int

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def completion_tokens(self) -> int:
        return len(self.pieces)


def answer(model: str, turns: Sequence[Turn], max_tokens: int | None) -> Answer:
    pieces = _pieces(_reply(model, turns))
    truncated = max_tokens is not None and len(pieces) > max_tokens
    if truncated:
        pieces = pieces[:max_tokens]
    return Answer(tuple(pieces), truncated, prompt_tokens(turns))


def prompt_tokens(turns: Sequence[Turn]) -> int:
    return sum(len(turn.text.split()) + TOKENS_PER_MESSAGE for turn in turns)


def classify(prompt: str) -> str:
    """`fast` or `smart`, by the rule at the head of this file."""
    words = re.findall(r"[a-z']+", prompt.lower())
    return "smart" if len(words) > COMPLEX_LENGTH or COMPLEX_WORDS.intersection(words) else "fast"


def _reply(model: str, turns: Sequence[Turn]) -> str:
    prompt = next((turn.text for turn in reversed(turns) if turn.role == "user"), "")
    instructions = " ".join(turn.text for turn in turns if turn.role in {"system", "developer"}).lower()
    if '"fast"' in instructions and '"smart"' in instructions:
        return classify(prompt)
    return f"This is a simulated answer of {model} to your prompt of {len(prompt.split())} words: {prompt[:200]}"


def _pieces(text: str) -> list[str]:
    """Words with the space before them: joined they give the text, one counts as a token."""
    return re.findall(r"\s*\S+", text)


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or a list of parts of which the text ones count."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if isinstance(part, Mapping) and "text" in part)
    return ""
