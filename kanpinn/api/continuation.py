"""Finding a run to continue, and making sure that it is the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kanpinn.api.preparation import Prepared
from kanpinn.checkpoint import Checkpoint, read_checkpoint, restore_state
from kanpinn.config import RESUMABLE_KEYS, differing_keys, read_yaml
from kanpinn.errors import ConfigError, RunFolderError
from kanpinn.io.run_folder import RunFolder, run_folders
from kanpinn.optimisers import StopReason
from kanpinn.provenance import file_sha256
from kanpinn.training import RunState, TrainingOptions

STEPS = "training.phases.*.steps"


def find_run(
    runs: Path, prepared: Prepared, config: Mapping[str, Any], out: str | Path | None
) -> RunFolder:
    """The folder of the run to continue: ``out``, or the newest unfinished one of this config.

    A run is unfinished, too, if what ended it would not end it now: its time limit, its budget of
    work, or its target.

    Args:
        runs: folder of the runs of that name.
        prepared: the run as it is asked for.
        config: resolved, as saved.
        out: the run folder, if it was named.

    Raises:
        RunFolderError: if there is none.
        ConfigError: if there are unfinished ones, but of another config.
    """
    if out is not None:
        folder = RunFolder(out)
        if not folder.config.is_file():
            raise RunFolderError(f"{folder.path}: holds no run to continue; leave out --resume")
        return folder
    found = run_folders(runs)
    training = prepared.config.training
    unfinished = [folder for folder in found if _is_unfinished(folder, training)]
    differences = [differing_keys(_saved_config(folder), config) for folder in unfinished]
    for folder, keys in zip(unfinished, differences, strict=True):
        if not keys:
            return folder
    if unfinished:
        raise _differs(unfinished[0].path, differences[0])
    end = f" (the newest, {found[0].path.name}, is {found[0].status})" if found else ""
    raise RunFolderError(f"{runs}: no unfinished run of this config to continue{end}")


def _is_unfinished(folder: RunFolder, training: TrainingOptions) -> bool:
    if folder.status is None or not folder.status.final:
        return True
    summary = folder.read_summary() or {}
    try:
        record = summary["levels"][-1]
        if summary.get("stop_reason"):  # in the midst of trials the levels are those of the best
            record = {**record, "stop_reason": summary["stop_reason"]}
        return _goes_on(record, float(summary["wall_s"]), summary, training)
    except (LookupError, TypeError, ValueError):  # a summary that was edited
        return False


def recall(folder: RunFolder, prepared: Prepared, config: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint of a run, once it is sure that the config is that of the run.

    ``None`` if the run was ended before its first checkpoint.

    Raises:
        CheckpointError: if the checkpoint cannot be used.
        ConfigError: naming the keys that differ, or the problem's file if that has changed.
    """
    if not folder.checkpoint.exists():
        keys = differing_keys(_saved_config(folder), config)
        if keys:
            raise _differs(folder.path, keys)
        return None
    checkpoint = read_checkpoint(folder.checkpoint)
    keys = differing_keys(checkpoint.config, config)
    if keys:
        raise _differs(folder.path, keys)
    source = checkpoint.problem.get("source")
    if source and prepared.source and file_sha256(prepared.source) != source["sha256"]:
        raise ConfigError(
            f"{folder.path}: {prepared.source} has changed since this run began, so it cannot be "
            "continued; start a new run"
        )
    return checkpoint


def restored(checkpoint: Checkpoint, prepared: Prepared, config: Mapping[str, Any]) -> RunState:
    """The run's state on the device of the config; unfinished again if its budget has grown.

    Raises:
        RunFolderError: if more steps are asked for than a finished run can take.
    """
    options = prepared.run.options
    state = restore_state(checkpoint, options.device)
    training, record = prepared.config.training, state.current.record.as_dict()
    if state.finished and _goes_on(record, state.elapsed, state.history[-1], training):
        state.finished = False
    if not state.finished:
        state.reopen()
    else:
        rest = [key for key in RESUMABLE_KEYS if key != STEPS]
        keys = differing_keys(checkpoint.config, config, rest)
        if keys:
            raise RunFolderError(
                f"{checkpoint.path.parent}: the run has finished, and its optimiser's memory is "
                f"gone: {', '.join(keys)} cannot change any more; start a new run"
            )
    return state


def _goes_on(
    record: Mapping[str, Any], elapsed: float, row: Mapping[str, Any], training: TrainingOptions
) -> bool:
    """Whether what ended a finished run in the midst of a phase would not end it now.

    Args:
        record: of its last level.
        elapsed: seconds it took.
        row: loss, held-out residual and error it ended with.
        training: the options now.
    """
    reason = record["stop_reason"]
    if reason == StopReason.WORK:
        return training.work is None or not training.work.spent(record)
    if reason == StopReason.TIME:
        return training.time_limit is None or training.time_limit > elapsed
    if reason == StopReason.TARGET:
        return not training.target.met(row)
    return False


def _saved_config(folder: RunFolder) -> dict[str, Any]:
    try:
        return read_yaml(folder.config)
    except ConfigError:  # cut off when the run was killed, or edited: it is no config to go on with
        return {}


def _differs(path: Path, keys: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{path}: this run has another config, so it cannot be continued; "
        f"different: {', '.join(keys)}; allowed to change: {', '.join(RESUMABLE_KEYS)}; "
        "a new run begins without --resume"
    )
