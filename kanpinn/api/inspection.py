"""What a run folder or a checkpoint holds, as data and in words. Runs no code of the problem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kanpinn.checkpoint import read_checkpoint, restore_state
from kanpinn.io.run_folder import CHECKPOINT, RunFolder
from kanpinn.solution import Solution


def inspect(run: Path) -> dict[str, Any]:
    """Everything that is known of a run, from its folder or its checkpoint alone.

    Raises:
        CheckpointError: if there is no checkpoint, or it cannot be used.
    """
    folder = RunFolder(run if run.is_dir() else run.parent)
    checkpoint = read_checkpoint(run / CHECKPOINT if run.is_dir() else run)
    summary = folder.read_summary() if folder.checkpoint.name == checkpoint.path.name else None
    state = checkpoint.content.training
    inverse = bool(checkpoint.content.system.scalars)
    return {
        "path": str(checkpoint.path),
        "status": summary["status"] if summary and "status" in summary else None,
        "finished": checkpoint.finished,
        "steps": state.total_steps,
        "wall_s": state.elapsed,
        "problem": checkpoint.problem,
        "levels": [record.as_dict() for record in checkpoint.levels],
        "scalars": Solution(restore_state(checkpoint)).scalars if inverse else {},
        "config": checkpoint.config,
        "provenance": checkpoint.provenance,
    }


def in_words(found: Mapping[str, Any]) -> dict[str, str]:
    """What was solved and how, and where it comes from; see :func:`inspect`."""
    config, problem, origin = found["config"], found["problem"], found["provenance"]
    parameters = ", ".join(f"{k}={v}" for k, v in (problem.get("parameters") or {}).items())
    model = ", ".join(
        f"{key} {_plain(value)}"
        for key, value in (config.get("model") or {}).items()
        if value is not None
    )
    phases = (config.get("training") or {}).get("phases") or []
    versions = origin.get("versions") or {}
    commit, threads = origin.get("commit"), origin.get("threads")
    return {
        "checkpoint": found["path"],
        "status": found["status"] or ("finished" if found["finished"] else "unfinished"),
        "steps": str(found["steps"]),
        "training": f"{found['wall_s']:.1f} s",
        "problem": str(problem.get("name")) + (f" ({parameters})" if parameters else ""),
        "fields": f"{', '.join(problem.get('fields', []))} of "
        f"({', '.join(problem.get('coordinates', []))})",
        **{f"scalar {name}": f"{value:.6e}" for name, value in found["scalars"].items()},
        "model": model,
        "phases": ", ".join(
            f"{phase.get('optimiser')} {_plain(phase.get('steps'))}" for phase in phases
        ),
        "seed": str(config.get("seed")),
        "device": f"{origin.get('device')}, {origin.get('dtype')}, {_counted(threads, 'thread')}",
        "written by": ", ".join(f"{k} {v}" for k, v in versions.items() if v is not None),
        "commit": f"{commit}{' and changes' if origin.get('commit_modified') else ''}",
        "on": f"{origin.get('host')}, {origin.get('system')}",
        "sessions": str(1 + len(origin.get("earlier") or [])),
        "last session": f"begun {origin.get('utc')}",
    }


def _counted(number: Any, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _plain(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
