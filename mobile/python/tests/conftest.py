"""A real coordinator with people at work (`sdk-world`), as each test needs it."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


class World:
    """The program `sdk-world`: a coordinator as a process of its own, and people who take part."""

    def __init__(self) -> None:
        target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        self.process = subprocess.Popen(
            [target / "release" / "sdk-world"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ready = self._answer()
        self.server = ready["server"]
        self.catalogue = ready["catalogue"]
        self.model = ready["model"]
        self.layers = (ready["layers_in"], ready["layers_out"])
        self.history = ready["history"]

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        assert line, "sdk-world ended; build it with `cargo build --release -p lethe-tests`"
        return json.loads(line)

    def ask(self, line: str) -> dict:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        assert "error" not in answer, answer
        return answer

    def invite(self, name: str) -> str:
        return self.ask(f"invite {name}")["invitation"]

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture
def world():
    world = World()
    yield world
    world.end()


@pytest.fixture
def catalogue(tmp_path):
    """A catalogue of six films, for what needs no coordinator."""
    folder = tmp_path / "catalogue"
    folder.mkdir()
    (folder / "dataset.toml").write_text(
        '[interactions]\nfile = "none"\nuser = "u"\nitem = "i"\nrating = "r"\nlike_above = 3\n'
        '[items]\nfile = "items.csv"\nitem = "id"\ntitle = "title"\ntags = "tags"\n'
    )
    titles = ["Heat,Crime", "Fargo,Crime", "Babe,Kids", "Antz,Kids", "Alien,Space", "Gravity,Space"]
    rows = [f"{number},{rest}" for number, rest in enumerate(titles, 1)]
    (folder / "items.csv").write_text("\n".join(["id,title,tags", *rows]) + "\n")
    return folder
