"""`flatlm chat` in a real pseudo-terminal, and through pipes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

import flatlm
from flatlm.generative.generate import generate
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.utilities.bundling import bundled_tokenizer
from tests.chat_files import CONTEXT, DEMO, chat_bundle
from tests.docs_blocks import run_page

ROOT = Path(flatlm.__file__).parents[1]
SLOW = """
import sys, time
from flatlm.generative.runner import Runner
step = Runner.step
Runner.step = lambda self, token: (time.sleep(0.05), step(self, token))[1]
from flatlm.cli import entry
entry()
"""
"""The same program, 20 tokens a second at most."""
READY, TAKEN = "\x1b[?2004h", "\x1b[?2004l"
"""What the line editor sends when it begins to read a line, and when it has one: it switches bracketed paste on and off."""
ENDLESS = ["--max-new-tokens", "100", "--threads", "1"]
SHORT = ["--max-new-tokens", "5", "--threads", "1"]
STATS = r"tokens/s · first token after [\d.]+ s · prompt of (\d+) tokens: (\d+) kept, (\d+) read · context (\d+) of 128"


@pytest.fixture(scope="session")
def bundle() -> Path:
    return chat_bundle()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    return kept | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache"), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}


@pytest.fixture
def terminal(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., pexpect.spawn]]:
    """Starts a chat in a terminal of 200 columns, and waits for its prompt."""
    running: list[pexpect.spawn] = []

    def start(*arguments: object, slow: bool = False) -> pexpect.spawn:
        program = ["-c", SLOW] if slow else ["-m", "flatlm.cli"]
        command = [*program, "chat", *map(str, arguments)]
        more = {"env": environment, "cwd": tmp_path, "dimensions": (24, 200), "encoding": "utf-8", "timeout": 60}
        child = pexpect.spawn(sys.executable, command, **more)
        running.append(child)
        child.expect("context of 128 tokens; /help tells")
        child.expect_exact(READY)
        return child

    yield start
    for child in running:
        child.close(force=True)


def enter(child: pexpect.spawn, text: str) -> None:
    """Types a line, or the last of several, until it is taken; what was echoed of it is behind us then."""
    child.send(text + "\r")
    child.expect_exact(TAKEN)


def told(child: pexpect.spawn, line: str, said: str = "") -> None:
    """Types a command, and waits for what it says and for the next prompt."""
    enter(child, line)
    child.expect(said)
    child.expect_exact(READY)


def ask(child: pexpect.spawn, text: str) -> tuple[int, ...]:
    """Waits for the answer's end; the tokens of the prompt, those kept, those read, and those of the context in use."""
    enter(child, text)
    child.expect(STATS)
    found = tuple(map(int, child.match.groups()))
    child.expect_exact(READY)
    return found


def leave(child: pexpect.spawn) -> None:
    child.sendcontrol("d")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def pipe(environment: dict[str, str], typed: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flatlm.cli", "chat", *map(str, arguments)]
    return subprocess.run(command, input=typed, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_turns_go_on_from_what_is_in_the_cache(terminal: Callable[..., pexpect.spawn], bundle: Path, tmp_path: Path) -> None:
    tokenizer = bundled_tokenizer(bundle)
    with Runner.open(bundle, threads=1) as runner:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Once upon a time"}])
        expected = generate(runner, tokenizer, prompt, GenerationConfig(max_new_tokens=5, ignore_eos=False)).text
    child = terminal(bundle, *SHORT)
    enter(child, "Once upon a time")
    child.expect_exact(expected.strip())
    child.expect(STATS)
    assert tuple(map(int, child.match.groups()))[:3] == (len(prompt), 0, len(prompt))
    child.expect_exact(READY)
    total, kept, read, _ = ask(child, "The dog")
    assert kept >= len(prompt) and total == kept + read
    told(child, "/stats", r"context \d+ of 128 tokens; 2 turns")
    told(child, "/undo", re.escape("taken back: The dog"))
    enter(child, "/retry")
    child.expect_exact("this will be the same answer: try /params temperature 0.8")
    child.expect(STATS)
    child.expect_exact(READY)
    leave(child)
    history = (tmp_path / "cache" / "flatlm" / "chat_history").read_text("utf-8")
    assert "+The dog" in history


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Callable[..., pexpect.spawn], bundle: Path, tmp_path: Path) -> None:
    child = terminal(bundle, *ENDLESS, slow=True)
    enter(child, "Once upon a time")
    child.expect(r"[a-z]+ [a-z]+ [a-z]+ ")  # a few words of it
    child.sendintr()
    child.expect_exact("stopped")
    child.expect(STATS)
    stopped_at = int(child.match[4])
    child.expect_exact(READY)
    told(child, "/params max_new_tokens 3")
    total, kept, _, _ = ask(child, "The dog")
    assert stopped_at <= kept < total  # what was written is the turn that the next one goes on from
    child.sendintr()
    child.expect_exact("/exit or Ctrl-D leaves")
    child.expect_exact(READY)
    child.send("half a line")
    child.sendintr()
    child.expect_exact(READY)
    told(child, "/save talk.json", re.escape("wrote talk.json: 2 turns"))
    saved = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert 0 < len(saved["messages"][1]["content"]) < 300
    assert [message["content"] for message in saved["messages"][::2]] == ["Once upon a time", "The dog"]
    enter(child, "/exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_several_lines(terminal: Callable[..., pexpect.spawn], bundle: Path, tmp_path: Path) -> None:
    child = terminal(bundle, *SHORT)
    child.send("one\x1b\rtwo")  # Alt-Enter
    ask(child, "")
    child.send("three\\\r")
    ask(child, "four")
    child.send('"""\r five\r\r')
    ask(child, 'six"""')
    ask(child, "//help")
    child.send("/sa\t")
    child.expect_exact("ve")  # it completes itself
    told(child, " talk.json", re.escape("wrote talk.json: 4 turns"))
    asked = [message["content"] for message in json.loads((tmp_path / "talk.json").read_text("utf-8"))["messages"][::2]]
    assert asked == ["one\ntwo", "three\nfour", " five\n\nsix", "/help"]
    leave(child)


def test_commands(terminal: Callable[..., pexpect.spawn], bundle: Path, tmp_path: Path) -> None:
    child = terminal(bundle, *SHORT, "--system", "Be kind.")
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "bad.json").write_text('{"messages": [3]}')
    first = ask(child, "One day")
    for typed, said in {
        "/nope": "there is no /nope: /help lists what there is",
        "/help": "Ctrl-C stops an answer",
        "/params": r"temperature +0\.0",
        "/params top_k 0.5": r"top_k 0\.5 is not possible",
        "/params warmth": "there is no parameter 'warmth'",
        "/params when_full never": "when_full 'never' is not possible: it is slide or stop",
        "/save": r"a file's name is needed, in quotes where it has spaces: /save FILE",
        "/save there.json": r"there\.json is there already: /save! there\.json writes over it",
        "/save! there.json": r"wrote over there\.json: 1 turns",
        "/save none/x.json": "none is not a directory: create it",
        "/load bad.json": r"bad\.json: message 1 after the system's is not one of 'user'",
        "/load none.json": r"none\.json cannot be read: No such file",
        "/stats": "1 turns",
        "/reset": "a new conversation",
        "/undo": "nothing was asked yet",
        "/load there.json": "1 turns; the last question was: One day",
        "/system Be brief.": "from the next question on",
    }.items():
        told(child, typed, said)
    told(child, "/params temperature 0.7")
    told(child, "/params temperature", r"temperature  0\.7")
    total, kept, _, _ = ask(child, "The dog")
    assert kept < first[0] < total  # another system prompt is another beginning
    leave(child)


def test_the_context_slides_or_stops(terminal: Callable[..., pexpect.spawn], bundle: Path) -> None:
    child = terminal(bundle, "--max-new-tokens", "100", "--threads", "1")
    told(child, "/params ignore_eos true")
    ask(child, "Once upon a time")
    enter(child, "The dog")
    child.expect_exact("the context is full: the model no longer sees the oldest 1 turns")
    child.expect(STATS)
    child.expect_exact(READY)
    told(child, "/params when_full stop")
    told(child, "/params max_new_tokens none")
    enter(child, "One day")
    child.expect_exact("the context of 128 tokens is full: the answer ends here")
    child.expect(STATS)
    child.expect_exact(READY)
    told(child, "A cat", "the context is full: [0-9]+ tokens with this question, of 128; nothing more is answered")
    told(child, "/reset", re.escape("a new conversation"))
    told(child, "/params max_new_tokens 3")
    ask(child, "A cat")
    leave(child)


def test_through_a_pipe(bundle: Path, environment: dict[str, str], tmp_path: Path) -> None:
    typed = f"Once upon a time\n/save {tmp_path}/talk.json\n\nThe\\\ndog\n/params nope 3\n/system\n"
    done = pipe(environment, typed, bundle, *SHORT)
    assert done.returncode == 2  # for what was refused
    assert done.stderr == f"flatlm chat: there is no parameter 'nope'; there are {', '.join(params())}, when_full\n"
    lines = done.stdout.splitlines()
    talk = json.loads((tmp_path / "talk.json").read_text("utf-8"))["messages"]
    assert lines[0] == talk[1]["content"]
    assert lines[1] == f"wrote {tmp_path}/talk.json: 1 turns"
    assert lines[-1] == "the model is told nothing before the conversation"
    assert "\x1b" not in done.stdout
    done = pipe(environment, f"/load {tmp_path}/talk.json\nThe dog", bundle, "--json", "--seed", "3")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert [turn["question"] for turn in record["turns"]] == ["Once upon a time", "The dog"]
    assert record["turns"][1]["stats"]["prompt_tokens"] > 10 and record["params"]["max_new_tokens"] == 5
    assert (record["context_length"], record["model"]) == (CONTEXT, bundle.name)


def test_no_file_ends_the_talk(bundle: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    names = ["~nosuch/x", "x" * 300, "a\0b", f"{tmp_path}/file/x", f"{tmp_path}/{'y' * 250}"]
    typed = "".join(f"{what} {name}\n" for what in ("/save", "/save!", "/load") for name in names)
    done = pipe(environment, f"{typed}Hi\n", bundle, *SHORT)
    complaints = done.stderr.splitlines()
    assert len(complaints) == 3 * len(names) and done.returncode == 2
    assert all(line.startswith("flatlm chat: ") and "fault" not in line for line in complaints)
    assert done.stdout.strip()


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_bytes_of_another_encoding_are_refused_line_by_line(
    bundle: Path, environment: dict[str, str], tmp_path: Path, encoding: str
) -> None:
    typed = b"caf\xe9\n/system caf\xe9\n/params stop caf\xe9\n/system caf\xc3\xa9\nHi\n/save talk.json\n"
    command = [sys.executable, "-m", "flatlm.cli", "chat", str(bundle), *SHORT]
    more = {"env": environment | {"PYTHONIOENCODING": encoding}, "cwd": tmp_path, "capture_output": True, "timeout": 300}
    done = subprocess.run(command, input=typed, check=False, **more)
    complaints = done.stderr.decode().splitlines()
    assert done.returncode == 2 and len(complaints) == 3
    assert all("not valid Unicode" in line for line in complaints)
    saved = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert [message["content"] for message in saved["messages"][:2]] == ["caf\xe9", "Hi"]


def params() -> tuple[str, ...]:
    from flatlm.generative.chatting.params import PARAMS

    return PARAMS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one model: an exported file, or a checkpoint's directory"),
        (["none.tflite"], r"none\.tflite does not exist; give an exported file"),
        (["BUNDLE", "--chat-template", "broken.jinja"], r"broken\.jinja: the chat template is broken at its line 1"),
        (["BUNDLE", "--chat-template", "chatlm"], "is no chat template"),
        (["BUNDLE", "--temperature", "-1"], "temperature"),
        (["BUNDLE", "--when-full", "never"], "invalid choice"),
        (["BUNDLE", "--draft", "BUNDLE"], "has no signature that checks a draft: export it with --verify-len 4"),
        (["model.tflite"], r"model\.tflite has no tokenizer of its own: give its directory with --tokenizer DIR"),
        (["model.tflite", "--tokenizer", str(DEMO)], r"model\.tflite"),
    ],
)
def test_wrong_input_is_one_line(bundle: Path, arguments: list[str], said: str, tmp_path: Path, monkeypatch, capsys) -> None:
    from flatlm.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jinja").write_text("{% if %}")
    (tmp_path / "model.tflite").write_bytes(b"no model")
    try:
        status = main(["chat", *(str(bundle) if each == "BUNDLE" else each for each in arguments)])
    except SystemExit as leaving:
        status = leaving.code
    complaint = capsys.readouterr().err
    assert status == 2
    assert re.search(said, complaint) and len(complaint.strip().splitlines()) == 1


def test_what_a_template_refuses_is_said_and_the_next_is_answered(bundle: Path, environment: dict[str, str], tmp_path: Path) -> None:
    template = tmp_path / "one.jinja"
    template.write_text("{% if messages[-1].content == 'no' %}{{ raise_exception('not that') }}{% endif %}{{ messages[-1].content }}")
    done = pipe(environment, "no\nThe dog\n", bundle, *SHORT, "--chat-template", template)
    assert done.returncode == 2
    assert done.stderr == "flatlm chat: the chat template refuses these messages: TemplateError: not that\n"
    assert done.stdout.strip()


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    assert run_page(ROOT / "docs" / "chat.md", tmp_path, not_compared=("flatlm chat story.litertlm --max-new-tokens",)) == 2
