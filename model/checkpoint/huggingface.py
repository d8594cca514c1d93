"""Reads models from a local Hugging Face folder: config.json, safetensors in one file or in shards, tokenizer files.

Nothing in a folder is executed or unpickled. `model.checkpoint.hub` downloads folders.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from model.checkpoint.checkpoint import Quantized, RawTensor
from model.checkpoint.errors import CheckpointError, label
from model.checkpoint.files import present, read_bytes, read_json, read_text
from model.checkpoint.fp8_format import Fp8Format
from model.checkpoint.packed_formats import PackedTensor, PackingError, Shape, find_packed
from model.checkpoint.quantization_config import WeightFormat, weight_format
from model.checkpoint.safetensors import SafetensorsFile
from model.checkpoint.sampling_defaults import SamplingDefaults, legacy_keys, read_sampling_defaults
from model.checkpoint.tokenizer_data import HuggingFaceTokenizer

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
LARGEST_TOKENIZER = 256 << 20


class HuggingFaceCheckpoint:
    """A Hugging Face folder as a `Checkpoint`."""

    format: Literal["huggingface"] = "huggingface"

    def __init__(self, folder: Path, *, weights: bool = True) -> None:
        """Open a folder. Without `weights`, weight files are not looked for, and there are no tensors.

        Raises CheckpointError if a file is missing or malformed.
        """
        self._folder = folder
        self.config = _config(folder)
        self._files, self.missing = _tensor_files(folder) if weights else ({}, {})
        stored = {name: file.shapes[name] for name, file in self._files.items()}
        self._packing = weight_format(self.config, str(folder / CONFIG))
        self._packed = _find_packed(stored, self._packing, str(folder))
        for weight in self._packed.values():
            for part in weight.parts.values():
                del stored[part]
        self._shapes = stored | {name: weight.shape for name, weight in self._packed.items()}

    @property
    def name(self) -> str:
        return self._folder.resolve().name

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """The tokenizer's files, read again at each call: the process that holds the weights does not need them."""
        path = self._folder / "tokenizer.json"
        if not present(path):
            raise CheckpointError(f"{self._folder}: has no tokenizer.json; other kinds of tokenizer are not supported")
        config = _optional_json(self._folder / "tokenizer_config.json")
        return HuggingFaceTokenizer(
            tokenizer_json=read_bytes(path, LARGEST_TOKENIZER),
            config=config,
            chat_template=_chat_template(self._folder, config),
            eos_token_ids=_eos_token_ids(self._folder, self.config),
            model_type=str(self.config.get("model_type", "")),
        )

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        path = self._folder / GENERATION_CONFIG
        if present(path):
            return read_sampling_defaults(read_json(path), str(path))
        return read_sampling_defaults(legacy_keys(self.config), str(self._folder / CONFIG))

    def tensor_names(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        self._require(name)
        return self._shapes[name]

    def read(self, name: str) -> RawTensor:
        quantized = self.read_quantized(name)
        if quantized is not None:
            return RawTensor(quantized.dequantized(), "F32")
        return self._files[name].read(name)

    def read_quantized(self, name: str) -> Quantized | None:
        self._require(name)
        if self._packing is None or name not in self._packed:
            return None
        parts = self._packed[name].parts
        if isinstance(self._packing, Fp8Format):
            codes, scales = parts["weight"], parts["scales"]
            return self._packing.unpack(self._files[codes].read_e4m3(codes), self._files[scales].read(scales).float32())
        words = {
            part: self._files[parts[part]].read_words(parts[part]) for part in self._packing.words if part in parts
        }
        scales = parts[self._packing.scales]
        try:
            return self._packing.unpack(words, self._files[scales].read(scales).float32())
        except PackingError as error:
            raise CheckpointError(f"{self._folder}: {label(name)} {error}") from None

    def _require(self, name: str) -> None:
        if name not in self._shapes:
            raise CheckpointError(f"{self._folder}: has no tensor {label(name)}")


def _find_packed(stored: Mapping[str, Shape], packing: WeightFormat | None, source: str) -> Mapping[str, PackedTensor]:
    if packing is None:
        return {}
    return packing.find(stored, source) if isinstance(packing, Fp8Format) else find_packed(stored, packing, source)


def _config(folder: Path) -> Mapping[str, object]:
    path = folder / CONFIG
    if not present(path):
        raise CheckpointError(f"{folder}: has no {CONFIG}, so it is not a Hugging Face model")
    return read_json(path)


def _tensor_files(folder: Path) -> tuple[Mapping[str, SafetensorsFile], Mapping[str, str]]:
    """The file of each tensor, and the tensors of `Checkpoint.missing`."""
    if present(folder / WEIGHTS):
        file = SafetensorsFile(folder / WEIGHTS)
        return dict.fromkeys(file.shapes, file), {}
    if present(folder / INDEX):
        return _sharded_files(folder)
    if any(folder.glob("*.bin")):
        raise CheckpointError(f"{folder}: its weights are pickled .bin files; only safetensors are supported")
    raise CheckpointError(f"{folder}: has neither {WEIGHTS} nor {INDEX}")


def _sharded_files(folder: Path) -> tuple[Mapping[str, SafetensorsFile], Mapping[str, str]]:
    """The same for a sharded model. Tensors that a shard has and the index does not name are included too."""
    path = folder / INDEX
    shard_names = read_json(path).get("weight_map")
    if not isinstance(shard_names, dict):
        raise CheckpointError(f"{path}: has no weight_map")
    shards: dict[str, SafetensorsFile] = {}
    missing: dict[str, str] = {}
    for tensor, shard in shard_names.items():
        if not isinstance(shard, str) or not _is_shard_name(shard):
            raise CheckpointError(f"{path}: {label(shard)} is not the name of a safetensors file beside it")
        if shard not in shards:
            shards[shard] = SafetensorsFile(folder / shard)
        if tensor not in shards[shard].shapes:
            missing[tensor] = f"{path}: the tensor {label(tensor)} is not in {label(shard)}"
    held = {tensor: file for file in shards.values() for tensor in file.shapes}
    named = {tensor: shards[shard] for tensor, shard in shard_names.items() if tensor not in missing}
    return held | named, missing


def _is_shard_name(name: str) -> bool:
    """Whether `name` is that of a safetensors file in the folder itself, and prints on one line."""
    return name.endswith(".safetensors") and name.isprintable() and not {"/", "\\"} & set(name)


def _optional_json(path: Path) -> Mapping[str, object]:
    return read_json(path) if present(path) else {}


def _chat_template(folder: Path, tokenizer_config: Mapping[str, object]) -> str | None:
    path = folder / "chat_template.jinja"
    if present(path):
        return read_text(path)
    match tokenizer_config.get("chat_template"):
        case None:
            return None
        case str(template):
            return template
        case [*named]:
            for entry in named:
                match entry:
                    case {"name": "default", "template": str(template)}:
                        return template
    raise CheckpointError(f"{folder / 'tokenizer_config.json'}: no chat_template that is text or named default")


def _eos_token_ids(folder: Path, config: Mapping[str, object]) -> tuple[int, ...]:
    ids = _optional_json(folder / GENERATION_CONFIG).get("eos_token_id")
    if ids is None:
        ids = config.get("eos_token_id")
    if ids is None:
        return ()
    listed = ids if isinstance(ids, list) else [ids]
    if not all(type(token) is int and token >= 0 for token in listed):
        raise CheckpointError(f"{folder}: eos_token_id is {label(ids)}, not a token id or a list of them")
    return tuple(listed)
