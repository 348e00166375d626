# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What a step of a training is made of: photos read and varied, boxes, scores."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from shapes import all_found, write_folder  # noqa: E402

from vitadapter_fast.commands.train.data import Photo, load, read_folder, vary  # noqa: E402
from vitadapter_fast.commands.train.detector import build_detector  # noqa: E402
from vitadapter_fast.commands.train.scores import score  # noqa: E402
from vitadapter_fast.commands.train.settings import Settings  # noqa: E402

SMALL_SETTINGS = Settings(model="tiny", size=(96, 96), batch=2, epochs=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "shapes", 6)


def test_photos_fit_into_the_size_and_vary_in_training_alone() -> None:
    transform = build_detector(SMALL_SETTINGS, 2).transform
    image = torch.rand(3, 50, 200)
    target = {"boxes": torch.tensor([[20.0, 10, 100, 30]]), "labels": torch.tensor([1])}
    sizes = set()
    for _ in range(8):
        images, (resized,) = transform([image], [target])
        h, w = images.image_sizes[0]
        sizes.add(w)
        ratios = torch.tensor([w / 200, h / 50, w / 200, h / 50])
        torch.testing.assert_close(resized["boxes"][0], target["boxes"][0] * ratios)
    assert len(sizes) > 4 and min(sizes) >= 0.8 * 96 - 1 and max(sizes) <= 1.2 * 96 + 1
    assert transform.eval()([image])[0].image_sizes == [(24, 96)]


def test_boxes_keep_their_precision_under_autocast() -> None:
    detector = build_detector(SMALL_SETTINGS, 2)
    proposals = []
    detector.roi_heads.register_forward_pre_hook(lambda module, args: proposals.extend(args[1]))
    target = {"boxes": torch.tensor([[20.0, 10, 60, 30]]), "labels": torch.tensor([1])}
    with torch.autocast("cpu", torch.bfloat16):
        detector([torch.rand(3, 64, 64)], [target])
    assert [each.dtype for each in proposals] == [torch.float32]
    anchors = detector.rpn.anchor_generator.cell_anchors
    assert {each.dtype for each in anchors} == {torch.float32}
    anchor = torch.tensor([[600.3, 500.7, 630.1, 540.9]])
    for part in (detector.rpn, detector.roi_heads):
        codes = torch.zeros(1, 4, dtype=torch.bfloat16)
        torch.testing.assert_close(part.box_coder.decode(codes, [anchor])[:, 0], anchor)


def test_workers_read_what_the_process_itself_reads(data: Path) -> None:
    training, _ = read_folder(data, has_masks=True)
    alone, helped = (list(load(training, [[0, 3], [5, 1]], workers)) for workers in (0, 1))
    assert [[photo.id for photo in batch] for batch in helped] == [[0, 3], [5, 1]]
    for one, other in zip(sum(alone, []), sum(helped, []), strict=True):
        assert torch.equal(one.image, other.image)
        assert all(torch.equal(one.target[name], other.target[name]) for name in one.target)


@pytest.mark.parametrize(("flip", "places"), [("none", 1), ("horizontal", 2), ("both", 4)])
def test_mirrored_boxes_and_masks_stay_on_their_shapes(flip: str, places: int) -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, 5:15, 10:30] = 255
    target = {
        "boxes": torch.tensor([[10.0, 5, 30, 15]]),
        "labels": torch.tensor([1]),
        "masks": (image[:1] > 0).byte(),
    }
    torch.manual_seed(0)
    seen = set()
    for _ in range(24):
        photo = vary(Photo(1, image, target), flip)
        left, top, right, bottom = (int(edge) for edge in photo.target["boxes"][0])
        inside = photo.image[:, top:bottom, left:right]
        assert inside.min() > photo.image.mean() and inside.numel() == 3 * 200
        assert photo.target["masks"][0, top:bottom, left:right].sum() == 200
        seen.add((left, top))
    assert seen == set([(10, 5), (30, 5), (10, 25), (30, 25)][:places])


def test_what_is_annotated_scores_one_and_nothing_scores_zero(data: Path) -> None:
    _, held_out = read_folder(data, has_masks=True)
    for kind, scores in score(held_out, all_found(held_out)).items():
        assert kind in ("box", "mask")
        assert scores["ap"] == scores["ap50"] == scores["ap75"] == pytest.approx(1.0)
    nothing = {"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "ap50_of": {"disk": 0.0, "square": 0.0}}
    assert score(held_out, []) == {"box": nothing, "mask": nothing}
