"""Configs: YAML to frozen options, checked in full before anything is allocated."""

from kanpinn.config.overrides import RESUMABLE_KEYS, described_changes, differing_keys
from kanpinn.config.run_config import (
    ProblemConfig,
    RunConfig,
    load_config,
    naming,
    parse_config,
    resolve_device,
    run_options,
    to_dict,
)
from kanpinn.config.study_config import parse_study
from kanpinn.config.yaml_text import dump_yaml, parse_yaml, read_yaml

__all__ = [
    "RESUMABLE_KEYS",
    "ProblemConfig",
    "RunConfig",
    "described_changes",
    "differing_keys",
    "dump_yaml",
    "load_config",
    "naming",
    "parse_config",
    "parse_study",
    "parse_yaml",
    "read_yaml",
    "resolve_device",
    "run_options",
    "to_dict",
]
