"""What keeping the cache between turns saves: the time to first token of each turn, with it and with every turn read from the beginning.

    python -m benchmarks.chat FILE [--tokenizer DIR] [--turns 5] [--question 40] [--answer 60] [--rounds 3]

The same conversation is held both ways by turns, `--rounds` times; answers are greedy and never end early, so that both read and write the
same tokens. Prints a Markdown table of medians.
"""

import argparse
from pathlib import Path
from statistics import median

from flatlm.generative.chatting.conversation import Conversation
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.generative.session import Session, TurnStats
from flatlm.utilities.tokenizing.named_templates import PLAIN

WORDS = "Once upon a time there was a dog and a cat, who lived in a house by the sea. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--question", type=int, default=40, metavar="TOKENS")
    parser.add_argument("--answer", type=int, default=60, metavar="TOKENS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    tokenizer = file_tokenizer(args.file, args.tokenizer)
    question = tokenizer.decode(tokenizer.encode(WORDS * 40)[: args.question])
    config = GenerationConfig(max_new_tokens=args.answer, ignore_eos=True)
    with Runner.open(args.file, threads=args.threads) as runner:
        session = Session(runner, tokenizer)
        kept: list[list[TurnStats]] = []
        anew: list[list[TurnStats]] = []
        for _ in range(args.rounds):
            for found, keeps in ((kept, True), (anew, False)):
                session.reset()
                talk = Conversation(session, tokenizer, template=tokenizer.chat_template or PLAIN, config=config)
                found.append([turn(talk, question, keeps=keeps) for _ in range(args.turns)])
    print("| turn | tokens of the prompt | read, cache kept | first token after, s | read, all anew | first token after, s | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for number, (ours, others) in enumerate(zip(zip(*kept, strict=True), zip(*anew, strict=True), strict=True), 1):
        reads = [turns[0].prompt_tokens - turns[0].shared_tokens for turns in (ours, others)]
        times = [median(stats.time_to_first_token_s or 0 for stats in turns) for turns in (ours, others)]
        cells = [number, ours[0].prompt_tokens, reads[0], f"{times[0]:.4f}", reads[1], f"{times[1]:.4f}", f"{times[1] / times[0]:.1f}"]
        print(f"| {' | '.join(map(str, cells))} |")


def turn(talk: Conversation, question: str, *, keeps: bool) -> TurnStats:
    """One more turn; unless it `keeps` the cache, all is read again."""
    asked = talk.ask(question)
    if not keeps:
        talk.session.reset()
    for _ in talk.answer(asked):
        pass
    stats = talk.turns[-1].stats
    assert stats is not None and talk.turns[-1].finish_reason == "length"
    return stats


if __name__ == "__main__":
    main()
