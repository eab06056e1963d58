"""README.md and docs/: code and commands run, configs are valid, links and tables are complete.

A page is followed from top to bottom in a folder of its own, with nothing there but the shipped
configs. Blocks of Python and commands of kanpinn are executed as they stand. Runs of shipped
configs are cut to a few steps on few points (``SHORT``), once the command as printed has been found
valid; runs of configs that a page writes itself are not. Commands draw no figures, but for
``plot``. Of make it is only looked up that it has such a target.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import kanpinn
from kanpinn import api
from kanpinn.cli import main
from kanpinn.cli.group import COMMANDS
from kanpinn.conditions import Condition, Dirichlet
from kanpinn.config import parse_study, read_yaml
from kanpinn.geometry import Box

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")))
SHORT = ("sampling.interior=50", "sampling.held_out=50")
PLAIN = "figures=false"
STEPS = 3
LARGEST_IMAGE = 200_000  # bytes

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`([\w.-]+\.(?:py|yaml))`:\Z")  # "..., in `my_pde.py`:" names the next block
EXPECTED = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)  # print(u.shape)  # (1000, 1)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the file it is said to be."""

    page: str
    line: int
    language: str
    text: str
    file: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text, found = read(page), []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        named = FILE.search(before.rstrip())
        line = before.count("\n") + 1
        found.append(Block(page, line, match[1], match[2], named[1] if named else None))
    assert text.count("```") == 2 * len(found), f"{page}: a fence that is not understood"
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """The commands of a block as words."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def shortened(config: str, overrides: list[str]) -> list[str]:
    """Overrides that leave a few steps of a shipped config, whatever its phases are."""
    phases = read_yaml(Path(config))["training"]["phases"]
    steps = [f"training.phases.{k}.steps={STEPS}" for k in range(len(phases))]
    return [*overrides, *SHORT, PLAIN, *steps]


@dataclass
class Reader:
    """Does what a page says, in the current folder; Python blocks share their names."""

    names: dict[str, Any] = field(default_factory=dict)

    def follow(self, block: Block) -> None:
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self.execute(block)
        elif block.language == "yaml":  # some keys of a config
            api.prepare({"problem": "poisson", **yaml_of(block)})
        elif block.language == "sh":
            for words in commands(block):
                self.obey(block, words)
        elif block.language in {"", "text"}:
            assert not hidden_commands(block.text), f"{block.where}: commands need a fence of sh"
        else:
            pytest.fail(f"{block.where}: blocks of {block.language} are not tested")

    def execute(self, block: Block) -> None:
        code = compile("\n" * block.line + block.text, block.page, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self.names)
        lines = iter(printed.getvalue().splitlines())
        for expected in EXPECTED.findall(block.text):  # in this order, other lines in between
            assert expected in lines, f"{block.where}: {expected!r} was not printed"

    def obey(self, block: Block, words: list[str]) -> None:
        match words:
            case ["kanpinn", *arguments]:
                self.check(self.call(arguments), words, block.where)
            case ["make", target]:
                assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), block.where
            case _:
                pytest.fail(f"{block.where}: {words[0]} is not tested")

    def call(self, arguments: list[str]) -> Result:
        if arguments[:1] == ["solve"] and arguments[1].startswith("configs/"):
            config, overrides = arguments[1], [a for a in arguments[2:] if is_override(a)]
            api.prepare(config, overrides)  # as printed
            short = shortened(config, overrides)
            if "--resume" in arguments:  # a run to resume: one that was stopped after a step
                began = list(short)
                if "--seed" in arguments:
                    began.append(f"seed={arguments[arguments.index('--seed') + 1]}")
                kanpinn.solve(config, began, stop=lambda: True, on_interrupt="return")
            arguments = [*arguments, *short]
        if arguments[:1] == ["solve"]:
            arguments = [*arguments, PLAIN]
        return CliRunner().invoke(main, arguments)

    def check(self, result: Result, words: list[str], where: str) -> None:
        if "cuda" in words and not torch.cuda.is_available():
            assert result.exit_code == 2, f"{where}: {result.output}"
            assert "there is no CUDA device" in result.stderr
            return
        assert result.exit_code == 0, f"{where}: {shlex.join(words)}: {result.output}"
        assert ("--resume" in words) == ("continued from step" in result.stderr), where


def is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def yaml_of(block: Block) -> dict[str, Any]:
    path = Path("fragment.yaml")
    path.write_text(block.text, encoding="utf-8")
    return read_yaml(path)


def hidden_commands(text: str) -> list[str]:
    return re.findall(rf"^[ $]*kanpinn (?:{'|'.join(COMMANDS)})\b.*$", text, re.MULTILINE)


def prepare_folder(folder: Path) -> None:
    """What a reader has at hand: the shipped configs, and measurements."""
    (folder / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    speed, temperature = rng.uniform(1, 9, 80), rng.uniform(0, 40, 80)
    columns = np.stack([speed, temperature, 0.3 * speed**2 - 0.01 * temperature], -1)
    header = "speed,temperature,drag"
    np.savetxt(folder / "measurements.csv", columns, "%.5g", ",", header=header, comments="")


def given(page: str) -> dict[str, Any]:
    """What the blocks of a page take for granted, all of it stated there in words."""
    if page != "docs/checkpoint.md":
        return {}
    for name, time in re.findall(r'load\("runs/(\w+)/(\w+)"\)', read(page)):
        config = f"configs/{name}.yaml"
        kanpinn.solve(config, shortened(config, []), out=f"runs/{name}/{time}")
    return {"kanpinn": kanpinn, "x": np.zeros((5, 2))}


@pytest.mark.usefixtures("studies_here", "blank_pictures")
@pytest.mark.parametrize("page", PAGES)
def test_page_can_be_followed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    reader = Reader({"__name__": "__main__", **given(page)})
    for block in blocks(page):
        reader.follow(block)
        if block.file:
            later = [other.text for other in blocks(page) if other.line > block.line]
            assert any(block.file in text for text in later), f"{block.where} is never used"
    sys.modules.pop("my_pde", None)
    if page == "README.md":
        check_own_pde(tmp_path)


def check_own_pde(folder: Path) -> None:
    """The README's own problem is short, and solved as accurately as it says."""
    assert (folder / "my_pde.py").read_text().count("\n") <= 40
    runs = folder / "runs"
    paths = [runs / "fisher" / "summary.json", *sorted((runs / "my_pde").glob("*/summary.json"))]
    assert len(paths) == 3
    found = [json.loads(path.read_text()) for path in paths]
    errors = [run["rel_l2"] for run in found if run["status"] == "target_reached"]
    assert len(errors) >= 2
    assert max(errors) <= 1e-4


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(page))):
        if not target.startswith(("https://", "#")):
            path = (ROOT / page).parent / target.partition("#")[0]
            assert path.exists(), f"{page}: {target}"
            assert path.suffix != ".png" or path.stat().st_size < LARGEST_IMAGE, target


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_commands_in_the_text_exist(page: str) -> None:
    """Commands between backticks: names and options exist, and shipped configs take the keys."""
    text = FENCE.sub("", read(page))
    assert not hidden_commands(text), f"{page}: commands need a fence of sh"
    for span in re.findall(r"`(kanpinn [^`]+)`", text):
        words = shlex.split(span)
        name, arguments = words[1], words[2:]
        command = main.get_command(main.make_context("kanpinn", ["list"]), name)
        assert command is not None, f"{page}: {span}"
        known = {"--help", *(o for parameter in command.params for o in parameter.opts)}
        assert {a for a in arguments if a.startswith("-")} <= known, f"{page}: {span}"
        if name == "study" and arguments:
            path = ROOT / arguments[0]
            parse_study(read_yaml(path), str(path), path.stem)
        elif arguments and arguments[0].startswith("configs/"):
            api.prepare(ROOT / arguments[0], [a for a in arguments if is_override(a)])


@pytest.mark.parametrize("page", ["README.md", "docs/accuracy.md"])
def test_all_shipped_configs_are_listed(page: str) -> None:
    names = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    rows = "\n".join(re.findall(r"^\|.*$", read(page), re.MULTILINE))
    assert {name for name in names if f"`{name}`" not in rows} == set()


def test_index_names_every_page() -> None:
    index = read("docs/README.md")
    for page in PAGES:
        if page.startswith("docs/") and page != "docs/README.md":
            assert f"({Path(page).name})" in index


def test_all_conditions_and_regions_are_described() -> None:
    """In the tables of docs/problems.md, with the region a condition has by default."""
    rows = re.findall(r"^\| (`.+?) \|$", read("docs/problems.md"), re.MULTILINE)
    table = {row.split("`")[1]: row for row in rows}
    for kind in (*Condition.__subclasses__(), *Dirichlet.__subclasses__()):
        asked = "to be given" if kind.sites == 2 and kind.on == "boundary" else f'`"{kind.on}"`'
        assert table[kind.__name__].endswith(asked), kind
    box = Box((0.0, 0.0), (1.0, 2.0), ("x", "t"), "t", interfaces={"x": (0.5,)})
    named = set(re.findall(r'`"([^"]+)"`', "\n".join(row for row in rows if row[1] == '"')))
    assert named | {"t.periodic"} == set(box.region_names())
