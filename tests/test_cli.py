"""The command `steptool`, in real processes: what it runs, what it refuses, and how it ends."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from full_disk import use_small_disk

ROOT = Path(__file__).parents[1]
SMALL = """
data: {train_queries: 6, validation_queries: 2, heldout_queries: 4}
warm_start: {demonstrations: 6}
evaluation: {sampled_repeats: 0, bootstrap: 200, policies: [{name: reference, kind: playback}]}
"""
WIDTH, SCREEN = 80, 24


def run(*arguments: object, folder: Path = ROOT, **variables: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(WIDTH), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "steptool.cli", *map(str, arguments)]
    process = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return process.returncode, process.stdout, process.stderr


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def ingested(config: Path) -> Path:
    code, _, error = run("ingest", config, "--output", config.parent / "data", "--set", "data.train_queries=5")
    assert code == 0, error
    return config.parent / "data"


def test_the_help_of_train_fits_on_two_screens() -> None:
    code, output, _ = run("train", "--help")
    assert code == 0 and len(output.splitlines()) <= 2 * SCREEN
    assert all(word in output for word in ("CONFIG", "--output", "--set", "--dry-run"))


def test_every_command_is_listed_and_starting_imports_nothing_heavy() -> None:
    code, output, _ = run("--help")
    names = ("train", "evaluate", "ingest", "annotate", "export", "view", "serve", "registry", "check", "clean")
    assert code == 0 and all(f"│ {name} " in output for name in names)
    program = "import sys, steptool.cli; print(sorted({'torch', 'transformers', 'flytekit'} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_data_that_is_not_there_is_named_before_anything_heavy_is_imported(config: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "steptool.cli", "check", config]
    process = subprocess.run(
        [*command, "--set", "data={source: jsonl, environment: functions, paths: [/no]}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 2 and "'/no' does not exist" in process.stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in process.stderr.splitlines() if "import time:" in line}
    assert "steptool.data.ingest" in imported and not imported & {"torch", "transformers", "openai"}


def test_a_check_says_what_a_run_would_do_and_need(config: Path) -> None:
    code, plan, _ = run("check", config, "--set", "ppo.rounds=4", "--set", "rollout.episodes=50")
    assert code == 0
    assert "desk: 6 training, 2 validation and 4 held-out queries" in plan
    # 50 episodes in batches of 24 are 3 updates an epoch, and there are 2 epochs
    assert "4 rounds of 50 episodes in 2 shards; 6 updates a round, 24 in all" in plan
    stages = [line.split()[0] for line in plan.splitlines()[-4:]]
    assert stages == ["prepare", "warm_start", "rounds_together", "evaluate"]


def test_a_check_with_a_profile_has_the_stages_of_a_cluster(config: Path) -> None:
    code, plan, error = run("check", config, "--profile", "configs/cluster.yaml")
    assert code == 0, error
    stages = [line.split()[0] for line in plan.splitlines()[-5:]]
    assert stages == ["prepare", "warm_start", "rollout", "ppo", "evaluate"]


def test_a_check_says_where_the_memory_of_a_model_that_is_not_made_yet_is_estimated(config: Path) -> None:
    code, plan, _ = run("check", config, "--set", "policy.base=scratch")
    assert code == 0
    assert plan.splitlines()[-1] == "memory      scratch is not on this machine yet: a dry run makes or fetches it"


def test_what_cannot_fit_is_refused_by_the_machines_of_a_profile(config: Path) -> None:
    large = ("--set", "policy.max_context=30000", "--set", "rollout.batch_size=2000", "--set", "rollout.episodes=9000")
    code, _, error = run("check", config, *large, "--profile", "configs/cluster.yaml")
    assert code == 2
    assert "rollout needs" in error and "and A100 has 40.0: lower rollout.batch_size" in error


def test_what_does_not_fit_the_disk_of_a_pod_is_refused(config: Path, tmp_path: Path) -> None:
    profile = tmp_path / "machines.yaml"
    profile.write_text("stages: {ppo: {limits: {storage: 5M}}}\n")
    code, _, error = run("check", config, "--profile", profile)
    assert code == 2
    assert [line.split(",")[0] for line in error.splitlines()[1:]] == ["  ppo needs 0.0 GiB of disk"]


def test_a_dry_run_reads_the_data_starts_the_tools_and_tries_the_model(config: Path) -> None:
    output = config.parent / "never"
    code, dry, error = run("train", config, "--dry-run", "--output", output, "--set", "rollout.episodes=4")
    assert code == 0, error
    assert "data        read: 12 of 12 queries are kept" in dry
    assert "tools       desk: a session starts for each of 12 queries" in dry
    assert "model       embedded: loaded and tried, 12 prompts fit its context" in dry
    assert "prepare     memory by estimate: prepare " in dry
    assert " tools answered a call, " in dry and "not called, since they do not say that they only read: " in dry
    stages = [line.split()[0] for line in dry.splitlines()[-5:]]
    assert stages == ["warm", "rollouts", "training", "evaluation", "in"]
    assert not output.exists()
    code, _, error = run("train", config, "--dry-run", "--set", "policy.max_context=50", "--set", "rollout.episodes=4")
    assert code == 2
    assert error.startswith("steptool: query '") and "policy.max_context = 50" in error and "stack" not in error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "configs/laptp.yaml"], 2, "configs/laptp.yaml: no such file; did you mean configs/laptop.yaml?"),
        (["check", "configs/laptop.yaml", "--set", "ppo.rounds=x"], 2, "field 'ppo.rounds': input should be a valid"),
        (["check", "configs/laptop.yaml", "--set", "ppo.rounds"], 2, "'ppo.rounds' sets no field"),
        (["evaluate", "configs/laptop.yaml"], 2, "evaluation.policies is empty"),
        (["check", "configs/laptop.yaml", "--set", "data.source=jsonl", "--set", "data.paths=[/no]"], 2, "'/no' does"),
        (["view", "--trajectories", "/no.parquet", "--queries", "/no.parquet"], 2, "/no.parquet: no such file"),
        (["serve", "/no"], 2, "/no: no such folder"),
        (["write-serving", "/no", "configs/laptop.yaml"], 2, "/no: no such folder"),
        (["serve", "docs"], 1, "docs: "),
        (
            ["train", "configs/laptop.yaml", "--dry-run", "--output", "README.md"],
            2,
            "README.md: is a file; give --output",
        ),
        (["registry", "list", "--registry", "/no"], 1, "/no: there is no registry"),
    ],
)
def test_what_cannot_be_done_ends_with_one_cause(arguments: list[str], code: int, message: str) -> None:
    process, output, error = run(*arguments)
    assert (process, output) == (code, "")
    assert error.startswith("steptool: ") and message in error and "Traceback" not in error


def test_data_that_a_dry_run_refuses_is_named_with_its_reasons(tmp_path: Path) -> None:
    logs = tmp_path / "logs.jsonl"
    call = {"id": "1", "type": "function", "function": {"name": "count", "arguments": "{}"}}
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    logs.write_text(json.dumps({"messages": messages}) + "\n")
    overrides = f"data={{source: recorded, environment: functions, paths: [{logs}]}}"
    tools = "tools.functions=examples/functions/tools.py:Shop"
    code, _, error = run("train", "configs/laptop.yaml", "--dry-run", "--set", overrides, "--set", tools)
    (cause,) = error.splitlines()
    assert code == 2 and cause.startswith(f"steptool: {logs}: demonstrations: 1 read, 1 dropped: a call without a resp")
    assert "No query is left" in cause and f"First record set aside: {logs}, row 1" in cause
    assert "steptool-run-" not in cause  # no file of the temporary folder, which is gone


@pytest.fixture(scope="module")
def bash_complete(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """What an interactive bash offers after `steptool --install-completion`, by the words until the key TAB."""
    home = tmp_path_factory.mktemp("home")
    program = home / "bin" / "steptool"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m steptool.cli "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT)}

    def bash(script: str) -> str:
        command = ["bash", "--rcfile", str(home / ".bashrc"), "-i", "-c", script]
        process = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        return process.stdout

    # with a second command bash stays the parent, by which steptool knows the shell
    assert "bash completion installed in" in bash("steptool --install-completion; :")

    def complete(*words: str) -> list[str]:
        listed = " ".join(map(shlex.quote, ["steptool", *words]))
        return bash(
            'function=$(complete -p steptool | sed "s/.* -F //; s/ .*//")\n'
            f'COMP_WORDS=({listed}); COMP_CWORD={len(words)}; "$function" steptool\n'
            'printf "%s\\n" "${COMPREPLY[@]}"'
        ).split()

    return complete


def test_bash_completes_commands_options_and_choices(bash_complete: Callable[..., list[str]]) -> None:
    assert bash_complete("tr") == ["train"]
    assert bash_complete("registry", "ro") == ["roll-back"]
    assert {"--set", "--dry-run", "--call-tools"} <= set(bash_complete("train", "--"))
    assert bash_complete("train", "my.yaml", "--call-tools", "r") == ["read-only"]


def test_bash_offers_files_for_a_configuration(bash_complete: Callable[..., list[str]]) -> None:
    assert bash_complete("train", "configs/lap") == []  # none of ours, so that bash offers files (complete -o default)


def test_outside_of_a_checkout_the_workflows_are_named_and_the_rest_works(tmp_path: Path, config: Path) -> None:
    code, _, error = run("train", config, folder=tmp_path, TMPDIR=str(tmp_path))
    assert code == 2
    assert error.startswith(f"steptool: {tmp_path} has no workflows/train.py.") and "clone" in error
    assert "unfinished work" not in error and not list(tmp_path.glob("steptool-run-*"))
    assert run("check", config, folder=tmp_path)[0] == 0


def test_a_stage_that_fails_ends_the_command_with_its_cause_and_keeps_the_stack(tmp_path: Path, config: Path) -> None:
    broken = tmp_path / "tasks.jsonl"
    broken.write_text("{}\n")
    override = f"data={{source: jsonl, paths: [{broken}], train_queries: 1}}"
    code, _, error = run("ingest", config, "--output", tmp_path / "out", "--set", override, TMPDIR=str(tmp_path))
    assert code == 1
    cause, rest = error.splitlines()
    (stack,) = tmp_path.glob("steptool-run-*/steptool-ingest-*.txt")
    assert cause.startswith("steptool: ingest: ") and str(stack) in cause and "Traceback" in stack.read_text()
    assert rest == f"steptool: unfinished work is in {stack.parent}; steptool clean removes it"


def test_ingest_view_export_and_annotate_run_the_workflows(ingested: Path, config: Path) -> None:
    files = ("--trajectories", ingested / "demonstrations.parquet", "--queries", ingested / "queries.parquet")
    for command in (
        ("view", *files, "--output", ingested / "viewer.html", "--title", "Logs"),
        ("export", *files, *files[:2], "--output", ingested, "--form", "sft"),
        ("annotate", config, *files, "--output", ingested),
    ):
        code, _, error = run(*command)
        assert code == 0, error
    assert "<title>Logs" in (ingested / "viewer.html").read_text()
    assert (ingested / "sft.parquet").is_file() and (ingested / "audit.html").is_file()


def test_evaluate_compares_the_policies_and_leaves_nothing_behind(config: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "temporary"
    scratch.mkdir()
    code, output, error = run("evaluate", config, "--output", config.parent / "evaluation", TMPDIR=str(scratch))
    assert code == 0, error
    assert [path.name for path in scratch.iterdir() if path.name.startswith(("flyte", "steptool"))] == []
    assert "reference" in output and (config.parent / "evaluation" / "evaluation.html").is_file()


@pytest.mark.parametrize("name", ["tmp", "out"])
def test_a_full_disk_is_named_with_its_room_and_the_remedy(ingested: Path, tmp_path: Path, name: str) -> None:
    """Temporary files or results stand on a disk of 24 kB."""
    for folder in ("tmp", "out"):
        (tmp_path / folder).mkdir()
    files = ["--trajectories", ingested / "demonstrations.parquet", "--queries", ingested / "queries.parquet"]
    export = [sys.executable, "-m", "steptool.cli", "export", *files, "--output", tmp_path / "out"]
    process = subprocess.run(
        [*use_small_disk(tmp_path / name, 24), *map(str, export)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    remedy = {"tmp": "let TMPDIR name a folder on another disk", "out": "name a place on another disk"}[name]
    pattern = rf"steptool: export: .*; 0\.0 MB are free in {tmp_path}/{name}\S*: make room there, or {remedy}; "
    assert process.returncode == 1
    assert re.match(pattern, process.stderr), process.stderr


def test_a_standard_error_that_takes_no_more_does_not_change_the_exit_code() -> None:
    command = [sys.executable, "-m", "steptool.cli", "check", "/no.yaml"]
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=full, timeout=60, check=False
        )
    assert process.returncode == 2


SLOW_TOOL = '''import os, pathlib, time

def count(item: str) -> int:
    """Count what is in stock.

    Args:
        item: What to count.
    """
    pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))
    time.sleep(60)

TOOLS = [count]
'''


@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_a_signal_ends_a_run_and_its_tools_with_one_line(
    tmp_path: Path, config: Path, number: signal.Signals, code: int, words: str
) -> None:
    (tmp_path / "tools.py").write_text(SLOW_TOOL)
    reference = {"calls": [{"name": "count", "arguments": {"item": "kettles"}}]}
    tasks = [{"instruction": f"How many, {n}?", "reference": reference} for n in range(12)]
    (tmp_path / "tasks.jsonl").write_text("".join(f"{json.dumps(task)}\n" for task in tasks))
    fields = (
        f"data={{source: jsonl, environment: functions, paths: [{tmp_path}/tasks.jsonl], train_queries: 6}}",
        f"tools={{functions: '{tmp_path}/tools.py:TOOLS', isolation: process, timeout: 120}}",
    )
    overrides = [word for field in fields for word in ("--set", field)]
    command = ["evaluate", str(config), "--output", str(tmp_path / "out"), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "steptool.cli", *command], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(600):
            if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
                break
            time.sleep(0.1)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.splitlines()[0] == f"steptool: {words}"
    tool = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{tool}").exists() or Path(f"/proc/{tool}/stat").read_text().split()[2] == "Z"
    assert not (tmp_path / "out").exists()


def test_clean_removes_what_old_runs_left_and_nothing_else(tmp_path: Path) -> None:
    for name in ("flyte-old12345/a", "flytenew12345/a", "flyte_of_mine/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model").write_bytes(b"x" * 2_000_000)
    for path in [*tmp_path.glob("flyte-old12345/**/*"), tmp_path / "flyte-old12345"]:
        os.utime(path, (0, 0))
    code, output, _ = run("clean", "--dry-run", TMPDIR=str(tmp_path))
    assert code == 0 and f"would remove {tmp_path}/flyte-old12345  2.0 MB" in output
    assert (tmp_path / "flyte-old12345").exists()
    code, output, _ = run("clean", TMPDIR=str(tmp_path))
    assert code == 0 and output.splitlines()[-1] == "2.0 MB in 1 places"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flyte_of_mine", "flytenew12345"]


def test_a_module_that_ends_its_process_is_refused_by_its_name(tmp_path: Path, config: Path) -> None:
    (tmp_path / "tools.py").write_text("import os\nprint('bye')\nos._exit(3)\n")
    functions = f"tools.functions={tmp_path}/tools.py:TOOLS"
    for command in (["check", config], ["train", config, "--dry-run"], ["evaluate", config]):
        code, output, error = run(*command, "--set", functions)
        assert (code, output) == (2, "")
        assert error == (
            f"steptool: tools.functions: importing '{tmp_path}/tools.py:TOOLS' ends the process, with exit code 3\n"
        )
