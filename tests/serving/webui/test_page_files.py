"""What is served for the page, without a browser: fixed files, a strict policy, safe Markdown, cards."""

import re
from types import SimpleNamespace

import pytest

from flatlm.serving.markdown import to_html
from flatlm.serving.routes.page import FILES, FOLDER, LONGEST_MARKDOWN, describe
from flatlm.serving.text_model import ModelCard
from flatlm.utilities.tokenizing.named_templates import PLAIN


def test_all_files_are_served_and_no_others():
    assert {name for name, _ in FILES.values()} == {path.name for path in FOLDER.iterdir()}


def test_nothing_of_the_files_is_inline_or_from_elsewhere():
    page = (FOLDER / "index.html").read_text("utf-8")
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page) == []
    assert {address for address in re.findall(r'(?:src|href)="([^"]+)"', page) if not address.startswith("#")} <= set(FILES)
    for path in FOLDER.iterdir():
        text = path.read_text("utf-8")
        elsewhere = [address for address in re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text) if "www.w3.org" not in address]
        assert elsewhere == [], path.name
        assert set(re.findall(r'from "\./(\w+\.js)"', text)) <= {name for name, _ in FILES.values()}


def test_the_modules_stay_readable():
    for path in FOLDER.iterdir():
        lines = path.read_text("utf-8").splitlines()
        assert len(lines) <= 250 and (path.suffix == ".svg" or max(map(len, lines)) <= 140), path.name


@pytest.fixture(scope="module")
def http(_scripted):
    import httpx

    with httpx.Client(base_url=_scripted.url) as client:
        yield client


def test_files_come_with_a_strict_policy(http):
    for path, (name, kind) in FILES.items():
        response = http.get(path)
        assert response.content == (FOLDER / name).read_bytes()
        assert response.headers["content-type"].startswith(kind)
        assert response.headers["content-security-policy"].startswith("default-src 'self';")
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/other.js", "/ui/../page.py", "/ui/%2e%2e/%2e%2e/errors.py", "/ui/..%2fchat.js", "/ui//etc/passwd", "/index.html"]
)
def test_no_path_reaches_the_disk(http, path):
    assert http.get(path).status_code == 404


SCRIPTS = ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "&#106;avascript:alert(1)", "java\tscript:alert(1)", "javascript&colon;alert(1)"]


@pytest.mark.parametrize("link", [*SCRIPTS, "data:text/html,x", "vbscript:x", "file:///etc/passwd", "/v1/models", "//example.org/x"])
def test_other_links_stay_text(link):
    for text in (f"[here]({link})", f"<{link}>", f"[here][1]\n\n[1]: {link}", f"![here]({link})"):
        assert "<a" not in to_html(text) and "<img" not in to_html(text)


@pytest.mark.parametrize("link", ["http://example.org/a?b=c", "https://example.org", "mailto:somebody@example.org"])
def test_links_open_beside_the_page(link):
    assert to_html(f"[here]({link})") == f'<p><a href="{link}" rel="noopener noreferrer" target="_blank">here</a></p>\n'


def test_html_is_text():
    assert to_html("<b>x</b>") == "<p>&lt;b&gt;x&lt;/b&gt;</p>\n"
    assert to_html("<div onclick='x'>\ny\n</div>") == "<p>&lt;div onclick='x'&gt;<br />\ny<br />\n&lt;/div&gt;</p>\n"
    assert to_html('```"><script>\nx\n```') == '<pre><code class="language-&quot;&gt;&lt;script&gt;">x\n</code></pre>\n'
    assert 'title="&quot; onclick=x"' in to_html("[t](http://x '\" onclick=x')")


def test_cells_say_how_they_align_by_a_class():
    html = to_html("|a|b|c|\n|:-|:-:|-:|\n|1|2|3|")
    assert "style" not in html and html.count('class="left"') == html.count('class="center"') == html.count('class="right"') == 2


TABLE = "|a" * 999 + "\n" + "|-" * 999


@pytest.mark.parametrize("text", [">" * 20000, "- " * 9000 + "x", "[" * 9000, "*a_" * 5000, "`" * 9000, TABLE, "\x00"])
def test_what_is_made_to_hurt_is_answered(http, text):
    response = http.post("/ui/markdown", json={"text": text}, timeout=30)
    assert response.status_code == 200 and "<script" not in response.json()["html"]


def test_a_longer_text_is_refused(http):
    assert http.post("/ui/markdown", json={"text": "a" * LONGEST_MARKDOWN}).status_code == 200
    assert http.post("/ui/markdown", json={"text": "a" * (LONGEST_MARKDOWN + 1)}).status_code in (400, 422)


@pytest.mark.parametrize(("template", "chats"), [(None, False), (PLAIN, False), ("{{ messages }}", True)])
def test_a_card_says_whether_the_model_chats(template, chats):
    manifest = {"family": "llama", "recipe": {"name": "dynamic_int8", "activations": {"many": 1}}, "parameters": 5, "ignored_tensors": []}
    card = ModelCard("m", 0, "m.tflite", 12, "text", 64, 100, True, manifest)
    for given, own in ((template, None), (None, template)):
        model = SimpleNamespace(card=card, template=given, tokenizer=SimpleNamespace(chat_template=own))
        assert describe(model)["chat_template"] is chats  # type: ignore[arg-type]
    told = describe(model)  # type: ignore[arg-type]
    assert told["bytes"] == 12 and told["recipe"] == "dynamic_int8"
    assert told["manifest"] == {"family": "llama", "parameters": 5, "recipe": {"name": "dynamic_int8"}}
