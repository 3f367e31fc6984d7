"""The chat in a real browser, over answers that are written beforehand."""

import json
from itertools import pairwise

import pytest
from selenium.webdriver.common.keys import Keys

from tests.serving.webui.scripted import scripted

WATCH = """
window.seen = [];
new MutationObserver(() => {
  const text = document.querySelector('.message:last-child.assistant .body')?.textContent;
  if (text && text !== window.seen.at(-1)) window.seen.push(text);
}).observe(document.getElementById('messages'), {childList: true, subtree: true, characterData: true});
"""
MARKDOWN = """# A title

Some **bold** text, `code`, ~~old~~ and a [link](https://example.org "there").

| name | count |
| ---- | ----: |
| a    |    12 |

1. one
2. two

```python
print("hello")
```
"""
EVIL = """<script>document.title = 'run'</script>
<img src=x onerror="document.title='run'"> <style>body{display:none}</style>

[a](javascript:document.title='run') [b](data:text/html,x) ![p](http://127.0.0.1:9/p.png)

<iframe src="http://127.0.0.1:9/"></iframe>
"""


def test_an_answer_appears_piece_by_piece(scripted_page, script):
    script.pieces, script.pause_s = tuple(f" word{i}" for i in range(12)), 0.05
    scripted_page.run(WATCH)
    assert scripted_page.ask("Say it") == " ".join(f"word{i}" for i in range(12))
    seen = scripted_page.run("return window.seen")
    assert len(seen) > 6 and all(len(before) <= len(after) for before, after in pairwise(seen))
    figures = scripted_page.find(".message.assistant .figures").text
    assert "12 tokens" in figures and "tokens/s" in figures and "first token" in figures and "≈" not in figures
    assert scripted_page.find("#used").text == "17 of 64 tokens"
    log = scripted_page.find("#messages")
    assert (log.get_attribute("aria-live"), log.get_attribute("aria-busy")) == ("polite", "false")


def test_markdown_is_rendered(scripted_page, script):
    script.pieces, script.pause_s = tuple(MARKDOWN.splitlines(keepends=True)), 0.02
    scripted_page.ask("Show all")
    body = ".message.assistant .body"
    for what in ("h1", "strong", "s", "td.right", "ol li", "pre code"):
        assert scripted_page.all(f"{body} {what}"), what
    link = scripted_page.find(f"{body} a")
    assert (link.get_attribute("href"), link.get_attribute("title")) == ("https://example.org/", "there")
    assert "noopener" in link.get_attribute("rel") and link.get_attribute("target") == "_blank"
    scripted_page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    scripted_page.find(f"{body} .copy").click()
    scripted_page.wait(lambda: scripted_page.find(f"{body} .copy").text == "Copied")
    read = "navigator.clipboard.readText().then(arguments[0])"
    assert scripted_page.driver.execute_async_script(read) == 'print("hello")'
    scripted_page.click("Copy", ".message.assistant .foot")
    scripted_page.wait(lambda: scripted_page.driver.execute_async_script(read) == MARKDOWN)
    starts = scripted_page.run(
        "return performance.getEntriesByType('resource').filter((e) => e.name.endsWith('/ui/markdown')).map((e) => e.startTime)"
    )
    assert len(starts) > 1 and all(after - before > 340 for before, after in pairwise(starts)), "at most a few times a second"


def test_what_a_model_writes_is_never_run(scripted_page, script):
    script.pieces = tuple(EVIL)
    scripted_page.ask("Attack")
    body = scripted_page.find(".message.assistant .body")
    assert scripted_page.driver.title == "FlatLM"
    assert "<script>document.title = 'run'</script>" in body.text and "onerror=" in body.text and "<style>" in body.text
    assert scripted_page.all(".body script, .body img, .body style, .body iframe, .body [onerror], .body [style]") == []
    links = scripted_page.run("return [...document.querySelectorAll('.body a')].map((a) => a.href)")
    assert links == ["http://127.0.0.1:9/p.png"], "a picture is no more than a link"
    assert scripted_page.chromium.complaints() == []
    assert not [url for url in scripted_page.requests() if ":9/" in url]


def test_the_page_lets_only_known_elements_in(scripted_page):
    """The second fence: should the server's HTML be bad, nothing of it runs."""
    bad = """<p onclick="x()" style="color:red">t<script>document.title='run'</script><img src=x onerror="document.title='run'"></p>
    <a href="javascript:document.title='run'">l</a><svg><script>document.title='run'</script></svg><form><input></form>"""
    scripted_page.run(
        "const real = window.fetch; window.fetch = (url, options) => url === '/ui/markdown'"
        " ? Promise.resolve(new Response(JSON.stringify({html: arguments[0]}))) : real(url, options)",
        bad,
    )
    scripted_page.ask("Hello")
    assert scripted_page.driver.title == "FlatLM"
    found = scripted_page.run(
        "return [...document.querySelectorAll('.assistant .body *')].map((e) => [e.localName, ...e.getAttributeNames()].join(' '))"
    )
    assert sorted(found) == ["a", "p", "span class"], "and the tail's span"


@pytest.mark.parametrize("how", ["button", "key"])
def test_an_answer_is_stopped(scripted_page, script, how):
    script.pieces, script.pause_s = tuple(f"{i} " for i in range(400)), 0.03
    scripted_page.say("Count")
    scripted_page.wait(lambda: "3" in scripted_page.find(".message.assistant .body").text)
    assert scripted_page.find("#stop").is_displayed() and not scripted_page.find("#send").is_displayed()
    assert scripted_page.find("#messages").get_attribute("aria-busy") == "true", "read out when it is whole"
    if how == "button":
        scripted_page.find("#stop").click()
    else:
        scripted_page.keys(Keys.ESCAPE)
    text = scripted_page.answered()
    assert text.startswith("0 1 2") and not text.endswith("399")
    assert scripted_page.find(".message.assistant .remark").text == "Stopped."
    assert scripted_page.find("#send").is_displayed() and not scripted_page.find("#stop").is_displayed()
    assert "≈" in scripted_page.find(".message.assistant .figures").text
    scripted_page.wait(lambda: script.left == [True])


def test_parameters_reach_the_request(scripted_page, script):
    values = {"temperature": "0.25", "top_p": "0,9", "top_k": "40", "min_p": "0.05", "max_tokens": "33", "seed": "7"}
    for name, value in {**values, "system": "Be brief.", "stop": "END\n\\n\\n"}.items():
        box = scripted_page.find(f"#p-{name}")
        box.clear()
        box.send_keys(value.replace("\n", Keys.SHIFT + Keys.ENTER + Keys.NULL))
    scripted_page.ask("Hello")
    asked = script.asked[-1]
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    wanted = {"temperature": 0.25, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "max_tokens": 33, "seed": 7, "stop": ["END", "\n\n"]}
    assert {name: asked[name] for name in wanted} == wanted and asked["stream"] and asked["stream_options"] == {"include_usage": True}
    scripted_page.driver.refresh()
    scripted_page.ready()
    assert scripted_page.find("#p-top_k").get_attribute("value") == "40"
    scripted_page.click("Reset")
    scripted_page.ask("Again")
    assert scripted_page.find("#p-top_k").get_attribute("value") == "" and "top_k" not in script.asked[-1]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", "3", "must be a number from 0 to 2"),
        ("temperature", "-1", "must be a number from 0 to 2"),
        ("temperature", "warm", "must be a number from 0 to 2"),
        ("top_p", "0", "must be a number above 0, up to 1"),
        ("top_k", "2.5", "must be a whole number from 1"),
        ("max_tokens", "0", "must be a whole number from 1"),
        ("seed", "99999999999999999999", "must be a whole number from 0"),
        ("stop", "\n".join("abcdefghijklmnopq"), "at most 16"),
    ],
)
def test_an_impossible_parameter_is_not_sent(scripted_page, script, name, value, message):
    box = scripted_page.find(f"#p-{name}")
    box.clear()
    box.send_keys(value)
    assert scripted_page.find(f"#p-{name}-wrong").text == message and box.get_attribute("aria-invalid") == "true"
    scripted_page.click("Close")
    scripted_page.say("Hello")
    assert scripted_page.run("return document.activeElement.id") == f"p-{name}" and box.is_displayed()
    assert script.asked == [] and scripted_page.find("#prompt").get_attribute("value") == "Hello"


def test_a_refusal_is_shown_as_it_came_and_can_be_tried_again(scripted_page, script):
    script.refusal = (429, "the server is busy: 64 requests wait already")
    scripted_page.say("Hello")
    scripted_page.wait(lambda: scripted_page.all(".remark.failed"))
    assert scripted_page.find(".remark.failed span").text == "the server is busy: 64 requests wait already (429, some_error)"
    script.refusal = None
    scripted_page.click("Retry")
    assert scripted_page.answered() == "Hello there."
    assert script.asked[0]["messages"] == script.asked[1]["messages"] == [{"role": "user", "content": "Hello"}]
    assert scripted_page.all(".remark.failed") == []


@pytest.mark.parametrize("ending", ["broken", "early"])
def test_a_server_that_goes_away_leaves_what_was_written(scripted_page, script, ending):
    script.pieces, script.pause_s, script.ending = ("Once", " upon", " a"), 0.05, ending
    scripted_page.say("Hello")
    scripted_page.wait(lambda: scripted_page.all(".remark.failed"))
    assert scripted_page.find(".message.assistant .body").text == "Once upon a"
    assert "went away before the answer was complete" in scripted_page.find(".remark.failed").text
    script.ending = "whole"
    scripted_page.click("Retry")
    assert scripted_page.answered() == "Once upon a" and scripted_page.all(".remark.failed") == []


def test_an_error_in_the_middle_of_an_answer_is_shown(scripted_page, script):
    script.pieces, script.error = ("Once", " upon"), "the process that runs it was killed"
    scripted_page.say("Hello")
    scripted_page.wait(lambda: scripted_page.all(".remark.failed"))
    assert scripted_page.find(".message.assistant .body").text == "Once upon"
    assert scripted_page.find(".remark.failed span").text == "the process that runs it was killed"


def test_an_empty_answer_is_said_to_be_empty(scripted_page, script):
    script.pieces = ()
    assert scripted_page.ask("Hello") == ""
    assert "the model ended at once" in scripted_page.find(".message.assistant .remark").text


def test_a_long_answer_stays_plain_from_where_it_is_too_long(scripted_page, script):
    script.pieces = ("*a* " * 8000, "*b* " * 1000)
    scripted_page.say("Hello")
    scripted_page.wait(lambda: scripted_page.run("return document.querySelector('.assistant .body')?.textContent.length > 19000"))
    assert scripted_page.find(".message.assistant .body").text.rstrip().endswith("*b* *b*")
    assert scripted_page.all(".remark.failed") == []


def test_a_server_that_is_not_there_is_said(page, empty_file):
    with scripted(empty_file) as server:
        page.open(server.url)
        page.ready()
    page.say("Hello")
    page.wait(lambda: page.all(".remark.failed"))
    assert "cannot be reached" in page.find(".remark.failed").text and page.find(".message.user .body").text == "Hello"


def test_the_conversation_goes_on_is_kept_and_exported(scripted_page, script, tmp_path):
    scripted_page.ask("One")
    scripted_page.ask("Two")
    contents = [message["content"] for message in script.asked[-1]["messages"]]
    assert contents == ["One", "Hello there.", "Two"]
    scripted_page.driver.refresh()
    scripted_page.ready()
    scripted_page.answered(4)
    bodies = [body.text for body in scripted_page.all(".message .body")]
    assert bodies == ["One", "Hello there.", "Two", "Hello there."]
    assert "3 tokens" in scripted_page.all(".message .figures")[-1].text
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    scripted_page.driver.execute_cdp_cmd("Page.setDownloadBehavior", behaviour)
    scripted_page.click("Export")
    scripted_page.wait((tmp_path / "conversation.json").exists)
    scripted_page.wait(lambda: (tmp_path / "conversation.json").stat().st_size)
    exported = json.loads((tmp_path / "conversation.json").read_text("utf-8"))
    assert [turn["content"] for turn in exported["turns"]] == bodies and exported["model"]["id"] == "scripted"
    scripted_page.click("New chat")
    assert scripted_page.all(".message") == [] and scripted_page.find("#welcome").is_displayed()
    scripted_page.click("Bring it back")
    assert len(scripted_page.all(".message")) == 4


def test_an_answer_that_was_left_half_way_is_kept(scripted_page, script):
    script.pieces, script.pause_s = tuple(f"{i} " for i in range(400)), 0.03
    scripted_page.say("Count")
    scripted_page.wait(lambda: "3" in scripted_page.find(".message.assistant .body").text)
    scripted_page.driver.refresh()
    scripted_page.ready()
    assert scripted_page.answered().startswith("0 1 2")
    assert scripted_page.find(".message.assistant .remark").text == "Stopped."


def test_a_chat_that_is_brought_back_while_its_answer_was_written(scripted_page, script):
    script.pieces, script.pause_s = tuple(f"{i} " for i in range(400)), 0.03
    scripted_page.say("Count")
    scripted_page.wait(lambda: "3" in scripted_page.find(".message.assistant .body").text)
    scripted_page.click("New chat")
    scripted_page.click("Bring it back")
    assert scripted_page.answered().startswith("0 1 2")
    assert scripted_page.find(".message.assistant .remark").text == "Stopped."


def test_a_browser_that_ended_while_an_answer_was_written(page, _scripted, script):
    """It had no time to say so."""
    page.open(f"{_scripted.url}ui/icon.svg")
    turns = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "1 2", "state": "writing", "model": "scripted"}]
    page.run("localStorage.setItem('flatlm.conversation', arguments[0])", json.dumps(turns))
    page.open(_scripted.url, anew=False)
    page.ready()
    assert page.answered() == "1 2" and page.find(".message.assistant .remark").text == "Stopped."
    page.click("Regenerate")
    assert page.answered() == "Hello there."


@pytest.mark.parametrize("kept", ["{", "5", '[1, null, {"role": "user"}]'])
def test_what_is_kept_may_be_anything(page, _scripted, script, kept):
    page.open(f"{_scripted.url}ui/icon.svg")
    names = ["conversation", "parameters", "theme", "previous"]
    page.run("for (const name of arguments[0]) localStorage.setItem('flatlm.' + name, arguments[1])", names, kept)
    page.open(_scripted.url, anew=False)
    page.ready()
    assert page.ask("Hello") == "Hello there." and page.chromium.complaints() == []


def test_an_answer_is_written_again_and_a_message_edited(scripted_page, script):
    scripted_page.ask("One")
    scripted_page.ask("Two")
    script.pieces = ("Other",)
    scripted_page.click("Regenerate")
    scripted_page.wait(lambda: len(script.asked) == 3)
    assert scripted_page.answered(4) == "Other"
    assert script.asked[-1]["messages"] == script.asked[-2]["messages"]
    scripted_page.all(".message.user .foot button")[1].click()
    area = scripted_page.find(".message.user textarea")
    area.send_keys(" and a half", Keys.ENTER)
    scripted_page.wait(lambda: len(script.asked) == 4)
    assert scripted_page.answered(2) == "Other"
    assert script.asked[-1]["messages"] == [{"role": "user", "content": "One and a half"}]
    scripted_page.click("Edit")
    scripted_page.keys("thrown away", Keys.ESCAPE)
    assert scripted_page.find(".message.user .body").text == "One and a half" and len(script.asked) == 4


def test_a_context_that_fills_up_is_said(scripted_page, script):
    script.prompt_tokens = 53
    scripted_page.ask("Nearly")
    assert scripted_page.find("#used").text == "56 of 64 tokens: nearly full, room for 8 more"
    assert scripted_page.all(".remark") == []
    script.prompt_tokens, script.finish = 61, "length"
    scripted_page.ask("Full")
    assert "the context is full" in scripted_page.find(".message:last-child .remark").text
    assert scripted_page.find("#used").text == "64 of 64 tokens: full"
    script.prompt_tokens = 9
    box = scripted_page.find("#p-max_tokens")
    box.clear()
    box.send_keys("3")
    scripted_page.ask("Short")
    assert "Max tokens" in scripted_page.find(".message:last-child .remark").text


def test_a_key_is_asked_for_where_the_server_wants_one(page, empty_file):
    with scripted(empty_file, keys=("sesame",)) as server:
        page.open(server.url)
        page.wait(lambda: page.find("#key-dialog").is_displayed())
        assert "a key is needed" in page.find("#key-why").text
        page.keys("wrong", Keys.ENTER)
        page.wait(lambda: page.find("#key-dialog").is_displayed() and not page.find("#key").get_attribute("value"))
        page.keys("sesame", Keys.ENTER)
        page.ready()
        assert page.ask("Hello") == "Hello there."
        page.driver.refresh()
        page.ready()
        assert page.run("return [Object.values(sessionStorage), JSON.stringify(localStorage).includes('sesame')]") == [["sesame"], False]


def test_plain_mode_is_said(page, empty_file):
    with scripted(empty_file, chat_template=None) as server:
        page.open(server.url)
        page.ready()
        assert page.find("#plain-badge").text == "plain mode" and "no chat template" in page.find("#welcome").text
        page.click("Once upon a time")
        assert page.find("#prompt").get_attribute("value") == "Once upon a time"


def test_a_chat_model_is_not_said_to_be_plain(scripted_page):
    assert not scripted_page.find("#plain-badge").is_displayed() and "Ask it something" in scripted_page.find("#welcome").text


def test_how_many_of_two_answers_failed_is_said(page, empty_file):
    with scripted(empty_file, names=("one", "two")) as server:
        page.open(server.url)
        page.ready()
        page.click("Compare", "nav")
        server.script.refusal = (429, "the server is busy")
        page.find("#run-both").click()
        page.wait(lambda: page.find("#verdict").text.startswith("Both failed."))
        server.script.refusal = None
        page.run(
            "const real = window.fetch; let first = true; window.fetch = (url, options) => {"
            " const lost = first && url.endsWith('/chat/completions'); first &&= !lost;"
            " return lost ? Promise.reject(new TypeError('gone')) : real(url, options); }"
        )
        page.click("Retry", "#verdict")
        page.wait(lambda: page.find("#verdict").text.startswith("One of the two failed."))
