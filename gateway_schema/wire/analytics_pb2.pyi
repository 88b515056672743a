from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReportMessage(_message.Message):
    __slots__ = ("hello", "batch", "bye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    hello: ReportHello
    batch: Batch
    bye: Bye
    def __init__(self, hello: _Optional[_Union[ReportHello, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ...) -> None: ...

class ReportAnswer(_message.Message):
    __slots__ = ("hello", "ack")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    hello: HelloAck
    ack: BatchAck
    def __init__(self, hello: _Optional[_Union[HelloAck, _Mapping]] = ..., ack: _Optional[_Union[BatchAck, _Mapping]] = ...) -> None: ...

class ReportHello(_message.Message):
    __slots__ = ("node_id", "epoch", "version", "clock_us")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_US_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    epoch: str
    version: str
    clock_us: int
    def __init__(self, node_id: _Optional[str] = ..., epoch: _Optional[str] = ..., version: _Optional[str] = ..., clock_us: _Optional[int] = ...) -> None: ...

class HelloAck(_message.Message):
    __slots__ = ("clock_us", "last_durable_sequence")
    CLOCK_US_FIELD_NUMBER: _ClassVar[int]
    LAST_DURABLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    clock_us: int
    last_durable_sequence: int
    def __init__(self, clock_us: _Optional[int] = ..., last_durable_sequence: _Optional[int] = ...) -> None: ...

class BatchAck(_message.Message):
    __slots__ = ("sequence", "last_durable_sequence", "slow_down_ms")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_DURABLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SLOW_DOWN_MS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    last_durable_sequence: int
    slow_down_ms: int
    def __init__(self, sequence: _Optional[int] = ..., last_durable_sequence: _Optional[int] = ..., slow_down_ms: _Optional[int] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ("last_sequence",)
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    last_sequence: int
    def __init__(self, last_sequence: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("sequence", "events", "deltas", "dropped_events")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_EVENTS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    events: _containers.RepeatedCompositeFieldContainer[RequestEvent]
    deltas: _containers.RepeatedCompositeFieldContainer[UsageDelta]
    dropped_events: int
    def __init__(self, sequence: _Optional[int] = ..., events: _Optional[_Iterable[_Union[RequestEvent, _Mapping]]] = ..., deltas: _Optional[_Iterable[_Union[UsageDelta, _Mapping]]] = ..., dropped_events: _Optional[int] = ...) -> None: ...

class RequestEvent(_message.Message):
    __slots__ = ("request_id", "started_us", "finished_us", "config_version", "service_id", "route_id", "consumer_id", "credential_id", "method", "scheme", "host", "path", "user_agent", "client_ip", "status", "upstream_status", "source", "error_kind", "plugin_name", "request_size", "response_size", "total_us", "upstream_us", "gateway_us", "callout_us", "receive_us", "outcome", "parent_request_id", "llm_calls", "decision_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STARTED_US_FIELD_NUMBER: _ClassVar[int]
    FINISHED_US_FIELD_NUMBER: _ClassVar[int]
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTE_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    USER_AGENT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_IP_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_STATUS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_KIND_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_SIZE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_US_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_US_FIELD_NUMBER: _ClassVar[int]
    CALLOUT_US_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_US_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    PARENT_REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LLM_CALLS_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    started_us: int
    finished_us: int
    config_version: int
    service_id: str
    route_id: str
    consumer_id: str
    credential_id: str
    method: str
    scheme: str
    host: str
    path: str
    user_agent: str
    client_ip: str
    status: int
    upstream_status: int
    source: str
    error_kind: str
    plugin_name: str
    request_size: int
    response_size: int
    total_us: int
    upstream_us: int
    gateway_us: int
    callout_us: int
    receive_us: int
    outcome: str
    parent_request_id: str
    llm_calls: _containers.RepeatedCompositeFieldContainer[LlmCall]
    decision_id: str
    def __init__(self, request_id: _Optional[bytes] = ..., started_us: _Optional[int] = ..., finished_us: _Optional[int] = ..., config_version: _Optional[int] = ..., service_id: _Optional[str] = ..., route_id: _Optional[str] = ..., consumer_id: _Optional[str] = ..., credential_id: _Optional[str] = ..., method: _Optional[str] = ..., scheme: _Optional[str] = ..., host: _Optional[str] = ..., path: _Optional[str] = ..., user_agent: _Optional[str] = ..., client_ip: _Optional[str] = ..., status: _Optional[int] = ..., upstream_status: _Optional[int] = ..., source: _Optional[str] = ..., error_kind: _Optional[str] = ..., plugin_name: _Optional[str] = ..., request_size: _Optional[int] = ..., response_size: _Optional[int] = ..., total_us: _Optional[int] = ..., upstream_us: _Optional[int] = ..., gateway_us: _Optional[int] = ..., callout_us: _Optional[int] = ..., receive_us: _Optional[int] = ..., outcome: _Optional[str] = ..., parent_request_id: _Optional[str] = ..., llm_calls: _Optional[_Iterable[_Union[LlmCall, _Mapping]]] = ..., decision_id: _Optional[str] = ...) -> None: ...

class LlmCall(_message.Message):
    __slots__ = ("plugin_id", "provider", "request_model", "response_model", "model_alias", "stream", "status", "error_kind", "role", "duration_us", "ttft_us", "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "token_source", "cost_nano_usd", "finish_reason")
    PLUGIN_ID_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_MODEL_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_ALIAS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_KIND_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DURATION_US_FIELD_NUMBER: _ClassVar[int]
    TTFT_US_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SOURCE_FIELD_NUMBER: _ClassVar[int]
    COST_NANO_USD_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    plugin_id: str
    provider: str
    request_model: str
    response_model: str
    model_alias: str
    stream: bool
    status: int
    error_kind: str
    role: str
    duration_us: int
    ttft_us: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    token_source: str
    cost_nano_usd: int
    finish_reason: str
    def __init__(self, plugin_id: _Optional[str] = ..., provider: _Optional[str] = ..., request_model: _Optional[str] = ..., response_model: _Optional[str] = ..., model_alias: _Optional[str] = ..., stream: _Optional[bool] = ..., status: _Optional[int] = ..., error_kind: _Optional[str] = ..., role: _Optional[str] = ..., duration_us: _Optional[int] = ..., ttft_us: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., cache_write_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., token_source: _Optional[str] = ..., cost_nano_usd: _Optional[int] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class UsageDelta(_message.Message):
    __slots__ = ("minute", "service_id", "route_id", "consumer_id", "status", "source", "requests", "request_size", "response_size", "total", "upstream", "gateway", "incomplete", "llm")
    MINUTE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTE_ID_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_SIZE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_SIZE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UPSTREAM_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    INCOMPLETE_FIELD_NUMBER: _ClassVar[int]
    LLM_FIELD_NUMBER: _ClassVar[int]
    minute: int
    service_id: str
    route_id: str
    consumer_id: str
    status: int
    source: str
    requests: int
    request_size: int
    response_size: int
    total: Distribution
    upstream: Distribution
    gateway: Distribution
    incomplete: int
    llm: _containers.RepeatedCompositeFieldContainer[LlmDelta]
    def __init__(self, minute: _Optional[int] = ..., service_id: _Optional[str] = ..., route_id: _Optional[str] = ..., consumer_id: _Optional[str] = ..., status: _Optional[int] = ..., source: _Optional[str] = ..., requests: _Optional[int] = ..., request_size: _Optional[int] = ..., response_size: _Optional[int] = ..., total: _Optional[_Union[Distribution, _Mapping]] = ..., upstream: _Optional[_Union[Distribution, _Mapping]] = ..., gateway: _Optional[_Union[Distribution, _Mapping]] = ..., incomplete: _Optional[int] = ..., llm: _Optional[_Iterable[_Union[LlmDelta, _Mapping]]] = ...) -> None: ...

class LlmDelta(_message.Message):
    __slots__ = ("provider", "request_model", "response_model", "status", "stream", "calls", "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "estimated_calls", "unpriced_calls", "cost_nano_usd", "duration", "ttft")
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    REQUEST_MODEL_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_MODEL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_WRITE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_CALLS_FIELD_NUMBER: _ClassVar[int]
    UNPRICED_CALLS_FIELD_NUMBER: _ClassVar[int]
    COST_NANO_USD_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    TTFT_FIELD_NUMBER: _ClassVar[int]
    provider: str
    request_model: str
    response_model: str
    status: int
    stream: bool
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    estimated_calls: int
    unpriced_calls: int
    cost_nano_usd: int
    duration: Distribution
    ttft: Distribution
    def __init__(self, provider: _Optional[str] = ..., request_model: _Optional[str] = ..., response_model: _Optional[str] = ..., status: _Optional[int] = ..., stream: _Optional[bool] = ..., calls: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., cache_write_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., estimated_calls: _Optional[int] = ..., unpriced_calls: _Optional[int] = ..., cost_nano_usd: _Optional[int] = ..., duration: _Optional[_Union[Distribution, _Mapping]] = ..., ttft: _Optional[_Union[Distribution, _Mapping]] = ...) -> None: ...

class Distribution(_message.Message):
    __slots__ = ("count", "sum_us", "max_us", "sketch")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SUM_US_FIELD_NUMBER: _ClassVar[int]
    MAX_US_FIELD_NUMBER: _ClassVar[int]
    SKETCH_FIELD_NUMBER: _ClassVar[int]
    count: int
    sum_us: int
    max_us: int
    sketch: bytes
    def __init__(self, count: _Optional[int] = ..., sum_us: _Optional[int] = ..., max_us: _Optional[int] = ..., sketch: _Optional[bytes] = ...) -> None: ...
