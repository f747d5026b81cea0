"""Save models to a folder or the Hugging Face Hub, and load them from there."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from common.errors import UserError
from common.files import check_regular
from models.config import model_config_from_dict
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
                check_regular(file, LARGEST)
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
        # The mixin rebuilds only the outer dataclass, from any values, and leaves `parts` as a dict.
        described, source = kwargs.pop("model_config"), kwargs["model_id"]
        if not is_dataclass(described) or isinstance(described, type):
            raise UserError(f"{source}: its config.json has a model_config that is no mapping of keys")
        try:
            model_config = model_config_from_dict(asdict(described))
        except UserError as error:
            raise UserError(f"{source}: its config.json does not describe a {cls.__name__} ({error})") from None
        size = kwargs.get("image_size")
        numbers = [kwargs.get("num_classes"), *(size if isinstance(size, list | tuple) and len(size) == 2 else [None])]
        if not all(type(number) is int and 0 < number <= LARGEST for number in numbers):
            what = f"num_classes {kwargs.get('num_classes')} and image_size {size}"
            raise UserError(f"{source}: its config.json has {what[:160]}, not a number and a pair of numbers above 0")
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
