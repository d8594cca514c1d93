"""Looking inside a step: probes that copy what requests want to see of the decoder.

How much a request may ask for is decided where requests are read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backend import AttentionOptions, Backend, LayerCache
from model.attention_maps import Maps, reduced_maps
from model.contract import Chunk, Trace
from model.decoder import Probe
from model.seen import Array, Inside, TokenLogprobs
from model.transfer import stage


class Recorder:
    """`model.decoder.Probe` that keeps what one chunk's trace asks for."""

    def __init__(self, chunk: Chunk, trace: Trace, begin: int, block_size: int, backend: Backend) -> None:
        """`begin` is the row of the chunk's first token in the batch."""
        self._trace = trace
        self._places = torch.tensor([begin + position - chunk.start for position in trace.positions])
        self._blocks = torch.tensor(chunk.blocks[: trace.positions[-1] // block_size + 1], dtype=torch.int32)
        self._backend = backend
        self._heads: dict[int, list[int]] = {}
        for layer, head in trace.heads:
            self._heads.setdefault(layer, []).append(head)
        self.maps: dict[int, Maps] = {}
        """The attention maps of each layer that the trace names."""
        self.streams: list[Tensor] = []
        """Residual streams [positions, hidden], in the order of `Probe.stream`."""

    def attention(self, layer: int, q: Tensor, cache: LayerCache, options: AttentionOptions) -> None:
        """See `Probe.attention`."""
        if not (heads := self._heads.get(layer)):
            return
        trace = self._trace
        rows, positions, blocks = stage([self._places, torch.tensor(trace.positions), self._blocks], q.device)
        queries = q.index_select(0, rows)
        keys = trace.positions[-1] + 1

        def weigh(part: slice) -> Tensor:
            weights = self._backend.attention_weights(queries[part], positions[part], cache, blocks, heads, options)
            return weights[:, :, :keys]

        row_bytes = 4 * len(heads) * len(self._blocks) * cache.keys.shape[1]
        self.maps[layer] = reduced_maps(weigh, len(trace.positions), row_bytes, trace.reduction, trace.top_keys)

    def stream(self, residual: Tensor) -> None:
        """See `Probe.stream`."""
        if self._trace.stream or self._trace.lens is not None:
            (rows,) = stage([self._places], residual.device)
            self.streams.append(residual.index_select(0, rows))

    @property
    def probe(self) -> Probe | None:
        """The recorder itself, where the forward pass is to be looked at."""
        return self if self._trace.probes else None

    def inside(self, lens: Sequence[Sequence[TokenLogprobs]] | None) -> Inside:
        """The positions as the trace asked to see them; `lens` is their logit lens. Waits for the device."""
        trace = self._trace
        streams = torch.stack(self.streams).float() if trace.stream else None
        maps = self._ordered()
        keys = [keys for _, keys in maps if keys is not None]
        return Inside(
            positions=trace.positions,
            attention=to_array(torch.stack([weights for weights, _ in maps])) if maps else None,
            attention_keys=to_array(torch.stack(keys)) if keys else None,
            stream=None if streams is None else to_array(streams.norm(dim=-1)),
            added=None if streams is None else to_array(streams.diff(dim=0).norm(dim=-1)),
            lens=lens,
        )

    def _ordered(self) -> list[tuple[Tensor, Tensor | None]]:
        """Each map's weights and keys, in the order of `Inside.attention`."""
        places = {
            (layer, head): (layer, index) for layer, heads in self._heads.items() for index, head in enumerate(heads)
        }
        wanted = [places[name] for name in self._trace.heads]
        if self._trace.reduction is not None:
            wanted = [(layer, 0) for layer in self._heads]
        maps = [(self.maps[layer], index) for layer, index in wanted]
        return [(weights[index], None if keys is None else keys[index]) for (weights, keys), index in maps]


class Probes:
    """Several probes as one."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = probes

    def attention(self, layer: int, q: Tensor, cache: LayerCache, options: AttentionOptions) -> None:
        """See `Probe.attention`."""
        for probe in self._probes:
            probe.attention(layer, q, cache, options)

    def stream(self, residual: Tensor) -> None:
        """See `Probe.stream`."""
        for probe in self._probes:
            probe.stream(residual)


def to_array(tensor: Tensor) -> Array:
    """A copy of a tensor in host memory, for the other side of the contract. Waits for the device."""
    host = tensor.to("cpu", torch.float32).contiguous()
    return Array(tuple(host.shape), host.numpy().astype("<f4", copy=False).tobytes())
