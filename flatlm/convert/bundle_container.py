"""The `.litertlm` container: a header that lists sections, then the sections, each on a page of its own.

Layout (format 1.x, whose flatbuffer schema and constants ship with litert-lm-builder):

    0      magic "LITERTLM", major, minor, patch (uint32 each), 4 bytes of padding, end of the header (uint64)
    32     flatbuffer: key-values about the file, and for each section its type, [begin, end) in the file, and key-values
    16384  the first section; every section begins on a multiple of 16384

LiteRT-LM maps no more than 16384 bytes for the header, so the first section's place is known before anything else is:
that is what lets a writer put the model straight into its place. The builder's own classes are not used, since they
want every section as a file of its own and stamp a random id and the time into each file.
"""

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from flatlm.errors import ExportError, RuntimeFileError

ALIGNMENT = 16 * 1024
_PREAMBLE = struct.Struct("<8sIIIIQ")
_MAJOR_VERSION = 1


@dataclass(frozen=True)
class Section:
    """One section: its name in the schema's enum of types, its bytes' place [begin, end), and string key-values."""

    kind: str
    begin: int
    end: int
    items: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.end - self.begin


def aligned(offset: int) -> int:
    """The first place at or after `offset` where a section may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def write_header(file: BinaryIO, sections: Sequence[Section], system: Mapping[str, str]) -> None:
    """Writes the header in front of the sections, which are in the file already; ExportError if it outgrows its page."""
    import flatbuffers
    from litert_lm_builder import litertlm_core as core
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    def pairs(items: Mapping[str, str]) -> list[Any]:
        return [schema.KeyValuePairT(key=k, valueType=schema.VData.StringValue, value=schema.StringValueT(v)) for k, v in items.items()]

    kinds = schema.AnySectionDataType
    objects = [
        schema.SectionObjectT(items=pairs(s.items), beginOffset=s.begin, endOffset=s.end, dataType=getattr(kinds, s.kind)) for s in sections
    ]
    root = schema.LiteRTLMMetaDataT(
        systemMetadata=schema.SystemMetadataT(entries=pairs(system)), sectionMetadata=schema.SectionMetadataT(objects=objects)
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(root.Pack(builder))
    body = bytes(builder.Output())
    end = _PREAMBLE.size + len(body)
    if end > ALIGNMENT:
        raise ExportError(f"the bundle's header is {end} bytes, more than the {ALIGNMENT} that LiteRT-LM reads: shorten its key-values")
    version = (core.LITERTLM_MAJOR_VERSION, core.LITERTLM_MINOR_VERSION, core.LITERTLM_PATCH_VERSION)
    file.seek(0)
    file.write((_PREAMBLE.pack(core.HEADER_MAGIC_BYTES, *version, 0, end) + body).ljust(ALIGNMENT, b"\0"))


def read_header(file: BinaryIO, name: str) -> list[Section]:
    """The sections of the open file called `name`; RuntimeFileError if they cannot be whole."""
    from litert_lm_builder import litertlm_core as core

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    page = file.read(ALIGNMENT)
    if page[:8] != core.HEADER_MAGIC_BYTES:
        raise RuntimeFileError(f"{name} is not a .litertlm bundle: it does not begin with {core.HEADER_MAGIC_BYTES.decode()}")
    if len(page) < _PREAMBLE.size:
        raise RuntimeFileError(f"{name} is truncated: its header ends after {len(page)} bytes")
    _, major, minor, patch, _, end = _PREAMBLE.unpack_from(page)
    if major != _MAJOR_VERSION:
        raise RuntimeFileError(f"{name} is a bundle of format {major}.{minor}.{patch}; this reads {_MAJOR_VERSION}.x")
    if not _PREAMBLE.size < end <= ALIGNMENT:
        raise RuntimeFileError(f"{name} is corrupt: its header ends at byte {end}, outside {_PREAMBLE.size}..{ALIGNMENT}")
    if end > len(page):
        raise RuntimeFileError(f"{name} is truncated: its header ends at byte {end}, the file at {len(page)}")
    try:
        sections = _unpack(page[_PREAMBLE.size : end])
    except (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
        # flatbuffers has no verifier in Python: offsets that point outside show up as any of these.
        raise RuntimeFileError(f"{name} is corrupt: its header cannot be decoded ({error})") from error
    for section in sections:
        if not end <= section.begin <= section.end:
            raise RuntimeFileError(f"{name} is corrupt: its {section.kind} section spans bytes {section.begin} to {section.end}")
        if section.end > size:
            raise RuntimeFileError(f"{name} is truncated: its {section.kind} section ends at byte {section.end}, the file at {size}")
    return sections


def _unpack(body: bytes) -> list[Section]:
    from litert_lm_builder import litertlm_header_schema_py_generated as schema

    kinds = {value: name for name, value in vars(schema.AnySectionDataType).items() if isinstance(value, int)}

    def strings(count: int, get: Any) -> dict[str, str]:
        found = {}
        for pair in (get(i) for i in range(count)):
            if pair.ValueType() == schema.VData.StringValue:
                value = schema.StringValue()
                value.Init(pair.Value().Bytes, pair.Value().Pos)
                found[pair.Key().decode()] = (value.Value() or b"").decode()
        return found

    listed = schema.LiteRTLMMetaData.GetRootAs(body, 0).SectionMetadata()
    sections = []
    for i in range(listed.ObjectsLength()):
        item = listed.Objects(i)
        kind = kinds.get(item.DataType(), f"type {item.DataType()}")
        sections.append(Section(kind, item.BeginOffset(), item.EndOffset(), strings(item.ItemsLength(), item.Items)))
    return sections
