"""The options of the commands that take seconds to import: their help needs nothing else."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rljax.chips import CHIPS
from rljax.host.terminal import Parser

DTYPES = ("float32", "bfloat16", "float16")  # that weights are exported in


def launch_options() -> Parser:
    parser = Parser(
        prog="python -m rljax.launch",
        usage="%(prog)s [config.yaml] [key=value ...] [--dry-run]",
        description="Train a language model.",
        epilog="Example: python -m rljax.launch configs/addition.yaml steps=40 mesh.fsdp=2",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        help="a YAML file, by default that of the embedded task, and settings to change in it",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved config and the plan, and stop"
    )
    going_on = parser.add_argument_group(
        "going on", "without these a run goes on from the newest sound checkpoint in its run_dir"
    )
    going_on.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with the run in this folder, by its own config unless one is named; "
        '"never": run_dir must hold none yet',
    )
    going_on.add_argument(
        "--fork",
        metavar="RUN",
        help="begin a new run with the state of that one, or of one of its checkpoints",
    )
    going_on.add_argument(
        "--allow-config-change",
        action="store_true",
        help="go on although settings that change what is learned, or the rows, are others",
    )
    several = parser.add_argument_group(
        "several processes", "where nothing starts them that JAX knows: each its own number"
    )
    several.add_argument(
        "--coordinator", metavar="HOST:PORT", help="a free port of process 0's host"
    )
    several.add_argument("--processes", type=int, metavar="N", help="how many there are")
    several.add_argument("--process", type=int, metavar="I", help="which this is, from 0")
    return parser


def plan_options() -> Parser:
    parser = Parser(
        prog="rljax plan",
        usage="%(prog)s [config.yaml] [key=value ...] [MESH ...] [--chip CHIP] [--devices N] "
        "[--search] [--json]",
        description="Say what a run would take on devices that are not there.",
        epilog="Example: rljax plan configs/llama_8b.yaml fsdp=64 fsdp=32,tensor=2 --chip v5p",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        help="a YAML file, by default that of the embedded task, settings to change in it, and "
        "meshes such as fsdp=32,tensor=2, by default that of the config",
    )
    parser.add_argument("--chip", default="v5p", help=f"one of {', '.join(CHIPS)}; default v5p")
    parser.add_argument("--devices", type=int, help="for axes of size -1, and for a search")
    parser.add_argument("--search", action="store_true", help="find the quickest mesh")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def doctor_options() -> Parser:
    parser = Parser(
        prog="rljax doctor", description="Say what a model is, and what training it takes."
    )
    parser.add_argument("model", help="a Hugging Face folder, or a hub id")
    return parser


def verify_options() -> Parser:
    parser = Parser(
        prog="rljax verify",
        description="Check the folder of a run: its config, the digests of its checkpoints, and "
        "that no step is missing from its records, or there twice.",
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    return parser


def eval_options() -> Parser:
    parser = Parser(
        prog="rljax eval",
        usage="%(prog)s CONFIG|RUN [key=value ...] [--step N | --best] [--out DIR]",
        description="Answer held-out prompts, and judge the answers.",
        epilog="Example: rljax eval runs/0001 evaluation.samples_per_prompt=8",
    )
    parser.add_argument("target", type=Path, help="a YAML file, or the folder of a run")
    parser.add_argument("settings", nargs="*", help="settings to change in the config")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="of a run's checkpoint; by default the newest")
    which.add_argument("--best", action="store_true", help="the run's best checkpoint")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="by default the next of evals/0001, evals/0002, …"
    )
    return parser


def score_options() -> Parser:
    parser = Parser(
        prog="rljax score",
        usage="%(prog)s FILE [key=value ...] [--config CONFIG|RUN] [--out FILE] "
        "[--response-column NAME]",
        description="Apply the rewards and the length policy of a config to a file of responses.",
        epilog="Example: rljax score logged.jsonl --config runs/0001 --out scored.parquet",
    )
    parser.add_argument("file", type=Path, help="JSONL, JSON, Parquet or CSV, a response per row")
    parser.add_argument("settings", nargs="*", help="settings to change in the config")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG|RUN",
        help="a YAML file, by default that of the embedded task, or the folder of a run",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="a .parquet or .jsonl to write")
    parser.add_argument(
        "--response-column", metavar="NAME", help="by default response, completion or text"
    )
    return parser


def export_options() -> Parser:
    parser = Parser(
        prog="rljax export", description="Export a model of a run as a Hugging Face folder."
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="where to")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="of the checkpoint; by default the newest")
    which.add_argument("--best", action="store_true", help="the best checkpoint")
    parser.add_argument(
        "--role", choices=("policy", "value", "reward"), help="by default what was trained"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; by default as they came")
    parser.add_argument(
        "--merge", action="store_true", help="merge a policy's adapters into their base"
    )
    return parser


def serve_options() -> Parser:
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
    return parser


OPTIONS: Mapping[str, Callable[[], Parser]] = {
    "launch": launch_options,
    "plan": plan_options,
    "doctor": doctor_options,
    "verify": verify_options,
    "eval": eval_options,
    "score": score_options,
    "export": export_options,
    "serve": serve_options,
}
