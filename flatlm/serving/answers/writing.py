"""From a request's fields to how its text is written."""

from flatlm.errors import FlatlmError
from flatlm.generative.generation_config import GenerationConfig, Grammar
from flatlm.serving.errors import BadRequest
from flatlm.serving.schemas.common import WritingRequest
from flatlm.serving.settings import ServerSettings
from flatlm.serving.text_model import TextModel

TEMPERATURE = 1.0
"""OpenAI's, where a request gives none."""


def generation_config(
    request: WritingRequest,
    settings: ServerSettings,
    model: TextModel,
    *,
    max_new_tokens: int | None,
    logprobs: int | None = None,
    grammar: Grammar | None = None,
) -> GenerationConfig:
    """`logprobs`: None, or how many others' beside each token's own. Raises BadRequest, which names the field."""
    if logprobs is not None and logprobs > settings.max_logprobs:
        raise BadRequest(f"{logprobs} logprobs of each token were asked for; the most are {settings.max_logprobs}", param="logprobs")
    limits = [limit for limit in (max_new_tokens, settings.max_tokens) if limit is not None]
    try:
        return GenerationConfig(
            max_new_tokens=min(limits, default=None),
            temperature=TEMPERATURE if request.temperature is None else request.temperature,
            top_k=request.top_k,
            top_p=request.top_p,
            seed=None if request.seed is None else request.seed % 2**64,
            min_p=request.min_p,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
            logit_bias=_biases(request, model),
            stop=_stops(request, settings),
            logprobs=logprobs,
            grammar=grammar or _grammar(request),
            ignore_eos=bool(request.ignore_eos),
        )
    except FlatlmError as error:
        raise BadRequest(str(error)) from error


def choices(request: WritingRequest, settings: ServerSettings, model: TextModel, *, prompts: int = 1) -> int:
    """`n`. BadRequest where that are too many texts, or more than there would be room for if nobody else asked."""
    n, most = request.n or 1, min(settings.max_choices, model.process.most)
    if n * prompts > most:
        what = f"n = {n}" if prompts == 1 else f"n = {n} texts of each of {prompts} prompts"
        raise BadRequest(f"{what}: one request may ask for {most} texts at most", param="n")
    return n


def require_stream_options_fit(request: WritingRequest) -> None:
    """BadRequest for options of a stream without a stream."""
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options goes with stream = true only", param="stream_options")


def _grammar(request: WritingRequest) -> Grammar | None:
    given = [kind for kind in ("grammar", "regex") if getattr(request, kind) is not None]
    if len(given) > 1:
        raise BadRequest("give one of grammar and regex, not both", param="grammar")
    if request.grammar is not None:
        return Grammar("lark", request.grammar)
    return None if request.regex is None else Grammar("regex", request.regex)


def _stops(request: WritingRequest, settings: ServerSettings) -> tuple[str, ...]:
    stops = request.stops
    if len(stops) > settings.max_stops:
        raise BadRequest(f"{len(stops)} stop strings were given; the most are {settings.max_stops}", param="stop")
    if any(len(stop) > settings.max_stop_length for stop in stops):
        raise BadRequest(f"a stop string is longer than {settings.max_stop_length} characters, the most allowed", param="stop")
    return stops


def _biases(request: WritingRequest, model: TextModel) -> dict[int, float]:
    biases = {}
    for token, bias in (request.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < model.card.vocab_size):
            raise BadRequest(
                f"logit_bias: {token[:20]!r} is not the id of a token: they are below {model.card.vocab_size}",
                param="logit_bias",
            )
        biases[int(token)] = bias
    return biases
