# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model in; out what lies beside its weights on the hub: a card, an image processor's config."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import CheckpointError
from ..files import replacing
from ..images import MEAN, STD
from ..model import ViTAdapter
from ..version import __version__

CARD = "README.md"
PREPROCESSOR = "preprocessor_config.json"
# Of transformers' image processor.
PREPROCESSOR_CONFIG = json.dumps(
    {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 512, "width": 512},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    },
    indent=2,
)

# Of the ViT's weights, by its trunk: name in the card's head, and what the card says.
_LICENSES = {
    "dinov2": (
        "license: apache-2.0",
        "The weights of the ViT come from [DINOv2](https://github.com/facebookresearch/dinov2), "
        "under the Apache License 2.0, unless it was trained from scratch.",
    ),
    "dinov3": (
        "license: other\nlicense_name: dinov3-license\n"
        "license_link: https://ai.meta.com/resources/models-and-libraries/dinov3-license",
        "The weights of the ViT come from [DINOv3](https://github.com/facebookresearch/dinov3) and "
        "stay under the DINOv3 License, a copy of which has to go with them, unless it was trained "
        "from scratch.",
    ),
}
_CARD = """\
---
{license}
library_name: {library}
pipeline_tag: image-feature-extraction
tags:
{tags}
---

# ViT-Adapter on a {trunk} ViT

A backbone for detection and segmentation with {parameters:.1f}M parameters: an image goes in, four
feature maps of {channels} channels and stride 4, 8, 16 and 32 come out.

```python
{code}
```

Images are in [0, 1], less the mean {mean}, over the deviation {std}, of any size from 32 pixels.

## License

{license_text}

## Sources

Chen et al. 2022, Vision Transformer Adapter for Dense Predictions,
[arXiv:2205.08534](https://arxiv.org/abs/2205.08534). Written by vitadapter_fast {version}.
"""


def model_card(model: ViTAdapter, *, library: str, code: str, tags: Sequence[str] = ()) -> str:
    """Return the text of a model card.

    Args:
        model: Whose trunk decides the license.
        library: What loads the model, as the hub calls it.
        code: How.
        tags: Beside the card's own.
    """
    license_head, license_text = _LICENSES[model.trunk]
    return _CARD.format(
        license=license_head,
        license_text=license_text,
        library=library,
        tags="\n".join(f"- {tag}" for tag in dict.fromkeys(("vit-adapter", model.trunk, *tags))),
        trunk={"dinov2": "DINOv2", "dinov3": "DINOv3"}[model.trunk],
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        channels=model.embed_dim,
        code=code,
        mean=MEAN,
        std=STD,
        version=__version__,
    )


def write_new(folder: str | os.PathLike[str], name: str, text: str) -> None:
    """Write a file, unless the folder has one of that name.

    Raises:
        CheckpointError: It cannot be written.
    """
    path = Path(folder, name)
    if not path.exists():
        with replacing(path, CheckpointError) as part:
            part.write_text(text, "utf-8")
