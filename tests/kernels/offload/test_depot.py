"""Values that are moved to a file and fetched back: their bits, where they lie, and what happens where that fails."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import pytest
import torch

from graphopt.base.errors import OffloadError
from graphopt.kernels.offload import ops
from graphopt.kernels.offload.file_depot import FileDepot
from graphopt.kernels.offload.link import measure_link

CPU = torch.device("cpu")
TENSORS = {
    "plain": lambda: torch.randn(65, 33),
    "transposed": lambda: torch.randn(33, 65).t(),
    "a part of a larger one": lambda: torch.randn(65, 99)[:, 7:40],
    "channels last": lambda: torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.randn(65, 1).expand(65, 33),
    "halves": lambda: torch.randn(65, 33).bfloat16(),
    "complex": lambda: torch.randn(65, 33, dtype=torch.complex64),
    "truth": lambda: torch.rand(65, 33) > 0.5,
    "not numbers": lambda: torch.full((65, 33), float("nan")),
    "a number": lambda: torch.tensor(3.0),
}


def round_trip(depot: FileDepot, tensor: torch.Tensor) -> torch.Tensor:
    token = depot.stow(tensor)
    depot.settle(token)
    fetching = depot.fetch(token)
    depot.wait(token, fetching)
    return fetching.tensor()


@pytest.mark.parametrize("kind", TENSORS)
def test_what_comes_back_has_its_bits_and_its_layout(kind: str, tmp_path: Path) -> None:
    tensor = TENSORS[kind]()
    back = round_trip(FileDepot(tmp_path), tensor)
    assert back.stride() == tensor.stride() and back.dtype == tensor.dtype
    assert back.untyped_storage().nbytes() == tensor.untyped_storage().nbytes()
    assert back.untyped_storage().tolist() == tensor.untyped_storage().tolist()


def test_the_file_has_no_name_and_its_regions_are_used_again(tmp_path: Path) -> None:
    depot = FileDepot(tmp_path)
    stays = depot.stow(torch.randn(5000))
    for _ in range(5):
        tokens = [depot.stow(torch.randn(5000)) for _ in range(3)]
        assert len(depot.tokens) == 4
        del tokens
        gc.collect()
    assert not list(tmp_path.iterdir())
    assert len(depot.tokens) == 1 and depot._end == 4 * 20480
    del stays
    gc.collect()
    assert len(depot.tokens) == depot._end == 0


def test_a_token_lives_as_long_as_a_view_of_it(tmp_path: Path) -> None:
    depot, tensor = FileDepot(tmp_path), torch.randn(5000)
    token = depot.stow(tensor).detach()
    gc.collect()
    assert len(depot.tokens) == 1
    fetching = depot.fetch(token)
    depot.wait(token, fetching)
    assert torch.equal(fetching.tensor(), tensor)


def test_a_tensor_is_held_until_it_is_written(tmp_path: Path) -> None:
    depot = FileDepot(tmp_path, bytes_per_second=1e6)
    expected = torch.randn(25_000)
    token = depot.stow(expected.clone())  # nobody else holds it
    junk = [torch.randn(25_000) for _ in range(4)]
    start = time.monotonic()
    depot.settle(token)
    assert time.monotonic() - start > 0.05
    fetching = depot.fetch(token)
    depot.wait(token, fetching)
    assert torch.equal(fetching.tensor(), expected) and len(junk) == 4


@pytest.mark.parametrize(("fault", "what"), [("no space", "No space left"), ("broken", "Input/output error")])
def test_what_cannot_be_written_is_an_error_where_it_is_waited_for(fault: str, what: str, tmp_path: Path) -> None:
    depot, tensor = FileDepot(tmp_path), torch.randn(5000)
    depot.lane.fails(fault, after=1)
    first, second, third = (depot.stow(tensor) for _ in range(3))
    depot.settle(first)
    with pytest.raises(OffloadError, match=what):
        depot.settle(second)
    with pytest.raises(OffloadError, match=what):
        depot.wait(second, depot.fetch(second))
    depot.settle(third)
    assert torch.equal(round_trip(depot, tensor), tensor)


def test_a_file_that_was_cut_short_is_an_error_and_short_transfers_go_on(tmp_path: Path) -> None:
    depot, tensor = FileDepot(tmp_path), torch.randn(50_000)
    for after in range(2):  # the write, the read
        depot.lane.fails("short", after)
        assert torch.equal(round_trip(depot, tensor), tensor)
    depot.lane.fails("cut", after=1)
    with pytest.raises(OffloadError, match="shorter than what was written"):
        round_trip(depot, tensor)
    assert torch.equal(round_trip(depot, tensor), tensor)


def test_bytes_that_are_not_those_that_were_written_are_an_error(tmp_path: Path) -> None:
    depot = FileDepot(tmp_path)
    tokens = [depot.stow(torch.randn(size)) for size in (50_000, 1, 4_099)]
    for token in tokens:
        depot.settle(token)
    depot.lane.fails("cut", after=0)
    with pytest.raises(OffloadError, match="shorter than what was written"):
        depot.wait(tokens[0], depot.fetch(tokens[0]))
    last = depot.stow(torch.randn(7_000))  # behind all others: before it the file has a hole
    depot.settle(last)
    for token in tokens:
        with pytest.raises(OffloadError, match="not what was written"):
            depot.wait(token, depot.fetch(token))
    depot.wait(last, depot.fetch(last))


def test_what_a_step_that_raised_left_is_let_go_of_when_it_is_there(tmp_path: Path) -> None:
    depot = FileDepot(tmp_path, bytes_per_second=2e6)
    ops.use_depot("slow", depot)
    token = ops.stow(torch.randn(20_000), "slow")
    value = ops.fetch(token, "slow", [20_000], [1], torch.float32, CPU)
    del value  # an error unwound what was to read it
    assert len(ops._ARRIVING) == 1
    ops.stow(torch.zeros(1), "slow")
    assert not ops._ARRIVING


def test_threads_share_a_depot(tmp_path: Path) -> None:
    depot, wrong = FileDepot(tmp_path), []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(40):
            tensor = torch.randn(3000, generator=generator)
            if not torch.equal(round_trip(depot, tensor), tensor):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_link_is_as_fast_as_its_lane(tmp_path: Path) -> None:
    link = measure_link(FileDepot(tmp_path, bytes_per_second=5e7), CPU)
    for rate in (link.write_bytes_per_second, link.read_bytes_per_second):
        assert 3e7 < rate < 5.5e7
    assert link.write_seconds(5_000_000) > 0.09
