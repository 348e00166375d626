# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Models as CUDA graphs: what can be seen without a device; replays are in test_model_device.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.native import captured


class Stand(nn.Module):
    """A model whose parameter claims to be on a GPU, and that notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[bool, bool]] = []

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        yield type("Parameter", (), {"device": torch.device("cuda", 0)})

    def forward(self, image: Tensor) -> list[Tensor]:
        self.calls.append((torch.is_grad_enabled(), torch.is_autocast_cache_enabled()))
        return [image * self.scale]


class Graph:
    """A CUDA graph that runs again what was captured, into the same memory."""

    replay: Callable[[], None]


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Stand:
    """A stand-in whose captures are recorded by Python."""
    model, empty = Stand().eval(), torch.zeros

    @contextmanager
    def graph(graph: Graph) -> Iterator[None]:
        before = len(model.calls)
        forward, made = model.forward, []

        def recorded(image: Tensor) -> list[Tensor]:
            made[:] = forward(image)
            graph.replay = lambda: [out.copy_(image * model.scale) for out in made] and None
            return made

        monkeypatch.setattr(model, "forward", recorded)
        yield
        assert len(model.calls) == before + 1

    class Stream:
        def wait_stream(self, other: Any) -> None:
            pass

    monkeypatch.setattr(torch, "zeros", lambda shape, dtype, device: empty(shape, dtype=dtype))
    for name, value in {
        "CUDAGraph": Graph,
        "graph": graph,
        "Stream": Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": Stream,
        "device": lambda device: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return model


def test_replay_reads_the_images_and_the_weights_of_its_call(stand: Stand) -> None:
    run = captured.capture(stand, (1, 3, 4, 4), torch.float32)
    first = torch.randn(1, 3, 4, 4)
    (out,) = run(first)
    assert torch.equal(out, first)
    with torch.no_grad():
        stand.scale.fill_(3)
    (again,) = run(first + 1)
    torch.testing.assert_close(again, 3 * (first + 1))
    assert again is out  # which the docstring says


def test_capture_records_no_gradients_and_keeps_no_casts_of_autocast(stand: Stand) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        captured.capture(stand, (1, 3, 4, 4), torch.float32)
        assert torch.is_autocast_cache_enabled()
    assert len(stand.calls) == captured._WARM_UPS + 1 and set(stand.calls) == {(False, False)}


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.float64)], ids=str
)
def test_images_of_another_shape_or_dtype_are_refused(stand: Stand, images: Tensor) -> None:
    run = captured.capture(stand, (1, 3, 4, 4), torch.float32)
    with pytest.raises(ValueError, match=r"^captured: images must be \(1, 3, 4, 4\) of torch.fl"):
        run(images)


def test_model_in_training_or_on_the_cpu_is_refused(tiny: Callable[..., ViTAdapter]) -> None:
    with pytest.raises(ValueError, match=r"captured: .* eval mode"):
        tiny().captured((64, 64))
    with pytest.raises(ValueError, match="captured: the model must be on a CUDA device, got cpu"):
        tiny().eval().captured((64, 64), batch=2)


def test_weights_that_were_moved_are_not_read_from_where_they_were(stand: Stand) -> None:
    run = captured.capture(stand, (1, 3, 4, 4), torch.float32)
    image = torch.randn(1, 3, 4, 4)
    stand.load_state_dict({"scale": torch.tensor(2.0)})  # in place
    assert torch.equal(run(image)[0], 2 * image)
    kept = []  # or what is freed could be given to the next
    for change in (
        lambda: stand.scale.data.fill_(3.0),
        lambda: setattr(stand.scale, "data", torch.tensor(4.0)),
        lambda: stand.load_state_dict({"scale": torch.tensor(5.0)}, assign=True),
        lambda: stand.half(),
    ):
        before = stand.scale.data_ptr()
        kept.append(stand.scale.data)
        change()
        if stand.scale.data_ptr() == before:
            assert torch.equal(run(image)[0], 3 * image)
            continue
        with pytest.raises(RuntimeError, match="moved or replaced.*capture it again"):
            run(image)
