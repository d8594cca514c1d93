"""The beam searches that have not ended: their beams run, wait for each other, branch and end together.

It gives beams places on the roster; `Beams` knows which ones go on.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count

from model.contract import NOTHING
from model.token_logprobs import TokenLogprobs
from service.engine.beams import Beams, Candidate
from service.engine.messages import BeamSearch, Delta
from service.engine.news import search_delta
from service.engine.request import Request
from service.engine.roster import Roster


class Searches:
    """Beam searches, each under the id of its client's request, which is `Request.search` of every beam."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._beams: dict[int, Beams] = {}
        self._ids = count(-1, -1)
        """Ids of beams, which no client's request has."""

    def begin(self, request: Request, search: BeamSearch) -> None:
        """Make a client's request the only beam of a new search."""
        request.search = request.id
        self._beams[request.id] = Beams(search)
        self._beams[request.id].begin(request)

    def likeliest(self, id: int) -> Request | None:
        """The likeliest beam of a search; None if the id is not that of one."""
        return self._beams[id].requests[0] if id in self._beams else None

    def land(self, request: Request, entry: TokenLogprobs) -> None:
        """Note the likeliest next tokens of a beam, which has been computed."""
        assert request.search is not None
        self._beams[request.search].landed[request] = entry

    def advance(self, requests: Iterable[Request]) -> list[Delta]:
        """Choose the next token of all beams of the searches that some requests are of, where all have been computed.

        Returns the last deltas of the searches that have ended.
        """
        found = dict.fromkeys(request.search for request in requests if not request.ended)
        return [delta for id in found if id is not None and (delta := self._advance(self._beams[id]))]

    def end(self, request: Request, *, sound: bool = True) -> None:
        """End a request, and if it is a beam, with it all others of its search; `sound` is said of its blocks alone."""
        beams = None if request.search is None else self._beams.pop(request.search, None)
        for each in beams.requests if beams is not None else [request]:
            self._roster.end(each, sound=sound or each is not request)

    def _advance(self, beams: Beams) -> Delta | None:
        if not beams.complete:
            # A beam that waits for the others makes room for them: without it they might wait for ever.
            for request in beams.landed:
                if request.id in self._roster.running:
                    self._roster.leave(request)
            return None
        if going := beams.advance():
            self._branch(beams, going)
            return None
        self.end(beams.requests[0])
        return search_delta(beams.requests[0], beams)

    def _branch(self, beams: Beams, going: Sequence[Candidate]) -> None:
        """Make the beams' requests those of `going`. The likeliest child of a beam has its request and its blocks.

        The others find all its full blocks in the prefix cache, and compute the tokens behind them.
        """
        outputs = {candidate.parent: [*candidate.parent.output] for candidate in going}
        for request in beams.requests:
            if request not in outputs:
                self._roster.end(request)
        requests: list[Request] = []
        for candidate in going:
            request = candidate.parent
            if request in requests:
                request = self._sibling(request, outputs[request])
            request.output.append(candidate.token)
            if request.id not in self._roster.running:
                self._roster.wait(request)
            requests.append(request)
        beams.adopt(requests, going)

    def _sibling(self, request: Request, output: Sequence[int]) -> Request:
        """A new request like a beam's, with the beam's former output and without blocks."""
        return replace(
            request,
            id=next(self._ids),
            output=[*output],
            blocks=array("i"),
            published=0,
            chain=[*request.chain],
            places={},
            wanted=NOTHING,
        )
