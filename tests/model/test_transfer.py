"""What is staged arrives as it was, every tensor where kernels may read it in whole words."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.transfer import ALIGNMENT, Moment, stage, to_host

CPU = torch.device("cpu")
DTYPES = [torch.int64, torch.int32, torch.float32, torch.float64, torch.uint8]

tensors = st.builds(
    lambda dtype, shape, seed: torch.randint(0, 200, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), min_size=1, max_size=2),
    st.integers(0, 1000),
)


@given(st.lists(tensors, min_size=1, max_size=6))
def test_what_is_staged_arrives(sent: list[torch.Tensor]) -> None:
    arrived = stage(sent, CPU)
    for original, copy in zip(sent, arrived, strict=True):
        assert copy.dtype == original.dtype
        assert torch.equal(copy, original)
        assert copy.storage_offset() * copy.itemsize % ALIGNMENT == 0


def test_on_a_cpu_everything_is_there_at_once() -> None:
    began = Moment(CPU)
    tensor = torch.arange(5)
    assert torch.equal(to_host(tensor), tensor)
    ended = Moment(CPU)
    ended.wait()
    assert ended.seconds_since(began) >= 0
