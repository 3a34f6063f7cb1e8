"""``rljax serve RUN|FOLDER|HUB_ID``: a small OpenAI-compatible server, for trying a policy.

It draws with the sampler of training, on whatever devices there are. It is no vLLM: it keeps no
pages of caches, shares no prefixes and quantizes nothing.
"""

import contextlib
import inspect
import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from rljax import resolve
from rljax.endpoint.engine import Engine
from rljax.errors import UserError, nearest
from rljax.host.secrets import say
from rljax.host.stopping import INTERRUPTED, leave_at_once
from rljax.host.terminal import Terminal
from rljax.launch import enough_threads, use_compilation_cache
from rljax.options import serve_options
from rljax.policies import find_policy, limited
from rljax.sharding import MESH_AXES, make_mesh

PATIENT_SECONDS = 5  # that responses are given to come to an end, once the server is to stop


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code: 0 after SIGTERM, 130 after Ctrl-C, or 2 for anything that
    the user can put right."""
    options = serve_options().parse_intermixed_args(arguments)
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
    module = resolve.users_module(module_name, path, "--middleware")
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
    """Serves until a signal comes, and then until what is under way has ended, or a while.

    Raises ``UserError`` if a middleware refuses the start.
    """
    came: list[int] = []
    refused: list[str] = []

    async def heard(scope, receive, send) -> None:
        async def told(message) -> None:
            if message["type"] == "lifespan.startup.failed":
                refused.append(message.get("message", ""))
            await send(message)

        await app(scope, receive, told if scope["type"] == "lifespan" else send)

    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)  # which uvicorn raises again at its end
    }
    config = uvicorn.Config(
        heard,
        log_config=None,
        log_level="critical",  # what fails says so itself, with no secret in it
        access_log=False,
        lifespan="auto",
        ws="none",
        timeout_graceful_shutdown=PATIENT_SECONDS,
    )
    with contextlib.suppress(SystemExit):  # of a start that is refused
        uvicorn.Server(config).run(sockets=[listening])
    for number, handler in before.items():
        signal.signal(number, handler)
    if refused:
        raise UserError(f"--middleware: {refused[0].removeprefix('rljax: error: ')}")
    interrupted = signal.SIGINT in came
    say("interrupted" if interrupted else "terminated")
    return INTERRUPTED if interrupted else 0
