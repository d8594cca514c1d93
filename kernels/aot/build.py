"""Compiles variants in several processes and stores their resources, so that a second run takes seconds.

Knows neither the kernels nor the limits that the gate checks.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from kernels.aot import resources
from kernels.aot.record import Variant
from kernels.aot.resources import Resources, compile_variant

Outcome = Resources | str
"""A variant's resources, or the reason why it did not compile."""


def build(variants: Iterable[Variant], store: Path, jobs: int) -> Iterator[tuple[Variant, Outcome]]:
    """Each variant with its outcome, in the order in which they are done; `jobs` processes compile at a time.

    Resources are stored in the folder `store` under the variant's key; failures are not stored.
    """
    store.mkdir(parents=True, exist_ok=True)
    missing = []
    for variant in variants:
        kept = _entry(store, variant)
        if kept.exists():
            yield variant, Resources(**json.loads(kept.read_text()))
        else:
            missing.append(variant)
    for variant, outcome in _compile(missing, jobs):
        if isinstance(outcome, Resources):
            _keep(_entry(store, variant), outcome)
        yield variant, outcome


def _compile(variants: list[Variant], jobs: int) -> Iterator[tuple[Variant, Outcome]]:
    """Each variant with its outcome. A compiler that dies breaks its pool; variants in it are compiled again alone."""
    orphans = []
    if variants:
        with _pool(jobs) as pool:
            pending = {pool.submit(_attempt, variant): variant for variant in variants}
            for future in as_completed(pending):
                if isinstance(future.exception(), BrokenExecutor):
                    orphans.append(pending[future])
                else:
                    yield pending[future], future.result()
    for variant in orphans:
        with _pool(1) as pool:
            try:
                yield variant, pool.submit(_attempt, variant).result()
            except BrokenExecutor:
                yield variant, "the compiler died"


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def _attempt(variant: Variant) -> Outcome:
    try:
        return compile_variant(variant)
    except Exception as error:  # Whatever the compiler raises is the variant's result.
        return f"does not compile: {type(error).__name__}: {error}"


def _entry(store: Path, variant: Variant) -> Path:
    # The hash of the module that reads resources is part of the name, so that entries of an older reader are not used.
    reader = hashlib.sha256(Path(resources.__file__).read_bytes()).hexdigest()
    return store / f"{variant.key()[:32]}-{reader[:8]}.json"


def _keep(path: Path, outcome: Resources) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(outcome)))
    partial.replace(path)
