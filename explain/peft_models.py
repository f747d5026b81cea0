"""Models with adapters of `peft` (LoRA, DoRA, IA3, ...): explained with their adapters merged.

Merged, because a layer and its adapter are then one operation, as the rules of LRP need. `peft` is never imported
here: whoever passes a model with adapters has imported it.
"""

import copy
from typing import Any, cast

import torch
from torch import nn

from common.errors import UserError


def merged(model: nn.Module) -> nn.Module:
    """The model with its active adapters merged: a copy that shares all other weights. Others stay as they are.

    Disabled adapters are left out, as they are when the model runs. Weights in half precision are merged in float32.
    Raises UserError for adapters that cannot be merged.
    """
    base = model
    if _inherits(model, "PeftModel"):
        config: Any = cast(Any, model).active_peft_config
        if config.is_prompt_learning:
            raise UserError(f"cannot explain a {type(model).__name__} with {config.peft_type}: it adds tokens")
        base = cast(nn.Module, cast(Any, model).get_base_model())
    adapted = [part for part in base.modules() if _is_adapted(part)]
    if not adapted:
        return base
    changed = {id(t) for part in adapted if _is_tuned(part) for t in _base_layer(part).parameters()}
    shared = {id(t): t for t in (*base.parameters(), *base.buffers()) if id(t) not in changed}
    result = copy.deepcopy(base, dict(shared))
    _replace(result)
    return result


def _replace(parent: nn.Module) -> None:
    """Replace layers with adapters below `parent`, a copy, by plain layers."""
    for name, child in list(parent.named_children()):
        if _is_tuned(child):
            setattr(parent, name, _merge(child))
        elif _is_adapted(child):
            setattr(parent, name, _saved(child))
        else:
            _replace(child)


def _merge(layer: nn.Module) -> nn.Module:
    tuner, base = cast(Any, layer), _base_layer(layer)
    for weight in base.parameters():
        weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))
    try:
        # as peft's layers choose: merged already, whatever is active now, is what runs
        if tuner.disable_adapters and tuner.merged:
            tuner.unmerge()
        elif not tuner.disable_adapters and not tuner.merged:
            tuner.merge()
    except Exception as error:  # each kind of adapter has its own reasons
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"cannot merge the adapter of a {type(layer).__name__} ({reason})") from None
    return base


def _saved(wrapper: nn.Module) -> nn.Module:
    """The module that a wrapper of `modules_to_save` runs."""
    saving: Any = wrapper
    if not hasattr(saving, "modules_to_save"):
        raise UserError(f"cannot merge a {type(wrapper).__name__}; merge it with peft's merge_and_unload")
    if saving.disable_adapters or not saving.active_adapters:
        return cast(nn.Module, saving.original_module)
    return cast(nn.Module, saving.modules_to_save[saving.active_adapters[0]])


def _base_layer(layer: nn.Module) -> nn.Module:
    return cast(nn.Module, cast(Any, layer).get_base_layer())


def _is_tuned(part: nn.Module) -> bool:
    return _inherits(part, "BaseTunerLayer")


def _is_adapted(part: nn.Module) -> bool:
    return _is_tuned(part) or _inherits(part, "AuxiliaryTrainingWrapper")


def _inherits(part: nn.Module, name: str) -> bool:
    """Whether a class of peft with this name is among the module's classes."""
    return any(kind.__name__ == name and kind.__module__.startswith("peft.") for kind in type(part).__mro__)
