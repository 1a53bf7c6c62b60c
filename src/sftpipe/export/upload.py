"""A folder to a repository of the hub: the files of a list, a card, and nothing else."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sftpipe.errors import ExportError, Problem, SftpipeError, one_line, override
from sftpipe.export.card import RUN_KEY
from sftpipe.terminal import progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

# What leaves: names and patterns below the folder. What is not here stays, whatever it is.
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model-*-of-*.safetensors")
ALLOWED = (
    *WEIGHTS,
    "model.safetensors.index.json",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)
CARD = "README.md"  # its text is given, and is not the file of the folder
_OF_THE_HUB = {".gitattributes"}  # what a new repository holds
_PATH_KEY = re.compile(r"(name_or_path|_file|_path|_dir)$")
ANSWER_S = 120.0  # without a byte from the hub; it needs up to a minute for a large commit
_KEY = "export.repo_id"
_Step = Callable[[str], None]  # says what is done now, for a message
_AGAIN = "start it again: what has arrived is not sent twice"


@dataclass(frozen=True)
class Uploaded:
    """What a repository holds now: its page, (path, bytes) of what was sent, and the commit."""

    url: str
    files: list[tuple[str, int]]
    commit: str


def files_to_send(folder: Path) -> list[Path]:
    """The files that would leave, besides the card.

    Args:
        folder: of a finished run, or of plain weights.

    Raises:
        ExportError: there are no weights in it.
    """
    found = sorted({file for one in ALLOWED for file in folder.glob(one) if file.is_file()})
    if not any(file.match(one) for file in found for one in WEIGHTS):
        allowed = ", ".join(WEIGHTS)
        raise ExportError(Problem(str(folder), "it holds no weights", allowed=allowed))
    return found


def upload(folder: Path, repo_id: str, *, private: bool, run_id: str, card: str) -> Uploaded:
    """Send a folder's files and a card, in one commit that has all of them or none.

    A large file is there before the commit that names it, so a second start after one that broke
    off sends only what is missing.

    Args:
        folder: of a finished run with its adapter, or of plain weights.
        repo_id: OWNER/NAME; made where it does not exist.
        private: whether nobody else sees it.
        run_id: the run that the repository belongs to.
        card: the text of README.md, with the run in its front matter.

    Raises:
        ExportError: there is no token, the repository is another run's or shows more or less than
            `private` says, a file names a folder of this machine, or the hub refuses or breaks off.
    """
    if run_of(card) != run_id:
        raise ValueError(f"the card does not name the run: {RUN_KEY}: {run_id}")
    files = {file.relative_to(folder).as_posix(): file for file in files_to_send(folder)}
    _check_paths(files.values())
    _check_name(repo_id)
    token = _token()
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with _patient(), _told(repo_id, token) as step:
        info = _repository(api, repo_id, private)
        _check_ours(api, info, repo_id, private, run_id)
        _check_leftovers(info, repo_id, files)
        step("checking the card")
        _validate(card)
        commit = _send(api, info, repo_id, {**files, CARD: card.encode()}, step)
        step("looking at what has arrived")
        sizes = {name: file.stat().st_size for name, file in files.items()}
        sent = sorted({**sizes, CARD: len(card.encode())}.items())
        _check_arrived(api, repo_id, commit, sent)
    return Uploaded(f"{api.endpoint}/{repo_id}", sent, commit)


def run_of(card: str) -> str | None:
    """The run that a card names in its front matter; None without one."""
    front = re.match(r"---\r?\n(.*?)^---\s*$", card, flags=re.DOTALL | re.MULTILINE)
    try:
        head = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return None
    return str(head[RUN_KEY]) if isinstance(head, dict) and RUN_KEY in head else None


# --- before anything is asked ---------------------------------------------------------------------


def _token() -> str:
    """The token of the environment or of `hf auth login`; the only way to give one."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        fix = "unset it, and TRANSFORMERS_OFFLINE"
        raise ExportError(Problem("export=hub", "HF_HUB_OFFLINE is set", fix=fix))
    try:
        token = get_token()
    except Exception as error:  # of a login that ran out and cannot be renewed
        found = f"the login cannot be used: {one_line(error)[:200]}"
        raise ExportError(Problem("export=hub", found, fix="`hf auth login`")) from None
    if not token:
        fix = "`hf auth login`, or set HF_TOKEN in the environment"
        raise ExportError(Problem("export=hub", "there is no token for the hub", fix=fix))
    return token


def _check_name(repo_id: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        said = "" if "/" in repo_id else "it names no owner"
    except HFValidationError as error:
        said = one_line(error)
    if said:
        raise ExportError(Problem(_KEY, f"{repo_id!r}: {said}", allowed="OWNER/NAME"))


def _check_paths(files: Iterable[Path]) -> None:
    """Refuse a config that names a folder of this machine.

    Nothing is rewritten: what is sent is what was measured, byte for byte, and neither sftpipe nor
    transformers writes such a path today; one that is there was put there, or is of an old run.
    """
    problems = []
    for file in files:
        if not file.name.endswith("config.json"):
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            found = "is no JSON, so what would leave with it is not known"
            raise ExportError(Problem(str(file), found)) from None
        for key, path in _local_paths(content):
            found = f"{key} is a path of this machine: {path}"
            fix = "write the base's name on the hub there"
            if file.name == "adapter_config.json":
                fix += ", or `export.what=merged`, which needs no base"
            problems.append(
                Problem(str(file), found, fix=fix if "base" in key else f"remove {key}")
            )
    if problems:
        raise ExportError(*problems)


def _local_paths(content: Any) -> Iterator[tuple[str, str]]:
    """(key, value) of what names a file or a folder, at any depth."""
    if isinstance(content, list):
        for one in content:
            yield from _local_paths(one)
    if isinstance(content, Mapping):
        for key, value in content.items():
            if isinstance(value, str) and _PATH_KEY.search(str(key)) and _is_local(value):
                yield str(key), value
            yield from _local_paths(value)


def _is_local(value: str) -> bool:
    if value.startswith(("/", "~", ".", "\\")) or re.match(r"[A-Za-z]:[\\/]", value):
        return True
    return "/" in value and Path(value).exists()


# --- the repository -------------------------------------------------------------------------------


def _repository(api: HfApi, repo_id: str, private: bool) -> ModelInfo:
    """The repository as it is; a new one where there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo_id)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.model_info(repo_id)


def _check_ours(api: HfApi, info: ModelInfo, repo_id: str, private: bool, run_id: str) -> None:
    """Refuse a repository of another run or of nobody's, and one that others see or do not."""
    names = _names(info)
    theirs = None
    if CARD in names:
        with tempfile.TemporaryDirectory() as folder:
            card = api.hf_hub_download(repo_id, CARD, revision=info.sha, local_dir=folder)
            theirs = run_of(Path(card).read_text(encoding="utf-8", errors="replace"))
    if names - _OF_THE_HUB and theirs != run_id:
        whose = f"the run {theirs}" if theirs else "no run of sftpipe"
        found = f"{repo_id} holds files already, and its card is of {whose}; this is {run_id}"
        raise ExportError(Problem(_KEY, found, fix=_other(repo_id)))
    if bool(info.private) != private:
        found = f"{repo_id} is {'private' if info.private else 'public'}, and export.private is "
        fix = override("export.private", str(bool(info.private)).lower())
        change = f"`hf repos settings {repo_id} --{'private' if private else 'public'}`"
        raise ExportError(
            Problem(_KEY, f"{found}{str(private).lower()}", fix=f"{fix}, or {change}")
        )


def _check_leftovers(info: ModelInfo, repo_id: str, files: Mapping[str, Path]) -> None:
    """Refuse to lay files beside those of another upload.

    Beside merged weights an adapter is applied a second time.
    """
    left = [name for name in _names(info) - set(files) if _is_allowed(name)]
    if left:
        found = f"{repo_id} holds files of another upload, which loaders would mix with these: "
        fix = f"{_other(repo_id)}, or delete them there"
        raise ExportError(Problem(_KEY, found + ", ".join(sorted(left)), fix=fix))


def _is_allowed(name: str) -> bool:
    path = Path(name)
    return any(path.match(one) and len(path.parts) == one.count("/") + 1 for one in ALLOWED)


def _names(info: ModelInfo) -> set[str]:
    return {file.rfilename for file in info.siblings or ()}


def _other(repo_id: str) -> str:
    return override(_KEY, f"{repo_id.partition('/')[0]}/OTHER")


# --- sending --------------------------------------------------------------------------------------


def _validate(card: str) -> None:
    """Let the hub read the metadata before gigabytes are sent; a commit asks only after them."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(card).validate()
    except ValueError as error:
        said = "; ".join(re.findall(r'"message":\s*"([^"]*)"', str(error))) or one_line(error)
        found = f"the hub does not take its metadata: {said[:300]}"
        raise ExportError(Problem(CARD, found)) from None


def _send(
    api: HfApi, info: ModelInfo, repo_id: str, files: Mapping[str, Path | bytes], step: _Step
) -> str:
    """Send large files one by one, which gives each its place in a message, and then commit."""
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    with progress("Uploading", len(additions)) as advance:
        for addition in additions:
            step(f"sending {addition.path_in_repo}")
            api.preupload_lfs_files(repo_id, [addition], free_memory=False)
            advance(1, addition.path_in_repo)
    step("the commit")
    done = api.create_commit(
        repo_id,
        additions,
        commit_message="A run of sftpipe",
        parent_commit=info.sha,  # the state that was found to be ours
    )
    return str(done.oid)


def _check_arrived(api: HfApi, repo_id: str, commit: str, sent: Sequence[tuple[str, int]]) -> None:
    """A .gitignore of the repository keeps files out without a word."""
    info = api.model_info(repo_id, revision=commit, files_metadata=True)
    there = {file.rfilename: file.size for file in info.siblings or ()}
    wrong = [name for name, size in sent if there.get(name) != size]
    if wrong:
        found = f"{repo_id} lacks what was sent: {', '.join(wrong)}"
        raise ExportError(Problem(_KEY, found, fix="is there a .gitignore? remove it"))


@contextmanager
def _patient() -> Iterator[None]:
    """Give up on a hub that says nothing at all, and keep signed addresses out of the log."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import logging as hub_logging

    client, level = get_session(), hub_logging.get_verbosity()
    waits = client.timeout
    client.timeout = ANSWER_S
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        client.timeout = waits
        hub_logging.set_verbosity(level)


@contextmanager
def _told(repo_id: str, token: str) -> Iterator[_Step]:
    """Turn what the client raises into an error that says at which step, and never the token."""
    doing = ["asking for the repository"]

    def step(name: str) -> None:
        doing[0] = name

    try:
        yield step
    except SftpipeError:
        raise
    except Exception as error:  # the client's errors have no common base
        # around what broke, the client lays one of these
        wrapped = isinstance(error, RuntimeError | FileNotFoundError) and error.__cause__
        problem = _problem(wrapped or error, repo_id, doing[0], token)
        raise ExportError(problem) from None


def _problem(error: BaseException, repo_id: str, doing: str, token: str) -> Problem:
    """What the hub's answer means, or that there was none."""
    from huggingface_hub import HfApi

    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) if status else f"{type(error).__name__}: {error}"
    said = re.sub(r"\?\S+", "", one_line(said or "").replace(token, "***"))[:200]
    because = f": {said}" if said else ""
    if status == 401:
        fix = "`hf auth login`, or another HF_TOKEN"
        return Problem("export=hub", f"the hub does not take the token{because}", fix=fix)
    if status == 403:
        fix = f"`hf auth login` with a token that may write, or {override(_KEY, 'OWNER/NAME')}"
        return Problem(_KEY, f"the token may not write to {repo_id}{because}", fix=fix)
    if status == 404:
        found = f"{repo_id}: the hub does not know {repo_id.partition('/')[0]!r}"
        return Problem(_KEY, f"{found}{because}", fix="check the name and the token's rights")
    if status in (409, 412):
        found = f"{repo_id} was changed by somebody else meanwhile{because}"
        return Problem(_KEY, found, fix=_AGAIN)
    if status:
        fix = _AGAIN if status >= 500 or status in (408, 429) else ""
        return Problem(_KEY, f"{repo_id}, {doing}: the hub answered {status}{because}", fix=fix)
    if isinstance(error, ValueError):
        return Problem(_KEY, f"{repo_id}, {doing}: {said}")
    found = f"{repo_id}, {doing}: {HfApi().endpoint} gave no whole answer{because}"
    return Problem(_KEY, found, fix=_AGAIN)
