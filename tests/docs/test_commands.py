"""Every command in README.md and docs/ is one that the code understands, and every one is run by a test."""

import json
import re
import shutil
from urllib.parse import urlsplit

import pytest

from tests.docs.documents import OURS, REPO, Code, Command, block_lines, commands, documents, fences, spans
from tests.docs.executed import NOT_RUN, RUN_BY
from tests.docs.parsing import Drift, check, check_mentioned, command_of, options_of, root_of_seta

MODULES = ("adapters.benchmark", "loadtest.accuracy", "seta_runtime.bench", "seta_runtime.bench.big")
OTHERS_OPTIONS = {"--help", "--multi_gpu", "--num_processes", "--cpu", "--max-concurrency"}
"""Of every command, of `accelerate launch`, and of `vllm bench serve`."""

DOCUMENTS = dict(documents())
WRITTEN = [found for name, text in DOCUMENTS.items() for line in block_lines(name, text) for found in commands(line)]
MENTIONED = [span for name, text in DOCUMENTS.items() for span in spans(name, text)]
SHOWN = WRITTEN + [found for span in MENTIONED if " " in span.text for found in commands(span)]


def test_the_documents_have_commands() -> None:
    assert {found.words[0] for found in WRITTEN} >= {"seta", "make", "python", "curl", "pip", "promtool"}
    assert len(WRITTEN) > 25 and len(MENTIONED) > 500


@pytest.mark.parametrize("command", [pytest.param(one, id=f"{one.where} {' '.join(one.words)}") for one in WRITTEN])
def test_a_written_command_is_understood(command: Command) -> None:
    check(command)


def test_mentioned_commands_and_options_exist() -> None:
    known = OTHERS_OPTIONS | set(options_of(root_of_seta()))
    known |= {option for module in MODULES for option in options_of(command_of(module))}
    found = [drift for span in MENTIONED for drift in drifts(span, known)]
    assert not found, "\n".join(found)


def drifts(span: Code, known: set[str]) -> list[str]:
    try:
        if span.text.split(" ")[0] in OURS and " " in span.text:
            for command in commands(span):
                check_mentioned(list(command.words))
    except Drift as drift:
        return [f"{span.where} `{span.text}`: {drift}"]
    options = re.findall(r"^--[a-z_-]+", span.text)
    return [f"{span.where} `{span.text}`: no command has {option}" for option in options if option not in known]


def test_every_command_is_run_by_a_test_or_has_a_reason_not_to_be() -> None:
    shown = {entry_of(command) for command in SHOWN}
    assert shown == set(RUN_BY) | set(NOT_RUN)
    assert not set(RUN_BY) & set(NOT_RUN)


def entry_of(command: Command) -> str:
    """The longest entry of the table that a command has all words of; without one, the command itself."""
    words = [urlsplit(word).path if word.startswith("http") else word for word in command.words]
    if words[0] in (".venv/bin/python", "python3"):
        words[0] = "python"
    entries = [entry for entry in (*RUN_BY, *NOT_RUN) if set(entry.split()) <= set(words)]
    return max(entries, key=len, default=" ".join(words))


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("seta learn --bank b --task t", "seta learn"),
        ("seta learn --bank b --task t --activate http://127.0.0.1:8001", "seta learn --activate"),
        ("seta bank export-lora b o --task t", "seta bank export-lora"),
        (".venv/bin/python -m loadtest --scenario steady", "python -m loadtest"),
        ("seta bank rebuild b", "seta bank rebuild b"),
    ],
)
def test_a_command_has_the_entry_that_says_most(line: str, entry: str) -> None:
    assert [entry_of(command) for command in commands(Code("here", line))] == [entry]


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_the_tests_of_the_table_exist(test: str) -> None:
    file, _, function = test.partition("::")
    assert re.search(rf"^ *def {function}\(", (REPO / file).read_text(), re.MULTILINE), test


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples_in_python_and_json_are_python_and_json(name: str) -> None:
    for code in fences(name, DOCUMENTS[name], "python"):
        compile(code.text, code.where, "exec")
    for code in fences(name, DOCUMENTS[name], "json"):
        json.loads(code.text if code.text.startswith("{") else f"{{{code.text}}}")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("seta lern --bank b", "No such command 'lern'"),
        ("seta learn --bank b --task t --epochs 3", "No such option: --epochs"),
        ("seta learn --bank b", "Missing parameter: task"),
        ("seta serve --bank b --model m --port high", "should be a valid integer"),
        ("seta generations activate", "Missing parameter: generation"),
        ("seta bank show", "Missing parameter: bank"),
        ("seta loadtest --scenario steady --users 3", "No such option"),
        ("seta loadtest compare a", "Missing parameter: after"),
        ("make tests", "no target 'tests'"),
        ("make demo SOCKET=1", "no variable 'SOCKET'"),
        ("python -m loadtest.acuracy --test x", "no module loadtest.acuracy"),
        ("python -m loadtest.nothing", "no module loadtest.nothing"),
        ("python -m loadtest.accuracy --tests x", "No such option: --tests"),
        ("python -m adapters.benchmark --data d --out o --sequence s --epochs 3", "No such option"),
        ("python -m adapters.demo.build --nowhere", "SystemExit: 2"),
        ("python -m deploy.vendor --all", "takes no options"),
        ("pip install 'seta[gpu]'", "no extra {'gpu'}"),
        ("cd deploy/nowhere && ls", "no directory deploy/nowhere"),
        ("curl http://127.0.0.1:8000/v1/rout -d '{}'", "no route POST /v1/rout"),
        ("curl http://127.0.0.1:8000/v1/route", "no route GET /v1/route"),
        ("curl http://127.0.0.1:8000/v1/route -d '{\"messages\": [}'", "JSONDecodeError"),
        ("curl http://127.0.0.1:8000/admin/v1/generations", "no route GET /admin/v1/generations"),
    ],
)
def test_a_command_that_drifted_is_found(line: str, says: str) -> None:
    with pytest.raises(Drift, match=re.escape(says)):
        for command in commands(Code("here", line)):
            check(command)


@pytest.mark.parametrize("line", ["seta serve --host 0.0.0.0 ...", "A=b seta bank show DIR  # what's in it"])
def test_what_is_left_out_or_said_beside_is_no_drift(line: str) -> None:
    (command,) = commands(Code("here", line))
    check(command)


@pytest.mark.parametrize(
    "text", ["seta bank rebuild", "seta serve --gpus 2", "make tests", "python -m loadtest --users 3", "--users"]
)
def test_a_mention_that_drifted_is_found(text: str) -> None:
    assert drifts(Code("here", text), set(options_of(root_of_seta())))


def test_no_program_is_overlooked() -> None:
    """A line that begins with a program of this machine, in a block that is neither Python nor JSON, is a command."""
    lines = [line for name, text in DOCUMENTS.items() for line in block_lines(name, text)]
    plain = [line for line in lines if line.text and line.language not in ("python", "json")]
    unseen = [line for line in plain if not any(commands(line))]
    assert len(plain) - len(unseen) > 60
    assert not [f"{line.where} {line.text}" for line in unseen if shutil.which(line.text.split()[0])]


def test_a_loop_is_one_command() -> None:
    text = "    for one in a b; do\n      echo $one\n    done | cat\n    make demo\n"
    found = [one.words for line in block_lines("x", text) for one in commands(line)]
    assert found == [("for", "one", "in", "a", "b"), ("make", "demo")]


def test_a_command_goes_on_after_a_backslash() -> None:
    text = "```\ncurl -s http://127.0.0.1:8000/v1/route \\\n  -d '{\"a\": 1}'\n```\n"
    (command,) = [found for line in block_lines("x", text) for found in commands(line)]
    assert command.words == ("curl", "-s", "http://127.0.0.1:8000/v1/route", "-d", '{"a": 1}')
