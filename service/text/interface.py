"""A model's tokenizer and chat template as their users see them. The tests' stand-ins have these interfaces too."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from service.text.reasoning import ReasoningFormat
from service.text.tools.formats import ToolFormat


class Tokenizer(Protocol):
    """Text to tokens and back. Threads may share it."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id that has a text; the logits may be wider or narrower."""

    @property
    def tokenizer_class(self) -> str:
        """The class of transformers that reads the same files."""

    @property
    def named_tokens(self) -> Mapping[str, str]:
        """Texts of bos_token, eos_token, ..., under the names that chat templates use."""

    @property
    def special_texts(self) -> Collection[str]:
        """Texts of all special tokens."""

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the chat template that came with the tokenizer; None if there was none."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_ids(self) -> Collection[int]:
        """All tokens that end a completion."""

    def encode(self, text: str, *, add_special_tokens: bool, parse_special: bool, most: int | None = None) -> list[int]:
        """The tokens of a whole text.

        `add_special_tokens` frames it as the model expects, usually with a beginning-of-sequence token. With
        `parse_special`, special tokens written out in the text become those tokens; without it they are plain text.
        Raises InvalidTextError, and TooLongError for a text whose length shows that it has more than `most` tokens;
        others may have more too.
        """

    def locate(
        self, text: str, *, add_special_tokens: bool, parse_special: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of `encode`, and the place of each in the text, as [start, end) in characters.

        Each place begins where the one before it ended. A character that several tokens make up together is in the last
        of them. Tokens that are not in the text have empty places.
        """

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True, continuation: bool = False) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD.

        A whole text loses the space that SentencePiece put before its first word. With `continuation` the text
        continues another one, and keeps that space.
        """

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to running text; empty for an id beyond the vocabulary (padded logits)."""

    def is_special(self, token: int) -> bool:
        """Whether a token is structure rather than text."""

    def special_text(self, token: int) -> str | None:
        """How a special token is spelt, or None for any other token."""

    def spells_special(self, text: str) -> bool:
        """Whether a text contains a special token written out. Raises InvalidTextError."""


class ChatTemplate(Protocol):
    """A conversation to tokens, for the model whose template it is. Threads may share it."""

    @property
    def variables(self) -> frozenset[str]:
        """Names of the template's variables, including those that it sets itself."""

    @property
    def tool_format(self) -> ToolFormat | None:
        """The form of the model's calls of functions; None for a form that isn't understood here."""

    @property
    def reasoning_format(self) -> ReasoningFormat | None:
        """The form of the model's reasoning; None if it has none."""

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> list[int]:
        """The tokens of a conversation of at least one message.

        `add_generation_prompt` opens the assistant's turn; `continue_final_message` leaves the last message open
        instead. Messages and `tools` are OpenAI's. `variables` go to the template by name. Raises TemplateError,
        InvalidTextError for lone surrogates, and TooLongError as the tokenizer does for `most`.
        """
