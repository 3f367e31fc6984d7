"""What a server allows, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Where a server listens, and the bounds of what it takes."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: a free one."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that requests may call this server by, beside its own: heeded where it listens to this machine alone."""
    api_keys: tuple[str, ...] = ()
    """One of them must come with each request. None: all may ask."""
    page: bool = False
    """Serve the page for browsers too."""
    max_queue: int = 64
    """Requests that wait for a slot, of each model; 429 beyond."""
    max_connections: int = 512
    """Open at once: 503 beyond; of twice as many, the next is closed without a word."""
    max_body_bytes: int = 4 << 20
    max_tokens: int | None = None
    """The longest answer, whatever a request asks for. None: until the context is full."""
    timeout_s: float = 600.0
    """Of a request, from its coming: its answer is cut there."""
    body_timeout_s: float = 30.0
    """For a request's body to arrive."""
    header_timeout_s: float = 10.0
    """For a connection to send its headers, and to send another request."""
    max_choices: int = 16
    """`n`, and prompts of one request, together."""
    max_stops: int = 16
    max_stop_length: int = 500
    """Characters."""
    max_logprobs: int = 20
