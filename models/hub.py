"""How our models are saved to and read from a folder or the Hugging Face hub."""

from dataclasses import asdict
from typing import Any, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from common.errors import UserError
from models.checkpoints import load_into, read_state
from models.config import model_config_from_dict

M = TypeVar("M")


class SavedModel(PyTorchModelHubMixin):
    """`save_pretrained` / `from_pretrained`, where weights that do not fit are a UserError and never left random."""

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
