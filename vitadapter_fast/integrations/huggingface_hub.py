# SPDX-FileCopyrightText: 2026 The vitadapter_fast authors
# SPDX-License-Identifier: Apache-2.0
"""A model that huggingface_hub saves and loads, with all its settings and a model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..builders import model_kwargs
from ..model import ViTAdapter
from ._common import MODEL_KEYWORDS, SETTINGS, check_keywords, missing
from .hub_files import CARD, PREPROCESSOR, PREPROCESSOR_CONFIG, model_card, write_new

try:
    from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin
except ModuleNotFoundError as error:
    raise missing(__name__, error, "pip install 'huggingface_hub>=0.26'") from error

_CODE = """\
from vitadapter_fast.integrations.huggingface_hub import HubViTAdapter

model = HubViTAdapter.from_pretrained("this repository")
maps = model(images)"""


class HubViTAdapter(ViTAdapter, PyTorchModelHubMixin):  # type: ignore[misc]
    """A ``ViTAdapter`` with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    A folder has config.json with all keywords of ``ViTAdapter``, model.safetensors, the config of
    an image processor, and README.md, a model card that states the license of the ViT's weights.
    """

    def __init__(self, size: str = "s", **settings: Any) -> None:
        """Build a published model, in training mode.

        Args:
            size: "s", "b", "l", "g", "dinov3-s" and so on.
            **settings: Keywords of ``ViTAdapter``, such as ``pretrained``; they replace the
                model's.

        Raises:
            TypeError: A keyword is unknown.
            ValueError: There is no such size; a setting is out of range or disagrees with another.
            CheckpointError: ``pretrained`` cannot be read or does not fit.
        """
        check_keywords("HubViTAdapter", settings, MODEL_KEYWORDS)
        given = model_kwargs(size, **settings)
        super().__init__(**given)
        self._hub_mixin_config = {
            name: given.get(name, default) for name, default in SETTINGS.items()
        }

    def generate_model_card(self, *, tags: Sequence[str] = ()) -> ModelCard:
        """Return the model card; ``model_card_kwargs`` of the other methods come here.

        Args:
            tags: For its head, beside its own.
        """
        return ModelCard(model_card(self, library="vitadapter_fast", code=_CODE, tags=tags))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        config: dict[str, Any] | None = None,
        commit_message: str = "Upload HubViTAdapter",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        allow_patterns: list[str] | str | None = None,
        ignore_patterns: list[str] | str | None = None,
        delete_patterns: list[str] | str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Upload what ``save_pretrained`` writes; a model card that is there already stays.

        Args:
            repo_id: The repository, "owner/name"; made if it does not exist.
            config: As for ``PyTorchModelHubMixin.push_to_hub``, like all that is not said here.
            commit_message: Likewise.
            private: Likewise.
            token: Likewise.
            branch: Likewise.
            create_pr: Likewise.
            allow_patterns: Likewise.
            ignore_patterns: Likewise.
            delete_patterns: Likewise.
            model_card_kwargs: For ``generate_model_card``.

        Returns:
            The address of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        ignored = [ignore_patterns] if isinstance(ignore_patterns, str) else ignore_patterns or []
        if api.file_exists(repo_id, CARD, revision=branch):
            ignored = [*ignored, CARD]
        url: str = super().push_to_hub(
            repo_id,
            config=config,
            commit_message=commit_message,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
            allow_patterns=allow_patterns,
            ignore_patterns=ignored or None,
            delete_patterns=delete_patterns,
            model_card_kwargs=model_card_kwargs,
        )
        return url

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        write_new(save_directory, PREPROCESSOR, PREPROCESSOR_CONFIG)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **kwargs: Any) -> "HubViTAdapter":
        """Do what huggingface_hub does, but take no file that lacks weights unless asked to."""
        model: HubViTAdapter = super()._from_pretrained(strict=strict, **kwargs)
        return model
