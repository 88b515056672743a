"""demo: send a recipe's prompts through the gateway and show who answered."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from cli import layout, recipes
from cli.commands.stack import one_stack
from cli.errors import EXIT_ERROR, CliError
from cli.output import Output
from cli.recipes import Recipe
from cli.state import StackState

ANSWER_TIMEOUT = 120.0
"""Seconds: a strong model may think for a while."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one prompt."""

    prompt: str
    status: int
    model: str
    tier: str
    provider: str
    latency_ms: float
    prompt_tokens: int | None
    completion_tokens: int | None
    text: str

    def row(self) -> tuple[str, ...]:
        tokens = "-" if self.prompt_tokens is None else f"{self.prompt_tokens} + {self.completion_tokens}"
        latency = f"{self.latency_ms:.0f} ms"
        return self.prompt, self.tier, self.model, self.provider, str(self.status), latency, tokens


@click.command()
@click.argument("name", required=False)
@click.option("--json-output", is_flag=True)
@click.option("--answers", is_flag=True, help="Also print what the models said.")
@click.pass_obj
def demo(output: Output, /, name: str | None, json_output: bool, answers: bool) -> None:
    """Send the recipe's prompts and show who answered."""
    _, state = one_stack(name)
    recipe = recipes.load(state.name)
    output.mask.add(state.token, *state.values.values(), *recipe.secrets(os.environ))
    found = []
    for file in recipe.prompts:
        with output.working(f"asking {file}"):
            found.append(ask(state, recipe, recipes.folder_of(state.name) / file))
    if json_output:
        output.json({"answers": [output.mask.data(_as_json(answer)) for answer in found]})
    else:
        columns = ("PROMPT", "TIER", "MODEL", "PROVIDER", "STATUS", "LATENCY", "TOKENS (IN + OUT)")
        output.table(columns, [answer.row() for answer in found], right=("LATENCY", "TOKENS (IN + OUT)"))
    _explain(output, found, answers and not json_output)


def ask(state: StackState, recipe: Recipe, prompt: Path) -> Answer:
    """Send one prompt as the recipe's page does. Raises CliError when the gateway does not answer."""
    body = json.loads(prompt.read_text())
    started = time.perf_counter()
    try:
        response = httpx.post(
            f"{state.proxy_url}{recipe.request.path}",
            json=body,
            headers=recipe.request.headers,
            timeout=ANSWER_TIMEOUT,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise CliError(
            f"the proxy at {state.proxy_url} does not answer: {reason} (recipe status, recipe logs)"
        ) from None
    latency = (time.perf_counter() - started) * 1000
    return _answer(body, response, latency, state, recipe)


def _answer(
    body: dict[str, Any], response: httpx.Response, latency: float, state: StackState, recipe: Recipe
) -> Answer:
    data = _json(response)
    usage = data.get("usage") or {}
    model = response.headers.get("X-Kong-LLM-Model") or str(data.get("model") or "-")
    tier, provider = _tier(model, state, recipe)
    return Answer(
        prompt=_shortened(str(body["messages"][-1]["content"])),
        status=response.status_code,
        model=model,
        tier=tier,
        provider=provider,
        latency_ms=latency,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        text=_said(data) if response.status_code == 200 else response.text[:500],
    )


def _tier(model: str, state: StackState, recipe: Recipe) -> tuple[str, str]:
    """The tier and the provider that the recipe names for a model."""
    values = layout.file_environment(state, recipe, os.environ)
    for tier in recipe.tiers:
        if model in (values.get(tier.model_variable), f"{tier.provider}/{values.get(tier.model_variable)}"):
            return tier.name, tier.provider
    return "-", "-"


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        data = response.json()
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _said(data: dict[str, Any]) -> str:
    try:
        return str(data["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError):
        return ""


def _shortened(text: str, width: int = 48) -> str:
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def _as_json(answer: Answer) -> dict[str, Any]:
    return {
        "prompt": answer.prompt,
        "tier": answer.tier,
        "model": answer.model,
        "provider": answer.provider,
        "status": answer.status,
        "latency_ms": round(answer.latency_ms, 1),
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
    }


def _explain(output: Output, found: list[Answer], with_answers: bool) -> None:
    """Print what was said, and fail when a prompt was not answered."""
    for answer in found:
        if answer.status != 200:
            output.note(f"{answer.prompt}: HTTP {answer.status}: {answer.text}")
        elif with_answers:
            output.line()
            for line in (answer.prompt, *answer.text.split("\n")):
                output.line(line)
    if any(answer.status != 200 for answer in found):
        raise click.exceptions.Exit(EXIT_ERROR)
