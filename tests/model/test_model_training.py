# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""Stochastic depth, checkpointing and freezing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from vitadapter_fast import ViTAdapter
from vitadapter_fast.model.drop_path import DropPath
from vitadapter_fast.model.vit import Attention

Build = Callable[..., ViTAdapter]
VIT_PARTS = ("pos_embed", "patch_embed.", "blocks.")


def train_step(model: ViTAdapter, image: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(2)
    maps = model(image)
    # Random, because a batch norm passes no gradient of the sum of its squares.
    torch.autograd.backward(maps, [torch.randn(m.shape) for m in maps])
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@contextmanager
def counting_saved_bytes(saved: list[int], model: nn.Module) -> Iterator[None]:
    """Append to ``saved`` the size of every storage kept for backward that is not the model's."""
    known = {part.data_ptr(): part for part in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if known.setdefault(storage.data_ptr(), tensor) is tensor:
            saved.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def bytes_saved_within(model: ViTAdapter, modules: list[nn.Module], image: Tensor) -> int:
    """Run forward and return the bytes that ``modules`` keep for backward."""
    saved: list[int] = []
    marks: list[int] = []
    within: list[int] = []
    for module in modules:
        module.register_forward_pre_hook(lambda *_: marks.append(len(saved)))
        module.register_forward_hook(lambda *_: within.extend(saved[marks.pop() :]))
    with counting_saved_bytes(saved, model):
        model(image)
    return sum(within)


def drop_path_outputs(model: ViTAdapter, image: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return model(image)[0].detach()


def test_drop_path_rates_rise_linearly_from_zero(tiny: Build) -> None:
    rates = [block.drop_path.rate for block in tiny(drop_path_rate=0.3).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_drop_path_in_extractors_has_the_highest_rate(tiny: Build) -> None:
    stages = tiny(drop_path_rate=0.3).interactions
    assert [stage.extractor.drop_path.rate for stage in stages] == [0.3] * 4


def test_drop_path_drops_whole_samples_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    branch = torch.randn(64, 3, 2)
    factors = DropPath(0.75)(branch) / branch
    torch.testing.assert_close(factors, factors[:, :1, :1].expand(64, 3, 2))
    assert set(factors[:, 0, 0].round().tolist()) == {0.0, 4.0}


def test_drop_path_in_training_follows_the_seed(tiny: Build, image: Tensor) -> None:
    model = tiny(drop_path_rate=0.5, norm="GN")
    first = drop_path_outputs(model, image, seed=3)
    assert torch.equal(first, drop_path_outputs(model, image, seed=3))


def test_drop_path_in_training_varies_with_the_seed(tiny: Build, image: Tensor) -> None:
    model = tiny(drop_path_rate=0.5, norm="GN")
    outputs = [drop_path_outputs(model, image, seed) for seed in range(4)]
    assert not all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_eval_has_no_drop_path(tiny: Build, image: Tensor) -> None:
    dropping, plain = tiny(drop_path_rate=0.5).eval(), tiny().eval()
    for a, b in zip(dropping(image), plain(image), strict=True):
        torch.testing.assert_close(a, b)


def test_attention_dropout_acts_in_training_only(tiny: Build, image: Tensor) -> None:
    model = tiny(attn_drop_rate=0.5, norm="GN")
    plain = tiny(norm="GN").eval()(image)[0]
    assert torch.equal(model.eval()(image)[0], plain)
    assert not torch.equal(model.train()(image)[0], plain)


def test_checkpointed_gradients_are_equal(tiny: Build, image: Tensor) -> None:
    plain = train_step(tiny(drop_path_rate=0.5), image)
    checkpointed = train_step(tiny(drop_path_rate=0.5, with_cp=True), image)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_checkpointing_moves_the_running_statistics_once(tiny: Build, image: Tensor) -> None:
    plain, checkpointed = tiny(), tiny(with_cp=True)
    for model in (plain, checkpointed):
        train_step(model, image)
    moved = dict(checkpointed.named_buffers())
    for name, wanted in plain.named_buffers():
        torch.testing.assert_close(moved[name], wanted, msg=lambda m, n=name: f"{n}: {m}")
    assert all(norm.momentum == 0.1 for norm in batch_norms(checkpointed))
    assert [norm.num_batches_tracked.item() for norm in batch_norms(checkpointed)] == [1] * 10


def batch_norms(model: ViTAdapter) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def test_checkpointing_keeps_fewer_bytes(tiny: Build, image: Tensor) -> None:
    plain: list[int] = []
    checkpointed: list[int] = []
    for model, saved in ((tiny(), plain), (tiny(with_cp=True), checkpointed)):
        with counting_saved_bytes(saved, model):
            model(image)
    assert sum(checkpointed) < 0.5 * sum(plain)


def test_checkpointing_leaves_eval_alone(
    tiny: Build, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("checkpoint was called in eval mode")

    monkeypatch.setattr("vitadapter_fast.fused.checkpointing.checkpoint", refuse)
    assert len(tiny(with_cp=True).eval()(image)) == 4


def test_every_parameter_takes_a_gradient(tiny: Build, image: Tensor) -> None:
    # In eval mode, as a bias before a training batch norm has no gradient but rounding errors.
    model = tiny().eval()
    names = {name for name, gradient in train_step(model, image).items() if gradient.any()}
    assert names == {name for name, _ in model.named_parameters()}


def test_frozen_vit_gives_the_same_maps(tiny: Build, image: Tensor) -> None:
    for a, b in zip(tiny(frozen_vit=True)(image), tiny()(image), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("frozen", "saves"), [(True, False), (False, True)])
def test_frozen_vit_saves_no_activation(
    frozen: bool, saves: bool, tiny: Build, image: Tensor
) -> None:
    model = tiny(frozen_vit=frozen)
    injectors = [interaction.injector for interaction in model.interactions]
    parts = [model.patch_embed, *model.blocks, *injectors]
    kept = bytes_saved_within(model, parts, image.requires_grad_())
    assert (kept > 0) is saves


def test_frozen_vit_takes_no_gradient_and_all_else_does(tiny: Build, image: Tensor) -> None:
    model = tiny(frozen_vit=True).eval()
    expected = {
        name
        for name, _ in model.named_parameters()
        if not name.startswith(VIT_PARTS) and ".injector." not in name
    }
    names = {name for name, gradient in train_step(model, image).items() if gradient.any()}
    assert names == expected


def test_frozen_vit_requires_no_gradient_of_parameters_without_one(
    tiny: Build, image: Tensor
) -> None:
    # DistributedDataParallel fails on a parameter that asks for a gradient and gets none.
    model = tiny(frozen_vit=True)
    wanting = {name for name, p in model.named_parameters() if p.requires_grad}
    assert wanting == train_step(model, image).keys()


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("frozen", ["stem", "conv2.0", "stem.0"])
def test_group_norm_trains_behind_frozen_layers(
    frozen: str, backend: str | None, tiny: Build, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.13's own backward reads memory that is not there."""
    model = tiny(norm="GN")
    model.spm.stem.requires_grad_(False)
    model.spm.get_submodule(frozen).requires_grad_(False)
    model.spm.conv2[0].requires_grad_(False)
    monkeypatch.setenv("VITADAPTER_BACKEND", backend or "")
    gradients = train_step(model, image)
    assert gradients["spm.conv2.1.weight"].any()


def test_frozen_vit_stays_in_eval_mode(tiny: Build) -> None:
    model = tiny(frozen_vit=True).train()
    parts = (model.patch_embed, model.pos_drop, model.blocks)
    assert not any(module.training for part in parts for module in part.modules())


def test_frozen_vit_leaves_the_adapter_in_training_mode(tiny: Build) -> None:
    model = tiny(frozen_vit=True).eval().train()
    assert all(module.training for module in model.interactions.modules())


def test_frozen_vit_has_no_dropout(tiny: Build, image: Tensor) -> None:
    rates = {"drop_rate": 0.5, "attn_drop_rate": 0.5}
    frozen = tiny(frozen_vit=True, norm="GN", **rates)
    torch.testing.assert_close(frozen.train()(image)[0], tiny(norm="GN").eval()(image)[0])


def test_untrained_injectors_leave_the_vit_unchanged(tiny: Build, image: Tensor) -> None:
    model = tiny(init_values=0.0).eval()
    tokens: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda *call: tokens.append(call[-1]))
    model(image)
    x = model.patch_embed(image, model.pos_embed)
    for block in model.blocks:
        x = block(x, (4, 6))
    assert torch.equal(tokens[0], x)


def test_sampling_starts_on_rays_one_pixel_apart(tiny: Build) -> None:
    torch.manual_seed(0)
    attn = tiny(deform_num_heads=4).interactions[0].injector.attn
    points = attn.sampling_offsets.bias.view(4, 3, 4, 2)
    steps = torch.arange(1.0, 5.0)
    rays = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    expected = (rays[:, None, None] * steps[:, None]).expand(4, 3, 4, 2)
    torch.testing.assert_close(points, expected, atol=1e-6, rtol=0)


def test_gamma_starts_at_init_values(tiny: Build) -> None:
    gammas = [stage.injector.gamma for stage in tiny(init_values=0.25).interactions]
    assert all((gamma == 0.25).all() for gamma in gammas)


def test_windows_with_dropped_attention_are_those_of_the_op() -> None:
    kwargs = {"dim": 16, "num_heads": 2, "window_size": 3}
    dropping, plain = Attention(**kwargs, attn_drop=1e-12), Attention(**kwargs)
    plain.load_state_dict(dropping.state_dict())
    tokens = torch.randn(2, 20, 16)
    torch.testing.assert_close(dropping(tokens, (4, 5)), plain(tokens, (4, 5)))
    dropping.attn_drop = 0.5
    assert not torch.allclose(dropping(tokens, (4, 5)), plain(tokens, (4, 5)))
    dropping.eval()
    torch.testing.assert_close(dropping(tokens, (4, 5)), plain(tokens, (4, 5)))
