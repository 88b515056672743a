"""The simulator, judged by the vendors' own clients."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import openai
import pytest
import uvicorn
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from cli.simulator.answers import classify
from cli.simulator.app import SimulatorSettings, create_app
from cli.simulator.signature import Secret

HI = [{"role": "user", "content": [{"text": "Hi"}]}]
CHAT = [{"role": "user", "content": "Hi"}]
MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"


@pytest.fixture
def simulator() -> Iterator[str]:
    settings = SimulatorSettings("Bearer sk-right", Secret("AKIDRIGHT", "right-secret"))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()  # a test may connect before uvicorn has begun
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_level="critical", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def chat(simulator: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="sk-right", base_url=f"{simulator}/v1", max_retries=0) as client:
        yield client


@contextmanager
def bedrock(simulator: str, secret: str = "right-secret") -> Iterator[Any]:
    client = boto3.client(
        "bedrock-runtime",
        region_name="us-east-1",
        endpoint_url=simulator,
        aws_access_key_id="AKIDRIGHT",
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}),
    )
    try:
        yield client
    finally:
        client.close()


def ledger(simulator: str) -> dict[str, dict[str, int]]:
    return httpx.get(f"{simulator}/ledger").json()["providers"]


def test_openai_answers_plain_with_usage_that_the_ledger_shares(simulator: str, chat: openai.OpenAI) -> None:
    answer = chat.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi there!"}])
    assert "simulated" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    entry = ledger(simulator)["openai"]
    assert (entry["requests"], entry["prompt_tokens"], entry["completion_tokens"]) == (
        1,
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


def test_openai_streams_the_same_text_as_it_answers_whole(chat: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Tell me of trees"}]
    whole = chat.chat.completions.create(model="gpt-4o-mini", messages=messages)  # type: ignore[arg-type]
    stream = chat.chat.completions.create(  # type: ignore[call-overload]
        model="gpt-4o-mini", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_a_limit_on_tokens_truncates(chat: openai.OpenAI) -> None:
    answer = chat.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": "Hi"}], max_tokens=2
    )
    assert (answer.choices[0].finish_reason, answer.usage and answer.usage.completion_tokens) == ("length", 2)


def test_a_wrong_openai_key_is_refused_and_entered(simulator: str) -> None:
    client = openai.OpenAI(api_key="sk-wrong", base_url=f"{simulator}/v1", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert ledger(simulator)["openai"]["errors"] == 1


def test_bedrock_accepts_what_boto3_signs_for_a_model_with_a_colon(simulator: str) -> None:
    with bedrock(simulator) as client:
        answer = client.converse(modelId=MODEL, messages=HI)
    assert answer["stopReason"] == "end_turn"
    assert ledger(simulator)["bedrock"]["completion_tokens"] == answer["usage"]["outputTokens"]


def test_bedrock_streams_frames_that_botocore_reads(simulator: str) -> None:
    with bedrock(simulator) as client:
        events = list(client.converse_stream(modelId=MODEL, messages=HI)["stream"])
        whole = client.converse(modelId=MODEL, messages=HI)
    text = "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e)
    assert text == whole["output"]["message"]["content"][0]["text"]
    assert events[-1]["metadata"]["usage"] == whole["usage"]


def test_a_wrong_aws_secret_is_refused_by_the_signature(simulator: str) -> None:
    with bedrock(simulator, "wrong") as client, pytest.raises(ClientError) as caught:
        client.converse(modelId=MODEL, messages=HI)
    assert caught.value.response["Error"]["Code"] == "InvalidSignatureException"


def test_a_fault_is_taken_by_the_next_call_only(simulator: str, chat: openai.OpenAI) -> None:
    httpx.post(f"{simulator}/faults", json={"provider": "openai", "status": 429}).raise_for_status()
    with pytest.raises(openai.RateLimitError):
        chat.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert chat.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}]).choices


def test_an_error_event_breaks_a_bedrock_stream(simulator: str) -> None:
    httpx.post(f"{simulator}/faults", json={"error_after": 1}).raise_for_status()
    with bedrock(simulator) as client:
        stream = client.converse_stream(modelId=MODEL, messages=HI)["stream"]
        with closing(stream), pytest.raises(EventStreamError):
            list(stream)


def test_a_cut_stream_is_entered_with_what_was_said(simulator: str) -> None:
    httpx.post(f"{simulator}/faults", json={"cut_after": 3}).raise_for_status()
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"Authorization": "Bearer sk-right"}
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(f"{simulator}/v1/chat/completions", json=body, headers=headers)
    entry = ledger(simulator)["openai"]
    assert (entry["cut"], entry["completion_tokens"]) == (1, 3)


def test_a_cut_on_purpose_leaves_no_traceback_in_the_log(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        arguments = [sys.executable, "-m", "cli.simulator", "--port", str(port)]
        process = subprocess.Popen(arguments, stdout=log, stderr=log)
        try:
            headers = {"Authorization": "Bearer x"}
            with httpx.Client(base_url=url, headers=headers, transport=httpx.HTTPTransport(retries=6)) as client:
                client.post("/faults", json={"cut_after": 0}).raise_for_status()
                with pytest.raises(httpx.RemoteProtocolError):
                    client.post("/v1/chat/completions", json={"model": "m", "messages": CHAT})
                assert client.get("/health").status_code == 200
        finally:
            process.terminate()
            process.wait(20)
    assert (tmp_path / "log").read_text() == f"simulator: listening on {url}\n"


def test_an_unknown_field_of_a_fault_is_named(simulator: str) -> None:
    answer = httpx.post(f"{simulator}/faults", json={"stauts": 429})
    assert answer.status_code == 400
    assert "stauts: unknown field" in answer.json()["message"]


@pytest.mark.parametrize(
    ("prompt", "tier"),
    [
        ("Hi there! What's 2 + 2?", "fast"),
        ("Write a Python function to implement binary search", "smart"),
        ("word " * 21, "smart"),
    ],
)
def test_prompts_are_classified_by_the_documented_rule(prompt: str, tier: str) -> None:
    assert classify(prompt) == tier
