"""From YAML and ``key=value`` overrides to a checked configuration."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from rljax import algorithms, resolve, rewards, shaping
from rljax.config_file import read_config_file
from rljax.errors import UserError, nearest
from rljax.host.pretrained import pretrained
from rljax.lengths import check_band
from rljax.losses import make_correction
from rljax.models import DecoderConfig, families
from rljax.models.lora import make_lora
from rljax.sampling import QUANTIZED, make_sampler
from rljax.sharding import make_mesh
from rljax.train import adamw, make_update

Node = str | dict[str, Any]  # a function by name, with its keywords
Source = Node  # likewise, or a file, folder or hub id; {source: …} with settings of its own
MODEL_OPTIONS = {  # beside a model's own keywords
    "lora": None,
    "param_dtype": "float32",
    "offload": False,
    "attention": DecoderConfig.attention,
    "vocab_at_once": DecoderConfig.vocab_at_once,
}
Limit = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[float, pydantic.Field(gt=0, lt=1e8)]  # in seconds
OF_POLICY, SHARED = "policy", "shared"  # in place of a model: the policy's weights, or its trunk


# More is a mistake, which would fill the memory, or overflow the counters of a state.
Steps = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
BatchSize = Annotated[int, pydantic.Field(gt=0, le=2**17)]
Tokens = Annotated[int, pydantic.Field(gt=0, le=2**24)]


class Section(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Models(Section):
    """Each names a function with the sizes of a model, or a Hugging Face folder or hub id."""

    policy: Node | None = None  # null only where a reward model is trained
    value: Node = OF_POLICY  # its trunk, copied, under a new head; or "shared"
    reference: Node = OF_POLICY  # as it is when training starts
    reward: Node | None = None
    teacher: Node | None = None  # whom a distilled policy imitates


class Data(Section):
    """Rows of prompts, demonstrations, pairs or labelled responses, as the algorithm asks."""

    train: Source | list[Source]  # several are mixed, by the weight of each
    eval: Source | list[Source] | None = None  # held out
    prompts_per_step: BatchSize | None = None  # where the policy samples
    batch_size: BatchSize | None = None  # where rows are given: rows, pairs or packs
    max_prompt_tokens: Tokens | None = None
    max_tokens: Tokens | None = None  # of a given row, prompt and response
    overlong: Literal["refuse", "drop", "truncate"] = "refuse"  # rows beyond these
    columns: dict[str, str] = {}  # ours: theirs, where a source's names say nothing
    packing: bool = False  # demonstrations end to end, in rows of max_tokens
    buckets: BatchSize = 1  # of row lengths, each padded to its longest
    reference_ahead: bool = False  # its log-probs are computed once, before training
    chat_template: dict[str, Any] = {}  # what the tokenizer's chat template takes beside messages


class LengthPolicy(Section):
    """The band, in tokens, that training, evaluation and plots judge a response by."""

    min_tokens: pydantic.NonNegativeInt
    max_tokens: pydantic.NonNegativeInt


class WarmStart(Section):
    """Supervised training on demonstrations, before reinforcement learning."""

    data: Source
    steps: Steps = pydantic.Field(gt=0)
    batch_size: BatchSize
    buckets: BatchSize = 1
    optimizer: dict[str, Any]


class Evaluation(Section):
    prompts: pydantic.PositiveInt = 256  # at most; those that the data has
    prompts_at_once: pydantic.PositiveInt | None = None  # null: all
    every_steps: pydantic.NonNegativeInt = 0  # 0: only before and after
    samples_per_prompt: BatchSize = 1  # beside the greedy response
    sampling: dict[str, Any] = {}  # over the settings of training
    samples: pydantic.PositiveInt | None = None  # prompts whose responses are written; null: all
    best: str | None = None  # the figure that says which checkpoint is the best one; it is kept
    best_is: Literal["max", "min"] | None = None  # null: min for a loss or an nll, else max
    patience: pydantic.PositiveInt | None = None  # evaluations without a better one end the run

    @property
    def direction(self) -> Literal["max", "min"]:
        """Which values of ``best`` are better."""
        falls = (self.best or "").split("/")[-1] in ("loss", "nll")
        return self.best_is or ("min" if falls else "max")


class Guarding(Section):
    """When an update is left out beside those that are not finite, and when the run is to stop."""

    max_skipped: pydantic.PositiveInt | None = 5  # steps in a row that lack one; null: however many
    max_kl: Limit | None = None  # nats per token from the sampling policy, k3
    max_grad_norm: Limit | None = None  # of any trained role, before it is clipped
    on_divergence: Literal["skip", "stop", "roll_back"] = "skip"  # an update beyond a limit


class Checkpointing(Section):
    every_steps: pydantic.PositiveInt = 20
    keep: pydantic.PositiveInt = 2


class MLflow(Section):
    experiment: str = "rljax"
    tracking_uri: str | None = None  # null: as MLflow itself finds it
    run_name: str | None = None  # null: the name of the run's folder


class Prometheus(Section):
    port: Annotated[int, pydantic.Field(ge=0, lt=2**16)] = 9400  # 0: a free one
    host: str = "127.0.0.1"  # which only this machine reaches


class Metrics(Section):
    """Where metrics go beside the terminal and metrics.jsonl."""

    tensorboard: bool | str | None = None  # true: in the run's folder; or a folder of several runs
    wandb: dict[str, Any] | None = None  # keywords of wandb.init
    mlflow: MLflow | None = None
    prometheus: Prometheus | None = None

    @pydantic.field_validator("tensorboard", mode="before")
    @classmethod
    def _flag_or_folder(cls, value):
        if not isinstance(value, bool | str | None):
            raise ValueError("true is expected, or a folder")
        return value


class Callbacks(Section):
    """The user's own functions that are told of a run, as my_module:my_function."""

    on_step: Node | list[Node] | None = None  # (step, metrics)
    on_eval: Node | list[Node] | None = None  # (step, figures, samples)
    on_save: Node | list[Node] | None = None  # (step, path)


class Config(Section):
    steps: Steps | None = None
    epochs: pydantic.PositiveFloat | None = None  # over data.train, in place of steps
    seed: int = pydantic.Field(0, ge=0, lt=2**31)
    run_dir: str | None = None  # null: a new folder under runs/
    time_limit: Duration | None = None  # of one start: 90m, 12:00:00, or seconds
    mesh: dict[str, Any] = {}
    models: Models
    tokenizer: Node | None = None  # null: the policy's own
    data: Data
    sampling: dict[str, Any] = {}
    length: LengthPolicy | None = None
    rewards: dict[str, Node] = {}
    reward_weights: dict[str, pydantic.FiniteFloat] = {}
    shaping: dict[str, Node | None] | None = None
    algorithm: Node
    update: dict[str, Any] = {}
    correction: dict[str, Any] | None = None  # null: sampled tokens are taken as the policy's own
    staleness: Annotated[int, pydantic.Field(ge=0, le=1)] = 0  # updates that the sampler is behind
    halves: bool = False  # where the host gives rewards: of one half, as the other is sampled
    optimizer: dict[str, dict[str, Any]]
    warm_start: WarmStart | None = None
    guard: Guarding = Guarding()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpointing = Checkpointing()
    metrics: Metrics = Metrics()
    callbacks: Callbacks = Callbacks()

    @pydantic.field_validator(
        "mesh", "sampling", "rewards", "reward_weights", "update", "optimizer", mode="before"
    )
    @classmethod
    def _none(cls, value):
        """Null takes away what the config extended has."""
        if value is None:
            return {}
        if isinstance(value, dict):
            return {name: given for name, given in value.items() if given is not None}
        return value

    @pydantic.field_validator("time_limit", mode="before")
    @classmethod
    def _seconds(cls, value):
        return seconds(str(value)) if isinstance(value, str | bool) else value

    @pydantic.field_validator("shaping", mode="before")
    @classmethod
    def _off(cls, value):
        if isinstance(value, dict):  # YAML reads `off` as false
            return {name: None if node is False else node for name, node in value.items()}
        return None if value is False else value

    @property
    def rollout_correction(self) -> dict[str, Any] | None:
        """The correction, which a rollout that is stale, or quantised, always has."""
        another = self.staleness or any(self.sampling.get(name) for name in QUANTIZED)
        return {} if another and self.correction is None else self.correction

    def shaping_stages(self) -> dict[str, Node]:
        return {name: node for name, node in (self.shaping or {}).items() if node is not None}


def seconds(text: str) -> float:
    """A duration as Slurm or a person writes it. Raises ``ValueError`` if it is none.

    >>> seconds("90m"), seconds("1-12:00:00"), seconds("00:30:00"), seconds("45")
    (5400.0, 129600.0, 1800.0, 45.0)
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text):
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]
    if found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    raise ValueError("a duration is seconds, or such as 90m, 12h, 12:00:00 or 1-12:00:00")


def load_config(path: Path, overrides: list[str]) -> Config:
    """Reads a YAML file, applies ``key.path=value`` overrides, and checks names and types.

    A file may begin with ``extends: other.yaml``, beside it: what it says is laid over the other.

    Raises ``UserError`` for whatever is wrong, with the valid or the nearest names.
    """
    tree = read_config_file(path, overrides)
    try:
        config = Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error)) from error
    if config.length is not None:
        check_band(config.length.min_tokens, config.length.max_tokens)
    if config.steps is None and config.epochs is None:
        raise UserError('the config lacks "steps", or else "epochs"')
    if config.steps is not None and config.epochs is not None:
        raise UserError("steps and epochs both say how long to train; set one of them to null")
    return config


def resolved(config: Config) -> dict[str, Any]:
    """The configuration as plain data, every default written out."""
    tree = config.model_dump(mode="json")

    tree["mesh"] = resolve.defaults(make_mesh) | config.mesh
    if isinstance(config.tokenizer, str):
        tree["tokenizer"] = from_anywhere(config.tokenizer)
    if config.sampling:
        tree["sampling"] = resolve.defaults(make_sampler) | config.sampling
    tree["update"] = resolve.defaults(make_update) | config.update
    tree["models"] = {
        role: _explicit_model(node, f"models.{role}")
        for role, node in config.models
        if node is not None
    }
    tree["algorithm"] = resolve.explicit(config.algorithm, algorithms, "algorithm", nested=shaping)
    tree["rewards"] = {
        name: resolve.explicit(node, rewards, f"rewards.{name}")
        for name, node in config.rewards.items()
    }
    tree["shaping"] = {
        name: resolve.explicit(node, shaping, f"shaping.{name}")
        for name, node in config.shaping_stages().items()
    }
    if config.rollout_correction is not None:
        tree["correction"] = resolve.defaults(make_correction) | config.rollout_correction
    tree["optimizer"] = {
        role: resolve.defaults(adamw) | given for role, given in config.optimizer.items()
    }
    if config.warm_start:
        tree["warm_start"]["optimizer"] = resolve.defaults(adamw) | config.warm_start.optimizer
    return tree


def is_function(model: str) -> bool:
    """Whether the name of a model is a function's, and not a folder's or a hub id."""
    return model in families.__all__ or ":" in model


def from_anywhere(name: str) -> str:
    """The whole path of a folder, so that a run's config finds it from anywhere; else the name."""
    folder = os.path.expanduser(name)
    return os.path.realpath(folder) if os.path.isdir(folder) else name


def _explicit_model(node: Node, where: str) -> Node:
    name, given = resolve.split(node, where)
    if isinstance(given.get("lora"), dict):
        given["lora"] = resolve.defaults(make_lora) | given["lora"]
    if name in (OF_POLICY, SHARED):
        return {"fn": name, **given} if given else name
    name = from_anywhere(name)
    if is_function(name):
        return MODEL_OPTIONS | resolve.explicit({"fn": name, **given}, families, where)
    return {"fn": name, **resolve.defaults(pretrained), **MODEL_OPTIONS, **given}


def _explain(error: pydantic.ValidationError) -> str:
    """The first fault of a config, in one line."""
    fault = error.errors()[0]
    # Of a key that may be several things, the location names the branch as well.
    branches = ("str", "dict[str,any]", "list[union[str,dict[str,any]]]")
    *parents, last = (str(part) for part in fault["loc"] if part not in branches)
    where = ".".join([*parents, last])
    if len(parents) + 1 < len(fault["loc"]):
        return f"{where}: expected a name or {{fn: name, ...}}, got {fault['input']!r}"
    if fault["type"] in ("model_type", "dict_type"):
        return f"{where}: expected keys with values, got {fault['input']!r}"
    if fault["type"] == "extra_forbidden":
        section = Config
        for name in parents:
            section = _section_of(section.model_fields[name].annotation)
        return f'unknown key "{where}"; {nearest(last, section.model_fields)}'
    if fault["type"] == "missing":
        return f'the config lacks "{where}"'
    return f"{where}: {fault['msg'].lower().removeprefix('value error, ')}, got {fault['input']!r}"


def _section_of(annotation) -> type[Section]:
    options = getattr(annotation, "__args__", (annotation,))
    return next(o for o in options if isinstance(o, type) and issubclass(o, Section))
