from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeMessage(_message.Message):
    __slots__ = ("hello", "ack", "nack", "status")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    NACK_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ack: Ack
    nack: Nack
    status: Status
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., nack: _Optional[_Union[Nack, _Mapping]] = ..., status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class ControlMessage(_message.Message):
    __slots__ = ("snapshot", "delta", "welcome", "refusal")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    snapshot: Snapshot
    delta: Delta
    welcome: Welcome
    refusal: Refusal
    def __init__(self, snapshot: _Optional[_Union[Snapshot, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("node_id", "hostname", "version", "plugins", "hash", "config_version", "workers")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    hostname: str
    version: str
    plugins: _containers.RepeatedScalarFieldContainer[str]
    hash: str
    config_version: int
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    def __init__(self, node_id: _Optional[str] = ..., hostname: _Optional[str] = ..., version: _Optional[str] = ..., plugins: _Optional[_Iterable[str]] = ..., hash: _Optional[str] = ..., config_version: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("index", "pid", "version", "hash", "state")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    index: int
    pid: int
    version: int
    hash: str
    state: str
    def __init__(self, index: _Optional[int] = ..., pid: _Optional[int] = ..., version: _Optional[int] = ..., hash: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("control_plane_id", "control_plane_name", "heartbeat_seconds")
    CONTROL_PLANE_ID_FIELD_NUMBER: _ClassVar[int]
    CONTROL_PLANE_NAME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    control_plane_id: str
    control_plane_name: str
    heartbeat_seconds: int
    def __init__(self, control_plane_id: _Optional[str] = ..., control_plane_name: _Optional[str] = ..., heartbeat_seconds: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("version", "hash", "nonce", "part", "parts", "chunk")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    version: int
    hash: str
    nonce: str
    part: int
    parts: int
    chunk: bytes
    def __init__(self, version: _Optional[int] = ..., hash: _Optional[str] = ..., nonce: _Optional[str] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("from_version", "to_version", "from_hash", "hash", "nonce", "puts", "deletes")
    FROM_VERSION_FIELD_NUMBER: _ClassVar[int]
    TO_VERSION_FIELD_NUMBER: _ClassVar[int]
    FROM_HASH_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PUTS_FIELD_NUMBER: _ClassVar[int]
    DELETES_FIELD_NUMBER: _ClassVar[int]
    from_version: int
    to_version: int
    from_hash: str
    hash: str
    nonce: str
    puts: _containers.RepeatedCompositeFieldContainer[EntityPut]
    deletes: _containers.RepeatedCompositeFieldContainer[EntityDelete]
    def __init__(self, from_version: _Optional[int] = ..., to_version: _Optional[int] = ..., from_hash: _Optional[str] = ..., hash: _Optional[str] = ..., nonce: _Optional[str] = ..., puts: _Optional[_Iterable[_Union[EntityPut, _Mapping]]] = ..., deletes: _Optional[_Iterable[_Union[EntityDelete, _Mapping]]] = ...) -> None: ...

class EntityPut(_message.Message):
    __slots__ = ("type", "entity")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    type: str
    entity: bytes
    def __init__(self, type: _Optional[str] = ..., entity: _Optional[bytes] = ...) -> None: ...

class EntityDelete(_message.Message):
    __slots__ = ("type", "id")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    type: str
    id: str
    def __init__(self, type: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("nonce", "version", "hash", "workers")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    version: int
    hash: str
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    def __init__(self, nonce: _Optional[str] = ..., version: _Optional[int] = ..., hash: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ...) -> None: ...

class Nack(_message.Message):
    __slots__ = ("nonce", "version", "kept_version", "kept_hash", "error", "entity_type", "entity_id", "entity_name", "field", "workers", "unreadable")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    KEPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    KEPT_HASH_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ENTITY_TYPE_FIELD_NUMBER: _ClassVar[int]
    ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
    ENTITY_NAME_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_FIELD_NUMBER: _ClassVar[int]
    nonce: str
    version: int
    kept_version: int
    kept_hash: str
    error: str
    entity_type: str
    entity_id: str
    entity_name: str
    field: str
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    unreadable: bool
    def __init__(self, nonce: _Optional[str] = ..., version: _Optional[int] = ..., kept_version: _Optional[int] = ..., kept_hash: _Optional[str] = ..., error: _Optional[str] = ..., entity_type: _Optional[str] = ..., entity_id: _Optional[str] = ..., entity_name: _Optional[str] = ..., field: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., unreadable: _Optional[bool] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("config_version", "hash", "workers", "spooled_batches", "dropped_events")
    CONFIG_VERSION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SPOOLED_BATCHES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_EVENTS_FIELD_NUMBER: _ClassVar[int]
    config_version: int
    hash: str
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    spooled_batches: int
    dropped_events: int
    def __init__(self, config_version: _Optional[int] = ..., hash: _Optional[str] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., spooled_batches: _Optional[int] = ..., dropped_events: _Optional[int] = ...) -> None: ...
