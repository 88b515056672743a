"""The declarative files that the control plane is measured with."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.end_to_end.stack import RECIPES

ENTITIES = 10_000
_SERVICES = 1_500
_CONSUMERS = 2_000


def ten_thousand() -> dict[str, Any]:
    """10,000 entities of eight kinds, all under one select tag, nested as decK writes them.

    1,500 services with two routes each and a plugin on every third; a plugin on every sixth route; 2,000 consumers with
    a key each, every eighth in an acl group; 125 upstreams with a target each.
    """
    return {
        "_format_version": "3.0",
        "_info": {"select_tags": ["bench"]},
        "services": [_service(number) for number in range(_SERVICES)],
        "consumers": [_consumer(number) for number in range(_CONSUMERS)],
        "upstreams": [
            {"name": f"upstream-{number}", "targets": [{"target": f"10.0.0.{number}:8080", "weight": 10}]}
            for number in range(_UPSTREAMS)
        ],
    }


def _service(number: int) -> dict[str, Any]:
    service: dict[str, Any] = {
        "name": f"service-{number}",
        "url": f"http://service-{number}.internal:8080/base",
        "read_timeout": 30_000,
        "routes": [_route(number, 0), _route(number, 1)],
    }
    if number % 3 == 0:
        service["plugins"] = [{"name": "key-auth", "config": {"key_names": ["apikey"]}}]
    return service


def _route(service: int, number: int) -> dict[str, Any]:
    name = f"route-{service}-{number}"
    route: dict[str, Any] = {"name": name, "paths": [f"/{name}"], "methods": ["GET", "POST"]}
    if number == 0 and service % 3 == 0:
        prompt = {"role": "system", "content": f"You answer for service {service}."}
        route["plugins"] = [{"name": "ai-prompt-decorator", "config": {"prompts": {"prepend": [prompt]}}}]
    return route


def _consumer(number: int) -> dict[str, Any]:
    consumer: dict[str, Any] = {
        "username": f"consumer-{number}",
        "custom_id": f"customer-{number}",
        "keyauth_credentials": [{"key": f"key-of-consumer-{number:08}"}],
    }
    if number % 8 == 0:
        consumer["acls"] = [{"group": "bench"}]
    return consumer


_UPSTREAMS = (ENTITIES - 3 * _SERVICES - 2 * (_SERVICES // 3) - 2 * _CONSUMERS - _CONSUMERS // 8) // 2


def recipe() -> dict[str, Any]:
    """The recipe's own file, its variables filled in with something."""
    text = re.sub(r'\$\{\{ env "(\w+)" \}\}', "us-east-1", (RECIPES / "multi-provider.yaml").read_text())
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def change(document: dict[str, Any], number: int) -> dict[str, Any]:
    """The same document with one field of one service another one each time."""
    services = list(document["services"])
    middle = len(services) // 2
    services[middle] = {**services[middle], "read_timeout": 40_000 + number}
    return {**document, "services": services}
