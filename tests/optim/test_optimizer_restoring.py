"""RTSPUGD leaves no perturbed weights behind, whatever happens between its two passes."""

import warnings

import pytest
import torch
from optimizer_for_tests import ALWAYS, SCHEDULES, assert_equal, loop, loss_of, make_batches, make_net, weights
from torch import Tensor

from rts_hf import RTSPUGD


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    net = make_net(dtype=dtype)
    with torch.no_grad():
        net[0].weight[0, 0] = -0.0
        net[0].weight[0, 1] = torch.finfo(dtype).smallest_normal / 2
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **SCHEDULES, **ALWAYS)
    before = [w.view(torch.uint8) for w in weights(net)]
    batch = make_batches(1, dtype)[0]
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        with optimizer.perturbed():
            assert not any(
                torch.equal(p.detach().view(torch.uint8), w) for p, w in zip(net.parameters(), before, strict=True)
            )
        assert_equal(before, [w.view(torch.uint8) for w in weights(net)])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, torch.cuda.OutOfMemoryError])
def test_weights_come_back_after_an_exception(error: type[BaseException]) -> None:
    net, batch = make_net(), make_batches(1)[0]
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    loss_of(net, batch).backward()
    before = weights(net)

    def fail_in_second_pass(calls: list[int] = []) -> Tensor:  # noqa: B006
        calls.append(1)
        if len(calls) == 2:
            raise error("in the second pass")
        loss = loss_of(net, batch)
        loss.backward()
        return loss

    with pytest.raises(error), optimizer.perturbed():
        raise error("inside")
    assert_equal(before, weights(net))
    with pytest.raises(error):
        optimizer.step(fail_in_second_pass)
    assert_equal(before, weights(net))
    assert optimizer.stats()["step"] == 0
    optimizer.zero_grad()
    loop(net, optimizer, [batch])  # and it goes on
    assert optimizer.stats()["step"] == 1


def test_perturbed_weights_are_never_saved_in_the_state() -> None:
    net, batches = make_net(), make_batches(3)
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    loop(net, optimizer, batches)
    entries = {key for state in optimizer.state_dict()["state"].values() for key in state}
    assert entries == {"momentum_buffer"}


def test_perturbing_every_micro_batch_warns() -> None:
    net, batches = make_net(), make_batches(2)
    optimizer = RTSPUGD(net.parameters(), lr=0.1, **ALWAYS)
    loss_of(net, batches[0]).backward()
    with optimizer.perturbed():
        loss_of(net, batches[0]).backward()
    with pytest.warns(UserWarning, match="scales the first gradients twice"), optimizer.perturbed():
        loss_of(net, batches[1]).backward()
    optimizer.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(net, optimizer, batches)


def test_misuse_is_refused() -> None:
    net, batch = make_net(), make_batches(1)[0]
    optimizer = RTSPUGD(net.parameters(), lr=0.1, switch="fixed", switch_at=1, total_steps=5)
    with pytest.raises(RuntimeError, match="ask `if optimizer"), optimizer.perturbed():
        pass
    loss_of(net, batch).backward()
    optimizer.step()
    with optimizer.perturbed():
        with pytest.raises(RuntimeError, match="inside perturbed"), optimizer.perturbed():
            pass
        with pytest.raises(RuntimeError, match="leave the `with` block"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="would drop α_s·g"):
            optimizer.zero_grad()
