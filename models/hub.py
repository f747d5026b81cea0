"""How our models are saved to and read from a folder or the Hugging Face hub."""

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
    """`save_pretrained` / `from_pretrained`, where weights that do not fit are a UserError and never left random."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """The model of a folder of `save_pretrained`, or of the hub, in eval mode. Raises UserError naming it."""
        source = pretrained_model_name_or_path
        try:
            return super().from_pretrained(source, **kwargs)
        except Exception as error:  # a config.json of something else fails anywhere in building its model
            if isinstance(error, UserError) or not Path(source).is_dir():
                raise
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise UserError(f"{source}: its config.json describes no {cls.__name__} ({what})") from None

    @classmethod
    def _from_pretrained(cls, **kwargs: Any) -> Any:
        if "model_config" not in kwargs:
            raise UserError(f"{kwargs['model_id']}: no config.json of a {cls.__name__} there")
        # The mixin rebuilds the outer dataclass alone and leaves `parts` a dict.
        config = model_config_from_dict(asdict(kwargs.pop("model_config")))
        return super()._from_pretrained(model_config=config, **kwargs)

    @classmethod
    def _load_as_safetensor(cls, model: M, model_file: str, map_location: str, strict: bool) -> M:
        module = cast(nn.Module, model)
        load_into(module, read_state(model_file), model_file)
        module.to(map_location).eval()
        return model

    _load_as_pickle = _load_as_safetensor
