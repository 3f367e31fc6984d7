"""Bundles as bytes: written, read back, truncated, corrupted; and read and written by litert-lm-builder's own code."""

import io
import itertools
import os
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from flatlm.convert import bundle as bundle_module
from flatlm.convert.bundle import (
    MODEL_OFFSET,
    BundleMetadata,
    BundleSampler,
    TokenizerSource,
    finish_bundle,
    read_bundle,
    replace_manifest,
    write_bundle,
)
from flatlm.convert.bundle_container import ALIGNMENT, Section, read_header
from flatlm.errors import ExportError, OutputError, RuntimeFileError

MODEL = b"\x1c\0\0\0TFL3" + random.Random(1).randbytes(50_001)
HF = TokenizerSource("hf", b'{"model": {"type": "BPE", "vocab": {"\xc3\xa9": 0}}}' * 400)
SENTENCEPIECE = TokenizerSource("sentencepiece", random.Random(2).randbytes(9_000))
METADATA = BundleMetadata(
    max_num_tokens=512,
    stop_token_ids=(2, 7),
    stop_strings=("\n\n", "é"),
    start_token_id=1,
    chat_template="{% for m in messages %}{{ m.content }}é{% endfor %}",
    sampler=BundleSampler(top_k=40, top_p=0.9, temperature=0.7, seed=3),
    model_type="qwen3",
    manifest={"recipe": "dynamic_int8", "note": "é", "error": {"max_abs": 1.5e-3}, "list": [1, None]},
)
KINDS = pytest.mark.parametrize("tokenizer", [HF, SENTENCEPIECE], ids=["hf", "sentencepiece"])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(MODEL)
    return path


@pytest.fixture
def bundle(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "model.litertlm"
    write_bundle(path, model=model, tokenizer=HF, metadata=METADATA)
    return path


def sections_of(path: Path) -> list[Section]:
    with path.open("rb") as file:
        return read_header(file, str(path))


@KINDS
@pytest.mark.parametrize("metadata", [METADATA, BundleMetadata(max_num_tokens=64)], ids=["everything", "nothing"])
def test_round_trip(tmp_path: Path, model: Path, tokenizer: TokenizerSource, metadata: BundleMetadata) -> None:
    path = tmp_path / "x.litertlm"
    write_bundle(path, model=model, tokenizer=tokenizer, metadata=metadata)
    bundle = read_bundle(path)
    assert (bundle.tokenizer, bundle.metadata) == (tokenizer, metadata)
    assert path.read_bytes()[bundle.model_offset :][: bundle.model_size] == MODEL


def test_sections_are_aligned_and_the_model_is_first(bundle: Path) -> None:
    sections = sections_of(bundle)
    assert [s.kind for s in sections] == ["TFLiteModel", "HF_Tokenizer_Zlib", "LlmMetadataProto", "GenericBinaryData"]
    assert all(s.begin % ALIGNMENT == 0 for s in sections)
    assert sections[0].begin == MODEL_OFFSET and MODEL_OFFSET % 64 == 0
    assert sections[0].items == {"model_type": "tf_lite_prefill_decode"}
    assert sections[-1].end == bundle.stat().st_size
    content = bundle.read_bytes()
    gaps = [content[a.end : b.begin] for a, b in itertools.pairwise(sections)]
    assert not any(b"".join(gaps)), "what lies between sections must be zeros"


def test_a_model_written_in_its_place_gives_the_same_bundle(tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "streamed.litertlm"
    left_over = b"left over from before" * 9000
    path.write_bytes(left_over[:MODEL_OFFSET] + MODEL + left_over)
    finish_bundle(path, model_size=len(MODEL), tokenizer=HF, metadata=METADATA)
    assert path.read_bytes() == bundle.read_bytes()


def test_manifest_is_replaced_in_place_and_may_be_large(bundle: Path) -> None:
    before = bundle.read_bytes()
    manifest = {"verification": "é" * 100_000}
    replace_manifest(bundle, manifest)
    assert read_bundle(bundle).metadata == replace(METADATA, manifest=manifest)
    replace_manifest(bundle, METADATA.manifest)
    assert bundle.read_bytes() == before


def test_truncated_anywhere_is_an_error(bundle: Path) -> None:
    sections, content = sections_of(bundle), bundle.read_bytes()
    edges = {0, 7, 8, 20, 31, 32, 200, MODEL_OFFSET - 1} | {
        at for s in sections for at in (s.begin, s.begin + 1, s.begin + 9, s.end - 1, s.end)
    }
    for size in sorted(edges - {len(content)}):
        bundle.write_bytes(content[:size])
        with pytest.raises(RuntimeFileError, match=r"is truncated|is not a \.litertlm bundle"):
            read_bundle(bundle)


def test_corrupt_bytes_are_an_error_or_harmless(bundle: Path) -> None:
    sections, content, random_ = sections_of(bundle), bundle.read_bytes(), random.Random(5)
    header_end = int.from_bytes(content[24:32], "little")
    places = [*range(header_end)] + [at for s in sections for at in random_.choices(range(s.begin, s.end), k=40)]
    refused = 0
    with bundle.open("r+b", buffering=0) as file:
        for at in places:
            for value in (0xFF, content[at] ^ (1 << random_.randrange(8))):
                os.pwrite(file.fileno(), bytes([value]), at)
                try:
                    read_bundle(bundle)
                except RuntimeFileError as error:
                    assert str(bundle) in str(error)
                    refused += 1
            os.pwrite(file.fileno(), content[at : at + 1], at)
    assert refused > len(places) / 4


def test_a_tokenizer_of_another_size_than_it_says_is_refused(bundle: Path) -> None:
    section, content = sections_of(bundle)[1], bundle.read_bytes()
    for size in (0, len(HF.data) - 1, len(HF.data) + 1, 2**64 - 1):
        bundle.write_bytes(content[: section.begin] + size.to_bytes(8, "little") + content[section.begin + 8 :])
        with pytest.raises(RuntimeFileError, match="tokenizer"):
            read_bundle(bundle)


def test_what_is_no_bundle_is_refused_by_name(tmp_path: Path, model: Path) -> None:
    for path, why in (
        (model, "is not a .litertlm bundle"),
        (tmp_path, "cannot be read"),
        (tmp_path / "missing.litertlm", "cannot be read"),
    ):
        with pytest.raises(RuntimeFileError, match=f"{path.name} {why}"):
            read_bundle(path)


def test_a_header_of_another_format_or_length_is_refused(bundle: Path) -> None:
    content = bundle.read_bytes()
    for at, field, why in ((8, b"\2\0\0\0", "format 2.7.0"), (24, bytes(8), "ends at byte 0"), (24, b"\xff" * 8, "ends at byte 1844")):
        bundle.write_bytes(content[:at] + field + content[at + len(field) :])
        with pytest.raises(RuntimeFileError, match=why):
            read_bundle(bundle)


def test_a_model_section_without_a_model_and_a_manifest_without_keys_are_refused(bundle: Path) -> None:
    sections, content = sections_of(bundle), bundle.read_bytes()
    manifest = b"[]".ljust(sections[-1].size)
    for at, field, why in ((sections[0].begin, bytes(8), "no TFLite model"), (sections[-1].begin, manifest, "no JSON object")):
        bundle.write_bytes(content[:at] + field + content[at + len(field) :])
        with pytest.raises(RuntimeFileError, match=why):
            read_bundle(bundle)


def test_a_section_that_is_missing_or_there_twice_is_refused(tmp_path: Path, bundle: Path) -> None:
    from flatlm.convert.bundle_container import write_header

    sections = sections_of(bundle)
    for wrong, what in ((sections[1:], "0 TFLiteModel"), ([*sections, sections[0]], "2 TFLiteModel"), (sections[:2], "0 LlmMetadataProto")):
        with bundle.open("r+b") as file:
            write_header(file, wrong, {})
        with pytest.raises(RuntimeFileError, match=what):
            read_bundle(bundle)
    with bundle.open("r+b") as file:
        write_header(file, [], {})
    with pytest.raises(RuntimeFileError, match="not written by FlatLM"):
        replace_manifest(bundle, {})


def test_a_header_beyond_what_litert_lm_reads_is_refused(bundle: Path) -> None:
    from flatlm.convert.bundle_container import write_header

    before = bundle.read_bytes()
    with bundle.open("r+b") as file, pytest.raises(ExportError, match="16384"):
        write_header(file, sections_of(bundle), {"long": "x" * 17_000})
    assert bundle.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"max_num_tokens": 0}, "max_num_tokens"), ({"model_type": "lama"}, "generic_model"), ({"sampler": BundleSampler(top_k=0)}, "top_k")],
)
def test_metadata_that_litert_lm_would_refuse(tmp_path: Path, model: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        write_bundle(tmp_path / "x.litertlm", model=model, tokenizer=HF, metadata=replace(METADATA, **changes))


def test_no_model_in_its_place_is_refused_before_the_file_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "x.litertlm"
    for content, size in ((b"", 8), (bytes(MODEL_OFFSET) + MODEL[:100], 101), (bytes(MODEL_OFFSET) + bytes(100), 100)):
        path.write_bytes(content)
        with pytest.raises(ExportError, match="no TFLite model"):
            finish_bundle(path, model_size=size, tokenizer=HF, metadata=METADATA)
        assert path.read_bytes() == content


def test_paths_that_cannot_be_read_or_written(tmp_path: Path, model: Path) -> None:
    with pytest.raises(RuntimeFileError, match="absent"):
        write_bundle(tmp_path / "x.litertlm", model=tmp_path / "absent.tflite", tokenizer=HF, metadata=METADATA)
    with pytest.raises(OutputError, match="nowhere"):
        write_bundle(tmp_path / "nowhere" / "x.litertlm", model=model, tokenizer=HF, metadata=METADATA)


@pytest.mark.parametrize("kernel_copies", [True, False])
def test_the_model_is_copied_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_copies: bool) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    if not kernel_copies:
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr(bundle_module, "_COPY_CHUNK", 1 << 20)
    content = MODEL * 400  # 20 MB
    model, path = tmp_path / "large.tflite", tmp_path / "x.litertlm"
    model.write_bytes(content)
    tracemalloc.start()
    write_bundle(path, model=model, tokenizer=HF, metadata=METADATA)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    assert path.read_bytes()[MODEL_OFFSET:][: len(content)] == content


@KINDS
def test_the_builder_reads_what_is_written(tmp_path: Path, model: Path, tokenizer: TokenizerSource) -> None:
    from litert_lm_builder import litertlm_builder, litertlm_peek
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    path, out = tmp_path / "x.litertlm", tmp_path / "unpacked"
    write_bundle(path, model=model, tokenizer=tokenizer, metadata=METADATA)
    litertlm_peek.peek_litertlm_file(str(path), str(out), io.StringIO())
    assert (out / "Section0_TFLiteModel_tf_lite_prefill_decode.tflite").read_bytes() == MODEL
    builder = litertlm_builder.LitertLmFileBuilder.from_toml_file(str(out / "model.toml"))
    assert isinstance(builder._llm_metadata, llm_metadata_pb2.LlmMetadata)
    assert builder._llm_metadata.max_num_tokens == 512
    assert list(builder._llm_metadata.start_token.token_ids.ids) == [1]


def build(path: Path, model: Path, tokenizer: TokenizerSource, metadata: str) -> None:
    """A bundle by litert-lm-builder."""
    from litert_lm_builder import LitertLmFileBuilder, TfLiteModelType

    text, file = path.with_suffix(".pbtext"), path.with_suffix(".json" if tokenizer.kind == "hf" else ".model")
    text.write_text(metadata)
    file.write_bytes(tokenizer.data)
    builder = LitertLmFileBuilder().add_llm_metadata(str(text))
    add = builder.add_hf_tokenizer if tokenizer.kind == "hf" else builder.add_sentencepiece_tokenizer
    add(str(file)).add_tflite_model(str(model), TfLiteModelType.PREFILL_DECODE)
    with path.open("wb") as stream:
        builder.build(stream)


@KINDS
def test_what_the_builder_writes_is_read(tmp_path: Path, model: Path, tokenizer: TokenizerSource) -> None:
    path = tmp_path / "x.litertlm"
    build(path, model, tokenizer, 'max_num_tokens: 9 start_token { token_ids { ids: 5 } } stop_tokens { token_str: "</s>" }')
    bundle = read_bundle(path)
    assert bundle.tokenizer == tokenizer
    assert bundle.metadata == BundleMetadata(max_num_tokens=9, start_token_id=5, stop_strings=("</s>",))
    assert path.read_bytes()[bundle.model_offset :][: bundle.model_size] == MODEL
    with pytest.raises(RuntimeFileError, match="not written by FlatLM"):
        replace_manifest(path, {})


@pytest.mark.parametrize("tokens", ['start_token { token_str: "<s>" }', "stop_tokens { token_ids { ids: 1 ids: 2 } }"])
def test_start_and_stop_tokens_that_are_no_single_ids_are_refused(tmp_path: Path, model: Path, tokens: str) -> None:
    path = tmp_path / "x.litertlm"
    build(path, model, HF, tokens)
    with pytest.raises(RuntimeFileError, match="single ids"):
        read_bundle(path)


@pytest.mark.parametrize(
    ("config", "sampler"),
    [
        ({}, BundleSampler()),
        ({"do_sample": False, "temperature": 0.6, "top_k": 20}, BundleSampler()),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}, BundleSampler(20, 0.95, 0.6)),
        ({"do_sample": True}, BundleSampler(50, 1.0, 1.0)),  # transformers' defaults
        ({"do_sample": True, "top_k": 0, "top_p": None}, BundleSampler(2**31 - 1, 1.0, 1.0)),
        ({"do_sample": True, "temperature": 0}, BundleSampler()),
    ],
)
def test_sampler_from_generation_config(config: dict[str, object], sampler: BundleSampler) -> None:
    assert BundleSampler.from_generation_config(config) == sampler
