"""Save models to a folder or the Hugging Face Hub, and load them from there."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from common.errors import UserError
from models.config import model_config_from_dict
from models.weights.checkpoints import load_into, read_state

M = TypeVar("M")


class SavedModel(PyTorchModelHubMixin):
    """`save_pretrained` and `from_pretrained`; weights that do not fit raise UserError instead of staying random."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a model in eval mode from a folder written by `save_pretrained` or from the hub. Raises UserError."""
        source = pretrained_model_name_or_path
        try:
            return super().from_pretrained(source, **kwargs)
        except Exception as error:  # a config.json of another project can fail anywhere in the constructor
            if isinstance(error, UserError) or not Path(source).is_dir():
                raise
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise UserError(f"{source}: its config.json does not describe a {cls.__name__} ({what})") from None

    @classmethod
    def _from_pretrained(cls, config: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        """`config`: the whole content of config.json."""
        if "model_config" not in kwargs:
            raise UserError(f"{kwargs['model_id']}: no config.json of a {cls.__name__} found")
        # The mixin rebuilds only the outer dataclass and leaves `parts` as a dict.
        model_config = model_config_from_dict(asdict(kwargs.pop("model_config")))
        model = super()._from_pretrained(model_config=model_config, **kwargs)
        if config and "data" in config:
            model.remember_data(config["data"])
        return model

    @property
    def trained_on(self) -> Mapping[str, Any]:
        """What the model was trained on (`datasets.trained_on.TrainedOn`, as a dict); empty if that is not known.

        "class_names" of the outputs, "mean", "std", "image_size" of the input, "group_names", "name" of the data set.
        """
        return cast(Mapping[str, Any], cast(dict[str, Any], self._hub_mixin_config).get("data", {}))

    def remember_data(self, data: Mapping[str, Any]) -> None:
        """Store what the model is trained on with its config, for `save_pretrained`."""
        cast(dict[str, Any], self._hub_mixin_config)["data"] = dict(data)

    @classmethod
    def _load_as_safetensor(cls, model: M, model_file: str, map_location: str, strict: bool) -> M:
        module = cast(nn.Module, model)
        load_into(module, read_state(model_file), model_file)
        module.to(map_location).eval()
        return model

    _load_as_pickle = _load_as_safetensor
