from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.errors import Faults
from cli.files import parse_text
from cli.masking import Mask, environment_values
from cli.output import Output
from cli.render import plan_json, plan_lines
from tests.cli.fakes import change, plan_of


def test_the_longest_value_is_masked_first() -> None:
    assert Mask(["secret", "secret-and-more"]).text("x secret-and-more secret") == "x [masked] [masked]"


def test_short_values_are_masked_as_words_only() -> None:
    mask = Mask(["1", "ab"])
    assert mask.text("1 10 ab cab a-ab") == "[masked] 10 [masked] cab a-[masked]"


def test_long_values_are_masked_inside_words_too() -> None:
    assert Mask(["0123456789"]).text("sk-0123456789abc") == "sk-[masked]abc"


def test_numbers_are_masked_as_numbers_and_truth_is_not() -> None:
    mask = Mask(["6", "1.50", "true", "007", ""])
    assert mask.data([6, 6.0, 1.5, 7, 60, True, None, "true", ""]) == [
        *["[masked]"] * 4,
        60,
        True,
        None,
        "true",
        "",
    ]


def test_names_of_known_fields_stay_and_other_keys_do_not() -> None:
    mask = Mask(["config", "x-secret-header"])
    assert mask.data({"config": {"x-secret-header": "config"}}) == {"config": {"[masked]": "[masked]"}}


def test_values_that_begin_and_end_with_marks_are_masked() -> None:
    mask = Mask(["/s3=", "+ab/"])
    assert mask.text("key:/s3= (+ab/)") == "key:[masked] ([masked])"


def test_settings_of_the_command_are_no_secrets() -> None:
    environment = {"DECK_KONNECT_TOKEN": "t", "DECK_KONNECT_ADDR": "http://a", "DECK_X": "x", "PATH": "/bin"}
    assert sorted(environment_values(environment)) == ["t", "x"]


@pytest.mark.parametrize(
    "value", ["one\ntwo-is-longer\nthree-is-longer", 'with "quotes" inside', "tab\\tescaped", "ümlaut-wert"]
)
def test_a_value_is_masked_in_whatever_shape_it_comes_out(value: str) -> None:
    mask = Mask([value])
    for shape in (value, json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert value not in mask.text(f"x: {shape}")
        assert value.splitlines()[-1] not in mask.text(f"x: {shape}")


_ALPHABET = st.characters(codec="utf-8", categories=["Lu", "Ll", "Nd", "Po", "Sm", "Zs"])
_VALUES = st.text(_ALPHABET, min_size=7, max_size=30).map(lambda text: f"Ω{text.rstrip()}").filter(lambda t: len(t) > 7)
"""Each begins with a letter that none of our own words has, so that to find one is to find a leak."""
_TEMPLATES = (
    "a: ${{ env `DECK_V` }}",
    'a: "${{ env `DECK_V` }}"',
    "a: '${{ env `DECK_V` }}'",
    "a: pre-${{ env `DECK_V` }}-post",
    "a: |\n  first\n  ${{ env `DECK_V` | indent 2 }}",
    "a: [${{ env `DECK_V` | toInt }}]",
    "${{ env `DECK_V` }}: 1",
)


@settings(max_examples=300)
@given(value=_VALUES | st.integers(10**8, 10**18).map(str), template=st.sampled_from(_TEMPLATES))
def test_no_value_of_the_environment_appears_in_any_output(value: str, template: str) -> None:
    """Whatever stands in the variable and wherever the file uses it: text, JSON and errors do not show it."""
    assert value.strip() not in _outputs(value, template, Mask([value]))


def _outputs(value: str, template: str, mask: Mask) -> str:
    out, err = io.StringIO(), io.StringIO()
    output = Output(mask=mask, stdout=out, stderr=err)
    try:
        body = parse_text(template, "f.yaml", {"DECK_V": value}).document
    except Faults as fault:
        output.error(fault.message)
        return err.getvalue()
    changes = [change("plugin", f"<{value}>", new=body, old={})]
    plan = plan_of(creating=changes, updating=changes, deleting=changes)
    for line, style in plan_lines(plan, mask):
        output.line(line, style)
    output.json(plan_json(plan, mask, [f"error about {value}"]))
    output.table(("NAME",), [(value,)])
    return out.getvalue()
