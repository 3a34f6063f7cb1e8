"""A small model behind a server in the process of the tests."""

import contextlib
import socket
import threading
import time

import jax
import uvicorn
from folders import TURNS, write_folder

from rljax.endpoint.app import make_app
from rljax.endpoint.engine import Engine
from rljax.policies import find_policy, limited
from rljax.sharding import make_mesh
from rljax.tasks import character_tokenizer

PROMPT_TOKENS, TOKENS, ROWS = 24, 24, 4
SMALL = {"rows": ROWS, "least_prompt": 8, "least_columns": 24}  # sizes 8 and 24, 24 and 48


def write_model(folder):
    """A folder with a chat template."""
    tokenizer = character_tokenizer()
    tokenizer.chat_template = TURNS
    write_folder(folder, tokenizer=tokenizer)
    return folder


def engine_of(folder, **options):
    """An engine that has not begun, and what requests are checked against."""
    mesh = make_mesh(jax.devices()[:1])
    policy, serving = limited(find_policy(str(folder), mesh), mesh, PROMPT_TOKENS, TOKENS)
    return Engine(policy, **SMALL | options), serving


@contextlib.contextmanager
def listening(app):
    """The address of a server for an application."""
    free = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [free]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{free.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def serving_model(folder, middleware=(), **options):
    """The address of a server for the model of a folder, and its engine."""
    engine, serving = engine_of(folder)
    engine.start()
    with listening(make_app(engine, serving, middleware=middleware, **options)) as address:
        yield address, engine
    engine.stop()
