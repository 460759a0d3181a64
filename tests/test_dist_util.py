"""Device and ranks."""

import pytest
import torch

from guided_diffusion.dist_util import Ranks, choose_device, join_ranks
from guided_diffusion.errors import InputError


@pytest.fixture
def only_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("only_cpu")
@pytest.mark.parametrize(
    ("name", "words"),
    [("tpu", "choose from auto, cuda, mps, cpu"), ("", "choose from"), ("cuda", "no such"), ("mps", "no such device")],
)
def test_device_that_is_not_there(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        choose_device(name)
    assert str(caught.value).startswith(f"--device {name}: ")


@pytest.mark.usefixtures("only_cpu")
@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_cpu_is_always_there(name: str) -> None:
    assert choose_device(name, local_rank=3) == torch.device("cpu")


@pytest.mark.parametrize(("name", "rank", "device"), [("auto", 0, "cuda:0"), ("cuda", 3, "cuda:1"), ("cpu", 1, "cpu")])
def test_ranks_share_the_gpus(name: str, rank: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(name, rank) == torch.device(device)


def test_mps_before_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks() as ranks:
        assert ranks == Ranks(rank=0, size=1, local_rank=0)
        ranks.barrier()
        assert ranks.gather("report") == ["report"]
