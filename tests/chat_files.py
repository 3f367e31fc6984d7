"""The demo model with a chat template, as a bundle, for all tests that talk."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import flatlm
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export

DEMO = Path(flatlm.__file__).parent / "assets" / "demo_model"
CONTEXT = 128
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] | upper }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def talking_checkpoint(folder: Path, template: str | None = TEMPLATE) -> Path:
    """The demo model's checkpoint, with a template."""
    shutil.copytree(DEMO, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}), "utf-8")
    return folder


@cache
def chat_bundle() -> Path:
    """Signatures prefill_16 and decode, CONTEXT slots, TEMPLATE. Made once for all tests of a process."""
    folder = Path(tempfile.mkdtemp(prefix="flatlm-chat-"))
    file = folder / "chat.litertlm"
    export(ExportRequest(talking_checkpoint(folder / "checkpoint"), file, get_recipe("dynamic_int8"), (16,), CONTEXT))
    return file
