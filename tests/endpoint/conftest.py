"""One server for all tests that ask one."""

import openai
import pytest
from endpoints import serving_model, write_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="session")
def server(folder):
    """(address, engine)"""
    with serving_model(folder) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client
