"""`sftpipe VERB [key=value ...]`: verbs, flags, exit codes, and how errors are printed.

Exit codes: 0 done; 2 a mistake that the user can fix, printed without a traceback; 130 or 143
stopped by a signal; 1 some jobs of a sweep failed, or a bug, with its traceback. Results go to
stdout, everything else to stderr. Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sftpipe.errors import ConfigError, Problem, SftpipeError, StorageError, nearest
from sftpipe.verbs import VERBS, Arguments, print_error, print_way_out


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a reader that has left is met here, and not when Python ends
    except BrokenPipeError:  # `sftpipe list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from sftpipe import __version__

        print(__version__)
        return 0
    from sftpipe.terminal import quiet

    parsed: list[Arguments] = []

    def command() -> int:
        parsed.append(_parse(words))
        (arguments,) = parsed
        if arguments.help:
            print(_verb_help(arguments.verb))
            return 0
        with quiet():
            return VERBS[arguments.verb].run(arguments)

    return told(command, lambda overrides: print_way_out(parsed[0], overrides))


def told(command: Callable[[], int], offer: Callable[[Sequence[str]], None] | None = None) -> int:
    """Run a command, and tell on stderr what a user can fix.

    Args:
        command: returns its exit code.
        offer: called with overrides with which the command would go on, where they are known.

    Returns:
        The exit code; a bug keeps its traceback.
    """
    try:
        return command()
    except SftpipeError as error:
        print_error(error)
        if error.words and offer is not None:
            offer(error.words)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except OSError as error:
        from sftpipe.storage import cannot_write

        problem = cannot_write(error, Path(error.filename or "."))
        if problem is None:
            raise
        print_error(StorageError(problem))
        return StorageError.exit_code


def _parse(words: list[str]) -> Arguments:
    verb, *rest = words
    if verb not in VERBS:
        match = nearest(verb, VERBS)
        example = f"sftpipe {match}" if match else "sftpipe --help"
        if "=" in verb:
            example = f"sftpipe train {shlex.join(words)}"
        fix = f"`{example}`"
        raise ConfigError(Problem(verb, "no such verb", allowed=", ".join(VERBS), fix=fix))
    arguments = Arguments(verb)
    while rest:
        word = rest.pop(0)
        if word == "--json":
            arguments.json = True
        elif word in ("-h", "--help"):
            arguments.help = True
        elif word in ("-m", "--multirun") and verb == "train":
            arguments.multirun = True
        elif word.partition("=")[0] == "--from" and verb == "train":
            arguments.repeats = _folder_of(word, rest, arguments.repeats, "run")
        elif word.partition("=")[0] == "--continue" and verb == "train":
            arguments.going_on = _folder_of(word, rest, arguments.going_on, "sweep")
        elif word.partition("=")[0] == "--peer-python" and verb == "bench":
            arguments.peer_python = _program_of(word, rest, arguments.peer_python)
        elif (
            word.split("=")[0]
            in ("--cfg", "-c", "--info", "-i", "--hydra-help", "--resolve", "--package", "-p")
            and verb == "train"
        ):
            arguments.hydra_flags.append(word)
            if (
                word in ("--cfg", "-c", "--info", "-i", "--package", "-p")
                and rest
                and "=" not in rest[0]
            ):
                arguments.hydra_flags.append(rest.pop(0))
        else:
            arguments.overrides.append(word)
    return arguments


def _folder_of(word: str, rest: list[str], before: str | None, what: str) -> str:
    """The folder of `--flag DIR` or `--flag=DIR`; in the first form it is taken from the rest."""
    flag, folder = _value_of(word, rest)
    if not folder:
        fix = f"sftpipe train {flag} DIR, with the folder that sftpipe train printed"
        raise ConfigError(Problem(flag, f"no folder after it: which {what}?", fix=fix))
    if before is not None:
        found = f"given twice, with {before} and {folder}"
        raise ConfigError(Problem(flag, found, fix=f"name one {what}"))
    return folder


def _program_of(word: str, rest: list[str], before: str | None) -> str:
    """The program of `--flag PATH` or `--flag=PATH`; see `_folder_of`."""
    flag, path = _value_of(word, rest)
    fix = "`sftpipe bench train --peer-python venv/bin/python`"
    if not path:
        raise ConfigError(Problem(flag, "no path after it: which Python?", fix=fix))
    if before is not None:
        raise ConfigError(Problem(flag, f"given twice, with {before} and {path}", fix=fix))
    return path


def _value_of(word: str, rest: list[str]) -> tuple[str, str]:
    """(flag, value) of `--flag=VALUE`, or of `--flag` and the word after it, which is taken."""
    flag, equals, value = word.partition("=")
    is_next = not equals and rest and not rest[0].startswith("-") and "=" not in rest[0]
    return flag, rest.pop(0) if is_next else value


# --- help -----------------------------------------------------------------------------------------


def _help() -> str:
    verbs = "\n".join(f"  {name:<9} {verb.summary}" for name, verb in VERBS.items())
    return (
        "sftpipe: declarative supervised fine-tuning\n\n"
        "usage: sftpipe VERB [recipe=NAME] [group=OPTION] [key=value] [--json]\n\n"
        f"{verbs}\n\n"
        "  sftpipe train recipe=yoda                    the example that needs nothing but this "
        "machine\n"
        "  sftpipe train recipe=yoda lora.r=8           with an override\n"
        "  sftpipe train -m recipe=yoda lora.r=8,16     a sweep\n"
        "  sftpipe VERB --help                          more about a verb"
    )


def _verb_help(name: str) -> str:
    verb = VERBS[name]
    text = f"sftpipe {name}: {verb.summary}\n\nusage: {verb.usage}\n\n{verb.details}"
    if "key=value" in verb.usage:
        from sftpipe.config.options import groups, run_groups

        known = run_groups() if "run=DIR [" in verb.usage else groups()
        options = "\n".join(f"  {group:<13} {', '.join(names)}" for group, names in known.items())
        text += (
            "\n\ngroups and their options, the default first (`sftpipe list` says what each is):\n"
            f"{options}"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
