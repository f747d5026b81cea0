"""How our models are saved to and read from a folder or the Hugging Face hub."""

from dataclasses import asdict
from typing import Any, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from models.checkpoints import load_into, read_state
from models.config import model_config_from_dict

M = TypeVar("M")


class SavedModel(PyTorchModelHubMixin):
    """`save_pretrained` / `from_pretrained`, where weights that do not fit are a UserError and never left random."""

    @classmethod
    def _from_pretrained(cls, **kwargs: Any) -> Any:
        if "model_config" in kwargs:  # the mixin rebuilds the outer dataclass alone and leaves `parts` a dict
            kwargs["model_config"] = model_config_from_dict(asdict(kwargs["model_config"]))
        return super()._from_pretrained(**kwargs)

    @classmethod
    def _load_as_safetensor(cls, model: M, model_file: str, map_location: str, strict: bool) -> M:
        module = cast(nn.Module, model)
        load_into(module, read_state(model_file), model_file)
        module.to(map_location).eval()
        return model

    _load_as_pickle = _load_as_safetensor
