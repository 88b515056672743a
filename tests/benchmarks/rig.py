"""The machinery around what is measured, pinned to its cores: nginx twice, a bare proxy, our node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson

from tests.end_to_end.stack import Stack, eventually, kill, pids_of
from tests.ports import free_ports

PROXY_CORE, LOAD_CORE = "0", "1"

COMPLETION = orjson.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "fast", "refusal": None, "annotations": ["x" * 400]},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 60,
            "completion_tokens": 1,
            "total_tokens": 61,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_bench",
    }
).decode()

UPSTREAM = """
server {{
  listen 127.0.0.1:{port} reuseport;
  location / {{ default_type application/json; return 200 '{answer}'; }}
}}
"""
YARDSTICK = """
upstream back {{ server 127.0.0.1:{back}; keepalive 64; keepalive_requests 1000000; }}
server {{
  listen 127.0.0.1:{port} reuseport;
  location / {{ proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection ""; }}
}}
"""
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 10000000; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {servers}
}}
"""

DOCUMENT = """
_format_version: "3.0"
_info: {{select_tags: [bench]}}
consumers:
  - username: bench
    keyauth_credentials: [{{key: bench-key}}]
services:
  - name: plain
    url: http://127.0.0.1:{back}/plain
    routes: [{{name: plain, paths: [/plain]}}]
  - name: unary
    url: http://127.0.0.1:{back}/unused
    routes: [{{name: unary, paths: [/unary]}}]
    plugins:
      - {{name: key-auth}}
      - name: ai-prompt-decorator
        config: {{prompts: {{prepend: [{{content: "You are a helpful assistant. Answer in one word."}}]}}}}
      - name: ai-proxy-advanced
        config:
          targets:
            - route_type: llm/v1/chat
              auth: {{header_name: Authorization, header_value: Bearer sk-bench}}
              logging: {{log_statistics: true}}
              model: {{provider: openai, name: gpt-4o-mini, model_alias: fast}}
            - route_type: llm/v1/chat
              auth: {{header_name: Authorization, header_value: Bearer sk-bench}}
              logging: {{log_statistics: true}}
              model: {{provider: openai, name: gpt-4o, model_alias: smart}}
  - name: stream
    url: http://127.0.0.1:{back}/unused
    routes: [{{name: stream, paths: [/stream]}}]
    plugins:
      - {{name: key-auth}}
      - name: ai-proxy-advanced
        config:
          targets:
            - route_type: llm/v1/chat
              auth: {{header_name: Authorization, header_value: Bearer sk-bench}}
              logging: {{log_statistics: true}}
              model:
                provider: openai
                name: gpt-4o-mini
                model_alias: fast
                options: {{upstream_url: "http://127.0.0.1:{paced}/v1/chat/completions"}}
"""


@dataclass
class Rig:
    folder: Path
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.back, self.yardstick, self.bare, self.paced = free_ports(4)
        self.stack = Stack(self.folder / "home")

    def start(self) -> None:
        answer = COMPLETION.replace("'", "")
        self._nginx("upstream", UPSTREAM.format(port=self.back, answer=answer), LOAD_CORE)
        self._nginx("yardstick", YARDSTICK.format(port=self.yardstick, back=self.back), PROXY_CORE)
        self._bare()
        for port in (self.back, self.yardstick, self.bare):
            eventually("the proxies answer", lambda port=port: answers(f"http://127.0.0.1:{port}/"))
        self._node()

    def _nginx(self, name: str, servers: str, core: str) -> None:
        folder = self.folder / name
        folder.mkdir()
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, servers=servers))
        command = [
            "taskset",
            "-c",
            core,
            str(shutil.which("nginx")),
            "-c",
            str(config),
            "-e",
            str(folder / "error.log"),
        ]
        self.children.append(subprocess.Popen(command, text=True))

    def _bare(self) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.bare", str(self.bare), str(self.back)]
        self.children.append(subprocess.Popen(["taskset", "-c", PROXY_CORE, *command], text=True))

    def _node(self) -> None:
        """Our node through `recipe up`, then moved to its core. The control plane is stopped: what it would do on the
        other core is not what is measured. The node serves on and spools its analytics, all of them: folding them, as
        after hours without a control plane, is not what is measured either."""
        self.stack.environment = {
            "TANDEM_SPOOL_BYTES": str(16 * 1024**3),
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.back}/v1",
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": f"http://127.0.0.1:{self.back}",
            "DECK_OPENAI_TOKEN": "Bearer sk-bench",
            "DECK_AWS_ACCESS_KEY_ID": "AKIDBENCH",
            "DECK_AWS_SECRET_ACCESS_KEY": "bench",
            "DECK_AWS_REGION": "us-east-1",
            "DECK_OPENAI_SELECTOR_SLM": "o3-mini",
            "DECK_OPENAI_FAST_MODEL": "gpt-4o-mini",
            "DECK_BEDROCK_SMART_MODEL": "us.anthropic.claude-haiku-4-5-20251001-v1:0",
        }
        self._checked(self.stack.up("--live"))
        document = self.folder / "bench.yaml"
        document.write_text(DOCUMENT.format(back=self.back, paced=self.paced))
        self._checked(self.stack.recipe("sync", str(document), "--wait", "--yes"))
        for pid in pids_of(self.stack.home, "-m control_plane"):
            kill(pid)
        for pid in pids_of(self.stack.home, "-m data_plane"):
            subprocess.run(["taskset", "-a", "-c", "-p", PROXY_CORE, str(pid)], check=True, stdout=subprocess.DEVNULL)

    def _checked(self, result: subprocess.CompletedProcess[str]) -> None:
        if result.returncode != 0:
            sys.exit(f"the bench's stack did not start:\n{result.stdout}{result.stderr}")

    def pace(self, interval_ms: float, chunks: int) -> subprocess.Popen[str]:
        """Start the paced upstream; the caller stops it."""
        command = [sys.executable, "-m", "tests.benchmarks.paced", str(self.paced), str(interval_ms), str(chunks)]
        child = subprocess.Popen(["taskset", "-c", LOAD_CORE, *command], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    @property
    def worker(self) -> int:
        return pids_of(self.stack.home, "-m data_plane worker")[0]

    def stop(self) -> None:
        for child in self.children:
            child.terminate()
        self.stack.recipe("down", "--all")
        for child in self.children:
            child.wait(10)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, to the nearest 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled(pid: int, check: Callable[[int], float] = cpu_seconds) -> None:
    """Wait until a process has gone quiet, so that one row does not pay for the one before."""
    last = check(pid)
    for _ in range(50):
        time.sleep(0.1)
        now = check(pid)
        if now - last < 0.02:
            return
        last = now
