"""Save models to a folder or the Hugging Face Hub, and load them from there."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import nn

from common.errors import UserError
from common.files import parse_json, read_file
from models.card import model_card, without_paths
from models.config import ModelConfig, model_config_from_dict
from models.weights.checkpoints import load_into, read_state

M = TypeVar("M")
LARGEST = 1 << 20
"""Of bytes in config.json, and of classes and pixels of a side."""


class SavedModel(PyTorchModelHubMixin):
    """`save_pretrained` and `from_pretrained`; weights that do not fit raise UserError instead of staying random."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a model in eval mode from a folder written by `save_pretrained` or from the hub. Raises UserError."""
        source = pretrained_model_name_or_path
        try:
            if (file := Path(source) / "config.json").exists():
                parse_json(read_file(file, LARGEST))  # refuses a key that appears twice
            return super().from_pretrained(source, **kwargs)
        except Exception as error:  # a config.json of another project can fail anywhere in the constructor
            if isinstance(error, UserError):
                raise
            what = _reason(error)
            if not Path(source).is_dir():
                raise UserError(
                    f"{source}: no such folder, and the Hugging Face Hub does not give it ({what})"
                ) from None
            raise UserError(f"{source}: its config.json does not describe a {cls.__name__} ({what})") from None

    @classmethod
    def _from_pretrained(cls, config: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        """`config`: the whole content of config.json."""
        if "model_config" not in kwargs:
            raise UserError(f"{kwargs['model_id']}: no config.json of a {cls.__name__} found")
        described, source = kwargs.pop("model_config"), kwargs["model_id"]
        if isinstance(described, ModelConfig):
            described = asdict(described)
        if not isinstance(described, dict):
            raise UserError(f"{source}: its config.json has a model_config that is no mapping of keys")
        unknown = (config or {}).keys() - {*cls._hub_mixin_init_parameters, "data"}
        try:
            if unknown:
                raise UserError(f"unknown key {min(unknown)!r:.80}")
            if not isinstance(data := (config or {}).get("data", {}), dict):
                raise UserError("data is a group of keys, not a value")
            model_config = model_config_from_dict(described)
        except UserError as error:
            raise UserError(f"{source}: its config.json does not describe a {cls.__name__} ({error})") from None
        size = kwargs.get("image_size")
        numbers = [kwargs.get("num_classes"), *(size if isinstance(size, list | tuple) and len(size) == 2 else [None])]
        if not all(type(number) is int and 0 < number <= LARGEST for number in numbers):
            what = f"num_classes {kwargs.get('num_classes')} and image_size {size}"
            raise UserError(f"{source}: its config.json has {what[:160]}, not a number and a pair of numbers above 0")
        model = super()._from_pretrained(model_config=model_config, **kwargs)
        if data:
            model.remember_data(data)
        return model

    @classmethod
    def _decode_arg(cls, expected_type: Any, value: Any) -> Any:
        """The value as it is: the mixin would drop keys of `model_config` that it does not know."""
        return value

    @property
    def trained_on(self) -> Mapping[str, Any]:
        """What the model was trained on (`datasets.trained_on.TrainedOn`, as a dict); empty if that is not known.

        "class_names" of the outputs, "mean", "std", "image_size" of the input, "group_names", "name" of the data set.
        """
        return cast(Mapping[str, Any], cast(dict[str, Any], self._hub_mixin_config).get("data", {}))

    def remember_data(self, data: Mapping[str, Any]) -> None:
        """Store what the model is trained on with its config, for `save_pretrained`."""
        cast(dict[str, Any], self._hub_mixin_config)["data"] = dict(data)

    def push_to_hub(self, repo_id: str, *, metrics: Mapping[str, float] | None = None, **options: Any) -> str:
        """Upload the model with a model card to the Hugging Face Hub; returns the address of the commit.

        `metrics`: of the card, name to value. `options`: of huggingface_hub, such as `private`. Paths of this machine
        in config.json are replaced by the names of the files. Raises UserError if that is not possible.
        """
        given = {"config": self.public_config, "model_card_kwargs": {"metrics": metrics}} | options
        try:
            return super().push_to_hub(repo_id, **given)
        except Exception as error:  # offline, no token, not allowed, an impossible name: many kinds
            raise UserError(f"{repo_id}: not pushed to the Hugging Face Hub ({_reason(error)})") from None

    @property
    def public_config(self) -> dict[str, Any]:
        """The content of config.json without paths of this machine."""
        return without_paths(cast(dict[str, Any], self._hub_mixin_config))

    def generate_model_card(self, *, metrics: Mapping[str, float] | None = None, **_: Any) -> ModelCard:
        """The README.md that `save_pretrained` and `push_to_hub` write."""
        library = self._hub_mixin_info.model_card_data.library_name
        return model_card(type(self).__name__, str(library), self.public_config, metrics or {})

    @classmethod
    def _load_as_safetensor(cls, model: M, model_file: str, map_location: str, strict: bool) -> M:
        module = cast(nn.Module, model)
        load_into(module, read_state(model_file), model_file)
        module.to(map_location).eval()
        return model

    _load_as_pickle = _load_as_safetensor


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
