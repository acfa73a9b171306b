"""A conversation with a model: history, one reply at a time, written as it comes.

    talk = Conversation(load_model("smollm2"), load_tokenizer("smollm2"), Sampling(temperature=0.7))
    talk.reply("Hi! Who are you?", print)     # calls print("I "), print("am "), ...
    -> Spoken("I am SmolLM, ...", stopped=False)
    talk.reply("Say that again.", print)      # knows what was said

A reply is drawn from the plain distribution at the temperature (no top-k, no penalties of the model's own
generation config), as everywhere in kdbench, and ends with any token that ends a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer

from kdbench.errors import UsageError
from kdbench.models.chat import end_ids, prompt_ids
from kdbench.records import Message
from kdbench.teacher import Sampling


@dataclass(frozen=True, slots=True)
class Spoken:
    """A reply; `stopped` says that Ctrl-C cut it off."""

    text: str
    stopped: bool


class Conversation:
    """What was said so far, and the model that goes on with it.

    The n-th reply is drawn from `seed` and n, so that the same conversation can be had again.
    """

    def __init__(
        self, model: Any, tokenizer: Any, sampling: Sampling, *, system: str | None = None, seed: int = 0
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self._beginning = [Message(role="system", content=system)] if system is not None else []
        self._seed = seed
        self._replies = 0
        self._ends = end_ids(tokenizer, model.generation_config, model.config)
        self.reset()
        # A model that cannot chat, or takes no system message, says so before anybody has typed.
        prompt_ids(tokenizer, [*self.history, Message(role="user", content="Hi")])

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.history = list(self._beginning)

    def reply(self, text: str, show: Callable[[str], None]) -> Spoken:
        """The answer to what the user says, shown piece by piece as it is made.

        A KeyboardInterrupt ends the reply, and what was said until then counts as the reply. Raises
        UsageError where the conversation no longer fits the model, CallRefused where its template refuses it;
        the history then stays as it was.
        """
        turns = [*self.history, Message(role="user", content=text)]
        ids = prompt_ids(self.tokenizer, turns)
        pieces = _Pieces(self.tokenizer, self._ends, show)
        stopped = False
        try:
            self._generate(ids, self._room(len(ids)), pieces)
        except KeyboardInterrupt:
            stopped = True
            pieces.end()
        self._replies += 1
        self.history = [*turns, Message(role="assistant", content=pieces.text)]
        return Spoken(pieces.text, stopped)

    def _room(self, tokens: int) -> int:
        window = getattr(self.model.config, "max_position_embeddings", None)
        if window is not None and tokens >= window:
            raise UsageError(
                f"The conversation is {tokens} tokens long and the model reads {window}; "
                "begin anew with /reset"
            )
        limit = self.sampling.max_tokens
        return limit if window is None else min(limit, window - tokens)

    def _generate(self, ids: list[int], limit: int, pieces: _Pieces) -> None:
        hot = self.sampling.temperature > 0
        settings = GenerationConfig(
            max_new_tokens=limit,
            do_sample=hot,
            temperature=self.sampling.temperature if hot else None,
            top_k=0 if hot else None,
            top_p=self.sampling.top_p if hot else None,
            repetition_penalty=1.0,
            num_beams=1,
            eos_token_id=list(self._ends) or None,
            pad_token_id=self._ends[0] if self._ends else 0,  # one row: nothing is padded
        )
        prompt = torch.tensor([ids], device=self.model.device)
        cuda = [prompt.device.index or 0] if prompt.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.inference_mode():
            torch.manual_seed(self._seed * 1_000_003 + self._replies)
            self.model.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, streamer=pieces
            )


class _Pieces(TextStreamer):
    """Hands whole words on as they come; the tokens that end a turn are no part of the text."""

    def __init__(self, tokenizer: Any, ends: tuple[int, ...], show: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.text = ""
        self._ends = ends
        self._show = show

    def put(self, value: Any) -> None:
        """Take the prompt, then one token after the other."""
        if self.next_tokens_are_prompt or int(value[-1]) not in self._ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand a piece on."""
        self.text += text
        if text:
            self._show(text)
