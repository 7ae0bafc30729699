"""The order of an endless run: the same numbers as ever, in a few bytes a sample."""

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sr_assets.stores.augment import ORDER, generator
from sr_assets.stores.sample_order import SampleOrder


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=4),
    seed=st.integers(0, 2**31),
    start=st.integers(0, 100),
    count=st.integers(1, 40),
)
def test_places_are_those_of_a_shuffled_list(
    sizes: list[tuple[int, int]], seed: int, start: int, count: int
) -> None:
    patches = [np.arange(n) * 2 + 1 for n, _ in sizes]
    listed = [
        (dataset, int(patch), variant)
        for dataset, (_, variants) in enumerate(sizes)
        for patch in patches[dataset]
        for variant in range(variants)
    ]
    order = SampleOrder(patches, [variants for _, variants in sizes])
    assert len(order) == len(listed)
    if not listed:
        return
    at = order.at(np.arange(start, start + count), seed)
    found = list(zip(at.dataset.tolist(), at.patch.tolist(), at.variant.tolist(), strict=True))
    wanted = []
    for position in range(start, start + count):
        epoch, offset = divmod(position, len(listed))
        wanted.append(listed[generator(seed, ORDER, epoch).permutation(len(listed))[offset]])
    assert found == wanted


def test_a_million_samples_take_a_few_bytes_each() -> None:
    patches = np.arange(500_000)
    tracemalloc.start()
    order = SampleOrder([patches], [2])
    order.at(np.arange(16), 1)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 6.1 * len(order) and most < 12 * len(order)
