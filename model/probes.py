"""Probes that copy what inspection requests ask for of a forward pass.

How much a request may ask for is decided where requests are read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backend import AttentionOptions, Backend, LayerCache, LayerQueries
from model.attention_maps import SLICE_BYTES, Maps, reduced_maps
from model.contract import Chunk
from model.decoder import Probe, Rows
from model.inspection import InspectionRequest, InspectionResult
from model.token_logprobs import TokenLogprobs
from model.transfer import stage, to_array


class ChunkProbe:
    """`model.decoder.Probe` that keeps what one chunk's inspection request asks for."""

    def __init__(self, chunk: Chunk, asked: InspectionRequest, begin: int, block_size: int, backend: Backend) -> None:
        """`begin` is the row of the chunk's first token in the batch."""
        self._asked = asked
        self.places = torch.tensor([begin + position - chunk.start for position in asked.positions])
        self._staged: Tensor | None = None
        """`places` on the device."""
        self._positions = torch.tensor(asked.positions)
        self._blocks = torch.tensor(chunk.blocks[: asked.positions[-1] // block_size + 1], dtype=torch.int32)
        self._block_size = block_size
        self._backend = backend
        self._heads: dict[int, list[int]] = {}
        for layer, head in asked.heads:
            self._heads.setdefault(layer, []).append(head)
        self._queries: dict[int, LayerQueries] = {}
        """The queries of layers whose weights are still to be computed."""
        self._row_bytes = 0
        """Bytes of the weights of one position that are to be computed from `_queries`."""
        self._query_bytes = 0
        """Bytes of the queries in `_queries`."""
        self._layers: list[int] = []
        """The layers of `_maps`, in their order."""
        self._maps: list[Maps] = []
        self._streams: list[Tensor] = []
        """Residual streams [positions, hidden], in the order of `Probe.stream`; for a lens alone, every second one."""
        self._passed = 0
        """Number of streams that have been shown."""

    def attention(self, layer: int, q: Rows, cache: LayerCache, options: AttentionOptions) -> None:
        """See `Probe.attention`. The weights themselves are computed later, of many layers at once."""
        if not (heads := self._heads.get(layer)):
            return
        rows = self._rows(q)
        self._queries[layer] = LayerQueries(rows, cache, heads, options)
        self._row_bytes += 4 * len(heads) * len(self._blocks) * self._block_size
        self._query_bytes += rows.nbytes
        if self._row_bytes + self._query_bytes > SLICE_BYTES:
            self.weigh()

    def stream(self, residual: Rows) -> None:
        """See `Probe.stream`."""
        if self._asked.stream or (self._asked.lens is not None and self._passed % 2 == 0):
            self._streams.append(self._rows(residual))
        self._passed += 1

    def lens_rows(self) -> Tensor | None:
        """The streams that the logit lens looks at, [stages * positions, hidden]; None if there is no lens."""
        if self._asked.lens is None:
            return None
        return torch.cat(self._streams[:: 2 if self._asked.stream else 1])

    def weigh(self) -> None:
        """Compute the attention maps of the layers that have been seen. The blocks must still be the request's."""
        if not self._queries:
            return
        asked, layers = self._asked, [*self._queries.values()]
        positions, blocks = stage([self._positions, self._blocks], layers[0].q.device)
        rows = len(asked.positions)

        def weigh(part: slice) -> Tensor:
            whole = part.start == 0 and part.stop >= rows
            some = layers if whole else [queries._replace(q=queries.q[part]) for queries in layers]
            return self._backend.attention_weights(some, positions[part], blocks)[:, :, : asked.positions[-1] + 1]

        counts = [len(queries.heads) for queries in layers]
        self._maps.append(reduced_maps(weigh, rows, self._row_bytes, counts, asked.reduction, asked.top_keys))
        self._layers += self._queries
        self._queries, self._row_bytes, self._query_bytes = {}, 0, 0

    def _rows(self, rows: Rows) -> Tensor:
        """Copies of the rows of the request's positions."""
        if self._staged is None:
            (self._staged,) = stage([self.places], rows.tensor.device)
        return rows.at(self._staged)

    @property
    def needed(self) -> bool:
        """Whether anything of the forward pass itself is asked for."""
        return self._asked.needs_probe

    def result(self, lens: Sequence[Sequence[TokenLogprobs]] | None) -> InspectionResult:
        """The positions as they were asked for; `lens` is their logit lens. Waits for the device."""
        asked = self._asked
        streams = torch.stack(self._streams).float() if asked.stream else None
        maps = self._ordered()
        return InspectionResult(
            positions=asked.positions,
            attention=None if maps is None else to_array(maps.weights),
            attention_keys=None if maps is None or maps.keys is None else to_array(maps.keys),
            stream=None if streams is None else to_array(streams.norm(dim=-1)),
            added=None if streams is None else to_array(streams.diff(dim=0).norm(dim=-1)),
            lens=lens,
        )

    def _ordered(self) -> Maps | None:
        """The maps in the order of `InspectionResult.attention`; None if none are asked for."""
        if not self._maps:
            return None
        weights, keys = zip(*self._maps, strict=True)
        maps = Maps(torch.cat(weights), None if self._asked.top_keys is None else torch.cat(keys))
        names: list[object] = [(layer, head) for layer in self._layers for head in self._heads[layer]]
        wanted: list[object] = [*self._asked.heads]
        if self._asked.reduction is not None:
            names, wanted = [*self._layers], [*self._heads]
        if names == wanted:
            return maps
        places = {name: place for place, name in enumerate(names)}
        order = torch.tensor([places[name] for name in wanted], device=maps.weights.device)
        return Maps(maps.weights[order], None if maps.keys is None else maps.keys[order])


class JoinedProbes:
    """Several probes as one."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._probes = probes
        self.places = torch.cat([probe.places for probe in probes])

    def attention(self, layer: int, q: Rows, cache: LayerCache, options: AttentionOptions) -> None:
        """See `Probe.attention`."""
        for probe in self._probes:
            probe.attention(layer, q, cache, options)

    def stream(self, residual: Rows) -> None:
        """See `Probe.stream`."""
        for probe in self._probes:
            probe.stream(residual)
