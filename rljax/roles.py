"""From the config's models to roles: which network plays which part, and how each begins.

Every role's parameters are trees of the TrainState. Most have one of their own; adapters lie over
a frozen base, which the reference may share, and a value head may lie over the policy's trunk.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import PRNGKeyArray, PyTree

from rljax import resolve
from rljax.config import MODEL_OPTIONS, OF_POLICY, SHARED, Models, Node, from_anywhere, is_function
from rljax.errors import UserError, nearest
from rljax.host.pretrained import find_folder, pretrained
from rljax.models import Architecture, LoRA, decoder, families
from rljax.models.hf import Tensor, tensors_of
from rljax.models.lora import is_adapter, make_lora
from rljax.sharding import OnHost
from rljax.trees import select
from rljax.types import Model, Params, Role

Head = Literal["lm", "value"]
Trees = dict[str, Params]


class Source(NamedTuple):
    """What a model is, and where its weights come from."""

    architecture: Architecture
    folder: Path | None = None  # None: drawn at random
    name: str | None = None  # the folder or hub id, as the config has it
    head: Head = "lm"  # that the folder has
    lora: LoRA | None = None
    param_dtype: str = "float32"  # of what is frozen; what is trained is float32
    max_tokens: int | None = None  # of a row in a reward model's own tokens
    offload: bool = False  # what is frozen waits in the host's memory

    def model(self, head: Head, lora: LoRA | None = None) -> Model:
        return decoder(dataclasses.replace(self.architecture.decoder, lora=lora), head)


class Start(NamedTuple):
    """Parameters that a run begins with: read from a folder, or drawn."""

    source: Source
    model: Model
    abstract: Params  # shapes and types
    axes: PyTree  # logical

    def tensors(self) -> list[Tensor]:
        """Those of its folder."""
        decoder, hf = self.source.architecture
        return tensors_of(self.abstract, decoder, hf.model_type)


class Tree(NamedTuple):
    """A tree of the TrainState."""

    trained: bool
    axes: PyTree  # logical
    dtype: str
    make: Callable[[Trees, PRNGKeyArray], Params]  # from the starts and a key


class Networks(NamedTuple):
    """The roles of a run, and what they begin with."""

    roles: dict[str, Role]
    sources: dict[str, Source]  # by role
    starts: dict[str, Start]
    trees: dict[str, Tree]

    def begin(self, starts: Trees, key: PRNGKeyArray) -> tuple[Trees, Trees]:
        """The trees that are trained, and those that are not."""
        made = {}
        for number, (name, tree) in enumerate(self.trees.items()):
            params = tree.make(starts, jax.random.fold_in(key, number))
            made[name] = jax.tree.map(lambda x, dtype=tree.dtype: x.astype(dtype), params)
        trained = {name for name, tree in self.trees.items() if tree.trained}
        return (
            {name: tree for name, tree in made.items() if name in trained},
            {name: tree for name, tree in made.items() if name not in trained},
        )


def make_networks(
    models: Models,
    context: Mapping[str, Any],
    *,
    trains: Literal["policy", "reward"] = "policy",
    needs_value: bool = False,
    needs_reference: bool = False,
    needs_teacher: bool = False,
) -> Networks:
    """Roles, sources, starts and trees for the models of a config.

    ``context`` fills what a model's function asks for, such as ``vocab_size``. Raises ``UserError``
    for a model that cannot be had, that nothing would read, or that cannot play its role.
    """
    made = Networks({}, {}, {}, {})
    main = getattr(models, trains)
    if main is None:
        raise UserError(f'the config lacks "models.{trains}"')
    if trains == "policy":
        _policy(made, read_source(main, "models.policy", context))
    elif models.policy is not None:
        raise UserError("models.policy: a reward model is trained here, and nothing reads a policy")
    if needs_reference:
        _reference(made, models.reference, context)
    elif models.reference != OF_POLICY:
        raise UserError("models.reference: nothing here compares the policy with a reference")
    if needs_value:
        _value(made, models.value, context)
    elif models.value != OF_POLICY:
        raise UserError("models.value: the algorithm has no value model")
    if needs_teacher:
        _teacher(made, models.teacher, context)
    elif models.teacher is not None:
        raise UserError("models.teacher: the algorithm has no teacher; distill has one")
    if trains == "reward":
        source = read_source(main, "models.reward", context)
        _scorer(made, "reward", source, "reward")
    elif models.reward is not None:
        _reward(made, models.reward, context)
    return made


def read_source(node: Node, where: str, context: Mapping[str, Any]) -> Source:
    """The model that a node names: a family's function with its sizes, your own, a folder, or a
    hub id."""
    name, given = resolve.split(node, where)
    options = MODEL_OPTIONS | {key: given.pop(key) for key in MODEL_OPTIONS if key in given}
    param_dtype, offload = _param_dtype(options, where), _offload(options, where)
    if is_function(name):
        architecture = resolve.call({"fn": name, **given}, families, context=context, where=where)
        if not isinstance(architecture, Architecture):
            raise UserError(f"{where}: must give an Architecture, gave {type(architecture)}")
        source = Source(architecture)
    else:
        folder = find_model_folder(name, where)
        _only(given, tuple(resolve.defaults(pretrained)), where, *MODEL_OPTIONS)
        keywords = resolve.arguments(pretrained, given, context={}, where=where, open_positionals=1)
        try:
            found = pretrained(folder, **keywords)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        source = Source(found.architecture, found.folder, from_anywhere(name), found.head)
    source = source._replace(param_dtype=param_dtype, offload=offload)
    if source.head == "value" and options["vocab_at_once"] != MODEL_OPTIONS["vocab_at_once"]:
        raise UserError(f"{where}.vocab_at_once: its head has no vocabulary")
    source = _run_as(source, options["attention"], options["vocab_at_once"], where)
    return source._replace(lora=_lora(source, options["lora"], where))


def _run_as(source: Source, attention: Any, vocab_at_once: Any, where: str) -> Source:
    """The source with the options that say how its decoder runs."""
    if attention not in ("auto", "plain"):
        raise UserError(f"{where}.attention: auto or plain, got {attention!r}")
    if type(vocab_at_once) is not int or vocab_at_once < 1:
        raise UserError(f"{where}.vocab_at_once: a number above 0 is needed, got {vocab_at_once!r}")
    decoder = dataclasses.replace(
        source.architecture.decoder, attention=attention, vocab_at_once=vocab_at_once
    )
    return source._replace(architecture=source.architecture._replace(decoder=decoder))


def _offload(options: Mapping[str, Any], where: str) -> bool:
    offload = options.get("offload", MODEL_OPTIONS["offload"])
    if not isinstance(offload, bool):
        raise UserError(f"{where}.offload: true or false, got {offload!r}")
    return offload


def _param_dtype(given: Mapping[str, Any], where: str) -> str:
    dtype = given.get("param_dtype", MODEL_OPTIONS["param_dtype"])
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"{where}.param_dtype: float32 or bfloat16, got {dtype!r}")
    return dtype


def find_model_folder(name: str, where: str) -> Path:
    """A local folder, or the local copy of a hub id. Raises ``UserError`` if there is neither."""
    if "/" not in name and not os.path.isdir(name):
        words = {"models.value": (OF_POLICY, SHARED), "models.reference": (OF_POLICY,)}
        hint = nearest(name, [*families.__all__, *words.get(where, ())])
        raise UserError(f'{where}: "{name}" is no folder here, no hub id, and no function; {hint}')
    return find_folder(name, where)


def _lora(source: Source, given: Any, where: str) -> LoRA | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise UserError(f"{where}.lora: expected keys, such as {{rank: 16}}, got {given!r}")
    keywords = resolve.arguments(
        make_lora, given, context={}, where=f"{where}.lora", open_positionals=2
    )
    try:
        return make_lora(source.architecture.decoder, source.architecture.hf.model_type, **keywords)
    except UserError as error:
        raise UserError(f"{where}.{error}") from error


def _start(made: Networks, name: str, source: Source, head: Head, dtype: str) -> None:
    """Notes what is read or drawn for a role, at ``dtype``."""
    model = source.model(head)
    abstract, axes = jax.eval_shape(model.init, jax.random.key(0)), model.axes
    if source.folder is not None and source.head != head:  # only the trunk is there
        abstract, axes = _trunk(abstract), _trunk(axes)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), abstract)
    made.starts[name] = Start(source, model, abstract, axes)


def _trunk(tree: PyTree) -> PyTree:
    return {name: entry for name, entry in tree.items() if name != "head"}


def _trained_dtype(source: Source, where: str) -> str:
    """Of the weights that are read: of a frozen base if there are adapters, else of what is
    trained."""
    if source.lora is None and source.param_dtype != "float32":
        raise UserError(f"{where}.param_dtype: what is trained is float32; it is for what is not")
    if source.offload:
        raise UserError(f"{where}.offload: what is trained stays on the devices")
    return source.param_dtype


def _frozen(made: Networks, role: str, source: Source, model: Model, start: str) -> None:
    """Notes a role whose network is a tree of its own that is never trained."""
    axes = OnHost(model.axes) if source.offload else model.axes
    made.trees[role] = Tree(False, axes, source.param_dtype, lambda starts, key: starts[start])
    made.roles[role] = Role(model, (role,), source.offload)


def _adapters(model: Model) -> tuple[PyTree, Callable[[PRNGKeyArray], Params]]:
    """The axes of a model's adapters, and how they are drawn."""
    axes = select(model.axes, is_adapter)
    return axes, lambda key: select(model.init(key), is_adapter)


def _policy(made: Networks, source: Source) -> None:
    if source.head != "lm":
        raise UserError(f"models.policy: {source.folder} has no language-model head")
    dtype = _trained_dtype(source, "models.policy")
    made.sources["policy"] = source
    _start(made, "policy", source, "lm", dtype)
    model = source.model("lm", source.lora)
    if source.lora is None:
        made.trees["policy"] = Tree(True, model.axes, dtype, lambda starts, key: starts["policy"])
        made.roles["policy"] = Role(model, ("policy",))
        return
    axes, draw = _adapters(model)
    base = source.model("lm").axes
    made.trees["policy_base"] = Tree(False, base, dtype, lambda starts, key: starts["policy"])
    made.trees["policy"] = Tree(True, axes, "float32", lambda starts, key: draw(key))
    made.roles["policy"] = Role(model, ("policy_base", "policy"))


def _reference(made: Networks, node: Node, context) -> None:
    """By default the starting policy: a copy of it, or the base under its adapters."""
    name, given = resolve.split(node, "models.reference")
    policy = made.sources["policy"]
    if name == OF_POLICY:
        _only(given, ("param_dtype", "offload"), "models.reference")
        dtype, offload = (read(given, "models.reference") for read in (_param_dtype, _offload))
        source = policy._replace(param_dtype=dtype, offload=offload, lora=None)
        start = "policy"
        if policy.lora is not None:
            if given:
                raise UserError("models.reference: it is the base under the policy's adapters")
            made.roles["reference"] = Role(source.model("lm"), ("policy_base",))
            return
    else:
        source, start = _frozen_lm(made, "reference", node, context), "reference"
    _frozen(made, "reference", source, source.model("lm"), start)


def _teacher(made: Networks, node: Node | None, context) -> None:
    if node is None:
        raise UserError('the config lacks "models.teacher", whom the policy is to imitate')
    source = _frozen_lm(made, "teacher", node, context)
    _frozen(made, "teacher", source, source.model("lm"), "teacher")


def _frozen_lm(made: Networks, role: str, node: Node, context) -> Source:
    """A language model of its own that is never trained."""
    source = read_source(node, f"models.{role}", context)
    if source.lora is not None:
        raise UserError(f"models.{role}: it is never trained, so that it takes no lora")
    if source.head != "lm":
        raise UserError(f"models.{role}: {source.name} has no language-model head")
    _start(made, role, source, "lm", source.param_dtype)
    made.sources[role] = source
    return source


def _value(made: Networks, node: Node, context) -> None:
    """By default the policy's trunk, copied, under a new head; or a head on the very trunk."""
    name, given = resolve.split(node, "models.value")
    policy = made.sources["policy"]
    if name == SHARED:
        _only(given, (), "models.value")
        model = policy.model("value", policy.lora)
        axes = {"head": model.axes["head"]}
        made.trees["value"] = Tree(
            True, axes, "float32", lambda starts, key: {"head": model.init(key)["head"]}
        )
        made.roles["value"] = Role(model, (*made.roles["policy"].trees, "value"))
        made.sources["value"] = policy
        return
    if name == OF_POLICY:
        _only(given, ("lora", "param_dtype"), "models.value")
        source, start = policy, "policy"
        source = source._replace(
            lora=_lora(source, given.get("lora"), "models.value"),
            param_dtype=_param_dtype(given, "models.value"),
        )
    else:
        source, start = read_source(node, "models.value", context), "value"
    _scorer(made, "value", source, start)


def _scorer(made: Networks, role: str, source: Source, start: str) -> None:
    """A trained network with a scalar head: its trunk is that of a start, and so is its head, if
    the start has one; else it is new."""
    dtype = _trained_dtype(source, f"models.{role}")
    if start == role:
        _start(made, role, source, "value", dtype)
    made.sources[role] = source
    model = source.model("value", source.lora)

    def head(starts: Trees, key: PRNGKeyArray) -> Params:
        scored = start == role and "head" in starts[role]
        return {"head": starts[role]["head"] if scored else model.init(key)["head"]}

    if source.lora is None:
        made.trees[role] = Tree(
            True, model.axes, dtype, lambda starts, key: _trunk(starts[start]) | head(starts, key)
        )
        made.roles[role] = Role(model, (role,))
        return
    base = _base_of_policy(made, dtype) if start == "policy" else None
    if base is None:
        base, axes = f"{role}_base", _trunk(source.model("value").axes)
        made.trees[base] = Tree(False, axes, dtype, lambda starts, key: _trunk(starts[start]))
    axes, draw = _adapters(model)
    axes |= {"head": model.axes["head"]}
    made.trees[role] = Tree(
        True, axes, "float32", lambda starts, key: draw(key) | head(starts, key)
    )
    made.roles[role] = Role(model, (base, role))


def _base_of_policy(made: Networks, dtype: str) -> str | None:
    """The frozen tree that is the policy as it starts, if there is one of this type on the
    devices."""
    for name in ("policy_base", "reference"):
        is_policy = name not in made.sources  # a reference of its own has a source
        tree = made.trees.get(name)
        if tree and is_policy and tree.dtype == dtype and not isinstance(tree.axes, OnHost):
            return name
    return None


def _reward(made: Networks, node: Node, context) -> None:
    name, given = resolve.split(node, "models.reward")
    max_tokens = given.pop("max_tokens", None)
    if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 1):
        raise UserError(f"models.reward.max_tokens: a number above 0 is needed, got {max_tokens!r}")
    source = read_source({"fn": name, **given}, "models.reward", context)
    source = source._replace(max_tokens=max_tokens)
    if source.lora is not None:
        raise UserError("models.reward: it is never trained, so that it takes no lora")
    if source.head != "value":
        (kind, *_) = source.architecture.hf.architectures
        raise UserError(f"models.reward: {name} is a {kind}; one with a scalar head is needed")
    _start(made, "reward", source, "value", source.param_dtype)
    made.sources["reward"] = source
    _frozen(made, "reward", source, source.model("value"), "reward")


def _only(given: Mapping[str, Any], known: tuple[str, ...], where: str, *taken: str) -> None:
    """Refuses other keys than ``known``; those ``taken`` already are named as valid too."""
    for name in given:
        if name not in known:
            valid = [*known, *taken]
            hint = nearest(name, valid) if valid else "it takes none"
            raise UserError(f'{where}: unknown key "{name}"; {hint}')
