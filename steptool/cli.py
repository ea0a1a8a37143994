"""The command `steptool`: it runs the workflows of a checkout, manages the registry of models, checks configurations.

The installed library does not contain the workflows, because a registration sends them to a cluster. So the commands
that run them have to start in a checkout of the project.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from steptool import __version__
from steptool.artifacts.errors import describe_with_stack, refuse_by_findings
from steptool.artifacts.metrics import escape_controls
from steptool.check.trials import CalledTools, try_imports
from steptool.config import Config, ConfigError, load_config
from steptool.data.export import Form
from steptool.evaluation.logs import LogForm
from steptool.registry.command import app as registry_app
from steptool.registry.command import push

if TYPE_CHECKING:
    from steptool.check.memory import Machine

REFUSED, FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes of a command that was refused before anything ran, of a run that failed, and of one that Ctrl-C has ended
(docs/command-line.md)."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, evaluate and keep language models that use tools (StepTool).",
)
app.add_typer(registry_app, name="registry")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, such as configs/laptop.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field, as in ppo.rounds=4; may be repeated."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Try data, tools and model, estimate time and cost, then stop.")
]
CalledInDryRun = Annotated[CalledTools, typer.Option("--call-tools", help="Tools that get one real call in a dry run.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of torch. 1 is fastest for tiny models; 0: all cores.")]
Output = Annotated[str, typer.Option("--output", "-o", help="Folder or url of the result.")]
Trajectories = Annotated[Path, typer.Option(help="Parquet file of episodes or of demonstrations.")]
Queries = Annotated[Path, typer.Option(help="Parquet file of the queries that the trajectories answer.")]
ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="Model folder, such as runs/demo/model.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one and prints it.")]
Host = Annotated[str, typer.Option(help="Address; one that other machines reach needs a key in STEPTOOL_API_KEY.")]
OptionalFile = Annotated[Path | None, typer.Option()]


def _add_run_command(workflow: Literal["train", "evaluate"], folder: str, description: str) -> None:
    """Add the command that runs a workflow on a configuration, or with --dry-run tries what the workflow needs."""

    @app.command(workflow, help=description)
    def command(
        config: ConfigPath,
        output: Output = folder,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        call_tools: CalledInDryRun = CalledTools.READ_ONLY,
        threads: Threads = 0,
    ) -> None:
        loaded_config = _load_config(config, overrides)
        if workflow == "evaluate":
            loaded_config.evaluation.require_policies()
        if dry_run:
            _rehearse(loaded_config, output, call_tools, for_training=workflow == "train")
        else:
            _run(workflow, threads, config=loaded_config, output=output)


_add_run_command("train", "runs/latest", "Improve a model on its own episodes, and report whether it got better.")
_add_run_command("evaluate", "runs/evaluation", "Compare any number of policies on the same tasks.")


@app.command()
def ingest(config: ConfigPath, output: Output, overrides: Overrides = None) -> None:
    """Read tasks and recordings into Parquet, and count what was kept and dropped."""
    _run("ingest", config=_load_config(config, overrides), output=output)


@app.command()
def annotate(
    config: ConfigPath,
    trajectories: Trajectories,
    queries: Queries,
    output: Output,
    compare: Annotated[
        str, typer.Option(help="Rewards to compare with: of another annotator, or of an earlier run.")
    ] = "",
    overrides: Overrides = None,
) -> None:
    """Score the steps of trajectories again, and audit the scores."""
    files = {"trajectories": _open_parquet(trajectories), "queries": _open_parquet(queries)}
    _run("annotate", config=load_config(config, overrides or ()), output=output, compare=compare, **files)


@app.command()
def export(
    trajectories: Annotated[list[Path], typer.Option(help="Parquet file of episodes; may be given several times.")],
    queries: Queries,
    output: Output,
    form: Annotated[Form, typer.Option(help="What to write.")] = Form.MESSAGES,
) -> None:
    """Write trajectories as conversations, for supervised fine-tuning or as preferences."""
    first, *more = map(_open_parquet, trajectories)
    inputs = {"trajectories": first, "more_trajectories": more or None, "queries": _open_parquet(queries)}
    _run("export", **inputs, form=form, output=output)


@app.command()
def export_results(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", exists=True, file_okay=False, help="Folder of an evaluation or of a training run."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the logs.")],
    form: Annotated[LogForm, typer.Option(help="What to write.")] = LogForm.LM_EVAL,
) -> None:
    """Write an evaluation as results of lm-evaluation-harness, or as logs of Inspect."""
    from steptool.evaluation.logs import write_logs

    _print_lines(map(str, write_logs(folder, output, form)))


@app.command()
def view(
    trajectories: Trajectories,
    queries: Queries,
    output: Output = "viewer.html",
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Trajectories",
    rewards: OptionalFile = None,
    advantages: OptionalFile = None,
    trajectories_b: OptionalFile = None,
    rewards_b: OptionalFile = None,
    advantages_b: OptionalFile = None,
    page_size: Annotated[int, typer.Option(min=1, help="Trajectories of a file; more make several files.")] = 50_000,
) -> None:
    """Write one HTML file in which trajectories can be searched and read, one set or two side by side."""
    optional = {
        "rewards": rewards,
        "advantages": advantages,
        "trajectories_b": trajectories_b,
        "rewards_b": rewards_b,
        "advantages_b": advantages_b,
    }
    files = {name: _open_parquet(path) for name, path in optional.items() if path}
    pair = {"trajectories": _open_parquet(trajectories), "queries": _open_parquet(queries)}
    _run("view", **pair, **files, output=output, title=title, page_size=page_size)


@app.command()
def serve(
    model: ModelFolder,
    port: Port = 8000,
    host: Host = "127.0.0.1",
    name: Annotated[str, typer.Option(help="Name of the model in requests; empty: the name of the folder.")] = "",
) -> None:
    """Serve a model as it was trained, behind an API of OpenAI's form."""
    _require_folder(model)
    from steptool.policies.serve import serve as run_server

    run_server(model, host, port, name or model.resolve().name)


@app.command("serve-env")
def serve_environment(
    config: ConfigPath,
    overrides: Overrides = None,
    port: Port = 8000,
    host: Host = "127.0.0.1",
) -> None:
    """Serve the environment and the tasks of a configuration, behind OpenEnv's protocol."""
    from steptool.pipeline.episodes import serve_tasks

    serve_tasks(_load_config(config, overrides), host, port)


@app.command("write-serving")
def write_serving(
    model: ModelFolder,
    config: ConfigPath,
    overrides: Overrides = None,
) -> None:
    """Write into a model folder how its training prompted and decoded the model. Serving and publishing read it."""
    _require_folder(model)
    from steptool.models import serving

    written = serving.write_serving(model, load_config(config, overrides or ()))
    form = f"chat format {written.chat_format}, ends with {written.finish}"
    print(escape_controls(f"{model / serving.SERVING_FILE}: {form}"))


@app.command()
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    profile: Annotated[Path | None, typer.Option(help="Machines of a cluster, such as configs/cluster.yaml.")] = None,
) -> None:
    """Check a configuration and the files that it names, and say what a run would do and need.

    Exits with 2 for what it finds: data or a model that cannot be used, a run that cannot fit into the memory of this
    machine or of the machines of a profile. Tools are called and the model is played by `train --dry-run` alone.
    """
    loaded_config = _load_config(config, overrides)
    with refuse_by_findings():
        from steptool.check.data import check_data
        from steptool.check.plan import describe_memory_needs, describe_plan

        _print_lines(describe_plan(loaded_config))
        _print_lines(check_data(loaded_config))
        _print_lines(describe_memory_needs(loaded_config, _read_machines(profile), is_local=profile is None))


app.command()(push)


@app.command()
def clean(
    hours: Annotated[float, typer.Option(min=0, help="Remove only what did not change for this many hours.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List it; remove nothing.")] = False,
) -> None:
    """Remove what former local runs have left in the temporary folder."""
    from steptool.storage.transfer import find_leftovers, remove_leftovers

    leftovers = find_leftovers(hours)
    for leftover in leftovers:
        print(f"{'would remove' if dry_run else 'removed'} {leftover.path}  {leftover.size / 1e6:,.1f} MB")
    if not dry_run:
        remove_leftovers(leftovers)
    print(f"{sum(leftover.size for leftover in leftovers) / 1e6:,.1f} MB in {len(leftovers)} places")


@app.callback(invoke_without_command=True)
def describe_program(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Handle the options of the program itself."""
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Run a command. On an error print one line and exit; the stack of an unexpected error goes into a file.

    SIGTERM ends it as Ctrl-C does, so that the processes of tools and servers end with it.
    """
    signals: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        app(prog_name="steptool")
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        _report("ended by SIGTERM" if signals else "interrupted")
        with suppress(OSError):
            sys.stdout.flush()
        atexit._run_exitfuncs()  # ends the processes of tools and servers; no thread of a call that hangs is waited for
        os._exit(128 + signals[0] if signals else INTERRUPTED)
    except ConfigError as error:
        _end(REFUSED, str(error))
    except Exception as error:
        _end(FAILED, describe_with_stack(error))


def _load_config(path: Path, overrides: list[str] | None) -> Config:
    """The configuration, whose own modules were imported in another process first: here one could hang the command."""
    config = load_config(path, overrides or ())
    try_imports(config)
    return config


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")


def _run(workflow: str, threads: int = 0, **inputs: Any) -> None:
    """Run a workflow of the checkout in this process. If it succeeds, remove what its stages handed over."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    _make_scratch_folder()
    getattr(_import_from_checkout(f"workflows.{workflow}"), workflow)(**inputs)
    shutil.rmtree(_make_scratch_folder(), ignore_errors=True)


def _open_parquet(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    _make_scratch_folder()
    return _import_from_checkout("tasks.runtime.artifacts").Parquet(str(path))


def _import_from_checkout(module: str) -> Any:
    """A module of the project in the current folder. Raises ConfigError if the folder is no checkout."""
    checkout = Path.cwd()
    file = checkout / (module.replace(".", "/") + ".py")
    if not file.is_file():
        raise ConfigError(
            f"{checkout} has no {file.relative_to(checkout)}. This command runs the workflows of a checkout, which are "
            "no part of the installed library: change into a clone, or `import steptool` in Python (docs/notebook.md)"
        )
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    imported = importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # flytekit's own handler calls sys.exit(1)
    return imported


@cache
def _make_scratch_folder() -> Path:
    """The temporary folder of this run. Made before flytekit is imported, which makes its own in it."""
    folder = tempfile.mkdtemp(prefix="steptool-run-")
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    return Path(folder)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(escape_controls(line), flush=True)


def _rehearse(config: Config, output: str, called: CalledTools, *, for_training: bool) -> None:
    """Print the plan of a run, try what it needs and where it writes, and estimate what it will take."""
    from steptool.artifacts.lineage import EVALUATION, TRAINING
    from steptool.check.plan import describe_memory_needs, describe_plan
    from steptool.pipeline.preparation import rehearse
    from steptool.storage.transfer import check_target

    with refuse_by_findings():
        check_target(output, TRAINING if for_training else EVALUATION)
        _print_lines(describe_plan(config))
        _print_lines(describe_memory_needs(config, _read_machines()))
        print(flush=True)
        _print_lines(rehearse(config, for_training=for_training, called=called))


def _read_machines(profile: Path | None = None) -> dict[str, Machine]:
    """The machine of each stage by its name: as the profile says, or without one this machine."""
    from steptool.check.memory import STAGES, detect_machine

    if profile is None:
        return dict.fromkeys(STAGES, detect_machine())
    with tempfile.TemporaryDirectory(prefix="steptool-run-") as folder:
        tempfile.tempdir = folder  # flytekit makes folders of its own there when it is imported
        profile_module = _import_from_checkout("tasks.runtime.profile")
        tempfile.tempdir = None
    machines: dict[str, Machine] = profile_module.load_profile(profile).list_machines()
    return machines


def _end(code: int, text: str) -> None:
    _report(text)
    sys.exit(code)


def _report(text: str) -> None:
    """Say how the command ends and where its unfinished work is; a full disk does not change the exit code."""
    with suppress(OSError):
        print(escape_controls(f"steptool: {text}"), file=sys.stderr, flush=True)
        if _make_scratch_folder.cache_info().currsize:
            folder = _make_scratch_folder()
            if any(folder.iterdir()):
                print(f"steptool: unfinished work is in {folder}; steptool clean removes it", file=sys.stderr)
            else:
                folder.rmdir()


if __name__ == "__main__":
    main()
