"""Tools and other templates in a conversation: the same text and ids as transformers gives, from a checkpoint and from its bundle."""

from pathlib import Path
from typing import Any

import pytest

from flatlm.convert.bundle import MODEL_OFFSET
from flatlm.errors import TokenizerError
from flatlm.utilities.bundling import BundleFinisher, bundled_tokenizer
from flatlm.utilities.tokenizing.named_templates import CHATML, NAMED, PLAIN, find_template
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.tool_style import TALK, TOOL_TEMPLATE, TOOLS
from tests.utilities.tokenizing.test_chat_template import directory_with

MODEL = b"\x1c\x00\x00\x00TFL3"
LIST = "{{ tools | tojson }}|{{ tools[0].missing is defined }}|{{ tools is none }}{{ documents is none }}"


@pytest.mark.parametrize("tools", [None, [], TOOLS[:1], TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_tools_reach_the_template_as_transformers_gives_them(shared: Path, tmp_path: Path, tools: Any, prompt: bool) -> None:
    transformers = pytest.importorskip("transformers")
    directory = directory_with(shared, tmp_path, TOOL_TEMPLATE)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(str(directory)), Tokenizer.load(directory)
    for template in (None, LIST if tools else CHATML):
        more = {"tools": tools, "chat_template": template, "add_generation_prompt": prompt}
        text = theirs.apply_chat_template(TALK, tokenize=False, **more)
        assert ours.render_chat(TALK, add_generation_prompt=prompt, tools=tools, template=template) == text
        ids = theirs.apply_chat_template(TALK, tokenize=True, return_dict=False, **more)
        assert ours.apply_chat_template(TALK, prompt, tools, template) == ids
    assert ("weather" in text) == bool(tools)


def test_a_bundles_template_takes_tools_too(shared: Path, tmp_path: Path) -> None:
    directory = directory_with(shared, tmp_path, TOOL_TEMPLATE)
    bundle = tmp_path / "model.litertlm"
    bundle.write_bytes(bytes(MODEL_OFFSET) + MODEL)
    BundleFinisher(directory, 128)(bundle, len(MODEL), {})
    carried, own = bundled_tokenizer(bundle), Tokenizer.load(directory)
    assert carried.chat_template != own.chat_template
    for tools in (None, TOOLS):
        assert carried.apply_chat_template(TALK, tools=tools) == own.apply_chat_template(TALK, tools=tools)
    assert carried.apply_chat_template(TALK, template="x") == own.apply_chat_template(TALK, template="x")


@pytest.mark.parametrize("tools", ["weather", {"type": "function"}, [print], [{"a": object()}], [{"a": {1j: 1}}], [["a"]], 3])
def test_what_is_no_list_of_tools_is_refused(shared: Path, tools: Any) -> None:
    tokenizer = Tokenizer.load(shared / "checkpoints" / "stories260K")
    with pytest.raises(TokenizerError, match="the tools must be mappings of JSON values, such as a function's name and parameters"):
        tokenizer.render_chat(TALK, tools=tools, template=TOOL_TEMPLATE)


def test_tools_are_plain_data_and_stay_as_they_are(shared: Path) -> None:
    class Text(str):
        def steal(self) -> str:
            return "stolen"

    tokenizer = Tokenizer.load(shared / "checkpoints" / "stories260K")
    tools = [{"name": Text("x")}]
    with pytest.raises(TokenizerError, match="UndefinedError"):
        tokenizer.render_chat(TALK, tools=tools, template="{{ tools[0].name.steal() }}")
    assert tokenizer.render_chat(TALK, tools=tools, template="{{ tools[0].pop }}{{ tools[0].name }}") == "x"


def test_plain_is_a_text_as_any_other(shared: Path) -> None:
    """With BOS, as its tokenizer gives it to texts; answers go on, and all else begins a line."""
    tokenizer = Tokenizer.load(shared / "checkpoints" / "stories260K")
    talk = [
        {"role": "system", "content": "A story."},
        {"role": "user", "content": "The cat"},
        {"role": "assistant", "content": " sat."},
        {"role": "user", "content": [{"type": "text", "text": "The "}, {"type": "text", "text": "dog"}]},
    ]
    text = "A story.\nThe cat sat.\nThe dog"
    assert tokenizer.render_chat(talk, template=PLAIN) == text
    assert tokenizer.apply_chat_template(talk, template=PLAIN) == tokenizer.encode(text)
    assert tokenizer.encode(text)[0] == tokenizer.bos_id
    assert tokenizer.render_chat(talk[1:2], add_generation_prompt=False, template=PLAIN) == "The cat"


def test_chatml_is_qwens_and_hermes_frame(shared: Path) -> None:
    tokenizer = Tokenizer.load(shared / "checkpoints" / "stories260K")
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hi\n"}, {"role": "assistant", "content": None}]
    framed = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n Hi\n<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.render_chat(talk[:2], template=CHATML) == framed
    assert tokenizer.render_chat(talk, template=CHATML, add_generation_prompt=False) == framed + "<|im_end|>\n"


def test_templates_by_name_and_from_files(tmp_path: Path) -> None:
    assert [find_template(name) for name in NAMED] == [PLAIN, CHATML]
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}", "utf-8")
    assert find_template(str(file)) == "{{ messages[0].content }}"
    file.write_text("one\n{% if %}", "utf-8")
    with pytest.raises(TokenizerError, match=r"mine\.jinja: the chat template is broken at its line 2"):
        find_template(str(file))
    file.write_text("{{" + "(" * 5000, "utf-8")
    with pytest.raises(TokenizerError, match=r"mine\.jinja: the chat template is broken"):
        find_template(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenizerError, match=r"mine\.jinja: is not UTF-8 text"):
        find_template(str(file))
    with pytest.raises(TokenizerError, match=r"chatlm: is no chat template: neither a name \(plain, chatml\) nor a file.*mean chatml\?"):
        find_template("chatlm")
    with pytest.raises(TokenizerError, match="is no chat template"):
        find_template(str(tmp_path))
