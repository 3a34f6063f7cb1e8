"""``rljax serve RUN|FOLDER|HUB_ID``: a small OpenAI-compatible server, for trying a policy.

It draws with the sampler of training, on whatever devices there are. It is no vLLM: it keeps no
pages of caches, shares no prefixes and quantizes nothing.
"""

import contextlib
import importlib
import inspect
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from rljax import resolve
from rljax.endpoint.engine import Engine, Policy
from rljax.endpoint.protocol import Serving
from rljax.errors import UserError, nearest
from rljax.export import restore_role
from rljax.host.pretrained import (
    count_ids,
    eos_ids_of,
    find_folder,
    load_tokenizer,
    pretrained,
    read_json,
)
from rljax.host.secrets import say
from rljax.host.steps import steps_in
from rljax.host.stopping import INTERRUPTED, leave_at_once
from rljax.host.terminal import Parser, Terminal
from rljax.host.weights import Weights, import_params
from rljax.launch import enough_threads, use_compilation_cache
from rljax.models import Architecture, decoder
from rljax.models.hf import tensors_of
from rljax.models.lora import merge_lora
from rljax.sampling import make_sampler
from rljax.sharding import MESH_AXES, make_mesh, param_shardings
from rljax.trees import role_params
from rljax.types import Model, Params

MOST_TOKENS = 1024  # of a prompt and of a response, where neither a run nor the command says
PATIENT_SECONDS = 5  # that responses are given to come to an end, once the server is to stop
NO_LIMITS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


class Found(NamedTuple):
    """A policy, and what is known of how it is to be used."""

    name: str
    model: Model
    params: Params
    architecture: Architecture
    tokenizer: Any
    eos_ids: tuple[int, ...]
    sampling: dict[str, float | int]
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    chat_template: Mapping[str, Any] = MappingProxyType({})


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 after SIGTERM, 130 after Ctrl-C, or 2 for anything that
    the user can put right."""
    parser = Parser(
        prog="rljax serve",
        usage="%(prog)s RUN|FOLDER|HUB_ID [mesh.AXIS=N ...] [--step N | --best] [--port N] ...",
        description="Serve a policy over OpenAI's API, for trying it and for tests.",
        epilog="Example: rljax serve runs/0001 --best --port 8000",
    )
    parser.add_argument("target", help="the folder of a run, a Hugging Face folder, or a hub id")
    parser.add_argument("settings", nargs="*", help="sizes of the mesh, such as mesh.tensor=4")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="of a run's checkpoint; by default the newest")
    which.add_argument("--best", action="store_true", help="the run's best checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="by default %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="by default %(default)s; 0: any")
    parser.add_argument("--name", help="of the model; by default that of its folder")
    parser.add_argument("--rows", type=int, default=16, help="responses at once, by default 16")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of a response, at most")
    parser.add_argument("--max-prompt-tokens", type=int, metavar="N", help="of a prompt, at most")
    parser.add_argument(
        "--api-key-env", metavar="VAR", help="the variable with the key that clients must send"
    )
    parser.add_argument(
        "--middleware",
        action="append",
        default=[],
        metavar="PKG.MODULE.CLASS",
        help="an ASGI class around the server; may be given several times",
    )
    options = parser.parse_intermixed_args(arguments)
    enough_threads()
    try:
        return serve(**vars(options))
    except UserError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:  # while a program compiles, which no thread can be called back from
        leave_at_once("interrupted", INTERRUPTED)


def serve(
    target: str,
    settings: list[str],
    *,
    step: int | None,
    best: bool,
    host: str,
    port: int,
    name: str | None,
    rows: int,
    max_tokens: int | None,
    max_prompt_tokens: int | None,
    api_key_env: str | None,
    middleware: list[str],
) -> int:
    """Serves until a signal ends it; returns the exit code."""
    uvicorn, make_app = _server()
    key = _api_key(api_key_env)
    around = [middleware_class(path) for path in middleware]
    if rows < 1:
        raise UserError(f"--rows: at least 1, got {rows}")
    terminal = Terminal()
    with contextlib.closing(_listen(host, port)) as listening:
        use_compilation_cache()
        mesh = make_mesh(**mesh_sizes(settings))
        terminal.say("loading", f"loading: {target} …", target=target)
        found = find_policy(target, mesh, step=step, best=best)
        if name is not None:
            found = found._replace(name=name)
        policy, serving = limited(found, mesh, max_prompt_tokens, max_tokens)
        engine = Engine(policy, rows=rows, told=lambda text: terminal.say("compiling", text))
        del found, policy  # the engine lays the parameters out anew
        engine.start()
        app = make_app(engine, serving, api_key=key, middleware=around)
        at, bound = listening.getsockname()[:2]
        url = f"http://{f'[{at}]' if ':' in at else at}:{bound}/v1"
        if key is None and not _is_loopback(at):
            say(f"warning: {url} is open to whoever reaches it; --api-key-env asks for a key")
        text = f"serving: {serving.model} at {url}; Ctrl-C stops"
        terminal.say("serving", text, model=serving.model, url=url)
        try:
            return _run(uvicorn, app, listening)
        finally:
            engine.stop()


def find_policy(target: str, mesh: Mesh, *, step: int | None = None, best: bool = False) -> Found:
    """The policy of a run, at its newest checkpoint unless one is named, or of a folder.

    Raises ``UserError`` if there is none.
    """
    folder = Path(os.path.expanduser(target))
    if (folder / "config.yaml").exists():
        if best or step is not None or steps_in(folder / "checkpoints"):
            return _of_run(folder, mesh, step, best)
        if not (folder / "policy").exists():
            raise UserError(f"{folder} holds no checkpoint yet, and no policy")
        return _of_folder(folder / "policy", folder.resolve().name, mesh)
    if best or step is not None:
        raise UserError("--step and --best are of a run; a model's folder has no checkpoints")
    if "/" not in target and not os.path.isdir(folder):
        raise UserError(f'"{target}" is no folder here, and no hub id')
    local = os.path.isdir(folder)
    return _of_folder(
        find_folder(target, "serve"), folder.resolve().name if local else target, mesh
    )


def _of_run(run: Path, mesh: Mesh, step: int | None, best: bool) -> Found:
    restored = restore_role(run, step=step, best=best, role=None, mesh=mesh)
    if restored.role != "policy":
        raise UserError(f"{run} trained a {restored.role} model, which answers nothing")
    config, source = restored.config, restored.networks.sources["policy"]
    params = role_params(restored.networks.roles["policy"], restored.trees)
    if source.lora is not None:
        params = merge_lora(params, source.lora)
    return Found(
        name=run.resolve().name,
        model=source.model("lm"),
        params=params,
        architecture=source.architecture,
        tokenizer=restored.tokenizer,
        eos_ids=restored.eos_ids,
        sampling=_drawing(resolve.defaults(make_sampler) | config.sampling, run / "config.yaml"),
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_tokens=config.sampling.get("max_tokens"),
        chat_template=config.data.chat_template,
    )


def _of_folder(folder: Path, name: str, mesh: Mesh) -> Found:
    found = pretrained(folder)
    if found.head != "lm":
        raise UserError(f"{folder} has no language-model head")
    architecture, tokenizer = found.architecture, load_tokenizer(folder)
    decoder_config, hf = architecture
    rows, ids = decoder_config.vocab_size, count_ids(tokenizer)
    if rows < ids:
        raise UserError(f"{folder}: its embedding of {rows} rows has no room for {ids} tokens")
    model = decoder(decoder_config)
    abstract = jax.eval_shape(lambda key: model.cast(model.init(key)), jax.random.key(0))
    with contextlib.closing(Weights(folder)) as weights:
        params = import_params(
            weights,
            tensors_of(abstract, decoder_config, hf.model_type),
            abstract,
            param_shardings(model.axes, abstract, mesh),
        )
    path = folder / "generation_config.json"
    return Found(
        name=name,
        model=model,
        params=params,
        architecture=architecture,
        tokenizer=tokenizer,
        eos_ids=eos_ids_of(tokenizer, folder),
        sampling=_drawing(read_json(path) if path.exists() else {}, path),
    )


def _drawing(given: Mapping[str, Any], where: Path) -> dict[str, float | int]:
    """The defaults of a request: those that a run or a generation config has."""
    drawing = dict(NO_LIMITS)
    for name in NO_LIMITS:
        value = given.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"{where}: {name}: a number is needed, got {value!r}")
        drawing[name] = value
    return drawing


def limited(
    found: Found, mesh: Mesh, max_prompt_tokens: int | None, max_tokens: int | None
) -> tuple[Policy, Serving]:
    """What is served, within limits: those given, or the run's, or as many as the model knows
    positions for. Raises ``UserError`` if it knows too few."""
    positions = found.architecture.max_positions
    most = max_tokens or found.max_tokens or min(MOST_TOKENS, positions // 2)
    prompt = max_prompt_tokens or found.max_prompt_tokens or min(MOST_TOKENS, positions - most)
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max-tokens: at least 1, got {max_tokens}")
    if max_prompt_tokens is not None and max_prompt_tokens < 1:
        raise UserError(f"--max-prompt-tokens: at least 1, got {max_prompt_tokens}")
    if prompt < 1 or prompt + most > positions:
        raise UserError(
            f"--max-prompt-tokens {prompt} and --max-tokens {most}: more than the {positions} "
            "positions that the model knows"
        )
    vocabulary = found.architecture.decoder.vocab_size
    policy = Policy(
        found.model, found.params, found.tokenizer, found.eos_ids, vocabulary, mesh, prompt, most
    )
    serving = Serving(
        model=found.name,
        tokenizer=found.tokenizer,
        vocabulary=vocabulary,
        max_prompt_tokens=prompt,
        max_tokens=most,
        defaults=found.sampling,
        chat_template=found.chat_template,
    )
    return policy, serving


def mesh_sizes(settings: Sequence[str]) -> dict[str, int]:
    """The sizes that ``mesh.AXIS=N`` give.

    >>> mesh_sizes(["mesh.tensor=4"])
    {'tensor': 4}
    """
    sizes = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        axis = name.removeprefix("mesh.")
        if axis == name or axis not in MESH_AXES:
            hint = nearest(name, [f"mesh.{axis}" for axis in MESH_AXES])
            raise UserError(f'unknown setting "{name}"; {hint}')
        if not value.lstrip("-").isdecimal():
            raise UserError(f"{name}: a number is needed, got {value!r}")
        sizes[axis] = int(value)
    return sizes


def middleware_class(path: str) -> type:
    """The class of a dotted path, found from the working directory or an installed package."""
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise UserError(f"--middleware: pkg.module.Class is needed, got {path!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f'--middleware: cannot import "{module_name}": {reason}') from error
    found = getattr(module, attribute, None)
    if not inspect.isclass(found):
        classes = [name for name, _ in inspect.getmembers(module, inspect.isclass)]
        hint = nearest(attribute, classes)
        raise UserError(f'--middleware: no class "{attribute}" in {module_name}; {hint}')
    return found


def _server() -> tuple[Any, Any]:
    """uvicorn, and what makes the application."""
    try:
        import uvicorn

        from rljax.endpoint.app import make_app
    except ModuleNotFoundError as error:
        raise UserError(
            f"serving needs {error.name.partition('.')[0]}, which is not installed: "
            "pip install 'rljax[serve]'"
        ) from error
    return uvicorn, make_app


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise UserError(f"--api-key-env {variable}: there is no such variable, or it is empty")
    return os.environ[variable]


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise UserError(f"--port: 0 to {2**16 - 1}, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise UserError(f"--host {host} --port {port}: cannot listen there: {why}") from error


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _run(uvicorn, app, listening: socket.socket) -> int:
    """Serves until a signal comes, and then until what is under way has ended, or a while."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)  # which uvicorn raises again at its end
    }
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",  # what fails says so itself, with no secret in it
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=PATIENT_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])
    for number, handler in before.items():
        signal.signal(number, handler)
    interrupted = signal.SIGINT in came
    say("interrupted" if interrupted else "terminated")
    return INTERRUPTED if interrupted else 0
