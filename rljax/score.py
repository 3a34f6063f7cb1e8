"""``rljax score FILE``: the rewards and the length policy of a config, of responses in a file.

The responses may be anybody's: of ``rljax samples`` or ``rljax eval``, or logged by a server.
"""

import functools
from pathlib import Path
from typing import Any

from rich.progress import track

from rljax.config import Config, load_config, resolved
from rljax.config_file import builtin_config
from rljax.data import Responses, Rows, find_responses, read_rows
from rljax.errors import UserError
from rljax.health import SIGNS, judge
from rljax.host.files import write_whole
from rljax.host.metrics import json_text
from rljax.host.samples import REWARD, write_table
from rljax.host.secrets import redacted, refuse_placeholders, say
from rljax.host.terminal import Terminal
from rljax.launch import DEFAULT_CONFIG, enough_threads, use_compilation_cache
from rljax.options import score_options
from rljax.replay import encode
from rljax.scoring import (
    Judging,
    beside_heldout,
    first_state,
    make_judging,
    newest_state,
)
from rljax.scoring import judge as judge_responses
from rljax.types import State

JUDGED = ("length_tokens", "length_verdict", "correct", "reward_raw", "shaping", "reward_shaped")
FORMATS = (".parquet", ".jsonl")
SHOWN = 4  # responses on a terminal


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 for anything that the user can put right."""
    options = score_options().parse_intermixed_args(arguments)
    enough_threads()
    try:
        score(**vars(options))
    except UserError as error:
        say(f"error: {error}")
        return 2
    return 0


def score(
    file: Path,
    settings: list[str],
    *,
    config: Path | None,
    out: Path | None,
    response_column: str | None,
) -> None:
    """Judges the responses of a file, shows the figures, and writes every response to ``out``."""
    if out is not None and out.suffix not in FORMATS:
        raise UserError(f"--out: {out} is neither {' nor '.join(FORMATS)}")
    if not file.exists():
        raise UserError(f"{file}: no such file")
    if config is not None and not config.exists():
        raise UserError(f"--config: {config} is neither a config file nor the folder of a run")
    terminal = Terminal()
    path, loaded, run = _config(config, settings)
    rows = read_rows(str(file))
    responses = find_responses(rows, response_column, leave=_judged(rows))
    terminal.say("responses", responses.note, text=responses.note)
    use_compilation_cache()
    judging = make_judging(loaded)
    responses = _with_data(judging, path.parent, responses, terminal)
    for name in judging.left_out:
        text = f"shaping.{name} is left out: it needs the reference policy"
        terminal.say("left out", text, stage=name, text=text)
    state = _state(judging, run, terminal)
    encoded, notes = encode(
        responses,
        judging.tokenizer,
        columns=loaded.data.columns,
        chat_template=loaded.data.chat_template,
        eos_ids=judging.eos_ids,
    )
    for note in notes:
        terminal.say("column", note, text=note)
    progress = functools.partial(track, description="scoring", console=terminal.console)
    figures, judged = judge_responses(
        judging,
        encoded,
        state,
        report=lambda line: terminal.say("reward", line, text=line),
        progress=functools.partial(progress, disable=not terminal.rich, transient=True),
    )
    told = _in_the_words_of_the_file(judged, responses)
    if out is not None:
        _write(out, told)
    terminal.figures(figures, f"{file}, by {config or DEFAULT_CONFIG}")
    _say_health(figures, terminal)
    terminal.samples(told[:SHOWN], "the first of them")
    text = f"{len(told):,} responses scored" + (f"; see {out}" if out else "")
    terminal.say("done", text, figures=figures)


def _config(where: Path | None, settings: list[str]) -> tuple[Path, Config, Path | None]:
    """The file of a config, what it says, and the run that it is of."""
    if where is None:
        path = builtin_config(DEFAULT_CONFIG)
    elif where.is_dir():
        path = where / "config.yaml"
        if not path.exists():
            raise UserError(f"--config: {where} is no run folder: it holds no config.yaml")
    else:
        path = where
    config = load_config(path, settings)
    run = where if where is not None and where.is_dir() else None
    if run is not None:
        refuse_placeholders(resolved(config))
    return path, config, run


def _judged(rows: Rows) -> set[str]:
    """The columns that an earlier judgement has left, and that are no data."""
    there = {name for row in rows.rows for name in row}
    if "reward_raw" not in there:
        return set()
    return {name for name in there if name.startswith(REWARD)} | {*JUDGED}


def _with_data(
    judging: Judging, config_dir: Path, responses: Responses, terminal: Terminal
) -> Responses:
    """Responses with what the held-out rows have beside the prompts, if they answer these."""
    try:
        found = beside_heldout(judging, config_dir, responses)
    except UserError as error:
        terminal.say("no data", f"the held-out rows cannot be read: {error}", text=str(error))
        return responses
    if found is None:
        return responses
    columns = [name for name in found.rows.rows[0] if name not in responses.rows.rows[0]]
    if columns:
        text = f"from data.eval, by prompt_index: {', '.join(columns)}"
        terminal.say("data", text, text=text)
    return found


def _state(judging: Judging, run: Path | None, terminal: Terminal) -> State:
    """What the stages of shaping have learned so far, which is said."""
    text = "shaping is that which training begins with"
    if run is not None:
        try:
            state, step = newest_state(judging, run)
            text = f"shaping is that of {run} at step {step}"
            terminal.say("shaping", text, text=text)
            return state
        except UserError as error:
            text += f" ({error})"
    terminal.say("shaping", text, text=text)
    return first_state(judging)


def _in_the_words_of_the_file(
    rows: list[dict[str, Any]], responses: Responses
) -> list[dict[str, Any]]:
    """Rows with the texts of the file, and what it says of where they come from."""
    told = []
    groups = responses.groups()
    for index, row in enumerate(rows):
        place = {"prompt_index": groups[index]} | responses.places[index]
        prompt = responses.rows.rows[index]["prompt"]
        words = {"response": responses.texts[index]}
        words |= {"prompt": prompt} if isinstance(prompt, str) else {}
        told.append(place | row | words | {"greedy": responses.greedy[index]})
    if not any(responses.greedy):
        told = [{name: x for name, x in row.items() if name != "greedy"} for row in told]
    return told


def _say_health(figures: dict[str, float], terminal: Terminal) -> None:
    for sign in SIGNS:
        found = judge(sign, figures)
        if found is None:
            continue
        why = {"low": f": {sign.below}", "high": f": {sign.above}"}.get(found, "")
        text = f"{found:<7}  {sign.metric} {figures[sign.metric]:.3g}{why}"
        terminal.say("health", text, metric=sign.metric, value=figures[sign.metric], health=found)


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".parquet":
            write_table(out, rows)
        else:
            lines = redacted(rows, by_looks=False)
            write_whole(out, "".join(f"{json_text(line)}\n" for line in lines))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error
