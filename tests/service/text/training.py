"""Small tokenizers of each kind, trained on the spot, and the same ones as a GGUF file would describe them."""

import io
import json
from collections.abc import Sequence
from typing import Any

import sentencepiece
from hypothesis import settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from model.checkpoint.tokenizer_data import GgufTokenizer, HuggingFaceTokenizer

SAMPLES = [
    "The capital of France is Paris. It's 12345 km, isn't it? WE'LL see; camelCaseWords and HTTPServer.",
    "대한민국의 수도는 서울입니다. 안녕하세요, 세계! 한국어 토큰화를 시험합니다.",
    "\u1100\u1161\u1102\u1161\u11ab e\u0301",  # Decomposed forms.
    "👩‍👩‍👧‍👦 family, 👍🏽 thumbs, 🇰🇷 flag, é é ﷺ ǅ ʰ ①②③ ٣٤٥ x²",
    'def f(x):\n    if x == 0:\n\t\treturn {"a": [1, 22, 333, 4444]}\r\n\r\n    return f(x - 1)  # 1/2\n\n\n',
    "a  b   c    d     e\n \n  \n\t\t x ///\n//\r\n  trailing   ",
    "<html><body>&nbsp;</body></html> <|im_start|>user\n</s> <s>[INST] <think>",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CONTROL, UNKNOWN, NORMAL, USER_DEFINED, BYTE = 3, 2, 1, 4, 6

deterministic = settings(derandomize=True, deadline=None)

FRAGMENTS = [
    *SPECIAL,
    *(
        "<think>",
        "<|",
        "<0x41>",
        "▁",
        " ",
        "  ",
        "\t",
        "\n",
        "안녕",
        "\u1100\u1161\u11a8",
        "e\u0301",
        "👩‍👧",
        "123456",
        "'s",
        "'LL",
        "don't",
    ),
]


def texts(max_size: int = 12) -> st.SearchStrategy[str]:
    """Any Unicode text, and mixtures of what tokenizers trip over."""
    plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    words = st.sampled_from([word for sample in SAMPLES for word in sample.split(" ")])
    return st.lists(st.one_of(plain, words, st.sampled_from(FRAGMENTS)), max_size=max_size).map("".join)


def byte_level(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    ignore_merges: bool = False,
) -> Backend:
    """Byte-level BPE; some of its whole-word tokens cannot be merged, which is what `ignore_merges` is about."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SAMPLES * 3, trainer)
    state = json.loads(backend.to_str())
    state["model"]["ignore_merges"] = ignore_merges
    state["model"]["vocab"]["Ġunmergeable"] = len(state["model"]["vocab"])
    backend = Backend.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return backend


def byte_level_gguf(backend: Backend, pre: str, **keys: object) -> GgufTokenizer:
    """A byte-level tokenizer as llama.cpp's converter writes it."""
    tokens = [backend.id_to_token(token) for token in range(backend.get_vocab_size())]
    merges = [" ".join(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    types = [CONTROL if text in SPECIAL else USER_DEFINED if text == "<think>" else NORMAL for text in tokens]
    return GgufTokenizer(
        {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.add_bos_token": False,
            **{f"tokenizer.ggml.{name}": value for name, value in keys.items()},
        }
    )


def sentencepiece_model(**options: Any) -> sentencepiece.SentencePieceProcessor:
    """BPE with byte fallback and the rest of Llama's settings."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for sample in SAMPLES * 3 for line in sample.splitlines()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=620,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99,
        minloglevel=2,
        **options,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_gguf(model: sentencepiece.SentencePieceProcessor, **keys: object) -> GgufTokenizer:
    """A SentencePiece model as llama.cpp's converter writes it."""

    def kind(token: int) -> int:
        if model.is_unknown(token):
            return UNKNOWN
        if model.is_control(token):
            return CONTROL
        return BYTE if model.is_byte(token) else NORMAL

    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(token) for token in range(len(model))],
        "tokenizer.ggml.scores": [model.get_score(token) for token in range(len(model))],
        "tokenizer.ggml.token_type": [kind(token) for token in range(len(model))],
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
    }
    return GgufTokenizer(metadata | {f"tokenizer.ggml.{name}": value for name, value in keys.items()})


def llama_backend(added: Sequence[AddedToken] = ()) -> Backend:
    """SentencePiece-style, as the tokenizer.json of Llama 2 and Phi-3 has it."""
    backend = Backend(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False, max_token_length=12
    )
    backend.train_from_iterator([word for sample in SAMPLES * 3 for word in sample.split(" ")], trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][:3]
    backend = Backend.from_str(json.dumps(state))
    backend.add_tokens(list(added))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def huggingface_data(backend: Backend, config: dict[str, Any], model_type: str = "") -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(backend.to_str().encode(), config, config.get("chat_template"), (), model_type)
