# SPDX-License-Identifier: Apache-2.0
"""Fields of lines and blocks: said once, and in the one form that docs/protocol.md has for them."""

from __future__ import annotations

import pytest

from ingestd.protocol.fields import flow_of, json_object

FLOW = "0192f0c1-2b3c-7def-8000-123456789abc"


@pytest.mark.parametrize(
    "text",
    [
        '{"bytes": 1, "bytes": 1}',
        '{"resume": true, "name": "x", "resume": false}',
        '{"labels": {"a": "1", "a": "2"}}',
    ],
)
def test_a_field_that_is_there_twice(text: str) -> None:
    with pytest.raises(ValueError, match=r"the hello has the field '(bytes|resume|a)' twice"):
        json_object(text.encode(), "the hello")


def test_fields_that_nobody_knows_are_passed_over() -> None:
    assert json_object(b'{"a": 1, "b": {"a": 2}}', "x") == {"a": 1, "b": {"a": 2}}


@pytest.mark.parametrize(
    "text",
    [
        FLOW.replace("-", ""),
        f"{{{FLOW}}}",
        f"urn:uuid:{FLOW}",
        f" {FLOW}",
        f"{FLOW}\n",
        FLOW.replace("0", "\uff10"),
        FLOW[:-1],
        FLOW.replace("2b3c-7def", "2b3c7-def"),
        12,
        [FLOW],
    ],
)
def test_flow_ids_have_one_form(text: object) -> None:
    with pytest.raises(ValueError, match="its flow is not a UUID of 36 characters"):
        flow_of({"flow": text})


def test_flow_ids_are_told_in_small_letters() -> None:
    assert flow_of({"flow": FLOW.upper()}) == FLOW
    assert flow_of({}) is flow_of({"flow": None}) is None
