"""How long a text may be that can still fit: known before it is cut into tokens, which takes seconds for megabytes."""

from flatlm.utilities.tokenizing.tokenizer import Tokenizer

LOSSY_TOKEN = 1024
"""Bytes of a text that one token is taken to stand for, at most, where a tokenizer makes one of a run that it does not know."""
_PROBE = "a      b\n\n\n\n\tc\r\n  \x01\x02\u200b\u200d e\u0301 \ufb03 \u1112\u1161\u11ab \U0010fffd\U0010fffd\U0010fffd ÄÖ"
"""What tokenizers drop, join and rewrite."""


class TextBound:
    """Of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.vocabulary
        read = b"".join(map(vocabulary.token_bytes, tokenizer.encode(_PROBE, add_special_tokens=False)))
        self.keeps_all = vocabulary.exact and read.strip() == _PROBE.encode()
        """Whether texts are made of their tokens' bytes, one after the other."""
        longest = max(map(len, vocabulary.tokens), default=1)
        self.token_bytes = longest if self.keeps_all else max(longest, LOSSY_TOKEN)

    def may_fit(self, text: str, context: int) -> bool:
        """False where a text has more tokens than `context`. Spaces that the tokenizer may leave out do not count.

        Surely, where the tokenizer keeps all bytes; else where no token stands for more than LOSSY_TOKEN of them.
        """
        most = context * self.token_bytes
        if 3 * len(text) <= most:
            return True
        return len((text if self.keeps_all else " ".join(text.split())).encode(errors="surrogatepass")) <= most
