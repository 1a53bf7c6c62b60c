"""The text of the terminal: the tables of the preflight, and the lines and results of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sftpipe.data.preflight.columns import FINDINGS, SIZES, place
from sftpipe.errors import one_line
from sftpipe.terminal import printable

if TYPE_CHECKING:
    from pathlib import Path

    from sftpipe.data.packing import Isolation, PackingReport
    from sftpipe.data.preflight.report import Preflight
    from sftpipe.runs.generate import Spoken
    from sftpipe.runs.load import Run


def plain(text: str) -> str:
    """A text on one line that rich prints as it is."""
    return escape(one_line(text))


# --- preflight ------------------------------------------------------------------------------------


def preflight_summary(preflight: Preflight) -> str:
    """Rows of each split, what was dropped, and each warning, on a line each."""
    rows: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {}
    for one in preflight.splits:
        rows[one.split] += one.rows
        dropped.setdefault(one.split, Counter()).update(one.dropped)
    lines = [", ".join(f"{count:,} {split}" for split, count in rows.items()) + " rows"]
    for split, reasons in dropped.items():
        if reasons:
            counted = ", ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common())
            lines.append(f"dropped   of {split}: {counted}; `sftpipe check` lists them")
    for warning in preflight.warnings:
        first = warning.found.splitlines()[0]
        lines.append(f"warning   {warning.where}: {first}; `sftpipe check` says what to do")
    return "\n".join(lines)


def preflight_tables(preflight: Preflight) -> Iterator[Table]:
    """Two tables with a line for each split of each source: sizes, and what was found.

    Each fits 100 columns.
    """
    for columns in (SIZES, FINDINGS):
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("split")
        for column in columns:
            table.add_column(column.heading, justify="right", no_wrap=True)
        for report in preflight.splits:
            split = asdict(report)
            table.add_row(place(split), *(_cell(column.value(split)) for column in columns))
        yield table


def _cell(value: Any) -> Text:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return Text(text, style="dim" if text in ("0", "-") else "")


def preflight_facts(preflight: Preflight) -> Iterator[str]:
    """The facts about all splits together."""
    for name, (token, number) in preflight.special_tokens.items():
        yield f"{name:<10} {one_line(token)} {number if number is not None else ''}"
    ends = one_line(", ".join(preflight.end_tokens)) or "no special token"
    yield f"{'answers end':<10} in {ends}"
    compared = sum(report.compared_rows for report in preflight.splits)
    yield f"compared   {compared} rows with the prompt of generation, and with their text"
    yield from not_read(preflight)
    padding = f"{preflight.padding_share:.1%}"
    yield f"padding    {padding} of the tokens in training batches (an estimate)"
    if preflight.packing:
        yield f"packing    {packing_rows(preflight.packing)}"
        yield f"isolation  {isolation_of(preflight.packing.isolation)}"


def not_read(preflight: Preflight) -> Iterator[str]:
    """The columns and fields that nothing reads, on a line each."""
    from sftpipe.data.preflight.remarks import listed  # it brings transformers

    for number, line in enumerate(listed(preflight.remarks)):
        yield f"{'' if number else 'not read':<10} {one_line(line)}"


def packing_rows(packing: PackingReport) -> str:
    """The rows of each split before and after packing."""
    made = [
        f"{before:,} {split} rows in {after:,}, {packing.fill.get(split, 0):.1%} full"
        for split, (before, after) in packing.rows.items()
    ]
    return f"{packing.strategy}: {', '.join(made) or 'each batch is one row'}"


def isolation_of(found: Isolation | None) -> str:
    """How packed rows are kept separate, and how well."""
    if found is None:
        return "none: rows are joined, and see each other, by design"
    by_positions = found.method == "positions"
    how = "positions that restart" if by_positions else "a block-diagonal mask"
    if found.leak is None:
        return f"{how}; trusted, not measured"
    alone = found.leak_of_positions
    leak = f"; positions alone leak {alone:.2g}" if alone is not None else ""
    return f"{how}; packing moves a logit by {found.leak:.1g} standard deviations{leak}"


def dropped_rows(preflight: Preflight) -> Iterator[str]:
    """Each reason with its count, and the first rows of it."""
    for report in preflight.splits:
        for reason, count in report.dropped.items():
            yield f"\n{report.place}: {count} dropped, {reason}"
            same = [
                one
                for one in preflight.dropped
                if one.reason == reason and one.where.startswith(f"{report.place}[")
            ]
            for one in same[:3]:
                yield f"  {one.problem()}"


# --- a run ----------------------------------------------------------------------------------------


def run_lines(weights: str, device: str, folder: Path) -> str:
    """The first lines of a run: its weights, device and folder."""
    return f"weights   {weights}\ndevice    {device}\nfolder    {folder}"


def parameter_line(trained: int, total: int) -> str:
    """How many parameters are trained, of all."""
    return f"training  {trained:,} of {total:,} parameters ({trained / total:.2%})"


def adapter_line(modules: Sequence[str], rank: int) -> str:
    """Which kinds of modules have an adapter, and how many modules that are."""
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in modules))
    counts = f"{len(kinds)} {'kind' if len(kinds) == 1 else 'kinds'}, {len(modules)} modules"
    return f"adapter   {', '.join(kinds)} ({counts}), r={rank}"


def print_run(run: Run) -> None:
    """The story of a run in at most twelve lines, on stdout."""
    from sftpipe.runs.report.found import find
    from sftpipe.runs.report.story import ending

    out = Console(highlight=False, soft_wrap=True)
    for heading, text in ending(find(run.dir)):
        told = plain(printable(text))
        out.print(f"[dim]{heading:<10}[/] {told}" if heading is not None else told)


def print_answers(answers: Sequence[Spoken]) -> None:
    """Answers on stdout, below each the base model's where there is one."""
    out = Console(highlight=False, soft_wrap=True)
    for answer in answers:
        if answer.base is None:
            out.print(printable(answer.answer), markup=False)
            continue
        out.print(f"[green]run[/]   {escape(printable(answer.answer))}")
        out.print(f"[dim]base[/]  {escape(printable(answer.base))}")


def print_evaluation(result: Mapping[str, Any], folder: Path) -> None:
    """The figures of `sftpipe evaluate`, and its verdict, on stdout."""
    out = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("metric")
    for heading in ("base", "run", "difference", "95 % interval", "rows"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in result["metrics"].items():
        low, high = found["interval"]
        table.add_row(
            f"[bold]{name}[/]" if name == result["metric"] else name,
            f"{found['base']:.3f}",
            f"{found['run']:.3f}",
            f"{found['difference']:+.3f}",
            f"{low:+.3f} to {high:+.3f}",
            f"{found['rows']:,}",
        )
    out.print(table)
    colors = {"better": "green", "worse": "red"}
    color = colors.get(result["verdict"], "yellow")
    out.print(f"\n[{color}]{result['verdict']}[/]", f"  {plain(result['sentence'])}", sep="\n")
    out.print(
        f"  rows won {result['wins']}, lost {result['losses']}, equal {result['ties']}",
        sep="\n",
    )
    for task, metrics in result["lm_eval"].items():
        for name, found in metrics.items():
            error = f", standard error {found['stderr']:.3f}" if found["stderr"] else ""
            out.print(
                f"  {task} {name}: {found['base']:.3f} -> {found['run']:.3f}{error}", markup=False
            )
    for row in result["left_out"]:
        out.print(f"  left out: {plain(printable(row))}")
    out.print(f"\n{folder / 'responses.json'} holds the answers.", markup=False)


def print_export(result: Mapping[str, Any]) -> None:
    """Where an export is, and how far it is from the run, on stdout."""
    out = Console(highlight=False, soft_wrap=True)
    lines = {"from": result["trained_on"]}
    if drift := result.get("drift"):
        same = f"{drift['top1']:.2%} same likeliest token, KL {drift['kl']:.2e} nats a token"
        lines["merged"] = f"{same}, on {drift['tokens']:,} tokens ({drift['rows']})"
        lines["answers"] = f"chrF {drift['chrf']:.1f} of {drift['answers']}, 100: all equal"
    if back := result.get("readback"):
        same = f"{back['top1']:.2%} same likeliest token, KL {back['kl']:.2e} nats a token"
        lines[result["file"]] = f"{same}, against the merged weights"
    if said := result.get("llama_cpp"):
        equal = f"{said['same_answers']} of {said['answers']} answers the same"
        lines["llama.cpp"] = f"{said['prompts']} prompts have the tokens of training, {equal}"
    elif "llama_cpp" in result:
        lines["llama.cpp"] = "token ids unproved: pip install 'sftpipe[gguf]' proves them"
    if result.get("modelfile"):
        lines["Ollama"] = f"no Modelfile: {result['modelfile']}"
    table = Table.grid(padding=(0, 2))
    for name, text in lines.items():
        table.add_row(escape(printable(name)), escape(printable(text)))
    out.print(table)
    if drift and drift["limit"] is None and drift["kl"] > _FAR:
        keeps = "export.base=dequantized merges into those"
        out.print(f"\nThe adapter was trained on quantized weights; {keeps}.")
    if "url" in result:
        for name, size in result["files"].items():
            out.print(f"  {escape(printable(name))}  {size:,} bytes")
        out.print(f"\n{escape(result['url'])}")
        return
    folder = escape(printable(result["folder"]))
    out.print(f"\n{folder} holds it; its README.md says how it is used.")


_FAR = 0.01  # nats a token


def print_judgement(result: Mapping[str, Any], folder: Path) -> None:
    """The figures of `sftpipe judge`, and replies that said nothing, on stdout."""
    out = Console(highlight=False, soft_wrap=True)
    low, high = result["interval"] or (None, None)
    if result["mode"] == "score":
        lines = {
            "mean": f"{_number(result['mean'])} of 100",
            "95 % interval": f"{_number(low)} to {_number(high)}",
            "median": _number(result["median"]),
        }
    else:
        lines = {
            "against": plain(printable(result["against"])),
            "rows won": f"{result['wins']}, lost {result['losses']}, equal {result['ties']}",
            "win rate": f"{_percent(result['win_rate'])}, ties count half",
            "95 % interval": f"{_percent(low)} to {_percent(high)}",
            "flips": f"{_percent(result['flip_rate'])} of the rows, which then count as equal",
            "longer won": f"{_percent(result['length_bias'])} of the rows with a winner",
        }
    lines["scored"] = f"{result['scored']:,} rows, unscored {result['unscored']:,}"
    table = Table.grid(padding=(0, 2))
    table.add_row("judge", plain(printable(f"{result['model']} at {result['base_url']}")))
    for name, text in lines.items():
        table.add_row(name, text)
    out.print(table)
    key = "score" if result["mode"] == "score" else "winner"
    unscored = [(at, row) for at, row in enumerate(result["rows"]) if row[key] is None]
    for at, row in unscored[:_UNSCORED]:
        said = row.get("failure") or " | ".join(_replies(row))
        shown = f"row {at} has no {key}: {one_line(printable(said))[:_REPLY] or '(empty reply)'}"
        out.print(f"  [yellow]{escape(shown)}[/]")
    out.print(f"\n{escape(str(folder / 'judge.json'))} holds every reply.")


_UNSCORED, _REPLY = 3, 160  # rows that are shown, and characters of what came for each


def _replies(row: Mapping[str, Any]) -> Iterator[str]:
    """The replies of a row, of both orders."""
    for reply in row["replies"]:
        yield from [reply] if isinstance(reply, str) else reply


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def print_options(described: dict[str, dict[str, str]]) -> None:
    """{group: {option: what it is}} as a table, on stdout."""
    table = Table.grid(padding=(0, 2))
    for group, options in described.items():
        table.add_row(f"[bold]{group}[/]", "")
        for name, text in options.items():
            table.add_row(f"  {name}", plain(text))
    Console(highlight=False).print(table)
