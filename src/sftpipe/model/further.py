"""An adapter that is trained further: is it of this base and these tokens? Then its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sftpipe.config.init_from import KEY, AdapterFiles, find_adapter
from sftpipe.errors import ModelError, Problem, override
from sftpipe.model.weights import Weights
from sftpipe.terminal import console

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerFast


def adapter_identity(lora: Mapping[str, Any]) -> str | None:
    """What a run that trains an adapter further began with; None for a new adapter.

    Raises:
        ConfigError: its files are gone.
    """
    named = lora.get("init_from")
    return f"sha256:{find_adapter(named).sha256}" if named else None


def check_base(lora: Mapping[str, Any], weights: Weights) -> None:
    """An adapter fits the base weights that it was trained on.

    Raises:
        ModelError: it was trained on others.
        ConfigError: its files are gone.
    """
    if not lora.get("init_from"):
        return
    files = find_adapter(lora["init_from"])
    named = files.base or _named_base(files)
    if weights.are(named):
        return
    if files.base or _is_identity(named) or (named and "@" in named and weights.revision):
        found = f"{files.path} was trained on {named}, and the base of this run is"
        fix = "name the base that it was trained on: model.name_or_path=..."
        raise ModelError(Problem(KEY, f"{found} {weights.identity}", fix=fix))
    on = f"its base is called {named}" if named else "it names no base"
    said = f"that this is {weights.identity} cannot be proved, and is taken as true"
    console.print(f"adapter   {files.path.name}: {on}; {said}", markup=False)


def _named_base(files: AdapterFiles) -> str:
    """The base that PEFT wrote down; with the commit, of one on the hub."""
    name, revision = files.saved.get("base_model_name_or_path"), files.saved.get("revision")
    return f"{name}@{revision}" if name and revision else str(name or "")


def _is_identity(named: str) -> bool:
    """True for the name of weights that sftpipe gave: it holds a hash."""
    return " sha256:" in named


def check_tokens(
    lora: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, new_tokens: Sequence[int]
) -> None:
    """The tokens must be those that the adapter was trained with.

    Args:
        lora: the `lora` group.
        tokenizer: of this run.
        new_tokens: ids that the config added, and whose rows are to be trained.

    Raises:
        ModelError: a token has another id, or the rows of new tokens are not in the adapter.
        ConfigError: its files are gone.
    """
    from transformers import AutoTokenizer

    if not lora.get("init_from"):
        return
    files = find_adapter(lora["init_from"])
    if (files.path / "tokenizer.json").is_file():
        theirs = AutoTokenizer.from_pretrained(files.path).get_vocab()
        differ = sorted(theirs.items() ^ tokenizer.get_vocab().items(), key=lambda one: one[1])
        if differ:
            names = ", ".join(dict.fromkeys(repr(token) for token, _ in differ[:8]))
            found = f"the tokens of {files.path} and of this run differ, in their ids or names:"
            fix = f"{override('tokenizer.name_or_path', str(files.path))} takes that run's"
            raise ModelError(Problem(KEY, f"{found} {names}", fix=fix))
        return
    tables = files.saved.get("trainable_token_indices") or {}
    lists = tables.values() if isinstance(tables, Mapping) else [tables]
    trained = {int(token) for tokens in lists for token in tokens}
    if trained != set(new_tokens):
        found = f"it trains the rows of the tokens {sorted(trained)}, and this config adds"
        fix = "add the tokens that it was trained with, in the same order"
        raise ModelError(Problem(KEY, f"{found} {sorted(new_tokens)}", fix=fix))


def take_weights(model: PeftModel, lora: Mapping[str, Any]) -> None:
    """Give a new adapter the numbers of the one that it is to go on from.

    Raises:
        ModelError: they do not fit the model.
        ConfigError: its files are gone.
    """
    from peft import set_peft_model_state_dict
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    if not lora.get("init_from"):
        return
    files = find_adapter(lora["init_from"])
    numbers = load_file(files.weights)
    ours = get_peft_model_state_dict(model, save_embedding_layers=False)
    odd = sorted(ours.keys() ^ numbers.keys())
    both = ours.keys() & numbers.keys()
    odd += sorted(name for name in both if ours[name].shape != numbers[name].shape)
    if odd:
        found = f"{files.path} does not fit the model: {', '.join(odd[:4])}"
        raise ModelError(Problem(KEY, found, allowed="an adapter of this base"))
    set_peft_model_state_dict(model, numbers)
    said = f"goes on from {files.path.name}, sha256:{files.sha256}"
    console.print(f"adapter   {said}", markup=False)
