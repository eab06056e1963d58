"""The file of a study: from YAML to its design."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kanpinn.config.checks import STUDY_KEYS
from kanpinn.config.convert import Errors, convert_dataclass
from kanpinn.errors import ConfigError
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
    if "problem" in data and not STUDY_KEYS & data.keys():
        raise ConfigError(f"{source}: the config of a run, not of a study: see 'kanpinn solve'")
    errors = Errors()
    options = convert_dataclass(data, StudyOptions, "", errors)
    errors.check(source)
    return make_design(options, source, default_name, variant)
