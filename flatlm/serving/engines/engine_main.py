"""The process that runs one file: `python -m flatlm.serving.engines.engine_main`, spoken to over its stdin and stdout, until stdin ends."""

import os
from contextlib import suppress
from typing import Any

from flatlm.errors import FlatlmError
from flatlm.serving.engines.channel import Line
from flatlm.serving.engines.messages import ENCODER, Cancel, EngineSpec, Failed, Job, Opened
from flatlm.serving.engines.turns import Engine, Turns


def open_engine(spec: EngineSpec) -> Engine:
    """What runs the file. Raises a FlatlmError where it cannot be served."""
    if spec.kind == ENCODER:
        from flatlm.serving.engines.encoder_engine import EncoderEngine

        return EncoderEngine.open(spec.file, spec.tokenizer, threads=spec.threads)
    from flatlm.serving.engines.text_engine import TextEngine

    return TextEngine.open(spec)


def serve(line: Line) -> None:
    """Opens what the first message says; then answers jobs until the line ends."""
    first = line.receive(wait=True)
    if not first:
        return
    try:
        engine = open_engine(first[0])
    except (FlatlmError, OSError) as error:
        line.send(Failed(str(error)))
        return
    line.send(Opened(os.getpid(), engine.facts))
    turns = Turns(engine)
    messages: list[Any] | None = first[1:]
    while messages is not None:
        for message in messages:
            if isinstance(message, Job):
                turns.add(message)
            elif isinstance(message, Cancel):
                turns.cancel(message.id)
        if turns.busy:
            turns.turn()
        if updates := turns.due():
            line.send(updates)
        messages = line.receive(wait=not turns.busy)


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        serve(Line.over_standard_streams())
    os._exit(0)  # the runtime's destructors take time, and log
