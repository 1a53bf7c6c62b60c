"""Patterns with `{column}` fields: the prompts and completions of format=template."""

from __future__ import annotations

from string import Formatter


def pattern_fields(pattern: str) -> list[str]:
    """The columns that a pattern names, each once.

    "{instruction}: {input}" names ["instruction", "input"].

    Raises:
        ValueError: a brace without its partner, or a field that is more than a name.
    """
    fields = []
    for _, name, spec, conversion in Formatter().parse(pattern):
        if name is not None:
            if not name.isidentifier() or spec or conversion:
                raise ValueError(f"the field {{{name}}} is no plain column name")
            fields.append(name)
    return list(dict.fromkeys(fields))
