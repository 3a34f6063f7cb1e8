"""What the source may not do, what a model's folder cannot do, and what a run does not tell."""

import ast
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from folders import edit_json, tokenizer_of, write_folder
from jinja2.exceptions import SecurityError
from tiny import SETTINGS

from rljax import eval as evaluation
from rljax import launch
from rljax.host.pretrained import load_tokenizer, pretrained

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "rljax").rglob("*.py"))
SCRIPTS = sorted(path for path in (ROOT / "launch").iterdir() if path.is_file())

# ---- the source

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ARCHIVES = {"tarfile", "zipfile"}
FETCHING = {"urllib.request", "requests", "httpx", "aiohttp", "ftplib", "http.client"}
SERVING = {"http.server", "socketserver", "xmlrpc.server", "flask", "fastapi", "torch"}
SERVING |= {"starlette", "uvicorn"}
SERVERS = {  # who may import what of it
    "rljax/endpoint/app.py": {"starlette"},
    "rljax/serve.py": {"uvicorn"},
}
CALLS = {  # by their last name, or by their last two
    *("eval", "exec", "os.system", "os.popen", "torch.load", "shutil.unpack_archive"),
    *("yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "pd.read_pickle"),
}
EVERYWHERE = {"", "0.0.0.0", "::", "[::]"}  # addresses that mean all of a host's
LISTENING = {"bind", "create_server", "start_server"}
SCRAPED = "start_http_server"  # of prometheus_client; by default on every address


def faults(source: str, path: str = "") -> list[str]:
    """What in a module's source is not allowed, by line."""
    found, refused = [], FETCHING | SERVING - SERVERS.get(path, set())

    def refuse(node, what):
        found.append(f"{node.lineno}: {what}")

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [alias.name for alias in node.names]
            for name in [module, *(f"{module}.{n}" for n in names)] if module else names:
                root = name.split(".")[0]
                if {name, root} & refused or root in PICKLES | ARCHIVES:
                    refuse(node, f"import {name}")
        if not isinstance(node, ast.Call):
            continue
        name = ".".join(ast.unparse(node.func).split(".")[-2:])
        last = name.split(".")[-1]
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        first = ast.unparse(node.args[0]) if node.args else ""
        if name in CALLS or last in {"extractall", "eval", "exec"}:
            refuse(node, name)
        if name in ("np.load", "numpy.load", "jnp.load") and "allow_pickle" not in given:
            refuse(node, f"{name} without allow_pickle=False")
        if name == "yaml.load":
            loader = [*map(ast.unparse, node.args[1:]), *given.values()]
            if loader not in (["SafeLoader"], ["yaml.SafeLoader"], ["_Loader"]):
                refuse(node, "yaml.load")
        for keyword, allowed in (
            *(("allow_pickle", "False"), ("trust_remote_code", "False"), ("shell", "False")),
            ("weights_only", "True"),
        ):
            if given.get(keyword, allowed) != allowed:
                refuse(node, f"{keyword}={given[keyword]}")
        if last == "from_pretrained" and "trust_remote_code" not in given:
            refuse(node, f"{name} without trust_remote_code=False")
        if last in LISTENING and any(repr(at) in first for at in EVERYWHERE):
            refuse(node, f"{name} on every address")
        if last == SCRAPED:
            address = given.get("addr", ast.unparse(node.args[1]) if node.args[1:] else "''")
            if address.strip("'\"") in EVERYWHERE:
                refuse(node, f"{name} on every address")
    return found


def test_nothing_in_the_source_is_unsafe():
    found = {
        str(path.relative_to(ROOT)): wrong
        for path in SOURCES
        if (wrong := faults(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        *(
            "import pickle",
            "from pickle import loads",
            "import torch",
            "from zipfile import ZipFile",
        ),
        *("import urllib.request", "from urllib import request", "import requests"),
        *("from http import server", "import socketserver", "import uvicorn"),
        *("from starlette.routing import Route", "import starlette.applications"),
        *("eval(text)", "exec(text)", "os.system(text)", "subprocess.run(text, shell=True)"),
        *("yaml.load(text)", "yaml.load(text, yaml.Loader)", "yaml.unsafe_load(text)"),
        *("np.load(path)", "np.load(path, allow_pickle=True)", "archive.extractall(path)"),
        *("AutoConfig.from_pretrained(x)", "f(trust_remote_code=options.trust)"),
        *("socket.create_server(('', 1))", "server.bind(('0.0.0.0', port))"),
        *("start_http_server(9400)", "start_http_server(9400, '0.0.0.0')"),
        "prometheus_client.start_http_server(9400, addr='::')",
    ],
)
def test_the_scan_finds(source):
    assert len(faults(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        *("import urllib.parse", "yaml.load(text, yaml.SafeLoader)", "jax.eval_shape(f)"),
        *("np.load(path, allow_pickle=False)", "f(trust_remote_code=False)", "re.compile(x)"),
        *("socket.create_server(('127.0.0.1', 0))", "def load(x): return np.asarray(x)"),
        *("start_http_server(port, host)", "start_http_server(9400, addr='127.0.0.1')"),
    ],
)
def test_the_scan_passes(source):
    assert faults(source) == []


def test_a_server_is_where_it_is_expected():
    assert faults("from starlette.routing import Route", "rljax/endpoint/app.py") == []
    assert faults("import uvicorn", "rljax/endpoint/app.py") != []
    assert faults("import http.server", "rljax/serve.py") != []


def test_the_loader_of_yaml_is_a_safe_one():
    """The scan knows it by its name."""
    tree = ast.parse((ROOT / "rljax/yaml_text.py").read_text(encoding="utf-8"))
    (loader,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "_Loader")
    assert [ast.unparse(base) for base in loader.bases] == ["yaml.SafeLoader"]
    with pytest.raises(launch.UserError, match="could not determine a constructor"):
        launch.load_config(
            ROOT / "configs/addition.yaml", ["run_dir=!!python/object/apply:os.getcwd []"]
        )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_run_nothing_that_they_fetch_and_print_no_secret(script):
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    fetched = re.compile(r"\b(curl|wget)\b[^\n;]*\|[^\n]*\b(ba|z|da)?sh\b|\b(sh|bash|eval)\b.*<\(")
    assert not fetched.search(text)
    assert not re.search(r"\b(echo|printf)\b[^\n]*\$\{?\w*(TOKEN|KEY|SECRET|PASSW)", text)
    assert not re.search(r"(?m)^\s*(set -\w*x|env|printenv|export -p)\s*$", text)
    assert not re.search(r"--(no-check-certificate|insecure)\b|\bcurl\b[^\n]* -\w*k\b", text)


# ---- models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder whose config and tokenizer name code that comes with them."""
    folder = tmp_path_factory.mktemp("model")
    write_folder(folder / "model")
    code = "from pathlib import Path\nPath(__file__).with_name('RAN').touch()\n"
    (folder / "model" / "own.py").write_text(code + "class Own: pass\n")
    own = {"auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "own.Own")}
    edit_json(folder / "model" / "config.json", **own)
    edit_json(
        folder / "model" / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own.Own", "own.Own"]},
    )
    adapters = {"base_model_name_or_path": str(folder / "elsewhere"), "auto_mapping": own}
    (folder / "model" / "adapter_config.json").write_text(json.dumps(adapters))
    return folder / "model"


def test_code_that_comes_with_a_model_does_not_run(model):
    assert pretrained(model).architecture.decoder.layers == 2
    assert load_tokenizer(model).encode("1")
    edit_json(model / "tokenizer_config.json", tokenizer_class="Own")
    edit_json(model / "config.json", model_type="own")
    for read in (pretrained, load_tokenizer):
        with pytest.raises(launch.UserError):
            read(model)
    assert not list(model.parent.rglob("RAN"))


def test_a_chat_template_reaches_no_python(tmp_path):
    tokenizer = tokenizer_of("<pad>", "<eos>", eos_token="<eos>")
    tokenizer.chat_template = "{{ messages.__class__.__base__.__subclasses__() }}"
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}])


# ---- secrets of a run

CANARIES = {
    "HF_TOKEN": "hf-canary-0001",
    "WANDB_API_KEY": "wandb-canary-0002",
    "AWS_SECRET_ACCESS_KEY": "aws/canary+0003",
    "MY_SERVICE_PASSWORD": "service 'canary' 0004",
}
REWARD = """
import os

def judge(data_source, solution_str, ground_truth, extra_info, key):
    raise ConnectionError(f"{key} was refused, and so was {os.environ['HF_TOKEN']}")
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs the command with secrets in the environment, and returns all that it prints."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "refused_reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    answer = {"fn": "answer_match", "marker": "#"}
    judge = {
        **{"fn": "verl_reward", "function": "refused_reward:judge", "ground_truth": None},
        **{"max_failed_share": 1, "reward_kwargs": {"key": CANARIES["MY_SERVICE_PASSWORD"]}},
    }

    def run(*settings, code=0):
        settings = [*SETTINGS, "warm_start=null", "steps=1", *settings]
        settings += [f"rewards={json.dumps({'correct': answer, '../../judge': judge})}"]
        assert launch.main([*settings, "run_dir=run"]) == code
        captured = capfd.readouterr()
        return captured.out + captured.err

    return run


def untold(data: bytes) -> bool:
    """Whether no secret stands in it, as it is or as JSON and Python write it."""
    values = (part for value in CANARIES.values() for part in (value, repr(value)[1:-1]))
    return not any(value.encode() in data for value in values)


def test_a_run_tells_no_secret(command, tmp_path):
    printed = command("seed=3")
    assert untold(printed.encode())
    assert "ConnectionError: [MY_SERVICE_PASSWORD] was refused, and so was [HF_TOKEN]" in printed
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if not untold(path.read_bytes())] == []


def test_what_is_refused_or_only_planned_tells_no_secret(command):
    printed = command(f"steps={CANARIES['MY_SERVICE_PASSWORD']}", code=2)
    assert printed.startswith("rljax: error: steps: ")
    assert printed.endswith('got "[MY_SERVICE_PASSWORD]"\n')
    planned = command("--dry-run")
    assert "reward_kwargs: {key: '[MY_SERVICE_PASSWORD]'}" in planned
    assert untold((printed + planned).encode())


def test_an_evaluation_tells_no_secret(command, tmp_path):
    secret = CANARIES["AWS_SECRET_ACCESS_KEY"]
    table = SimpleNamespace(rows=[{"prompt": secret}])
    built = SimpleNamespace(answering=SimpleNamespace(table=table))
    sample = {"prompt_index": 0, "response": secret}
    evaluation._written(tmp_path / "out", {"settings": [f"x={secret}"]}, [sample], built)
    written = (tmp_path / "out" / "samples.jsonl").read_text()
    assert written.count("[AWS_SECRET_ACCESS_KEY]") == 2
    assert "x=[AWS_SECRET_ACCESS_KEY]" in (tmp_path / "out" / "figures.json").read_text()
