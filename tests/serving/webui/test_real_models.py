"""The page over the real server and the demo model: in int8 beside itself in int4 and in float32."""

import json
import re
from collections.abc import Iterator

import pytest
from selenium.webdriver.common.keys import Keys

from flatlm.generative.prove import prover
from flatlm.quantize.recipes import get_recipe
from flatlm.serving.engines.messages import EngineSpec
from flatlm.serving.running import Served
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.tokenizing.named_templates import PLAIN
from tests.serving.conftest import DEMO, Running, running


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """demo_f32.tflite and demo_q4.litertlm, which is verified: it carries figures."""
    folder = tmp_path_factory.mktemp("two")
    exact, small = folder / "demo_f32.tflite", folder / "demo_q4.litertlm"
    export(ExportRequest(DEMO, exact, get_recipe("none"), prefill_lengths=(16,), kv_cache_len=256))
    request = ExportRequest(DEMO, small, get_recipe("dynamic_int4_block32"), prefill_lengths=(16,), kv_cache_len=256)
    export(request, prove=prover(request))
    files = (Served(EngineSpec(exact, tokenizer=DEMO, threads=1), ("fp32",), PLAIN), Served(EngineSpec(small, threads=1), ("int4",), PLAIN))
    with running(*files, page=True) as server:
        yield server


@pytest.fixture
def real(page, two_files):
    page.open(two_files.url + "/")
    page.ready()
    return page


def compare(page) -> None:
    page.click("Compare", "nav")
    page.find("#run-both").click()
    page.wait(lambda: page.find("#run-both").is_displayed() and "there they part" in page.find("#verdict").text)


def test_a_story_is_written_in_pieces(real):
    real.run(
        "window.lengths = new Set(); new MutationObserver(() => window.lengths.add("
        "document.querySelector('.message.assistant .body')?.textContent.length))"
        ".observe(document.getElementById('messages'), {childList: true, subtree: true, characterData: true})"
    )
    real.find("#p-seed").send_keys("3")
    text = real.ask("Once upon a time")
    assert len(text) > 40 and real.run("return window.lengths.size") > 3
    figures = real.find(".message.assistant .figures").text
    assert re.fullmatch(r"\d+ tokens · [\d,.]+ tokens/s · first token [\d.]+ m?s", figures)
    used = int(re.match(r"(\d+) of 256 tokens", real.find("#used").text)[1])
    assert used > 20 and real.run("return document.getElementById('meter').value") == pytest.approx(used / 256)
    real.driver.refresh()
    real.ready()
    real.answered()
    assert real.find(".message.assistant .body").text == text
    real.click("Regenerate")
    assert real.answered() == text, "the same seed writes the same"


def test_two_files_are_compared(real):
    compare(real)
    texts = [real.run("return document.getElementById(arguments[0]).textContent", f"{side}-text") for side in ("left", "right")]
    firsts = [real.all(f"#{side}-text mark.first") for side in ("left", "right")]
    assert [len(first) for first in firsts] == [1, 1]
    start = "const r = document.createRange(); r.setStart(arguments[0], 0); r.setEndBefore(arguments[1]); return r.toString()"
    before = [real.run(start, real.find(f"#{side}-text"), *first) for side, first in zip(("left", "right"), firsts, strict=True)]
    assert before[0] == before[1] != "" and texts[0].startswith(before[0]) and firsts[0][0].text != firsts[1][0].text
    assert real.all("#left-text mark.differs") and real.all("#right-text mark.differs")
    verdict = r"The same for (\d+) tokens; there they part\. Left wrote “.+” \(\d+ %\), right “.+” \(\d+ %\)\."
    said = re.fullmatch(verdict, real.find("#verdict").text)
    assert said, real.find("#verdict").text
    assert int(said[1]) > 1
    for side in ("left", "right"):
        assert [each.text for each in real.all(f"#{side}-speeds dt")] == ["tokens", "tokens/s", "first token"]
        assert re.match(r"[\d,.]+$", real.all(f"#{side}-speeds dd")[1].text)
    assert "5.5 MB · float32" in real.find("#left-file").text and "int4" in real.find("#right-file").text
    real.find("#right-model").send_keys("fp32")
    real.find("#run-both").click()
    real.wait(lambda: "word for word" in real.find("#verdict").text)
    assert real.all("mark") == []


def test_the_card_shows_what_was_verified(real, two_files):
    found = two_files.models["int4"].card.manifest["verification"]
    real.click("Model", "nav")
    sheets = real.all("#card .sheet")
    assert "not verified" in sheets[0].text and sheets[0].find_elements("css selector", ".verification") == []
    rows = [
        [cell.text for cell in row.find_elements("css selector", "th, td")] for row in sheets[1].find_elements("css selector", "tbody tr")
    ]
    values = {name: value for name, value, *_ in rows}
    assert float(values["Largest error of a logit"]) == pytest.approx(found["max_abs_error"], rel=0.01)
    assert float(values["Mean KL divergence"]) == pytest.approx(found["mean_kl"], rel=0.01)
    assert values["Top-1 agreement"] == f"{100 * found['top1_agreement']:.1f} %"
    assert values["Greedy tokens until divergence"] == f"{found['greedy_tokens_equal']} of {found['greedy_tokens']}"
    assert all(len(meaning) > 20 for *_, meaning in rows)
    assert sheets[1].find_element("css selector", ".passed .badge").text == ("passed" if found["passed"] else "not passed")
    facts = sheets[1].find_element("css selector", ".facts").text
    for fact in ("dynamic_int4_block32", "llama", "1,312,384", "prefill_16, decode", "256 tokens", "plain mode"):
        assert fact in facts


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (768, False), (1280, False), (1280, True)])
def test_every_view_fits_and_has_its_theme(page, two_files, width, dark):
    theme = "dark" if dark else "light"
    page.open(two_files.url + "/", width=width, height=740, dark=dark)
    page.ready()
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", ground)[:3])) < 150 if dark else sum(map(int, re.findall(r"\d+", ground)[:3])) > 600
    page.ask("Once upon a time there was averyverylongword" + "w" * 80)
    assert page.too_wide() == []
    page.shoot(f"chat-{width}-{theme}")
    compare(page)
    assert page.too_wide() == []
    page.shoot(f"compare-{width}-{theme}")
    page.click("Model", "nav")
    assert page.too_wide() == []
    page.shoot(f"card-{width}-{theme}")
    page.click("Chat", "nav")
    if width < 960:
        page.find("#open-parameters").click()
        assert page.too_wide() == [] and page.run("return document.activeElement.id") == "close-parameters"
        page.shoot(f"parameters-{width}-{theme}")
        page.keys(Keys.ESCAPE)
        assert not page.find("#parameters").is_displayed() and page.run("return document.activeElement.id") == "open-parameters"


def test_the_theme_can_be_chosen_and_is_kept(real):
    def ground() -> int:
        return sum(map(int, re.findall(r"\d+", real.run("return getComputedStyle(document.body).backgroundColor"))[:3]))

    labels = [real.find("#theme").get_attribute("aria-label")]
    for _ in range(2):
        real.find("#theme").click()
        labels.append(real.find("#theme").get_attribute("aria-label"))
    assert labels == ["Theme: as the system's", "Theme: light", "Theme: dark"] and ground() < 150
    real.driver.refresh()
    real.ready()
    assert ground() < 150
    real.find("#theme").click()
    assert ground() > 600


def test_the_page_is_used_by_keys_alone(real):
    def focused() -> str:
        return real.run("const e = document.activeElement; return e.id || e.dataset.view || e.textContent")

    def tab_to(name: str, most: int = 40) -> None:
        for _ in range(most):
            if focused() == name:
                return
            real.keys(Keys.TAB)
            outline = real.run("return document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"{focused()} has the focus, and does not show it"
        raise AssertionError(f"no tab leads to {name}")

    assert focused() == "prompt"
    real.keys("Once upon")
    real.chord(Keys.SHIFT, Keys.ENTER)
    real.keys("a time", Keys.ENTER)
    real.answered()
    assert real.find(".message.user .body").text == "Once upon\na time"
    real.run("document.activeElement.blur()")
    real.run("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
    real.keys(Keys.TAB)
    assert focused() == "skip"
    real.wait(lambda: real.find("#skip").location["y"] >= 0)
    real.keys(Keys.ENTER)
    assert focused() == "prompt"
    real.run("document.getElementById('skip').focus()")
    tab_to("compare")
    real.keys(Keys.ENTER)
    tab_to("compare-prompt")
    real.chord(Keys.CONTROL, "a")
    real.keys("One day", Keys.ENTER)
    real.wait(lambda: real.find("#left-speeds").text and real.find("#run-both").is_displayed())
    tab_to("right-text")
    tab_to("reset-parameters")
    real.run("document.getElementById('skip').focus()")
    tab_to("chat")
    real.keys(Keys.SPACE)
    tab_to("Regenerate")
    real.keys(Keys.ENTER)
    real.answered()


def test_every_control_has_a_name(real):
    real.ask("Once upon a time")
    for view in ("Chat", "Compare", "Model"):
        real.click(view, "nav")
        tree = real.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        controls = {"button", "textbox", "combobox", "checkbox", "link", "meter"}
        seen = [node for node in tree if not node.get("ignored") and node["role"]["value"] in controls]
        assert len(seen) >= 5 and [node for node in seen if not node["name"]["value"]] == []


def test_nothing_is_asked_of_other_hosts(page, two_files):
    page.requests()
    page.open(two_files.url + "/")
    page.ready()
    page.ask("Once upon a time")
    compare(page)
    page.click("Model", "nav")
    asked = [url for url in page.requests() if not url.startswith(("data:", "about:", "chrome:"))]
    assert len(asked) > 15 and {url for url in asked if not url.startswith(two_files.url + "/")} == set()
    entries = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert entries and all(url.startswith(two_files.url) for url in entries)
    assert page.chromium.complaints() == [], "the policy had nothing to forbid"


def test_the_policy_holds(real):
    """No script or style but the page's own files, whatever gets into it."""
    real.run(
        "const s = document.createElement('script'); s.textContent = \"document.title='run'\"; document.body.append(s);"
        "document.body.insertAdjacentHTML('beforeend', '<p id=p style=\"color:red\">x</p><img src=\"http://127.0.0.1:9/x.png\">')"
    )
    assert real.driver.title == "FlatLM" and real.run("return getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    assert len([line for line in real.chromium.complaints() if "Content Security Policy" in line]) >= 3


def test_motion_is_left_out_on_request(real):
    real.prefer(less_motion=True)
    assert real.run("return getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"
    real.prefer()
    assert real.run("return getComputedStyle(document.querySelector('button')).transitionDuration") != "0s"


def test_bad_text_for_the_renderer_is_a_clear_refusal(two_files):
    with two_files.http() as http:
        response = http.post("/ui/markdown", content='{"text": "\\ud800"}', headers={"Content-Type": "application/json"})
        assert response.status_code in (200, 400)
        for body in ("{", "{}", '{"text": 1}', '{"text": "a", "more": 1}', "[]"):
            response = http.post("/ui/markdown", content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 400 and response.json()["error"]["message"]
        assert json.loads(http.get("/ui/models").text)["models"][0]["id"] == "fp32"
