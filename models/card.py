"""The model card of a saved model: what it is, what it was trained on, its metrics, how to load it. No images."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

_SHOWN_CLASSES = 50
_FILE_KEYS = ("weights", "stage_1_weights", "init_from", "selector_weights")
"""Keys of `model` that may hold a path of the machine on which the model was trained."""
_TEXT = """---
{header}
---

# {title}

A `{kind}` of the project {library} with the backbone `{backbone}`.

```python
model = torch.hub.load("/path/to/the/repository", "{name}", run="USER/NAME_OF_THIS_MODEL", source="local")
output = model(images)  # normalised images [B, 3, {height}, {width}]
```

## Training data

{data}

## Metrics

{metrics}

## Settings

| Key | Value |
|---|---|
{settings}
"""


def model_card(kind: str, library: str, config: Mapping[str, Any], metrics: Mapping[str, float]) -> ModelCard:
    """The card of a model of class `kind` with the content `config` of config.json.

    `metrics`: name to value, of the test split of the data that it was trained on; empty if they are not known.
    """
    keys, data = dict(config["model_config"]), config.get("data", {})
    parts = keys.pop("parts", {})
    settings = {f"model.{key}": value for key, value in keys.items()}
    settings |= {f"model.parts.{key}": value for key, value in parts.items()}
    name = data.get("name", "unknown")
    results = [
        EvalResult("image-classification", name, name, metric.replace(" ", "_"), value, dataset_split="test",
                   metric_name=metric)
        for metric, value in metrics.items()
    ]  # fmt: skip
    described = ModelCardData(
        library_name=library, pipeline_tag="image-classification", tags=["pytorch_model_hub_mixin"],
        model_name=kind if results else None, eval_results=results or None,
    )  # fmt: skip
    height, width = config["image_size"]
    return ModelCard(
        _TEXT.format(
            header=described.to_yaml(), title=f"{kind}, {name}" if data else kind, kind=kind, library=library,
            name=keys["name"], backbone=keys["backbone"], height=height, width=width, data=_data_words(data),
            metrics=_table({key: f"{value:.4f}" for key, value in metrics.items()}, "Metric") or "Not measured.",
            settings=_rows(settings),
        )
    )  # fmt: skip


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json with the names of files in place of their paths."""
    described = config["model_config"]
    keys = asdict(described) if is_dataclass(described) and not isinstance(described, type) else dict(described)
    return {**config, "model_config": keys | {key: Path(keys[key]).name for key in _FILE_KEYS if keys.get(key)}}


def _data_words(data: Mapping[str, Any]) -> str:
    if not data:
        return "Not stored with the model."
    names = data["class_names"]
    more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
    return _table(
        {
            "Data set": data["name"],
            f"{len(names)} classes": ", ".join(names[:_SHOWN_CLASSES]) + more,
            "Mean, standard deviation": f"{list(data['mean'])}, {list(data['std'])}",
            "Evaluation transform": f"{data['evaluation']}, crop {data['crop']}, {data['interpolation']}",
        },
        "Property",
    )


def _table(values: Mapping[str, Any], first: str) -> str:
    return f"| {first} | Value |\n|---|---|\n{_rows(values)}" if values else ""


def _rows(values: Mapping[str, Any]) -> str:
    shown = {key: " ".join(str(value).replace("|", "\\|").split()) for key, value in values.items()}
    return "\n".join(f"| {key} | {value} |" for key, value in shown.items())
