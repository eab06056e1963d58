"""The file of a study: from YAML to its design."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kanpinn.config.convert import Errors, convert_dataclass
from kanpinn.study import Design, StudyOptions, make_design


def parse_study(
    data: Mapping[str, Any], source: str, default_name: str, variant: str | None = None
) -> Design:
    """The design that a study's YAML file holds.

    Args:
        data: what the file holds.
        source: names it in messages.
        default_name: of a study that gives itself none.
        variant: which of its variants; none of them by default.

    Raises:
        ConfigError: naming the file, the key, what was found and what is allowed.
    """
    errors = Errors()
    options = convert_dataclass(data, StudyOptions, "", errors)
    errors.check(source)
    return make_design(options, source, default_name, variant)
