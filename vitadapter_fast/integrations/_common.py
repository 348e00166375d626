# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""What the integrations share: settings checked, parameters that nothing reads fixed, weights."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.nn.modules.module import _IncompatibleKeys

from ..builders import preset_of
from ..model import ViTAdapter
from ..presets import Preset
from ..weights.load import load_tensors

_PARAMETERS = inspect.signature(ViTAdapter).parameters
MODEL_KEYWORDS = frozenset(_PARAMETERS)
# What loads weights is no setting: a file of settings describes a model without them.
LOADING = frozenset({"pretrained", "patch_method"})
# Keywords of a model, and what they are where none is given; one without a default must be.
SETTINGS = {name: each.default for name, each in _PARAMETERS.items() if name not in LOADING}


class ForeignWeights(ViTAdapter):
    """A ``ViTAdapter`` whose ``load_state_dict`` also takes what ``load_checkpoint`` takes.

    It is for frameworks that read files themselves, and hand on what was in them.
    """

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Copy tensors into the model.

        Args:
            state_dict: Of such a model; or, if ``strict``, of a ViT or a detector in any naming.
            strict: As for ``nn.Module.load_state_dict``.
            assign: As for ``nn.Module.load_state_dict``; only for the model's own naming.

        Raises:
            RuntimeError: Tensors of such a model do not fit.
            CheckpointError: Others are not recognized or do not fit; the model is as it was.
        """
        if "level_embed" in state_dict or assign or not strict:
            return super().load_state_dict(state_dict, strict, assign)  # type: ignore[no-any-return]
        load_tensors(self, state_dict, "state_dict")
        return _IncompatibleKeys([], [])


def family_of(size: str) -> str:
    """Return "dinov2" or "dinov3", for one of ``MODELS``."""
    return "dinov2" if isinstance(preset_of(size), Preset) else "dinov3"


def registered_name(size: str) -> str:
    """Return what registries call one of ``MODELS``, such as "vit_adapter_splus_dinov3"."""
    letters = size.removeprefix("dinov3-").replace("+", "plus")
    return f"vit_adapter_{letters}_{family_of(size)}"


def published_weights(size: str) -> str | None:
    """Return the name under which ``load_checkpoint`` downloads the ViT of a published model.

    Args:
        size: One of ``MODELS``.

    Returns:
        Such as "dinov2_vits14"; None if no weights are published.
    """
    if family_of(size) == "dinov2":
        return f"dinov2_vit{size}14"
    letters = size.removeprefix("dinov3-")
    plus = "plus" if letters.endswith("+") else ""
    return None if letters == "t" else f"dinov3_vit{letters.rstrip('+')}16{plus}"


def check_keywords(
    who: str,
    given: Iterable[str],
    allowed: Iterable[str],
    elsewhere: Mapping[str, str] | None = None,
) -> None:
    """Raise TypeError if a keyword is unknown, with the nearest known one.

    Args:
        who: The class or function, for the message.
        given: Keywords as they came.
        allowed: Keywords that exist.
        elsewhere: For keywords that exist in other places, how to say the same.
    """
    known = sorted(allowed)
    unknown = [name for name in given if name not in known]
    if not unknown:
        return
    hints = []
    for name in unknown:
        if elsewhere and name in elsewhere:
            hints.append(f"{name!r} ({elsewhere[name]})")
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hints.append(f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name))
    raise TypeError(
        f"{who}: unknown keyword {', '.join(hints)}; rename or remove it; known are "
        f"{', '.join(known)}"
    )


def check_out_indices(who: str, out_indices: Sequence[int], num_maps: int) -> tuple[int, ...]:
    """Return ``out_indices`` as a tuple.

    Raises:
        ValueError: They are not increasing indexes of the maps, or none.
    """
    indices = (
        tuple(out_indices)
        if isinstance(out_indices, Sequence) and not isinstance(out_indices, str)
        else ()
    )
    is_valid = all(type(index) is int and 0 <= index < num_maps for index in indices)
    if not indices or not is_valid or list(indices) != sorted(set(indices)):
        raise ValueError(
            f"{who}: out_indices must be increasing numbers from 0 to {num_maps - 1}, one for each "
            f"map wanted (strides 4, 8, 16, 32), got {out_indices!r}"
        )
    return indices


def fix_unused(model: ViTAdapter, is_used: Sequence[bool]) -> None:
    """Fix the layers that serve only maps nobody takes.

    DistributedDataParallel would wait for gradients that never come.

    Args:
        model: The backbone; changed in place.
        is_used: Whether the map is taken, for strides 4, 8, 16, 32.
    """
    norms = (model.norm1, model.norm2, model.norm3, model.norm4)
    unused = [norm for norm, used in zip(norms, is_used, strict=True) if not used]
    if not is_used[0]:
        unused += [model.up, model.spm.fc1]
    for module in unused:
        module.requires_grad_(False)


def recompute_activations(model: ViTAdapter, enable: bool) -> None:
    """Set ``with_cp`` of a model that is built already."""
    for module in (model, *model.interactions):
        module.with_cp = enable


def missing(module: str, error: ModuleNotFoundError, remedy: str) -> ImportError:
    """Return the error to raise where a framework cannot be imported.

    Args:
        module: The integration that needs it.
        error: As it came.
        remedy: The command that installs it.
    """
    return ImportError(
        f"{module} needs {error.name}, which cannot be imported ({error}); {remedy}",
        name=error.name,
    )
