"""The rules of ai-proxy-advanced that reach across fields."""

from __future__ import annotations

from typing import Any

import pytest

from gateway_schema.plugins import PLUGINS
from gateway_schema.violations import SchemaViolation, parse


def _config(provider: str = "openai", *, route_type: str = "llm/v1/chat", **target: Any) -> dict[str, Any]:
    options = target.pop("options", None)
    model = {"provider": provider, "name": "m", **({"options": options} if options else {})}
    return {"targets": [{"route_type": route_type, "model": model, **target}]}


def _faults(config: dict[str, Any]) -> list[str]:
    with pytest.raises(SchemaViolation) as caught:
        parse(PLUGINS["ai-proxy-advanced"], config)
    return [str(violation) for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (
            _config(auth={"header_name": "Authorization"}),
            "targets[0].auth: all or none of these fields must be set: 'header_name', 'header_value'",
        ),
        (
            _config(auth={"param_name": "key", "param_value": "v"}),
            "targets[0].auth: all or none of these fields must be set: 'param_name', 'param_value', 'param_location'",
        ),
        (
            _config("bedrock", auth={"allow_override": True}),
            "targets[0]: bedrock and gemini only support auth.allow_override = false",
        ),
        (_config("llama2"), "targets[0]: must set model.options.llama2_format for llama2 provider"),
        (_config("mistral"), "targets[0]: must set model.options.mistral_format for mistral provider"),
        (_config("anthropic"), "targets[0]: must set model.options.anthropic_version for anthropic provider"),
        (_config("azure"), "targets[0]: must set model.options.azure_instance for azure provider"),
        (
            _config("azure", options={"azure_instance": "i"}),
            "targets[0]: must set model.options.azure_deployment_id for azure provider",
        ),
        (
            _config("llama2", options={"llama2_format": "raw"}),
            "targets[0]: must set 'model.options.upstream_url' for self-hosted providers/models",
        ),
        (
            _config("mistral", options={"mistral_format": "ollama"}),
            "targets[0]: must set 'model.options.upstream_url' for self-hosted providers/models",
        ),
        (
            _config(
                "anthropic",
                route_type="llm/v1/completions",
                options={"anthropic_version": "2023-06-01"},
                logging={"log_statistics": True},
            ),
            "targets[0]: anthropic does not support statistics when route_type is llm/v1/completions",
        ),
        (
            _config(options={"gemini": {"project_id": "p"}}),
            "targets[0].model.options.gemini: all or none of these fields must be set: "
            "'api_endpoint', 'project_id', 'location_id'",
        ),
        (
            {**_config(), "llm_format": "bedrock"},
            "native llm_format 'bedrock' can only be used with the 'bedrock' model.provider",
        ),
        (
            _config(options={"upstream_url": "example.com/v1"}),
            "targets[0].model.options.upstream_url: invalid value: example.com/v1 "
            "(an absolute URL, such as https://host:443/v1/chat/completions)",
        ),
        (_config(weight=0), "targets[0].weight: value should be between 1 and 65535"),
        ({"targets": []}, "targets: length must be at least 1"),
        (
            _config(options={"temprature": 1}),
            "targets[0].model.options.temprature: unknown field (did you mean 'temperature'?)",
        ),
    ],
)
def test_names_the_field_and_the_rule_that_is_broken(config: dict[str, Any], fault: str) -> None:
    assert fault in _faults(config)


@pytest.mark.parametrize(
    "config",
    [
        _config("azure", route_type="llm/v1/files", options={"azure_instance": "i"}),
        _config("azure", options={"azure_deployment_id": "d", "upstream_url": "https://host/openai"}),
        _config("mistral", options={"mistral_format": "openai"}),
        _config(options={"upstream_url": "http://$(headers.host):8080/v1"}),
        _config("xai", route_type="image/v1/images/generations", weight=65_535),
        {**_config(), "balancer": None, "acls": None, "embeddings": None},
        {**_config("anthropic", options={"anthropic_version": "1"}), "llm_format": "anthropic"},
    ],
)
def test_takes_what_kong_takes(config: dict[str, Any]) -> None:
    parse(PLUGINS["ai-proxy-advanced"], config)


def test_secrets_do_not_show_in_the_faults_of_a_configuration() -> None:
    faults = _faults(_config(auth={"header_name": "Authorization", "header_value": "Bearer sk-secret", "typo": 1}))

    assert "sk-secret" not in " ".join(faults)
