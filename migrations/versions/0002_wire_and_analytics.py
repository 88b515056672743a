"""Revoked certificates; analytics: epochs, request log, model calls, usage per minute, remembered names."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.String(36)
EVENT = ("epoch_id", "sequence", "position")
BUCKET = ("control_plane_id", "bucket", "service_id", "route_id", "consumer_id")


def upgrade() -> None:
    op.create_table(
        "revoked_certificates",
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("title", sa.String(256), nullable=True),
        sa.Column("cert", sa.Text, nullable=False),
        sa.Column("revoked_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("control_plane_id", "fingerprint", name="pk_revoked_certificates"),
    )
    op.create_table(
        "entity_names",
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("entity_id", ID, nullable=False),
        sa.Column("entity_type", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("control_plane_id", "entity_id", name="pk_entity_names"),
    )
    _create_epochs()
    _create_request_log()
    _create_usage()


def downgrade() -> None:
    for table in (
        *("llm_usage", "api_usage", "llm_calls", "request_events"),
        *("analytics_epochs", "entity_names", "revoked_certificates"),
    ):
        op.drop_table(table)


def _create_epochs() -> None:
    op.create_table(
        "analytics_epochs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True),
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("node_id", ID, nullable=False),
        sa.Column("epoch", sa.String(64), nullable=False),
        sa.Column("node_version", sa.String(64), nullable=False),
        sa.Column("applied_through", sa.BigInteger, nullable=False),
        sa.Column("applied_ahead", sa.JSON, nullable=False),
        sa.Column("dropped_events", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
        *_numbers("created_us", "updated_us"),
        sa.PrimaryKeyConstraint("id", name="pk_analytics_epochs"),
        sa.UniqueConstraint(
            "control_plane_id", "node_id", "epoch", name="uq_analytics_epochs_control_plane_id_node_id_epoch"
        ),
    )


def _create_request_log() -> None:
    op.create_table(
        "request_events",
        *_numbers(*EVENT),
        *_texts("control_plane_id", "node_id"),
        *_numbers("started_us", "finished_us"),
        *_texts("request_id", "parent_request_id", "decision_id"),
        *_numbers("config_version"),
        *_texts("service_id", "route_id", "consumer_id", "credential_id"),
        *_texts("method", "scheme", "host", "path", "user_agent", "client_ip"),
        *_numbers("status", "upstream_status"),
        *_texts("source", "error_kind", "plugin_name", "outcome"),
        *_numbers("request_bytes", "response_bytes", "total_us", "gateway_us", "callout_us"),
        *_numbers("upstream_us", "receive_us", nullable=True),
        sa.PrimaryKeyConstraint(*EVENT, name="pk_request_events"),
    )
    _create_index("request_events", "control_plane_id", "finished_us")
    _create_index("request_events", "finished_us")
    _create_index("request_events", "request_id")
    op.create_table(
        "llm_calls",
        *_numbers(*EVENT, "call_index", "finished_us"),
        *_texts("plugin_id", "provider", "request_model", "response_model", "model_alias"),
        sa.Column("stream", sa.Boolean, nullable=False),
        *_numbers("status"),
        *_texts("error_kind", "role", "token_source", "finish_reason"),
        *_numbers("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens"),
        *_numbers("duration_us"),
        *_numbers("ttft_us", "cost_nano_usd", nullable=True),
        sa.PrimaryKeyConstraint(*EVENT, "call_index", name="pk_llm_calls"),
    )
    _create_index("llm_calls", "finished_us")


def _create_usage() -> None:
    op.create_table(
        "api_usage",
        *_bucket_key(),
        sa.Column("status", sa.BigInteger, nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        *_numbers("requests", "incomplete", "request_bytes", "response_bytes"),
        *_distributions("total", "upstream", "gateway"),
        sa.PrimaryKeyConstraint(*BUCKET, "status", "source", name="pk_api_usage"),
    )
    _create_index("api_usage", "bucket")
    models = ("provider", "request_model", "response_model")
    op.create_table(
        "llm_usage",
        *_bucket_key(),
        *(sa.Column(name, sa.String(256), nullable=False) for name in models),
        sa.Column("status", sa.BigInteger, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        *_numbers("calls", "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens"),
        *_numbers("reasoning_tokens", "estimated_calls", "unpriced_calls", "cost_nano_usd"),
        *_distributions("duration", "ttft"),
        sa.PrimaryKeyConstraint(*BUCKET, *models, "status", "stream", name="pk_llm_usage"),
    )
    _create_index("llm_usage", "bucket")


def _bucket_key() -> list[sa.Column[Any]]:
    return [
        sa.Column("control_plane_id", ID, nullable=False),
        sa.Column("bucket", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.String(64), nullable=False) for name in BUCKET[2:]),
    ]


def _numbers(*names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.BigInteger, nullable=nullable) for name in names]


def _texts(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _distributions(*names: str) -> list[sa.Column[Any]]:
    columns: list[sa.Column[Any]] = []
    for name in names:
        columns += _numbers(f"{name}_count", f"{name}_sum_us", f"{name}_max_us")
        columns.append(sa.Column(f"{name}_sketch", sa.LargeBinary, nullable=False))
    return columns


def _create_index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))
