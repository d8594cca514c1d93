"""SentencePiece's byte-pair encoding, restated as the merge list that the tokenizers package wants.

SentencePiece keeps no merges: it joins the neighbours that form the vocabulary's best piece, the leftmost first (Kudo
and Richardson, 2018). Each way to cut a piece into two pieces is therefore a merge with the piece's rank. The two
differ only where one string is cut in two ways that overlap in the text, as a|ba and ab|a in ab|a|ba.
"""

from collections.abc import Mapping

from model.checkpoint.errors import CheckpointError

LONGEST_PIECE = 512
"""Characters of the longest piece that gets merges. Real vocabularies stay far below; cutting costs its square."""


def merges_by_rank(ranks: Mapping[str, int]) -> list[tuple[str, str]]:
    """All merges of a vocabulary, best first, from the rank of each piece; the lowest rank merges first."""
    merges = []
    for piece in sorted(ranks, key=ranks.__getitem__):
        if len(piece) > LONGEST_PIECE:
            raise CheckpointError(
                f"the vocabulary has a token of {len(piece)} characters; the limit is {LONGEST_PIECE}"
            )
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ranks and right in ranks:
                merges.append((left, right))
    return merges
