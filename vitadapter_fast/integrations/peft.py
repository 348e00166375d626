# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What peft's configs name of a model: layers for low-rank adapters, modules to train whole.

Patterns for ``target_modules`` and names for ``modules_to_save``; peft itself is not imported.
"""

from torch import nn

from ..model import ViTAdapter

# All linear layers of the ViT's blocks, wherever the model lies in another.
VIT_TARGETS = r"(.*\.)?blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2|w12|w3))"
# All linear layers of injectors and extractors.
ADAPTER_TARGETS = (
    r"(.*\.)?interactions\.\d+\.(injector|extractor|extra_extractors\.\d+)\."
    r"(attn\.(sampling_offsets|attention_weights|value_proj|output_proj)|ffn\.(fc1|fc2))"
)


def modules_to_save(model: nn.Module) -> list[str]:
    """Return the names of the modules beside the ViT, for ``modules_to_save`` of a config of peft.

    Together they are the adapter, but for ``level_embed``: that is a parameter, and peft has no
    place for one, so it stays as the base model has it. peft compares ends of names: where
    ``model`` is the ``ViTAdapter`` itself, "norm1" and "norm2" are also those of each block.

    Args:
        model: A ``ViTAdapter``, or a model with one inside; what peft is given.

    Raises:
        ValueError: There is not exactly one ``ViTAdapter``.
    """
    found = [(name, each) for name, each in model.named_modules() if isinstance(each, ViTAdapter)]
    if len(found) != 1:
        raise ValueError(
            "modules_to_save: model must be a ViTAdapter or have one inside, "
            f"{type(model).__name__} has {len(found)}; call it for one of its parts"
        )
    name, adapter = found[0]
    stages = [f"interactions.{index}" for index in range(len(adapter.interactions))]
    parts = ("spm", *stages, "up", "norm1", "norm2", "norm3", "norm4")
    return [f"{name}.{part}" if name else part for part in parts]
