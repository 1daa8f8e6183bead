"""Blocks of a YAML file with checked fields, and readable errors about a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Block(BaseModel):
    """A part of a recipe: immutable, every field known, no number that is true, false, infinite or NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_fields(cls, fields: Any) -> Any:
        if not isinstance(fields, Mapping):
            return fields
        known = {field.alias or name: field for name, field in cls.model_fields.items()}
        for name, value in fields.items():
            if name not in known:
                raise PydanticCustomError(
                    "unknown_field", "unknown field", {"field": str(name), "known": ", ".join(known)}
                )
            if isinstance(value, bool) and known[name].annotation is not bool:
                raise PydanticCustomError("not_bool", "got a yes/no value", {"field": name})
        return fields


def describe(problem: Mapping[str, Any], *, tags: Collection[str] = ()) -> str:
    """One of pydantic's errors as `model.padding: got 'sme'; allowed: 'valid' or 'same'; …`

    tags: what names a member of a union. Pydantic puts it into the path (data.isbi.tile); files do not.
    """
    context, given = problem.get("ctx", {}), problem["input"]
    place = [str(part) for part in problem["loc"] if part not in tags]
    match problem["type"]:
        case "unknown_field":
            name, known = context["field"], context["known"]
            place.append(name)
            message = f"unknown field{did_you_mean(name, known.split(', '))} (fields here: {known})"
        case "not_bool":
            place.append(context["field"])
            message = f"got {given[context['field']]!r}; a yes/no value is not allowed here"
        case "missing":
            message = "missing"
        case "union_tag_not_found":
            place.append(context["discriminator"].strip("'"))
            message = "missing"
        case "union_tag_invalid":
            place.append(context["discriminator"].strip("'"))
            message = _not_allowed(context["tag"], context["expected_tags"])
        case "literal_error":
            message = _not_allowed(given, context["expected"])
        case "value_error":
            message = str(context["error"])
            if not isinstance(given, Mapping):
                message = f"got {given!r}; {message}"
        case _:
            message = f"got {given!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}"
    return f"{'.'.join(place)}: {message}" if place else message


def _not_allowed(given: Any, allowed: str) -> str:
    near = did_you_mean(str(given), re.findall("'(.*?)'", allowed))
    return f"got {given!r}; allowed: {allowed}{near}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`; did you mean "x"?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f'; did you mean "{near[0]}"?' if near else ""
