"""`sftpipe chat`: a conversation with a run, on a terminal or through a pipe."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sftpipe.config.schema import GenerateConfig
from sftpipe.errors import Problem, RunError, SftpipeError, nearest
from sftpipe.runs.answering import Answering, generate_config
from sftpipe.runs.load import Run
from sftpipe.storage import write_text
from sftpipe.terminal import console, printable, quiet, quiet_libraries

HELP = """\
/reset               forget the conversation
/system TEXT         begin anew with this system turn; without TEXT with none
/params key=value    change how answers are drawn, such as temperature=0.7; without words: show it
/save FILE           write the conversation as a line {"messages": [...]}
/help                this text
/quit                end (so does Ctrl-D); Ctrl-C ends an answer"""


class Chat:
    """One conversation: what was said so far, and how answers are drawn."""

    def __init__(self, subject: Answering, cfg: GenerateConfig) -> None:
        """Begin with nothing said.

        Raises:
            ConfigError: `generate.base=true` of a base model alone.
        """
        self._subject, self._cfg = subject, cfg
        self._speakers: dict[str, Answering] = {"": subject}
        if cfg.base and isinstance(subject, Run):
            self._speakers = {"run   ": subject, "base  ": subject.base}
        self._keeps_history = not isinstance(subject.like(), str)
        self._messages: list[Mapping[str, Any]] = []
        self._set_system(subject.config.format.system or "")
        self._commands: dict[str, Callable[[str], bool]] = {
            "/reset": self._reset,
            "/system": self._system,
            "/params": self._params,
            "/save": self._save,
            "/help": self._help,
            "/quit": lambda _: False,
        }

    def hear(self, line: str) -> bool:
        """Answer a line, or do what it commands; False when the conversation is over."""
        if not line.strip():
            return True
        try:
            if not line.startswith("/"):
                self._answer(line)
                return True
            name, _, rest = line.strip().partition(" ")
            if name in self._commands:
                return self._commands[name](rest.strip())
            match = nearest(name, self._commands)
            fix = f"did you mean {match}?" if match else ""
            allowed = ", ".join(self._commands)
            raise RunError(Problem(name, "no such command", allowed=allowed, fix=fix))
        except SftpipeError as error:
            console.print(str(error), markup=False)
        return True

    def _answer(self, text: str) -> None:
        asked = [*self._messages, {"role": "user", "content": text}]
        said = ""
        for number, (name, speaker) in enumerate(self._speakers.items()):
            question = (
                speaker.questions(asked) if self._keeps_history else speaker.questions(text)
            )[0]
            sys.stdout.write(name)
            spoken = self._speak(speaker.stream(question, self._cfg))
            said = said if number else spoken
        if self._keeps_history:
            self._messages = [*asked, {"role": "assistant", "content": said}]

    def _speak(self, pieces: Any) -> str:
        """Print an answer as it is made; Ctrl-C ends it, and what was said stays."""
        said = ""
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    said += piece
                    sys.stdout.write(printable(piece))
                    sys.stdout.flush()
        except KeyboardInterrupt:
            sys.stdout.write(" [stopped]")
        sys.stdout.write("\n")
        sys.stdout.flush()
        return said.strip()

    # --- commands ---------------------------------------------------------------------------------

    def _reset(self, _: str) -> bool:
        system = [message for message in self._messages if message["role"] == "system"]
        self._messages = list(system)
        console.print("the conversation is forgotten")
        return True

    def _system(self, text: str) -> bool:
        if not self._keeps_history:
            found = "the run's format has no turns, and so no system turn"
            raise RunError(Problem("/system", found))
        self._set_system(text)
        console.print("the conversation begins anew, " + ("with it" if text else "without one"))
        return True

    def _set_system(self, text: str) -> None:
        self._messages = [{"role": "system", "content": text}] if text else []

    def _params(self, words: str) -> bool:
        changed = dataclasses.asdict(self._cfg)
        for word in words.split():
            key, _, value = word.partition("=")
            try:
                changed[key] = json.loads(value)
            except ValueError:
                changed[key] = value
        self._cfg = generate_config(changed)
        sampling = self._subject.sampling(self._cfg)
        shown = {"max_new_tokens": sampling.max_new_tokens, "seed": sampling.seed}
        listed = {**shown, **sampling.fields}
        console.print("  ".join(f"{name}={value}" for name, value in listed.items()), markup=False)
        return True

    def _save(self, name: str) -> bool:
        if not name:
            raise RunError(Problem("/save", "no file", fix="/save chat.jsonl"))
        text = json.dumps({"messages": self._messages}, ensure_ascii=False) + "\n"
        try:
            write_text(Path(name).expanduser(), text)
        except OSError as error:
            raise RunError(Problem(f"/save {name}", str(error.strerror))) from None
        console.print(f"saved in {name}", markup=False)
        return True

    def _help(self, _: str) -> bool:
        console.print(HELP, markup=False)
        return True


def chat(subject: Answering, cfg: GenerateConfig) -> None:
    """Talk until /quit or the end of the input.

    Raises:
        SftpipeError: the model cannot be loaded.
    """
    with quiet(), quiet_libraries():
        talk = Chat(subject, cfg)
        with console.status("Loading the model ..."):
            _ = subject.model
        if not sys.stdin.isatty():
            for line in sys.stdin:
                if not talk.hear(line.rstrip("\n")):
                    return
            return
        import readline  # noqa: F401  line editing and history for input()

        console.print("Ask something; /help lists the commands.")
        while True:
            try:
                line = input("> ")
            except EOFError:
                print()
                return
            except KeyboardInterrupt:  # of a line that is being typed
                print()
                continue
            if not talk.hear(line):
                return
