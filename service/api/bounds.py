"""Bounds on what a request may ask for: a refusal names the field, what was asked and the limit."""

from service.api.errors import refusal


def check_at_most(param: str, value: int | None, most: int, items: str) -> None:
    """Refuse a number of `items` above the limit `most`; None is within every limit."""
    if value is not None and value > most:
        raise refusal(param, f"{value} {items} are more than the {most} that this server allows")


def check_size(param: str, size: int, most: int) -> None:
    """Refuse what would take more than `most` bytes."""
    if size > most:
        raise refusal(param, f"would be {size} bytes, more than the {most} of this server")


def check_token_ids(param: str, tokens: list[int], bound: int) -> None:
    """Refuse ids outside [0, bound)."""
    if tokens and not 0 <= min(tokens) <= max(tokens) < bound:
        raise refusal(param, f"has a token id outside 0 to {bound - 1}")
