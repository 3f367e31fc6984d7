"""How long work tells how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as (stage, done, in all); all is 0 where it is not known."""
