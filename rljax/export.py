"""``rljax export RUN``: a model of a run, from its checkpoint to a Hugging Face folder."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from rljax import resolve
from rljax.config import Config, load_config
from rljax.errors import UserError
from rljax.host.checkpoint import restore_parts
from rljax.host.export import export_adapters, export_model, model_card
from rljax.host.metrics import read_records
from rljax.host.secrets import redact, say
from rljax.host.steps import FROZEN
from rljax.models.lora import merge_lora
from rljax.objective import context_of, make_algorithm, make_shaper, networks_of
from rljax.options import DTYPES, export_options
from rljax.roles import Networks, Trees
from rljax.sampling import make_sampler
from rljax.sharding import make_mesh, param_shardings
from rljax.tokens import read_tokenizer
from rljax.trees import role_params


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0, or 2 for anything that the user can put right."""
    options = export_options().parse_args(arguments)
    try:
        role, step = export_run(**vars(options))
    except UserError as error:
        say(f"error: {error}")
        return 2
    print(redact(f"exported the {role} of step {step} to {options.to}"))
    return 0


def export_run(
    run: Path,
    *,
    to: Path,
    step: int | None,
    best: bool = False,
    role: str | None,
    dtype: str | None,
    merge: bool,
) -> tuple[str, int]:
    """Exports from a checkpoint of a run; returns the role and the step."""
    restored = restore_role(run, step=step, best=best, role=role, mesh=make_mesh(data=1, fsdp=-1))
    export_role(
        to,
        restored.trees,
        restored.networks,
        restored.config,
        restored.tokenizer,
        eos_ids=restored.eos_ids,
        role=restored.role,
        dtype=dtype,
        merge=merge,
        details=run_details(run, restored.step),
    )
    return restored.role, restored.step


class Restored(NamedTuple):
    """A network of a run, from a checkpoint."""

    config: Config
    networks: Networks
    role: str
    trees: Trees  # that the role is made of
    step: int
    tokenizer: Any
    eos_ids: tuple[int, ...]


def restore_role(
    run: Path, *, step: int | None, best: bool, role: str | None, mesh: Mesh
) -> Restored:
    """Reads a role, by default what was trained, and no more, of a checkpoint of a run.

    Raises ``UserError`` if the run has no such role or checkpoint.
    """
    path = run / "config.yaml"
    if not os.path.exists(path):
        raise UserError(f"{run} is no run folder: it holds no config.yaml")
    config = load_config(path, [])
    tokenizer, eos_ids = read_tokenizer(config)
    context = context_of(config, tokenizer) | {"train_prompts": 1}  # however many
    algorithm = make_algorithm(config, context)
    networks = networks_of(config, context, algorithm, make_shaper(config, algorithm, context))
    role = role or algorithm.trains
    if role not in networks.roles:
        raise UserError(f"--role {role}: the run has {', '.join(networks.roles)}")
    params, frozen = _wanted(networks, role, mesh)
    folder = checkpoints_of(run, best=best)
    step, parts = restore_parts(
        folder, step, {"params": params}, frozen, run / "checkpoints" / FROZEN
    )
    return Restored(
        config,
        networks,
        role,
        parts["frozen"] | parts["params"],
        step,
        tokenizer,
        tuple(config.sampling.get("eos_ids", eos_ids)),
    )


def checkpoints_of(run: Path, *, best: bool) -> Path:
    """Where the checkpoints of a run lie, or its best one."""
    folder = run / ("best" if best else "checkpoints")
    if best and not folder.exists():
        raise UserError(f"--best: {run} kept no best checkpoint; evaluation.best named no figure")
    return folder


def export_role(
    folder: Path,
    trees: Trees,
    networks: Networks,
    config: Config,
    tokenizer,
    *,
    eos_ids: tuple[int, ...],
    role: str,
    dtype: str | None = None,
    merge: bool = False,
    details: dict[str, Any],
) -> None:
    """Exports a role from the trees of a state.

    A policy's adapters are written in PEFT's layout, unless they are to be merged.

    Args:
      dtype: of the weights; by default that of the folder they came from, else float32.
      details: what the model card tells.
    """
    source = networks.sources[role]
    adapters = role == "policy" and source.lora is not None and not merge
    if merge and source.lora is None:
        raise UserError(f"--merge: the {role} has no adapters")
    if adapters and dtype is not None:
        raise UserError("--dtype: adapters are float32; with --merge it is the whole model's")
    card = model_card(source.name, {"role": role, **details})
    if adapters:
        export_adapters(
            folder,
            trees["policy"],
            source.architecture,
            source.lora,
            tokenizer,
            base=source.name or "",
            card=card,
        )
        return
    params = role_params(networks.roles[role], trees)
    if source.lora is not None:
        params = merge_lora(params, source.lora)
    drawing = resolve.defaults(make_sampler) | config.sampling
    stored = str(source.architecture.hf.dtype).removeprefix("torch.")
    export_model(
        folder,
        params,
        source.architecture,
        "lm" if role == "policy" else "value",
        tokenizer,
        dtype=dtype or (stored if stored in DTYPES else "float32"),
        eos_ids=eos_ids,
        sampling={name: drawing[name] for name in ("temperature", "top_k", "top_p", "min_p")},
        card=card,
    )


def run_details(run: Path, step: int) -> dict[str, Any]:
    """What a model card tells of a run: its step, and the last evaluation up to it."""
    records = [r for r in read_records(run / "evaluations.jsonl") if r["step"] <= step]
    figures = records[-1] if records else {}
    return {"step": step} | {k: f"{v:.4g}" for k, v in figures.items() if k != "step"}


def _wanted(networks: Networks, role: str, mesh: Mesh) -> tuple[Trees, Trees]:
    """Shapes and shardings of the trees that a role is made of: those trained, those frozen."""
    starts = {name: start.abstract for name, start in networks.starts.items()}
    params, frozen = jax.eval_shape(networks.begin, starts, jax.random.key(0))

    def laid_out(name: str, tree):
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            tree,
            param_shardings(networks.trees[name].axes, tree, mesh),
        )

    needed = networks.roles[role].trees

    def of_role(trees: Trees) -> Trees:
        return {name: laid_out(name, tree) for name, tree in trees.items() if name in needed}

    return of_role(params), of_role(frozen)
