from __future__ import annotations

from cli.masking import Mask
from cli.render import plan_json, plan_lines
from tests.cli.fakes import EMPTY_PLAN, change, plan_of

OLD = {"name": "p", "config": {"a": [1, 2, 3], "keep": True, "minute": 5, "targets": [{"m": "x", "w": 1}, {"m": "y"}]}}
NEW = {"name": "p", "config": {"a": [1, 3, 4], "keep": True, "minute": 6, "targets": [{"m": "x", "w": 2}, {"m": "y"}]}}


def text(plan: object, *masked: str) -> str:
    return "\n".join(line for line, _ in plan_lines(plan, Mask(masked)))  # type: ignore[arg-type]


def test_a_plan_reads_as_decks() -> None:
    plan = plan_of(
        creating=[change("service", "svc1", {"name": "svc1"})],
        updating=[change("plugin", "rate-limiting for service svc1", NEW, OLD)],
        deleting=[change("route", "r1", {"name": "r1"})],
    )
    assert text(plan) == GOLDEN


GOLDEN = """\
creating service svc1
updating plugin rate-limiting for service svc1  {
   "config": {
     "a": [
       …
-      2
       …
+      4
     ]
     …
-    "minute": 5
+    "minute": 6
     "targets": [
       {
         …
-        "w": 1
+        "w": 2
       }
       …
     ]
   }
   …
 }
deleting route r1
Summary:
  Created: 1
  Updated: 1
  Deleted: 1"""


def test_fields_that_come_and_go_are_shown_whole() -> None:
    plan = plan_of(updating=[change("service", "s", {"a": {"b": [1]}}, {"c": None})])
    assert '+  "a": {\n+    "b": [\n+      1\n+    ]\n+  }\n-  "c": null' in text(plan)


def test_a_change_inside_a_masked_value_is_told_without_it() -> None:
    plan = plan_of(updating=[change("key-auth", "x for consumer c", {"key": "new-secret"}, {"key": "old-secret"})])
    shown = text(plan, "new-secret", "old-secret")
    assert shown.splitlines()[0] == "updating key-auth x for consumer c  (the difference is in a masked value)"


def test_an_empty_plan_is_its_summary() -> None:
    assert text(EMPTY_PLAN) == "Summary:\n  Created: 0\n  Updated: 0\n  Deleted: 0"


def test_counts_are_never_masked() -> None:
    assert text(EMPTY_PLAN, "0").endswith("Deleted: 0")


def test_json_has_decks_shape_and_masked_bodies() -> None:
    plan = plan_of(creating=[change("service", "secret-name", {"name": "secret-name", "port": 8443})])
    assert plan_json(plan, Mask(["secret-name", "8443"]), ["about secret-name"]) == {
        "changes": {
            "creating": [
                {
                    "name": "[masked]",
                    "kind": "service",
                    "body": {"new": {"name": "[masked]", "port": "[masked]"}, "old": None},
                }
            ],
            "updating": [],
            "deleting": [],
        },
        "summary": {"creating": 1, "updating": 0, "deleting": 0, "total": 1},
        "warnings": [],
        "errors": ["about [masked]"],
    }
