"""Local stand-ins for model providers: the real wire formats, deterministic answers, a ledger of what was asked.

A test double and an offline demo. Every answer says that it is simulated. `python -m cli.simulator --port 9000`
runs it; the providers' standard environment variables (`OPENAI_BASE_URL`, `AWS_ENDPOINT_URL_BEDROCK_RUNTIME`) point
clients to it.
"""
