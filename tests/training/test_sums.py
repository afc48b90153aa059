"""Sums on the device, over processes."""

from types import SimpleNamespace

import torch

from rts_hf.training.sums import DeviceSums


class Processes:
    """What DeviceSums asks of an accelerator: here of two processes, of which the other has ten of everything."""

    device = torch.device("cpu")

    def __init__(self, count: int = 2, index: int = 0) -> None:
        self.num_processes, self.process_index, self.is_main_process = count, index, index == 0

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        others = [torch.full_like(rows, 10.0)] * (self.num_processes - 1)
        return torch.cat([rows, *others])


def test_sums_over_processes_and_starts_again() -> None:
    sums = DeviceSums("loss", "seen")
    sums.add(loss=torch.tensor(1.5), seen=3)
    sums.add(loss=torch.tensor(0.25))
    assert sums.total(Processes()) == {"loss": 11.75, "seen": 13.0}
    assert sums.take(Processes(1)) == {"loss": 1.75, "seen": 3.0}
    assert sums.total(Processes(1)) == {"loss": 0.0, "seen": 0.0}


def test_each_process_goes_on_with_its_own() -> None:
    saved = [{"loss": 1.0, "seen": 2.0}, {"loss": 3.0, "seen": 4.0}]
    for index in (0, 1):
        sums = DeviceSums("loss", "seen")
        sums.restore(saved, Processes(2, index))
        assert sums.by_process(Processes(1)) == [saved[index]]


def test_another_number_of_processes_loses_nothing() -> None:
    saved = [{"loss": 1.0, "seen": 2.0}, {"loss": 3.0, "seen": 4.0}]
    found = []
    for index in (0, 1, 2):
        sums = DeviceSums("loss", "seen")
        sums.restore(saved, Processes(3, index))
        found += sums.by_process(SimpleNamespace(device=torch.device("cpu"), gather=lambda rows: rows))
    assert found == [{"loss": 4.0, "seen": 6.0}, {"loss": 0.0, "seen": 0.0}, {"loss": 0.0, "seen": 0.0}]
