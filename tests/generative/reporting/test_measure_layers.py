"""The error of each layer, measured for the files of a folder that have none."""

import json
import re

from flatlm import __version__
from flatlm.cli import main
from flatlm.convert.bundle import read_bundle
from flatlm.generative.reporting.collect import collect
from flatlm.generative.reporting.sections import build
from flatlm.utilities.results import result_path, save_result
from tests.generative.reporting.conftest import DEMO, write_file


def test_layers_of_another_checkpoint_are_not_measured(fill, tmp_path, capsys):
    assert main(["report", str(fill(1)), "-o", str(tmp_path / "r.html"), "--checkpoint", str(DEMO)]) == 2
    assert "has no file that was exported from" in capsys.readouterr().err


def test_one_file_does_not_stop_the_layers_of_others(demo_bundle, tmp_path, capsys):
    """One with an adapter merged into it, one of another tokenizer, another that was measured before, and a whole one."""
    content = demo_bundle.read_bytes()
    version = f'"flatlm":"{__version__}",'.encode()
    assert version in content
    bundle = read_bundle(demo_bundle)
    model = content[bundle.model_offset : bundle.model_offset + bundle.model_size]
    adapted = content.replace(version, b'"lora":{},'.ljust(len(version)))
    broken = re.sub(rb'"tokenizer":"..', b'"tokenizer":"no', model)
    write_file(tmp_path / "adapted.litertlm", adapted)
    write_file(tmp_path / "broken.tflite", broken)
    measured = write_file(tmp_path / "measured.tflite", broken)
    save_result(measured, "layers", {"tokens": 9, "layers": [[0, 0.25, 0.5]], "logits_error": 0.1})
    arguments = ["report", str(tmp_path), "-o", str(tmp_path / "r.html"), "--checkpoint", str(DEMO), "--tokens", "8", "--json"]
    assert main(arguments) == 2, "as nothing could be measured"
    assert "broken.tflite" in capsys.readouterr().err
    whole = write_file(tmp_path / "whole.litertlm", content)
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["layers_measured"] == [str(result_path(whole, "layers"))]
    assert not result_path(tmp_path / "adapted.litertlm", "layers").exists()
    findings = collect(tmp_path)
    assert [subject.name.partition(".")[0] for subject in findings.subjects if subject.layer_rows()] == ["measured", "whole"]
    table, *told = build(findings).sections[-1].blocks
    rows = {row[0].text: (row[1].text, row[2].text) for row in table.rows}
    assert rows["per-layer error"][0] == "broken.tflite"
    adapter = "flatlm evaluate FILE --text TEXT --checkpoint CHECKPOINT --lora ADAPTER --layers --save"
    assert rows["per-layer error, with an adapter"] == ("adapted.litertlm", adapter)
    assert [paragraph.text.partition(": ")[0] for paragraph in told] == ["broken.tflite", "measured.tflite"]
    assert all("the error of each layer could not be measured: " in paragraph.text for paragraph in told)
    for name in ("broken.tflite", "measured.tflite", "whole.litertlm"):
        (tmp_path / name).unlink()
    assert main(arguments) == 2
    assert "have an adapter merged into them: use flatlm evaluate" in capsys.readouterr().err
